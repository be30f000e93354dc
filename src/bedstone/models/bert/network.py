"""BERT: an encoder that maps token ids to states, and its heads.

One network, three published layouts: `bert` (Devlin et al., 2019), `roberta` (Liu et al., 2019)
and `distilbert` (Sanh et al., 2019). They differ in positions, segments and heads; the blocks are
those of the Transformer: PostNorm(self), PostNorm(MLP), all with biases.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.heads import Head, HeadConfig, Headed, PretrainingHeads
from bedstone.nn.attention import SelfAttention
from bedstone.nn.blocks import Block, Context, PostNorm, Stack, lowered
from bedstone.nn.dropout import Dropout
from bedstone.nn.layers import ACTIVATIONS, MLP, LayerNorm
from bedstone.nn.masks import Full, Mask, Padding
from bedstone.nn.positions import LearnedPositions
from bedstone.settings import Settings, number, one_of, share, whole

LAYOUTS = ("bert", "roberta", "distilbert")


@dataclass(frozen=True)
class BertConfig(Settings):
    """The shape of a BERT.

    Attributes:
        layout: which published layout it has: bert, roberta or distilbert.
        vocab_size: tokens in the vocabulary, V.
        width: of the states, D.
        layers: blocks.
        heads: of attention; they divide `width`.
        hidden: width inside the MLP; 0 takes 4 * width.
        context: the longest row it is made for, in tokens.
        segments: kinds of segments (`token_type_ids`); None is as the layout has it.
        norm_eps: added to the variance inside norms.
        activation: by its published name.
        dropout: on embeddings, the residual stream and before the head's outputs, in training.
        attention_dropout: on attention weights, in training.
        pad_id: the id that pads; roberta counts its positions on from it.
        tied: whether the word head shares the embedding's weights.
        head: what stands on it.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="bert")
    vocab_size: int = whole(1, default=8192)
    width: int = whole(1, default=256)
    layers: int = whole(1, default=4)
    heads: int = whole(1, default=4)
    hidden: int = whole(0, default=0)
    context: int = whole(1, default=512)
    segments: int | None = None
    norm_eps: float = number(0.0, open_least=True, default=1e-12)
    activation: str = one_of(*ACTIVATIONS, default="gelu")
    dropout: float = share(below_one=True, default=0.1)
    attention_dropout: float = share(below_one=True, default=0.1)
    pad_id: int | None = None
    tied: bool = True
    head: HeadConfig = field(default_factory=partial(HeadConfig, "pretraining"))

    def __post_init__(self) -> None:
        super().__post_init__()
        fill = partial(object.__setattr__, self)
        if not self.hidden:
            fill("hidden", 4 * self.width)
        if self.pad_id is None:
            fill("pad_id", 1 if self.layout == "roberta" else 0)
        if self.segments is None:
            fill("segments", {"bert": 2, "roberta": 1, "distilbert": 0}[self.layout])
        if self.width % self.heads:
            raise BedstoneError(
                f"model.heads: {self.heads} doesn't divide the width {self.width}; choose a "
                "divisor."
            )
        if self.layout == "distilbert" and self.segments:
            raise BedstoneError("model.segments: the distilbert layout has none; leave it out.")
        if self.layout != "bert" and self.head.kind == "pretraining":
            raise BedstoneError(
                f"model.head: the {self.layout} layout has no pretraining heads (masked words and "
                "next sentence); take head.kind: language, or the bert layout."
            )

    @property
    def first_position(self) -> int:
        """The index of a row's first position in the table: after the padding's, in roberta."""
        return (self.pad_id or 0) + 1 if self.layout == "roberta" else 0


class Bert(Headed):
    """Token ids (B, T) to what its head gives: states (B, T, D) where it has none."""

    segmented = True
    narrows = True

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        norm = partial(LayerNorm, config.width, eps=config.norm_eps)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = LearnedPositions(config.context + config.first_position, config.width)
        self.segments = LearnedPositions(config.segments, config.width) if config.segments else None
        self.norm = norm()
        self.dropout = Dropout(config.dropout)

        def block() -> Block:
            attention = SelfAttention(
                config.width,
                config.heads,
                bias=True,
                out_bias=True,
                dropout=config.attention_dropout,
            )
            mlp = MLP(config.width, config.hidden, ACTIVATIONS[config.activation])
            return Block(
                attn=PostNorm(norm(), attention, config.dropout),
                mlp=PostNorm(norm(), mlp, config.dropout),
            )

        self.stack = Stack(block() for _ in range(config.layers))
        self.head = make_head(config)
        self.tie()

    make_head = staticmethod(lambda config: make_head(config))

    @property
    def ties(self) -> dict[str, str]:
        where = {"language": "head.out.weight", "pretraining": "head.words.out.weight"}
        copy = where.get(self.config.head.kind)
        return {copy: "embed.weight"} if copy and self.config.tied else {}

    def states(
        self,
        ids: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        types: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states, (B, T, D); or (B, M, D), those of `read`.

        Args:
            ids: token ids, (B, T).
            mask: which tokens are seen; all where None.
            positions: (B or 1, T), from 0 at the start of each row; None counts 0, 1, 2, ...
            types: which segment a token is of, (B, T); None says 0, the first.
            read: (M,) tokens of every row whose states are asked for; the last block does the
                others' part alone. None asks for all.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.embed(ids) + self.positions(positions + self.config.first_position)
        if self.segments is not None:
            x = x + (self.segments.weight[0] if types is None else self.segments(types))
        x = self.dropout(self.norm(x))
        context = Context(mask=mask or Full())
        if read is None:
            return self.stack(x, context)
        *blocks, last = self.stack
        for index, block in enumerate(blocks):
            x = block(x, context.for_layer(index))
        return _narrowed(last, x, context.for_layer(len(blocks)), read)

    def forward(
        self,
        ids: Tensor,
        keep: Tensor | None = None,
        *,
        types: Tensor | None = None,
        mask: Mask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the head gives for a padded batch.

        Args:
            ids: token ids, (B, T).
            keep: (B, T) bool, True where a token is real; None says all are.
            types, mask, positions: as for `states`; `mask` takes the place of `keep` there.

        Returns:
            states (B, T, D), pooled states (B, D), or logits: of words (B, T, V), labels of rows
            (B, L), labels of tokens (B, T, L), spans (B, T, 2); a pair of them in pretraining.
        """
        if mask is None and keep is not None:
            mask = Padding(keep)
        return self.read(self.states(ids, mask=mask, positions=positions, types=types), keep)


def _narrowed(block: nn.Module, x: Tensor, context: Context, read: Tensor) -> Tensor:
    """A block's states at `read`, (B, T, D) to (B, M, D): all are attended, the rest left out."""
    parts: Any = block
    attn = parts["attn"]
    if type(attn) is not PostNorm or type(attn.sublayer) is not SelfAttention:
        return block(x, context).index_select(1, read)  # edited: for inference, say
    mixed = attn.sublayer.mix(lowered(x), context).index_select(1, read)
    took = attn.dropout(attn.sublayer.out(mixed)).to(x.dtype)
    return parts["mlp"](attn.norm(x.index_select(1, read) + took), context)


def make_head(config: BertConfig) -> nn.Module:
    """The head that a configuration asks for, as its layout has it."""
    width, kind, dropout = config.width, config.head.kind, config.dropout

    def words() -> Head:
        return Head(
            nn.Linear(width, config.vocab_size),
            dense=nn.Linear(width, width),
            activation=ACTIVATIONS[config.activation],
            norm=LayerNorm(width, eps=config.norm_eps),
        )

    def first(out: nn.Module) -> Head:
        distil, roberta = config.layout == "distilbert", config.layout == "roberta"
        return Head(
            out,
            reads="first",
            dense=nn.Linear(width, width),
            activation=torch.relu if distil else torch.tanh,
            dropout=dropout,
            early=dropout if roberta else 0.0,
        )

    if kind == "language":
        return words()
    if kind == "pretraining":
        return PretrainingHeads(words(), first(nn.Linear(width, 2)))
    if kind == "sequence":
        return first(nn.Linear(width, config.head.outputs))
    if kind in ("tokens", "spans"):
        return Head(nn.Linear(width, config.head.outputs), dropout=dropout)
    if kind == "pooled":
        return Head(
            nn.Identity(), reads="first", dense=nn.Linear(width, width), activation=torch.tanh
        )
    return nn.Identity()


def build(config: BertConfig, *, seed: int | None = None) -> Bert:
    """A BERT with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = Bert(config)
    initialise(network)
    return network


@torch.no_grad()
def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Matrices and embeddings from a normal distribution, biases zero (BERT, appendix A.2)."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding | LearnedPositions):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
