"""A GPT that sees: gated cross-attention between the parts of a GPT that stays as it is.

Flamingo (Alayrac et al., 2022, section 2.2): in every k-th block, between self-attention and MLP,
tokens attend to the states of pictures, and what they take is let through by tanh of a gate that
starts at zero. At the start the network is the GPT; without a picture it always is, to the last
bit: cross-attention is passed over. Only that attention, its gates and the norms before it learn.
A token sees the pictures that are named before it.

Shapes: P memories, n = m * P rows of text (row i reads memory i // m), T tokens, S states of a
memory, D width of the GPT, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models import gpt as gpts
from bedstone.models import map_tower
from bedstone.models.fused_text import FusedBlock
from bedstone.models.gpt import GPT
from bedstone.models.heads import HeadConfig, Headed
from bedstone.models.sighted_config import SightedConfig
from bedstone.models.sighted_memory import how_seen
from bedstone.nn.attention import CrossAttention
from bedstone.nn.cache import Cache
from bedstone.nn.layers import LayerNorm, RMSNorm
from bedstone.nn.masks import Mask
from bedstone.nn.residual import Gated
from bedstone.nn.stack import Block, Stack


class SightedGPT(Headed):
    """Token ids (n, T), with pictures or without, to logits of the next token (n, T, V)."""

    causal = True

    def __init__(self, config: SightedConfig, gpt: GPT, image: Any) -> None:
        """`image` has `states(pixels)`, (P, S, memory width); blocks of `gpt` are changed."""
        super().__init__()
        self.config = config
        self.gpt = gpt
        self.image = image
        if getattr(image, "pool", None) is not None:
            image.pool = None  # SigLIP's, which reads states where here text does
        self.look = LayerNorm(config.memory_width)
        gpt.stack = Stack(
            _seeing(config, block) if index in config.seeing else block
            for index, block in enumerate(gpt.stack)
        )

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        return self.gpt.head

    @property
    def ties(self) -> dict[str, str]:
        return {f"gpt.{copy}": f"gpt.{own}" for copy, own in self.gpt.ties.items()}

    def memory(self, pixels: Tensor) -> Tensor:
        """What text reads of pictures (P, 3, H, W): (P, S, memory width)."""
        return self.look(self.image.states(pixels))

    def states(
        self,
        ids: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        memory: Tensor | None = None,
        named: Tensor | None = None,
    ) -> Tensor:
        """The GPT's last hidden states, (n, T, D), before the head.

        Args:
            ids, mask, positions: as for `GPT.states`.
            cache: as there; what it knows of a memory is read where none is given.
            memory: (P, S, memory width), P dividing n; None reads the GPT alone.
            named: (P, S) the slot of the first token that sees each state, NEVER for padding
                (`sighted_memory.placed`); None shows all of it to all.

        Raises:
            BedstoneError: the memory doesn't fit the rows.
        """
        if memory is None and (cache is None or not cache.length):
            return self.gpt.states(ids, mask=mask, positions=positions, cache=cache)
        if memory is not None and (not len(memory) or len(ids) % len(memory)):
            raise BedstoneError(
                f"memory: {len(memory)} were given for {len(ids)} rows of text; expected as many, "
                "or a number that divides it: neighbouring rows share one."
            )
        seen = how_seen(len(ids), ids.shape[1], memory, named, cache)
        return self.gpt.states(
            ids, mask=mask, positions=positions, cache=cache, memory=memory, memory_mask=seen
        )

    def forward(
        self, ids: Tensor, keep: Tensor | None = None, *, pixels: Tensor | None = None, **known: Any
    ) -> Tensor:
        """Logits of the next token at every position, (n, T, V).

        Args:
            ids: token ids, (n, T).
            keep: not read: padding stands on the right, where nobody sees it.
            pixels: (P, 3, H, W), P dividing n; None shows none.
            known: as for `states`.
        """
        if pixels is not None:
            known["memory"] = self.memory(pixels)
        return self.head(self.states(ids, **known))

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty key/value cache for `batch` rows of up to `capacity` tokens."""
        return self.gpt.new_cache(batch, capacity, dtype)

    def writer(self, memory: Tensor, named: Tensor | None = None) -> "SightedWriter":
        """The network over a memory, as generation takes it; neighbouring rows may share one."""
        return SightedWriter(self, memory, named)

    def learning(self) -> None:
        """Freezes all but cross-attention, its gates and norms, and what makes the memory."""
        self.requires_grad_(False)
        self.look.requires_grad_(True)
        for index in self.config.seeing:
            self.gpt.stack[index]["cross"].requires_grad_(True)
        if isinstance(self.image, map_tower.MapTower):  # what a CLIP's ResNet doesn't have
            for part in (self.image.positions, self.image.project, self.image.norm):
                part.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SightedGPT":
        """What is frozen stays in evaluation: its dropout, and statistics of batches."""
        frozen = not self.gpt.embed.weight.requires_grad
        super().train(mode and not frozen)
        return self

    def gpt_only(self) -> GPT:
        """The GPT as it was, without eyes; it shares its weights with this network."""
        shape = self.gpt.config
        with torch.device("meta"):
            plain = gpts.LAYOUTS[shape.layout](shape)
        for name in ("embed", "positions", "rotary", "norm", "head"):
            setattr(plain, name, getattr(self.gpt, name))
        for index, block in enumerate(self.gpt.stack):
            kept = {name: part for name, part in block.items() if name != "cross"}  # type: ignore[operator]
            plain.stack[index] = Block(**kept)
        return plain.train(self.training)

    def set_head(self, head: HeadConfig, seed: int | None = None) -> None:
        """Raises BedstoneError: it writes, and can have no other head."""
        raise BedstoneError(
            f"head: a GPT that sees has no head for {head.kind}; take the GPT alone "
            "(network.gpt_only())."
        )


class SightedWriter:
    """A sighted GPT over one memory, with all that `generation.autoregress` asks of a network."""

    def __init__(self, network: SightedGPT, memory: Tensor, named: Tensor | None) -> None:
        self.config = network.config.gpt
        self.head = network.head
        self.memory, self.named = memory, named
        self._network = network

    def states(
        self,
        ids: Tensor,
        *,
        cache: Cache | None = None,
        mask: Mask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(n, T, D) of tokens (n, T) that see what is before them and the memory."""
        return self._network.states(
            ids,
            mask=mask,
            positions=positions,
            cache=cache,
            # once the cache knows it, rows may leave and memories with them
            memory=None if cache is not None and cache.length else self.memory,
            named=self.named,
        )

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache."""
        return self._network.new_cache(batch, capacity)


def _seeing(config: SightedConfig, block: Any) -> FusedBlock:
    """A block of the GPT with gated cross-attention between its parts."""
    shape = config.gpt
    norm = LayerNorm if shape.layout == "gpt2" else RMSNorm
    cross = CrossAttention(
        shape.width,
        config.cross_heads,
        head_width=shape.head_width,
        memory_width=config.memory_width,
    )
    gated = Gated(norm(shape.width, eps=shape.norm_eps), cross)
    return FusedBlock(attn=block["attn"], cross=gated, mlp=block["mlp"])


def make(config: SightedConfig) -> SightedGPT:
    """One whose weights are still to be filled."""
    gpt = gpts.LAYOUTS[config.gpt.layout](config.gpt)
    return SightedGPT(config, gpt, map_tower.make(config.image, config.memory_width))


def build(config: SightedConfig, *, seed: int | None = None) -> SightedGPT:
    """One with fresh weights, drawn from `seed` if one is given; all gates are shut."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    gpts.initialise(network.gpt)  # cross-attention too: its matrices are drawn, none is zero
    map_tower.start(network.image)
    return network
