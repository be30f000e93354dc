"""Metrics of generative models: memorization, FID, KID, PRDC, CLIP score, PSNR and SSIM.

How near is too near is told by real pictures that were held out from training: who copies is
nearer to training than they are.

Shapes: N made rows, M training rows, F values of a row, k neighbours.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.metrics.figures import Figures, bootstrap, with_ends
from bedstone.settings import check_whole

AT_ONCE = 1 << 24  # distances held in memory at one time


def checked(
    features: Tensor, name: str, least: int = 1, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Features, (N, F), as doubles or as asked for.

    Raises:
        BedstoneError: they have another shape, fewer rows than `least`, or one is not finite.
    """
    if features.ndim != 2 or len(features) < least:
        raise BedstoneError(
            f"{name}: the shape {tuple(features.shape)} was given; expected a row of features for "
            f"each picture, and {least} or more of them."
        )
    finite = features.isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise BedstoneError(
            f"{name}, row {row}: holds values that are not finite. Look at what was drawn there."
        )
    return features.detach().to(dtype)


def same_width(one: Tensor, other: Tensor) -> None:
    """Raises BedstoneError where two sets have different numbers of features."""
    if one.shape[-1] != other.shape[-1]:
        raise BedstoneError(
            f"features: {one.shape[-1]} and {other.shape[-1]} of them are compared; expected both "
            "from the same network."
        )


def squared_distances(
    one: Tensor, other: Tensor, at_once: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of `one` at a time, and their squared distances to all of `other`, (n, M).

    |a|² + |b|² - 2 a·b, after moving both sets to where their values are small. At most `at_once`
    of them are made together; 0 takes `AT_ONCE`.
    """
    middle = other.mean(0)
    one, other = one - middle, other - middle
    lengths = other.square().sum(1)
    step = max(1, (at_once or AT_ONCE) // max(len(other), 1))
    for start in range(0, len(one), step):
        rows = one[start : start + step]
        found = torch.addmm(lengths, rows, other.T, alpha=-2)
        found += rows.square().sum(1, keepdim=True)
        yield slice(start, start + len(rows)), found.clamp_(min=0)


SPARE = 4  # candidates beyond k, of which the nearest are found again without rounding


@dataclass(frozen=True)
class NearestNeighbours:
    """The nearest training rows of each row, nearest first.

    Attributes:
        places: (N, k) their numbers.
        distances: (N, k) double: root mean square of the differences, as large as one value's.
    """

    places: Tensor
    distances: Tensor


@dataclass(frozen=True)
class Memorization:
    """How near made pictures are to training, beside held-out real ones.

    Attributes:
        made, held: the median distance to the nearest training picture.
        nearer: the chance that a made picture is nearer to training than a held-out one; 0.5
            where they are alike, 1 where all are copied.
        suspects: the share of made pictures that are nearer than all but 1 % of held-out ones;
            0.01 where they are alike.
    """

    made: float
    held: float
    nearer: float
    suspects: float


def nearest(rows: Tensor, training: Tensor, count: int = 1) -> NearestNeighbours:
    """The `count` nearest of training (M, F) for each of (N, F); pictures may be given whole.

    Raises:
        BedstoneError: widths differ, there are too few rows, or a value is not finite.
    """
    check_whole("count", count, 1)
    one = checked(rows.flatten(1) if rows.ndim > 2 else rows, "rows", 1, torch.float32)
    other = training.flatten(1) if training.ndim > 2 else training
    other = checked(other, "training", count, torch.float32)
    same_width(one, other)
    places, distances = [], []
    most = min(count + SPARE, len(other))
    # The candidates' values are held too, so of few training rows not all are compared at once.
    at_once = AT_ONCE * len(other) // max(len(other), most * one.shape[1])
    for part, away in squared_distances(one, other, at_once):
        found = away.topk(most, largest=False).indices  # (n, k + spare)
        # Products round: of pictures that are almost alike little would be left of a difference.
        apart = (one[part, None] - other[found]).double().square().mean(-1).sqrt()
        exact, order = apart.sort(dim=1, stable=True)
        places.append(found.gather(1, order)[:, :count])
        distances.append(exact[:, :count])
    return NearestNeighbours(torch.cat(places), torch.cat(distances))


def memorization(made: NearestNeighbours, held: NearestNeighbours) -> Memorization:
    """Compares the nearest distances of made pictures with those of held-out real ones.

    Raises:
        BedstoneError: there are none of either.
    """
    one, other = made.distances[:, 0].contiguous(), held.distances[:, 0]
    if not len(one) or not len(other):
        raise BedstoneError("neighbours: there are no pictures to compare; give some of both.")
    ordered = other.sort().values
    # A held-out picture that is as far counts half.
    above = len(ordered) - torch.searchsorted(ordered, one, right=True)
    above_or_same = len(ordered) - torch.searchsorted(ordered, one)
    nearer = (above + above_or_same).double().mean() / (2 * len(ordered))
    return Memorization(
        made=float(one.median()),
        held=float(other.median()),
        nearer=float(nearer),
        suspects=float((one < other.quantile(0.01)).double().mean()),
    )


# The Fréchet distance between features of real and of made pictures (FID; Heusel et al., 2017).
#
# Each set is taken for a Gaussian: |mean - mean'|² + tr(C + C' - 2 (C C')^(1/2)). Sums are kept in
# double precision and taken round the mean (Chan et al., 1983), so that a set may come in any
# number of parts. A distance means something only beside another by the same network and as many
# pictures: it falls as there are more.
#
# Shapes: N rows, F features.


@dataclass(frozen=True)
class Moments:
    """What is kept of a set of features.

    Attributes:
        count: rows, N.
        mean: (F,) double.
        scatter: (F, F) double, the sum over rows of (x - mean) (x - mean)ᵀ.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Of (N, F).

        Raises:
            BedstoneError: they have another shape, there are none, or one is not finite.
        """
        x = checked(features, "features")
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    def joined(self, other: "Moments") -> "Moments":
        """Of both sets together."""
        same_width(self.mean, other.mean)
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """(F, F), divided by N - 1. Raises BedstoneError where there is one row alone."""
        if self.count < 2:
            raise BedstoneError("features: one row has no covariance; give two or more.")
        return self.scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """The squared distance of two Gaussians, never below 0.

    The trace of (C C')^(1/2) is that of (R C' R)^(1/2), R the root of C: symmetric, so that no
    imaginary parts arise, and with fewer rows than features all is still defined.

    Raises:
        BedstoneError: their widths differ, or one has less than two rows.
    """
    same_width(one.mean, other.mean)
    first, second = one.covariance, other.covariance
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ second @ root
    shared = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    return max(float(apart + first.trace() + second.trace() - 2 * shared), 0.0)


# The kernel distance between features of real and of made pictures (KID; Bińkowski et al., 2018).
#
# The squared maximum mean discrepancy with the kernel (x·y / F + 1)³, estimated without bias, so
# that it doesn't depend on how many pictures there are, and may fall below 0 where sets are alike.
# The mean over random subsets is given with their spread, as published.
#
# Shapes: N rows, F features, S of a subset.


@dataclass(frozen=True)
class KID:
    """A kernel distance.

    Attributes:
        mean: over the subsets.
        spread: the standard deviation of one subset's.
        subsets: how many were drawn.
        size: rows of each, S.
    """

    mean: float
    spread: float
    subsets: int
    size: int


def kid(real: Tensor, made: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> KID:
    """KID between (N, F) and (M, F), by subsets of both.

    Args:
        size: rows of a subset; no more than there are of either are taken.
        seed: of the subsets.

    Raises:
        BedstoneError: widths differ, less than two rows, a value that is not finite.
    """
    check_whole("subsets", subsets, 1)
    check_whole("size", size, 2)
    a, b = checked(real, "real", 2), checked(made, "made", 2)
    same_width(a, b)
    size = min(size, len(a), len(b))
    random = torch.Generator().manual_seed(seed)
    values = torch.stack(
        [
            discrepancy(
                a[torch.randperm(len(a), generator=random)[:size]],
                b[torch.randperm(len(b), generator=random)[:size]],
            )
            for _ in range(subsets)
        ]
    )
    return KID(float(values.mean()), float(values.std(correction=0)), subsets, size)


def discrepancy(one: Tensor, other: Tensor) -> Tensor:
    """The unbiased estimate of the squared discrepancy between (N, F) and (M, F), ().

    Pairs of a row with itself are left out (Gretton et al., 2012, lemma 6).
    """
    same_width(one, other)
    n, m = len(one), len(other)
    within = (_kernel(one, one).sum() - _own(one)) / (n * (n - 1))
    within = within + (_kernel(other, other).sum() - _own(other)) / (m * (m - 1))
    return within - 2 * _kernel(one, other).mean()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1).pow(3)  # (N, M)


def _own(rows: Tensor) -> Tensor:
    """The sum over rows of each with itself."""
    return (rows.square().mean(1) + 1).pow(3).sum()


# How true and how various made pictures are: precision and recall, density and coverage.
#
# Each set is taken to fill the balls round its rows that just reach the k-th nearest row of the
# same set (Kynkäänniemi et al., 2019): `precision` is the share of made pictures inside the real
# ones' balls, `recall` the share of real ones inside the made ones'. One far real picture has a
# ball that holds much; `density` and `coverage` (Naeem et al., 2020) mend that: how many real balls
# hold a made picture, divided by k, and the share of real balls that hold any.
#
# All need as many real as made pictures to be compared with others' figures.
#
# Shapes: N real rows, M made rows, F features.


@dataclass(frozen=True)
class PRDC:
    """Shares, of which only density may be above 1; `nearest` is k."""

    precision: float
    recall: float
    density: float
    coverage: float
    nearest: int


def prdc(real: Tensor, made: Tensor, *, nearest: int = 3) -> PRDC:
    """Of features (N, F) and (M, F), some distances at a time.

    Raises:
        BedstoneError: widths differ, there are no more rows than `nearest`, or a value is not
            finite.
    """
    check_whole("nearest", nearest, 1)
    a, b = checked(real, "real"), checked(made, "made")
    same_width(a, b)
    if min(len(a), len(b)) <= nearest:
        raise BedstoneError(
            f"nearest: {nearest} was given, of {len(a)} real and {len(b)} made pictures; give more "
            "pictures of both than that."
        )
    real_reach, made_reach = _reach(a, nearest), _reach(b, nearest)
    found = torch.zeros(len(a), dtype=torch.bool)
    covered = torch.zeros(len(a), dtype=torch.bool)
    inside = held = 0
    for rows, away in squared_distances(b, a):  # (m, N)
        holds = away <= real_reach
        inside += int(holds.any(1).sum())
        held += int(holds.sum())
        covered |= holds.any(0)
        found |= (away <= made_reach[rows, None]).any(0)
    return PRDC(
        precision=inside / len(b),
        recall=float(found.double().mean()),
        density=held / (nearest * len(b)),
        coverage=float(covered.double().mean()),
        nearest=nearest,
    )


def _reach(rows: Tensor, nearest: int) -> Tensor:
    """The squared distance of each row to its k-th nearest other, (N,)."""
    found = torch.empty(len(rows), dtype=rows.dtype)
    for part, away in squared_distances(rows, rows):
        numbers = torch.arange(part.start, part.stop)
        away[numbers - part.start, numbers] = torch.inf  # itself
        found[part] = away.kthvalue(nearest, 1).values
    return found


# What a set of drawn signals is worth beside real ones, as a named judge sees them.
#
# FID and KID compare what the judge sees in both; precision says how much of what was drawn looks
# real, recall how much of what is real could be drawn; class accuracy whether each is what it was
# to be. Nearest neighbours tell whether training pictures were copied.
#
# Shapes: N drawn and M real signals as pictures, (N, C, H, W) of about -1 to 1.


class Reads(Protocol):
    """A judge: of pictures, or of signals."""

    def read(self, images: Tensor, /) -> tuple[Tensor, Tensor | None]: ...


MOST = 5000  # rows of each whose distances are taken one by one
ENOUGH = 1000  # samples, from which a distance of distributions says something


def beside_real(
    drawn: Tensor,
    real: Tensor,
    judge: Reads,
    *,
    classes: Tensor | None = None,
    resamples: int = 1000,
) -> Figures:
    """`fid` (the main figure), `kid`, `precision`, `recall`; `accuracy` where classes are known.

    Beside them stand `fid_of_noise` and `precision_of_noise`: a judge that takes noise for real
    signals can't carry the figures, which `doubts` then say.

    Args:
        drawn: (N, C, H, W), about -1 to 1.
        real: (M, C, H, W), held out.
        classes: (N,) what each drawn one was to be, by the judge's labels.
        resamples: of the bootstrap of the accuracy.

    Raises:
        BedstoneError: too few rows, or pictures that the judge can't read.
    """
    seen, said = judge.read(drawn)
    known, _ = judge.read(real)
    distance = kid(known, seen)
    manifold = prdc(known[:MOST], seen[:MOST])
    values = {
        "fid": frechet_distance(Moments.of(seen), Moments.of(known)),
        "kid": distance.mean,
        "kid_spread": distance.spread,
        "precision": manifold.precision,
        "recall": manifold.recall,
    }
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    guess, _ = judge.read(noise.to(drawn))
    values["fid_of_noise"] = frechet_distance(Moments.of(guess), Moments.of(known))
    values["precision_of_noise"] = prdc(known[:MOST], guess[:MOST]).precision
    intervals: dict[str, tuple[float, float]] = {}
    if classes is not None and said is not None:
        right = (said.argmax(1) == classes).double().numpy()
        values["accuracy"] = float(right.mean())
        if resamples:
            ends = bootstrap(
                lambda counts: (counts @ right / counts.sum(1))[:, None],
                len(right),
                resamples=resamples,
            )
            intervals = with_ends(["accuracy"], ends)
    doubts = tuple(_doubts(values, len(drawn)))
    return Figures("drawings", "fid", values, intervals, rows=len(drawn), doubts=doubts)


def _doubts(values: Mapping[str, float], rows: int) -> Iterator[str]:
    """Why figures by a judge may mean little, a sentence each."""
    if values["precision_of_noise"] > 0.5 * values["precision"]:
        yield (
            f"The judge can't carry the precision: it is {values['precision']:.3f}, and "
            f"{values['precision_of_noise']:.3f} for noise. Take a judge trained on such signals, "
            "or more of them."
        )
    if values["fid"] >= values["fid_of_noise"]:
        yield "By this judge the samples are no nearer to real ones than noise."
    if rows < ENOUGH:
        yield (
            f"{rows:,} samples are few: FID falls as their number rises, so it compares only with "
            f"figures of {rows:,}; {ENOUGH:,} or more are usual."
        )


def beside_training(
    drawn: Tensor, held: Tensor, training: Tensor, *, count: int = 5
) -> tuple[dict[str, float], NearestNeighbours]:
    """How near drawn signals are to training, beside held-out ones; and their neighbours.

    Returns:
        `nearest`, `nearest_held_out` (median distances, of pixels), `nearer` (the chance that a
        drawn one is nearer to training than a held-out one; 0.5 where they are alike) and
        `suspects` (the share nearer than all but 1 % of held-out ones; 0.01 where alike).
    """
    found = nearest(drawn, training, count)
    copied = memorization(found, nearest(held, training))
    return {
        "nearest": copied.made,
        "nearest_held_out": copied.held,
        "nearer": copied.nearer,
        "suspects": copied.suspects,
    }, found


# Do pictures show what was asked for? The CLIP score (Hessel et al., 2021).
#
# 2.5 max(cos, 0) of a picture's and its text's vectors, by a CLIP that is named beside the figure:
# scores of different CLIPs can't be compared. Small CLIPs give high cosines to anything, so the
# same pictures are scored with each other's texts too.
#
# Shapes: N pictures, E width of the joint space.

SCALE = 2.5


class Compares(Protocol):
    """What makes vectors of length 1 of pictures and of texts, as `tasks.ImageEngine` does."""

    @property
    def name(self) -> str: ...

    def images(self, images: Iterable[Any]) -> np.ndarray: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class ClipScore:
    """A CLIP score.

    Attributes:
        mean: over the pictures.
        others: the mean with texts that other pictures were asked for by; nan where all are alike.
        first: the share of pictures that are nearer to their own text than to each of the other
            texts.
        scores: (N,) of each picture.
        clip: the name of what compared.
    """

    mean: float
    others: float
    first: float
    scores: np.ndarray
    clip: str


def clip_score(clip: Compares, images: Iterable[Any], texts: Sequence[str]) -> ClipScore:
    """The score of each picture with its own text.

    Args:
        clip: such as `tasks.images.engine.ImageEngine`.
        images: paths, bytes, arrays (H, W, 3) uint8 or Pillow's images.

    Raises:
        BedstoneError: there are none, or not as many pictures as texts.
    """
    shown, kinds = clip.images(images), list(dict.fromkeys(texts))
    if not texts or len(shown) != len(texts):
        raise BedstoneError(
            f"clip score: {len(shown)} pictures and {len(texts)} texts were given; expected one "
            "text for each picture."
        )
    places = {text: number for number, text in enumerate(kinds)}
    own = np.array([places[text] for text in texts])
    cosines = shown @ clip.texts(kinds).T  # (N, texts that differ)
    rows = np.arange(len(texts))
    scores = SCALE * cosines.clip(0)
    mine = scores[rows, own].copy()
    scores[rows, own] = np.nan
    return ClipScore(
        mean=float(mine.mean()),
        others=float(np.nanmean(scores)) if len(kinds) > 1 else float("nan"),
        first=float((cosines.argmax(1) == own).mean()),
        scores=mine,
        clip=clip.name,
    )


# How alike two pictures are: PSNR and SSIM.
#
# Shapes: B pictures, C channels, H x W values from -1 to 1.

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Decibels of each pair of pictures, (B,): 10 log10 of the range squared over the mean squared
    error; what leaves the range is cut first."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).float().square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-10))


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of each pair, (B,), 1 where they are equal (Wang et al., 2004).

    A Gaussian window of 11 by 11 pixels (of small pictures as much as fits) with a deviation of
    1.5, at every place where it lies inside; the mean over places and channels.
    """
    x, y = ((each.clamp(-1, 1).float() + 1) / 2 for each in (one, other))
    side = min(WINDOW, *x.shape[2:])
    side -= 1 - side % 2
    places = torch.arange(side, device=x.device) - side // 2
    line = torch.exp(-places.square() / (2 * SIGMA**2)).float()
    line = line / line.sum()

    def smooth(z: Tensor) -> Tensor:
        channels = z.shape[1]
        z = F.conv2d(z, line.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(z, line.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    both = smooth(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    form = (2 * both + K2**2) / (var_x + var_y + K2**2)
    return (light * form).flatten(1).mean(1)
