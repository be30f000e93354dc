"""The configuration of an encoder-decoder: marian, bart, t5 and mt5."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.nn.layers import ACTIVATIONS
from bedstone.settings import Settings, number, one_of, optional, share, whole

LAYOUTS = ("marian", "bart", "t5", "mt5")
RELATIVE = ("t5", "mt5")  # layouts whose positions are a bias by distance, without a limit
UNLIMITED = 1 << 20  # tokens of a row there
KIND = "seq2seq"  # of the head


@dataclass(frozen=True)
class SideConfig:
    """The shape of the encoder, or of the decoder; fields as in `EncoderDecoderConfig`.

    Attributes:
        memory_width: of the states that the decoder reads.
        causal: whether it is the decoder.
    """

    layout: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    head_width: int
    hidden: int
    context: int
    causal: bool

    @property
    def memory_width(self) -> int:
        return self.width


@dataclass(frozen=True)
class EncoderDecoderConfig(Settings):
    """The shape of an encoder-decoder.

    Attributes:
        layout: which published layout it has: marian, bart, t5 (v1.0, v1.1, Flan) or mt5.
        vocab_size: tokens in the vocabulary of sources.
        target_vocab_size: of targets; 0 is that of sources.
        width: of the states, D.
        layers: blocks of the encoder.
        decoder_layers: of the decoder; 0 takes `layers`.
        heads: of attention in the encoder.
        decoder_heads: in the decoder; 0 takes `heads`.
        head_width: width of a head; 0 takes width / heads.
        hidden: width inside the encoder's MLPs; 0 takes 4 * width.
        decoder_hidden: inside the decoder's; 0 takes `hidden`.
        context: the longest row it is made for, in tokens; no limit of t5, whose positions are
            relative.
        norm_eps: added to the variance inside norms; None is as the layout has it.
        activation: by its published name; empty is as the layout has it.
        gated: whether MLPs are gated, as in T5 v1.1; None is as the layout has it.
        tied: whether the head shares the weights of the decoder's embedding.
        shared: whether encoder and decoder have one embedding.
        scaled_embedding: whether embeddings are multiplied by the root of `width`; None is as the
            layout has it.
        scaled_output: whether the head reads states divided by the root of `width`, as in T5 v1.0;
            None is as the layout has it.
        buckets: kinds of distance that have a bias of their own, in t5.
        distance: from which on all distances are one kind.
        dropout: on embeddings and the residual stream, in training.
        attention_dropout: on attention weights; None is 0, and `dropout` in t5.
        activation_dropout: inside MLPs; None likewise.
        bos_id, eos_id, pad_id: the tokens that begin, end and pad a text.
        start_id: the token that a target is generated after (`decoder_start_token_id`); None where
            a published file doesn't say.
        prefix: what the model expects before every source.
        prefixes: what it expects before a source, by the name of a task (`task_specific_params`);
            a model that is trained on goes on without them.
        head: its kind is seq2seq.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="marian")
    vocab_size: int = whole(1, default=8192)
    target_vocab_size: int = whole(0, default=0)
    width: int = whole(1, default=256)
    layers: int = whole(1, default=4)
    decoder_layers: int = whole(0, default=0)
    heads: int = whole(1, default=4)
    decoder_heads: int = whole(0, default=0)
    head_width: int = whole(0, default=0)
    hidden: int = whole(0, default=0)
    decoder_hidden: int = whole(0, default=0)
    context: int = whole(1, default=512)
    norm_eps: float | None = optional(number(0.0, open_least=True))
    activation: str = ""
    gated: bool | None = None
    tied: bool = True
    shared: bool = True
    scaled_embedding: bool | None = None
    scaled_output: bool | None = None
    buckets: int = whole(2, default=32)
    distance: int = whole(1, default=128)
    dropout: float = share(below_one=True, default=0.1)
    attention_dropout: float | None = optional(share(below_one=True))
    activation_dropout: float | None = optional(share(below_one=True))
    bos_id: int | None = optional(whole(0))
    eos_id: int = whole(0, default=1)
    pad_id: int = whole(0, default=0)
    start_id: int | None = optional(whole(0))
    prefix: str = ""
    prefixes: dict[str, str] = field(default_factory=dict)
    head: HeadConfig = field(default_factory=partial(HeadConfig, KIND))

    def __post_init__(self) -> None:
        super().__post_init__()
        relative = self.layout in RELATIVE
        gated = self.layout == "mt5" if self.gated is None else self.gated
        drop = self.dropout if relative else 0.0
        usual: dict[str, Any] = {
            "target_vocab_size": self.vocab_size,
            "decoder_layers": self.layers,
            "decoder_heads": self.heads,
            "head_width": self.width // self.heads,
            "hidden": 4 * self.width,
            "norm_eps": 1e-6 if relative else 1e-5,
            "activation": "gelu_new" if gated else "relu" if relative else "gelu",
            "gated": gated,
            "scaled_embedding": self.layout == "marian",
            "scaled_output": self.layout == "t5" and self.tied and not gated,
            "attention_dropout": drop,
            "activation_dropout": drop,
        }
        for name, value in usual.items():
            given = getattr(self, name)
            if given is None or given == "" or (type(given) is int and given == 0):
                object.__setattr__(self, name, value)
        if not self.decoder_hidden:
            object.__setattr__(self, "decoder_hidden", self.hidden)
        if not self.tied and not relative:  # published networks tie all embeddings or none
            object.__setattr__(self, "shared", False)
        self._check()

    def _check(self) -> None:
        """Raises BedstoneError for a shape that can't be built."""
        where = f"the {self.layout} layout"
        if self.layout in RELATIVE:
            fixed: dict[str, Any] = {
                "shared": True, "scaled_embedding": False, "decoder_heads": self.heads,
                "decoder_hidden": self.hidden, "target_vocab_size": self.vocab_size,
            }  # fmt: skip
            if self.layout == "mt5":
                fixed["scaled_output"] = False
        else:
            fixed = {"gated": False, "scaled_output": False, "norm_eps": 1e-5}
            fixed |= {"head_width": self.width // self.heads}
            if self.layout == "bart":
                fixed |= {"target_vocab_size": self.vocab_size, "shared": self.tied}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise BedstoneError(
                    f"model.{name}: {getattr(self, name)!r} was given; {where} has it {value!r} "
                    "only. Leave it out, or take another layout."
                )
        for name in ("heads", "decoder_heads"):
            if self.layout not in RELATIVE and self.width % getattr(self, name):
                raise BedstoneError(
                    f"model.{name}: {getattr(self, name)} doesn't divide the width {self.width}; "
                    "choose a divisor."
                )
        if self.layout == "marian" and self.width % 2:
            raise BedstoneError(f"model.width: {self.width} is odd; sinusoids come in pairs.")
        if self.shared and self.target_vocab_size != self.vocab_size:
            raise BedstoneError(
                f"model.target_vocab_size: {self.target_vocab_size} was given, and sources have "
                f"{self.vocab_size} tokens; one embedding for both (model.shared) needs one "
                "vocabulary. Set model.shared to false."
            )
        if self.activation not in ACTIVATIONS or (self.gated and self.activation == "gelu"):
            known = ", ".join(name for name in ACTIVATIONS if not self.gated or name != "gelu")
            raise BedstoneError(
                f"model.activation: {self.activation!r} was given; {where} takes one of {known}."
            )
        if self.buckets % 4:
            raise BedstoneError(
                f"model.buckets: {self.buckets} was given; expected a multiple of 4: half of them "
                "are for tokens that follow, and half of each are exact."
            )
        if self.head.kind != KIND:
            raise BedstoneError(
                f"model.head.kind: {self.head.kind!r} isn't an encoder-decoder's; it has {KIND}. "
                "Leave it out."
            )
        self._check_ids()

    def _check_ids(self) -> None:
        """Raises BedstoneError for special tokens that the vocabulary doesn't have."""
        for name in ("bos_id", "eos_id", "pad_id", "start_id"):
            number = getattr(self, name)
            least = min(self.vocab_size, self.target_vocab_size)
            if number is not None and number >= least:
                raise BedstoneError(
                    f"model.{name}: {number} was given; the vocabulary has {least} tokens. Raise "
                    "vocab_size, or name another token."
                )

    @property
    def encoder(self) -> SideConfig:
        """The shape of the encoder."""
        return SideConfig(
            self.layout, self.vocab_size, self.width, self.layers, self.heads, self.head_width,
            self.hidden, self._longest, causal=False,
        )  # fmt: skip

    @property
    def decoder(self) -> SideConfig:
        """The shape of the decoder."""
        head_width = self.head_width
        if self.layout not in RELATIVE:
            head_width = self.width // self.decoder_heads
        return SideConfig(
            self.layout, self.target_vocab_size, self.width, self.decoder_layers,
            self.decoder_heads, head_width, self.decoder_hidden, self._longest, causal=True,
        )  # fmt: skip

    @property
    def _longest(self) -> int:
        return UNLIMITED if self.layout in RELATIVE else self.context

    def with_dropout(self, share: float) -> "EncoderDecoderConfig":
        """The same with another dropout; T5 has one for all, and the others keep that of parts."""
        parts = self.attention_dropout, self.activation_dropout
        if self.layout in RELATIVE:
            parts = share, share
        return replace(self, dropout=share, attention_dropout=parts[0], activation_dropout=parts[1])

    def for_training(self) -> "EncoderDecoderConfig":
        """The same without what was published for other tasks, and with a start token."""
        start = self.start_id
        if start is None:
            start = self.eos_id if self.layout == "bart" else self.pad_id
        return replace(self, prefix="", prefixes={}, start_id=start)
