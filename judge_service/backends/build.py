"""From settings to a backend that is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from judge_service.backends.base import Backend
from judge_service.backends.empty import SkipsEmpty
from judge_service.backends.faulty import Faults, FaultyBackend
from judge_service.backends.rules import RulesBackend
from judge_service.config import BackendConfig, RulesConfig
from shared.errors import ConfigError
from shared.rubrics.rubric import Rubric


def build_backend(config: BackendConfig, faults: Faults | None, rubrics: Sequence[Rubric]) -> Backend:
    """Raises ConfigError where the backend cannot load."""
    inner = SkipsEmpty(_build(config, rubrics))
    return inner if faults is None else FaultyBackend(inner, faults)


def _build(config: BackendConfig, rubrics: Sequence[Rubric]) -> Backend:
    if isinstance(config, RulesConfig):
        return RulesBackend()
    # Here, so that a worker with another backend needs no torch.
    try:
        from judge_service.backends.transformers import TransformersBackend, TransformersOptions
    except ImportError as error:
        raise ConfigError(
            f"the transformers backend needs tether[judge-transformers] installed ({error})"
        ) from error
    return TransformersBackend(
        TransformersOptions(
            path=config.path,
            name=config.name,
            rubrics=tuple(rubrics),
            device=config.device,
            threads=config.threads,
            label_mass_floor=config.label_mass_floor,
            max_tokens=config.max_tokens,
        )
    )
