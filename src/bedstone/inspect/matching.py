"""How well a network tells texts that belong to a picture from others."""

from collections.abc import Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.inspect.bootstrap import bootstrap, grouped
from bedstone.inspect.figures import Figures, check_lengths, named, with_ends

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
    )
