"""What a guard's answer costs beside one forward of its model: `make bench-guard`.

The guard is a process of its own; each of its answers over HTTP stands beside a bare forward of the same
model (with its head, as any generation begins) on the same prompt, taken in turns. Two models: the embedded
world's base, whose forward takes so few milliseconds that HTTP shows, and a larger one of random weights.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.probe import training_rows, write_rows
from benchmarks.report import Row, write
from shared.processes import start_module
from trainer.demo.build import ensure_world
from trainer.demo.pretrain import Shape, new_model
from trainer.probe.run import fit_probe

LIMIT = 1.5
ROUNDS = 40
LARGER = Shape(hidden=384, layers=6, heads=6, intermediate=1024)
FITTED_ON = 40
WORDS = 100
"""Of a prompt."""


@dataclass
class Taken:
    """Milliseconds, a figure a round."""

    bare: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    """From the request to the answer, HTTP and all."""
    read: list[float] = field(default_factory=list)
    """In the guard: template, forward, probe."""


def ratio(ones: list[float], others: list[float]) -> float:
    """Median of the rounds' own ratios: both of a round were under the same load."""
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


def main() -> int:
    torch.set_num_threads(1)
    base = ensure_world().base
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        larger = folder / "larger"
        tokenizer = AutoTokenizer.from_pretrained(base)
        new_model(tokenizer, LARGER, seed=0).save_pretrained(larger)
        tokenizer.save_pretrained(larger)
        for name, model in (("tether-tiny", base), ("larger", larger)):
            taken = measure(model, folder / f"{name}-probe", folder)
            # Of the tiny one HTTP is a good part: it is shown, and the reading itself is held to the limit.
            answer_limit = LIMIT if name == "larger" else None
            rows += [
                Row(f"{name}: bare forward, p50", statistics.median(taken.bare), "ms"),
                Row(
                    f"{name}: answer over HTTP / bare forward, p50",
                    ratio(taken.answer, taken.bare),
                    "",
                    answer_limit,
                ),
                Row(
                    f"{name}: reading in the guard / bare forward, p50",
                    ratio(taken.read, taken.bare),
                    "",
                    LIMIT,
                ),
                Row(f"{name}: answer over HTTP, p50", statistics.median(taken.answer), "ms"),
                Row(f"{name}: answer over HTTP, p99", statistics.quantiles(taken.answer, n=100)[98], "ms"),
            ]
    return write("guard", rows)


def measure(model_folder: Path, probe: Path, scratch: Path) -> Taken:
    requests = training_rows()
    few = requests[: FITTED_ON // 2] + requests[len(requests) // 2 :][: FITTED_ON // 2]
    fit_probe(model_folder, [write_rows(scratch / "rows.jsonl", few)], probe, folds=2)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    prompt = " ".join(request.prompt for request in requests)
    prompt = " ".join(prompt.split()[:WORDS])
    guard = start_module(
        "trainer.guard.main",
        [str(model_folder), "--probe", str(probe), "--port", "0", "--threads", "1", "--target-fpr", "0.1"],
        env={"OMP_NUM_THREADS": "1"},
        ready_s=300,
    )
    taken = Taken()
    try:
        with httpx.Client(base_url=guard.ready["url"], timeout=120) as client:
            for turn in range(-5, ROUNDS):
                bare = bare_forward(model, tokenizer, prompt)
                began = time.perf_counter()
                answer = client.post("/v1/guard", json={"input": prompt})
                took = 1000 * (time.perf_counter() - began)
                answer.raise_for_status()
                if turn >= 0:
                    taken.bare.append(bare)
                    taken.answer.append(took)
                    taken.read.append(json.loads(answer.content)["timings"]["read_ms"])
    finally:
        guard.stop()
    return taken


@torch.no_grad()
def bare_forward(model: Any, tokenizer: Any, prompt: str) -> float:
    """Milliseconds; the token ids are there already."""
    ids_1T = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    began = time.perf_counter()
    model(input_ids=ids_1T, use_cache=True, logits_to_keep=1)
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
