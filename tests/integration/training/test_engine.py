"""The objective under DeepSpeed: every stage, every number of ranks, full and LoRA, one result."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import several_runs
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from shared.safety import Safety
from shared.training import Training
from trainer.training.data import collate, encode_rows, load_rows
from trainer.training.losses import example_losses, objective
from trainer.training.model import load_tokenizer
from trainer.training.order import DataOrder
from trainer.training.run_spec import EVENTS_FILE, RUN_EVENT, RUN_FILE, Base, MetricsEvent, RunSpec
from trainer.training.schedule import learning_rate

pytestmark = pytest.mark.integration

BETA = 0.5
"""Of fixed KL, which runs both terms."""
STEPS = 5
SEED = 1
COMMON = {"adapter": "full", "steps": STEPS, "batch_size": 16}
SGD = {**COMMON, "optimizer": "sgd", "learning_rate": 0.2, "max_grad_norm": 1e9}
CLIPPED = {**SGD, "max_grad_norm": 0.25}
ADAMW = {**COMMON, "learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.25}
GROUPED = {**SGD, "group_by_length": True}
LORA = {**ADAMW, "adapter": "lora", "learning_rate": 1e-2, "max_grad_norm": 1e9}
FOUR_BITS = {**LORA, "adapter": {"type": "lora", "load_in_4bit": True}}
BF16 = {**ADAMW, "precision": "bf16"}

ONE_RANK = {
    "sgd-1": {**SGD, "zero_stage": 1},
    "sgd-1-accumulates": {**SGD, "zero_stage": 0, "micro_batch_size": 4},
    "adamw-1-accumulates": {**ADAMW, "zero_stage": 1, "micro_batch_size": 4},
    "lora-1": {**LORA, "zero_stage": 1},
    "4bit-1": {**FOUR_BITS, "zero_stage": 1},
}
TWO_RANKS = {
    "sgd-2": {**SGD, "zero_stage": 2},
    "sgd-2-accumulates": {**SGD, "zero_stage": 3, "micro_batch_size": 2},
    "clipped-2": {**CLIPPED, "zero_stage": 3},
    "clipped-2-accumulates": {**CLIPPED, "zero_stage": 2, "micro_batch_size": 2},
    "grouped-2": {**GROUPED, "zero_stage": 2, "micro_batch_size": 4},
    "adamw-0": {**ADAMW, "zero_stage": 0},
    "adamw-1": {**ADAMW, "zero_stage": 1},
    "adamw-2": {**ADAMW, "zero_stage": 2, "offload": "optimizer"},
    "adamw-3": {**ADAMW, "zero_stage": 3},
    "adamw-3-offloads": {**ADAMW, "zero_stage": 3, "offload": "parameters", "micro_batch_size": 4},
    "adamw-3-cache": {**ADAMW, "zero_stage": 3, "reference": "cache", "activation_checkpointing": True},
    "lora-0": {**LORA, "zero_stage": 0},
    "lora-2": {**LORA, "zero_stage": 2, "activation_checkpointing": True},
    "lora-3": {**LORA, "zero_stage": 3, "activation_checkpointing": True},
    "lora-3-cache": {**LORA, "zero_stage": 3, "reference": "cache", "micro_batch_size": 4},
    "4bit-0": {**FOUR_BITS, "zero_stage": 0, "activation_checkpointing": True},
    "4bit-2": {**FOUR_BITS, "zero_stage": 2, "reference": "cache", "micro_batch_size": 4},
    "bf16-0": {**BF16, "zero_stage": 0},
    "bf16-1": {**BF16, "zero_stage": 1, "micro_batch_size": 2},
    "bf16-2": {**BF16, "zero_stage": 2},
    "bf16-3": {**BF16, "zero_stage": 3, "micro_batch_size": 2},
}
RESUMED = {
    "grouped-2",
    "adamw-0",
    "adamw-1",
    "adamw-3-offloads",
    "lora-2",
    "lora-3-cache",
    "4bit-2",
    "bf16-0",
}
"""Stopped after two steps, and taken up again from the checkpoint."""

GENERATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Hello."}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    print(model.generate(**prompt, max_new_tokens=4).shape[1] - prompt["input_ids"].shape[1])
"""


class Runs:
    """Of all ways, each with its last step's values and its weights."""

    def __init__(self, folder: Path, base: Base, train_file: Path) -> None:
        self.folder = folder
        self.base = base
        self.train_file = train_file

    def run(self, ranks: int, ways: Mapping[str, Mapping[str, Any]]) -> None:
        files = []
        for name, training in ways.items():
            run_dir = self.folder / name
            run_dir.mkdir()
            spec = RunSpec(
                job_id=name,
                run_dir=run_dir,
                base=self.base,
                train_file=self.train_file,
                safety=Safety.model_validate({"method": {"type": "fixed_kl", "beta": BETA}}),
                training=Training.model_validate({**training, "ranks": ranks}),
                seed=SEED,
            )
            (run_dir / RUN_FILE).write_text(spec.model_dump_json())
            files.append(f"{run_dir / RUN_FILE}{'@2' if name in RESUMED else ''}")
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
                "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", several_runs.__file__, *files,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:]

    def last(self, name: str) -> MetricsEvent:
        lines = (self.folder / name / EVENTS_FILE).read_text().splitlines()
        events = [event for line in lines if isinstance(event := RUN_EVENT.validate_json(line), MetricsEvent)]
        assert [event.step for event in events] == list(range(1, STEPS + 1))
        return events[-1]

    def weights(self, name: str) -> dict[str, Tensor]:
        artifact = self.folder / name / "artifact"
        lora = artifact / "adapter_model.safetensors"
        return load_file(lora if lora.exists() else artifact / "model.safetensors")

    def before(self) -> dict[str, Tensor]:
        return load_file(self.base.path / "model.safetensors")


@pytest.fixture(scope="module")
def runs(base: Base, train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("engine"), base, train_file)
    made.run(1, ONE_RANK)
    made.run(2, TWO_RANKS)
    return made


def plainly(base: Base, train_file: Path, training: Training) -> dict[str, Tensor]:
    """The same steps with torch alone: whole batches, whole logits, no ranks, no micro-batches."""
    tokenizer = load_tokenizer(base)
    examples = encode_rows(load_rows(train_file), tokenizer, training, base.context_length)
    lengths = [len(example.ids) for example in examples] if training.group_by_length else None
    order = DataOrder(len(examples), training.batch_size, SEED, lengths)
    policy, reference = (AutoModelForCausalLM.from_pretrained(base.path) for _ in range(2))
    kind: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[training.optimizer]
    optimizer = kind(policy.parameters(), weight_decay=training.weight_decay)
    for step in range(STEPS):
        batch = collate([examples[row] for row in order.rows(step)], tokenizer.pad_token_id)

        def logits_NV(model: nn.Module, batch: Any = batch) -> Tensor:
            out = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT).logits
            return out.flatten(0, 1)[batch.answer_at_N]

        with torch.no_grad():
            ref_logits_NV = logits_NV(reference)
        losses = example_losses(
            logits_NV(policy), batch.label_N, batch.example_N, batch.count_B, ref_logits_NV
        )
        beta_B = torch.full((training.batch_size,), BETA)
        (objective(losses, beta_B) / training.batch_size).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), training.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, STEPS)
        optimizer.step()
        optimizer.zero_grad()
    return dict(policy.state_dict())


def gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((one[name].float() - other[name].float()).square().sum()) for name in one) ** 0.5


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (SGD, ["sgd-1", "sgd-1-accumulates", "sgd-2", "sgd-2-accumulates"]),
        (CLIPPED, ["clipped-2", "clipped-2-accumulates"]),
        (GROUPED, ["grouped-2"]),
    ],
    ids=["sgd", "clipped", "grouped"],
)
def test_sgd_is_plain_torch_whatever_the_ranks_and_the_accumulation(
    runs: Runs, settings: dict[str, Any], names: list[str]
) -> None:
    expected = plainly(runs.base, runs.train_file, Training.model_validate(settings))
    assert gap(expected, runs.before()) > 1e-3, "an error of 1e-6 would say nothing"
    for name in names:
        weights = runs.weights(name)
        assert weights.keys() == expected.keys()
        assert gap(weights, expected) < 1e-6, name


def test_clipping_and_grouping_change_what_is_trained(runs: Runs) -> None:
    assert gap(runs.weights("clipped-2"), runs.weights("sgd-2")) > 1e-3
    assert gap(runs.weights("grouped-2"), runs.weights("sgd-2")) > 1e-4


def test_adamw_is_plain_torch_at_every_stage(runs: Runs) -> None:
    """Ranks, accumulation, offload, checkpointed activations, the reference's states from disk."""
    expected = plainly(runs.base, runs.train_file, Training.model_validate(ADAMW))
    moved = distance(expected, runs.before())
    names = [name for name in (*ONE_RANK, *TWO_RANKS) if name.startswith("adamw")]
    assert len(names) == 7
    for name in names:
        assert distance(runs.weights(name), expected) < 1e-5 * moved, name
        assert runs.last(name).loss == pytest.approx(runs.last("adamw-0").loss, rel=1e-5), name
        assert runs.last(name).kl == pytest.approx(runs.last("adamw-0").kl, rel=1e-4), name
        assert runs.last(name).tokens == runs.last("adamw-0").tokens


@pytest.mark.parametrize(
    ("first", "names"),
    [("lora-1", ["lora-0", "lora-2", "lora-3", "lora-3-cache"]), ("4bit-1", ["4bit-0", "4bit-2"])],
    ids=["lora", "4bit"],
)
def test_adapters_end_at_the_same_place_at_every_stage(runs: Runs, first: str, names: list[str]) -> None:
    expected = runs.weights(first)
    size = distance(expected, {name: torch.zeros(()) for name in expected})
    for name in names:
        weights = runs.weights(name)
        assert weights.keys() == expected.keys()
        assert distance(weights, expected) < 1e-5 * size, name
        assert runs.last(name).loss == pytest.approx(runs.last(first).loss, rel=1e-5), name


def test_a_base_in_four_bits_is_another_model(runs: Runs) -> None:
    assert abs(runs.last("4bit-1").loss - runs.last("lora-1").loss) > 1e-4


def test_bf16_trains_alike_at_every_stage(runs: Runs) -> None:
    exact = runs.last("adamw-0").loss
    for name in ("bf16-0", "bf16-1", "bf16-2", "bf16-3"):
        assert runs.weights(name)["lm_head.weight"].dtype is torch.bfloat16
        assert runs.last(name).loss == pytest.approx(exact, rel=1e-3), name
        assert runs.last(name).loss == pytest.approx(runs.last("bf16-2").loss, rel=1e-4), name


def test_the_artifacts_generate_in_a_process_of_their_own(runs: Runs) -> None:
    folders = [str(runs.folder / name / "artifact") for name in ("adamw-3", "lora-3", "4bit-2")]
    said = subprocess.run(
        [sys.executable, "-P", "-c", GENERATE, *folders], capture_output=True, text=True, check=True
    )
    assert len(said.stdout.split()) == len(folders)
    assert all(int(new) > 0 for new in said.stdout.split())
