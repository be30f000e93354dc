"""Calibrating a moderation policy on labelled items: probabilities and thresholds.

Thresholds are chosen on probabilities that each post got from the others (five-fold), so that a
learnt direction, which knows its own posts too well, isn't trusted more than it deserves.

Shapes: n posts, C categories, E numbers of an embedding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError, nearest
from bedstone.metrics.calibration import best_threshold, sweep
from bedstone.metrics.figures import library
from bedstone.tasks.moderation.policy import (
    Category,
    Direction,
    Isotonic,
    Platt,
    Policy,
    Probability,
)
from bedstone.tasks.moderation.scorers import Scored

METHODS = ("platt", "isotonic", "direction")
FOLDS = 5
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # of a direction: 1 / ridge, chosen by the log loss

Parts = Mapping[str, tuple[Mapping[int, int], Scored]]  # as `Moderation.scored` gives them


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A calibrated policy and its figures.

    Attributes:
        policy: with probabilities and thresholds.
        notes: what the user should know of categories.
    """

    policy: Policy
    notes: list[str]


def fit_policy(
    policy: Policy,
    parts: Parts,
    truth: np.ndarray,
    *,
    method: str = "platt",
    precision: float | None = None,
    recall: float | None = None,
    seed: int = 0,
) -> Fitted:
    """Probabilities and thresholds for each category.

    Args:
        parts: raw scores of the posts.
        truth: (n, C) whether a category holds.
        precision, recall: what thresholds are to reach, one of them; else the best F1. See
            `metrics.calibration.best_threshold`.
        seed: of the folds.

    Raises:
        BedstoneError: the method is unknown or doesn't fit the model, or a category has fewer than
            five posts that show it, or that don't.
    """
    if method not in METHODS:
        raise BedstoneError(f"method: {method!r} is unknown{nearest(method, METHODS)}.")
    categories: dict[str, Category] = {}
    notes = []
    for number, (name, category) in enumerate(policy.categories.items()):
        held = truth[:, number]
        scores = np.zeros(len(held))
        maps: dict[str, Probability] = {}
        for part, (rows, scored) in parts.items():
            own = np.array(list(rows))
            _check(name, part, held[own])
            maps[part], fair = _fit(method, scored.raw[:, number], scored.vectors, held[own], seed)
            scores[own] = np.maximum(scores[own], fair)
            if getattr(maps[part], "slope", 1.0) < 0:
                notes.append(
                    f"{name}: {part}s that show it are further from its sentences than others; "
                    "reword them."
                )
        threshold, reached = best_threshold(sweep(scores, held), precision=precision, recall=recall)
        if not reached:
            notes.append(
                f"{name}: no threshold surely reaches what was wished; the one with the best F1 "
                "was taken. Reword its sentences, give more rows, or wish for less."
            )
        categories[name] = dataclasses.replace(category, threshold=threshold, calibration=maps)
    return Fitted(dataclasses.replace(policy, categories=categories), notes)


def _check(name: str, part: str, held: np.ndarray) -> None:
    for count, what in ((held.sum(), "show"), ((~held).sum(), "don't show")):
        if count < FOLDS:
            raise BedstoneError(
                f"sample: of the {part}s to learn from {count} {what} {name!r}; expected at least "
                f"{FOLDS}. Give more labelled rows of it, or hold out fewer."
            )


def _fit(
    method: str, raw: np.ndarray, vectors: np.ndarray | None, held: np.ndarray, seed: int
) -> tuple[Probability, np.ndarray]:
    """How raw scores become probabilities, and those that each post got from the others, (n,)."""
    select = library("sklearn.model_selection")
    folds = select.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)

    def fair(model: Any, inputs: np.ndarray, proba: bool = True) -> np.ndarray:
        how = "predict_proba" if proba else "predict"
        found = select.cross_val_predict(model, inputs, held, cv=folds, method=how)
        return found[:, 1] if proba else found

    if method == "isotonic":
        steps = library("sklearn.isotonic").IsotonicRegression(
            y_min=0, y_max=1, out_of_bounds="clip"
        )
        scores = fair(steps, raw[:, None], proba=False)
        steps.fit(raw, held)
        return Isotonic(_short(steps.X_thresholds_, 9), _short(steps.y_thresholds_, 9)), scores
    regression = library("sklearn.linear_model").LogisticRegression
    if method == "platt":
        # standardised, so that a weak ridge keeps the slope finite where posts part cleanly
        mean, spread = raw.mean(), raw.std() or 1.0
        curve = regression(C=100.0)
        inputs = ((raw - mean) / spread)[:, None]
        scores = fair(curve, inputs)
        curve.fit(inputs, held)
        slope = curve.coef_[0, 0] / spread
        return Platt(float(slope), float(curve.intercept_[0] - slope * mean)), scores
    if vectors is None:
        raise BedstoneError(
            "method: a direction is learnt among embeddings, and a classifier has none; use platt "
            "or isotonic."
        )
    # Of each ridge the best curve of what posts got from the others: a direction is too sure of its
    # own posts, and that curve takes it back. Both are linear, so together one direction.
    loss = library("sklearn.metrics").log_loss
    tried = []
    for strength in STRENGTHS:
        line = regression(C=strength, max_iter=1000)
        logits = select.cross_val_predict(
            line, vectors, held, cv=folds, method="decision_function"
        )[:, None]
        curve = regression(C=100.0)
        scores = fair(curve, logits)
        tried.append((loss(held, scores), strength, curve.fit(logits, held), scores))
    _, strength, curve, scores = min(tried, key=lambda each: each[0])
    line = regression(C=strength, max_iter=1000).fit(vectors, held)
    slope = curve.coef_[0, 0]
    weights = _short(slope * line.coef_[0], 5)
    return Direction(weights, float(slope * line.intercept_[0] + curve.intercept_[0])), scores


def _short(numbers: np.ndarray, digits: int) -> tuple[float, ...]:
    """Numbers with so many digits, as they stand in the policy's file."""
    return tuple(float(f"{number:.{digits}g}") for number in numbers)
