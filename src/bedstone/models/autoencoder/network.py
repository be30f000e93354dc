"""The autoencoder of latent diffusion: pictures to a Gaussian over small maps, and back.

Kingma and Welling (2014) by the network of Rombach et al. (2022, appendix), which diffusers names
`AutoencoderKL`: residual blocks with group norms, strides between stages, attention in the middle.

Shapes: B batch, C channels, H x W pixels, Z latent channels, h x w places of the latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.autoencoder.config import AutoencoderConfig, check_pixels
from bedstone.nn.convolution import Double, GroupNorm, Halve, Middle, UNetBlock
from bedstone.nn.layers import ACTIVATIONS, Activation


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions of latents: mean and log variance, (B, Z, h, w) fp32."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw; without a generator by torch's global one."""
        noise = torch.randn(
            self.mean.shape,
            generator=generator,
            device=self.mean.device if generator is None else generator.device,
        )
        return self.mean + torch.exp(0.5 * self.log_variance) * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """The most probable latents."""
        return self.mean

    def kl(self) -> Tensor:
        """Nats of each picture's distribution over the standard normal one, (B,)."""
        spread = self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * (self.mean.square() + spread).flatten(1).sum(1)


class Encoder(nn.Module):
    """(B, inputs, H, W) to (B, outputs, h, w)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        activation: Activation,
        *,
        attends: bool,
    ) -> None:
        super().__init__()
        self.into = nn.Conv2d(inputs, widths[0], 3, padding=1)
        stages, before = [], widths[0]
        for number, width in enumerate(widths):
            parts: list[nn.Module] = []
            for _ in range(layers):
                parts.append(UNetBlock(before, width, groups, activation))
                before = width
            if number < len(widths) - 1:
                parts.append(Halve(width))
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        self.middle = Middle(before, groups, activation, attends=attends)
        self.norm = GroupNorm(groups, before)
        self.out = nn.Conv2d(before, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.stages(self.into(x)))
        return self.out(nn.functional.silu(self.norm(x)))


class Decoder(nn.Module):
    """(B, inputs, h, w) to (B, outputs, H, W); `widths` are the encoder's."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int],
        layers: int,
        groups: int,
        activation: Activation,
        *,
        attends: bool,
    ) -> None:
        super().__init__()
        before = widths[-1]
        self.into = nn.Conv2d(inputs, before, 3, padding=1)
        self.middle = Middle(before, groups, activation, attends=attends)
        stages = []
        for number, width in enumerate(reversed(widths)):
            parts: list[nn.Module] = []
            for _ in range(layers):
                parts.append(UNetBlock(before, width, groups, activation))
                before = width
            if number < len(widths) - 1:
                parts.append(Double(width))
            stages.append(nn.Sequential(*parts))
        self.stages = nn.Sequential(*stages)
        self.norm = GroupNorm(groups, before)
        self.out = nn.Conv2d(before, outputs, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.stages(self.middle(self.into(z)))
        return self.out(nn.functional.silu(self.norm(x)))


class AutoencoderKL(nn.Module):
    """Pictures of values from -1 to 1 to latents and back; `forward` goes there and back."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        latents, act = config.latent_channels, ACTIVATIONS[config.activation]
        widths, groups, attends = config.widths, config.groups, config.attention
        self.encoder = Encoder(
            config.channels, 2 * latents, widths, config.layers, groups, act, attends=attends
        )
        self.moments = nn.Conv2d(2 * latents, 2 * latents, 1) if config.quant_conv else None
        self.prepare = nn.Conv2d(latents, latents, 1) if config.post_quant_conv else None
        self.decoder = Decoder(
            latents, config.out_channels, widths, config.layers + 1, groups, act, attends=attends
        )

    @property
    def last_weight(self) -> Tensor:
        """Of the convolution that gives pixels."""
        return self.decoder.out.weight

    def encode(self, pixels: Tensor) -> Gaussian:
        """The latents' distribution.

        Raises:
            BedstoneError: pictures of other channels, or of a size that the stages don't divide.
        """
        check_pixels(self.config, tuple(pixels.shape))
        states = self.encoder(pixels)
        if self.moments is not None:
            states = self.moments(states)
        mean, log_variance = states.float().chunk(2, 1)
        return Gaussian(mean, log_variance.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, Z, h, w) to pictures (B, C, H, W), about -1 to 1.

        Raises:
            BedstoneError: they have another number of channels.
        """
        channels = self.config.latent_channels
        if latents.dim() != 4 or latents.shape[1] != channels:
            raise BedstoneError(
                f"latents: have the shape {tuple(latents.shape)}; this autoencoder's have "
                f"{channels} channels: (pictures, {channels}, height, width). Take the autoencoder "
                "that they were made with."
            )
        return self.decoder(latents if self.prepare is None else self.prepare(latents))

    def latents(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents, of a deviation of about 1: a draw by a generator, else the mode."""
        found = self.encode(pixels)
        latents = found.mode() if generator is None else found.sample(generator)
        mean, scale = self._scale(latents)
        return (latents - mean) * scale

    def pictures(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures with values from -1 to 1."""
        mean, scale = self._scale(latents)
        return self.decode(latents / scale + mean).clamp(-1.0, 1.0)

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures by way of drawn latents (B, C, H, W), and the nats of the latents (B,)."""
        found = self.encode(pixels)
        return self.decode(found.sample()), found.kl()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.decode(self.encode(pixels).mode())

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is subtracted from latents, and what they are multiplied by then."""
        config = self.config
        mean = like.new_tensor(config.shift_factor or 0.0)
        scale = like.new_tensor(config.scaling_factor)
        if config.latents_mean is not None:
            mean = mean + like.new_tensor(config.latents_mean)[:, None, None]
        if config.latents_std is not None:
            scale = scale / like.new_tensor(config.latents_std)[:, None, None]
        return mean, scale


def make(config: AutoencoderConfig) -> AutoencoderKL:
    """An autoencoder whose weights are still to be filled."""
    return AutoencoderKL(config)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Blocks begin as their shortcuts: the last convolution of each is zero (Goyal et al., 2017,
    section 5.1); the rest is as torch has it."""
    for part in network.modules():
        if isinstance(part, UNetBlock):
            nn.init.zeros_(part.conv2.weight)
            if part.conv2.bias is not None:
                nn.init.zeros_(part.conv2.bias)


def build(config: AutoencoderConfig, *, seed: int | None = None) -> AutoencoderKL:
    """An autoencoder with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    initialise(network)
    return network


# The judge of an adversarial loss: is each patch of a picture real? (Isola et al., 2017.)
#
# Group norms stand in the place of batch norms, so that a verdict depends on its own picture alone.
#
# Shapes: B pictures, C channels, H x W pixels, h x w patches.

GROUPS = 4


class PatchGAN(nn.Module):
    """(B, C, H, W) to verdicts (B, 1, h, w), high where a patch looks real.

    Args:
        channels: of the pictures.
        width: channels of the first map; a multiple of 4. Each further one has twice as many.
        layers: how often the map is halved; 3 is as published, for pictures of 256 pixels.
    """

    def __init__(self, channels: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number in range(1, layers + 1):
            outputs = width * 2
            stride = 2 if number < layers else 1
            parts += [
                nn.Conv2d(width, outputs, 4, stride, 1, bias=False),
                GroupNorm(GROUPS, outputs),
                nn.LeakyReLU(0.2),
            ]
            width = outputs
        self.parts = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.parts(pixels)


def least_side(layers: int) -> int:
    """Pixels of a side that one patch takes at least."""
    return 3 * 2**layers


def build_patchgan(channels: int, width: int, layers: int, *, seed: int) -> PatchGAN:
    """One with fresh weights; what else is drawn by torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchGAN(channels, width, layers)
