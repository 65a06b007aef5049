"""`tether judge rubric`: what there is, and whether a file of one's own is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_service.scoring.options import RubricsDir
from shared.errors import ConfigError
from shared.rubrics.folder import all_rubrics, read_rubric_file
from shared.rubrics.rubric import Rubric, find_rubric, render, shipped_rubrics

app = typer.Typer(
    name="rubric",
    help="What the judge grades by.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command("list")
def list_rubrics(rubrics_dir: RubricsDir = None) -> None:
    """Name, hash, scale and questions of every rubric."""
    for rubric in all_rubrics(rubrics_dir).values():
        print(_summary(rubric))


@app.command()
def show(name: str, rubrics_dir: RubricsDir = None) -> None:
    """All that a judge is told, with the graded text's places."""
    rubric = find_rubric(name, all_rubrics(rubrics_dir))
    print(_summary(rubric))
    for number in range(len(rubric.questions)):
        print(f"--- question {number + 1} of {len(rubric.questions)}")
        segments = render(rubric, "[the request]", "[the reply]", nonce="[nonce]", question=number)
        print("".join(segment.text for segment in segments))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml")],
    model: Annotated[
        str | None, typer.Option(help="A judge's folder or name: does the rubric fit its tokenizer?")
    ] = None,
) -> None:
    """Whether a file of your own is a rubric, and, with --model, one for that judge."""
    rubric = read_rubric_file(file)
    if rubric.name in shipped_rubrics():
        raise ConfigError(f"{file}: name: {rubric.name!r} is taken by one that ships with Tether")
    print(_summary(rubric))
    if model is not None:
        print(_fit(rubric, model))


def _summary(rubric: Rubric) -> str:
    labels = "; ".join(f"{q.labels[0]}..{q.labels[-1]}" for q in rubric.questions)
    length = f"{len(rubric.prefix)} characters"
    return f"{rubric.name}  {rubric.hash}  {rubric.scale.value}  labels {labels}  {length}"


def _fit(rubric: Rubric, model: str) -> str:
    """Raises ConfigError where the labels cannot be read by this tokenizer."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(f"--model needs tether[judge-transformers] installed ({error})") from error
    from shared.rubrics.encoding import encode_text, label_ids

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from {model}: {error}") from error
    for number, question in enumerate(rubric.questions):
        ids = label_ids(tokenizer, rubric, number)
        print(f"labels {', '.join(question.labels)} are the tokens {', '.join(map(str, ids))}")
    frame = [s.text for s in render(rubric, "", "", nonce="0" * 16) if s.trusted]
    return f"the rubric takes {sum(len(encode_text(tokenizer, t, trusted=True)) for t in frame)} tokens"
