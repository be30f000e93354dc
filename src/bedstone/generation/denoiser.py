"""What a sampler asks: the clean signal and the noise that a network sees in x.

`denoiser` makes one of a network, its process and what it was trained to predict; the others
change what is asked or answered: limits of the clean signal, and drawing only a part of it.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.denoise_steps import Denoiser
from bedstone.nn.noise_targets import Target
from bedstone.nn.noising import Process, along

# (x (B, C, *S), the time as it is told (B,)) -> (B, C or more, *S).
Network = Callable[[Tensor, Tensor], Tensor]
Limit = Callable[[Tensor], Tensor]


def denoiser(
    network: Network,
    process: Process,
    target: Target,
    *,
    limit: Limit | None = None,
    told: Callable[[Tensor], Tensor] | None = None,
    noise_stays: bool = False,
) -> Denoiser:
    """A network as samplers ask it.

    Args:
        network: its conditions already given; of channels beyond those of x (a learnt variance),
            nothing is used.
        limit: of the clean signal, such as `clip`; the noise follows from what it leaves.
        told: the number that the network is told for a time, if not the process's own.
        noise_stays: the noise is the network's, whatever a limit leaves of the clean signal.
    """
    says = told or process.told

    def ask(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = network(x * along(process.scale_in(t), x), says(t))
        out = out[:, : x.shape[1]].to(x.dtype)
        x0 = target.clean(process, x, out, t)
        if limit is None:
            return x0, target.noise(process, x, out, t)
        x0 = limit(x0)
        left = target.noise(process, x, out, t) if noise_stays else _noise_left(process, x, x0, t)
        return x0, left

    return ask


def inpainted(ask: Denoiser, process: Process, known: Tensor, mask: Tensor) -> Denoiser:
    """A denoiser that knows a part of the signal.

    The clean signal is put back where it is known before each step, so that the known part of x
    has that step's noise, whatever the sampler (Song et al., 2021b, appendix I.2, by prediction
    instead of by x), and is exactly the known one at the end.

    Args:
        ask: the denoiser.
        known: clean signals (B or 1, C, *S).
        mask: 1 where something is to be drawn, 0 where the signal is known; between them both are
            mixed. (B or 1, C or 1, *S).

    Raises:
        BedstoneError: a mask of another size, or with numbers outside 0 to 1.
    """
    sizes = tuple(known.shape[2:])
    if mask.dim() != known.dim() or tuple(mask.shape[2:]) != sizes:
        raise BedstoneError(
            f"mask: its shape is {tuple(mask.shape)} and the signal's {tuple(known.shape)}; "
            f"expected a mask (1 or {known.shape[0]} rows, 1 or {known.shape[1]} channels) of the "
            f"same size {sizes}. Resize it to the signal."
        )
    if mask.shape[1] not in (1, known.shape[1]):
        raise BedstoneError(
            f"mask: has {mask.shape[1]} channels; expected 1, or {known.shape[1]} as the signal."
        )
    if not (float(mask.min()) >= 0 and float(mask.max()) <= 1):  # nan is neither
        raise BedstoneError(
            f"mask: its numbers go from {float(mask.min()):g} to {float(mask.max()):g}; expected "
            "1 where to draw and 0 where to keep, or something between."
        )

    def ask_for_the_rest(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if known.shape[1:] != x.shape[1:] or known.shape[0] not in (1, x.shape[0]):
            raise BedstoneError(
                f"known: its shape is {tuple(known.shape)}; expected that of what is drawn, "
                f"{tuple(x.shape)}."
            )
        if mask.shape[0] not in (1, x.shape[0]):
            raise BedstoneError(
                f"mask: has {mask.shape[0]} rows; expected 1, or {x.shape[0]} as are drawn."
            )
        x0 = torch.lerp(known.to(x).expand_as(x), ask(x, t)[0], mask.to(x).expand_as(x))
        return x0, _noise_left(process, x, x0, t)

    return ask_for_the_rest


def clip(most: float = 1.0) -> Limit:
    """A limit: numbers beyond -most to most are cut."""
    return lambda x0: x0.clamp(-most, most)


def dynamic_threshold(share: float = 0.995, most: float = 1.0) -> Limit:
    """A limit for strong guidance (Saharia et al., 2022, section 2.3).

    Each row is cut at the size that `share` of its numbers stay below, at least 1 and at most
    `most`, and divided by it, which keeps detail where `clip` would leave flat white.
    """
    if not 0 < share <= 1 or most < 1:
        raise BedstoneError(
            f"share, most: {share} and {most} were given; expected a share above 0 and at most 1, "
            "and a size of at least 1."
        )

    def cut(x0: Tensor) -> Tensor:
        flat = x0.flatten(1).abs()
        place = share * (flat.shape[1] - 1)  # torch.quantile stops at 16 million numbers
        low = int(place)
        around = flat.sort(dim=1).values[:, low : low + 2]
        size = torch.lerp(around[:, 0], around[:, -1], place - low).clamp(1, most)
        size = along(size, x0)
        return torch.maximum(torch.minimum(x0, size), -size) / size

    return cut


def _noise_left(process: Process, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The noise that makes x of x0."""
    return (x - along(process.alpha(t), x) * x0) / along(process.sigma(t), x)
