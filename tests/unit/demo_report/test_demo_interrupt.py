from __future__ import annotations

import os
import signal
import subprocess
import sys

CODE = """
import os, signal
from trainer.demo import interrupt
interrupt.listen()
interrupt.check()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    pass  # as a library that catches everything does
try:
    interrupt.check()
except KeyboardInterrupt:
    print("not lost")
"""


def test_a_swallowed_ctrl_c_is_raised_again_at_the_next_look() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "not lost", (done.stderr, os.name, signal.SIGINT)
