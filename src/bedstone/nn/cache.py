"""The key/value cache: preallocated, written in place, never grown by concatenation.

Rows of a batch may have different lengths. A row's tokens stand at slots 0, 1, 2, ... with no
gaps: prompts are padded on the right, and what a row holds past its length is overwritten by
its next token before a causal mask lets anyone see it.

Shapes: B batch, H key/value heads, C capacity in tokens, T new tokens, W head width.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bedstone.nn.fast import passes

ALIGNMENT = 64  # bytes, as torch aligns
LARGE = 1 << 20  # bytes from which memory comes from the system page by page


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU, memory that nothing was written to takes no room.

    The system hands out pages of zeros as they are first used (calloc, by numpy), where
    `torch.zeros` writes all of them.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE:
        return torch.zeros(*shape, dtype=dtype, device=device)
    held = np.zeros(size + ALIGNMENT, np.uint8)
    start = -held.ctypes.data % ALIGNMENT
    return torch.from_numpy(held[start : start + size]).view(dtype).view(*shape)


class Cache:
    """Keys and values of every layer for a batch of sequences."""

    block = 1  # slots that stand together in memory

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_width: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # Zeros, not whatever memory holds: a masked NaN still spoils a sum, as 0 * NaN is NaN.
        shape = (batch, heads, capacity, head_width)
        self.capacity = capacity
        self.length: int = 0  # of the longest row
        self.lengths: Tensor | None = None  # (B,), only where rows differ
        # Tokens of each token's own row up to it or up to the pass's end, (B or 1, T or 1); None
        # counts all columns of the pass.
        self.coming: Tensor | None = None
        self.memory_keep: Tensor | None = None  # which states of the memories are real, (P, S)
        self._slots: Tensor | None = None  # of the tokens being written
        self._writers: Tensor | None = None  # `_written` when rows last moved
        self._own = torch.zeros(0, dtype=torch.long)  # numbers of the rows, (B,)
        self.layers = [
            LayerCache(
                self,
                lazy_zeros(shape, dtype, device),
                lazy_zeros(shape, dtype, device),
            )
            for _ in range(layers)
        ]

    @property
    def device(self) -> torch.device:
        return self.layers[0].keys.device

    @property
    def rows(self) -> int:
        return len(self.layers[0].keys)

    def used(self) -> int:
        """How many slots from the first may hold something."""
        return self.length

    def slots(self, new: int) -> Tensor:
        """Slots that `new` tokens a row take: (1, T), or (B, T) where rows differ."""
        if self._slots is None or self._slots.shape[1] != new:  # every layer asks for the same
            steps = torch.arange(new, device=self.device)
            lengths = self.lengths
            self._slots = steps[None] + (self.length if lengths is None else lengths[:, None])
        return self._slots

    def advance(self, new: int) -> None:
        """Counts `new` tokens a row as written. Called once a forward pass, by the network."""
        self._slots = self.coming = None
        self.length += new
        if self.lengths is not None:
            self.lengths = self.lengths + new

    def require(self, new: int) -> None:
        """Raises ValueError unless `new` more tokens fit."""
        if self.length + new > self.capacity:
            raise ValueError(
                f"the key/value cache holds {self.capacity} tokens: {self.length} are taken "
                f"and {new} more don't fit"
            )

    def set_lengths(self, lengths: Tensor) -> None:
        """Says how many of the tokens written are real in each row, (B,); the rest is padding."""
        self._slots = None
        self.length = int(lengths.max())
        ragged = bool((lengths != self.length).any())
        self.lengths = lengths.to(self.device) if ragged else None

    def rewind(self, lengths: int | Tensor) -> None:
        """Forgets what rows hold past their first `lengths` tokens: of all rows, or (B,) of each.

        Raises:
            ValueError: a row doesn't hold so many.
        """
        held = self.length if self.lengths is None else self.lengths
        wanted = torch.as_tensor(lengths, device=self.device)
        if bool(((wanted > held) | (wanted < 0)).any()):
            raise ValueError(f"the key/value cache holds {held} tokens; {lengths} were to be kept")
        self.set_lengths(wanted.expand(self.rows))
        self._writers = None  # what is written anew is of no writer that is known

    def keep(self, rows: Tensor) -> None:
        """Keeps the rows named, in that order: finished ones leave.

        Neighbours that share a memory, and stay side by side, go on sharing it.
        """
        memories = next((each.memory for each in self.layers if each.memory is not None), None)
        if memories is not None:
            owners = rows // (self.rows // len(memories[0]))
            _, runs = owners.unique_consecutive(return_counts=True)
            owners = owners[:: math.gcd(*runs.tolist()) or 1]
            if owners.tolist() != list(range(len(memories[0]))):
                if self.memory_keep is not None:
                    self.memory_keep = self.memory_keep[owners]
                for layer in self.layers:
                    if layer.memory is not None:
                        layer.memory = (layer.memory[0][owners], layer.memory[1][owners])
        self._move(rows)

    def fork(self, rows: Tensor) -> "Cache":
        """`branch` into another cache: this one stays as it is, to be read on from again."""
        made = copy.copy(self)
        made.layers = [replace(layer, owner=made) for layer in self.layers]
        made._take(rows)
        return made

    def branch(self, rows: Tensor) -> None:
        """Rows become copies of those named, and the memories stay as they are: beams.

        A row must be of the memory of the one whose place it takes. There may be more rows than
        before, as many of each: a prompt becomes its beams.
        """
        self._move(rows)

    def _move(self, rows: Tensor) -> None:
        """Copies of the rows named, in place where there are no more than before.

        Beams of a prompt differ in their last tokens alone: what a row holds of the same writer
        as the one it becomes a copy of stays where it is.
        """
        if len(rows) > self.rows:
            self._take(rows)
            return
        before = self._written()
        filled, after = self._copied(rows, before)
        differ = filled & (after != before[: len(rows)])
        owners, blocks = differ.unflatten(1, (-1, self.block)).any(-1).nonzero(as_tuple=True)
        heads, slots = self.layers[0].keys.shape[1:3]
        count = slots // self.block
        each = torch.arange(heads, device=self.device) * count + blocks[:, None]
        taken = (rows[owners, None] * (heads * count) + each).flatten()
        places = (owners[:, None] * (heads * count) + each).flatten()
        for layer in self.layers:
            for held in (layer.keys, layer.values):
                flat = held.view(self.rows * heads * count, -1)
                if passes.usable(flat):
                    passes.move_blocks(flat, taken, places)
                else:
                    flat.index_copy_(0, places, flat.index_select(0, taken))
        if len(rows) < self.rows:
            for layer in self.layers:
                layer.keys, layer.values = layer.keys[: len(rows)], layer.values[: len(rows)]
        self._settle(rows, after)

    def _take(self, rows: Tensor) -> None:
        """Copies of the rows named, in new memory."""
        _, after = self._copied(rows, self._written())
        used = self.used()
        for layer in self.layers:
            layer.keys, layer.values = (_taken(x, rows, used) for x in (layer.keys, layer.values))
        self._settle(rows, after)

    def _written(self) -> Tensor:
        """Who wrote each slot in use, (B, used): equal numbers, equal keys and values.

        A row gets a number of its own whenever rows move.
        """
        if self._writers is None:
            self._number(self.rows)
            return self._own[:, None].expand(-1, self.used())
        known = self._writers[:, : self.used()]  # the longest row may have left
        since = self.used() - known.shape[1]
        return torch.cat((known, self._own[:, None].expand(-1, since)), 1)

    def _copied(self, rows: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Which slots copies of the rows named fill, and who wrote them, each (B, used)."""
        self._number(len(rows))
        slots = torch.arange(self.used(), device=self.device)
        ends = self.length if self.lengths is None else self.lengths[rows, None]
        filled = (slots < ends).expand(len(rows), -1)
        return filled, torch.where(filled, before[rows], self._own[:, None])

    def _number(self, rows: int) -> None:
        first = int(self._own[-1]) + 1 if len(self._own) else 0
        self._own = torch.arange(first, first + rows, device=self.device)

    def _settle(self, rows: Tensor, writers: Tensor) -> None:
        """Counts the rows named as those that are there."""
        self._slots, self._writers = None, writers
        if self.lengths is not None:
            self.set_lengths(self.lengths[rows])


def _taken(held: Tensor, rows: Tensor, used: int) -> Tensor:
    """Copies of rows of (B, H, C, ...) in new memory, of which the rest is zero and not touched."""
    made = held.new_zeros(len(rows), *held.shape[1:])
    made[:, :, :used] = held[:, :, :used][rows]
    return made


@dataclass(eq=False)
class LayerCache:
    """One layer's part of a `Cache`; `memory` holds cross-attention's keys and values.

    Of those there may be fewer than rows: then each serves as many rows, side by side.
    """

    owner: Cache
    keys: Tensor  # (B, H, C, W)
    values: Tensor  # (B, H, C, W)
    memory: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new keys and values, each (B, H, T, W); returns all so far, (B, H, K, W)."""
        start, new = self.owner.length, keys.shape[2]
        if self.owner.lengths is None:
            self.keys.narrow(2, start, new).copy_(keys)
            self.values.narrow(2, start, new).copy_(values)
        else:
            slots = self.owner.slots(new)[:, None, :, None].expand_as(keys)
            self.keys.scatter_(2, slots, keys.to(self.keys.dtype))
            self.values.scatter_(2, slots, values.to(self.values.dtype))
        return self.keys.narrow(2, 0, start + new), self.values.narrow(2, 0, start + new)
