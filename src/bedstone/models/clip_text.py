"""The towers that read text, of CLIP and of SigLIP.

CLIP's (Radford et al., 2021, section 2.4) is a causal Transformer; a text's last token, its end,
stands for all of it. SigLIP's (Zhai et al., 2023) sees both ways, and reads rows that are padded
to its context, the padding not masked; their last token stands for all.

Shapes: n rows, N tokens of all rows, T tokens of a padded row, D width, F features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.models.heads import PackedRows
from bedstone.models.towers import blocks_of, check_shape, fill_shape
from bedstone.nn.context import Context
from bedstone.nn.layers import LayerNorm
from bedstone.nn.masks import Both, Causal, Documents, Full, Mask, Padding
from bedstone.nn.positions import LearnedPositions
from bedstone.nn.stack import Stack, stack_at

LAYOUTS = ("clip_text_model", "siglip_text_model")
# Old files of CLIP say this of the end token whatever its id: then a row's highest id is the end.
OLD_END = 2


@dataclass(frozen=True)
class TextConfig:
    """The shape of a text tower.

    Attributes:
        layout: clip_text_model or siglip_text_model; empty takes that of the CLIP it is part of.
        vocab_size: tokens in the vocabulary.
        context: the longest row it is made for, in tokens; SigLIP's rows all have that length.
        width: of the states, D.
        layers: blocks.
        heads: of attention; they divide `width`.
        hidden: width inside the MLP; 0 takes 4 * width.
        activation: by its published name; empty is as the layout has it.
        norm_eps: added to the variance inside norms; 0 is as the layout has it.
        attention_dropout: on attention weights, in training.
        bos_id, eos_id, pad_id: of the tokens that begin, end and pad a row. Where CLIP's `eos_id`
            is None, the highest id of a row ends it.
        features: what SigLIP's head gives, F; 0 takes `width`. CLIP's tower has no head.
    """

    layout: str = ""
    vocab_size: int = 49408
    context: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 0
    activation: str = ""
    norm_eps: float = 0.0
    attention_dropout: float = 0.0
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    features: int = 0

    def __post_init__(self) -> None:
        if self.layout and self.layout not in LAYOUTS:
            raise BedstoneError(
                f"text.layout: {self.layout!r} is unknown{nearest(self.layout, LAYOUTS)}."
            )
        if not self.layout:
            return  # what it is part of will say
        fill_shape(self)
        if not self.features:
            object.__setattr__(self, "features", self.width)
        check_shape(self, "text", ("vocab_size", "context", "features"))
        if self.features != self.width and self.layout == "clip_text_model":
            raise BedstoneError(
                f"text.features: {self.features} was given; CLIP's text tower gives its width "
                f"{self.width}. Leave it out, and set embed for what both towers come to."
            )

    @property
    def causal(self) -> bool:
        return self.layout == "clip_text_model"


class TextTower(nn.Module):
    """Rows of token ids to one vector each, (n, F), not normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = LearnedPositions(config.context, config.width)
        self.stack = Stack(blocks_of(config))
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.head = nn.Identity() if config.causal else nn.Linear(config.width, config.features)

    def states(
        self,
        ids: Tensor,
        *,
        mask: Mask | None = None,
        positions: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states, (n, T, D); or (n, M, D), those of the tokens `read`, (M,)."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.embed(ids) + self.positions(positions)
        seen = mask or (Causal() if self.causal else Full())
        return self.norm(stack_at(self.stack, x, Context(mask=seen), read))

    def packed_states(self, rows: PackedRows, read: Tensor | None = None) -> Tensor:
        """The last hidden states of rows laid end to end, (N, D); or of `read`, (M, D)."""
        mask = Documents(rows.documents, causal=self.causal)
        return self.states(rows.ids, mask=mask, positions=rows.positions, read=read)[0]

    def features(self, rows: Any) -> Tensor:
        """(n, F) of packed rows (`data.packing.Packed`): each read at its last token."""
        lengths = rows.lengths
        first = lengths[0]
        if all(length == first for length in lengths):  # a plain batch: no need to part them
            last = torch.tensor([first - 1], device=rows.ids.device)
            return self.head(self.states(rows.ids.view(len(lengths), first), read=last)[:, 0])
        last = torch.tensor(rows.starts[1:], device=rows.ids.device) - 1
        return self.head(self.packed_states(rows, last))

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """(n, F) of a padded batch of ids (n, T), as published.

        Args:
            keep: (n, T) bool, True where a token is real; None says all are.
        """
        mask: Mask | None = None
        if keep is not None:
            mask = Both(Causal(), Padding(keep)) if self.causal else Padding(keep)
        states = self.states(ids, mask=mask)
        return self.head(states[torch.arange(len(ids), device=ids.device), self._ends(ids)])

    def _ends(self, ids: Tensor) -> Tensor:
        """Which token of each row is read, (n,)."""
        if not self.causal:
            return ids.new_full((len(ids),), ids.shape[1] - 1)
        if self.config.eos_id is None:
            return ids.argmax(1)
        return (ids == self.config.eos_id).int().argmax(1)
