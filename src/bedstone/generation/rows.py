"""The rows of a decoder: places for keys and values, and passes over tokens of any rows.

Whatever rows a pass reads, a row's logits are the same to the last bit. Over the engine that is
so by its making: each token is computed in one order, whatever stands beside it. Over torch,
whose products are summed otherwise for other shapes, each row is a batch of its own, and prompts
are cut at the same places always.

Shapes: M tokens of a pass, n of them whose logits are asked for, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bedstone.nn.cache import Cache
from bedstone.nn.fast.decoder import TOKENS, Decoder
from bedstone.nn.fast.panels import SIDE, up
from bedstone.runtime import check_finite

BLOCK = 64  # tokens; a multiple of the slots that stand together in an engine's cache


@dataclass(frozen=True)
class Part:
    """Tokens of one row to be read.

    Attributes:
        row: its place.
        start: how many tokens the row holds already.
        tokens: at least one.
        wanted: whether logits are asked for after "none", the "last" or "all" of them.
    """

    row: int
    start: int
    tokens: Sequence[int]
    wanted: str = "last"


class Rows(Protocol):
    """Places for keys and values of a decoder's rows.

    Attributes:
        count: of rows.
        capacity: tokens of a row.
        most: tokens of a pass.
        cut: prompts are read in pieces that end at multiples of it; None lets them end anywhere.
        exact: whether keys and values are the same bits whichever pass computed them.
    """

    count: int
    capacity: int
    most: int
    cut: int | None
    exact: bool

    def read(self, given: Sequence[Part]) -> Tensor:
        """Logits (n, V) after the tokens that are asked for, in order."""

    def place(self, row: int) -> tuple[Cache, int]:
        """The cache that holds a row, and which row of it that is."""


class EngineRows:
    """Rows over the C++ engine: one pass reads tokens of all."""

    cut: int | None = None
    exact = True
    most = TOKENS

    def __init__(self, decoder: Decoder, count: int, capacity: int) -> None:
        self.count, self.capacity = count, capacity
        self._decoder, self._cache = decoder, decoder.new_cache(count, capacity)

    def read(self, given: Sequence[Part]) -> Tensor:
        sizes = [len(part.tokens) for part in given]
        tokens = np.concatenate([np.asarray(part.tokens, np.int32) for part in given])
        owners = np.repeat([part.row for part in given], sizes)
        slots = np.concatenate([np.arange(p.start, p.start + len(p.tokens)) for p in given])
        wanted: list[int] = []
        for part, end in zip(given, np.cumsum(sizes).tolist(), strict=True):
            first = {"none": end, "last": end - 1, "all": end - len(part.tokens)}[part.wanted]
            wanted += range(first, end)
        found = self._decoder.read(tokens, owners, slots, np.array(wanted, np.int64), self._cache)
        check_finite(found.amax(-1) if len(found) else found, "the network's logits")
        return found

    def place(self, row: int) -> tuple[Cache, int]:
        return self._cache, row

    def copy(self, source: int, target: int, count: int) -> None:
        """Lets a row begin with the first `count` tokens of another."""
        slots = up(count, SIDE)  # keys of so many stand interleaved; those beyond are read anew
        pairs = zip(parts(self._cache, source), parts(self._cache, target), strict=True)
        for held, place in pairs:
            place[:, :slots].copy_(held[:, :slots])


class TorchRows:
    """Rows over torch: each has a cache of its own and is read by itself."""

    cut: int | None = BLOCK
    exact = False
    most = TOKENS

    def __init__(self, network: Any, count: int, capacity: int) -> None:
        self.count, self.capacity = count, capacity
        self._network = network
        self._caches: dict[int, Cache] = {}

    @torch.inference_mode()
    def read(self, given: Sequence[Part]) -> Tensor:
        found = []
        for part in given:
            cache, _ = self.place(part.row)
            # what is beyond was another's: a row begins anew in the cache of the one before
            cache.set_lengths(torch.tensor([part.start], device=cache.device))
            ids = torch.tensor([list(part.tokens)], device=cache.device)
            states = self._network.states(ids, cache=cache)[0]
            first = {"none": len(states), "last": len(states) - 1, "all": 0}[part.wanted]
            if first < len(states):
                found.append(self._network.head(states[first:]).float().cpu())
        logits = torch.cat(found) if found else torch.empty(0, self._network.config.vocab_size)
        check_finite(logits.amax(-1) if len(logits) else logits, "the network's logits")
        return logits

    def place(self, row: int) -> tuple[Cache, int]:
        if row not in self._caches:
            self._caches[row] = self._network.new_cache(1, self.capacity)
        return self._caches[row], 0


def parts(cache: Cache, row: int) -> list[Tensor]:
    """A row's keys and values of each layer, (H, C, ...): views."""
    return [each[row] for layer in cache.layers for each in (layer.keys, layer.values)]
