"""What a set of drawn signals is worth beside real ones, as a named judge sees them.

FID and KID compare what the judge sees in both; precision says how much of what was drawn looks
real, recall how much of what is real could be drawn; class accuracy whether each is what it was to
be. Nearest neighbours tell whether training pictures were copied.

Shapes: N drawn and M real signals as pictures, (N, C, H, W) of about -1 to 1.
"""

from typing import Protocol

from torch import Tensor

from bedstone.inspect.bootstrap import bootstrap
from bedstone.inspect.figures import Figures, with_ends
from bedstone.inspect.frechet import Moments, frechet_distance
from bedstone.inspect.kernel_distance import kernel_distance
from bedstone.inspect.manifold import precision_recall
from bedstone.inspect.neighbours import Neighbours, copying, nearest


class Reads(Protocol):
    """A judge: of pictures, or of signals."""

    def read(self, pictures: Tensor, /) -> tuple[Tensor, Tensor | None]: ...


MOST = 5000  # rows of each whose distances are taken one by one


def beside_real(
    drawn: Tensor,
    real: Tensor,
    judge: Reads,
    *,
    classes: Tensor | None = None,
    resamples: int = 1000,
) -> Figures:
    """`fid` (the main figure), `kid`, `precision`, `recall`; `accuracy` where classes are known.

    Args:
        drawn: (N, C, H, W).
        real: (M, C, H, W), held out.
        classes: (N,) what each drawn one was to be, by the judge's labels.
        resamples: of the bootstrap of the accuracy.

    Raises:
        BedstoneError: too few rows, or pictures that the judge can't read.
    """
    seen, said = judge.read(drawn)
    known, _ = judge.read(real)
    distance = kernel_distance(known, seen)
    manifold = precision_recall(known[:MOST], seen[:MOST])
    values = {
        "fid": frechet_distance(Moments.of(seen), Moments.of(known)),
        "kid": distance.mean,
        "kid_spread": distance.spread,
        "precision": manifold.precision,
        "recall": manifold.recall,
    }
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
    return Figures("drawings", "fid", values, intervals, rows=len(drawn))


def beside_training(
    drawn: Tensor, held: Tensor, training: Tensor, *, count: int = 5
) -> tuple[dict[str, float], Neighbours]:
    """How near drawn signals are to training, beside held-out ones; and their neighbours.

    Returns:
        `nearest`, `nearest_held_out` (median distances, of pixels), `nearer` (the chance that a
        drawn one is nearer to training than a held-out one; 0.5 where they are alike) and
        `suspects` (the share nearer than all but 1 % of held-out ones; 0.01 where alike).
    """
    found = nearest(drawn, training, count)
    told = copying(found, nearest(held, training))
    return {
        "nearest": told.made,
        "nearest_held_out": told.held,
        "nearer": told.nearer,
        "suspects": told.suspects,
    }, found
