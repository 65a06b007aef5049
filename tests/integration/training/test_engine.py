"""The objective under DeepSpeed: every stage, every number of ranks, full and LoRA, one result."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file

FIXED = {"type": "fixed_kl", "beta": 0.5}

GENERATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "Hello."}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print("generated", model.generate(**prompt, max_new_tokens=4).shape[1] - prompt["input_ids"].shape[1])
"""


@pytest.mark.integration
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_stages_and_ranks_agree_and_the_artifact_generates(
    start_run: Callable[..., Any], adapter: str
) -> None:
    """ZeRO-1 on one rank in two accumulation steps; 2 and 3 on two ranks; 3 again with the reference's
    states from disk. Fixed KL runs both terms."""
    ways = {
        "one": {"ranks": 1, "zero_stage": 1, "micro_batch_size": 8},
        "two": {"ranks": 2, "zero_stage": 2},
        "three": {"ranks": 2, "zero_stage": 3},
        "cached": {"ranks": 2, "zero_stage": 3, "reference": "cache"},
    }
    last: dict[str, Any] = {}
    for name, way in ways.items():
        run = start_run(name, FIXED, adapter=adapter, steps=5, **way)
        assert run.wait().status == "succeeded"
        last[name] = run.metrics()[-1]
        assert last[name].kl is not None
    assert not (run.run_dir / "reference").exists()
    for name in ("two", "three", "cached"):
        assert last[name].loss == pytest.approx(last["one"].loss, rel=1e-4)
        assert last[name].kl == pytest.approx(last["one"].kl, rel=1e-3)
        assert last[name].tokens == last["one"].tokens
    file = "model.safetensors" if adapter == "full" else "adapter_model.safetensors"
    weights = [load_file(run.run_dir.parent / name / "artifact" / file) for name in ways]
    for other in weights[1:]:
        assert other.keys() <= weights[0].keys()
        gap = max(float((other[name] - weights[0][name]).abs().max()) for name in other)
        assert gap < 1e-4
    said = subprocess.run(
        [sys.executable, "-P", "-c", GENERATE, str(run.run_dir / "artifact")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "generated" in said.stdout


@pytest.mark.integration
def test_sft_and_a_dead_rank(start_run: Callable[..., Any]) -> None:
    """SFT needs neither judge nor reference; a killed rank takes the others with it, and the next
    start goes on from the checkpoint."""
    run = start_run("sft", "sft", steps=400, checkpoint_every=5)
    run.wait_for_step(12)
    children = subprocess.run(
        ["pgrep", "-f", f"trainer.training.worker {run.run_dir}"], capture_output=True, text=True, check=True
    )
    victim = children.stdout.split()[-1]
    subprocess.run(["kill", "-9", victim], check=True)
    until = time.monotonic() + 60
    while run.process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert run.process.poll() not in (None, 0)
    assert not (run.run_dir / "outcome.json").exists()
    left = subprocess.run(["pgrep", "-f", str(run.run_dir)], capture_output=True, text=True, check=False)
    assert left.stdout == ""

    again = start_run("sft", "sft", steps=20, checkpoint_every=5)
    assert again.wait().status == "succeeded"
    assert "going on from the checkpoint at step" in again.messages()
    assert again.metrics()[-1].kl is None
    assert [event.step for event in again.metrics()][-1] >= 20
