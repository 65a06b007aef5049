"""From settings to a backend that is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from judge_service.backends.base import Backend
from judge_service.backends.empty import SkipsEmpty
from judge_service.backends.faulty import Faults, FaultyBackend
from judge_service.backends.pool import PoolOptions
from judge_service.backends.rules import RulesBackend
from judge_service.config import (
    BackendConfig,
    ClassifierConfig,
    OpenAIConfig,
    RulesConfig,
    ServedConfig,
    TransformersConfig,
    VllmConfig,
)
from shared.errors import ConfigError
from shared.rubrics.rubric import Rubric


def build_backend(config: BackendConfig, faults: Faults | None, rubrics: Sequence[Rubric]) -> Backend:
    """Waits for the judge's server, where it has one.

    Raises:
        ConfigError: the backend cannot load, or what is served cannot be read.
        ServiceError: no server of the judge came up in time.
    """
    inner = SkipsEmpty(_build(config, tuple(rubrics)))
    return inner if faults is None else FaultyBackend(inner, faults)


def _build(config: BackendConfig, rubrics: tuple[Rubric, ...]) -> Backend:
    # Imported in their own branches: a worker needs no torch but for a model in its process.
    match config:
        case RulesConfig():
            return RulesBackend()
        case TransformersConfig():
            return _transformers(config, rubrics)
        case ClassifierConfig():
            return _classifier(config)
        case VllmConfig():
            return _vllm(config, rubrics)
        case OpenAIConfig():
            return _openai(config, rubrics)


def _transformers(config: TransformersConfig, rubrics: tuple[Rubric, ...]) -> Backend:
    try:
        from judge_service.backends.transformers import TransformersBackend, TransformersOptions
    except ImportError as error:
        raise _needs("judge-transformers", error) from error
    return TransformersBackend(
        TransformersOptions(
            path=config.path,
            name=config.name,
            rubrics=rubrics,
            device=config.device,
            threads=config.threads,
            label_mass_floor=config.label_mass_floor,
            max_tokens=config.max_tokens,
        )
    )


def _classifier(config: ClassifierConfig) -> Backend:
    try:
        from judge_service.backends.classifier import ClassifierBackend, ClassifierOptions
    except ImportError as error:
        raise _needs("judge-transformers", error) from error
    return ClassifierBackend(
        ClassifierOptions(
            path=config.path,
            name=config.name,
            harm=config.harm,
            reads=config.reads,
            device=config.device,
            threads=config.threads,
            max_tokens=config.max_tokens,
        )
    )


def _vllm(config: VllmConfig, rubrics: tuple[Rubric, ...]) -> Backend:
    try:
        from judge_service.backends.harmony import HarmonyOptions
        from judge_service.backends.plain_lm import PlainOptions
        from judge_service.backends.vllm import VllmOptions, open_vllm
    except ImportError as error:
        raise _needs("judge-vllm", error) from error
    form: PlainOptions | HarmonyOptions
    if config.form == "harmony":
        form = HarmonyOptions(
            reasoning=config.reasoning,
            reasoning_tokens=config.reasoning_tokens,
            unfinished=config.unfinished,
            label_mass_floor=config.label_mass_floor,
            max_tokens=config.max_tokens,
        )
    elif config.tokenizer is None:
        raise ConfigError("the form completion needs --tokenizer: the judge's tokenizer.json or its folder")
    else:
        form = PlainOptions(config.tokenizer, config.label_mass_floor, config.max_tokens)
    return open_vllm(
        VllmOptions(
            pool=_pool(config),
            form=form,
            rubrics=rubrics,
            model=config.model,
            name=config.name,
            boot_s=config.boot_s,
        )
    )


def _openai(config: OpenAIConfig, rubrics: tuple[Rubric, ...]) -> Backend:
    from judge_service.backends.openai import OpenAIOptions, open_openai

    return open_openai(
        OpenAIOptions(
            pool=_pool(config),
            model=config.model,
            rubrics=rubrics,
            name=config.name,
            samples=config.samples,
            label_mass_floor=config.label_mass_floor,
            max_output_tokens=config.max_output_tokens,
            max_chars=config.max_chars,
            boot_s=config.boot_s,
        )
    )


def _pool(config: ServedConfig) -> PoolOptions:
    key = None
    if config.server_key_file is not None:
        try:
            key = config.server_key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"cannot read the judge server's key: {error}") from error
    return PoolOptions(config.urls, config.in_flight, config.timeout_s, key)


def _needs(extra: str, error: ImportError) -> ConfigError:
    return ConfigError(f"this backend needs tether[{extra}] installed ({error})")
