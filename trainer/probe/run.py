"""`tether probe fit` and `tether probe eval` as functions: files in, files out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from shared.errors import ConfigError
from trainer.probe.calibrate import CalibrationKind, calibrate, thresholds
from trainer.probe.controls import Scorer
from trainer.probe.evaluate import Corpus, Outcome, evaluate_file, evaluate_split, fit_controls
from trainer.probe.feature_file import FeatureFile, extract
from trainer.probe.fit import Bools, Selection, check_classes, fit_all
from trainer.probe.head import Ints
from trainer.probe.reader import PromptReader, open_reader
from trainer.probe.rows import Labelled, data_hash, read_labelled
from trainer.probe.splits import Skipped, plan_splits
from trainer.probe.store import Card, HeadCard, Probe, load_probe, save_probe

Tell = Callable[[str, float], None]
"""Told a stage's name and the share of it that is done, 0..1."""


@dataclass(frozen=True)
class Summary:
    """What is kept in memory of labelled rows: some tens of bytes each."""

    harmful_N: Bools
    keys_N: Ints
    datasets: tuple[str, ...]
    data_hash: str


def summarise(data: Sequence[Path], label: str | None) -> Summary:
    """Reads every row once. Raises DataError naming the first wrong line."""
    harmful, keys, datasets = bytearray(), np.empty(1024, dtype=np.int64), set[str]()
    for at, row in enumerate(read_labelled(data, label)):
        if at == len(keys):
            keys = np.resize(keys, 2 * len(keys))
        harmful.append(row.harmful)
        keys[at] = row.key
        datasets.add(row.dataset)
    return Summary(
        np.frombuffer(bytes(harmful), dtype=np.bool_),
        keys[: len(harmful)].copy(),
        tuple(sorted(datasets)),
        data_hash(read_labelled(data, label)),
    )


def fit_probe(
    model: Path,
    data: Sequence[Path],
    out: Path,
    *,
    label: str | None = None,
    folds: int = 5,
    seed: int = 0,
    calibration: CalibrationKind = "platt",
    scratch: Path | None = None,
    tell: Tell = lambda stage, done: None,
) -> Card:
    """Fits on the files' rows and writes the probe to `out`.

    Args:
        scratch: where the features lie meanwhile (4 bytes a value: examples x layers x hidden size x 2);
            None: the system's folder for temporary files.

    Raises:
        DataError, ModelError, ConfigError: rows, model or a folder cannot be used; nothing is written.
    """
    known = summarise(data, label)
    check_classes(known.harmful_N)
    reader = open_reader(model)
    with TemporaryDirectory(dir=scratch, prefix="tether-probe-") as folder:
        place = Path(folder)
        features = read_features(reader, data, label, len(known.harmful_N), place / "features.f32", tell)
        heads = 2 * (reader.layers + 1)
        done = iter(range(1, heads + 1))
        selection = fit_all(
            features,
            np.arange(len(known.harmful_N)),
            known.harmful_N,
            known.keys_N,
            scratch=place,
            folds=folds,
            seed=seed,
            tell=lambda name: tell("fitting", next(done) / heads),
        )
    card = _card(reader, model, known, selection, folds, seed, calibration)
    save_probe(out, card, [fitted.head for fitted in selection.heads], known.keys_N)
    return card


def read_features(
    reader: PromptReader, data: Sequence[Path], label: str | None, count: int, path: Path, tell: Tell
) -> FeatureFile:
    needed = 2 * reader.layers * count * reader.hidden * 4
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ConfigError(
            f"the features of {count} examples need {needed / 2**30:.1f} GiB below {path.parent}, which has"
            f" {free / 2**30:.1f} GiB free; make room, or name another place with --scratch"
        )
    rows = read_labelled(data, label)
    return extract(reader, rows, count, path, lambda done: tell("reading prompts", done / count))


def _card(
    reader: PromptReader,
    model: Path,
    known: Summary,
    selection: Selection,
    folds: int,
    seed: int,
    calibration: CalibrationKind,
) -> Card:
    best = selection.best
    return Card(
        model=model.resolve().name,
        fingerprint=reader.fingerprint,
        template_hash=reader.template_hash,
        hidden_size=reader.hidden,
        hidden_states=reader.layers,
        head=best.head.name,
        heads={
            fitted.head.name: HeadCard(
                pooling=fitted.head.pooling,
                layers=fitted.head.layers,
                strength=fitted.strength,
                log_loss=fitted.log_loss,
                auroc=fitted.auroc,
                bias=fitted.head.bias,
            )
            for fitted in selection.heads
        },
        data_hash=known.data_hash,
        datasets=known.datasets,
        examples=len(known.harmful_N),
        harmful=int(known.harmful_N.sum()),
        folds=folds,
        seed=seed,
        calibration=calibrate(calibration, best.held_out_logits_N, known.harmful_N),
        thresholds=thresholds(best.held_out_logits_N, known.harmful_N),
    )


def open_probe(folder: Path, model: Path, reader: PromptReader) -> Probe:
    """Raises ModelError where the probe belongs to another model than the reader's."""
    probe = load_probe(folder)
    probe.check_belongs(reader.fingerprint, reader.template_hash, model)
    return probe


def eval_probe(
    model: Path,
    probe_folder: Path,
    train: Sequence[Path],
    tests: Sequence[Path],
    *,
    label: str | None = None,
    folds: int = 5,
    seed: int = 0,
    resamples: int = 500,
    scratch: Path | None = None,
    tell: Tell = lambda stage, done: None,
) -> list[Outcome | Skipped]:
    """With `train` (the rows the probe was fitted on): in distribution, held-out categories, data sets left
    out, and controls. With `tests`: the probe as it is stored, on each of these files.

    Raises:
        ConfigError: neither is given, or `train` is not what the probe was fitted on.
        DataError, ModelError: rows or model cannot be used.
    """
    if not train and not tests:
        raise ConfigError("there is nothing to try the probe on: give --train, --test, or both")
    load_probe(probe_folder)  # before the model, which takes longer
    reader = open_reader(model)
    probe = open_probe(probe_folder, model, reader)
    outcomes: list[Outcome | Skipped] = []
    with TemporaryDirectory(dir=scratch, prefix="tether-probe-") as folder:
        place = Path(folder)
        words: dict[str, Scorer] = {}
        if train:
            rows = list(read_labelled(train, label))
            if data_hash(rows) != probe.card.data_hash:
                raise ConfigError(
                    "--train is not what this probe was fitted on (its rows, labels or order differ);"
                    " give the files that `tether probe fit` was given, in their order"
                )
            learned = _corpus(rows)
            features = read_features(reader, train, label, len(rows), place / "train.f32", tell)
            plans = plan_splits(
                learned.harmful_N,
                learned.keys_N,
                [row.category for row in rows],
                [row.dataset for row in rows],
                seed,
            )
            for at, plan in enumerate(plans):
                tell("splits", at / len(plans))
                if isinstance(plan, Skipped):
                    outcomes.append(plan)
                    continue
                outcomes.append(
                    evaluate_split(
                        plan, features, learned, scratch=place, folds=folds, seed=seed, resamples=resamples
                    )
                )
            tell("splits", 1.0)
            if tests:
                words = fit_controls(learned, folds=folds, seed=seed)
        for path in tests:
            rows = list(read_labelled([path], label))
            features = read_features(reader, [path], label, len(rows), place / "test.f32", tell)
            outcomes.append(
                evaluate_file(
                    f"file {path.name}",
                    probe,
                    features,
                    _corpus(rows),
                    words,
                    seed=seed,
                    resamples=resamples,
                )
            )
    return outcomes


def _corpus(rows: Sequence[Labelled]) -> Corpus:
    return Corpus(
        np.array([row.harmful for row in rows]),
        np.array([row.key for row in rows], dtype=np.int64),
        [row.text for row in rows],
    )
