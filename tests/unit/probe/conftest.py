"""The fixtures are tests/probed_model.py's."""

from __future__ import annotations

from tests.probed_model import labelled_rows as labelled_rows
from tests.probed_model import make_model as make_model
from tests.probed_model import planted as planted
from tests.probed_model import save_rows as save_rows
from tests.probed_model import tiny_model as tiny_model
