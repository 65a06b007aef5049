"""What the API and a worker are told. Every setting is a flag and an environment variable (see cli.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge_service.backends.faulty import Faults
from shared.errors import ConfigError
from shared.redis_keys import DEFAULT_PREFIX


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class QueueConfig(Settings):
    redis_url: str = Field(pattern=r"^(redis|rediss|unix)://", repr=False)
    """Holds a password: from the environment or a file, never from a flag."""
    key_prefix: str = Field(default=DEFAULT_PREFIX, max_length=200)
    limit: int = Field(default=100_000, ge=1)
    """Most items waiting and in flight; a batch that would pass it is refused whole."""
    result_ttl_s: int = Field(default=86_400, ge=1)
    """Seconds for which a verdict can be read. After that its id is unknown again."""


class ApiConfig(Settings):
    queue: QueueConfig
    host: str = "127.0.0.1"
    port: int = Field(default=8100, ge=0, le=65535)
    """0: any free one; the ready line says which."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    rubrics_dir: Path | None = None
    """Rubric files of the operator's own, beside the shipped ones. Workers need the same folder."""
    retry_after_s: int = Field(default=2, ge=1)
    """What a client is told to wait when the queue is full or Redis is away."""
    keys_file: Path | None = None
    """API keys, as `tether judge keys` writes them. None: one tenant, and nobody is asked."""
    insecure: bool = False
    """Serve others than this machine without API keys."""
    default_rubric: str = "demo-v1"
    """Of the contracts whose clients name none."""
    flag_threshold: float = Field(default=0.5, ge=0, le=1)
    """A moderation flags harm from here on."""
    contract_wait_s: float = Field(default=120.0, gt=0, le=3600)
    """Longest that a contract without a word for "pending" waits for its verdicts."""
    events_keep_alive_s: float = Field(default=15.0, gt=0)
    """An event stream that has nothing to say sends a comment so often."""


class TransformersConfig(Settings):
    type: Literal["transformers"] = "transformers"
    path: str
    """A folder with the model and its tokenizer, or a name that the hub or its cache has."""
    name: str
    """As verdicts call it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    label_mass_floor: float = Field(default=0.5, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=32)


class RulesConfig(Settings):
    type: Literal["rules"] = "rules"


class ClassifierConfig(Settings):
    type: Literal["classifier"] = "classifier"
    path: str
    """A sequence-classification model with its tokenizer: a folder, or a name."""
    name: str
    harm: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)
    """Label, by name or index -> harm. What is not named is harmless."""
    reads: Literal["response", "exchange"] = "exchange"
    """The answer alone, or the request and the answer as a pair."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=32)


class ServedConfig(Settings):
    """Of every judge that is served elsewhere."""

    urls: tuple[Annotated[str, Field(pattern=r"^https?://")], ...] = Field(min_length=1)
    """Of one and the same model; the least loaded server gets the next item."""
    name: str | None = None
    """As verdicts call it; None: as its server does."""
    server_key_file: Path | None = None
    """The servers' API key. A file, since flags and settings are seen by others."""
    in_flight: int = Field(default=64, ge=1, le=4096)
    """Most items at a server at a time."""
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """For one item. After it: `failed: timeout`."""
    boot_s: float = Field(default=900.0, ge=0)
    """How long the worker waits at its start for a server: large models load for minutes."""
    label_mass_floor: float = Field(default=0.5, ge=0, le=1)


class VllmConfig(ServedConfig):
    type: Literal["vllm"] = "vllm"
    form: Literal["harmony", "completion"] = "harmony"
    """gpt-oss and gpt-oss-safeguard; or a plain language model without a chat format."""
    model: str | None = None
    """As vLLM calls it; None: the only one it serves."""
    tokenizer: Path | None = None
    """`completion`: the judge's tokenizer.json, or its folder."""
    reasoning: Literal["off", "low", "medium", "high"] = "low"
    """`harmony`: how long it may think. `off` reads the label at once."""
    reasoning_tokens: int = Field(default=1024, ge=1)
    unfinished: Literal["fail", "close"] = "fail"
    """Thoughts that reach `reasoning_tokens`: the item fails, or they end there and the label is read."""
    max_tokens: int | None = Field(default=None, ge=32)


class OpenAIConfig(ServedConfig):
    type: Literal["openai"] = "openai"
    model: str
    samples: int | None = Field(default=None, ge=2, le=64)
    """Where no log-probabilities come: average so many answers. None: refuse to start."""
    max_output_tokens: int = Field(default=512, ge=1)
    max_chars: int = Field(default=48_000, ge=1000)
    """Of the graded text and its marks; what is longer loses its middle."""


BackendConfig = Annotated[
    TransformersConfig | RulesConfig | ClassifierConfig | VllmConfig | OpenAIConfig,
    Field(discriminator="type"),
]


class WorkerConfig(Settings):
    queue: QueueConfig
    backend: BackendConfig
    faults: Faults | None = None
    rubrics: tuple[str, ...] = Field(default=("demo-v1",), min_length=1)
    """What this worker's judge can grade by."""
    rubrics_dir: Path | None = None
    """Where rubrics lie that do not ship with Tether."""
    batch_size: int = Field(default=32, ge=1, le=1024)
    linger_ms: int = Field(default=5, ge=0, le=10_000)
    """Wait so long for a batch that is not full."""
    concurrency: int | None = Field(default=None, ge=1, le=1024)
    """Batches in flight; None: what the backend gains from."""
    lease_s: float = Field(default=10.0, gt=0, le=3600)
    """Another worker takes over what has not been kept alive for so long. Beaten three times in it."""
    max_deliveries: int = Field(default=4, ge=1, le=100)
    """An item that was handed out so often and came to no end is given up: `failed: server_error`."""
    cache_ttl_s: int = Field(default=86_400, ge=0)
    """Seconds for which the verdict of a text is given again to the same text. 0: always judge."""
    redis_deadline_s: float = Field(default=120.0, gt=0)
    """The worker ends when Redis has been away for so long."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Serve Prometheus metrics there; 0: any free one, which the ready line names. None: do not."""
    metrics_host: str = "127.0.0.1"
    controls: bool = True
    """Work only while the judge passes its control pairs. False: for judges that mean nothing, in trials."""
    controls_dir: Path | None = None
    """Control pairs of the operator's own, one file a rubric; see docs/judge_operations.md."""
    control_s: float = Field(default=300.0, ge=1)
    """Seconds between two rounds of the control pairs."""
    control_deadline_s: float = Field(default=120.0, gt=0)
    """A judge that has not answered them in so long counts as away."""
    grace_s: float = Field(default=8.0, ge=0)
    """At a stop: seconds to finish what is in hand. The rest goes back to the queue, uncounted."""


S = TypeVar("S", bound=Settings)


def checked(kind: type[S], values: dict[str, Any]) -> S:
    """The settings, or a ConfigError that names each wrong one and never shows its value.

    A value may be the Redis URL, with its password.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"judge settings: {wrong}") from None


def redis_url_from(url: str | None, file: Path | None) -> str:
    """Raises ConfigError when neither is given, or the file cannot be read."""
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"cannot read the Redis URL from {file}: {error.strerror}") from error
    if not url:
        raise ConfigError(
            "no Redis: set REDIS_URL (redis://:password@host:port/0) or --redis-url-file, or let `tether up`"
            " start everything"
        )
    return url
