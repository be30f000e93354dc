"""Evaluation of autoencoders on held-out images: PSNR, SSIM, latents or codes, a judge, a sheet.

What a judge sees of reconstructions, beside what it sees of the images themselves, says whether a
model that writes codes could be understood at all.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bedstone.checkpoints.model import Model
from bedstone.data.dataset import Dataset
from bedstone.data.images.pixels import ImageCache
from bedstone.data.images.plain import PixelBatch
from bedstone.data.open import PlainConfig, open_dataset
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import plain_scenes
from bedstone.errors import BedstoneError
from bedstone.evaluate.generative import at_size, judge_labels
from bedstone.evaluate.judges import class_accuracy, open_judge
from bedstone.evaluate.runner import Evaluation, present
from bedstone.evaluate.scene_judge import Things, judge_scenes, open_scene_judge
from bedstone.metrics.figures import Figures
from bedstone.metrics.generative import psnr, ssim
from bedstone.models.interfaces import ImageCoder
from bedstone.objectives.reconstruction import Reconstruction
from bedstone.report.sheets import contact_sheet
from bedstone.runtime import Precision
from bedstone.train.data import recorded_data
from bedstone.train.logs import ProgressBar

SHOWN = 16  # pictures on the sheet
HELD = 1000  # scenes with held-out combinations
BATCH = 64  # pictures measured at a time
MINUTE, LEAST = 60.0, 0.02  # seconds after which at least that share of the codes is to be used
REMEDIES = {
    "fsq_autoencoder": "Lower optim.lr and optim.adamw_lr, or take fewer levels (model.levels).",
    "vq_model": "Lower optim.lr and optim.adamw_lr, take fewer codes (model.codes), or a "
    "fsq_autoencoder, which has no codebook to collapse.",
    "discrete_vae": "Lower kl, keep the temperature high for longer (relaxation.until), take fewer "
    "codes (model.codes), or a fsq_autoencoder, which has no codebook to collapse.",
}


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
        self.began = time.monotonic()

    @torch.no_grad()
    def log(self, network: nn.Module) -> dict[str, float]:
        """Figures by name, `validation_...`; sets the latents' scale of a KL autoencoder.

        Pictures go by way of their most probable latents.

        Raises:
            BedstoneError: after a minute, hardly a code is used.
        """
        network.eval()
        figures: dict[str, float] = {"loss": 0.0, "psnr": 0.0, "ssim": 0.0}
        latents = _latents_of(self.model)
        count = 0
        for batch in self._batches():
            pixels = batch.pixels
            with self.precision.autocast():
                found, made = latents.read(network, pixels)
                loss = self.objective.fit(
                    found if self.objective.of_distributions else made, pixels
                )
            figures["loss"] += loss.item()
            figures["psnr"] += psnr(made, pixels).sum().item()
            figures["ssim"] += ssim(made, pixels).sum().item()
            count += len(pixels)
        figures = {name: value / count for name, value in figures.items()}
        figures |= latents.figures()
        if isinstance(latents, Codes) and time.monotonic() - self.began >= MINUTE:
            latents.check(self.model.config.layout)
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

    def read(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder gives of the most probable latents, which is pictures; twice."""
        found = network.encode(pixels)
        self.nats += found.kl().sum().item()
        self.squares += (found.mean.square() + found.log_variance.exp()).sum().item()
        self.values += found.mean.numel()
        self.pixels += pixels[:, 0].numel()
        made = network.decode(found.mode()).float()
        return made, made

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


class Codes:
    """The codes of a discrete autoencoder: how many of them are used, and how evenly.

    They are counted over all that is read, not as means of batches.
    """

    def __init__(self, count: int) -> None:
        self.counts = torch.zeros(count, dtype=torch.float64)

    def read(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder gives of pictures' codes, and the pictures that this is of."""
        ids = network.encode(pixels)
        self.counts += torch.bincount(ids.flatten().cpu(), minlength=len(self.counts))
        rendered = network.render(network.vectors(ids)).float()
        return rendered, network.images(rendered).float()

    def check(self, layout: str) -> None:
        """Raises BedstoneError where the codebook has collapsed."""
        used, seen = int((self.counts > 0).sum()), int(self.counts.sum())
        most = min(len(self.counts), seen)  # that could be used at all
        if used > max(LEAST * most, 1):
            return
        raise BedstoneError(
            f"codes: {used:,} of {len(self.counts):,} are used by held-out pictures after a minute "
            f"of training: the codebook has collapsed. {REMEDIES[layout]}"
        )

    def figures(self) -> dict[str, float]:
        shares = self.counts / self.counts.sum()
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
        return {
            "codes_used": (self.counts > 0).double().mean().item(),
            "perplexity": entropy.exp().item(),
        }

    def settle(self, network: Any) -> None:
        """Codes have no scale."""


def _latents_of(model: Model) -> _Gaussians | Codes:
    network = model.network
    return Codes(network.codebook_size) if isinstance(network, ImageCoder) else _Gaussians()


# In `bedstone evaluate`.


@torch.no_grad()
def evaluate_autoencoder(
    model: Model,
    data: str,
    precision: Precision,
    *,
    judge: str = "",
    split: str | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns figures of an autoencoder on all images of a source.

    Args:
        data: a source of images; of scenes, those with held-out combinations.
        judge: a judge of scenes, or one that tells labelled images apart: how often it is right of
            images, and of what comes back of them.

    Raises:
        BedstoneError: the data can't be read, or the judge doesn't fit it.
    """
    rows = _rows(model, data, split, bool(judge))
    processor = model.processor
    if processor is None:
        raise BedstoneError(
            f"{model.path}: has no preprocessor_config.json, so it isn't known how large its "
            "images are. Put one beside the weights."
        )
    latents, network = _latents_of(model), model.network.eval()
    good: list[np.ndarray] = []
    parts: list[tuple[Tensor, Tensor]] = []
    with ProgressBar("measuring", quiet=as_json) as bar:
        images = ImageCache(rows, processor.fit, processor.size, progress=bar.update)
        numbers = images.readable
        for first in range(0, len(numbers), BATCH):
            found, pixels = images.read(numbers[first : first + BATCH])
            real = processor.normalise(torch.from_numpy(pixels)).to(precision.device)
            with precision.autocast():
                made = latents.read(network, real)[1].clamp(-1, 1)
            good.append(found)
            parts.append((real.cpu(), made.cpu()))
            bar.update((first + len(found)) / len(numbers))
    real, made = (torch.cat(each) for each in zip(*parts, strict=True))
    kept = rows.pick(np.concatenate(good).tolist())
    values = {"psnr": psnr(made, real).mean().item(), "ssim": ssim(made, real).mean().item()}
    values |= latents.figures()
    if judge:
        values |= _judged(kept, real, made, judge)
    figures = Figures("reconstructions", "psnr", values, {}, rows=len(real))
    by = f", judged by {judge}" if judge else ""
    record = {**figures.record(), **({"judge": judge} if judge else {})}
    return present(record, {f"{model.path} on {data}{by}": figures}, as_json=as_json)


def _rows(model: Model, data: str, split: str | None, labelled: bool) -> Dataset:
    if data == SCENES:
        learnt = recorded_data(PlainConfig, model.record)
        side = max(model.processor.size) if model.processor else 64
        return plain_scenes(HELD, split=split or "test", size=side, **learnt.drawn)
    found: Dataset = open_dataset(data, ("image", *(["class"] if labelled else [])), split=split)
    return found


def _judged(rows: Dataset, real: Tensor, made: Tensor, judge: str) -> dict[str, float]:
    """How often a judge is right of images, of what comes back, and the one over the other."""
    if all(row.scene is not None for row in rows):
        scenes = open_scene_judge(judge)
        there = [Things(each.pair for each in row.scene.objects) for row in rows]
        seen = (scenes.things(at_size(each, scenes.size)) for each in (real, made))
        right = [judge_scenes(each, there).right for each in seen]
    else:
        labels, names = open_judge(judge), rows.classes
        numbers = judge_labels(
            torch.tensor([names.index(row.label) for row in rows]), names, labels
        )
        if numbers is None:
            raise BedstoneError(f"judge: {judge} has no labels. Take one that tells images apart.")
        right = [class_accuracy(labels.logits(each), numbers).accuracy for each in (real, made)]
    share = right[1] / right[0] if right[0] else 0.0
    return {"judge/images": right[0], "judge/reconstructions": right[1], "judge/kept": share}
