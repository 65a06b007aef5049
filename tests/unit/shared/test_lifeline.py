import os
import signal
import subprocess
import sys

import pytest

from shared import lifeline

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")

SLEEP = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
MIDDLE = """
import os, subprocess, sys
from shared import lifeline
command, environment = lifeline.command(sys.argv[1:]), lifeline.environment(os.environ)
child = subprocess.Popen(command, env=environment, start_new_session=True)
child.wait()
"""


def test_a_chain_ends_when_its_first_link_is_killed():
    middle = [sys.executable, "-c", MIDDLE, *SLEEP]
    with subprocess.Popen(
        lifeline.command(middle), env=lifeline.environment(os.environ), stdout=subprocess.PIPE, text=True
    ) as first:
        assert int(first.stdout.readline()) != first.pid
        first.send_signal(signal.SIGKILL)
        # The pipe closes only when the last process that holds it has ended.
        assert first.stdout.read() == ""


def test_a_child_whose_parent_is_gone_already_does_not_start():
    environment = {**os.environ, lifeline.PARENT: "1"}
    done = subprocess.run(
        lifeline.command([sys.executable, "-c", "print('ran')"]), env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the parent 1 is gone" in done.stderr
    assert done.stdout == ""


def test_the_command_is_left_as_it_is():
    argv = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "--", "-x", "a b"]
    done = subprocess.run(
        lifeline.command(argv, on_death=signal.SIGTERM), env=lifeline.environment(os.environ),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "['--', '-x', 'a b']"


def test_nothing_to_run_is_a_usage_error():
    done = subprocess.run(
        [sys.executable, "-m", "shared.lifeline"], capture_output=True, text=True, check=False
    )
    assert "usage:" in done.stderr
