"""report.html: the numbers are in it, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from trainer.demo.page import percent, render
from trainer.demo.plots import moving_average, spread

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Structure(HTMLParser):
    """Open tags and the attributes of each; fails on a tag that closes another."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(good, make) -> str:
    return plain(render(make(good)))


def plain(page: str) -> str:
    """With the spaces that may break a line."""
    return page.replace("\u00a0", " ")


def test_the_headline_and_the_table_carry_the_numbers(page):
    headline = re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)
    assert headline is not None
    for value in ("98.5 %", "1.5 %", "99 %", "98 %"):
        assert value in headline[1]
    rows = re.findall(r'<tr[^>]*>\s*<th scope="row">.*?</tr>', page, re.DOTALL)
    assert len(rows) == 5
    for row, asr in zip(rows, ("0 %", "98.5 %", "47.5 %", "48.5 %", "1.5 %"), strict=True):
        assert re.findall(r"<b>(.*?)</b>", row)[0] == asr


def test_nothing_is_loaded_from_elsewhere(page):
    assert "http:" not in page
    assert "https:" not in page
    assert "//" not in re.sub(r"<(style|pre)>.*?</\1>", "", page, flags=re.DOTALL)
    structure = Structure()
    structure.feed(page)
    loads = [(tag, name, value) for tag, name, value in structure.attributes if name in ("src", "href")]
    assert loads == []
    references = [value for _, name, value in structure.attributes if name == "xlink:href"]
    assert all(value.startswith("#") for value in references if value)


def test_the_page_is_well_formed_and_each_picture_says_what_it_shows(page):
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    figures = [value for tag, name, value in structure.attributes if (tag, name) == ("figure", "aria-label")]
    assert len(figures) == len(re.findall(r"</figcaption>\s*<svg ", page)) == 5
    assert "adaptive by example: accuracy 98 %, ASR 1.5 %" in figures[0]
    assert not re.search(r"#0102|#0103", page), "a stand-in colour was left"


def test_several_seeds_show_the_median_and_how_many_seeds_hold(good, make, result):
    bad = {**good, "adaptive": result(30, 196, 199)}
    page = plain(render(make(good, bad, good)))
    assert "medians of 3 seeds" in page
    assert "2 of 3 seeds" in page
    assert "<b>1.5 %</b><small>2–15</small>" in page


def test_missing_verdicts_are_told_and_no_rate_is_made_up(good, make):
    silent = good["sft"].model_copy(update={"asr_judge": None, "judge_failed": {"timeout": 200}})
    page = render(make({**good, "sft": silent}))
    assert "no verdicts" in page
    assert re.search(r"no verdict on 200 answers of SFT\s+\(timeout: 200\)", page)


def test_targets_that_fail_are_shown_as_such(good, make, result):
    page = render(make({**good, "adaptive": result(30, 196, 199)}))
    assert "5 of 6 targets hold" in page
    assert page.count("✗") == 1


def test_the_same_report_gives_the_same_page(good, make):
    assert render(make(good)) == render(make(good))


def test_percent_drops_an_empty_decimal():
    assert [percent(share) for share in (0.0, 0.005, 0.985, 1.0)] == ["0 %", "0.5 %", "98.5 %", "100 %"]


def test_labels_keep_their_distance_below_the_top():
    placed = spread([96.0, 98.0, 99.0], 7.0, most=103.0)
    assert placed[-1] <= 103.0
    assert all(b - a >= 7.0 for a, b in pairwise(placed))
    assert spread([0.0, 50.0], 7.0, most=103.0) == [0.0, 50.0]


def test_the_moving_average_is_centred_and_shorter_at_the_ends():
    assert moving_average([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]
