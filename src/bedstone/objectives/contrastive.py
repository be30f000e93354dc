"""Contrastive losses of images with texts: softmax (CLIP) and sigmoid (SigLIP).

The softmax form is CLIP's (Radford et al., 2021, figure 3), the sigmoid form SigLIP's (Zhai et al.,
2023, equation 1). Equal texts in a batch are all right answers: the softmax form then aims at all
of them alike (UniCL, Yang et al., 2022, equations 2 and 3), and with texts that differ it is
CLIP's. Texts after the batch's own are hard negatives (NegCLIP, Yuksekgonul et al., 2023): every
picture is told from them too. Patch dropout is FLIP's (Li et al., 2023). Gradient caching (Gao et
al., 2021, section 3) makes the memory of a step that of one chunk.

Shapes: B pictures, n >= B texts, E joint width, P patches of a picture, K of them read.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone import ranks
from bedstone.data.text.packing import Packed
from bedstone.errors import BedstoneError
from bedstone.settings import Settings, one_of, share, whole

KINDS = ("softmax", "sigmoid")
# CLIP, section 2.5: a larger scale makes training unstable. The parameter is clamped after each
# step, as open_clip does, so that its gradient never vanishes. SigLIP has no limit, and those
# published learnt scales above it.
SCALES = (1.0, 100.0)


class Pairs(Protocol):
    """What is read of a batch.

    Attributes:
        pixels: (B, 3, H, W), ready for the network.
        rows: n texts laid end to end; the first B are the pictures' own.
        groups: (n,) which text each is: equal numbers are equal texts.
    """

    @property
    def pixels(self) -> Tensor: ...
    @property
    def rows(self) -> Packed: ...
    @property
    def groups(self) -> Tensor: ...


def softmax_loss(image: Tensor, text: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """The sum over B pairs of the mean of two cross-entropies: which text, and which picture.

    Args:
        image: (B, E) of unit length.
        text: (n, E) of unit length.
        scale: what cosines are multiplied by.
        groups: (n,) equal numbers are equal texts.
    """
    images = len(image)
    logits = scale * image @ text.T  # (B, n)
    right = (groups[:images, None] == groups).to(logits.dtype)  # (B, n)
    own = right[:, :images]
    which_text = -(logits.log_softmax(1) * (right / right.sum(1, keepdim=True))).sum()
    which_image = -(logits[:, :images].log_softmax(0) * (own / own.sum(0))).sum()
    return (which_text + which_image) / 2


def sigmoid_loss(
    image: Tensor, text: Tensor, scale: Tensor, groups: Tensor, bias: Tensor | float
) -> Tensor:
    """The sum over all B n combinations of the loss of saying whether they belong together.

    Args:
        bias: added to each logit, as most combinations are wrong.
    """
    logits = scale * image @ text.T + bias
    right = groups[: len(image), None] == groups
    return -F.logsigmoid(torch.where(right, logits, -logits)).sum()


@torch.no_grad()
def bound_scale(network: Any) -> None:
    """Clamps the logarithm of a network's scale, the parameter `logit_scale`, to `SCALES`."""
    least, most = map(math.log, SCALES)
    network.logit_scale.clamp_(least, most)


@dataclass(frozen=True)
class ContrastiveLoss(Settings):
    """The objective: (network, batch) to the sum of losses and the number of pictures.

    Attributes:
        kind: softmax or sigmoid.
        chunk: pictures, or texts, that go through a tower at a time; 0 is all at once. The
            gradient is the same.
        patch_dropout: share of a picture's patches that are not read.
    """

    kind: str = one_of(*KINDS, default="softmax")
    chunk: int = whole(0, default=0)
    patch_dropout: float = share(below_one=True, default=0.0)

    section = "objective."

    def __call__(self, network: Any, batch: Pairs) -> tuple[Tensor, float]:
        image = self.images(network, batch.pixels)
        text = self.texts(network, batch.rows)
        device = batch.pixels.device.type
        # Cosines times 100 need more than bf16's three digits.
        with torch.autocast(device, enabled=False):
            image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
            groups, pairs = batch.groups, len(image)
            if ranks.count() > 1:
                image, text, groups = of_all_ranks(image, text, groups)
            scale = network.scale.float()
            if self.kind == "sigmoid":
                bias = 0.0 if network.bias is None else network.bias.float()
                loss = sigmoid_loss(image, text, scale, groups, bias)
            else:
                loss = softmax_loss(image, text, scale, groups)
            if ranks.count() > 1:  # each of them computes the whole loss
                loss = loss / ranks.count()
        return loss, pairs

    def after_step(self, network: Any) -> None:
        """Keeps the softmax form's scale within its bounds; called after each update."""
        if self.kind == "softmax":
            bound_scale(network)

    def images(self, network: Any, pixels: Tensor) -> Tensor:
        """(B, E), in chunks where asked for."""
        kept = None
        if self.patch_dropout:
            patches = patches_of(network)
            kept = ranks.drawn(
                lambda many: draw_patches(many, patches, self.patch_dropout), len(pixels)
            )
            kept = kept.to(pixels.device)
        size = self._chunk(network.image, len(pixels))
        if not size:
            return network.image_features(pixels, kept)
        refuse_batch_norm(network.image)
        parts = [
            (pixels[at : at + size], None if kept is None else kept[at : at + size])
            for at in range(0, len(pixels), size)
        ]
        return cached(lambda part: network.image_features(*part), parts, pixels.device)

    def texts(self, network: Any, rows: Packed) -> Tensor:
        """(n, E), in chunks where asked for."""
        count = len(rows.lengths)
        size = self._chunk(network.text, count)
        if not size:
            return network.text_features(rows)
        parts = [rows.part(at, at + size) for at in range(0, count, size)]
        return cached(network.text_features, parts, rows.ids.device)

    def _chunk(self, tower: nn.Module, count: int) -> int:
        """How many at a time; 0 where one pass does: few of them, or nothing to learn."""
        learns = any(weight.requires_grad for weight in tower.parameters())
        return self.chunk if self.chunk < count and learns and torch.is_grad_enabled() else 0


def of_all_ranks(image: Tensor, text: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, E), (n, E) and (n,) of the whole batch: all pictures' own texts, then hard negatives.

    Args:
        image, text, groups: of this rank's part, in that order too.
    """
    pairs = len(image)
    own, negative = ranks.all_rows(text[:pairs]), ranks.all_rows(text[pairs:])
    numbers = ranks.all_rows(groups[:pairs]), ranks.all_rows(groups[pairs:])
    return ranks.all_rows(image), torch.cat((own, negative)), torch.cat(numbers)


def draw_patches(images: int, patches: int, dropped: float) -> Tensor:
    """(B, K): which patches of each picture are read, in their order, drawn by torch's seed."""
    kept = max(round(patches * (1 - dropped)), 1)
    return torch.rand(images, patches).argsort(1)[:, :kept].sort(1).values


def patches_of(network: Any) -> int:
    """Patches of a picture.

    Raises:
        BedstoneError: the picture tower has none.
    """
    shape = network.config.image
    if not getattr(shape, "patch", 0):
        raise BedstoneError(
            "patch_dropout: the picture tower has no patches to leave out; set it to 0, or take a "
            "ViT (model.image.patch)."
        )
    return shape.patches


def refuse_batch_norm(tower: nn.Module) -> None:
    """Raises BedstoneError where a tower's outputs depend on the whole batch."""
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in tower.modules()):
        raise BedstoneError(
            "chunk: the picture tower has batch norm, whose statistics are over the whole batch, "
            "so that chunks would learn something else. Set chunk to 0, or take a ViT."
        )


def cached(run: Callable[[Any], Tensor], parts: Sequence[Any], device: torch.device) -> Tensor:
    """`torch.cat([run(part) for part in parts])` whose graph is built part by part, in backward.

    Equal to the plain form in value and in gradient, dropout included; each part runs twice.
    """
    gate = torch.zeros((), requires_grad=True)  # asks autograd for the backward
    return _Cached.apply(gate, run, parts, device)


class _Cached(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        run: Callable[[Any], Tensor],
        parts: Sequence[Any],
        device: torch.device,
    ) -> Tensor:
        ctx.run, ctx.parts, ctx.device = run, parts, device
        ctx.dtype = None
        if torch.is_autocast_enabled(device.type):
            ctx.dtype = torch.get_autocast_dtype(device.type)
        ctx.states, found = [], []
        for part in parts:
            ctx.states.append(_random_state(device))
            # Weights that autocast kept from here would have no gradient later.
            with _casting(device, ctx.dtype):
                found.append(run(part))
        ctx.sizes = [len(each) for each in found]
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        after = _random_state(ctx.device)
        slices = gradients[0].split(ctx.sizes)
        for part, state, gradient in zip(ctx.parts, ctx.states, slices, strict=True):
            _set_random_state(ctx.device, state)
            with torch.enable_grad(), _casting(ctx.device, ctx.dtype):
                out = ctx.run(part)
            if out.requires_grad:
                out.backward(gradient.to(out.dtype))
        _set_random_state(ctx.device, after)
        return (None,) * 4


def _casting(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    if dtype is None:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype, cache_enabled=False)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), there


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
