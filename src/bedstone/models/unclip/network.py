"""The prior of unCLIP: a CLIP's embedding of an image out of noise, given words (DALL-E 2, 2022).

A causal transformer reads the states of the words, their embedding, the time, the noisy embedding
and a query, in this order, and says at the query what the clean embedding is (Ramesh et al., 2022,
section 2.2). It is diffusers' `PriorTransformer`.

Embeddings that it denoises have mean 0 and variance 1 in each dimension; `mean` and `std` are those
of a CLIP's own. Embeddings of a CLIP are taken at length sqrt(E), or noise would drown them.

Shapes: B rows, T places of a text, E width of embeddings, D width.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.nn.attention import SelfAttention
from bedstone.nn.blocks import Block, Context, PreNorm, Stack, zeroed
from bedstone.nn.conditioning import NumberEmbedding
from bedstone.nn.layers import ACTIVATIONS, MLP, LayerNorm, normalise
from bedstone.nn.masks import Both, Causal, Full, Mask, Padding
from bedstone.nn.positions import LearnedPositions
from bedstone.settings import Settings, one_of, share, whole

LAYOUTS = ("prior_transformer",)
TIMES = ("silu", "gelu", "relu")  # activations of the time's MLP
OTHERS = 2  # tokens between the text and the noisy embedding: the text's embedding, the time


@dataclass(frozen=True)
class PriorConfig(Settings):
    """The shape of a `Prior`.

    Attributes:
        layout: prior_transformer.
        embed: width of the embeddings, E.
        text_tokens: places of a text, T.
        additional: positions beside those of the text.
        width: of the states, D.
        layers, heads: of the blocks.
        head_width: of a head; 0 takes width / heads.
        hidden: width inside the MLPs: four times D.
        norm_in: whether states are normed before the first block.
        norm_words: whether the words' embedding is normed before it is read.
        projects_words: whether words' states of width E are mapped to D; else they have that width.
        query: whether a token of its own is read at the end; else the noisy embedding's is.
        time_width: inside the MLP of the time; 0 takes D.
        time_activation: of that MLP.
        words_embed: width of the words' embedding; 0 takes E.
        out_embed: of what is predicted; 0 takes E.
        dropout: in training.
    """

    section: ClassVar[str] = "model."
    kind: ClassVar[str] = "diffusion"  # as settings of sampling name it

    layout: str = one_of(*LAYOUTS, default=LAYOUTS[0])
    embed: int = whole(1, default=256)
    text_tokens: int = whole(1, default=48)
    additional: int = whole(0, default=4)
    width: int = whole(1, default=256)
    layers: int = whole(1, default=4)
    heads: int = whole(1, default=4)
    head_width: int = whole(0, default=0)
    norm_in: bool = False
    norm_words: bool = False
    projects_words: bool = True
    query: bool = True
    time_width: int = whole(0, default=0)
    time_activation: str = one_of(*TIMES, default="silu")
    words_embed: int = whole(0, default=0)
    out_embed: int = whole(0, default=0)
    dropout: float = share(below_one=True, default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        usual = {"head_width": self.width // self.heads, "time_width": self.width}
        usual |= {"words_embed": self.embed, "out_embed": self.embed}
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if self.heads * self.head_width != self.width:
            raise BedstoneError(
                f"model.heads: {self.heads} heads of {self.head_width} don't make the width, "
                f"{self.width}; choose a number that divides it."
            )

    @property
    def hidden(self) -> int:
        return 4 * self.width

    @property
    def places(self) -> int:
        """Positions that are learnt."""
        return self.text_tokens + self.additional


@dataclass(frozen=True)
class WordsFirst:
    """Each token sees itself and those before it, but for the filling of texts.

    Attributes:
        keep: (B, S) bool, False at fillings.
    """

    keep: Tensor

    def dense(self, queries: Tensor, keys: Tensor) -> Tensor:
        causal = Causal().dense(queries, keys)
        # a filling sees itself, so that each sees something; nobody sees it
        return causal & self.keep[:, None, keys] | (queries[..., :, None] == keys)


class StandardisedPrior(nn.Module):
    """What priors share: the mean and deviation of a CLIP's embeddings, each of width E."""

    mean: Tensor  # (E,), of a CLIP's embeddings
    std: Tensor  # (E,)

    def __init__(self, embed: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed))
        self.register_buffer("std", torch.zeros(embed))

    def standardised(self, embeddings: Tensor) -> Tensor:
        """A CLIP's embeddings (B, E) as the prior makes them.

        Raises:
            BedstoneError: the prior has no statistics.
        """
        self.check()
        return (embeddings - self.mean) / self.std

    def restored(self, x: Tensor) -> Tensor:
        """Embeddings (B, E) that it made as the CLIP has them; raises as `standardised`."""
        self.check()
        return x * self.std + self.mean

    def check(self) -> None:
        """Raises BedstoneError where embeddings would all be the same: without statistics."""
        count = int((~(self.std > 0)).sum())
        if count or not (self.mean.isfinite().all() and self.std.isfinite().all()):
            raise BedstoneError(
                f"prior: its clip_std is 0 or not finite in {count:,} of {len(self.std):,} "
                "dimensions, so that all embeddings would be the same. Take weights with clip_mean "
                "and clip_std of the CLIP that it was trained with, or train one (bedstone "
                "pretrain, method: prior)."
            )

    @torch.no_grad()
    def fit(self, embeddings: Tensor, words: Tensor | None = None) -> None:
        """Takes the mean and deviation of embeddings (n, E) of images.

        Args:
            words: embeddings (n, E) of their words, where the prior reads how well they fit.

        Raises:
            BedstoneError: they don't differ, so that there is nothing to learn.
        """
        found = embeddings.double()
        std = found.std(0, correction=0)
        if not (std > 1e-6).all():
            raise BedstoneError(
                f"clip: gives the same embeddings of all images in {int((std <= 1e-6).sum()):,} of "
                f"{len(std):,} dimensions: it has learnt nothing. Train it longer, or name another."
            )
        self.mean.copy_(found.mean(0))
        self.std.copy_(std)


class Prior(StandardisedPrior):
    """Noisy embeddings (B, E) at times (B,) to the clean embeddings (B, E), both standardised.

    Embeddings of (B, N, E) are read as N tokens.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config.out_embed)
        self.config = config
        width = config.width
        self.time = NumberEmbedding(
            width,
            count=width,
            hidden=config.time_width,
            activation=ACTIVATIONS[config.time_activation],
        )
        self.noisy = nn.Linear(config.embed, width)
        self.words_norm = LayerNorm(config.words_embed) if config.norm_words else None
        self.words = nn.Linear(config.words_embed, width)
        self.text = nn.Linear(config.embed, width) if config.projects_words else None
        self.positions = LearnedPositions(config.places, width)
        self.query = nn.Parameter(torch.zeros(width)) if config.query else None
        self.norm_in = LayerNorm(width) if config.norm_in else None
        self.stack = Stack(_block(config) for _ in range(config.layers))
        self.norm = LayerNorm(width)
        self.out = nn.Linear(width, config.out_embed)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        words: Tensor,
        text: Tensor | None = None,
        text_keep: Tensor | None = None,
    ) -> Tensor:
        """The clean embeddings, of the shape of `x` (B, E) or (B, N, E).

        Args:
            t: timesteps, (B,) or one for all.
            words: the words' embedding, (B, E).
            text: the words' states, (B, T, E); there may be fewer than T with `text_keep`.
            text_keep: (B, T) bool, True where a state is of a word. With it tokens see those
                before them alone, without it all, as in diffusers.

        Raises:
            BedstoneError: shapes that don't fit.
        """
        rows = len(x)
        noisy = self.noisy(x if x.dim() == 3 else x[:, None])
        tokens = self._text(text, text_keep is not None, rows)
        before = 0 if tokens is None else tokens.shape[1]
        words = words if self.words_norm is None else self.words_norm(words)
        parts = [self.words(words)[:, None], self.time(t.expand(rows)).to(x.dtype)[:, None], noisy]
        parts = parts if tokens is None else [tokens, *parts]
        if self.query is not None:
            parts.append(self.query.expand(rows, 1, -1).to(x.dtype))
        states = torch.cat(parts, 1)
        states = states + self._places(before, states.shape[1])
        mask: Mask = Full()
        if text_keep is not None and tokens is not None:
            mask = WordsFirst(F.pad(text_keep, (0, states.shape[1] - before), value=True))
        states = states if self.norm_in is None else self.norm_in(states)
        states = self.norm(self.stack(states, Context(mask=mask)))
        if self.query is not None:
            return self.out(states[:, -1])
        found = self.out(states[:, before + OTHERS :])
        return found if x.dim() == 3 else found[:, 0]

    def _text(self, text: Tensor | None, masked: bool, rows: int) -> Tensor | None:
        """Words' states; fewer than the places of a text where fillings are masked."""
        config = self.config
        if text is None:
            if self.text is not None:
                raise BedstoneError("text: none was given; this prior reads the states of words.")
            return None
        wide = config.width if self.text is None else config.embed
        if text.dim() != 3 or text.shape[0] != rows or text.shape[2] != wide:
            raise BedstoneError(
                f"text: has the shape {list(text.shape)}; this prior reads states of width {wide} "
                f"for each of {rows} rows. Take the CLIP that it was trained with."
            )
        missing = config.text_tokens - text.shape[1]
        if missing < 0 or (missing and not masked):
            raise BedstoneError(
                f"text: has {text.shape[1]} states; this prior reads {config.text_tokens}, or "
                "fewer where text_keep says which are words."
            )
        return text if self.text is None else self.text(text)

    def _places(self, text: int, total: int) -> Tensor:
        """(S, D): what is added to the tokens, of which so many are a text's; nothing to those
        beside the noisy embeddings where positions are of these alone."""
        table: Tensor = self.positions.weight
        if 0 < text < self.config.text_tokens:  # as if fillings, which nobody sees, stood there
            table = torch.cat((table[:text], table[self.config.text_tokens :]))
        if len(table) < total:
            table = F.pad(table, (0, 0, text + OTHERS, int(self.query is not None)))
        if len(table) != total:
            raise BedstoneError(
                f"x: {total} tokens were given; this prior has {self.config.places} positions "
                f"(text_tokens + additional), for {self.config.text_tokens} states of a text."
            )
        return table


def _block(config: PriorConfig) -> Block:
    width = config.width
    attn = SelfAttention(
        width, config.heads, head_width=config.head_width, bias=True, out_bias=True
    )
    mlp = MLP(width, config.hidden, dropout=config.dropout)
    return Block(
        attn=PreNorm(LayerNorm(width), attn, config.dropout),
        mlp=PreNorm(LayerNorm(width), mlp, config.dropout),
    )


def make(config: PriorConfig) -> Prior:
    """A prior whose weights are still to be filled."""
    return Prior(config)


def build(config: PriorConfig, *, seed: int | None = None) -> Prior:
    """A prior with fresh weights, drawn from `seed` if one is given: each block begins as the
    identity, and what is predicted as the mean embedding."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    if network.query is not None:
        nn.init.normal_(network.query, std=0.02)
    for each in network.stack:
        parts: Any = each
        zeroed(parts["attn"].sublayer.out)
        zeroed(parts["mlp"].sublayer.down)
    zeroed(network.out)
    return network


# A CLIP's embeddings, and a prior that reads words by a CLIP.


def joint(vectors: Tensor) -> Tensor:
    """Vectors (..., E) of a CLIP at length sqrt(E): about 1 in each dimension."""
    return normalise(vectors.float()) * math.sqrt(vectors.shape[-1])


@torch.no_grad()
def read_words(clip: Any, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Texts' embeddings (B, E) at length sqrt(E) and their words' states (B, T, E) by a CLIP.

    States of another width are brought into the joint space by the CLIP's projection.

    Args:
        clip: a CLIP whose words see those before them.
        ids, keep: (B, T) tokens with those that begin and end a text, and which of them are real.
    """
    states = clip.text.states(ids, mask=Both(Causal(), Padding(keep)))
    last = states[torch.arange(len(ids), device=ids.device), keep.sum(1) - 1]
    vectors = joint(clip.text_projection(clip.text.head(last)))
    if states.shape[-1] != vectors.shape[-1]:
        states = clip.text_projection(states)
    return vectors, states


class ConditionedPrior(nn.Module):
    """A prior with the CLIP that reads its words: a denoiser as `diffusion.sample` samples one.

    Args:
        denoiser: the prior.
        clip: a CLIP, whose weights are no part of this module.
    """

    def __init__(self, denoiser: nn.Module, clip: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.read = functools.partial(read_words, clip)

    def read_condition(self, ids: Tensor, keep: Tensor, **beside: Tensor) -> dict[str, Tensor]:
        """What the prior reads of texts (B, T)."""
        words, states = self.read(ids, keep)
        return {"words": words, "text": states, "text_keep": keep}

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
        """The clean embeddings (B, E) of noisy ones at timesteps (B,)."""
        return self.denoiser(x, t, **self.read_condition(ids, keep))
