"""GPT: a decoder that maps token ids to logits of the next token.

One network, five published layouts, each a small function that picks its parts: `gpt2`
(Radford et al., 2019), `llama` (Touvron et al., 2023; 3.1 with its rope scaling), `mistral`
(Jiang et al., 2023), `qwen2` and `qwen3` (Yang et al., 2024 and 2025). `qwen3` is the
default for training from scratch: RMSNorm, rotary positions, QK-norm, gated MLP, grouped
key/value heads.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.models.heads import Head, HeadConfig, Headed
from bedstone.nn.attention import SelfAttention
from bedstone.nn.blocks import Block, Context, PreNorm, Stack
from bedstone.nn.cache import Cache
from bedstone.nn.fast.program import DecoderParts
from bedstone.nn.layers import ACTIVATIONS, MLP, GatedMLP, LayerNorm, RMSNorm
from bedstone.nn.masks import Causal, Documents, Full, Mask
from bedstone.nn.positions import LearnedPositions, Rotary, scaled_frequencies
from bedstone.nn.quantize import held_in
from bedstone.settings import Settings, number, one_of, optional, share, whole

# Which biases each published layout can have, its own first.
BIASES: dict[str, dict[str, tuple[bool, ...]]] = {
    "gpt2": {"qkv_bias": (True,), "out_bias": (True,), "mlp_bias": (True,)},
    "llama": {"qkv_bias": (False, True), "out_bias": (False, True), "mlp_bias": (False, True)},
    "mistral": {"qkv_bias": (False,), "out_bias": (False,), "mlp_bias": (False,)},
    "qwen2": {"qkv_bias": (True,), "out_bias": (False,), "mlp_bias": (False,)},
    "qwen3": {"qkv_bias": (False, True), "out_bias": (False, True), "mlp_bias": (False,)},
}


@dataclass(frozen=True)
class GPTConfig(Settings):
    """The shape of a GPT.

    Attributes:
        layout: which published layout it has: gpt2, llama, mistral, qwen2 or qwen3.
        vocab_size: tokens in the vocabulary, V.
        width: of the residual stream, D.
        layers: blocks.
        heads: query heads.
        kv_heads: key/value heads, dividing `heads`; 0 takes as many as `heads`.
        head_width: width of a head; 0 takes width / heads.
        hidden: width inside the MLP; 0 takes 4 * width, or 8/3 of it where the MLP is gated.
        context: the longest sequence it is made for, in tokens.
        norm_eps: added to the variance inside norms.
        activation: by its published name; empty is as the layout has it.
        tied: whether the head shares the embedding's weights.
        qkv_bias, out_bias, mlp_bias: whether those projections have biases; None is as the
            layout has it.
        rope_base: the base of rotary frequencies, `rope_theta`.
        rope_scaling: `rope_parameters` of the published configuration, beyond the base.
        window: width of the sliding window in tokens, None for none.
        window_layers: blocks that have the window; None says all.
        dropout: on the residual stream, in training.
        attention_dropout: on attention weights, in training; None is as `dropout`.
        embedding_dropout: on the sum of embeddings, where positions are learnt; None likewise.
        head: what stands on it; by default the logits of the next token.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*BIASES, default="qwen3")
    vocab_size: int = whole(1, default=8192)
    width: int = whole(1, default=256)
    layers: int = whole(1, default=4)
    heads: int = whole(1, default=4)
    kv_heads: int = whole(0, default=0)
    head_width: int = whole(0, default=0)
    hidden: int = whole(0, default=0)
    context: int = whole(1, default=512)
    norm_eps: float = number(0.0, open_least=True, default=1e-6)
    activation: str = ""
    tied: bool = True
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    rope_base: float = number(1.0, open_least=True, default=10_000.0)
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    window: int | None = None
    window_layers: tuple[int, ...] | None = None
    dropout: float = share(below_one=True, default=0.0)
    attention_dropout: float | None = optional(share(below_one=True))
    embedding_dropout: float | None = optional(share(below_one=True))
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = self.layout == "gpt2"
        fill = partial(object.__setattr__, self)
        if not self.activation:
            fill("activation", "gelu_new" if plain else "silu")
        for name, allowed in BIASES[self.layout].items():
            if getattr(self, name) is None:
                fill(name, allowed[0])
        for name in ("attention_dropout", "embedding_dropout"):
            if getattr(self, name) is None:
                fill(name, self.dropout)
        if not self.kv_heads:
            fill("kv_heads", self.heads)
        if not self.head_width:
            fill("head_width", self.width // max(self.heads, 1))
        if not self.hidden:
            # A gated MLP has three matrices for two; 8/3 keeps the parameters equal.
            fill("hidden", 4 * self.width if plain else -(-self.width * 8 // 3 // 32) * 32)
        self._check()

    def _check(self) -> None:
        """Raises BedstoneError for a shape that can't be built."""
        if self.heads % self.kv_heads:
            raise BedstoneError(
                f"model.kv_heads: {self.kv_heads} doesn't divide the {self.heads} heads; "
                "choose a divisor."
            )
        if self.head_width % 2 and self.layout != "gpt2":
            raise BedstoneError(
                f"model.head_width: {self.head_width} is odd; rotary positions turn pairs."
            )
        if self.layout == "gpt2" and self.width != self.heads * self.head_width:
            raise BedstoneError(
                f"model.width: {self.width} isn't heads * head_width = {self.heads} * "
                f"{self.head_width}, which the gpt2 layout asks for."
            )
        for name, allowed in BIASES[self.layout].items():
            if getattr(self, name) not in allowed:
                raise BedstoneError(
                    f"model.{name}: the {self.layout} layout has it {allowed[0]} only; "
                    "leave it out, or take the llama layout, which has both."
                )
        if self.out_bias != self.qkv_bias and self.layout in ("llama", "qwen3"):
            raise BedstoneError(
                f"model.out_bias: the {self.layout} layout has biases on all of attention or on "
                "none; set qkv_bias and out_bias alike."
            )
        if self.head.kind in ("pretraining", "pooled"):
            raise BedstoneError(
                f"model.head.kind: {self.head.kind!r} is an encoder's; a GPT has language, "
                "sequence, tokens, spans or states."
            )
        if self.activation not in ACTIVATIONS:
            raise BedstoneError(
                f"model.activation: {self.activation!r} is unknown"
                f"{nearest(self.activation, ACTIVATIONS)}."
            )

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one block."""
        everywhere = self.window_layers is None or layer in self.window_layers
        return self.window if everywhere else None


class GPT(Headed):
    """Token ids (B, T) to logits (B, T, V), or to what another head gives.

    Made of parts; `build` makes it from a config.
    """

    causal = True

    def __init__(
        self,
        config: GPTConfig,
        *,
        blocks: list[Block],
        norm: nn.Module,
        positions: LearnedPositions | None = None,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = positions
        self.rotary = rotary
        drops = config.embedding_dropout if positions is not None else None
        self.dropout = nn.Dropout(drops or 0.0)
        self.stack = Stack(blocks)
        self.norm = norm
        self.head = make_head(config)
        self.tie()

    make_head = staticmethod(lambda config: make_head(config))

    @property
    def ties(self) -> dict[str, str]:
        tied = self.config.tied and self.config.head.kind == "language"
        return {"head.weight": "embed.weight"} if tied else {}

    def states(
        self,
        ids: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        memory: Tensor | None = None,
        memory_mask: Mask | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states, (B, T, D), before the head.

        Args:
            ids: token ids, (B, T).
            mask: which tokens are seen; causal where None.
            positions: (B or 1, T); None counts on from what the cache holds.
            cache: keys and values of earlier tokens; new ones are added to it.
            memory, memory_mask: what cross-attention reads, where blocks have any
                (models.flamingo.network).
            keep: (B, T) bool, True where a token is real; read by rotary frequencies that depend
                on a row's length.
        """
        length = ids.shape[1]
        if cache is not None:
            cache.require(length)
        if positions is None:
            known = torch.arange(length, device=ids.device)[None]
            positions = known if cache is None else cache.slots(length)
        x = self.embed(ids)
        if self.positions is not None:
            x = self.dropout(x + self.positions(positions))
        rotation = None
        if self.rotary is not None:
            varies = self.rotary.frequencies.varies
            lengths = _lengths(positions, mask, cache, keep) if varies else None
            rotation = self.rotary(positions, lengths)
        context = Context(
            mask=mask or Causal(),
            rotation=rotation,
            memory=memory,
            memory_mask=memory_mask or Full(),
            cache=cache,
        )
        x = self.stack(x, context)
        if cache is not None:
            cache.advance(length)
        return self.norm(x)

    def forward(
        self,
        ids: Tensor,
        keep: Tensor | None = None,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits of the next token at every position, (B, T, V), or what another head gives.

        Args:
            keep: (B, T) bool, True where a token is real, for heads that read a row's last one;
                padding stands on the right, where a causal mask lets nobody see it.
            ids, mask, positions, cache: as for `states`.
        """
        states = self.states(ids, mask=mask, positions=positions, cache=cache, keep=keep)
        return self.read(states, keep)

    def decoder_parts(self) -> DecoderParts:
        """Its modules as the engine reads them."""
        return DecoderParts(
            self.config,
            self.embed,
            self.stack,
            self.head,
            tied=bool(self.ties),
            positions=self.positions,
            rotary=self.rotary,
            norm=self.norm,
        )

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty key/value cache for `batch` rows of up to `capacity` tokens."""
        shape, (usual, device) = self.config, held_in(self.embed)
        return Cache(
            shape.layers,
            batch,
            shape.kv_heads,
            capacity,
            shape.head_width,
            dtype=dtype or usual,
            device=device,
        )


def _lengths(
    positions: Tensor, mask: Mask | None, cache: Cache | None, keep: Tensor | None
) -> Tensor | None:
    """Tokens of each token's own sequence, (B or 1, T or 1); None where a row is one, all of it."""
    if cache is not None and cache.coming is not None:
        return cache.coming
    if isinstance(mask, Documents):
        return mask.lengths(positions)
    return None if keep is None else keep.sum(1, keepdim=True)


def make_head(config: GPTConfig) -> nn.Module:
    """The head that a configuration asks for; labels of a row are read at its last token."""
    width, kind = config.width, config.head.kind
    if kind == "language":
        return nn.Linear(width, config.vocab_size, bias=False)
    if kind == "sequence":
        return Head(nn.Linear(width, config.head.outputs, bias=False), reads="last")
    if kind in ("tokens", "spans"):
        return Head(nn.Linear(width, config.head.outputs), dropout=config.dropout)
    return nn.Identity()


def _attention(
    config: GPTConfig, layer: int, norm: Callable[[], nn.Module] = nn.Identity
) -> SelfAttention:
    """`norm` makes what each head's queries and keys go through."""
    return SelfAttention(
        config.width,
        config.heads,
        kv_heads=config.kv_heads,
        head_width=config.head_width,
        bias=bool(config.qkv_bias),
        out_bias=bool(config.out_bias),
        window=config.window_of(layer),
        dropout=config.attention_dropout or 0.0,
        q_norm=norm(),
        k_norm=norm(),
    )


def gpt2(config: GPTConfig) -> GPT:
    """LayerNorm, learned positions, a plain MLP, biases."""

    def norm() -> nn.Module:
        return LayerNorm(config.width, eps=config.norm_eps)

    def block(layer: int) -> Block:
        activation = ACTIVATIONS[config.activation]
        mlp = MLP(config.width, config.hidden, activation, bias=bool(config.mlp_bias))
        return Block(
            attn=PreNorm(norm(), _attention(config, layer), config.dropout),
            mlp=PreNorm(norm(), mlp, config.dropout),
        )

    return GPT(
        config,
        blocks=[block(layer) for layer in range(config.layers)],
        norm=norm(),
        positions=LearnedPositions(config.context, config.width),
    )


def llama(config: GPTConfig, *, head_norm: Callable[[], nn.Module] = nn.Identity) -> GPT:
    """RMSNorm, rotary positions, a gated MLP; mistral and qwen2 differ in numbers alone."""

    def norm() -> nn.Module:
        return RMSNorm(config.width, config.norm_eps)

    def block(layer: int) -> Block:
        activation = ACTIVATIONS[config.activation]
        mlp = GatedMLP(config.width, config.hidden, activation, bias=bool(config.mlp_bias))
        return Block(
            attn=PreNorm(norm(), _attention(config, layer, head_norm), config.dropout),
            mlp=PreNorm(norm(), mlp, config.dropout),
        )

    frequencies = scaled_frequencies(
        config.head_width, config.rope_base, config.rope_scaling, config.context
    )
    return GPT(
        config,
        blocks=[block(layer) for layer in range(config.layers)],
        norm=norm(),
        rotary=Rotary(frequencies),
    )


def qwen3(config: GPTConfig) -> GPT:
    """Llama with each head's queries and keys normalised."""
    return llama(config, head_norm=partial(RMSNorm, config.head_width, config.norm_eps))


LAYOUTS: dict[str, Callable[[GPTConfig], GPT]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": qwen3,
}


def build(config: GPTConfig, *, seed: int | None = None) -> GPT:
    """A GPT with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = LAYOUTS[config.layout](config)
    initialise(network)
    return network


@torch.no_grad()
def initialise(network: GPT) -> None:
    """Weights for training from scratch.

    Matrices are drawn with variance 1 / (3 * inputs), the embedding with standard deviation
    0.02, and what writes to the residual stream starts at zero, so that every block starts as
    the identity (as in modded-nanogpt and nanochat).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, SelfAttention):
            nn.init.zeros_(module.out.weight)
        elif isinstance(module, MLP | GatedMLP):
            nn.init.zeros_(module.down.weight)
    nn.init.normal_(network.embed.weight, std=0.02)
    if isinstance(network.head, nn.Linear) and not network.config.tied:
        nn.init.zeros_(network.head.weight)
