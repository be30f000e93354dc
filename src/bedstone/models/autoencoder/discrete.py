"""Autoencoders whose latents are codes: images to ids of a finite codebook, and back.

Three quantizers behind one interface (`encode` to ids, `decode` of ids): finite scalar quantization
(Mentzer et al., 2023), a learnt codebook (VQ-VAE, van den Oord et al., 2017) and a categorical
distribution that is relaxed in training (the dVAE of DALL-E, Ramesh et al., 2021).

Ids are chosen in fp32, whatever the network computes in.

Shapes: B batch, C channels, H x W pixels, h x w codes, K codes, D numbers of a code, N vectors.
"""

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.models.autoencoder.config import (
    DiscreteConfig,
    DiscreteVAEConfig,
    VQConfig,
    check_pixels,
)
from bedstone.models.autoencoder.network import Decoder, Encoder, initialise
from bedstone.nn.layers import ACTIVATIONS

ENCODED = 8  # images that are encoded at a time, always: products round by their sizes
EPS = 1e-3  # by how far the outermost levels lie inside the bounds
INSIDE = 0.1  # what logit-Laplace leaves between pixels and the ends of 0 to 1


def in_fp32(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """No autocast."""
    return torch.autocast(like.device.type, enabled=False)


class DiscreteAutoencoder(nn.Module):
    """Images of values from -1 to 1 to ids and back; `forward` goes there and back.

    A subclass has `latents`, `nearest`, `vectors`, `render`, `quantized` and `learn`.
    """

    config: Any
    codebook_size: int

    @property
    def last_weight(self) -> Tensor:
        """Of the convolution that gives pixels."""
        decoder: Any = self.decoder
        found: Tensor = decoder.out.weight
        return found

    def latents(self, pixels: Tensor) -> Tensor:
        """What the encoder makes of images (B, C, H, W), before it is quantized."""
        raise NotImplementedError

    def nearest(self, latents: Tensor) -> Tensor:
        """The ids (B, h, w) int64 of latents in fp32."""
        raise NotImplementedError

    def vectors(self, ids: Tensor) -> Tensor:
        """The numbers (B, D, h, w) fp32 of ids (B, h, w)."""
        raise NotImplementedError

    def quantized(self, latents: Tensor) -> Tensor:
        """`vectors` of the nearest ids, with gradients for the latents."""
        raise NotImplementedError

    def render(self, vectors: Tensor) -> Tensor:
        """What the decoder makes of vectors: images, or distributions of their values."""
        raise NotImplementedError

    def images(self, rendered: Tensor) -> Tensor:
        """Images (B, C, H, W), about -1 to 1, of what `render` gave."""
        return rendered

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What `render` gives in training, and the cost of the latents (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Images (B, C, H, W) to ids (B, h, w) int64.

        An image has the same ids in a batch of any size, and under autocast.

        Raises:
            BedstoneError: images of other channels, or of a size that the stages don't divide.
        """
        check_pixels(self.config, tuple(pixels.shape))
        found = []
        with in_fp32(pixels):
            for part in pixels.split(ENCODED):
                missing = ENCODED - len(part)
                whole = F.pad(part, (0, 0) * 3 + (0, missing)) if missing else part
                found.append(self.nearest(self.latents(whole).float())[: len(part)])
        return torch.cat(found)

    def decode(self, ids: Tensor) -> Tensor:
        """Ids (B, h, w) to images (B, C, H, W) with values from -1 to 1.

        Raises:
            BedstoneError: they have another shape, or one isn't a code.
        """
        check_ids(ids, self.codebook_size)
        return self.images(self.render(self.vectors(ids.long())).float()).clamp(-1.0, 1.0)

    def forward(self, pixels: Tensor) -> Tensor:
        check_pixels(self.config, tuple(pixels.shape))
        return self.images(self.render(self.quantized(self.latents(pixels))))


def check_ids(ids: Tensor, codes: int) -> None:
    """Raises BedstoneError for ids (B, h, w) that aren't of a codebook."""
    whole = not ids.is_floating_point() and ids.dtype is not torch.bool
    if ids.dim() != 3 or not whole:
        raise BedstoneError(
            f"ids: have the shape {tuple(ids.shape)} and type {ids.dtype}; expected "
            "whole numbers (images, rows, columns)."
        )
    if ids.numel() and not (ids.min() >= 0 and ids.max() < codes):
        raise BedstoneError(
            f"ids: lie from {int(ids.min())} to {int(ids.max())}; this autoencoder's go "
            f"from 0 to {codes - 1}."
        )


# Finite scalar quantization: each of a few numbers is bounded and rounded to a few levels, and
# together they are a code. There is no codebook to learn and none to collapse.


class FSQ:
    """Rounds (B, D, h, w) to levels; section 3.1 and appendix A.1.

    Args:
        levels: how many values each of the D numbers takes.
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
        """Quantized numbers (B, D, h, w) to codes (B, h, w) int64, from 0."""
        digits = ((quantized + 1) * self._half(quantized)).round().long()
        return (digits * self._column(self._basis(), digits)).sum(1)

    def numbers(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to quantized numbers (B, D, h, w) fp32."""
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


class FSQAutoencoder(DiscreteAutoencoder):
    """Residual blocks on patches of pixels, round finite scalar quantization."""

    def __init__(self, config: DiscreteConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer = FSQ(config.levels)
        self.codebook_size = config.codes
        pixels, act = config.channels * config.patch**2, ACTIVATIONS[config.activation]
        shape = config.widths, config.layers, config.groups, act
        numbers = len(config.levels)
        self.encoder = Encoder(pixels, numbers, *shape, attends=config.attention)
        self.decoder = Decoder(numbers, pixels, *shape, attends=config.attention)

    def latents(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.encoder(F.pixel_unshuffle(pixels, self.config.patch))
        return found

    def nearest(self, latents: Tensor) -> Tensor:
        return self.quantizer.codes(self.quantizer.quantize(latents))

    def vectors(self, ids: Tensor) -> Tensor:
        return self.quantizer.numbers(ids)

    def quantized(self, latents: Tensor) -> Tensor:
        return self.quantizer.quantize(latents)

    def render(self, vectors: Tensor) -> Tensor:
        return F.pixel_shuffle(self.decoder(vectors), self.config.patch)

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Images by way of their codes, and no cost: zeros (B,)."""
        return self(pixels), pixels.new_zeros(len(pixels))


# A codebook that is learnt: the nearest of K vectors.


class Codebook(nn.Module):
    """K vectors (K, D), that no gradient moves."""

    weight: Tensor

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(codes, width).uniform_(-1 / codes, 1 / codes))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids (N,) of the nearest of the vectors (N, D), by the squared distance in fp32."""
        middle = self.weight.float().mean(0)  # far from it, squares would hide small distances
        table, vectors = self.weight.float() - middle, vectors.float() - middle
        with in_fp32(vectors):
            return (table.square().sum(1) - 2 * vectors @ table.T).argmin(1)


class CodebookAverages(nn.Module):
    """Moves a codebook after what is nearest to its vectors; trained beside a `VQModel`.

    A vector is the moving average of the latents that it was nearest to (van den Oord et al., 2017,
    appendix A.1). The first vectors are latents of the first batch, and one that is hardly used
    becomes a latent of the last (Dhariwal et al., 2020, section 3.1).

    Args:
        decay: of the averages, a step.
        least: share of an even use below which a vector is replaced.
    """

    counts: Tensor  # (K,) uses in a step
    sums: Tensor  # (K, D) of the latents, in a step
    started: Tensor

    def __init__(self, codebook: Codebook, decay: float = 0.99, least: float = 0.03) -> None:
        super().__init__()
        codes, width = codebook.weight.shape
        self.decay, self.least = decay, least
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("started", torch.zeros(()))
        self._seen: list[tuple[Tensor, Tensor]] = []  # latents and ids since the last step

    @torch.no_grad()
    def begin(self, codebook: Codebook, latents: Tensor) -> None:
        """Takes the first vectors from latents (N, D), once."""
        if not self.started:
            codebook.weight.copy_(self._some(latents, len(codebook.weight)))
            self.started.fill_(1.0)

    def see(self, latents: Tensor, ids: Tensor) -> None:
        """Latents (N, D) of a batch, and the ids (N,) that they were nearest to."""
        self._seen.append((latents.detach().float(), ids))

    @torch.no_grad()
    def settle(self, codebook: Codebook) -> None:
        """One step of the averages, and of the codebook."""
        if not self._seen:
            return
        latents, ids = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        uses = torch.bincount(ids, minlength=len(self.counts)).float()
        totals = torch.zeros_like(self.sums).index_add_(0, ids, latents)
        even = len(latents) / len(self.counts)
        if not self.counts.any():  # as if all had been as it is now
            self.counts.fill_(even)
            self.sums.copy_(codebook.weight * even)
        self.counts.lerp_(uses, 1 - self.decay)
        self.sums.lerp_(totals, 1 - self.decay)
        unused = (self.counts < self.least * even).nonzero()[:, 0]
        if len(unused):
            self.counts[unused] = even
            self.sums[unused] = self._some(latents, len(unused)) * even
        codebook.weight.copy_(self.sums / self.counts[:, None])

    @staticmethod
    def _some(latents: Tensor, count: int) -> Tensor:
        """As many latents, drawn by torch's generator, a little apart where one comes twice."""
        chosen = latents.float()[torch.randint(len(latents), (count,))]
        spread = latents.float().std(0, correction=0)
        return chosen + 1e-3 * spread * torch.randn_like(chosen)


class VQModel(DiscreteAutoencoder):
    """diffusers' network of that name: residual blocks round a codebook (Esser et al., 2021)."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codes
        shape = config.groups, ACTIVATIONS[config.activation]
        widths, attends = config.widths, config.attention
        latents, width = config.latent_channels, config.code_width
        self.encoder = Encoder(
            config.channels, latents, widths, config.layers, *shape, attends=attends
        )
        self.moments = nn.Conv2d(latents, width, 1)
        self.codebook = Codebook(config.codes, width)
        self.prepare = nn.Conv2d(width, latents, 1)
        self.decoder = Decoder(
            latents, config.out_channels, widths, config.layers + 1, *shape, attends=attends
        )

    def latents(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.moments(self.encoder(pixels))
        return found

    def nearest(self, latents: Tensor) -> Tensor:
        rows = latents.movedim(1, -1)  # (B, h, w, D)
        return self.codebook.nearest(rows.flatten(0, 2)).view(rows.shape[:3])

    def vectors(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.codebook.weight).movedim(-1, 1).contiguous().float()

    def quantized(self, latents: Tensor) -> Tensor:
        latents = latents.float()
        return latents + (self.vectors(self.nearest(latents)) - latents).detach()

    def render(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.prepare(vectors))

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Images by way of their codes; and how far latents lie from these (B,): the mean of
        squares, counted for as many values as an image has."""
        check_pixels(self.config, tuple(pixels.shape))
        latents = self.latents(pixels).float()
        rows = latents.movedim(1, -1).flatten(0, 2)
        averages: CodebookAverages | None = getattr(self, "averages", None)
        if averages is not None and self.training:
            averages.begin(self.codebook, rows)
        ids = self.nearest(latents.detach())
        if averages is not None and self.training:
            averages.see(rows, ids.flatten())
        chosen = self.vectors(ids)
        apart = (latents - chosen).square().flatten(1).mean(1) * pixels[0].numel()
        return self.render(latents + (chosen - latents).detach()), apart


# The dVAE: each place has a distribution over K tokens, of which training draws relaxed ones.


class Residual(nn.Module):
    """x + three convolutions of it; DALLE-pytorch's `ResBlock`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


class DiscreteVAE(DiscreteAutoencoder):
    """DALLE-pytorch's network of that name, by its tensors' names.

    Attributes:
        temperature: of the Gumbel softmax that training draws by; an objective may change it.
    """

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = config.codes
        self.temperature = config.temperature
        width, blocks = config.width, config.blocks
        down: list[nn.Module] = []
        for before in (config.channels, *[width] * (config.layers - 1)):
            down.append(nn.Sequential(nn.Conv2d(before, width, 4, 2, 1), nn.ReLU()))
        down += [Residual(width) for _ in range(blocks)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, config.codes, 1))
        up: list[nn.Module] = [nn.Conv2d(config.code_width, width, 1)] if blocks else []
        up += [Residual(width) for _ in range(blocks)]
        first = width if blocks else config.code_width
        for before in (first, *[width] * (config.layers - 1)):
            up.append(nn.Sequential(nn.ConvTranspose2d(before, width, 4, 2, 1), nn.ReLU()))
        outputs = config.channels * (2 if config.logit_laplace else 1)
        self.decoder = nn.Sequential(*up, nn.Conv2d(width, outputs, 1))
        self.codebook = nn.Embedding(config.codes, config.code_width)

    @property
    def last_weight(self) -> Tensor:
        last: Any = self.decoder[-1]
        found: Tensor = last.weight
        return found

    def latents(self, pixels: Tensor) -> Tensor:
        """Logits of the tokens, (B, K, h, w)."""
        mean, std = self._statistics(pixels)
        found: Tensor = self.encoder(((pixels + 1) / 2 - mean) / std)
        return found

    def nearest(self, latents: Tensor) -> Tensor:
        return latents.argmax(1)

    def vectors(self, ids: Tensor) -> Tensor:
        return self.codebook(ids).movedim(-1, 1).contiguous().float()

    def quantized(self, latents: Tensor) -> Tensor:
        soft = latents.float().softmax(1)
        hard = F.one_hot(soft.argmax(1), soft.shape[1]).movedim(-1, 1).to(soft)
        return self._mixed(hard - soft.detach() + soft)

    def render(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors)

    def images(self, rendered: Tensor) -> Tensor:
        if self.config.logit_laplace:
            return 2 * unmap_pixels(rendered.chunk(2, 1)[0].sigmoid()) - 1
        mean, std = self._statistics(rendered)
        return 2 * (rendered * std + mean) - 1

    def learn(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Images by way of drawn tokens, or with `logit_laplace` what `logit_laplace` reads; and
        the nats of the tokens over uniform ones (B,)."""
        check_pixels(self.config, tuple(pixels.shape))
        logits = self.latents(pixels).float()
        config = self.config
        drawn = relaxed(
            logits,
            self.temperature,
            straight_through=config.straight_through,
            reinmax=config.reinmax,
        )
        rendered = self.render(self._mixed(drawn))
        if not config.logit_laplace:
            rendered = self.images(rendered)
        return rendered, categorical_nats(logits)

    def _mixed(self, shares: Tensor) -> Tensor:
        """Shares of tokens (B, K, h, w) to vectors (B, D, h, w)."""
        return torch.einsum("bkhw,kd->bdhw", shares, self.codebook.weight)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(each, dtype=like.dtype, device=like.device)[:, None, None]
            for each in (self.config.mean, self.config.std)
        )
        return mean, std


def relaxed(
    logits: Tensor, temperature: float, *, straight_through: bool = False, reinmax: bool = False
) -> Tensor:
    """Shares of K tokens (B, K, ...), drawn by the Gumbel softmax (Jang et al., 2017).

    Args:
        straight_through: one token each, with the gradients of the mixture.
        reinmax: with those of ReinMax instead (Liu et al., 2023, algorithm 2).
    """
    drawn = F.gumbel_softmax(logits, temperature, hard=straight_through, dim=1)
    return reinmax_gradients(drawn, logits, temperature) if reinmax else drawn


def reinmax_gradients(drawn: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`drawn`, one token each (B, K, ...), with gradients of second order for the logits."""
    drawn = drawn.detach()
    plain = logits.softmax(1)
    halfway = (drawn + (logits / temperature).softmax(1)) / 2
    halfway = ((halfway.clamp_min(1e-20).log() - logits).detach() + logits).softmax(1)
    found = 2 * halfway - 0.5 * plain
    return found - found.detach() + drawn


def categorical_nats(logits: Tensor) -> Tensor:
    """Nats of the distributions (B, K, h, w) over the uniform one, summed over the places: (B,)."""
    known = logits.log_softmax(1)
    each = (known.exp() * (known + math.log(logits.shape[1]))).sum(1)  # (B, h, w)
    return each.flatten(1).sum(1)


def map_pixels(pixels: Tensor) -> Tensor:
    """Values from 0 to 1 into the inside of that (Ramesh et al., 2021, appendix A.3)."""
    return (1 - 2 * INSIDE) * pixels + INSIDE


def unmap_pixels(mapped: Tensor) -> Tensor:
    """The values, from 0 to 1, that `map_pixels` made these of."""
    return ((mapped - INSIDE) / (1 - 2 * INSIDE)).clamp(0.0, 1.0)


# Networks by their configuration.


def make_discrete(config: DiscreteConfig) -> FSQAutoencoder:
    """An autoencoder whose weights are still to be filled."""
    return FSQAutoencoder(config)


def build_discrete(config: DiscreteConfig, *, seed: int | None = None) -> FSQAutoencoder:
    """An autoencoder with fresh weights, drawn from `seed` if one is given."""
    return _fresh(make_discrete, config, seed)


def make_vq(config: VQConfig) -> VQModel:
    """One whose weights are still to be filled."""
    return VQModel(config)


def build_vq(config: VQConfig, *, seed: int | None = None) -> VQModel:
    """One with fresh weights; its codebook begins with latents, in training."""
    return _fresh(make_vq, config, seed)


def make_dvae(config: DiscreteVAEConfig) -> DiscreteVAE:
    """One whose weights are still to be filled."""
    return DiscreteVAE(config)


def build_dvae(config: DiscreteVAEConfig, *, seed: int | None = None) -> DiscreteVAE:
    """One with fresh weights."""
    return _fresh(make_dvae, config, seed)


def _fresh(make: Any, config: Any, seed: int | None) -> Any:
    if seed is not None:
        torch.manual_seed(seed)
    network = make(config)
    initialise(network)
    return network
