"""Boards and alerts ask for nothing that no service says, and every alert leads somewhere.

Names are held to the services' own registries, and to a list of what others serve; that a real run shows
them is tried in tests/integration, by promtool (`make check-alerts`) and by `make chaos`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from judge_service.api.metrics import ApiMetrics
from judge_service.state import RedisHealth, ServiceState
from judge_service.worker.metrics import WorkerMetrics
from shared.jobs import JobStatus
from trainer.api.metrics import render
from trainer.jobs.sqlite.overview import Overview

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
FOREIGN = yaml.safe_load((DEPLOY / "grafana" / "foreign_metrics.yml").read_text(encoding="utf-8"))

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def names(exposition: bytes) -> set[str]:
    """Of every sample that these families may have."""
    return {
        family.name + suffix
        for family in text_string_to_metric_families(exposition.decode())
        for suffix in SUFFIXES[family.type]
    }


@pytest.fixture(scope="module")
def own() -> set[str]:
    state = ServiceState(streams={}, limit=1, dead_letters=0, workers=())
    nothing = Overview(
        now=0.0,
        statuses=dict.fromkeys(JobStatus, 0),
        held={},
        failures={},
        last_failure={},
        last_success=0.0,
        runners=0,
        running=(),
    )
    return (
        names(ApiMetrics().render(state, RedisHealth(1, 1, durable=True)))
        | names(generate_latest(WorkerMetrics().registry))
        | names(render(nothing))
    )


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", ())


def plain(expression: str) -> str:
    """With Grafana's variables filled in."""
    expression = re.sub(r"\$__(rate_interval|range|interval)\b", "5m", expression)
    return re.sub(r"\$\{?\w+\}?", ".*", expression)


def asked(expression: str) -> set[str]:
    """Names of the metrics that a PromQL expression reads. Raises ValueError where it is none."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name: {node}"
            found.add(node.name)
        elif isinstance(node, promql_parser.MatrixSelector):
            visit(node.vector_selector)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def unknown(expressions: Iterable[str], own: set[str]) -> set[str]:
    foreign = {name for served in FOREIGN.values() for name in served}
    return {name for expression in expressions for name in asked(expression)} - own - foreign


def test_a_name_that_nobody_serves_would_be_found(own: set[str]) -> None:
    assert unknown(["sum(rate(judge_verdicts_total[5m])) / judge_redis_up"], own) == set()
    assert unknown(["sum(rate(judge_verdict_total[5m])) / absent(redis_up)"], own) == {
        "judge_verdict_total",
        "redis_up",
    }


def test_there_is_a_board_for_each_matter() -> None:
    assert [path.stem for path in BOARDS] == ["gpu", "jobs", "queue", "scores", "staleness"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_boards_panels_can_be_drawn(path: Path, own: set[str]) -> None:
    board = json.loads(path.read_text(encoding="utf-8"))
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert board["uid"] == f"tether-{path.stem}"
    ids = [panel["id"] for panel in panels(board)]
    assert len(set(ids)) == len(ids)
    for panel in panels(board):
        assert panel["targets"], panel["title"]
        # By the variable and by nothing else: an id of one's own Grafana is not there in another.
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}
        expressions = [target["expr"] for target in panel["targets"]]
        used = {name for expression in expressions for name in re.findall(r"\$(\w+)", expression)}
        assert {name for name in used if not name.startswith("__")} <= variables.keys()
        assert unknown(map(plain, expressions), own) == set(), panel["title"]
    for variable in variables.values():
        if variable["type"] == "query":
            metric, _ = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
            assert metric in own


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_panels_do_not_lie_on_each_other(path: Path) -> None:
    places = [panel["gridPos"] for panel in panels(json.loads(path.read_text(encoding="utf-8")))]
    cells = [
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def section(name: str) -> str:
    """An alert's part of the runbook."""
    found = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found, f"docs/operations.md has no section '### {name}'"
    return found[1]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_urgent_it_is_and_what_to_do(rule: dict[str, Any], own: set[str]) -> None:
    assert unknown([rule["expr"]], own) == set()
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "command", "mend"}
    assert notes["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
    runbook = section(rule["alert"])
    for part in ("Means", "Look", "Mend", "Escalate"):
        assert f"**{part}**" in runbook, part
    for command in ("command", "mend"):
        assert notes[command] in runbook, notes[command]


def test_the_runbook_explains_no_alert_that_is_not_there() -> None:
    names = re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(names) == sorted(rule["alert"] for rule in ALERTS)


def test_promtool_tries_every_alert() -> None:
    """`make check-alerts` runs these where promtool is: each alert must be seen to fire, and not to."""
    seen: dict[str, set[bool]] = {}
    for path in (DEPLOY / "prometheus" / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for case in test["promql_expr_test"]:
                name = re.fullmatch(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}', case["expr"])[1]
                seen.setdefault(name, set()).add(bool(case["exp_samples"]))
    assert seen == {rule["alert"]: {True, False} for rule in ALERTS}
