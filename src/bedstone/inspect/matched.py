"""How well a network tells texts that belong to a picture from those that don't."""

from collections.abc import Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.inspect.bootstrap import bootstrap, grouped
from bedstone.inspect.figures import Figures, check_lengths, named, with_ends

OWN = "its own"  # the kind of texts that belong


def matched_figures(
    pairs: Sequence[tuple[bool, float, str]], *, resamples: int = 1000, seed: int = 0
) -> Figures:
    """`accuracy` over pairs, each taken to belong together from a probability of one half on.

    Beside it `majority`, the accuracy of who says the more common of the two every time; and
    `accuracy/KIND`: of the texts that belong, and of each kind of those that don't. Who always says
    no is right of all the latter, so neither tells anything alone.

    Args:
        pairs: whether a picture and a text belong together, the probability that the network
            gives it, and of what kind the text is where it doesn't belong.
        resamples: of the bootstrap, which draws pairs; 0 leaves intervals out.

    Raises:
        BedstoneError: there are no pairs, or a probability is none.
    """
    rows = check_lengths(pairs, pairs, "pairs")
    for row, (_, chance, _) in enumerate(pairs):
        if not 0 <= chance <= 1:  # nan too
            raise BedstoneError(f"pairs, row {row}: {chance} is no probability; expected 0 to 1.")
    told = [OWN if belongs else kind or "other" for belongs, _, kind in pairs]
    kinds = [OWN] * (OWN in told) + sorted(set(told) - {OWN})
    right = np.array([(chance >= 0.5) == belongs for belongs, chance, _ in pairs])[:, None]
    member = np.array([[kind == one for one in kinds] for kind in told])  # (N, K)
    distinct, repeats = grouped(np.concatenate([right & member, member], 1).astype(float))

    def figures(drawn: np.ndarray) -> np.ndarray:
        hits, counts = np.split(drawn @ distinct, 2, axis=1)  # (R, K)
        total = counts.sum(1)
        own = counts[:, 0] if kinds[0] == OWN else np.zeros_like(total)
        with np.errstate(invalid="ignore"):
            each = hits / counts
        whole = [hits.sum(1) / total, np.maximum(own, total - own) / total]
        return np.concatenate([np.stack(whole, 1), each], 1)

    names = ["accuracy", "majority", *(f"accuracy/{kind}" for kind in kinds)]
    ends = bootstrap(figures, repeats, resamples=resamples, seed=seed) if resamples else None
    return Figures(
        kind="matching",
        main="accuracy",
        values=named(names, figures(repeats[None].astype(float))[0]),
        intervals={} if ends is None else with_ends(names, ends),
        rows=rows,
        support={kind: told.count(kind) for kind in kinds},
    )
