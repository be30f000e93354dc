"""Which items go together: learnt from pairs that did, or by a like style in another category.

From pairs: a linear map from an item's vector to its companion's, by ridge regression in closed
form, as word vectors of two languages are mapped (Mikolov, Le and Sutskever, 2013,
https://arxiv.org/abs/1309.4168). Both directions of a pair are learnt from.

Without pairs: a style is what remains of a vector once the mean of its category is taken off: what
a red shirt and red shoes share, beside being shirts and shoes. It is a heuristic.

Shapes: n items, P pairs, E numbers of a vector.
"""

from collections.abc import Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.tasks.embed import unit

RIDGE = 0.05  # of the mean eigenvalue of the Gram matrix: pairs are few beside E squared
FEWEST = 2  # items of a category, so that its mean isn't the item itself


def learn_map(vectors: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(E, E): what turns an item's vector (as a row, from the right) into its companions'.

    The mean companion is left out: what goes with everything says nothing of what goes with this.

    Raises:
        BedstoneError: there are no pairs.
    """
    if not len(pairs):
        raise BedstoneError("pairs: there are none; expected at least one of two items.")
    ends = np.asarray(pairs)
    own = vectors[np.concatenate([ends[:, 0], ends[:, 1]])].astype(float)  # (2P, E)
    other = vectors[np.concatenate([ends[:, 1], ends[:, 0]])].astype(float)
    centre = vectors.mean(0)
    own, other = own - centre, other - centre
    gram = own.T @ own
    gram += RIDGE * max(np.trace(gram) / len(gram), 1e-9) * np.eye(len(gram))
    found: np.ndarray = np.linalg.solve(gram, own.T @ other)
    return found.astype(np.float32)


def styles(vectors: np.ndarray, categories: Sequence[str]) -> np.ndarray:
    """(n, E) of length 1: vectors less the mean of their category; of an only one, of all."""
    found = vectors - vectors.mean(0)
    names = np.asarray(categories)
    for name in set(categories):
        own = names == name
        if own.sum() >= FEWEST:
            found[own] = vectors[own] - vectors[own].mean(0)
    return unit(found)
