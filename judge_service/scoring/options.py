"""The options that say who grades, shared by the commands that need somebody to."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from judge_service.scoring.judge import Judge
from shared.errors import ConfigError

RubricName = Annotated[
    str | None, typer.Option("--rubric", envvar="TETHER_JUDGE_RUBRIC", help="See `tether judge rubric list`.")
]
RubricsDir = Annotated[
    Path | None,
    typer.Option(envvar="TETHER_JUDGE_RUBRICS_DIR", help="Folder with rubric files of your own."),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="TETHER_JUDGE_URL", help="A running judge service; its key from TETHER_JUDGE_API_KEY."
    ),
]
ApiKey = Annotated[str | None, typer.Option(envvar="TETHER_JUDGE_API_KEY", hidden=True)]
Model = Annotated[
    str | None, typer.Option(help="Instead of a service: a model's folder or name, loaded in this process.")
]
BackendFile = Annotated[
    Path | None,
    typer.Option(help="Instead of either: a TOML file with a backend's settings, such as type = 'rules'."),
]
BatchSize = Annotated[int, typer.Option(min=1, max=256, help="Rows at once, in this process.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(min=1)]
Patience = Annotated[
    float, typer.Option(min=1, help="Give up when the service brings no verdict for so many seconds.")
]

Controls = Annotated[
    bool, typer.Option(help="A judge in this process must pass its control pairs before it grades.")
]
ControlsDir = Annotated[
    Path | None,
    typer.Option(envvar="TETHER_JUDGE_CONTROLS_DIR", help="Control pairs of your own: RUBRIC.toml."),
]


@dataclass(frozen=True)
class Who:
    """Exactly one of url, model and backend_file."""

    rubric: str | None
    rubrics_dir: Path | None
    url: str | None
    api_key: str | None
    model: str | None
    backend_file: Path | None
    batch_size: int
    device: str
    threads: int | None
    patience_s: float
    controls: bool
    controls_dir: Path | None

    @property
    def named(self) -> bool:
        return any((self.url, self.model, self.backend_file))


def rubric_name(who: Who) -> str:
    """Raises ConfigError where none is given."""
    if who.rubric is None:
        raise ConfigError("no rubric: name one with --rubric; `tether judge rubric list` shows them")
    return who.rubric


def open_judge(who: Who) -> Judge:
    """Loads the backend, or only remembers where the service is.

    Raises:
        ConfigError: not exactly one who grades, an unknown rubric, or a backend that does not load.
    """
    name = rubric_name(who)
    # An address in the environment gives way to what the command line says.
    local = [given for given in (who.model, who.backend_file) if given]
    if len(local) > 1:
        raise ConfigError("give --model or --backend-file, not both")
    if not local:
        if who.url is None:
            raise ConfigError("who shall grade? Give --url, --model or --backend-file")
        from judge_service.scoring.service import ServiceJudge

        return ServiceJudge(who.url, name, api_key=who.api_key, patience_s=who.patience_s)

    from judge_service.backends.build import build_backend
    from judge_service.config import BackendConfig
    from judge_service.scoring.in_process import InProcessJudge
    from judge_service.worker.controls import load_controls
    from shared.rubrics.folder import all_rubrics
    from shared.rubrics.rubric import find_rubric

    rubric = find_rubric(name, all_rubrics(who.rubrics_dir))
    settings = _model_settings(who) if who.model else _toml(who.backend_file)
    try:
        config: Any = TypeAdapter(BackendConfig).validate_python(settings)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise ConfigError(f"the backend's settings: {faults}") from error
    backend = build_backend(config, None, [rubric])
    pairs = load_controls(name, backend.info.score_kind, who.controls_dir) if who.controls else ()
    return InProcessJudge(backend, rubric, batch_size=who.batch_size, controls=pairs)


def _model_settings(who: Who) -> dict[str, Any]:
    assert who.model is not None
    return {
        "type": "transformers",
        "path": who.model,
        "name": Path(who.model).name,
        "device": who.device,
        "threads": who.threads,
    }


def _toml(path: Path | None) -> dict[str, Any]:
    assert path is not None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
