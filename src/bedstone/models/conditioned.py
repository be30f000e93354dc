"""A network that draws, with what reads the words it draws from.

Shapes: B rows, C channels, S sizes of a signal, T tokens, M memories of width Dm.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.nn.masks import Both, Causal, Padding


class Conditioned(nn.Module):
    """Noisy signals (B, C, *S), told times (B,) and a condition to what the denoiser predicts.

    Args:
        denoiser: a DiT.
        text: ids (B, T) to states (B, T, Dm), by its method `states`; None where no words are
            read.
        frozen: whether `text` keeps its weights.
    """

    def __init__(
        self, denoiser: nn.Module, text: nn.Module | None = None, *, frozen: bool = False
    ) -> None:
        super().__init__()
        self.denoiser, self.text = denoiser, text
        self.frozen = frozen
        if text is not None and frozen:
            text.requires_grad_(False).eval()

    @property
    def config(self) -> Any:
        """The denoiser's."""
        return self.denoiser.config

    def train(self, mode: bool = True) -> "Conditioned":
        """A frozen reader of words has no dropout either."""
        super().train(mode)
        if self.text is not None and self.frozen:
            self.text.eval()
        return self

    def read(
        self,
        classes: Tensor | None = None,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """A condition as the denoiser takes it: what stays the same from step to step of a draw.

        Args:
            classes: (B,) int64.
            ids: (B, T) tokens of texts.
            keep: (B, T) bool, which of them are words.
        """
        told: dict[str, Tensor] = {} if classes is None else {"classes": classes}
        if ids is None:
            return told
        reader: Any = self.text
        if reader is None:
            raise ValueError("this network reads no words")
        if keep is None:
            keep = torch.ones_like(ids, dtype=torch.bool)
        causal = getattr(reader, "causal", False)
        mask = Both(Causal(), Padding(keep)) if causal else Padding(keep)
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            states = reader.states(ids, mask=mask)
        return {**told, "memory": states, "memory_keep": keep}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor | None = None,
        ids: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """What is predicted of `x` at the told times `t`: (B, C or 2 C, *S)."""
        return self.denoiser(x, t, **self.read(classes, ids, keep))
