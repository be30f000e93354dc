"""What flows beside `x` through a stack of sublayers."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from bedstone.nn.cache import Cache, LayerCache
from bedstone.nn.masks import Causal, Full, Mask


@dataclass(frozen=True)
class Context:
    """Each sublayer reads its own field and ignores the rest. B batch, T tokens, S memory.

    Attributes:
        mask: which tokens self-attention sees.
        rotation: (cos, sin), each (B or 1, 1, T, head width), turning queries and keys.
        bias: added to the scores of self-attention, (1, heads, T, keys).
        memory: states that cross-attention reads, (B, S, width of the memory).
        memory_mask: which of them it sees.
        condition: what AdaZero modulates by: timestep and class, (B, width), after its
            activation; (B, 6 width) where blocks share what they read of these.
        cache: keys and values of earlier tokens; a stack hands each block its own layer.
    """

    mask: Mask = field(default_factory=Causal)
    rotation: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Mask = field(default_factory=Full)
    condition: Tensor | None = None
    cache: Cache | LayerCache | None = None

    def for_layer(self, index: int) -> "Context":
        """The context of the block at `index`: the same, with its own part of the cache."""
        if not isinstance(self.cache, Cache):
            return self
        return replace(self, cache=self.cache.layers[index])
