"""FlamingoGPT: a frozen GPT with gated cross-attention to images.

Flamingo (Alayrac et al., 2022, section 2.2): in every k-th block, between self-attention and MLP,
tokens attend to image states, scaled by the tanh of a gate that starts at zero. At the start the
network equals the GPT; without an image it always does, bit for bit, as cross-attention is skipped.
Only that attention, its gates and the norms before it are trained. A token sees the images that the
text refers to before it.

Shapes: P memories, n = m * P rows of text (row i reads memory i // m), T tokens, S states of a
memory, D width of the GPT, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.gpt import network as gpts
from bedstone.models.gpt.network import GPT, GPTConfig
from bedstone.models.heads import HeadConfig, Headed
from bedstone.models.memory import MemoryBlock
from bedstone.models.resnet import network as map_tower
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit.network import ViTConfig
from bedstone.nn.attention import CrossAttention, check_memory
from bedstone.nn.blocks import Block, Gated, Stack
from bedstone.nn.cache import Cache
from bedstone.nn.fast.decoder import NEVER, LazyDecoder, MemoryDecoder
from bedstone.nn.fast.program import DecoderParts
from bedstone.nn.layers import LayerNorm, RMSNorm
from bedstone.nn.masks import Full, Mask
from bedstone.runtime import without_weights
from bedstone.settings import Settings, whole

FLAMINGO = "flamingo"  # the layout's name
OLD_NAMES = ("sighted_gpt",)  # what older recipes call it


@dataclass(frozen=True)
class FlamingoConfig(Settings):
    """The shape of a FlamingoGPT.

    Attributes:
        layout: flamingo.
        gpt: of the GPT.
        image: of the tower for pictures.
        every: blocks between two that attend to pictures: 1 is all, 2 every second.
        cross_heads: of that attention; 0 takes the GPT's.
        memory_width: of the states that it reads; 0 takes what the tower gives. A ResNet's map is
            brought to it.
    """

    section: ClassVar[str] = "model."

    layout: str = FLAMINGO
    gpt: GPTConfig = field(default_factory=GPTConfig)
    image: ViTConfig | ResNetConfig = field(default_factory=ViTConfig)
    every: int = whole(1, default=1)
    cross_heads: int = whole(0, default=0)
    memory_width: int = whole(0, default=0)

    def __post_init__(self) -> None:
        if self.layout in OLD_NAMES:
            object.__setattr__(self, "layout", FLAMINGO)
        if self.layout != FLAMINGO:
            raise BedstoneError(f"model.layout: {self.layout!r} was given; expected {FLAMINGO}.")
        super().__post_init__()
        if self.every > self.gpt.layers:
            raise BedstoneError(
                f"model.every: {self.every} was given and the GPT has {self.gpt.layers} blocks; "
                "none would see. Give a number up to that."
            )
        if self.gpt.head.kind != "language":
            raise BedstoneError(
                f"model.gpt: its head is for {self.gpt.head.kind}; only one that writes can be "
                "given eyes. Name a GPT with a language head."
            )
        if isinstance(self.image, ViTConfig) and self.memory_width not in (0, self.image.width):
            raise BedstoneError(
                f"model.memory_width: {self.memory_width} was given and the tower's states are "
                f"{self.image.width} wide; leave it out."
            )
        if isinstance(self.image, ViTConfig) and not self.image.layout:
            object.__setattr__(self, "image", replace(self.image, layout="vit"))
        usual = {
            "cross_heads": self.gpt.heads,
            "memory_width": map_tower.states_width(self.image),
        }
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def vocab_size(self) -> int:
        return self.gpt.vocab_size

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return self.gpt.context

    @property
    def width(self) -> int:
        return self.gpt.width

    @property
    def layers(self) -> int:
        return self.gpt.layers

    @property
    def heads(self) -> int:
        return self.gpt.heads

    @property
    def head(self) -> HeadConfig:
        return self.gpt.head

    @property
    def seeing(self) -> tuple[int, ...]:
        """The blocks that attend to pictures."""
        return tuple(range(self.every - 1, self.layers, self.every))


# Several images in a text: side by side in a row's memory, each visible from its first token on.
#
# Shapes: P memories, n = m * P rows of text, T tokens, S states of a memory.


@dataclass(frozen=True)
class Seen:
    """Which states of its memory each token sees: `keep` is (P, m * T, S) bool."""

    keep: Tensor

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.keep  # queries and keys are all there are


def how_seen(
    rows: int, length: int, memory: Tensor | None, first_token: Tensor | None, cache: Cache | None
) -> Mask:
    """What `length` more tokens of n rows see of their memories.

    Args:
        memory: (P, S, width), P dividing n; None where the cache knows it.
        first_token: (P, S) the slot of the first token that sees each state, NEVER for padding;
        None
            shows all of it.
        cache: keeps the first tokens of a memory that is new to it: rows may leave, and memories
            with them.
    """
    if cache is not None:
        if memory is not None:
            cache.memory_keep = first_token
        first_token = cache.memory_keep
    if first_token is None:
        return Full()
    new = torch.arange(length, device=first_token.device)[None]
    slots = new if cache is None else cache.slots(length)  # (1 or n, T)
    slots = slots.expand(rows, -1).reshape(len(first_token), -1)  # (P, m * T)
    seen = slots[..., None] >= first_token[:, None]
    return Full() if bool(seen.all()) else Seen(seen)


def placed(memory: Tensor, places: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The pictures of each row side by side, and from which slot on each is seen.

    Args:
        memory: states of all pictures, in the rows' order, (pictures, S, memory width).
        places: for each of n rows, the slots of the tokens that its images stand before.

    Returns:
        memory (n, L S, memory width) and `first_token` (n, L S), of L pictures in the richest row.

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
    first_token = torch.full((len(places), most), NEVER, device=memory.device)
    first = 0
    for row, slots in enumerate(places):
        side[row, : len(slots)] = memory[first : first + len(slots)]
        first_token[row, : len(slots)] = torch.tensor(slots, dtype=torch.long)
        first += len(slots)
    return side.flatten(1, 2), first_token.repeat_interleave(each, 1)


class FlamingoGPT(Headed):
    """Token ids (n, T), with pictures or without, to logits of the next token (n, T, V)."""

    causal = True
    abilities = frozenset({"captions", "answers"})
    engine: LazyDecoder | None = None  # of a network that is ready for inference

    def __init__(self, config: FlamingoConfig, gpt: GPT, image: Any) -> None:
        """`image` has `states(pixels)`, (P, S, memory width); blocks of `gpt` are changed."""
        super().__init__()
        self.config = config
        self.gpt = gpt
        self.image = image
        if getattr(image, "pool", None) is not None:
            image.pool = None  # SigLIP's, which reads states where here text does
        self.image_norm = LayerNorm(config.memory_width)
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
        return self.image_norm(self.image.states(pixels))

    def states(
        self,
        ids: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        memory: Tensor | None = None,
        first_token: Tensor | None = None,
    ) -> Tensor:
        """The GPT's last hidden states, (n, T, D), before the head.

        Args:
            ids, mask, positions: as for `GPT.states`.
            cache: as there; what it knows of a memory is read where none is given.
            memory: (P, S, memory width), P dividing n; None reads the GPT alone.
            first_token: (P, S) the slot of the first token that sees each state, NEVER for padding
                (`placed`); None shows all of it to all.

        Raises:
            BedstoneError: the memory doesn't fit the rows.
        """
        if memory is None and (cache is None or not cache.length):
            return self.gpt.states(ids, mask=mask, positions=positions, cache=cache)
        if memory is not None:
            check_memory(len(memory), len(ids))
        seen = how_seen(len(ids), ids.shape[1], memory, first_token, cache)
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

    def writer(self, memory: Tensor, first_token: Tensor | None = None) -> "FlamingoDecoder":
        """The network over a memory, as generation takes it; neighbouring rows may share one."""
        return FlamingoDecoder(self, memory, first_token)

    def decoder_parts(self) -> DecoderParts:
        """The GPT's modules as the engine reads them, cross-attention among them."""
        return self.gpt.decoder_parts()

    def learning(self) -> None:
        """Freezes all but cross-attention, its gates and norms, and what makes the memory."""
        self.requires_grad_(False)
        self.image_norm.requires_grad_(True)
        for index in self.config.seeing:
            self.gpt.stack[index]["cross"].requires_grad_(True)
        if isinstance(self.image, map_tower.ResNetTokens):  # what a CLIP's ResNet doesn't have
            for part in (self.image.positions, self.image.project, self.image.norm):
                part.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FlamingoGPT":
        """What is frozen stays in evaluation: its dropout, and statistics of batches."""
        frozen = not any(weight.requires_grad for weight in self.gpt.norm.parameters())
        super().train(mode and not frozen)
        return self

    def gpt_only(self) -> GPT:
        """The GPT as it was, without eyes; it shares its weights with this network."""
        shape = self.gpt.config
        with without_weights():
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


class FlamingoDecoder:
    """A FlamingoGPT over one memory, with all that `generation.autoregress` asks of a network."""

    def __init__(self, network: FlamingoGPT, memory: Tensor, first_token: Tensor | None) -> None:
        self.config = network.config.gpt
        self.head = network.head
        self.memory, self.first_token = memory, first_token
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
            first_token=self.first_token,
        )

    def over_engine(self) -> MemoryDecoder | None:
        """The same over the engine, where that is possible."""
        engine = self._network.engine
        return None if engine is None else engine.over(self.memory, self.first_token)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache."""
        return self._network.new_cache(batch, capacity)


def _seeing(config: FlamingoConfig, block: Any) -> MemoryBlock:
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
    return MemoryBlock(attn=block["attn"], cross=gated, mlp=block["mlp"])


def make(config: FlamingoConfig) -> FlamingoGPT:
    """One whose weights are still to be filled."""
    gpt = gpts.LAYOUTS[config.gpt.layout](config.gpt)
    return FlamingoGPT(config, gpt, map_tower.make_tower(config.image, config.memory_width))


def build_flamingo(config: FlamingoConfig, *, seed: int | None = None) -> FlamingoGPT:
    """One with fresh weights, drawn from `seed` if one is given; all gates are shut."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    gpts.initialise(network.gpt)  # cross-attention too: its matrices are drawn, none is zero
    map_tower.start_tower(network.image)
    return network
