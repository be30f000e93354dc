"""Figures of preferences: how often the chosen answer has the higher reward, and by how much.

Shapes: P pairs of answers, or P judged answers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bedstone.metrics.figures import Figures, bootstrap, check_lengths


def preferences(
    rewards: np.ndarray,
    lengths: np.ndarray,
    means: Mapping[str, np.ndarray] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Figures of rewards of a chosen and a rejected answer each.

    `accuracy` is the share of pairs whose chosen answer has the higher reward, equal ones counted
    half; `margin` the mean difference; `length_correlation` Pearson's between the rewards and the
    lengths of all answers. The baseline takes the shorter, or the longer, answer of each pair.

    Args:
        rewards: (P, 2) of the chosen and the rejected answer.
        lengths: (P, 2) tokens of the answers.
        means: (P,) values of each pair whose means are figures too, by name.

    Raises:
        BedstoneError: there are no pairs, or not as many of both.
    """
    rows = check_lengths(rewards.tolist(), lengths.tolist(), "pairs")
    apart = rewards[:, 0] - rewards[:, 1]
    columns = {
        "accuracy": _wins(apart),
        "margin": apart,
        "reward_chosen": rewards[:, 0],
        "reward_rejected": rewards[:, 1],
        **(means or {}),
        "tokens_chosen": lengths[:, 0],
        "tokens_rejected": lengths[:, 1],
    }
    shorter = float(_wins(lengths[:, 1] - lengths[:, 0]).mean())
    name = "shorter" if shorter >= 0.5 else "longer"
    return _figures(
        "preferences",
        columns,
        {"length_correlation": _correlation(rewards.ravel(), lengths.ravel())},
        {name: max(shorter, 1.0 - shorter)},
        rows,
        resamples,
        seed,
    )


def judgements(
    rewards: np.ndarray,
    labels: np.ndarray,
    lengths: np.ndarray,
    means: Mapping[str, np.ndarray] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Figures of rewards of judged answers.

    `accuracy` is the share of answers whose reward is above 0 where they are desirable, and below
    elsewhere, those of 0 counted half. The baseline calls all answers what most are.

    Args:
        rewards: (P,), less what they are compared to.
        labels: (P,) bool, whether an answer is desirable.
        lengths: (P,) tokens of the answers.
        means: as of `preferences`.

    Raises:
        BedstoneError: there are no answers, or not as many of all.
    """
    rows = check_lengths(rewards.tolist(), labels.tolist(), "answers")
    columns = {
        "accuracy": _wins(np.where(labels, rewards, -rewards)),
        **(means or {}),
        "tokens": lengths,
    }
    sides = {
        f"reward_{name}": float(rewards[side].mean()) if side.any() else 0.0
        for name, side in (("desirable", labels), ("undesirable", ~labels))
    }
    sides["margin"] = sides["reward_desirable"] - sides["reward_undesirable"]
    share = float(labels.mean())
    more = {**sides, "length_correlation": _correlation(rewards, lengths)}
    baselines = {"majority": max(share, 1.0 - share)}
    return _figures("judgements", columns, more, baselines, rows, resamples, seed)


def _figures(
    kind: str,
    columns: Mapping[str, Any],
    more: Mapping[str, float],
    baselines: dict[str, float],
    rows: int,
    resamples: int,
    seed: int,
) -> Figures:
    """Means of columns, accuracy and margin with intervals, and other figures."""
    values = {name: float(np.mean(column)) for name, column in columns.items()}
    intervals = {}
    if resamples:
        names = [name for name in ("accuracy", "margin") if name in columns]
        table = np.stack([np.asarray(columns[name], float) for name in names], axis=1)
        ends = bootstrap(lambda drawn: drawn @ table / rows, rows, resamples=resamples, seed=seed)
        intervals = {name: (low, high) for name, (low, high) in zip(names, ends, strict=True)}
        intervals = {name: (float(low), float(high)) for name, (low, high) in intervals.items()}
    return Figures(kind, "accuracy", {**values, **more}, intervals, rows, baselines=dict(baselines))


def _wins(apart: np.ndarray) -> np.ndarray:
    """1 where a difference is above 0, 1/2 where it is 0."""
    return (np.sign(apart) + 1.0) / 2.0


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where a side is constant."""
    if min(np.ptp(one), np.ptp(other)) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
