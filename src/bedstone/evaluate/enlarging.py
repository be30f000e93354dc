"""Evaluation of what enlarges images: how near it comes to held-out ones, beside interpolation.

Shapes: B images, C channels, h x w pixels of the smaller ones, H x W of the larger.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bedstone.checkpoints.enlarging import enlarge
from bedstone.checkpoints.pipeline import DiffusionPipeline
from bedstone.data.signals.enlarging import larger, smaller
from bedstone.data.signals.signals import Signals
from bedstone.evaluate.generative import loss_of_held
from bedstone.evaluate.runner import Evaluation
from bedstone.metrics.generative import psnr
from bedstone.objectives.diffusion import Denoising
from bedstone.report.sheets import samples_sheet
from bedstone.runtime import Precision

SHOWN = 8  # images on the sheet


@dataclass
class EnlargingScorer(Evaluation):
    """Held-out loss, `psnr` (dB) of enlarged held-out images, and of interpolated ones.

    Attributes:
        model: what enlarges.
        objective: what it learns by.
        held: larger images held out.
        precision: in which it computes.
        rows: held-out rows that are read at most.
        samples: of them, how many are enlarged.
        sheet: where some are shown.
    """

    model: DiffusionPipeline
    objective: Denoising
    held: Signals
    precision: Precision
    rows: int
    samples: int
    sheet: Path

    def log(self, network: nn.Module) -> dict[str, float]:
        """`validation_loss`, with the same noise and times every time, and the figures."""
        loss = loss_of_held(network, self.objective, self.held, None, self.rows, self.precision)
        figures = {"loss": loss, **self.figures_of()}
        return {f"validation_{name}": value for name, value in figures.items()}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        return {"validation": {**metrics, **self.figures_of()}}

    def figures_of(self) -> dict[str, float]:
        """The figures of the first held-out images, always from the same noise; draws the sheet."""
        count = min(self.samples, len(self.held))
        if not count:
            return {}
        real = self.held.read(np.arange(count))
        small = smaller(real, real.shape[2] // self.model.signal.small[1])
        self.model.network.eval()
        autocast = self.precision.autocast
        drawn = enlarge(self.model, small, range(count), noise=0.0, autocast=autocast)
        plain = larger(small, real.shape[2:])
        rows = {"bicubic": plain, "enlarged": drawn, "real": real}
        images = torch.cat([images[:SHOWN] for images in rows.values()])
        titles = [name for name, images in rows.items() for _ in images[:SHOWN]]
        samples_sheet(images, self.sheet, titles=titles, columns=min(SHOWN, count))
        found = {"psnr": drawn, "psnr_bicubic": plain}
        return {name: float(psnr(made, real).mean()) for name, made in found.items()}
