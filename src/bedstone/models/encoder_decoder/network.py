"""Encoder-decoders: an encoder of source texts, and a decoder that reads its states.

One network, four published layouts: `marian` (Junczys-Dowmunt et al., 2018; the Transformer of
Vaswani et al., 2017), `bart` (Lewis et al., 2020), `t5` (Raffel et al., 2020: v1.0, v1.1 and Flan)
and `mt5` (Xue et al., 2021). They differ in positions, in where norms stand, in MLPs and in what is
tied.

Shapes: P sources, S tokens of one, n = m * P targets (row i reads source i // m), T tokens of one,
N tokens of all, D width, V vocabulary of targets.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.encoder_decoder.config import RELATIVE, EncoderDecoderConfig, SideConfig
from bedstone.models.heads import Head, PackedRows
from bedstone.models.memory import MemoryReader, MemoryWriter
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import Block, PostNorm, PreNorm, Stack
from bedstone.nn.cache import Cache
from bedstone.nn.dropout import Dropout
from bedstone.nn.fast.decoder import LazyDecoder
from bedstone.nn.fast.program import DecoderParts
from bedstone.nn.layers import ACTIVATIONS, MLP, GatedMLP, LayerNorm, RMSNorm
from bedstone.nn.masks import Documents, Mask, Sources
from bedstone.nn.positions import LearnedPositions, RelativeBias, SinusoidalPositions
from bedstone.nn.ties import make_ties

OFFSET = 2  # rows of BART's table of positions that nobody reads, before the first


class Scale(nn.Module):
    """x * factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Side(MemoryReader):
    """The encoder or the decoder: token ids (n, T) to states (n, T, D)."""

    config: SideConfig

    def __init__(self, whole: EncoderDecoderConfig, config: SideConfig) -> None:
        super().__init__()
        self.config = config
        # as published: padding, after which marian generates, learns nothing as an input
        padding = None if config.layout in RELATIVE else whole.pad_id
        self.embed = nn.Embedding(config.vocab_size, config.width, padding)
        self.scale = config.width**0.5 if whole.scaled_embedding else 1.0
        self.positions: LearnedPositions | SinusoidalPositions | None = None
        self.norm: nn.Module = nn.Identity()
        self.offset = 0
        if config.layout == "marian":
            self.positions = SinusoidalPositions(config.width, interleaved=False)
        elif config.layout == "bart":
            self.offset = OFFSET
            self.positions = LearnedPositions(config.context + OFFSET, config.width)
            self.norm = _norm(whole)
        else:
            self.relative = RelativeBias(
                config.heads,
                buckets=whole.buckets,
                max_distance=whole.distance,
                bidirectional=not config.causal,
            )
        self.dropout = Dropout(whole.dropout)
        self.stack = Stack(_block(whole, config) for _ in range(config.layers))
        self.last = _norm(whole) if config.layout in RELATIVE else nn.Identity()

    def begin(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(positions + self.offset)
        return self.dropout(self.norm(x))

    def finish(self, x: Tensor) -> Tensor:
        x = self.last(x)
        return self.dropout(x) if self.config.layout in RELATIVE else x


def _norm(whole: EncoderDecoderConfig) -> nn.Module:
    eps = float(whole.norm_eps or 0.0)
    kind: Callable[..., nn.Module] = RMSNorm if whole.layout in RELATIVE else LayerNorm
    return kind(whole.width, eps=eps)


def _block(whole: EncoderDecoderConfig, config: SideConfig) -> Block:
    """Self-attention, in the decoder cross-attention, and an MLP."""
    relative = config.layout in RELATIVE
    shared: dict[str, Any] = {
        "head_width": config.head_width,
        "bias": not relative,
        "out_bias": not relative,
        "scale": 1.0 if relative else None,  # T5 leaves it to the weights
        "dropout": whole.attention_dropout,
    }
    kind: Callable[..., nn.Module] = GatedMLP if whole.gated else MLP
    mlp = partial(kind, config.width, config.hidden, ACTIVATIONS[whole.activation])
    join: Callable[..., nn.Module] = PreNorm if relative else PostNorm
    joined: dict[str, nn.Module] = {"attn": SelfAttention(config.width, config.heads, **shared)}
    if config.causal:
        shared["memory_width"] = config.memory_width
        joined["cross"] = CrossAttention(config.width, config.heads, **shared)
    joined["mlp"] = mlp(bias=not relative, dropout=whole.activation_dropout)
    return Block(**{name: join(_norm(whole), part, whole.dropout) for name, part in joined.items()})


def make_head(config: EncoderDecoderConfig) -> Head:
    """States (..., D) to logits of the next word (..., V); the bias is `final_logits_bias`."""
    biased = config.layout not in RELATIVE
    out = nn.Linear(config.width, config.target_vocab_size, bias=biased)
    return Head(out, norm=Scale(config.width**-0.5) if config.scaled_output else None)


class EncoderDecoder(nn.Module):
    """Source ids (P, S) and target ids (n, T) to logits of the next words of targets (n, T, V)."""

    causal = False  # it writes over a source, not from text alone
    engine: LazyDecoder | None = None  # of a network that is ready for inference

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Side(config, config.encoder)
        self.decoder = Side(config, config.decoder)
        self.head = make_head(config)
        self.tie()

    @property
    def ties(self) -> dict[str, str]:
        """Parameters that are another's: {copy: original}."""
        first, second = "encoder.embed.weight", "decoder.embed.weight"
        tied = {second: first} if self.config.shared else {}
        if self.config.tied:
            tied["head.out.weight"] = first if self.config.shared else second
        return tied

    @property
    def tables(self) -> tuple[nn.Embedding, nn.Embedding]:
        """The embeddings of sources and of targets."""
        return self.encoder.embed, self.decoder.embed

    def starts_from_zero(self) -> bool:
        """Whether targets begin with an embedding of zeros, as Marian's do: that of padding."""
        config = self.config
        if config.layout != "marian" or config.start_id != config.pad_id:
            return False
        return not any(bool(table.weight[config.pad_id].any()) for table in self.tables)

    def tie(self) -> None:
        """Makes the parameters that `ties` names one."""
        make_ties(self)

    def memory(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """The encoder's states of padded sources, (P, S, D).

        Args:
            ids: (P, S), padded on the right.
            keep: (P, S) bool, True where a token is real; None says all are.
        """
        return self.encoder.states(ids, keep=keep, causal=False)

    def states(
        self,
        ids: Tensor,
        *,
        memory: Tensor | None = None,
        memory_keep: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """The decoder's states of targets, (n, T, D); arguments as for `MemoryReader.states`.

        Raises:
            BedstoneError: there is nothing to read, or it doesn't fit the rows.
        """
        if memory is None and (cache is None or not cache.length):
            raise BedstoneError("memory: was not given; the decoder reads the encoder's states.")
        return self.decoder.states(
            ids,
            memory=memory,
            memory_keep=memory_keep,
            causal=True,
            cache=cache,
            positions=positions,
            mask=mask,
        )

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache of the decoder."""
        return self.decoder.new_cache(batch, capacity)

    def writer(self, memory: Tensor, memory_keep: Tensor | None = None) -> MemoryWriter:
        """The decoder over sources, as generation takes it; rows that share one are neighbours.

        Args:
            memory: (P, S, D), of `memory`.
            memory_keep: (P, S) bool, which of its states are real; None says all are.
        """
        return MemoryWriter(self.decoder, self.head, memory, memory_keep, self.engine)

    def decoder_parts(self) -> DecoderParts:
        """The decoder's modules as the engine reads them."""
        decoder, last, positions = self.decoder, self.decoder.last, self.decoder.positions
        if self.config.scaled_output:  # the norm divides in the place of the head
            last = _scaled(last, self.config.width**-0.5)
        if isinstance(positions, LearnedPositions):
            positions = _without_offset(positions)
        return DecoderParts(
            decoder.config,
            decoder.embed,
            decoder.stack,
            self.head.out,
            tied="head.out.weight" in self.ties,
            factor=decoder.scale,
            positions=positions,
            embed_norm=None if isinstance(decoder.norm, nn.Identity) else decoder.norm,
            bias=decoder.relative,
            norm=None if isinstance(last, nn.Identity) else last,
        )

    def forward(self, ids: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits of the next word after every token of the targets, (n, T, V).

        Args:
            ids: sources, (P, S), padded on the right.
            targets: (n, T), as the decoder reads them: after the start token.
            keep: (P, S) bool, which tokens of sources are real; None says all are.
        """
        memory = self.memory(ids, keep)
        logits: Tensor = self.head(self.states(targets, memory=memory, memory_keep=keep))
        return logits

    def packed_memory(self, sources: PackedRows) -> Tensor:
        """The encoder's states of sources laid end to end, (N, D)."""
        documents = Documents(sources.documents, causal=False)
        return self.encoder.packed_states(sources.ids, sources.positions, documents)

    def pair_states(self, sources: PackedRows, targets: PackedRows) -> Tensor:
        """The decoder's states of targets laid end to end, each over its own source, (N, D).

        Args:
            sources: as many rows as `targets`, in the same order.
            targets: as the decoder reads them.
        """
        return self.decoder.packed_states(
            targets.ids,
            targets.positions,
            Documents(targets.documents),
            self.packed_memory(sources),
            Sources(targets.documents, sources.documents),
        )


def _scaled(norm: Any, factor: float) -> RMSNorm:
    """A norm whose outputs are multiplied by a factor."""
    made = RMSNorm(len(norm.weight), norm.eps)
    made.weight = nn.Parameter(norm.weight.detach() * factor, False)
    return made


def _without_offset(positions: LearnedPositions) -> LearnedPositions:
    """BART's positions from the first that is read."""
    weight = positions.weight.detach()[OFFSET:]
    made = LearnedPositions(1, weight.shape[1])
    made.weight = nn.Parameter(weight, False)
    return made


def build(config: EncoderDecoderConfig, *, seed: int | None = None) -> EncoderDecoder:
    """A network with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = EncoderDecoder(config.for_training())
    initialise(network)
    return network


@torch.no_grad()
def initialise(network: EncoderDecoder) -> None:
    """Matrices by Glorot and Bengio, 2010, as Marian and fairseq have them; biases zero.

    Embeddings have the deviation that makes states of size 1 beside sinusoids, and small logits
    where the head shares them; that of padding is zero, as Marian has its start. T5's queries make
    up for the scale that its attention lacks.
    """
    config = network.config
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, SelfAttention | CrossAttention) and module.scale == 1.0:
            module.q.weight.mul_(module.head_width**-0.5)
    std = 1.0 if config.scaled_output else config.width**-0.5
    for side in (network.encoder, network.decoder):
        nn.init.normal_(side.embed.weight, std=std)
        if side.embed.padding_idx is not None:
            side.embed.weight[side.embed.padding_idx] = 0.0
    if config.tied:
        return
    nn.init.normal_(network.get_parameter("head.out.weight"), std=config.width**-0.5)
