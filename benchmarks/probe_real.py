"""The probe on real prompts: `python -m benchmarks.probe_real --data DIR`.

A language model is trained from scratch, within a budget of minutes, on the text of the two sets that the
probe is fitted on (GSM8K's training part, AdvBench); of the sets that it is tried on (CatQA, JailbreakBench,
XSTest, GSM8K's test part) neither model nor tokenizer nor probe sees a word. The largest of SHAPES is taken
that reads all of its text in the budget, at the speed measured just before. Controls that read the
words alone stand beside the probe. Nothing here has a limit: a model of this size is no assistant, and the
figures say what a probe of it is worth and no more.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.probe import rows_of
from benchmarks.report import Row, write
from shared.errors import ConfigError
from trainer.demo.tokenizer import CHAT_TEMPLATE, END, PAD, SPECIAL
from trainer.probe import plots
from trainer.probe.evaluate import Outcome
from trainer.probe.run import eval_probe, fit_probe

VOCABULARY, CONTEXT = 4096, 512
EPOCHS = 1.0
SHAPES = ((128, 3, 4), (192, 4, 4), (256, 6, 4), (384, 6, 6), (512, 8, 8), (640, 8, 10), (768, 10, 12))
"""(hidden size, layers, heads), the smallest first."""
BATCH, LEARNING_RATE = 16, 1e-3
TRIAL = 3
"""Steps by which a shape's speed is measured, after one that does not count."""
HARMFUL_KINDS = ("catqa", "jailbreakbench")

Row_ = dict[str, Any]


def run(
    data: Annotated[Path, typer.Option(envvar="TETHER_REAL_DATA", help="advbench.jsonl and the others.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="For training the model.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    torch.set_num_threads(threads)
    sets = load(data)
    chats = [(row["question"], row["answer"]) for row in sets["gsm8k_train"]]
    chats += [(row["prompt"], row["target"]) for row in sets["advbench"]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = pretrain(folder / "model", chats, minutes * 60)
        train = save(
            folder / "train.jsonl",
            [labelled(row["question"], "gsm8k", False) for row in sets["gsm8k_train"]]
            + [labelled(row["prompt"], "advbench", True) for row in sets["advbench"]],
        )
        tests = [save(folder / f"{name}.jsonl", made) for name, made in test_sets(sets).items()]
        card = fit_probe(folder / "model", [train], folder / "probe")
        outcomes = [
            outcome
            for outcome in eval_probe(folder / "model", folder / "probe", [train], tests)
            if isinstance(outcome, Outcome)
        ]
    print(f"chosen by {card.folds} folds of {card.examples} rows: {card.head}")
    out = Path("runs") / "bench"
    out.mkdir(parents=True, exist_ok=True)
    plots.save(plots.layers({o.name: o.layers for o in outcomes}), out / "probe_real-layers.svg")
    plots.save(plots.reliability(outcomes), out / "probe_real-reliability.svg")
    raise typer.Exit(write("probe_real", rows + rows_of(outcomes, (), 0.0)))


# --- data --------------------------------------------------------------------------------------


def load(folder: Path) -> dict[str, list[Row_]]:
    """Raises ConfigError naming the file that is missing."""
    found = {}
    for name in ("advbench", "gsm8k_train", "gsm8k_test", *HARMFUL_KINDS, "xstest"):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            raise ConfigError(f"{path} is not there; --data names the folder of the public sets")
        with path.open(encoding="utf-8") as lines:
            found[name] = [json.loads(line) for line in lines]
    return found


def labelled(prompt: str, dataset: str, harmful: bool) -> Row_:
    return {"prompt": prompt, "label": harmful, "dataset": dataset}


def test_sets(sets: dict[str, list[Row_]]) -> dict[str, list[Row_]]:
    """Of CatQA and JailbreakBench only harmful prompts are here. They stand beside GSM8K's test questions,
    which are easy to tell, and beside XSTest's safe prompts, which look harmful."""
    benign = [labelled(row["question"], "gsm8k_test", False) for row in sets["gsm8k_test"]]
    safe = [labelled(row["prompt"], "xstest", False) for row in sets["xstest"] if row["safe"]]
    unsafe = [labelled(row["prompt"], "xstest", True) for row in sets["xstest"] if not row["safe"]]
    found = {"xstest, unsafe and safe": unsafe + safe}
    for name in HARMFUL_KINDS:
        harmful = [labelled(row["prompt"], name, True) for row in sets[name]]
        found[f"{name} and gsm8k_test"] = harmful + benign
        found[f"{name} and xstest safe"] = harmful + safe
    return found


def save(path: Path, rows: list[Row_]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- a language model from scratch ---------------------------------------------------------------


def pretrain(folder: Path, chats: list[tuple[str, str]], budget_s: float) -> list[Row]:
    """Trains and saves one; rows that say which, and how well it reads the text."""
    tokenizer = train_tokenizer(text for chat in chats for text in chat)
    ids = [encode(tokenizer, chat) for chat in chats]
    tokens = sum(map(len, ids))
    model, speed = largest(tokenizer, ids, tokens, budget_s)
    began, cpu_s = time.monotonic(), time.process_time()
    step, seen, loss = 0, 0, math.nan
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for batch in endless(ids):
        done = (time.monotonic() - began) / budget_s
        if done >= 1:
            break
        for group in optimizer.param_groups:
            # By the clock: what the cores allow is not known beforehand. A floor, as the end is not either.
            group["lr"] = (
                LEARNING_RATE * min(1, (step + 1) / 50) * max(0.02, 0.5 * (1 + math.cos(math.pi * done)))
            )
        found = take_step(model, optimizer, batch)
        loss = found if math.isnan(loss) else 0.98 * loss + 0.02 * found
        step, seen = step + 1, seen + sum(map(len, batch))
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config, taken_s = model.config, time.monotonic() - began
    return [
        Row("model: parameters", sum(p.numel() for p in model.parameters()) / 1e6, "M"),
        Row("model: hidden size", config.hidden_size, ""),
        Row("model: layers", config.num_hidden_layers, ""),
        Row("model: tokens of text", tokens / 1e6, "M"),
        Row("model: times it read them", seen / tokens, ""),
        Row("model: tokens/s, measured before", speed, "/s"),
        Row("model: training", taken_s / 60, "min"),
        Row("model: loss at the end, nats a token", loss, ""),
        Row("machine: cores it got", (time.process_time() - cpu_s) / taken_s, ""),
        Row("machine: load at the end of training", os.getloadavg()[0], "processes"),
    ]


def largest(
    tokenizer: PreTrainedTokenizerFast, ids: list[list[int]], tokens: int, budget_s: float
) -> tuple[LlamaForCausalLM, float]:
    """The largest shape fast enough, and its tokens a second."""
    chosen, speed = None, 0.0
    for shape in SHAPES:
        speed = speed_of(new_model(tokenizer, *shape), endless(ids))
        print(f"hidden {shape[0]}, {shape[1]} layers: {speed:.0f} tokens/s", flush=True)
        if speed * budget_s < EPOCHS * tokens:
            break
        chosen = shape, speed
    if chosen is None:
        print(
            "not even the smallest reads all of the text in the budget; it is taken all the same", flush=True
        )
        chosen = SHAPES[0], speed
    return new_model(tokenizer, *chosen[0]), chosen[1]


def speed_of(model: LlamaForCausalLM, supply: Iterator[list[list[int]]]) -> float:
    """Tokens a second."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    take_step(model, optimizer, next(supply))
    began, seen = time.monotonic(), 0
    for _ in range(TRIAL):
        batch = next(supply)
        take_step(model, optimizer, batch)
        seen += sum(map(len, batch))
    return seen / (time.monotonic() - began)


def new_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=8 * hidden // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def take_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: list[list[int]]) -> float:
    """Every token of the chat is learned, the prompt's too: its states are what the probe reads."""
    longest = max(map(len, batch))
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    label_BT = torch.full((len(batch), longest), -100, dtype=torch.long)
    for row, ids in enumerate(batch):
        ids_BT[row, : len(ids)] = label_BT[row, : len(ids)] = torch.tensor(ids)
    loss: Tensor = model(input_ids=ids_BT, labels=label_BT, use_cache=False).loss
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def endless(ids: list[list[int]]) -> Iterator[list[list[int]]]:
    """Batches of like length, in random order, over and over."""
    rng = random.Random(0)
    while True:
        order = sorted(ids, key=lambda row: len(row) + 8 * rng.random())
        batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        rng.shuffle(batches)
        yield from batches


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL if token not in (END, PAD)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def encode(tokenizer: PreTrainedTokenizerFast, chat: tuple[str, str]) -> list[int]:
    turns = [{"role": "user", "content": chat[0]}, {"role": "assistant", "content": chat[1]}]
    return list(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])[:CONTEXT]


if __name__ == "__main__":
    try:
        typer.run(run)
    except ConfigError as error:
        sys.exit(f"probe_real: {error}")
