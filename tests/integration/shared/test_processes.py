from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shared.errors import ServiceError
from shared.processes import start_module

pytestmark = pytest.mark.integration


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that children can import by the name `service`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "service.py"


def test_a_child_is_there_once_it_says_so(module: Path) -> None:
    module.write_text(
        "import os, signal\n"
        "from shared.processes import print_ready\n"
        "print('not this')\n"
        "print_ready('service', url='u', safe=os.environ['PYTHONSAFEPATH'])\n"
        "signal.pause()\n"
    )
    child = start_module("service", [])
    assert child.ready == {
        "event": "ready", "role": "service", "url": "u", "safe": "1", "pid": child.process.pid
    }  # fmt: skip
    assert child.stop() == -15


def test_one_that_will_not_stop_is_killed(module: Path) -> None:
    module.write_text(
        "import signal\n"
        "from shared.processes import print_ready\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print_ready('service')\n"
        "while True: signal.pause()\n"
    )
    assert start_module("service", []).stop(grace_s=0.2) == -9


def test_one_that_ends_is_quoted(module: Path, tmp_path: Path) -> None:
    module.write_text("import sys\nprint('what went wrong', file=sys.stderr)\nsys.exit(3)\n")
    log = tmp_path / "log"
    log.write_text("of an earlier start\n")
    with pytest.raises(ServiceError) as caught:
        start_module("service", ["go"], log=log)
    assert str(caught.value) == "service go ended with status 3 at its start; it said: what went wrong"
    assert log.read_text() == "of an earlier start\nwhat went wrong\n"


def test_one_that_is_late_is_not_left_running(module: Path) -> None:
    module.write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(ServiceError, match=r"was not ready within 0.5 s"):
        start_module("service", [], ready_s=0.5)


def test_sys_executable_is_used(module: Path) -> None:
    module.write_text(
        "import sys\nfrom shared.processes import print_ready\nprint_ready('s', executable=sys.executable)\n"
    )
    child = start_module("service", [])
    assert child.ready["executable"] == sys.executable
    child.stop()
