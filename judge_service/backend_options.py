"""The worker's flags that choose its backend, and what they mean together. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.errors import ConfigError

KINDS = ("transformers", "vllm", "openai", "classifier", "rules")
ENV = "TETHER_JUDGE_"


def _flag(env: str, help_: str | None = None, *names: str) -> Any:
    return typer.Option(*names, envvar=ENV + env, help=help_)


Backend = Annotated[str, _flag("BACKEND", ", ".join(KINDS) + ".")]
Model = Annotated[
    str | None, _flag("MODEL", "Folder or name of the judge's model; vllm, openai: as its server calls it.")
]
ModelName = Annotated[str | None, _flag("MODEL_NAME", "As verdicts call it.")]
LabelMassFloor = Annotated[
    float | None, _flag("LABEL_MASS_FLOOR", "Least probability of all labels together; 0.5.")
]
MaxTokens = Annotated[int | None, _flag("MAX_TOKENS", "Of a prompt; default: the model's context.")]
Device = Annotated[str | None, _flag("DEVICE", "transformers, classifier: auto, cpu or cuda.")]
Threads = Annotated[int | None, _flag("THREADS", "transformers, classifier: of the CPU.")]
Urls = Annotated[
    list[str] | None, _flag("URLS", "vllm, openai: base URL of the judge's server; repeatable.", "--url")
]
ServerKeyFile = Annotated[Path | None, _flag("SERVER_KEY_FILE", "vllm, openai: holds the server's API key.")]
InFlight = Annotated[int | None, _flag("IN_FLIGHT", "vllm, openai: most items at a server at a time; 64.")]
TimeoutS = Annotated[float | None, _flag("TIMEOUT_S", "vllm, openai: for one item; 120.")]
BootS = Annotated[float | None, _flag("BOOT_S", "vllm, openai: wait so long for a server at the start; 900.")]
Form = Annotated[str | None, _flag("FORM", "vllm: harmony (gpt-oss) or completion (no chat format).")]
TokenizerPath = Annotated[
    Path | None, _flag("TOKENIZER", "vllm, completion: the judge's tokenizer.json or its folder.")
]
Reasoning = Annotated[str | None, _flag("REASONING", "vllm, harmony: off, low, medium or high; low.")]
ReasoningTokens = Annotated[int | None, _flag("REASONING_TOKENS", "vllm, harmony: at most; 1024.")]
Unfinished = Annotated[
    str | None, _flag("UNFINISHED", "vllm, harmony: fail, or close and read what was cut at that.")
]
Samples = Annotated[
    int | None, _flag("SAMPLES", "openai: average so many answers where no log-probabilities come.")
]
Harm = Annotated[
    list[str] | None, _flag("HARM", "classifier: LABEL=HARM in 0..1, by name or index; repeatable.")
]
Reads = Annotated[str | None, _flag("READS", "classifier: exchange, or response alone.")]


def backend_settings(
    kind: str, model: str | None, name: str | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """The backend's part of the worker's settings, of those flags that were given.

    Raises:
        ConfigError: an unknown kind, a flag that it has no use for, or one that it needs is missing.
    """
    from judge_service import config

    kinds: dict[str, type[config.Settings]] = {
        "transformers": config.TransformersConfig,
        "vllm": config.VllmConfig,
        "openai": config.OpenAIConfig,
        "classifier": config.ClassifierConfig,
        "rules": config.RulesConfig,
    }
    if kind not in kinds:
        raise ConfigError(f"unknown backend {kind!r}; there are: {', '.join(KINDS)}")
    fields = kinds[kind].model_fields
    given = {key: value for key, value in flags.items() if value is not None}
    if model is not None:
        given["path" if "path" in fields else "model"] = model
    if name is not None:
        given["name"] = name
    elif model is not None and "path" in fields:
        given["name"] = Path(model).name
    if foreign := sorted(given.keys() - fields.keys()):
        raise ConfigError(f"the {kind} backend has no use for: {', '.join(foreign)}")
    flag_of = {"path": "--model", "urls": "--url"}
    needed = [key for key, field in fields.items() if field.is_required() and key not in given]
    if needed := [flag_of.get(key, f"--{key}") for key in needed if key != "name" or "path" in given]:
        raise ConfigError(f"the {kind} backend needs {', '.join(needed)}; see `tether judge worker --help`")
    return {"type": kind, **given}


def harm_of(pairs: Sequence[str] | None) -> dict[str, str] | None:
    """`LABEL=HARM`, ... -> label -> harm, which the settings check. Raises ConfigError."""
    if not pairs:
        return None
    found = {}
    for pair in pairs:
        label, equals, value = pair.rpartition("=")
        if not equals:
            raise ConfigError(f"--harm {pair!r} is not of the form LABEL=HARM, such as toxic=1")
        found[label] = value
    return found
