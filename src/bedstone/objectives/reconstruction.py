"""Reconstruction losses of autoencoders: pixel, perceptual, adversarial, and latents' KL.

The sum of up to four terms, each optional but the first (Rombach et al., 2022, appendix G; Esser et
al., 2021, equations 4 to 7): the distance of pixels; the cost of the latents (nats, or how far they
lie from their codes); the distance of what a frozen network of ours sees; and a judge of patches
that is trained beside.

Shapes: B pictures, C channels, H x W pixels.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bedstone.data.images.plain import PixelBatch
from bedstone.errors import BedstoneError, nearest
from bedstone.models.autoencoder.discrete import map_pixels
from bedstone.models.clip.network import states_of
from bedstone.settings import Settings, number, share

MOST = 1e4  # of the adversarial term's own weight, as in taming-transformers


def absolute(made: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of each picture, (B,)."""
    return (made - real).abs().flatten(1).mean(1)


def squared(made: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of each picture, (B,)."""
    return (made - real).square().flatten(1).mean(1)


def logit_laplace(made: Tensor, real: Tensor) -> Tensor:
    """Nats of each picture's values by their distributions, the mean over values, (B,).

    The density of a value that is the sigmoid of a Laplace variable (Ramesh et al., 2021, appendix
    A.3, equation 2).

    Args:
        made: means and logarithms of scales, one behind the other, (B, 2C, H, W).
        real: (B, C, H, W), -1 to 1.
    """
    mean, scale = made.float().chunk(2, 1)
    value = map_pixels((real.float() + 1) / 2)
    apart = (torch.logit(value) - mean).abs() * (-scale).exp()
    nats = apart + scale + math.log(2) + (value * (1 - value)).log()
    return nats.flatten(1).mean(1)


DISTANCES = {"l1": absolute, "l2": squared, "logit_laplace": logit_laplace}


class Perceptual:
    """The distance of pictures as a frozen network sees them, (B,).

    Features of unit length at every place, their squared differences averaged over places and
    summed over maps: LPIPS (Zhang et al., 2018) without its learnt weights. Of a ResNet the maps
    after each stage are read, of a ViT its last states.

    Args:
        network: a picture model of ours: a ResNet, a ViT, either under labels, or of pairs.
        mean, std: of its pictures' channels, from 0 to 1.

    Raises:
        BedstoneError: the network reads no pictures.
    """

    def __init__(self, network: Any, mean: Any, std: Any) -> None:
        tower = getattr(network, "image", network)
        if not hasattr(tower, "stages") and not hasattr(tower, "patches"):
            raise BedstoneError(
                f"perceptual.model: a {type(network).__name__} doesn't see pictures; name a ViT, a "
                "ResNet, or a model of pairs."
            )
        self.tower = tower.eval().requires_grad_(False)
        self.size: tuple[int, int] = tower.config.size
        # values are from -1 to 1 here
        self.mean = 2 * torch.tensor(mean)[:, None, None] - 1
        self.std = 2 * torch.tensor(std)[:, None, None]

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """What it sees: (B, D, ...) each."""
        x = (pixels - self.mean.to(pixels.device)) / self.std.to(pixels.device)
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        if not hasattr(self.tower, "stages"):
            return [states_of(self.tower)(x).transpose(1, 2)]
        found = []
        x = self.tower.stem(x)
        for stage in self.tower.stages:
            x = stage(x)
            found.append(x)
        return found

    def __call__(self, made: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.maps(real)
        total = made.new_zeros(len(made))
        for ours, theirs in zip(self.maps(made), wanted, strict=True):
            apart = F.normalize(ours.float(), dim=1) - F.normalize(theirs.float(), dim=1)
            total = total + apart.square().sum(1).flatten(1).mean(1)
        return total


@dataclass(frozen=True)
class Adversary:
    """The adversarial term, by `network.discriminator`.

    The judge learns by the hinge loss, in the same step: what is asked of the autoencoder moves
    none of its weights, and the other way round. The term's weight is such that at the last layer
    it pulls `weight` times as much as all that went before (Esser et al., 2021, equation 7).

    Attributes:
        weight: of the autoencoder's part.
        after: batches before it begins.
    """

    weight: float = 0.1
    after: int = 0

    def __call__(self, network: Any, fit: Tensor, made: Tensor, real: Tensor) -> Tensor:
        """What is added to the sum of losses.

        Args:
            fit: the sum of the other terms that depend on `made`, with a graph.
        """
        judge = network.discriminator
        frozen = {name: each.detach() for name, each in judge.named_parameters()}
        fooled = -_verdicts(functional_call(judge, frozen, (made,))).sum()
        fooling = self.weight * adaptive_weight(fit, fooled, network.last_weight) * fooled
        verdicts_real, verdicts_made = judge(real), judge(made.detach())
        hinge = F.relu(1.0 - verdicts_real.float()), F.relu(1.0 + verdicts_made.float())
        return fooling + 0.5 * sum(_verdicts(each).sum() for each in hinge)


def _verdicts(patches: Tensor) -> Tensor:
    """The mean over a picture's patches, (B,)."""
    return patches.float().flatten(1).mean(1)


def adaptive_weight(fit: Tensor, fooled: Tensor, weight: Tensor) -> Tensor:
    """|d fit / d weight| / |d fooled / d weight|, without a graph."""
    ours = torch.autograd.grad(fit, weight, retain_graph=True)[0].norm()
    theirs = torch.autograd.grad(fooled, weight, retain_graph=True)[0].norm()
    return (ours / (theirs + 1e-4)).clamp(0.0, MOST).detach()


@dataclass(frozen=True)
class Relaxation(Settings):
    """How a dVAE's tokens come to be chosen: the course of training (Ramesh et al., 2021, A.2).

    Attributes:
        start: temperature of the Gumbel softmax in the beginning.
        end: at the end, by a cosine of the share of training.
        until: share of training after which it is that.
        kl_until: share of training over which the weight of nats rises from 0.
    """

    section: ClassVar[str] = "relaxation."
    start: float = number(0.0, open_least=True, default=1.0)
    end: float = number(0.0, open_least=True, default=1 / 16)
    until: float = share(default=0.6)
    kl_until: float = share(default=0.1)

    def temperature(self, spent: float) -> float:
        """At a share of training, from 0 to 1."""
        way = min(spent / self.until, 1.0) if self.until else 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * way))

    def rise(self, spent: float) -> float:
        """The share of its full weight that nats have."""
        return min(spent / self.kl_until, 1.0) if self.kl_until else 1.0


class Reconstruction:
    """(network, batch) to the sum of losses in fp32 and the number of pictures.

    Args:
        pixel: l1 or l2; of a network that gives distributions, logit_laplace.
        kl: weight of the latents' cost, each picture's divided by its values: as in Rombach et
            al., where sums of both are taken. So it depends on neither the batch nor the size.
        perceptual: what sees.
        perceptual_weight: of its term.
        adversary: the adversarial term; the network then holds a `discriminator`.
        relaxation: of a network with a `temperature`.
    """

    def __init__(
        self,
        pixel: str = "l1",
        kl: float = 1e-6,
        *,
        perceptual: Perceptual | None = None,
        perceptual_weight: float = 1.0,
        adversary: Adversary | None = None,
        relaxation: Relaxation | None = None,
    ) -> None:
        if pixel not in DISTANCES:
            raise BedstoneError(f"pixel: {pixel!r} is unknown{nearest(pixel, DISTANCES)}.")
        self.distance, self.kl = DISTANCES[pixel], kl
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.adversary = adversary
        self.relaxation, self._rise = relaxation, 1.0
        self.of_distributions = pixel == "logit_laplace"

    def before_step(self, network: Any, spent: float) -> None:
        """Sets the temperature for a share of training."""
        if self.relaxation is not None:
            network.temperature = self.relaxation.temperature(spent)
            self._rise = self.relaxation.rise(spent)

    def after_step(self, network: Any) -> None:
        """Moves a codebook that follows its latents."""
        if (averages := getattr(network, "averages", None)) is not None:
            averages.settle(network.codebook)

    def fit(self, made: Tensor, real: Tensor) -> Tensor:
        """The sum of the terms that compare pictures, without the judge."""
        fit = self.distance(made, real).sum()
        if self.perceptual is not None:
            fit = fit + self.perceptual_weight * self.perceptual(made, real).sum()
        return fit

    def __call__(self, network: nn.Module, batch: PixelBatch) -> tuple[Tensor, float]:
        real = batch.pixels
        made, cost = network.learn(real)  # type: ignore[operator]  # as autoencoders have it
        made = made.float()
        fit = self.fit(made, real)
        weight = self.kl if self.relaxation is None else self.kl * self._rise
        loss = fit + weight * cost.sum() / real[0].numel()
        if self.adversary is not None and batch.number >= self.adversary.after:
            loss = loss + self.adversary(network, fit, made, real)
        return loss, len(real)
