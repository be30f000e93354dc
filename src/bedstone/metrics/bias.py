"""Statistics of audits: how far a measure is from what no bias would give, and how surely.

Every `Measure` has a 95 % interval, the p-value of a null in which groups are exchangeable, and the
least difference that so many rows could show. The measures of one check are corrected together
(Holm, 1979), so that one of many isn't found by chance.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.metrics.figures import bootstrap, sign_flip, wilson

LEVEL = 0.05  # of the corrected p-value below which a measure differs from its aim
Z_POWER = 1.96 + 0.8416  # of a two-sided test at 5 % that finds a difference four times of five
ASSURED = 8  # pairs from which their scatter says what could be seen
FEW = 30  # rows of a group below which its figures mean little


@dataclass(frozen=True)
class Measure:
    """One figure of an audit.

    Attributes:
        name: what was measured, as `gender` or `nurse: she`.
        value: the figure.
        low, high: its 95 % interval.
        aim: what it is where groups are treated alike.
        rows: what it was counted over.
        p: how often exchangeable groups give a value as far from the aim; None where no test is
            known.
        corrected: `p` corrected for all measures of its check.
        detects: the least difference from the aim that so many rows show four times of five.
        note: why it may mean little.
    """

    name: str
    value: float
    low: float
    high: float
    aim: float
    rows: int
    p: float | None = None
    corrected: float | None = None
    detects: float | None = None
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether it surely differs from its aim: by the corrected test, else by its interval."""
        if self.corrected is not None:
            return self.corrected < LEVEL
        return not self.low <= self.aim <= self.high

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**dataclasses.asdict(self), "differs": self.differs}


def corrected(measures: Sequence[Measure]) -> list[Measure]:
    """Measures of one check with their p-values corrected for their number."""
    tested = [number for number, each in enumerate(measures) if each.p is not None]
    found = list(measures)
    for number, p in zip(tested, holm([float(measures[n].p or 0) for n in tested]), strict=True):
        found[number] = dataclasses.replace(found[number], corrected=p)
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order (Holm, 1979)."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * (len(p) - np.arange(len(p)))
    found = np.empty(len(p))
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(each) for each in found]


def binomial_p(successes: int, count: int, chance: float = 0.5) -> float:
    """Two-sided exact test of a share: all outcomes at most as likely as the one seen."""
    logs = np.array([math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
                     + _power(chance, k) + _power(1 - chance, count - k)
                     for k in range(count + 1)])  # fmt: skip
    likely = np.exp(logs)
    return float(min(1.0, likely[logs <= logs[successes] + 1e-9].sum()))


def _power(base: float, times: int) -> float:
    if not times:
        return 0.0
    return times * math.log(base) if base else -math.inf


def preferences(prefers: np.ndarray, kinds: Sequence[str], *, whole: str = "all") -> list[Measure]:
    """The share of pairs whose first member a model prefers, of all and by kind; the aim is 1/2.

    If what stands first were exchanged at random, the share would be that of a fair coin: the test
    is exact. A tie counts as half, and is left out of the test.

    Args:
        prefers: (n,) 1 where the first is preferred, 0 where the second is, 1/2 for a tie.
        kinds: of bias, n of them.
        whole: the name of the measure over all pairs.

    Raises:
        BedstoneError: there are no pairs, or not as many kinds.
    """
    if not len(prefers) or len(prefers) != len(kinds):
        raise BedstoneError(
            f"pairs: {len(prefers)} preferences and {len(kinds)} kinds were given; expected as "
            "many of both, at least one."
        )
    of = np.asarray(kinds)
    parts = {whole: np.ones(len(of), dtype=bool)}
    if len(set(kinds)) > 1:
        parts |= {kind: of == kind for kind in sorted(set(kinds))}
    return corrected([_preferred(name, prefers[mask]) for name, mask in parts.items()])


def _preferred(name: str, prefers: np.ndarray) -> Measure:
    count, clear = len(prefers), prefers[prefers != 0.5]
    low, high = wilson(float(prefers.sum()), count)  # type: ignore[arg-type]
    least = Z_POWER * 0.5 / math.sqrt(count)
    return Measure(
        name, float(prefers.mean()), low, high, 0.5, count,
        p=binomial_p(int(clear.sum()), len(clear)) if len(clear) else 1.0,
        detects=least if least < 0.5 else None,
        note="few pairs" if count < FEW else "",
    )  # fmt: skip


def association(
    name: str,
    targets: tuple[np.ndarray, np.ndarray],
    attributes: tuple[np.ndarray, np.ndarray],
    *,
    seed: int = 0,
    most: int = 100_000,
) -> Measure:
    """WEAT's effect size d (Caliskan et al., 2017, equation 3); the aim is 0.

    How much nearer the first target's vectors are to the first attribute's than to the second's,
    beside the second target's, in standard deviations. p is two-sided over exchanges of the
    targets' vectors: all of them where there are at most `most`, else as many drawn.

    Args:
        targets: two sets of unit vectors, (n, E) and (m, E).
        attributes: two more.

    Raises:
        BedstoneError: a set has fewer than two vectors, or all are equally near.
    """
    for side in (*targets, *attributes):
        if len(side) < 2:
            raise BedstoneError(f"{name}: a set has {len(side)} entries; give each at least two.")
    together = np.concatenate(targets)  # (n + m, E)
    near = (together @ attributes[0].T).mean(1) - (together @ attributes[1].T).mean(1)
    first, count = len(targets[0]), len(together)
    spread = near.std(ddof=1)
    if not spread > 1e-12:
        raise BedstoneError(
            f"{name}: all entries of both targets are equally near to both attributes, so that "
            "there is nothing to measure. Give other words."
        )
    effect = (near[:first].mean() - near[first:].mean()) / spread
    sums = _exchanged(near, first, most, np.random.default_rng(seed))
    extreme = abs(near[:first].sum() - near.sum() * first / count)
    p = float((np.abs(sums - near.sum() * first / count) >= extreme - 1e-12).mean())
    ends = bootstrap(
        lambda weights: _effects(weights, near, first)[:, None],
        count,
        resamples=2000,
        seed=seed,
    )[0]
    return Measure(
        name, float(effect), float(ends[0]), float(ends[1]), 0.0, count, p=p,
        detects=Z_POWER * math.sqrt(1 / first + 1 / (count - first)),
        note="few words" if count < 2 * 8 else "",
    )  # fmt: skip


def _exchanged(near: np.ndarray, first: int, most: int, random: np.random.Generator) -> np.ndarray:
    """Sums of what would be the first target, over exchanges of the targets' vectors."""
    if math.comb(len(near), first) <= most:
        chosen = itertools.combinations(range(len(near)), first)
        return np.array([near[list(each)].sum() for each in chosen])
    order = random.random((most // 10, len(near))).argsort(1)[:, :first]
    return np.append(near[order].sum(1), near[:first].sum())


def _effects(weights: np.ndarray, near: np.ndarray, first: int) -> np.ndarray:
    """(R,) effect sizes of resamples, (R, n + m) how often each vector was drawn."""
    one, other = weights[:, :first], weights[:, first:]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (one @ near[:first]) / one.sum(1), (other @ near[first:]) / other.sum(1)
        middle = (weights @ near) / weights.sum(1)
        spread = np.sqrt((weights @ near**2) / weights.sum(1) - middle**2)
        found = (means[0] - means[1]) / spread
    return np.where(np.isfinite(found), found, np.nan)


def paired(name: str, differences: np.ndarray, *, seed: int = 0, aim: float = 0.0) -> Measure:
    """The mean of differences of pairs that differ in their group alone; the aim is 0.

    p is two-sided, over exchanges of the groups within pairs.
    """
    count = len(differences)
    if not count:
        raise BedstoneError(f"{name}: there are no pairs to compare.")
    mean = float(differences.mean())
    p = sign_flip(differences, two_sided=True, seed=seed)
    ends = bootstrap(
        lambda weights: (weights @ differences / count)[:, None], count, resamples=2000, seed=seed
    )[0]
    spread = float(differences.std(ddof=1)) if count > 1 else 0.0
    return Measure(
        name, mean, float(ends[0]), float(ends[1]), aim, count, p=p,
        detects=Z_POWER * spread / math.sqrt(count) if count >= ASSURED else None,
        note="few pairs" if count < FEW else "",
    )  # fmt: skip


# Groups of labelled rows. Rates of a group, by name, each out of the rows that `of` takes.

RATES = ("accuracy", "selection rate", "true positive rate", "false positive rate")


def group_rates(
    truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Each group's rates, as fairlearn's `MetricFrame` gives them; nan where nothing is counted.

    Args:
        truth, guess: (n,) bool, whether a row has the favourable label, and is given it.
        groups: (n,) places in `names`.
    """
    counts = _counts(truth, guess, groups, len(names))
    rates = _rates(counts[None])[0]
    return {
        name: {"rows": int(counts[number].sum()), **dict(zip(RATES, map(float, row), strict=True))}
        for number, (name, row) in enumerate(zip(names, rates, strict=True))
    }


def group_differences(
    truth: np.ndarray,
    guess: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> list[Measure]:
    """The largest difference between groups of each rate, and of equalized odds; the aim is 0.

    A largest difference is above 0 by chance alone, the more so with small groups, and so is the
    bootstrap's interval: p, over exchanges of the groups among rows of the same truth, says whether
    it is more than that.

    Equalized odds: the larger of the differences of both positive rates.

    Raises:
        BedstoneError: fewer than two groups have rows.
    """
    present = np.unique(groups)
    if len(present) < 2:
        raise BedstoneError(
            f"groups: the rows are of {len(present)} group; expected at least two to compare."
        )
    count = len(names)
    value = _differences(_counts(truth, guess, groups, count)[None])[0]
    random = np.random.default_rng(seed)
    cells = _cells(truth, guess)
    drawn = np.stack([
        _counted(cells[rows], groups[rows], count)
        for rows in (random.integers(0, len(cells), len(cells)) for _ in range(resamples))
    ])  # fmt: skip
    ends = np.nanpercentile(_differences(drawn), [2.5, 97.5], axis=0)
    nulls = np.stack(
        [_counted(cells, _exchange(groups, truth, random), count) for _ in range(resamples)]
    )
    chance = _differences(nulls)
    beyond = (chance >= value - 1e-12).sum(0)
    shows = np.nanquantile(chance, 1 - LEVEL, axis=0) + 0.8416 * np.nanstd(chance, axis=0)
    least = min(int((groups == each).sum()) for each in present)
    notes = [f"a group has {least} rows"] if least < FEW else []
    if guess.all() or not guess.any():
        notes.append("every row is given the same label")
    note = "; ".join(notes)
    return corrected([
        Measure(
            name, float(value[number]), float(ends[0, number]), float(ends[1, number]), 0.0,
            len(cells), p=(1 + float(beyond[number])) / (1 + resamples), note=note,
            detects=float(shows[number]),
        )
        for number, name in enumerate((*RATES, "equalized odds"))
        if np.isfinite(value[number])
    ])  # fmt: skip


def _exchange(groups: np.ndarray, truth: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Groups exchanged among rows of the same truth."""
    found = groups.copy()
    for side in (False, True):
        rows = np.flatnonzero(truth == side)
        found[rows] = groups[random.permutation(rows)]
    return found


def _cells(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    return truth.astype(int) * 2 + guess.astype(int)


def _counted(cells: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(G, 4) rows of each group: true negatives, false positives, false negatives, true ones."""
    return np.bincount(groups * 4 + cells, minlength=4 * count).reshape(count, 4)


def _counts(truth: np.ndarray, guess: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    return _counted(_cells(truth, guess), groups, count)


def _rates(counts: np.ndarray) -> np.ndarray:
    """(R, G, 4) counts to (R, G, 4) rates, in the order of `RATES`."""
    no, wrong, missed, yes = (counts[..., place].astype(float) for place in range(4))
    with np.errstate(invalid="ignore", divide="ignore"):
        every = no + wrong + missed + yes
        return np.stack(
            ((no + yes) / every, (wrong + yes) / every, yes / (missed + yes), wrong / (no + wrong)),
            -1,
        )


def _differences(counts: np.ndarray) -> np.ndarray:
    """(R, 5): the largest difference between groups of each rate, and of equalized odds."""
    rates = _rates(counts)
    with np.errstate(invalid="ignore"):
        gaps = np.fmax.reduce(rates, 1) - np.fmin.reduce(rates, 1)
    return np.concatenate((gaps, np.fmax(gaps[:, 2:3], gaps[:, 3:4])), 1)


def chosen_rates(
    counts: Mapping[str, int], expected: Mapping[str, float], *, name: str = "rates"
) -> list[Measure]:
    """How often each value of an attribute came out, beside what was expected.

    p is of the exact binomial test.

    Args:
        counts: of outputs by value; those of none are left out before.
        expected: the share of each value, as training data has it or as users want it.
        name: of what is measured, for messages.

    Raises:
        BedstoneError: nothing was counted, or a value isn't expected.
    """
    total = sum(counts.values())
    if not total:
        raise BedstoneError(
            f"{name}: no output shows just one of {', '.join(expected)}, so nothing was counted."
        )
    unknown = [value for value in counts if value not in expected]
    if unknown:
        raise BedstoneError(f"{name}: {unknown[0]} has no expected share. Give one.")
    found = []
    for value, aim in expected.items():
        seen = counts.get(value, 0)
        low, high = wilson(seen, total)
        detects = Z_POWER * math.sqrt(aim * (1 - aim) / total)
        few = "few outputs" if total < FEW else ""
        p = binomial_p(seen, total, aim)
        share = seen / total
        found.append(Measure(value, share, low, high, aim, total, p, detects=detects, note=few))
    return found


def skew(name: str, among: int, top: int, members: int, every: int) -> Measure:
    """Share of a group among the first `top` results, beside its share of all that was searched.

    p is two-sided, of drawing that many at random (hypergeometric, exact).
    """
    aim = members / every
    low, high = wilson(among, top)
    p = _hypergeometric_p(among, top, members, every)
    return Measure(
        name, among / top, low, high, aim, top, p=p,
        detects=Z_POWER * math.sqrt(aim * (1 - aim) / top),
        note="few results" if top < FEW else "",
    )  # fmt: skip


def two_shares(name: str, one: tuple[int, int], other: tuple[int, int]) -> Measure:
    """The difference of two shares, each (counted, of so many); the aim is 0.

    The interval is Newcombe's of Wilson's intervals (1998, method 10), p Fisher's exact test,
    two-sided.
    """
    (first, count), (second, beside) = one, other
    share, base = first / count, second / beside
    (low, high), (base_low, base_high) = wilson(first, count), wilson(second, beside)
    gap = share - base
    return Measure(
        name,
        gap,
        gap - math.hypot(share - low, base_high - base),
        gap + math.hypot(high - share, base - base_low),
        0.0,
        count + beside,
        p=_hypergeometric_p(first, count, first + second, count + beside),
        detects=Z_POWER * 0.5 * math.sqrt(1 / count + 1 / beside),
        note="few rows" if min(count, beside) < FEW else "",
    )


def _hypergeometric_p(among: int, top: int, members: int, every: int) -> float:
    """Two-sided exact test of `among` members of `members` in `top` drawn of `every`."""
    least, most = max(0, top - (every - members)), min(top, members)
    logs = np.array(
        [_log_choose(members, k) + _log_choose(every - members, top - k)
         for k in range(least, most + 1)]
    )  # fmt: skip
    likely = np.exp(logs - _log_choose(every, top))
    return float(min(1.0, likely[logs <= logs[among - least] + 1e-9].sum()))


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)
