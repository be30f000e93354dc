"""The shape of a diffusion transformer: what can be chosen of it, and what each layout settles."""

import contextlib
import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.dit.config import GATED, DiTConfig, divided
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import AdaZero, Block, Context, PreNorm, Stack, zeroed
from bedstone.nn.conditioning import (
    CentredMemory,
    MemoryProjection,
    NumberEmbedding,
    PlainNorm,
    PooledMemory,
    SharedModulation,
    SizeEmbedding,
    Whitening,
)
from bedstone.nn.convolution import FullResolutionIn, FullResolutionOut
from bedstone.nn.layers import ACTIVATIONS, MLP, Activation, GatedMLP, RMSNorm
from bedstone.nn.masks import Both, Causal, Full, Mask, Padding
from bedstone.nn.patches import OverlapEmbed, PatchEmbed, grid_of, unpatchify
from bedstone.nn.positions import GridRotary, GridSinusoids, LearntGrid

# What a DiT can be given: shapes that fit its configuration, classes that it knows.


def check_inputs(
    config: DiTConfig,
    x: Tensor,
    classes: Tensor | None,
    memory: Tensor | None,
    keep: Tensor | None,
    embedding: Tensor | None = None,
    beside: Tensor | None = None,
) -> None:
    """Raises BedstoneError where a network of `config` can't read these."""
    rows, sizes = len(x), tuple(x.shape[2:])
    if len(sizes) != len(config.size) or x.shape[1] != config.channels:
        raise BedstoneError(
            f"x: has the shape {list(x.shape)}; this network reads signals of {config.channels} "
            f"channels and {len(config.size)} dimensions, (rows, channels, sizes)."
        )
    if sizes != config.size:
        divided(sizes, config.patches, "x")
        if config.positions == "learnt":
            raise BedstoneError(
                f"x: has the sizes {list(sizes)}; this network has learnt the places of "
                f"{list(config.size)} alone. Give it that size, or train one with sincos positions."
            )
    if classes is not None:
        _check_classes(config, classes, rows)
    if embedding is not None and tuple(embedding.shape) != (rows, config.embedding_width):
        reads = f"one of width {config.embedding_width}" if config.embedding_width else "none"
        raise BedstoneError(
            f"embedding: has the shape {list(embedding.shape)}; this network reads {reads} for "
            f"each of {rows} rows. Take the CLIP that it was trained with."
        )
    read = (rows, config.beside, *sizes) if config.beside else None
    if read != (None if beside is None else tuple(beside.shape)):
        given = "none was given" if beside is None else f"has the shape {list(beside.shape)}"
        wanted = f"signals of {list(read)} beside x" if read else "nothing beside x"
        raise BedstoneError(
            f"beside: {given}; this network reads {wanted}. One that enlarges images is the part "
            "`upsampler` of an unCLIP."
        )
    if memory is None:
        if config.layout == "pixart" and config.memory_width:
            raise BedstoneError("memory: none was given; a PixArt reads the states of a text.")
        return
    if not config.memory_width:
        raise BedstoneError("memory: was given, but this network has no cross-attention to text.")
    if memory.dim() != 3 or len(memory) != rows or memory.shape[2] != config.memory_width:
        raise BedstoneError(
            f"memory: has the shape {list(memory.shape)}; this network reads a text's states of "
            f"width {config.memory_width} for each of {rows} rows. Take the text encoder that it "
            "was trained with."
        )
    if keep is not None and keep.shape != memory.shape[:2]:
        raise BedstoneError(
            f"memory_keep: has the shape {list(keep.shape)}; expected {list(memory.shape[:2])}, "
            "True where a state of the memory is real."
        )


def _check_classes(config: DiTConfig, classes: Tensor, rows: int) -> None:
    if not config.classes and config.layout != "dit":
        raise BedstoneError("classes: were given, but this network was made without any.")
    if classes.shape != (rows,):
        raise BedstoneError(
            f"classes: have the shape {list(classes.shape)}; expected one number for each of "
            f"{rows} rows."
        )
    # On a GPU a look at the numbers waits for all work before it, at every step.
    if classes.device.type != "cpu" or torch.compiler.is_compiling() or not rows:
        return
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high > config.classes:
        raise BedstoneError(
            f"classes: {low if low < 0 else high} is out of range; this network has the classes 0 "
            f"to {config.classes - 1}, and {config.classes} for none."
        )


# The parts of a DiT: what it is told, its blocks, its last layer.
#
# Shapes: B batch, T patches, M tokens of a text, D width, P samples of a patch.

FINAL_EPS = 1e-6
_GATES: dict[str, Activation] = {"swiglu": F.silu, "geglu": F.gelu}


class Conditions(nn.Module):
    """What a signal's denoising is told, but for the text's tokens, as one vector (B, D)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        shift = 1 if config.layout == "dit" else 0
        self.time = NumberEmbedding(width, shift=shift, scale=config.time_scale)
        named = config.classes or config.layout == "dit"
        self.none = config.classes
        self.classes = nn.Embedding(config.classes + 1, width) if named else None
        pooled = config.memory_width and config.pooled
        self.pooled = PooledMemory(config.memory_width, width) if pooled else None
        self.told_size = SizeEmbedding(width) if config.told_size else None
        wide = config.embedding_width
        self.embedding = nn.Linear(wide, width) if wide else None

    def forward(
        self,
        t: Tensor,
        classes: Tensor | None,
        memory: Tensor | None,
        keep: Tensor | None,
        told_size: Tensor | None,
        embedding: Tensor | None,
    ) -> Tensor:
        vector = self.time(t)
        if self.embedding is not None and embedding is not None:
            vector = vector + self.embedding(embedding)
        if self.classes is not None:
            if classes is None:
                classes = torch.full_like(t, self.none, dtype=torch.long)
            vector = vector + self.classes(classes)
        if self.pooled is not None and memory is not None:
            vector = vector + self.pooled(memory, keep)
        if self.told_size is not None and told_size is not None:
            vector = vector + self.told_size(told_size)
        return vector


class Text(nn.Module):
    """The states that cross-attention reads, and which of them are real."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        wide = config.width if config.projected else config.memory_width
        own = config.layout == "bedstone_dit"
        self.project = MemoryProjection(config.memory_width, wide) if config.projected else None
        # One more state, read beside any text, and alone where there is none.
        self.nothing = (
            nn.Parameter(nn.init.normal_(torch.empty(1, 1, wide), std=0.02)) if own else None
        )
        self.tokens = config.embedding_tokens if config.embedding_width else 0
        read = config.embedding_width, self.tokens * wide
        self.embedding = nn.Linear(*read) if self.tokens else None

    def forward(
        self, memory: Tensor | None, keep: Tensor | None, rows: int, embedding: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, M, width read) and (B, M) bool, None where all are real."""
        if memory is not None and self.project is not None:
            memory = self.project(memory)
        if self.nothing is None:
            assert memory is not None
            # A row that keeps nothing sees all, as a bias on all of its scores has it there.
            return memory, None if keep is None else keep | ~keep.any(1, keepdim=True)
        always = self.nothing.expand(rows, -1, -1)
        if self.embedding is not None and embedding is not None:
            read = self.embedding(embedding).unflatten(1, (self.tokens, -1))
            always = torch.cat((always.to(read.dtype), read), 1)
        if memory is None:
            return always, None
        memory = torch.cat((always.to(memory.dtype), memory), 1)
        return memory, None if keep is None else F.pad(keep, (always.shape[1], 0), value=True)


class Final(nn.Module):
    """The last states to what is predicted of each patch, (B, T, D) to (B, T, P)."""

    def __init__(self, config: DiTConfig, outputs: int) -> None:
        super().__init__()
        width = config.width
        self.norm = PlainNorm(width, FINAL_EPS)
        self.shared = config.modulation == "shared"
        self.modulation: nn.Module = (
            SharedModulation(width, 2, None) if self.shared else nn.Linear(width, 2 * width)
        )
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        modulation = self.modulation(vector if self.shared else F.silu(vector)).to(x.dtype)
        shift, scale = modulation[:, None].chunk(2, dim=-1)  # (B, 1, D)
        return self.out(torch.addcmul(shift, self.norm(x), 1 + scale))


def block(config: DiTConfig) -> Block:
    """Self-attention, cross-attention where there is text, MLP."""
    width, own = config.width, config.layout == "bedstone_dit"
    norm = partial(RMSNorm, config.head_width)
    attn = SelfAttention(
        width,
        config.heads,
        head_width=config.head_width,
        bias=config.qkv_bias,
        out_bias=True,
        q_norm=norm() if config.qk_norm else None,
        k_norm=norm() if config.qk_norm else None,
    )
    mlp: nn.Module
    if config.activation in GATED:
        mlp = GatedMLP(width, config.hidden, _GATES[config.activation], bias=True)
    else:
        mlp = MLP(width, config.hidden, ACTIVATIONS[config.activation])
    parts: dict[str, nn.Module] = {"attn": _modulated(config, attn, 0)}
    if config.memory_width:
        cross = CrossAttention(
            width,
            config.heads,
            memory_width=width if config.projected else config.memory_width,
            head_width=config.head_width,
            bias=config.qkv_bias,
            out_bias=True,
        )
        # PixArt reads the text by the states as they are
        before = PlainNorm(width, config.norm_eps) if own else nn.Identity()
        parts["cross"] = PreNorm(before, cross, config.dropout)
    parts["mlp"] = _modulated(config, mlp, 1)
    return Block(**parts)


def _modulated(config: DiTConfig, sublayer: nn.Module, part: int) -> AdaZero:
    width = config.width
    # diffusers' DiT has its own number inside the first norm alone
    eps = FINAL_EPS if config.layout == "dit" and part == 0 else config.norm_eps
    shared = SharedModulation(width, 3, part) if config.modulation == "shared" else None
    return AdaZero(width, PlainNorm(width, eps), sublayer, shared, config.dropout)


# DiT: a transformer that maps a noisy signal and its time to what is predicted of it.
#
# One network, three layouts: `dit` (Peebles and Xie, 2023), told a class; `pixart` (Chen et al.,
# 2024), told a text that it reads by cross-attention; `bedstone_dit`, for training from scratch on
# small machines: signals of 1 to 3 dimensions, class and text, rotary places, QK-norm, long skips
# (U-ViT, Bao et al., 2023), patches that overlap, convolutions around them (UViT, Hoogeboom et al.,
# 2023).
#
# Shapes: B batch, C channels, S the sizes of a signal, T patches, M tokens of a text, D width.

# Pixels of a picture for each of a latent, where the size is told and nobody says it: those of
# every published PixArt's autoencoder.
LATENT = 8


class DiT(nn.Module):
    """Signals (B, C, *S) at times (B,) to what is predicted of them, (B, out_channels, *S)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patches
        sides, seen = len(config.size), config.fine or config.channels_in
        self.fine_in = (
            FullResolutionIn(sides, config.channels_in, config.fine) if config.fine else None
        )
        self.patches = (
            OverlapEmbed(patch, seen, width, config.conv_in)
            if config.conv_in
            else PatchEmbed(patch, seen, width)
        )
        self.positions: nn.Module | None = None
        if config.positions == "sincos":
            self.positions = GridSinusoids(config.grid, width, config.interpolation)
        elif config.positions == "learnt":
            self.positions = LearntGrid(config.tokens, width)
        self.rotary = (
            GridRotary(config.grid, config.head_width, config.rotary_base)
            if config.rotary
            else None
        )
        # diffusers' DiT embeds time and class anew in each block
        count = config.layers if config.layout == "dit" else 1
        self.conditions = nn.ModuleList([Conditions(config) for _ in range(count)])
        shared = config.modulation == "shared"
        self.modulation = nn.Linear(width, 6 * width) if shared else None
        centred = config.memory_width and config.layout == "bedstone_dit"
        self.centred = CentredMemory(config.memory_width) if centred else None
        wide = config.embedding_width
        self.whitening = Whitening(wide) if wide and config.embedding_whitened else None
        self.text = Text(config) if config.memory_width else None
        self.stack = Stack([block(config) for _ in range(config.layers)])
        skips = config.layers // 2 if config.skips else 0
        self.skips = nn.ModuleList([nn.Linear(width, width) for _ in range(skips)])
        outputs = config.out_channels
        self.final = Final(config, (config.fine or outputs) * math.prod(patch))
        self.fine_out = FullResolutionOut(sides, config.fine, outputs) if config.fine else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        classes: Tensor | None = None,
        memory: Tensor | None = None,
        memory_keep: Tensor | None = None,
        told_size: Tensor | None = None,
        embedding: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """What is predicted of `x`, (B, out_channels, *S), in its dtype.

        Args:
            x: noisy signals, (B, C, *S). Other sizes than the configured are read too, unless
                positions are learnt.
            t: the numbers that times are told by, (B,) or one for all.
            classes: (B,) int64; the number `config.classes`, or None, is no class.
            memory: states of a text, (B, M, memory width), or None where there is none.
            memory_keep: (B, M) bool, True where a state is real. A row that keeps none has no
                text.
            told_size: (B, 3) height, width and height / width of the pictures in pixels, where
                the layout tells it; None takes that of `x`, a latent.
            embedding: of an image, (B, E), where the network reads one; zeros, or None, are none.
            beside: (B, config.beside, *S) read beside `x`, where the network reads that.

        Raises:
            BedstoneError: shapes that don't fit, a class out of range.
        """
        check_inputs(self.config, x, classes, memory, memory_keep, embedding, beside)
        if embedding is None and self.config.embedding_width:
            embedding = x.new_zeros(len(x), self.config.embedding_width)
        if self.whitening is not None:
            embedding = self.whitening(embedding)
        rows, grid = len(x), grid_of(x.shape[2:], self.config.patches)
        t = t.expand(rows)
        if self.config.told_size and told_size is None:
            high, wide = (LATENT * side for side in x.shape[2:])
            told_size = torch.tensor([[high, wide, high / wide]], device=x.device).expand(rows, -1)
        if self.centred is not None and memory is not None:
            memory = self.centred(memory, memory_keep)
        given = (t, classes, memory, memory_keep, told_size, embedding)
        vectors = [conditions(*given) for conditions in self.conditions]
        context = self._context(grid, rows, memory, memory_keep, embedding)
        read = x if beside is None else torch.cat((x, beside.to(x.dtype)), 1)
        seen = read if self.fine_in is None else self.fine_in(read)
        tokens = self.patches(seen).to(x.dtype)
        if self.positions is not None:
            tokens = tokens + self.positions(grid).to(x.dtype)
        tokens = self._blocks(tokens, context, [self._condition(vector) for vector in vectors])
        out = self.final(tokens, vectors[0])
        out = unpatchify(out, self.config.patches, grid, channels_last=True)
        if self.fine_out is not None:
            out = self.fine_out(out, seen)
        return out.to(x.dtype)

    def _condition(self, vector: Tensor) -> Tensor:
        """What blocks are modulated by: the vector (B, D), or six of them for all blocks."""
        active = F.silu(vector)
        return active if self.modulation is None else self.modulation(active)

    def _context(
        self,
        grid: tuple[int, ...],
        rows: int,
        memory: Tensor | None,
        keep: Tensor | None,
        embedding: Tensor | None,
    ) -> Context:
        rotation = None if self.rotary is None else self.rotary(grid)
        if self.text is None:
            # both said: a compiler can't follow the default's factory
            return Context(mask=Full(), rotation=rotation, memory_mask=Full())
        memory, keep = self.text(memory, keep, rows, embedding)
        seen: Mask = Full() if keep is None else Padding(keep)
        return Context(mask=Full(), rotation=rotation, memory=memory, memory_mask=seen)

    def _blocks(self, x: Tensor, context: Context, conditions: list[Tensor]) -> Tensor:
        """All blocks, each with its condition; early states reach late blocks by the skips."""
        kept: list[Tensor] = []
        count, late = len(self.skips), len(self.stack) - len(self.skips)
        for index, each in enumerate(self.stack):
            if index >= late:
                # U-ViT maps both side by side; here `x` stays whole, in fp32 under autocast too
                x = x + self.skips[index - late](kept.pop()).to(x.dtype)
            own = conditions[index] if len(conditions) > 1 else conditions[0]
            x = each(x, replace(context, condition=own))
            if index < count:
                kept.append(x)
        return x


def make(config: DiTConfig) -> DiT:
    """A DiT whose weights are still to be filled."""
    return DiT(config)


def build(config: DiTConfig, *, seed: int | None = None) -> DiT:
    """A DiT with fresh weights, drawn from `seed` if one is given.

    As DiT has them: every block starts as the identity, and what is predicted at first is zero.
    """
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(network.patches.weight.flatten(1))  # a view: as the product it is
    for conditions in network.conditions:
        for module in conditions.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
    _shut(network)
    return network


def _shut(network: Any) -> None:
    """Zeros wherever something joins the residual stream, and in what comes out."""
    linears = [network.final.out, network.final.modulation, network.modulation, *network.skips]
    if network.fine_out is not None:
        zeroed(network.fine_out.out)
    for each in network.stack:
        parts = dict(each.named_children())
        linears += [parts[name].modulation for name in ("attn", "mlp")]
        if "cross" in parts:
            linears.append(parts["cross"].sublayer.out)
    for linear in linears:
        if isinstance(linear, nn.Linear):
            zeroed(linear)


# A denoiser with the encoder of its condition.
#
# Shapes: B rows, C channels, S sizes of a signal, T tokens, M memories of width Dm.


class Conditioned(nn.Module):
    """A denoiser with the text encoder that reads its condition.

    Noisy signals (B, C, *S), times (B,) and a condition to what the denoiser predicts.

    Args:
        denoiser: a DiT.
        text: ids (B, T) to states (B, T, Dm), by its method `states`; None where no words are
            read.
        frozen: whether `text` keeps its weights.
    """

    def __init__(
        self, denoiser: nn.Module, text: nn.Module | None = None, *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.denoiser, self.text = denoiser, text
        self.frozen = frozen
        if text is not None and frozen:
            text.requires_grad_(False).eval()

    @property
    def config(self) -> Any:
        """The denoiser's."""
        return self.denoiser.config

    def train(self, mode: bool = True) -> "Conditioned":
        """A frozen reader of words has no dropout either."""
        super().train(mode)
        if self.text is not None and self.frozen:
            self.text.eval()
        return self

    def read_condition(
        self,
        classes: Tensor | None = None,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
        embedding: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """A class or text as the denoiser takes it, computed once for all sampling steps.

        Args:
            classes: (B,) int64.
            ids: (B, T) tokens of texts.
            keep: (B, T) bool, which of them are words.
            embedding: (B, E) of an image.
            beside: (B, channels, *S) read beside the noisy signal.
        """
        given = {"classes": classes, "embedding": embedding, "beside": beside}
        condition = {name: value for name, value in given.items() if value is not None}
        if ids is None:
            return condition
        reader: Any = self.text
        if reader is None:
            raise ValueError("this network reads no words")
        if keep is None:
            keep = torch.ones_like(ids, dtype=torch.bool)
        causal = getattr(reader, "causal", False)
        mask = Both(Causal(), Padding(keep)) if causal else Padding(keep)
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            states = reader.states(ids, mask=mask)
        return {**condition, "memory": states, "memory_keep": keep}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor | None = None,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
        embedding: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """What is predicted of `x` at the told times `t`: (B, C or 2 C, *S)."""
        return self.denoiser(x, t, **self.read_condition(classes, ids, keep, embedding, beside))
