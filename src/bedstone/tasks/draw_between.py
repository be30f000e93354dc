"""Halfway between two conditions: of two texts what is read, of two classes what is predicted.

Shapes: B rows, C channels, M memories of width Dm; *S the sizes of a signal.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bedstone.data.conditions import Condition, joined
from bedstone.models.conditioned import Conditioned
from bedstone.nn.noising import along

Told = Mapping[str, Tensor]


class MixedClasses(nn.Module):
    """A denoiser that is told two classes, and mixes what it predicts of each."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, x: Tensor, t: Tensor, *, classes: Tensor, others: Tensor, shares: Tensor
    ) -> Tensor:
        """(B, C or more, *S); `shares` (B,) are those of `others`."""
        one = self.denoiser(x, t, classes=classes)
        return torch.lerp(one, self.denoiser(x, t, classes=others), along(shares, one).to(one))


@torch.no_grad()
def between(
    network: Conditioned, first: Condition, last: Condition, null: Condition, shares: Tensor
) -> tuple[Conditioned, Told, Told]:
    """The network to draw with, and what it is told: rows from the first condition to the last, and
    a row of `null`.

    Args:
        first, last, null: of one row each.
        shares: (B,) of the last, 0 to 1.
    """
    device = next(network.denoiser.parameters()).device
    rows, shares = len(shares), shares.to(device)
    if first.classes is not None:
        assert last.classes is not None and null.classes is not None
        one, other, none = (each.classes.to(device) for each in (first, last, null))  # type: ignore[union-attr]
        told = {"classes": one.expand(rows), "others": other.expand(rows), "shares": shares}
        unguided = {"classes": none, "others": none, "shares": shares[:1]}
        return Conditioned(MixedClasses(network.denoiser)).eval(), told, unguided
    found = network.read(**joined((first, last, null)).to(device).arguments())
    one, other, none = found["memory"]
    keep, beside, nothing = found["memory_keep"]
    # Where only one text has a word, that word stays: filling says nothing.
    part = shares[:, None].to(one) * (keep & beside) + (beside & ~keep)  # (B, M)
    memory = torch.lerp(
        one.expand(rows, *one.shape), other.expand(rows, *one.shape), part[..., None]
    )
    told = {"memory": memory, "memory_keep": (keep | beside).expand(rows, -1)}
    # At the ends it is the text alone.
    told["memory_keep"] = torch.where((shares <= 0)[:, None], keep, told["memory_keep"])
    told["memory_keep"] = torch.where((shares >= 1)[:, None], beside, told["memory_keep"])
    return network, told, {"memory": none[None], "memory_keep": nothing[None]}
