"""What all settings of a job have in common: strict, frozen, and short where a name alone will do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def named(value: object) -> object:
    """`"sft"` is short for `{"type": "sft"}`."""
    return {"type": value} if isinstance(value, str) else value
