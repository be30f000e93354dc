"""Retrieval metrics of images and texts: recall at k both ways, zero-shot accuracy, matching.

A query counts at k where one of its right answers is among the k nearest (as in VSE++, Faghri et
al., 2018, section 4). Whatever is as near as the right answer counts as nearer, so that a network
that maps all to one place finds nothing. Pictures may have several texts, and equal texts are
right for all their pictures. Intervals draw pictures, each with all its texts.

Shapes: P pictures, T texts, E width, Q queries, A answers, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.metrics.figures import Figures, bootstrap, check_lengths, grouped, named, with_ends

KS = (1, 5, 10)
AT_ONCE = 4_000_000  # cosines held in memory at one time


def ranks(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(Q,) how many wrong answers are at least as near as the nearest right one.

    Args:
        similarity: (Q, A).
        right: (Q, A) bool; a query may have several right answers, and needs one.
    """
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    return ((similarity >= best) & ~right).sum(1)


def recall_at(similarity: np.ndarray, right: np.ndarray, ks: Sequence[int] = KS) -> np.ndarray:
    """(len(ks),) the share of queries that find a right answer among the k nearest."""
    found = ranks(similarity, right)
    return np.array([(found < k).mean() for k in ks])


def retrieval(
    images: np.ndarray,
    texts: np.ndarray,
    owners: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    ks: Sequence[int] = KS,
    resamples: int = 1000,
) -> Figures:
    """Recall at each k, from picture to text and from text to picture.

    Args:
        images: (P, E) of unit length.
        texts: (T, E) of unit length.
        owners: (T,) which picture a text is of; every picture has at least one.
        groups: (T,) equal numbers are equal texts; None says that all differ.
        resamples: for the intervals; 0 gives none.

    Raises:
        BedstoneError: there is nothing to find, or a picture without a text.
    """
    total, count = len(images), len(texts)
    groups = np.arange(count) if groups is None else groups
    if not total or set(owners.tolist()) != set(range(total)):
        raise BedstoneError(
            f"retrieval: {total:,} pictures and {count:,} texts were given; every picture needs "
            "at least one text."
        )
    known = {group: number for number, group in enumerate(np.unique(groups).tolist())}
    codes = np.array([known[group] for group in groups.tolist()])
    says = np.zeros((total, len(known)), dtype=bool)  # which texts are right of a picture
    says[owners, codes] = True
    to_text = _by_blocks(images, texts, lambda block: says[block][:, codes])
    to_image = _by_blocks(texts, images, lambda block: says[:, codes[block]].T)
    names = [f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in ks]
    per_image = np.bincount(owners, minlength=total).astype(float)  # texts of each
    hits = [(to_text < k).astype(float) for k in ks]
    hits += [np.bincount(owners, (to_image < k).astype(float), total) for k in ks]
    sums = np.stack(hits, 1)  # (P, 2 ks)
    counts = np.stack([np.ones(total)] * len(ks) + [per_image] * len(ks), 1)

    def figures(drawn: np.ndarray) -> np.ndarray:  # (R, P) to (R, 2 ks)
        return (drawn @ sums) / (drawn @ counts)

    values = figures(np.ones((1, total)))[0]
    ends = bootstrap(figures, total, resamples=resamples) if resamples else None
    return Figures(
        kind="retrieval",
        main=f"text_to_image_recall@{ks[0]}",
        values=named(names, values),
        intervals={} if ends is None else with_ends(names, ends),
        rows=total,
        baselines={"chance": min(ks[0] / total, 1.0)},
    )


def _by_blocks(
    queries: np.ndarray, answers: np.ndarray, right: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """`ranks` of all queries, a block of them at a time; `right` maps a block to its (Q, A)."""
    size = max(AT_ONCE // max(len(answers), 1), 1)
    found = []
    for at in range(0, len(queries), size):
        block = np.arange(at, min(at + size, len(queries)))
        found.append(ranks(queries[block] @ answers.T, right(block)))
    return np.concatenate(found)


# Classification by the names of classes alone: zero-shot accuracy with an ensemble of prompts.
#
# A class's vector is the mean of those of its prompts, each of unit length, itself brought to unit
# length (Radford et al., 2021, section 3.1.4).
#
# Shapes: P pictures, C classes, M prompts of a class, E width.


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All templates of the first class, then those of the second, ...: C * M texts."""
    return [form.replace("{label}", name) for name in classes for form in templates]


def class_vectors(texts: np.ndarray, classes: int) -> np.ndarray:
    """(C, E) of unit length, from the vectors (C * M, E) of `prompts`, of unit length."""
    means = texts.reshape(classes, -1, texts.shape[-1]).mean(1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def zero_shot(
    images: np.ndarray,
    vectors: np.ndarray,
    actual: np.ndarray,
    classes: Sequence[str],
    *,
    resamples: int = 1000,
) -> Figures:
    """Accuracy at 1 and 5 over pictures, and the mean over the classes that occur.

    Args:
        images: (P, E) of unit length.
        vectors: (C, E), the classes'.
        actual: (P,) the class of each picture.
        classes: names, (C,).
        resamples: for the intervals; 0 gives none.

    Raises:
        BedstoneError: there are no pictures, or no classes to tell apart.
    """
    if not len(images) or len(classes) < 2:
        raise BedstoneError(
            f"zero-shot: {len(images):,} pictures of {len(classes):,} classes were given; at least "
            "one picture and two classes are needed."
        )
    similarity = images @ vectors.T  # (P, C)
    own = similarity[np.arange(len(images)), actual]
    # as near as the right class counts as nearer: all alike is no answer
    before = (similarity >= own[:, None]).sum(1) - 1
    predicted = similarity.argmax(1)
    names = ["accuracy", "accuracy@5", "class_accuracy"]
    support = np.bincount(actual, minlength=len(classes))
    member = np.zeros((len(images), len(classes)))
    member[np.arange(len(images)), actual] = 1.0
    hit = (before < 1).astype(float)

    def figures(drawn: np.ndarray) -> np.ndarray:
        total = drawn.sum(1)
        with np.errstate(invalid="ignore"):
            each = (drawn @ (member * hit[:, None])) / (drawn @ member)  # (R, C)
        return np.stack(
            [drawn @ hit / total, drawn @ (before < 5) / total, np.nanmean(each, axis=1)], 1
        )

    values = figures(np.ones((1, len(images))))[0]
    ends = bootstrap(figures, len(images), resamples=resamples) if resamples else None
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (actual, predicted), 1)
    return Figures(
        kind="zero-shot",
        main="accuracy",
        values=named(names, values),
        intervals={} if ends is None else with_ends(names, ends),
        rows=len(images),
        labels=tuple(classes),
        support={name: int(n) for name, n in zip(classes, support, strict=True)},
        confusion=confusion.tolist(),
        baselines={
            "majority": float(support.max()) / len(images),
            "chance": 1 / len(classes),
        },
    )


# How well a network tells texts that belong to a picture from others.

NAMES = ("accuracy", "majority", "belong_found", "others_refused")


def matching(
    probabilities: Sequence[float] | np.ndarray,
    actual: Sequence[bool] | np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """Accuracy over pairs, each taken to belong together from a probability of one half on.

    Beside it `majority`, the accuracy of who says the more common of the two every time, and the
    shares of both kinds that are told: `belong_found` and `others_refused`.

    Args:
        probabilities: (N,) that a picture and a text belong together.
        actual: (N,) whether they do.
        resamples: of the bootstrap; 0 leaves intervals out.

    Raises:
        BedstoneError: lengths differ, there are no pairs, or a probability is none.
    """
    chance, truth = np.asarray(probabilities, dtype=float), np.asarray(actual, dtype=bool)
    rows = check_lengths(chance.tolist(), truth.tolist(), "pairs")
    if wrong := np.flatnonzero(~((chance >= 0) & (chance <= 1))).tolist():  # nan too
        raise BedstoneError(
            f"probabilities, row {wrong[0]}: {chance[wrong[0]]} was given; expected 0 to 1."
        )
    said = chance >= 0.5
    distinct, repeats = grouped(np.stack([truth & said, truth, ~truth & ~said, ~truth], 1))

    def figures(drawn: np.ndarray) -> np.ndarray:
        found, belong, refused, others = (drawn @ distinct.astype(float)).T
        total = belong + others
        with np.errstate(invalid="ignore"):
            shares = [found / belong, refused / others]
        return np.stack([(found + refused) / total, np.maximum(belong, others) / total, *shares], 1)

    values = named(NAMES, figures(repeats[None].astype(float))[0])
    ends = bootstrap(figures, repeats, resamples=resamples, seed=seed) if resamples else None
    return Figures(
        kind="matching",
        main="accuracy",
        values={name: value for name, value in values.items() if value == value},
        intervals={} if ends is None else with_ends(NAMES, ends),
        rows=rows,
        baselines={"majority": values["majority"]},
    )
