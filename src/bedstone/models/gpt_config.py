"""The shape of a GPT, and what each published layout allows of it."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bedstone.checks import at_least
from bedstone.errors import BedstoneError, nearest
from bedstone.models.heads import HeadConfig
from bedstone.nn.layers import ACTIVATIONS

# Which biases each published layout can have, its own first.
BIASES: dict[str, dict[str, tuple[bool, ...]]] = {
    "gpt2": {"qkv_bias": (True,), "out_bias": (True,), "mlp_bias": (True,)},
    "llama": {"qkv_bias": (False, True), "out_bias": (False, True), "mlp_bias": (False, True)},
    "mistral": {"qkv_bias": (False,), "out_bias": (False,), "mlp_bias": (False,)},
    "qwen2": {"qkv_bias": (True,), "out_bias": (False,), "mlp_bias": (False,)},
    "qwen3": {"qkv_bias": (False, True), "out_bias": (False, True), "mlp_bias": (False,)},
}


@dataclass(frozen=True)
class GPTConfig:
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
        dropout: on the residual stream and attention, in training.
        head: what stands on it; by default the logits of the next token.
    """

    layout: str = "qwen3"
    vocab_size: int = 8192
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 0
    head_width: int = 0
    hidden: int = 0
    context: int = 512
    norm_eps: float = 1e-6
    activation: str = ""
    tied: bool = True
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    rope_base: float = 10_000.0
    rope_scaling: dict[str, Any] = field(default_factory=dict)
    window: int | None = None
    window_layers: tuple[int, ...] | None = None
    dropout: float = 0.0
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if self.layout not in BIASES:
            raise BedstoneError(
                f"model.layout: {self.layout!r} is unknown{nearest(self.layout, BIASES)}."
            )
        plain = self.layout == "gpt2"
        fill = partial(object.__setattr__, self)
        if not self.activation:
            fill("activation", "gelu_new" if plain else "silu")
        for name, allowed in BIASES[self.layout].items():
            if getattr(self, name) is None:
                fill(name, allowed[0])
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
        sizes = ("vocab_size", "width", "layers", "heads", "head_width", "hidden", "context")
        at_least(self, 1, *sizes, "kv_heads", prefix="model.")
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
