"""DALL-E: a decoder over the words of a caption and the codes of an image (Ramesh et al., 2021).

A sequence is T places of text and then the N codes of a grid, row by row. Text that is shorter is
filled up with a padding token of its own for each place; nothing but padding is the null prompt,
which guidance leads away from. Three orders of writing the same codes:

- `raster`: one after another, each from the text and the codes before it.
- `masked`: several at once, from the text and the codes that are known by then (MaskGIT, Chang et
  al., 2022); every place sees every other.
- `scale`: the coarsest grid first, then those between its places, each grid twice as fine as that
  before it and all of its codes at once, from the text and the coarser grids: next-scale prediction
  (VAR, Tian et al., 2024) over the codes of one grid, in the passes of interlaced images.

Tokens are numbered codes first (K), the mask, words (V), paddings (T), so that a code that is drawn
is the token that is read next.

Shapes: B rows, T text places, N = h x w codes, D width, V words, K codes, W head width.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.gpt import network as gpt
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.heads import HeadConfig
from bedstone.nn.cache import Cache
from bedstone.nn.fast.program import DecoderParts
from bedstone.nn.masks import Causal, Full, Mask
from bedstone.nn.positions import Fixed, LearnedPositions
from bedstone.settings import Settings, number, one_of, share, whole

LAYOUTS = ("dalle",)
ORDERS = ("raster", "masked", "scale")
POSITIONS = ("rotary", "tables")


@dataclass(frozen=True)
class DalleConfig(Settings):
    """The shape of a `Dalle`.

    Attributes:
        layout: dalle.
        codes: ids of the autoencoder, K.
        grid: rows and columns of an image's codes, (h, w).
        vocab_size: words of the tokenizer, V.
        text_tokens: places of a text, T.
        order: of writing codes: raster, masked or scale.
        positions: rotary, by row and column; or tables, a learnt vector for each row, each column
            and each place of the text, which is how it was published.
        width, layers, heads, kv_heads, hidden, norm_eps, dropout: as in `GPTConfig`, whose qwen3
            layout the blocks have.
        rope_base: of rotary positions: their distances are small.
    """

    section: ClassVar[str] = "model."

    layout: str = one_of(*LAYOUTS, default="dalle")
    codes: int = whole(2, 2**16, default=1000)
    grid: tuple[int, ...] = (8, 8)
    vocab_size: int = whole(1, default=256)
    text_tokens: int = whole(1, default=24)
    order: str = one_of(*ORDERS, default="raster")
    positions: str = one_of(*POSITIONS, default="rotary")
    width: int = whole(1, default=256)
    layers: int = whole(1, default=6)
    heads: int = whole(1, default=4)
    kv_heads: int = whole(0, default=0)
    hidden: int = whole(0, default=0)
    norm_eps: float = number(0.0, open_least=True, default=1e-6)
    rope_base: float = number(1.0, open_least=True, default=100.0)
    dropout: float = share(below_one=True, default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise BedstoneError(
                f"model.grid: {list(self.grid)} was given; expected rows and columns of codes."
            )
        if self.width % self.heads or self.width // self.heads % 4:
            raise BedstoneError(
                f"model.heads: {self.heads} heads of a width of {self.width}; expected a divisor "
                "that leaves each a multiple of 4, which rotary positions turn by row and column."
            )
        core = self.core  # which checks the rest
        for name in ("kv_heads", "hidden"):
            object.__setattr__(self, name, getattr(core, name))

    @property
    def places(self) -> int:
        """Codes of an image, N."""
        return self.grid[0] * self.grid[1]

    @property
    def context(self) -> int:
        """Tokens of a whole sequence."""
        return self.text_tokens + self.places

    @property
    def scales(self) -> Tensor:
        """Of each code the pass in which it is written in the order of scales, (N,) int64."""
        rows, columns = (torch.arange(count, device="cpu") for count in self.grid)
        down = across = 1 << (max(self.grid) - 1).bit_length()
        found, passes = torch.full(self.grid, -1, device="cpu"), 0
        while True:
            there = (rows % down == 0)[:, None] & (columns % across == 0)
            if (new := there & (found < 0)).any():
                found[new], passes = passes, passes + 1
            if down == across == 1:
                return found.flatten()
            down, across = (down, across // 2) if down == across else (down // 2, across)

    @property
    def mask(self) -> int:
        """The token of a code that isn't known."""
        return self.codes

    @property
    def core(self) -> GPTConfig:
        """The shape of its blocks, and of the table of all tokens."""
        return GPTConfig(
            layout="qwen3",
            vocab_size=self.codes + 1 + self.vocab_size + self.text_tokens,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            hidden=self.hidden,
            context=self.context,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            tied=False,
            head=HeadConfig("states"),
        )


def coordinates(config: DalleConfig) -> Tensor:
    """Row and column of each place of a sequence, (T + N, 2): text on the diagonal before the
    grid."""
    text = torch.arange(config.text_tokens, device="cpu")
    rows, columns = (torch.arange(count, device="cpu") for count in config.grid)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    return torch.cat((text[:, None].expand(-1, 2), config.text_tokens + grid))


class SequenceRotary(nn.Module):
    """(cos, sin) that `rotate` takes, each (B or 1, 1, S, W), of places (B or 1, S) in a sequence.

    Half of the pairs turn by the row, half by the column: rotary positions in two dimensions (Heo
    et al., 2024), which LlamaGen found to learn faster than tables.
    """

    angles: Tensor  # (T + N, W)

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        pairs = config.width // config.heads // 4
        steps = torch.arange(pairs, dtype=torch.float32, device="cpu") / pairs
        at = coordinates(config).float()
        angles = (at[:, :, None] * config.rope_base**-steps).flatten(1)  # (T + N, W / 2)
        self.register_buffer("angles", torch.cat((angles, angles), 1), persistent=False)
        self.frequencies = Fixed(steps)  # for whoever would know whether they vary

    def forward(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        places = positions.clamp(max=len(self.angles) - 1)  # caches have room for more
        angles = self.angles[places][:, None]
        return angles.cos(), angles.sin()


class SequenceTables(nn.Module):
    """Learnt vectors of text places, rows and columns; places (B or 1, S) to (B or 1, S, D)."""

    at: Tensor

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.text_tokens = config.text_tokens
        self.text = LearnedPositions(config.text_tokens, config.width)
        self.rows = LearnedPositions(config.grid[0], config.width)
        self.columns = LearnedPositions(config.grid[1], config.width)
        self.register_buffer("at", coordinates(config), persistent=False)

    def whole(self) -> Tensor:
        """Of every place, (T + N, D)."""
        rows, columns = (self.at[self.text_tokens :] - self.text_tokens).unbind(1)
        return torch.cat((self.text.weight, self.rows(rows) + self.columns(columns)))

    def forward(self, positions: Tensor) -> Tensor:
        return nn.functional.embedding(positions, self.whole())


class Dalle(nn.Module):
    """Words (B, T) and codes (B, N) to logits of the codes (B, N, K).

    With `states`, `head` and `new_cache` it is a decoder as `generation.autoregress` reads one.
    """

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.config = config
        self.core = gpt.qwen3(config.core)
        if config.positions == "rotary":
            self.core.rotary = SequenceRotary(config)  # type: ignore[assignment]
        else:
            self.core.rotary = None
            self.core.positions = SequenceTables(config)  # type: ignore[assignment]
        self.head = nn.Linear(config.width, config.codes, bias=False)
        self.words = (
            nn.Linear(config.width, config.vocab_size, bias=False)
            if config.order == "raster"
            else None
        )

    @property
    def visible(self) -> Mask:
        """What a place sees of the others."""
        return Causal() if self.config.order == "raster" else Full()

    def tokens(self, ids: Tensor, keep: Tensor) -> Tensor:
        """The tokens (B, T) of texts: words where `keep` is true, else each place's padding.

        Args:
            ids, keep: (B, t) of at most T columns.

        Raises:
            BedstoneError: texts have more.
        """
        config, length = self.config, ids.shape[1]
        if length > config.text_tokens:
            raise BedstoneError(
                f"text: has {length} tokens; the model reads {config.text_tokens}. Say it in fewer "
                "words."
            )
        missing = (0, config.text_tokens - length)
        ids, keep = nn.functional.pad(ids, missing), nn.functional.pad(keep, missing)
        first = config.codes + 1
        places = torch.arange(config.text_tokens, device=ids.device)
        return torch.where(keep, first + ids, first + config.vocab_size + places)

    def states(
        self, ids: Tensor, *, cache: Cache | None = None, mask: Mask | None = None
    ) -> Tensor:
        """The last hidden states (B, S, D) of tokens (B, S)."""
        return self.core.states(ids, cache=cache, mask=mask or self.visible)

    def logits(self, ids: Tensor, keep: Tensor, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the codes (B, N, K); in raster order those of the words too, (B, T - 1, V), of
        each place after the first.

        Args:
            ids, keep: as for `tokens`.
            codes: (B, N); in masked order `config.mask` where one isn't known.
        """
        text = self.tokens(ids, keep)
        if self.words is None:
            states = self.states(torch.cat((text, codes), 1))
            return self.head(states[:, text.shape[1] :]), None
        states = self.states(torch.cat((text, codes[:, :-1]), 1))
        before = text.shape[1] - 1
        return self.head(states[:, before:]), self.words(states[:, :before])

    def forward(self, ids: Tensor, keep: Tensor, codes: Tensor) -> Tensor:
        return self.logits(ids, keep, codes)[0]

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache."""
        return self.core.new_cache(batch, capacity)

    def decoder_parts(self) -> DecoderParts:
        """Its modules as the engine reads them; logits are of codes alone."""
        core, positions = self.core, None
        if isinstance(core.positions, SequenceTables):
            table = core.positions.whole().detach()
            positions = LearnedPositions(*table.shape)
            positions.weight = nn.Parameter(table.float(), requires_grad=False)
        return DecoderParts(
            replace(core.config, vocab_size=self.config.codes),
            core.embed,
            core.stack,
            self.head,
            tied=False,
            positions=positions,
            rotary=core.rotary,
            norm=core.norm,
        )


def make(config: DalleConfig) -> Dalle:
    """A network whose weights are still to be filled."""
    return Dalle(config)


def build(config: DalleConfig, *, seed: int | None = None) -> Dalle:
    """A network with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    gpt.initialise(network.core)
    for head in (network.head, network.words):
        if head is not None:
            nn.init.zeros_(head.weight)
    return network
