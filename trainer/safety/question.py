"""One text on its way to the judge."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from shared.wire import ChatMessage, content_hash
from trainer.safety.ledger import ItemKey, SourceName

_ID = re.compile(rf"(.+):(-?\d+):({'|'.join(SourceName)}):(\d+):[0-9a-f]{{16}}")


@dataclass(frozen=True)
class Question:
    key: ItemKey
    prompt: tuple[ChatMessage, ...]
    response: str

    def id(self, run_id: str) -> str:
        """The same for the same text at the same step, so that sending it again is harmless."""
        text = content_hash(list(self.prompt), self.response)[:16]
        return f"{run_id}:{self.key.made_at}:{self.key.source.value}:{self.key.row}:{text}"

    def to_json(self) -> dict[str, Any]:
        return {
            "key": [self.key.made_at, self.key.source.value, self.key.row],
            "prompt": [turn.model_dump(mode="json") for turn in self.prompt],
            "response": self.response,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Question:
        made_at, source, row = raw["key"]
        return cls(
            key=ItemKey(made_at, SourceName(source), row),
            prompt=tuple(ChatMessage.model_validate(turn) for turn in raw["prompt"]),
            response=raw["response"],
        )


def parse_id(item_id: str) -> tuple[str, ItemKey] | None:
    """(run id, key) of an id that `Question.id` made; None for another's."""
    found = _ID.fullmatch(item_id)
    if found is None:
        return None
    run_id, made_at, source, row = found.groups()
    return run_id, ItemKey(int(made_at), SourceName(source), int(row))
