"""GPT: a decoder that maps token ids to logits of the next token.

One network, five published layouts, each a small function that picks its parts: `gpt2`
(Radford et al., 2019), `llama` (Touvron et al., 2023; 3.1 with its rope scaling), `mistral`
(Jiang et al., 2023), `qwen2` and `qwen3` (Yang et al., 2024 and 2025). `qwen3` is the
default for training from scratch: RMSNorm, rotary positions, QK-norm, gated MLP, grouped
key/value heads.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bedstone.models.gpt_config import GPTConfig
from bedstone.models.heads import Head, Headed
from bedstone.nn.attention import SelfAttention
from bedstone.nn.cache import Cache
from bedstone.nn.context import Context
from bedstone.nn.layers import ACTIVATIONS, MLP, GatedMLP, LayerNorm, RMSNorm
from bedstone.nn.masks import Causal, Full, Mask
from bedstone.nn.positions import LearnedPositions, Rotary
from bedstone.nn.residual import PreNorm
from bedstone.nn.rope_scaling import scaled_frequencies
from bedstone.nn.stack import Block, Stack


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
        self.dropout = nn.Dropout(config.dropout if positions is not None else 0.0)
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
    ) -> Tensor:
        """The last hidden states, (B, T, D), before the head.

        Args:
            ids: token ids, (B, T).
            mask: which tokens are seen; causal where None.
            positions: (B or 1, T); None counts on from what the cache holds.
            cache: keys and values of earlier tokens; new ones are added to it.
            memory, memory_mask: what cross-attention reads, where blocks have any
                (models.sighted_gpt).
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
        rotation = None if self.rotary is None else self.rotary(positions)
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
        return self.read(self.states(ids, mask=mask, positions=positions, cache=cache), keep)

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty key/value cache for `batch` rows of up to `capacity` tokens."""
        shape = self.config
        return Cache(
            shape.layers,
            batch,
            shape.kv_heads,
            capacity,
            shape.head_width,
            dtype=dtype or self.embed.weight.dtype,
            device=self.embed.weight.device,
        )


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
        dropout=config.dropout,
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
