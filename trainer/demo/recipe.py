"""The demo's four jobs, as data: one mixture, four ways to guard the run."""

from __future__ import annotations

from shared.safety import Adaptive, FixedKl, Method, PolicySource, Sft, TargetSource
from shared.training import Full, Training
from trainer.demo.world import RUBRIC

HARMFUL_FRACTION = 0.1
MIXTURE_ROWS = 1280
"""Three epochs of 80 batches."""
HELDOUT_PROMPTS = 200
"""Of each kind, for the rates."""
EVALUATION_SEED = 7
MAX_NEW_TOKENS = 48
"""Of an answer in the evaluation. The world's longest answer has about 25 tokens."""

_SOURCES = (TargetSource(look_ahead=8), PolicySource(samples_per_step=4, max_new_tokens=32))

METHODS: dict[str, Method] = {
    "sft": Sft(),
    "fixed_kl": FixedKl(beta=0.5),
    "adaptive_batch": Adaptive(
        granularity="batch", beta_min=0.1, beta_max=1.0, sources=_SOURCES, rubric=RUBRIC
    ),
    "adaptive": Adaptive(granularity="example", beta_min=0.1, beta_max=1.0, sources=_SOURCES, rubric=RUBRIC),
}
"""Name in the report -> what guards the job."""

TRAINING = Training(
    adapter=Full(),
    batch_size=16,
    steps=240,
    learning_rate=4e-4,
    schedule="cosine",
    warmup_fraction=0.05,
)
