"""The autoregressive prior of unCLIP: a CLIP's embedding of an image as codes, written after words.

Ramesh et al., 2022, section 2.2: of embeddings the principal components are kept, the largest
first, each quantised into buckets. A causal transformer writes these codes one after another, after
the words' states, their embedding, and a bucket that says how well image and words fit, their
cosine; in sampling it is drawn from the upper half. Buckets hold equally many of the embeddings
that they were fitted to, and stand for their mean.

Shapes: B rows, T places of a text, E width of embeddings, N components, K buckets, F buckets of the
fit, D width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.gpt import network as gpt
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.unclip.network import StandardisedPrior
from bedstone.nn.cache import Cache
from bedstone.nn.positions import LearnedPositions
from bedstone.settings import Settings, one_of, share, whole

LAYOUTS = ("autoregressive_prior",)
OTHERS = 2  # vectors between the text and the codes: the text's embedding, the fit


@dataclass(frozen=True)
class CodePriorConfig(Settings):
    """The shape of a `CodePrior`.

    Attributes:
        layout: autoregressive_prior.
        embed: width of the embeddings, E.
        text_tokens: places of a text, T.
        components: that are kept, N.
        buckets: of a component, K.
        fits: buckets of the cosine of image and words, F.
        width, layers, heads, dropout: of the blocks, which are those of a qwen3.
    """

    section: ClassVar[str] = "model."
    kind: ClassVar[str] = "autoregressive"  # as settings of sampling name it

    layout: str = one_of(*LAYOUTS, default=LAYOUTS[0])
    embed: int = whole(1, default=256)
    text_tokens: int = whole(1, default=48)
    components: int = whole(1, default=32)
    buckets: int = whole(2, default=32)
    fits: int = whole(2, default=16)
    width: int = whole(1, default=256)
    layers: int = whole(1, default=4)
    heads: int = whole(1, default=4)
    dropout: float = share(below_one=True, default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components > self.embed:
            raise BedstoneError(
                f"model.components: {self.components} were given; the CLIP's embeddings of width "
                f"{self.embed} have no more than that. Take at most {self.embed}."
            )
        if self.width % self.heads:
            raise BedstoneError(
                f"model.heads: {self.heads} don't divide the width, {self.width}; choose a divisor."
            )
        self.core  # noqa: B018  # which checks the rest

    # As of a `PriorConfig`, which also knows others.
    @property
    def projects_words(self) -> bool:
        """Whether words' states of width E are mapped to D: always."""
        return True

    @property
    def words_embed(self) -> int:
        """Width of the words' embedding."""
        return self.embed

    @property
    def out_embed(self) -> int:
        """Width of what is made."""
        return self.embed

    @property
    def core(self) -> GPTConfig:
        """The shape of its blocks."""
        return GPTConfig(
            layout="qwen3",
            vocab_size=self.fits + self.components * self.buckets,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            context=self.text_tokens + OTHERS + self.components,
            dropout=self.dropout,
            tied=False,
            head=HeadConfig("states"),
        )


class TokensOrVectors(nn.Embedding):
    """Vectors (..., D) of tokens (...), or vectors as they are."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids if ids.is_floating_point() else super().forward(ids)


class CodePrior(StandardisedPrior):
    """Standardised embeddings (B, E), as codes of their components (B, N), after words."""

    axes: Tensor  # (N, E): principal components of standardised embeddings
    edges: Tensor  # (N, K - 1): between buckets, ascending
    values: Tensor  # (N, K): what a bucket stands for
    fit_edges: Tensor  # (F - 1,): between buckets of cosines

    def __init__(self, config: CodePriorConfig) -> None:
        super().__init__(config.embed)
        self.config = config
        count, buckets = config.components, config.buckets
        self.text = nn.Linear(config.embed, config.width)
        self.words = nn.Linear(config.embed, config.width)
        self.padding = LearnedPositions(config.text_tokens, config.width)
        self.core = gpt.qwen3(config.core)  # tokens: first the fits, then the codes
        self.core.embed = TokensOrVectors(config.core.vocab_size, config.width)
        self.head = nn.Linear(config.width, buckets, bias=False)
        self.register_buffer("axes", torch.zeros(count, config.embed))
        self.register_buffer("edges", torch.zeros(count, buckets - 1))
        self.register_buffer("values", torch.zeros(count, buckets))
        self.register_buffer("fit_edges", torch.zeros(config.fits - 1))

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        words: Tensor,
        text: Tensor,
        text_keep: Tensor | None = None,
    ) -> Tensor:
        """The embeddings (B, E) that are expected of standardised ones, each component of those
        before it.

        Args:
            t: isn't read, as there is no noise.
            words, text, text_keep: as for `prefix`.
        """
        codes = self.codes_of(x)
        fits = self.fits_of(self.restored(x), words)
        chances = self.logits(self.prefix(words, text, text_keep, fits), codes).softmax(-1)
        return (chances * self.values).sum(-1) @ self.axes

    # What it reads and writes.

    def prefix(self, words: Tensor, text: Tensor, keep: Tensor | None, fits: Tensor) -> Tensor:
        """What codes are written after, (B, T + 2, D).

        Args:
            words: the words' embedding, (B, E).
            text: the words' states, (B, t, E) of at most T; places without a word have a vector of
                their own.
            keep: (B, t) bool, True where a state is of a word; None where all are.
            fits: buckets (B,) of how well image and words fit.

        Raises:
            BedstoneError: shapes that don't fit.
        """
        config, missing = self.config, self.config.text_tokens - text.shape[1]
        if text.dim() != 3 or text.shape[0] != len(words) or text.shape[2] != config.embed:
            raise BedstoneError(
                f"text: has the shape {list(text.shape)}; this prior reads states of width "
                f"{config.embed} for each of {len(words)} rows. Take the CLIP that it was trained "
                "with."
            )
        if missing < 0:
            raise BedstoneError(
                f"text: has {text.shape[1]} states; this prior reads {config.text_tokens}."
            )
        real = text.new_ones(text.shape[:2]).bool() if keep is None else keep
        states = F.pad(self.text(text), (0, 0, 0, missing))
        states = torch.where(
            F.pad(real, (0, missing))[..., None], states, self.padding.weight.to(states.dtype)
        )
        beside = torch.stack((self.words(words), self.core.embed(fits).to(states.dtype)), 1)
        return torch.cat((states, beside), 1)

    def logits(self, prefix: Tensor, codes: Tensor) -> Tensor:
        """Logits of each code (B, N, K), of the prefix and the codes (B, N) before it."""
        before = self.core.embed(self.as_tokens(codes)[:, :-1]).to(prefix.dtype)
        states = self.core.states(torch.cat((prefix, before), 1))
        logits: Tensor = self.head(states[:, prefix.shape[1] - 1 :]).float()
        return logits

    def as_tokens(self, codes: Tensor, first: int = 0) -> Tensor:
        """The tokens (B, n) of codes (B, n) of the components from `first` on."""
        places = torch.arange(first, first + codes.shape[1], device=codes.device)
        return self.config.fits + places * self.config.buckets + codes

    def new_cache(self, batch: int) -> Cache:
        """An empty key/value cache for embeddings of `batch` rows."""
        return self.core.new_cache(batch, self.core.config.context)

    # Embeddings and codes.

    def codes_of(self, x: Tensor) -> Tensor:
        """The codes (B, N) of standardised embeddings (B, E), in fp32."""
        parts = (x.float() @ self.axes.float().T).T.contiguous()  # (N, B)
        return torch.searchsorted(self.edges.float(), parts, right=True).T.contiguous()

    def embeddings_of(self, codes: Tensor) -> Tensor:
        """Standardised embeddings (B, E) of codes (B, N)."""
        places = torch.arange(self.config.components, device=codes.device)
        return self.values[places, codes] @ self.axes

    def fits_of(self, embeddings: Tensor, words: Tensor) -> Tensor:
        """Buckets (B,) of how well embeddings (B, E) of images fit those of words (B, E)."""
        cosines = F.cosine_similarity(embeddings.float(), words.float(), dim=1)
        return torch.searchsorted(self.fit_edges.float(), cosines, right=True)

    @torch.no_grad()
    def fit(self, embeddings: Tensor, words: Tensor | None = None) -> None:
        """Finds mean, deviation, components and buckets of embeddings (n, E) and their words'.

        Raises:
            BedstoneError: a dimension of the embeddings is the same in all.
        """
        super().fit(embeddings)
        assert words is not None
        config = self.config
        x = self.standardised(embeddings.to(self.mean)).double()
        axes = torch.linalg.eigh(x.T @ x / len(x)).eigenvectors
        axes = axes.T.flip(0)[: config.components]  # the largest first
        axes = torch.where(axes.sum(1, keepdim=True) < 0, -axes, axes)
        self.axes.copy_(axes)
        parts = x @ axes.T  # (n, N)
        shares = torch.arange(1, config.buckets, dtype=torch.float64) / config.buckets
        self.edges.copy_(quantiles(parts, shares).T)
        codes = self.codes_of(x)
        places = torch.arange(config.components)
        slots = (places * config.buckets + codes).flatten()
        total = torch.zeros(config.components * config.buckets, dtype=torch.float64)
        count = total.clone()
        total.index_add_(0, slots, parts.flatten())
        count.index_add_(0, slots, torch.ones_like(parts).flatten())
        means = (total / count.clamp_min(1)).view_as(self.values)
        # a bucket that holds none stands for its edge
        edges = torch.cat((self.edges[:, :1], self.edges), 1).double()
        self.values.copy_(torch.where(count.view_as(means) > 0, means, edges))
        cosines = F.cosine_similarity(embeddings.double(), words.double(), dim=1)
        shares = torch.arange(1, config.fits, dtype=torch.float64) / config.fits
        self.fit_edges.copy_(quantiles(cosines[:, None], shares)[:, 0])


def quantiles(values: Tensor, shares: Tensor) -> Tensor:
    """The values below which shares (s,) of each column of (n, c) lie, (s, c)."""
    rows = values.sort(0).values
    at = (shares * len(rows)).long().clamp(max=len(rows) - 1)
    return rows[at]


def make(config: CodePriorConfig) -> CodePrior:
    """A prior whose weights are still to be filled."""
    return CodePrior(config)


def build(config: CodePriorConfig, *, seed: int | None = None) -> CodePrior:
    """A prior with fresh weights, drawn from `seed` if one is given: all codes are equally likely.
    `fit` it before it is trained."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    gpt.initialise(network.core)
    for linear in (network.text, network.words):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(network.head.weight)
    return network
