"""How well pictures and texts find each other: recall at k, both ways.

A query counts at k where one of its right answers is among the k nearest (as in VSE++, Faghri et
al., 2018, section 4). Whatever is as near as the right answer counts as nearer, so that a network
that maps all to one place finds nothing. Pictures may have several texts, and equal texts are
right for all their pictures. Intervals draw pictures, each with all its texts.

Shapes: P pictures, T texts, E width, Q queries, A answers, R resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.inspect.bootstrap import bootstrap
from bedstone.inspect.figures import Figures, named, with_ends

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
    pictures, count = len(images), len(texts)
    groups = np.arange(count) if groups is None else groups
    if not pictures or set(owners.tolist()) != set(range(pictures)):
        raise BedstoneError(
            f"retrieval: {pictures:,} pictures and {count:,} texts were given; every picture needs "
            "at least one text."
        )
    known = {group: number for number, group in enumerate(np.unique(groups).tolist())}
    codes = np.array([known[group] for group in groups.tolist()])
    says = np.zeros((pictures, len(known)), dtype=bool)  # which texts are right of a picture
    says[owners, codes] = True
    to_text = _by_blocks(images, texts, lambda block: says[block][:, codes])
    to_image = _by_blocks(texts, images, lambda block: says[:, codes[block]].T)
    names = [f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in ks]
    per_picture = np.bincount(owners, minlength=pictures).astype(float)  # texts of each
    hits = [(to_text < k).astype(float) for k in ks]
    hits += [np.bincount(owners, (to_image < k).astype(float), pictures) for k in ks]
    sums = np.stack(hits, 1)  # (P, 2 ks)
    counts = np.stack([np.ones(pictures)] * len(ks) + [per_picture] * len(ks), 1)

    def figures(drawn: np.ndarray) -> np.ndarray:  # (R, P) to (R, 2 ks)
        return (drawn @ sums) / (drawn @ counts)

    values = figures(np.ones((1, pictures)))[0]
    ends = bootstrap(figures, pictures, resamples=resamples) if resamples else None
    return Figures(
        kind="retrieval",
        main=f"text_to_image_recall@{ks[0]}",
        values=named(names, values),
        intervals={} if ends is None else with_ends(names, ends),
        rows=pictures,
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
