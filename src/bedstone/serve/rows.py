"""How many rows of a served decoder fit into memory, and what they take of it."""

from dataclasses import dataclass
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.generation.rows import EngineRows, Rows, TorchRows
from bedstone.nn.fast.decoder import Decoder


@dataclass(frozen=True)
class Room:
    """Bytes that a served decoder takes, as its server counts them.

    Attributes:
        weights: of the model, and of the network that was made ready to generate.
        prefixes: that prompts which are kept for the next may take.
        row: of the keys and values of one row.
        capacity: tokens of a row.
        count: rows that are opened.
    """

    weights: int
    prefixes: int
    row: int
    capacity: int
    count: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.weights + self.prefixes + self.count * self.row

    def within(self, limit: int) -> int:
        """Rows that fit into so many bytes with the rest."""
        return max((limit - self.weights - self.prefixes) // self.row, 0)


def row_bytes(network: Any, capacity: int) -> int:
    """Bytes of keys and values of one row; found by making room for few tokens."""
    few = 16
    cache = network.new_cache(1, few)
    held = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    return held * -(-capacity // few)


def open_rows(network: Any, capacity: int, most: int, limit: int) -> Rows:
    """Rows of a decoder that is ready to generate, as many as fit.

    Args:
        capacity: tokens of a row.
        most: rows, at most.
        limit: bytes of their keys and values.

    Raises:
        BedstoneError: not even one fits.
    """
    each = row_bytes(network, capacity)
    count = min(most, limit // each)
    if count < 1:
        raise BedstoneError(
            f"--kv-memory: {limit:,} bytes hold no row of {capacity:,} tokens, which takes "
            f"{each:,}. Raise it, or lower --max-model-len."
        )
    kind = EngineRows if isinstance(network, Decoder) else TorchRows
    return kind(network, count, capacity)
