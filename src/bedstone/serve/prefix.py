"""Keys and values of what prompts begin with, kept so that the next prompt needn't be read again.

A prefix is a chain of blocks of `BLOCK` tokens. A block's name is a SHA-256 hash of its tokens and
of the block before it; the chain begins with a hash of all that must not be mixed: the model, the
adapter, whose key the request has, and a salt that the request names. So nobody learns from the
time of an answer what others have sent (CVE-2025-46570). Tokens are compared as well as hashes.

A block is a copy of a row's slots, of every layer: a row is a plain place in memory, and copying 64
tokens takes a hundredth of the time of reading them.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bedstone.generation.rows import BLOCK, parts
from bedstone.nn.cache import Cache


@dataclass(frozen=True)
class Block:
    """Some tokens with their keys and values.

    Attributes:
        before: the name of the block before it, or of the chain's beginning.
        tokens: `BLOCK` ids.
        held: of each layer its keys and values at these slots, (H, BLOCK, ...).
    """

    before: bytes
    tokens: tuple[int, ...]
    held: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.held)


class PrefixCache:
    """Blocks of prompts, the least recently used of which give way to new ones.

    Args:
        limit: bytes of all blocks; 0 keeps none.

    Attributes:
        queries: tokens of prompts that were looked up.
        hits: those of them that needn't be read.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self.queries = self.hits = 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()

    def find(self, scope: bytes, tokens: Sequence[int]) -> list[Block]:
        """The blocks that a prompt begins with, in order; at least its last token stays unread."""
        self.queries += len(tokens)
        found: list[Block] = []
        names: list[bytes] = []
        name = scope
        for start in range(0, len(tokens) - BLOCK, BLOCK):
            part = tuple(tokens[start : start + BLOCK])
            before, name = name, _name(name, part)
            block = self._blocks.get(name)
            if block is None or (block.before, block.tokens) != (before, part):
                break
            found.append(block)
            names.append(name)
        for each in reversed(names):  # the beginning of a chain is the last to go
            self._blocks.move_to_end(each)
        self.hits += BLOCK * len(found)
        return found

    def keep(self, scope: bytes, tokens: Sequence[int], cache: Cache, row: int) -> None:
        """Keeps whole blocks of a row's first tokens, which are in the cache."""
        if not self.limit:
            return
        names = []
        name = scope
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            part = tuple(tokens[start : start + BLOCK])
            before, name = name, _name(name, part)
            if name not in self._blocks:
                held = tuple(each[:, start : start + BLOCK].clone() for each in parts(cache, row))
                block = Block(before, part, held)
                if block.nbytes > self.limit:
                    return
                self._blocks[name] = block
                self.nbytes += block.nbytes
            names.append(name)
        for each in reversed(names):
            self._blocks.move_to_end(each)
        while self.nbytes > self.limit:
            _, block = self._blocks.popitem(last=False)
            self.nbytes -= block.nbytes

    def clear(self) -> None:
        self._blocks.clear()
        self.nbytes = 0


def scope_of(**fields: str | None) -> bytes:
    """The name that a chain of blocks begins with: a hash of fields with their names.

    Written as JSON, so that no two sets of fields are one text.
    """
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()


def _name(before: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(before + np.array(tokens, np.int64).tobytes()).digest()


@torch.inference_mode()
def restore(blocks: Sequence[Block], cache: Cache, row: int) -> int:
    """Copies blocks into a row's first slots; how many tokens these are."""
    places = parts(cache, row)
    for number, block in enumerate(blocks):
        start = number * BLOCK
        for place, held in zip(places, block.held, strict=True):
            place[:, start : start + BLOCK].copy_(held)
    return BLOCK * len(blocks)
