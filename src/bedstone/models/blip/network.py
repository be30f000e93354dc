"""BERT with cross-attention: the text half of BLIP, an encoder and a decoder in one.

Li et al., 2022, section 3.1: between self-attention and MLP of each block stands attention over a
memory: the states of a picture, or of a question that has read one. Without a memory it is passed
over, and what is left is a BERT without segments. Whether a token sees what comes after it is the
caller's word, so the same network reads and writes.

Shapes: P memories, n = m * P rows of text (row i reads memory i // m), T tokens, S states of a
memory, D width.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.bert import network as bert
from bedstone.models.blip.config import BlipConfig, BlipTextConfig
from bedstone.models.heads import Head
from bedstone.models.memory import MemoryBlock, MemoryReader, MemoryWriter
from bedstone.models.resnet import network as map_tower
from bedstone.nn.attention import CrossAttention, SelfAttention
from bedstone.nn.blocks import PostNorm, Stack
from bedstone.nn.dropout import Dropout
from bedstone.nn.fast.decoder import LazyDecoder
from bedstone.nn.fast.program import DecoderParts
from bedstone.nn.layers import ACTIVATIONS, MLP, LayerNorm
from bedstone.nn.positions import LearnedPositions
from bedstone.nn.ties import make_ties


class BlipText(MemoryReader):
    """Token ids (n, T) to states (n, T, D), with a memory or without."""

    config: BlipTextConfig

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = LearnedPositions(config.context, config.width)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.stack = Stack(_block(config) for _ in range(config.layers))

    def begin(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.dropout(self.norm(self.embed(ids) + self.positions(positions)))


def _block(config: BlipTextConfig) -> MemoryBlock:
    """PostNorm(self), PostNorm(cross), PostNorm(MLP), with biases."""
    shared: dict[str, Any] = {"bias": True, "out_bias": True, "dropout": config.attention_dropout}
    attention = partial(SelfAttention, config.width, config.heads, **shared)
    cross = partial(CrossAttention, config.width, config.heads, **shared)
    mlp = MLP(config.width, config.hidden, ACTIVATIONS[config.activation])

    def joined(sublayer: nn.Module) -> PostNorm:
        return PostNorm(LayerNorm(config.width, eps=config.norm_eps), sublayer, config.dropout)

    return MemoryBlock(
        attn=joined(attention()),
        cross=joined(cross(memory_width=config.memory_width or config.width)),
        mlp=joined(mlp),
    )


def word_head(config: BlipTextConfig) -> Head:
    """BERT's word head: states (..., D) to logits of words (..., V)."""
    return Head(
        nn.Linear(config.width, config.vocab_size),
        dense=nn.Linear(config.width, config.width),
        activation=ACTIVATIONS[config.activation],
        norm=LayerNorm(config.width, eps=config.norm_eps),
    )


# BLIP: a picture's states are read by text through cross-attention, in every block.
#
# Li et al., 2022: an image tower; a text encoder that reads alone (contrast) or with the picture
# (matching, questions); a decoder that writes over the picture (captions) or over a question that
# has read it (answers). The head says which of them there are. `blip` has a ViT for pictures and is
# published; `blip_resnet` has a CNN and is Bedstone's own.
#
# Shapes: P pictures, n = m * P texts (row i belongs to picture i // m), T tokens, S states of a
# picture, D width of text, E width of what is compared, V vocabulary.

START = math.log(1 / 0.07)  # of the logarithm of the scale, as in CLIP


class Blip(nn.Module):
    """Pictures and texts: captions, answers, and whether both belong together.

    Its parts are None where the configuration's head has no use for them.
    """

    causal = False  # it writes over a picture, not from text alone
    engine: LazyDecoder | None = None  # of a network that is ready for inference

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        text, wide = config.text, config.text.memory_width
        # `states(pixels)` is all that is asked of it: (P, S, memory width)
        self.image = map_tower.make_tower(config.image, wide)
        self.encoder = BlipText(text) if config.reads else None
        self.decoder = BlipText(config.decoder) if config.writes else None
        self.head = word_head(text) if config.writes else None
        matches = config.matches
        self.image_projection = nn.Linear(wide, config.embed) if matches else None
        self.text_projection = nn.Linear(text.width, config.embed) if matches else None
        self.matching = nn.Linear(text.width, 2) if matches else None
        self.logit_scale = nn.Parameter(torch.tensor(START)) if matches else None
        self.tie()

    @property
    def abilities(self) -> frozenset[str]:
        """What its head is for: some of captions, answers and matching."""
        kind = self.config.head.kind
        return frozenset(("captions", "answers", "matching") if kind == "joint" else (kind,))

    @property
    def ties(self) -> dict[str, str]:
        """Parameters that are another's: {copy: original}."""
        tied = self.config.writes and self.config.text.tied
        return {"head.out.weight": "decoder.embed.weight"} if tied else {}

    def tie(self) -> None:
        """Makes the parameters that `ties` names one."""
        make_ties(self)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by in contrast, ()."""
        return self._part("logit_scale").exp()

    def memory(self, pixels: Tensor) -> Tensor:
        """States of pictures (P, 3, H, W), (P, S, memory width); the first is the whole's."""
        return self.image.states(pixels)

    def read(self, ids: Tensor, keep: Tensor | None, memory: Tensor | None = None) -> Tensor:
        """The encoder's states of texts (n, T): fused with a memory, or of text alone, (n, T, D).

        Args:
            keep: (n, T) bool, True where a token is real; None says all are.
            memory: (P, S, memory width).
        """
        return self._part("encoder").states(ids, keep=keep, memory=memory, causal=False)

    def image_vectors(self, memory: Tensor) -> Tensor:
        """(P, E), not normalised."""
        return self._part("image_projection")(memory[:, 0])

    def text_vectors(self, ids: Tensor, keep: Tensor | None) -> Tensor:
        """(n, E), not normalised, of texts read alone."""
        return self._part("text_projection")(self.read(ids, keep)[:, 0])

    def match_logits(self, ids: Tensor, keep: Tensor | None, memory: Tensor) -> Tensor:
        """Whether texts belong to their pictures, (n, 2): no, yes."""
        return self._part("matching")(self.read(ids, keep, memory)[:, 0])

    def caption_states(self, ids: Tensor, keep: Tensor | None, memory: Tensor) -> Tensor:
        """The decoder's states over pictures, (n, T, D); `head` makes words of them.

        `keep` is not read: padding stands on the right, where nobody sees it.
        """
        return self._part("decoder").states(ids, memory=memory, causal=True)

    def answer_states(
        self,
        ids: Tensor,
        keep: Tensor | None,
        question_states: Tensor,
        question_keep: Tensor | None = None,
    ) -> Tensor:
        """The decoder's states of answers (n, U) over questions that have read, (n, U, D).

        Args:
            keep: not read, as for `caption_states`.
            question_states: (q, T, D) of `read`; q divides n: an answer each, or several.
            question_keep: (q, T) bool, which of a question's tokens are real.
        """
        return self._part("decoder").states(
            ids, memory=question_states, memory_keep=question_keep, causal=True
        )

    def writer(self, memory: Tensor, memory_keep: Tensor | None = None) -> MemoryWriter:
        """The decoder over a memory, as generation takes it; rows that share one are neighbours.

        Args:
            memory: of pictures, for captions; the states of questions, for answers.
            memory_keep: (P, S) bool, which of its states are real; None says all are.
        """
        decoder, head = self._part("decoder"), self._part("head")
        return MemoryWriter(decoder, head, memory, memory_keep, self.engine)

    def decoder_parts(self) -> DecoderParts:
        """The decoder's modules as the engine reads them."""
        decoder = self._part("decoder")
        return DecoderParts(
            decoder.config,
            decoder.embed,
            decoder.stack,
            self._part("head"),
            tied=bool(self.ties),
            positions=decoder.positions,
            embed_norm=decoder.norm,
        )

    def forward(
        self,
        pixels: Tensor,
        ids: Tensor,
        keep: Tensor | None = None,
        answers: Tensor | None = None,
    ) -> Tensor:
        """What the published class of its head gives.

        Args:
            pixels: (P, 3, H, W).
            ids: (n, T): captions, or questions where `answers` are given.
            keep: (n, T) bool.
            answers: (n, U), as the decoder reads them.

        Returns:
            logits of the next words of captions (n, T, V) or of answers (n, U, V); of a network
            for matching, those of whether they belong together, (n, 2).
        """
        memory = self.memory(pixels)
        if not self.config.writes:
            return self.match_logits(ids, keep, memory)
        head = self._part("head")
        if answers is None and self.config.head.kind != "answers":
            return head(self.caption_states(ids, keep, memory))
        if answers is None:
            raise BedstoneError("answers: were not given; a network for answers needs them.")
        return head(self.answer_states(answers, None, self.read(ids, keep, memory), keep))

    def _part(self, name: str) -> Any:
        part = getattr(self, name)
        if part is None:
            raise BedstoneError(
                f"the network: was made for {self.config.head.kind} and has no {name}; take one "
                "whose model.head.kind has it (joint has all)."
            )
        return part


def make(config: BlipConfig) -> Blip:
    """A VLM whose weights are still to be filled."""
    return Blip(config)


def build_blip(config: BlipConfig, *, seed: int | None = None) -> Blip:
    """A VLM with fresh weights, drawn from `seed` if one is given: BERT's for text, CLIP's for
    pictures."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    map_tower.start_tower(network.image)
    for part in (network.encoder, network.decoder, network.head, network.matching):
        if part is not None:
            bert.initialise(part)
    for projection in (network.image_projection, network.text_projection):
        if projection is not None:
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
            nn.init.zeros_(projection.bias)
    return network
