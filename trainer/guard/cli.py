"""`tether guard`: the risk of a prompt, before a model speaks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.errors import DataError
from trainer.guard.main import serve

app = typer.Typer(help="The risk of a prompt, read from a model before it speaks.", no_args_is_help=True)
app.command()(serve)

FLAGGED = 3
"""Exit status of a text that is flagged."""


@app.command()
def check(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="- reads stdin.")],
    model: Annotated[Path, typer.Option(metavar="DIR", help="The base's transformers folder.")],
    probe: Annotated[
        Path, typer.Option(envvar="TETHER_PROBE", metavar="DIR", help="What `tether probe fit` wrote.")
    ],
    target_fpr: Annotated[float, typer.Option(help="Share of harmless prompts that may be flagged.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reading as JSON.")] = False,
) -> None:
    """Read one text and say how risky it is. Exits with 3 where it is flagged, with 0 where not."""
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"stdin is not UTF-8 at byte {error.start + 1}") from error
    if not text.strip():
        raise DataError("the prompt is empty: there is nothing to read")
    # The imports of torch take seconds; `tether --help` must not.
    from transformers.utils.logging import disable_progress_bar

    from trainer.guard.reading import open_guard
    from trainer.guard.wire import GuardRequest

    disable_progress_bar()
    reading = open_guard(model, probe, target_fpr).read(GuardRequest(input=text))
    if as_json:
        print(reading.model_dump_json())
    else:
        print(
            f"{'flagged' if reading.flagged else 'passed'}: risk {reading.risk:.3f}, threshold"
            f" {reading.threshold:.3f} (at most {reading.target_fpr:.1%} of harmless prompts flagged);"
            f" {reading.tokens} tokens in {reading.timings.read_ms:.0f} ms"
        )
    raise typer.Exit(FLAGGED if reading.flagged else 0)
