"""The judge teaches a linear probe, so that rows are read that the judge missed or has not reached. Pure.

In the order of a step:

    features.put(rows, values)    what the reference has at the step's prompts
    learn(taught)                 the verdicts that were folded, or withdrawn, in that order
    opinion(rows)                 a score a row, or that there is nothing yet to say

A row's score comes from a model fitted without any row of its fold, so that a missed row's own wrong verdict
does not vouch for it. Rows with the same prompt share a fold. Two teachers given the same calls agree.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.safety.probe.features import FeatureTable
from trainer.safety.probe.fit import CrossFitted, Linear, Noise, cross_fit, enough
from trainer.safety.probe.lessons import Lessons, Taught
from trainer.safety.probe.trust import Reliability, reliability

REFIT_GROWTH = 0.25
"""Fitted anew when so much has changed, of what the last fit knew: about as often for each doubling."""


@dataclass(frozen=True)
class NotEnough:
    """Too few verdicts of one class on rows whose features are known."""

    harmful: int
    harmless: int


@dataclass(frozen=True)
class Opinion:
    """Follows the rows that were asked."""

    scores: tuple[float, ...]
    """Harm in [0,1]."""
    reliability: Reliability | None
    """None: nothing was foretold yet."""

    @property
    def trust(self) -> float:
        return 0.0 if self.reliability is None else self.reliability.trust


class Teacher:
    """Args:
    folds: of every row of the training file.
    bound: lessons that are kept at most.
    """

    def __init__(self, features: FeatureTable, folds: Sequence[int], bound: int) -> None:
        self.features = features
        self._folds = folds
        self._bound = bound
        self._lessons = Lessons(bound)
        self.cross_fitted: CrossFitted | None = None
        """None before the first fit, and after a withdrawal."""
        self._fitted_on: dict[int, bool] = {}
        """Row -> whether it was harmful, when the models were fitted."""
        self._foretold: dict[int, float] = {}
        """Of rows with a lesson: the probability by a model that did not know it."""
        self._reliability: Reliability | None = None
        self._told = 0
        self._considered: tuple[int, int] | None = None
        """(verdicts told, rows known) of the latest opinion: without news nothing is to be thought over."""

    def learn(self, taught: Iterable[Taught]) -> None:
        for key, score in taught:
            self._told += 1
            if score is not None:
                self._lessons.teach(key, score)
            elif self._lessons.withdraw(key) and key.row in self._fitted_on:
                # What is no longer trusted must not speak on through the models.
                self.cross_fitted = None
                self._fitted_on = {}

    def opinion(self, rows: Sequence[int]) -> Opinion | NotEnough:
        """Of rows whose features are known.

        Raises:
            ValueError: a feature is not finite.
            KeyError: a row's features are not known.
        """
        news = (self._told, int(self.features.known_R.sum()))
        if news != self._considered:
            self._consider()
            self._considered = news
        if self.cross_fitted is None:
            lessons = self._lessons_known()
            harmful = sum(lessons.values())
            return NotEnough(harmful, len(lessons) - harmful)
        probability_n = self.cross_fitted.probability(
            self.features.of(rows), [self._folds[row] for row in rows]
        )
        return Opinion(tuple(self.cross_fitted.risk(probability_n).tolist()), self._reliability)

    def _lessons_known(self) -> dict[int, bool]:
        """Row -> whether it is harmful, of those whose features are known."""
        known = [row for row in sorted(self._lessons.rows()) if self.features.known_R[row]]
        return {row: self._lessons.harmful(row) for row in known}

    def _consider(self) -> None:
        lessons = self._lessons_known()
        self._foretold = {row: said for row, said in self._foretold.items() if row in lessons}
        # Each lesson is a test first: of the models that do not know it yet.
        self._foretell(lessons)
        if self._is_due(lessons):
            self._fit_anew(lessons)
            self._foretell(lessons)
        if self.cross_fitted is not None:
            self._reliability = reliability([self._foretold[row] for row in lessons], list(lessons.values()))

    def _foretell(self, lessons: dict[int, bool]) -> None:
        new = [row for row in lessons if row not in self._foretold]
        if self.cross_fitted is None or not new:
            return
        said_n = self.cross_fitted.probability(self.features.of(new), [self._folds[row] for row in new])
        self._foretold.update(zip(new, said_n.tolist(), strict=True))

    def _is_due(self, lessons: dict[int, bool]) -> bool:
        changed = len(set(lessons.items()) ^ set(self._fitted_on.items()))
        return changed > 0 and (self.cross_fitted is None or changed >= REFIT_GROWTH * len(self._fitted_on))

    def _fit_anew(self, lessons: dict[int, bool]) -> None:
        rows = list(lessons)
        harmful_n = np.array([lessons[row] for row in rows], dtype=bool)
        folds = [self._folds[row] for row in rows]
        if not enough(harmful_n, folds):
            return
        self.cross_fitted = cross_fit(self.features.of(rows), harmful_n, folds)
        self._fitted_on = lessons

    # --- checkpoint ------------------------------------------------------------------------

    def to_state(self) -> dict[str, Any]:
        """As JSON values; the features themselves lie in their table's file."""
        return {
            "lessons": self._lessons.to_state(),
            "known": _packed(np.packbits(self.features.known_R)),
            "fitted_on": [[row, harmful] for row, harmful in self._fitted_on.items()],
            "foretold": [[row, said] for row, said in self._foretold.items()],
            "fit": None if self.cross_fitted is None else _fit_to_state(self.cross_fitted),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._lessons = Lessons.from_state(state["lessons"], self._bound)
        known = np.frombuffer(base64.b64decode(state["known"]), dtype=np.uint8)
        # Rows that became known after the checkpoint become so again.
        self.features.known_R = np.unpackbits(known, count=len(self.features.known_R)).astype(bool)
        self._fitted_on = dict(state["fitted_on"])
        self._foretold = dict(state["foretold"])
        self._considered = None
        self.cross_fitted = None if state["fit"] is None else _fit_from_state(state["fit"])


def _fit_to_state(fit: CrossFitted) -> dict[str, Any]:
    return {
        "weights": [_packed(model.weight_D) for model in fit.models],
        "biases": [model.bias for model in fit.models],
        "noise": [fit.noise.floor, fit.noise.ceiling],
    }


def _fit_from_state(state: dict[str, Any]) -> CrossFitted:
    models = tuple(
        Linear(np.frombuffer(base64.b64decode(weight), dtype=np.float64), bias)
        for weight, bias in zip(state["weights"], state["biases"], strict=True)
    )
    return CrossFitted(models, Noise(*state["noise"]))


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")
