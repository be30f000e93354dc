"""BLIP: a picture's states are read by text through cross-attention, in every block.

Li et al., 2022: an image tower; a text encoder that reads alone (contrast) or with the picture
(matching, questions); a decoder that writes over the picture (captions) or over a question that
has read it (answers). The head says which of them there are. `blip` has a ViT for pictures and is
published; `blip_resnet` has a CNN and is Bedstone's own.

Shapes: P pictures, n = m * P texts (row i belongs to picture i // m), T tokens, S states of a
picture, D width of text, E width of what is compared, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models import bert, map_tower
from bedstone.models.fused_text import FusedText, word_head
from bedstone.models.vlm_config import VLMConfig
from bedstone.models.vlm_config import vlm_config as vlm_config
from bedstone.nn.cache import Cache
from bedstone.nn.masks import Mask

START = math.log(1 / 0.07)  # of the logarithm of the scale, as in CLIP


class VLM(nn.Module):
    """Pictures and texts: captions, answers, and whether both belong together.

    Its parts are None where the configuration's head has no use for them.
    """

    causal = False  # it writes over a picture, not from text alone

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.config = config
        text, wide = config.text, config.text.memory_width
        # `states(pixels)` is all that is asked of it: (P, S, memory width)
        self.image = map_tower.make(config.image, wide)
        self.encoder = FusedText(text) if config.reads else None
        self.decoder = FusedText(config.decoder) if config.writes else None
        self.head = word_head(text) if config.writes else None
        matches = config.matches
        self.image_projection = nn.Linear(wide, config.embed) if matches else None
        self.text_projection = nn.Linear(text.width, config.embed) if matches else None
        self.matching = nn.Linear(text.width, 2) if matches else None
        self.logit_scale = nn.Parameter(torch.tensor(START)) if matches else None
        self.tie()

    @property
    def ties(self) -> dict[str, str]:
        """Parameters that are another's: {copy: original}."""
        tied = self.config.writes and self.config.text.tied
        return {"head.out.weight": "decoder.embed.weight"} if tied else {}

    def tie(self) -> None:
        """Makes the parameters that `ties` names one."""
        if self.ties and self.head is not None and self.decoder is not None:
            self.head.out.weight = self.decoder.embed.weight

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

    def writer(self, memory: Tensor, memory_keep: Tensor | None = None) -> "Writer":
        """The decoder over a memory, as generation takes it; rows that share one are neighbours.

        Args:
            memory: of pictures, for captions; the states of questions, for answers.
            memory_keep: (P, S) bool, which of its states are real; None says all are.
        """
        return Writer(self._part("decoder"), self._part("head"), memory, memory_keep)

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


class Writer:
    """A decoder over one memory, with all that `generation.autoregress` asks of a network."""

    def __init__(
        self, decoder: FusedText, head: Any, memory: Tensor, memory_keep: Tensor | None
    ) -> None:
        self.config = decoder.config
        self.head = head
        self.memory, self.memory_keep = memory, memory_keep
        self._decoder = decoder

    def states(
        self,
        ids: Tensor,
        *,
        cache: Cache | None = None,
        mask: Mask | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(n, T, D) of tokens (n, T) that see what is before them and the memory."""
        return self._decoder.states(
            ids,
            # once the cache knows it, rows may leave and memories with them
            memory=None if cache is not None and cache.length else self.memory,
            memory_keep=self.memory_keep,
            causal=True,
            cache=cache,
            positions=positions,
            mask=mask,
        )

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache."""
        return self._decoder.new_cache(batch, capacity)


def make(config: VLMConfig) -> VLM:
    """A VLM whose weights are still to be filled."""
    return VLM(config)


def build(config: VLMConfig, *, seed: int | None = None) -> VLM:
    """A VLM with fresh weights, drawn from `seed` if one is given: BERT's for text, CLIP's for
    pictures."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    map_tower.start(network.image)
    for part in (network.encoder, network.decoder, network.head, network.matching):
        if part is not None:
            bert.initialise(part)
    for projection in (network.image_projection, network.text_projection):
        if projection is not None:
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
            nn.init.zeros_(projection.bias)
    return network
