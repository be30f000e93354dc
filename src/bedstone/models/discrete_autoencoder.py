"""Pictures to a grid of codes and back: what a DALL-E writes after a text.

Finite scalar quantization (Mentzer et al., 2023): each of a few numbers is bounded and rounded to a
few levels, and together they are a code. There is no codebook to learn and none to collapse.

Shapes: B batch, C channels, H x W pixels, h x w codes, K numbers of a code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.autoencoder import Decoder, Encoder, initialise
from bedstone.models.autoencoder_config import DiscreteConfig, check_pixels
from bedstone.nn.layers import ACTIVATIONS

EPS = 1e-3  # by how far the outermost levels lie inside the bounds


class FSQ:
    """Rounds (B, K, h, w) to levels; section 3.1 and appendix A.1.

    Args:
        levels: how many values each of the K numbers takes.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.levels = levels
        self.count = math.prod(levels)

    def bounded(self, z: Tensor) -> Tensor:
        """Into the range of the levels, smoothly; an even number of them lies lower by a half."""
        levels = self._column(self.levels, z)
        half = (levels - 1) * (1 + EPS) / 2
        offset = (levels + 1) % 2 / 2
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def quantize(self, z: Tensor) -> Tensor:
        """The nearest levels, scaled to -1 to 1; gradients pass as if nothing was rounded."""
        bounded = self.bounded(z.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self._half(rounded)

    def codes(self, quantized: Tensor) -> Tensor:
        """Quantized numbers (B, K, h, w) to codes (B, h, w) int64, from 0."""
        digits = ((quantized + 1) * self._half(quantized)).round().long()
        return (digits * self._column(self._basis(), digits)).sum(1)

    def numbers(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to quantized numbers (B, K, h, w) fp32."""
        basis, levels = (self._column(each, codes) for each in (self._basis(), self.levels))
        digits = (codes[:, None] // basis % levels).float()
        half = self._half(digits)
        return (digits - half) / half

    def _basis(self) -> tuple[int, ...]:
        return tuple(math.prod(self.levels[:i]) for i in range(len(self.levels)))

    def _half(self, like: Tensor) -> Tensor:
        return self._column(tuple(level // 2 for level in self.levels), like)

    @staticmethod
    def _column(values: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


class DiscreteAutoencoder(nn.Module):
    """Pictures of values from -1 to 1 to codes and back; `forward` goes there and back."""

    def __init__(self, config: DiscreteConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = FSQ(config.levels)
        pixels, act = config.channels * config.patch**2, ACTIVATIONS[config.activation]
        shape = config.widths, config.layers, config.groups, act
        numbers = len(config.levels)
        self.encoder = Encoder(pixels, numbers, *shape, attends=config.attention)
        self.decoder = Decoder(numbers, pixels, *shape, attends=config.attention)

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return self.quantizer.count

    @property
    def last_weight(self) -> Tensor:
        """Of the convolution that gives pixels."""
        return self.decoder.out.weight

    def quantized(self, pixels: Tensor) -> Tensor:
        """The numbers of the codes, (B, K, h, w) fp32, from -1 to 1.

        Raises:
            BedstoneError: pictures of other channels, or of a size that the stages don't divide.
        """
        check_pixels(self.config, tuple(pixels.shape))
        return self.quantizer.quantize(self.encoder(F.pixel_unshuffle(pixels, self.config.patch)))

    def decode(self, quantized: Tensor) -> Tensor:
        """Numbers (B, K, h, w) to pictures (B, C, H, W), about -1 to 1."""
        return F.pixel_shuffle(self.decoder(quantized), self.config.patch)

    def codes(self, pixels: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to codes (B, h, w) int64; raises as `quantized`."""
        return self.quantizer.codes(self.quantized(pixels))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to pictures (B, C, H, W) with values from -1 to 1.

        Raises:
            BedstoneError: they have another shape, or one isn't a code.
        """
        whole = not codes.is_floating_point() and codes.dtype is not torch.bool
        if codes.dim() != 3 or not whole:
            raise BedstoneError(
                f"codes: have the shape {tuple(codes.shape)} and type {codes.dtype}; expected "
                "whole numbers (pictures, rows, columns)."
            )
        if codes.numel() and not (codes.min() >= 0 and codes.max() < self.codebook_size):
            raise BedstoneError(
                f"codes: lie from {int(codes.min())} to {int(codes.max())}; this autoencoder's go "
                f"from 0 to {self.codebook_size - 1}."
            )
        return self.decode(self.quantizer.numbers(codes.long())).clamp(-1.0, 1.0)

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures by way of their codes (B, C, H, W), and no nats: (B,) zeros."""
        return self(pixels), pixels.new_zeros(len(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.decode(self.quantized(pixels))


def make(config: DiscreteConfig) -> DiscreteAutoencoder:
    """An autoencoder whose weights are still to be filled."""
    return DiscreteAutoencoder(config)


def build(config: DiscreteConfig, *, seed: int | None = None) -> DiscreteAutoencoder:
    """An autoencoder with fresh weights, drawn from `seed` if one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    initialise(network)
    return network
