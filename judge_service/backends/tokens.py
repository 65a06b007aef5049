"""A judge's tokenizer from its tokenizer.json alone: no torch, no transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer

from shared.errors import ConfigError


class FileTokenizer:
    """`shared.rubrics.encoding.Tokenizer` over the `tokenizers` library."""

    def __init__(self, path: Path) -> None:
        """`path`: a tokenizer.json, or the folder that holds it.

        Raises:
            ConfigError: there is none, or it cannot be read.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"there is no tokenizer {file}; give the judge's tokenizer.json or its folder")
        try:
            text = file.read_text(encoding="utf-8")
            unknown = json.loads(text)["model"].get("unk_token")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file} is no tokenizer.json: {error!r}") from error
        self._plain = RawTokenizer.from_str(text)
        self._split = RawTokenizer.from_str(text)
        for tokenizer in (self._plain, self._split):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        # Special tokens in a text become ordinary ones.
        self._split.encode_special_tokens = True
        added = self._plain.get_added_tokens_decoder()
        self.added_contents: dict[int, str] = {token: what.content for token, what in added.items()}
        # What graded text must never become. Not the unknown token, which any text may hold.
        self.special_ids = frozenset(
            token for token, what in added.items() if what.special and what.content != unknown
        )
        self.bos_token_id = self._leading_id()

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> dict[str, Any]:
        tokenizer = self._split if split_special_tokens else self._plain
        return {"input_ids": tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int]) -> str:
        return str(self._plain.decode(ids, skip_special_tokens=False))

    def _leading_id(self) -> int | None:
        """What it puts before every text by itself."""
        bare = self._plain.encode("x", add_special_tokens=False).ids
        whole = self._plain.encode("x", add_special_tokens=True).ids
        return int(whole[0]) if len(whole) > len(bare) and whole[0] != bare[0] else None
