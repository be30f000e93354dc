"""Classes told apart by their names alone: zero-shot accuracy with an ensemble of prompts.

A class's vector is the mean of those of its prompts, each of unit length, itself brought to unit
length (Radford et al., 2021, section 3.1.4).

Shapes: P pictures, C classes, M prompts of a class, E width.
"""

from collections.abc import Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.inspect.bootstrap import bootstrap
from bedstone.inspect.figures import Figures, named, with_ends


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
    )
