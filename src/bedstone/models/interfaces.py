"""What a network can do, as protocols that `isinstance` checks.

Whoever needs an ability asks for it here, never for a layout by name: a new family is used wherever
it has the methods. `isinstance` checks that the methods are there, not their signatures.
Submodules are no part of a protocol: newer Pythons do not see them.

Shapes: B batch, T tokens, P images, n texts (n = m P, row i reads image i // m), S states of an
image, D width, E width of joint vectors, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor


@runtime_checkable
class CausalLM(Protocol):
    """A decoder with a key/value cache (GPT, FlamingoGPT).

    Attributes:
        causal: whether each token is predicted from those before it alone.
    """

    causal: bool

    def states(self, ids: Tensor, **known: Any) -> Tensor:
        """Last hidden states (B, T, D) of token ids (B, T)."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty key/value cache."""


@runtime_checkable
class EncoderDecoderModel(Protocol):
    """A network that writes a text given a source text (Marian, BART, T5)."""

    def memory(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """States (P, S, D) of padded source ids (P, S)."""

    def packed_memory(self, sources: Any) -> Tensor:
        """States (N, D) of sources laid end to end."""

    def writer(self, memory: Tensor, memory_keep: Tensor | None = None) -> Any:
        """A decoder over them."""


@runtime_checkable
class TextEncoder(Protocol):
    """A network that reads texts laid end to end in one row (BERT, GPT, a text tower)."""

    def packed_states(self, rows: Any, read: Tensor | None = None) -> Tensor:
        """States (T, D) of packed rows; of the tokens `read` alone where they are given."""


@runtime_checkable
class ImageEncoder(Protocol):
    """A network that gives one vector an image (ViT, ResNet, an image classifier)."""

    def features(self, pixels: Tensor) -> Tensor:
        """Features (P, E) of pixels (P, C, H, W)."""


@runtime_checkable
class DualEncoder(Protocol):
    """Two encoders into one space of vectors (CLIP, SigLIP)."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """Vectors (P, E) of pixels (P, C, H, W)."""

    def text_features(self, rows: Any) -> Tensor:
        """Vectors (n, E) of packed rows of texts."""


@runtime_checkable
class ImageTextModel(Protocol):
    """A network that generates or judges text given an image (BLIP, FlamingoGPT)."""

    @property
    def abilities(self) -> frozenset[str]:
        """Some of captions, answers and matching."""

    def memory(self, pixels: Tensor) -> Tensor:
        """Image states (P, S, D) that text attends to, of pixels (P, C, H, W)."""


@runtime_checkable
class Autoencoder(Protocol):
    """A network that maps images to codes or latents, and back."""

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) by way of their codes, and what these cost (B,), such as nats."""


@runtime_checkable
class ImageCoder(Protocol):
    """An autoencoder whose latents are ids of a codebook (FSQ, VQ, dVAE)."""

    codebook_size: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Ids (B, h, w) int64 of images (B, C, H, W) from -1 to 1, one by one."""

    def decode(self, ids: Tensor) -> Tensor:
        """Images (B, C, H, W) from -1 to 1 of ids (B, h, w)."""


@runtime_checkable
class CodeWriter(Protocol):
    """A network that writes the codes of an image after words (DALL-E)."""

    def tokens(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Tokens (B, T) of words (B, t), of which `keep` is true where one is real."""

    def logits(self, ids: Tensor, keep: Tensor, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of codes (B, N, K), and of words where it writes these too."""


@runtime_checkable
class Denoiser(Protocol):
    """A network that predicts a clean signal, its noise or a velocity from a noisy signal.

    Its module `denoiser` takes noisy signals (B, C, *S), times (B,) and what `read_condition`
    gives.
    """

    def read_condition(
        self,
        classes: Tensor | None = None,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
        embedding: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the denoiser reads of a class, text, an image's embedding or a smaller image,
        computed once for all steps."""


@runtime_checkable
class EmbeddingPrior(Protocol):
    """A network that makes a CLIP's embeddings of images out of noise, given words (unCLIP)."""

    def standardised(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, E) as it denoises them."""

    def restored(self, x: Tensor) -> Tensor:
        """Embeddings (B, E) of clean ones that it predicts."""


@dataclass(frozen=True)
class Reading:
    """Questions with what their answers are generated from.

    Attributes:
        network: the network that answers.
        sources: what the decoder attends to for each question, (n, ...).
        keep: which of it is real; None says all is.
        prompts: the tokens that each answer begins with.
    """

    network: Any
    sources: Tensor
    keep: Tensor | None
    prompts: Sequence[Sequence[int]]

    def part(self, rows: Sequence[int]) -> tuple[Any, list[Sequence[int]]]:
        """A decoder for some of the questions, and their prompts."""
        known = () if self.keep is None else (self.keep[list(rows)],)
        decoder = self.network.writer(self.sources[list(rows)], *known)
        return decoder, [self.prompts[row] for row in rows]


class TextFormat(Protocol):
    """How a family of image-text models reads and writes text: `Layout.text_format` makes one.

    Attributes:
        words: ids of texts, and what captions begin and end with.
        room: tokens of a question, at most.
        kept: those that stay where a question is longer and may be cut.
    """

    words: Any
    room: int
    kept: slice

    def output(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of texts as they are generated, without the end token."""

    def question(self, text: str) -> list[int]:
        """The ids of a question, which may be cut."""

    def framed(self, ids: Sequence[int]) -> list[int]:
        """A question's ids with the special tokens around them."""

    def prompt(self, ids: Sequence[int]) -> Sequence[int]:
        """What the answer to a question, as `framed` has it, begins with."""

    def read(self, network: Any, questions: Sequence[Sequence[int]], memory: Tensor) -> Reading:
        """Questions (n of them) about images with memory (P, S, D)."""
