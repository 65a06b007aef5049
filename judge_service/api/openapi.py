"""The document at /openapi.json: bodies that routes read themselves, problems, examples, the API key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from judge_service.api.problem import MEDIA_TYPE
from shared.wire import Judgement, JudgementList, Problem, ReadJudgements, SubmitJudgements

VERDICT_EXAMPLE = {
    "id": "cake-1",
    "status": "scored",
    "score": 0.02,
    "level": 1,
    "probabilities": [0.95, 0.03, 0.01, 0.0, 0.01],
    "label_mass": 0.99,
    "judge": {
        "kind": "transformers",
        "model": "judge",
        "rubric": "demo-v1",
        "rubric_hash": "0123456789abcdef",
        "score_kind": "label_probability",
    },
    "cached": False,
    "error": None,
    "timings": {"queue_ms": 3.1, "judge_ms": 12.0},
}
PENDING_EXAMPLE = {"id": "cake-2", "status": "pending"}
LIST_EXAMPLE = {"object": "list", "items": [VERDICT_EXAMPLE, PENDING_EXAMPLE]}
SUBMIT_EXAMPLE = {
    "rubric": "demo-v1",
    "wait_s": 10,
    "items": [
        {"id": "cake-1", "prompt": "How do I bake a cake?", "response": "Mix flour and eggs."},
        {"id": "cake-2", "prompt": [{"role": "user", "content": "And bread?"}], "response": "Use yeast."},
    ],
}
READ_EXAMPLE = {"ids": ["cake-1", "cake-2"], "wait_s": 10}
EVENTS_EXAMPLE = (
    'event: verdict\nretry: 1000\nid: .AQ\ndata: {"id":"cake-1","status":"scored","score":0.02}\n\n'
    'event: done\nretry: 1000\nid: .AQ\ndata: {"items":1}\n\n'
)
EVENT_SCHEMA = {
    "type": "object",
    "description": "Each event of the stream; `data` is JSON: a verdict, or `{id}`, or `{items}`.",
    "required": ["event", "data", "id"],
    "properties": {
        "event": {"enum": ["verdict", "gone", "done"]},
        "data": {"type": "string"},
        "id": {"type": "string"},
        "retry": {"type": "integer"},
    },
}
READY_EXAMPLE = {
    "status": "ready",
    "components": {
        "redis": {"status": "ok", "detail": None},
        "queue": {
            "status": "ok",
            "depth": {"policy": 0, "target": 12, "evaluation": 0},
            "limit": 100000,
        },
        "workers": {"alive": 1, "not_taking": [], "items": [{"worker": "host-1a2b3c4d", "kind": "vllm"}]},
        "keys": None,
    },
}

PROBLEMS = {
    400: ("Bad Request", "the Idempotency-Key header must be 1 to 255 printable ASCII characters"),
    401: ("Unauthorized", "this service wants an API key: send the header `Authorization: Bearer KEY`"),
    404: ("Not Found", "unknown judgement cake-9: never submitted, or read too late; submit it again"),
    409: ("Conflict", "this id was used before with another text or rubric: cake-1; nothing was admitted"),
    410: ("Gone", "the verdict of cake-1 could be read until 2026-01-31T10:00:00Z; submit it again"),
    413: ("Request Entity Too Large", "the body is over 4194304 bytes"),
    415: ("Unsupported Media Type", "send the body as it is: Content-Encoding 'gzip' is not understood"),
    422: ("Unprocessable Entity", "the request is wrong: items[0].response: Input should be a valid string"),
    429: (
        "Too Many Requests",
        "tenant 'acme' may submit 100 items a second (500 at once); 64 more are in 0.4 s",
    ),
    502: ("Bad Gateway", "the judge could not grade query[0]: server_error: the backend failed"),
    503: (
        "Service Unavailable",
        "the queue holds 100000 of 100000 items; 2 more do not fit; none was admitted",
    ),
    504: ("Gateway Timeout", "no verdict within 120 s; send the same again"),
}

RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route, as RFC 9457 problems."""
    made: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        title, detail = PROBLEMS[status]
        example = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        content = {"schema": _ref(Problem), "example": example}
        made[status] = {"description": title, "content": {MEDIA_TYPE: content}}
        if status in (429, 503):
            made[status]["headers"] = RETRY_AFTER
    return made


def json_answer(schema: str, example: Mapping[str, Any], description: str) -> dict[str, Any]:
    """A route's answer, by the name of a schema that `complete` adds."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
    return {"description": description, "content": {"application/json": content}}


def json_body(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `model` itself."""
    content = {"schema": _ref(model), "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def complete(openapi: dict[str, Any], models: tuple[type[BaseModel], ...], *, keyed: bool) -> None:
    """Add the schemas that routes only name, and the API key where the service wants one."""
    components = openapi.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    named: tuple[type[BaseModel], ...] = (SubmitJudgements, ReadJudgements, JudgementList, Problem, *models)
    for model in named:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    judgement = TypeAdapter(Judgement).json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(judgement.pop("$defs", {}))
    schemas["Judgement"] = judgement
    # FastAPI's own 422, on routes that have none.
    for operations in openapi["paths"].values():
        for operation in operations.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if not keyed:
        return
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in openapi["paths"].items():
        if path in ("/livez", "/readyz", "/metrics"):
            continue
        for operation in operations.values():
            operation["security"] = [{"key": []}]
            operation["responses"].setdefault("401", problems(401)[401])


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
