"""Whether a text belongs to a picture: how often a model says so rightly.

Shapes: N pairs, K kinds of them, R resamples.
"""

from collections.abc import Sequence

import numpy as np

from bedstone.inspect.bootstrap import bootstrap
from bedstone.inspect.figures import Figures, check_lengths, named, with_ends


def matched_figures(pairs: Sequence[tuple[bool, float, str]], *, resamples: int = 1000) -> Figures:
    """Accuracy, the mean of that on right and on wrong pairs, and accuracy on each kind alone.

    Args:
        pairs: whether the text belongs to the picture, the chance that the model gives it, and
            what kind of wrong text it is; of right ones that is empty.
        resamples: for the intervals; 0 gives none.

    Raises:
        BedstoneError: there are no pairs.
    """
    check_lengths(pairs, pairs, "pairs")
    hit = np.array([(chance > 0.5) == right for right, chance, _ in pairs], dtype=float)
    kinds = ["right", *dict.fromkeys(kind for right, _, kind in pairs if not right)]
    of = [("right" if right else kind) for right, _, kind in pairs]
    member = np.array([[kind == each for each in kinds] for kind in of], dtype=float)  # (N, K)

    def figures(drawn: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            each = (drawn @ (member * hit[:, None])) / (drawn @ member)  # (R, K)
        return np.concatenate((each[:, :2].mean(1, keepdims=True), each), 1)

    names = ["accuracy", *(f"accuracy/{kind}" for kind in kinds)]
    ends = bootstrap(figures, len(pairs), resamples=resamples) if resamples else None
    return Figures(
        kind="matching",
        main="accuracy",
        values=named(names, figures(np.ones((1, len(pairs))))[0]),
        intervals={} if ends is None else with_ends(names, ends),
        rows=len(pairs),
    )
