"""Docs that name every key and only paths that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.safety import Adaptive, PolicySource, Staleness, TargetSource
from shared.training import Lora, Training

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("model", [Adaptive, Staleness, TargetSource, PolicySource, Lora, Training])
def test_every_setting_is_explained(model: type) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    keys = model.model_fields  # type: ignore[attr-defined]
    assert [key for key in keys if not re.search(rf"\b{key}\b", text)] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
