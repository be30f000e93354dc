"""Pictures among the words of a text: side by side in a row's memory, each seen once it is named.

Shapes: P memories, n = m * P rows of text, T tokens, S states of a memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.nn.cache import Cache
from bedstone.nn.masks import Full, Mask

NEVER = 2**31  # the slot from which a state is seen that stands for no picture


@dataclass(frozen=True)
class Seen:
    """Which states of its memory each token sees: `keep` is (P, m * T, S) bool."""

    keep: Tensor

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.keep  # queries and keys are all there are


def how_seen(
    rows: int, length: int, memory: Tensor | None, named: Tensor | None, cache: Cache | None
) -> Mask:
    """What `length` more tokens of n rows see of their memories.

    Args:
        memory: (P, S, width), P dividing n; None where the cache knows it.
        named: (P, S) the slot of the first token that sees each state, NEVER for padding; None
            shows all of it.
        cache: keeps what is named of a memory that is new to it: rows may leave, and memories
            with them.
    """
    if cache is not None:
        if memory is not None:
            cache.memory_keep = named
        named = cache.memory_keep
    if named is None:
        return Full()
    new = torch.arange(length, device=named.device)[None]
    slots = new if cache is None else cache.slots(length)  # (1 or n, T)
    slots = slots.expand(rows, -1).reshape(len(named), -1)  # (P, m * T)
    seen = slots[..., None] >= named[:, None]
    return Full() if bool(seen.all()) else Seen(seen)


def placed(memory: Tensor, places: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The pictures of each row side by side, and from which slot on each is seen.

    Args:
        memory: states of all pictures, in the rows' order, (pictures, S, memory width).
        places: for each of n rows, the slots of the tokens before which its pictures are named.

    Returns:
        memory (n, L S, memory width) and `named` (n, L S), of L pictures in the richest row.

    Raises:
        BedstoneError: there are more pictures or fewer than places.
    """
    count = sum(map(len, places))
    if count != len(memory):
        raise BedstoneError(
            f"pictures: {len(memory)} were given and the texts name {count}; expected as many."
        )
    most, (_, each, width) = max(map(len, places), default=0), memory.shape
    side = memory.new_zeros(len(places), most, each, width)
    named = torch.full((len(places), most), NEVER, device=memory.device)
    first = 0
    for row, slots in enumerate(places):
        side[row, : len(slots)] = memory[first : first + len(slots)]
        named[row, : len(slots)] = torch.tensor(slots, dtype=torch.long)
        first += len(slots)
    return side.flatten(1, 2), named.repeat_interleave(each, 1)
