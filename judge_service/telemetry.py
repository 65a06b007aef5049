"""OpenTelemetry traces from a submission through the queue to the backend.

Off, and free, unless the standard variables switch them on: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_TRACES_EXPORTER=otlp. All other OTEL_* variables mean what the
OpenTelemetry SDK says. Spans hold counts, routes and codes, never graded text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

Attributes = Mapping[str, str | int | float]


class Kind(Enum):
    """As OpenTelemetry's SpanKind, which is not installed where traces are off."""

    SERVER = "SERVER"
    PRODUCER = "PRODUCER"
    CONSUMER = "CONSUMER"
    CLIENT = "CLIENT"


class _Tracing:
    """What `configure` has made; one a process, as OpenTelemetry's own."""

    provider: TracerProvider | None = None
    tracer: Tracer | None = None


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").lower()
    if exporter:
        return exporter == "otlp"
    return bool(
        environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


def configure(service: str) -> None:
    """Switch traces on if the environment asks for them.

    Raises:
        ConfigError: it asks, but the packages are missing or the protocol is one that we do not speak.
    """
    if not wanted(os.environ):
        return
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol != "http/protobuf":
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, but traces are sent as http/protobuf; set that, or"
            " OTEL_SDK_DISABLED=true"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"OTEL_* asks for traces, but {error.name} is not installed: pip install 'tether[telemetry]', or"
            " set OTEL_SDK_DISABLED=true"
        ) from error
    # An attribute given here would win over the variable.
    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _Tracing.provider = provider
    _Tracing.tracer = provider.get_tracer("tether")


def shutdown() -> None:
    """Send what has not been sent. Traces are off afterwards."""
    if _Tracing.provider is not None:
        _Tracing.provider.shutdown()
    _Tracing.provider = _Tracing.tracer = None


def enabled() -> bool:
    return _Tracing.tracer is not None


def traceparent() -> str | None:
    """The current span as a W3C `traceparent`; None where traces are off."""
    return headers().get("traceparent")


def headers() -> dict[str, str]:
    """What an outgoing request carries so that its server's spans join the trace; empty where off."""
    if _Tracing.tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


class SpanHandle:
    """A span that may not exist."""

    def __init__(self, span: Span | None) -> None:
        self._span = span

    def set(self, attributes: Attributes) -> None:
        if self._span is not None:
            self._span.set_attributes(dict(attributes))

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, message: str) -> None:
        """Mark it as an error. `message` never holds graded text."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, message))


NOTHING = SpanHandle(None)


@contextmanager
def span(
    name: str,
    kind: Kind,
    *,
    parent: Mapping[str, str] | None = None,
    traceparents: Sequence[str] = (),
    attributes: Attributes | None = None,
) -> Iterator[SpanHandle]:
    """A span around a block; nothing at all where traces are off.

    Args:
        parent: headers of a request, whose `traceparent` it continues.
        traceparents: of the messages of a batch. It links to each; where all are of one trace it also
            continues that, so that a submission and its judging read as one.
    """
    tracer = _Tracing.tracer
    if tracer is None:
        yield NOTHING
        return
    from opentelemetry.trace import Link, SpanKind, get_current_span

    context = _context(parent) if parent is not None else None
    remotes = [_context({"traceparent": one}) for one in dict.fromkeys(traceparents)]
    spans = [get_current_span(remote).get_span_context() for remote in remotes]
    if context is None and remotes and len({one.trace_id for one in spans}) == 1:
        context = remotes[0]
    with tracer.start_as_current_span(
        name,
        context=context,
        kind=SpanKind[kind.value],
        links=[Link(one) for one in spans if one.is_valid],
        attributes=dict(attributes or {}),
        # The message of an exception may hold graded text; its type does not.
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        yield SpanHandle(made)


def _context(carrier: Mapping[str, str]) -> Context:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(dict(carrier))
