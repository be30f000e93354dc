"""Evaluation of autoencoders on held-out images: PSNR, SSIM, latents or codes, a sheet."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bedstone.checkpoints.model import Model
from bedstone.data.images.pixels import ImageCache
from bedstone.data.images.plain import PixelBatch
from bedstone.evaluate.runner import Evaluation
from bedstone.metrics.generative import psnr, ssim
from bedstone.objectives.reconstruction import Reconstruction
from bedstone.report.sheets import contact_sheet
from bedstone.runtime import Precision

SHOWN = 16  # pictures on the sheet


class AutoencoderScorer(Evaluation):
    """Loss, PSNR, SSIM and latent figures of an autoencoder on images.

    Args:
        objective: whose terms on pictures are the loss.
    """

    def __init__(
        self,
        model: Model,
        images: ImageCache,
        precision: Precision,
        objective: Reconstruction,
        batch_size: int,
    ) -> None:
        self.model, self.images, self.precision = model, images, precision
        self.objective, self.batch_size = objective, batch_size

    @torch.no_grad()
    def log(self, network: nn.Module) -> dict[str, float]:
        """Figures by name, `validation_...`; sets the latents' scale of a KL autoencoder.

        Pictures go by way of their most probable latents.
        """
        network.eval()
        figures: dict[str, float] = {"loss": 0.0, "psnr": 0.0, "ssim": 0.0}
        latents = _latents_of(self.model)
        count = 0
        for batch in self._batches():
            pixels = batch.pixels
            with self.precision.autocast():
                made = latents.read(network, pixels).float()
                loss = self.objective.fit(made, pixels)
            figures["loss"] += loss.item()
            figures["psnr"] += psnr(made, pixels).sum().item()
            figures["ssim"] += ssim(made, pixels).sum().item()
            count += len(pixels)
        figures = {name: value / count for name, value in figures.items()}
        figures |= latents.figures()
        latents.settle(network)
        return {f"validation_{name}": value for name, value in figures.items()}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        self.draw_sheet(folder / "pictures.png")
        return metrics

    @torch.no_grad()
    def draw_sheet(self, path: Path) -> Path:
        """A PNG of held-out pictures, each with what comes back beside it."""
        network = self.model.network.eval()
        batch = next(self._batches(SHOWN))
        with self.precision.autocast():
            made = network(batch.pixels)
        shown: list[np.ndarray] = []
        for real, back in zip(batch.pixels, made.float(), strict=True):
            shown += [_bytes(real), _bytes(back)]
        titles = ["before", "after"] * (len(shown) // 2)
        return contact_sheet(shown, path, titles=titles, columns=8)

    def _batches(self, size: int = 0) -> Iterator[PixelBatch]:
        size, numbers = size or self.batch_size, self.images.readable
        assert self.model.processor is not None
        for number, first in enumerate(range(0, len(numbers), size)):
            _, pixels = self.images.read(numbers[first : first + size])
            shown = self.model.processor.normalise(torch.from_numpy(pixels))
            yield PixelBatch(shown, number, []).to(self.precision.device)


def _bytes(image: Tensor) -> np.ndarray:
    """(3, H, W) from -1 to 1 as (H, W, 3) uint8."""
    values = (image.clamp(-1, 1) + 1) * 127.5
    return values.round().byte().permute(1, 2, 0).cpu().numpy()


class _Gaussians:
    """The latents of a KL autoencoder: their nats, and their deviation about zero."""

    def __init__(self) -> None:
        self.nats, self.squares, self.values, self.pixels = 0.0, 0.0, 0, 0

    def read(self, network: Any, pixels: Tensor) -> Tensor:
        """What comes back of pictures by way of their most probable latents."""
        found = network.encode(pixels)
        self.nats += found.kl().sum().item()
        self.squares += (found.mean.square() + found.log_variance.exp()).sum().item()
        self.values += found.mean.numel()
        self.pixels += pixels[:, 0].numel()
        return network.decode(found.mode())

    def figures(self) -> dict[str, float]:
        return {
            "bits_per_pixel": self.nats / self.pixels / float(np.log(2)),
            "latent_deviation": (self.squares / self.values) ** 0.5,
        }

    def settle(self, network: Any) -> None:
        """Scaled latents have a mean square of 1: Rombach et al., 2022, section D.1.

        What else a network gone on from did to its latents was for those that it had.
        """
        deviation = self.figures()["latent_deviation"]
        if deviation > 0:
            none = {"shift_factor": None, "latents_mean": None, "latents_std": None}
            scale = 1 / deviation
            network.config = dataclasses.replace(network.config, scaling_factor=scale, **none)


class _Codes:
    """The codes of a discrete autoencoder: how many of them are used, and how evenly."""

    def __init__(self, count: int) -> None:
        self.counts = torch.zeros(count, dtype=torch.float64)

    def read(self, network: Any, pixels: Tensor) -> Tensor:
        """What comes back of pictures by way of their codes."""
        quantized = network.quantized(pixels)
        codes = network.quantizer.codes(quantized).flatten().cpu()
        self.counts += torch.bincount(codes, minlength=len(self.counts))
        return network.decode(quantized)

    def figures(self) -> dict[str, float]:
        shares = self.counts / self.counts.sum()
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
        return {
            "codes_used": (self.counts > 0).double().mean().item(),
            "perplexity": entropy.exp().item(),
        }

    def settle(self, network: Any) -> None:
        """Codes have no scale."""


def _latents_of(model: Model) -> _Gaussians | _Codes:
    count = getattr(model.network, "codebook_size", None)
    return _Gaussians() if count is None else _Codes(count)
