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
from bedstone.models.autoencoder_config import AutoencoderConfig, check_pixels
from bedstone.nn.layers import ACTIVATIONS, Activation
from bedstone.nn.maps import Double, GroupNorm, Halve, MapBlock, Middle


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
                parts.append(MapBlock(before, width, groups, activation))
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
                parts.append(MapBlock(before, width, groups, activation))
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
        if isinstance(part, MapBlock):
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
