"""Optimizers: Muon for hidden matrices with AdamW for the rest, or AdamW alone.

Muon is for matrices inside a stack and the kernels of convolutions: embeddings, the head,
positions, norms and biases learn better with AdamW (Jordan et al., 2024). Weight decay is on
matrices only, and decoupled (Loshchilov and Hutter, 2019).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bedstone import ranks
from bedstone.errors import BedstoneError
from bedstone.nn.blocks import Stack
from bedstone.runtime import has_fast_bf16
from bedstone.settings import Bound, Number, OneOf

Together = Callable[[Tensor, int, int], Tensor]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Near U V^T for each U S V^T of (N, R, C), by a quintic Newton-Schulz iteration.

    Singular values end within about 0.7 to 1.2, which serves as well as 1 (Jordan et al.).
    Computed in bf16 where hardware has it, otherwise in fp32, unless `dtype` says.
    """
    if dtype is None:
        dtype = torch.bfloat16 if has_fast_bf16(matrices.device) else torch.float32
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # products of the shorter side are cheaper
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # spectral norm at most 1
    x = x.to(dtype)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)  # (N, R, R)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


class Muon:
    """Moves matrices, (R, C) or (R, channels, height, width) each; `step` reads their `.grad`.

    A momentum buffer stands for each shape, (N, R, C) or (N, R, ...); in
    `state_dict` each matrix has its own.

    Args:
        named: matrices by name.
        lr: peak learning rate, in AdamW's scale.
        weight_decay: decoupled, times the learning rate.
        iterations: of Newton-Schulz.
        together: what orthogonalises matrices where several ranks do: (N, r, C) with the iterations
            and the rows of whole matrices, of which these may be some.
    """

    def __init__(
        self,
        named: dict[str, Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
        together: "Together | None" = None,
    ) -> None:
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.iterations = iterations
        self.together = together
        self.groups: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, matrix in named.items():
            self.groups.setdefault(tuple(matrix.shape), {})[name] = ranks.local(matrix)
        self.buffers = {
            shape: torch.stack([torch.zeros_like(matrix) for matrix in group.values()])
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update at `factor` times the peak rate. A matrix without gradient counts as 0."""
        lr = self.lr * factor
        for shape, group in self.groups.items():
            matrices = list(group.values())
            gradients = torch.stack(
                [torch.zeros_like(m) if m.grad is None else m.grad for m in matrices]
            )
            buffer = self.buffers[shape]
            buffer.lerp_(gradients, 1.0 - self.momentum)
            update = gradients.lerp_(buffer, self.momentum)  # Nesterov
            update = self._orthogonal(update.flatten(2), shape[0]).to(buffer.dtype)
            # A matrix of orthogonal rows has entries of size 1 / sqrt(max(R, C)); 0.2 is the
            # usual size of AdamW's update.
            size = 0.2 * max(shape[0], update.shape[2]) ** 0.5
            update = update.view_as(buffer)
            if self.weight_decay:
                torch._foreach_mul_(matrices, 1.0 - lr * self.weight_decay)
            torch._foreach_add_(matrices, list(update.unbind()), alpha=-lr * size)

    def _orthogonal(self, update: Tensor, rows: int) -> Tensor:
        if self.together is None:
            return orthogonalise(update, self.iterations)
        return self.together(update, self.iterations, rows)

    def state_dict(self) -> dict[str, Tensor]:
        """The momentum of each matrix by its name."""
        return {
            name: buffer
            for shape, group in self.groups.items()
            for name, buffer in zip(group, self.buffers[shape].unbind(), strict=True)
        }

    def foreign(self, state: dict[str, Tensor]) -> set[str]:
        """Names that `state` has and these matrices haven't, or the other way round."""
        return set(state) ^ set(self.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises KeyError where a matrix has no momentum in `state`."""
        for name, buffer in self.state_dict().items():
            buffer.copy_(state[name])


@dataclass
class OptimConfig:
    """How weights move.

    Attributes:
        kind: muon (Muon for hidden matrices, AdamW for the rest) or adamw.
        lr: peak learning rate of the matrices that Muon trains, on AdamW's scale.
        adamw_lr: peak learning rate of everything else; with kind adamw, of all weights. A new
            run with adamw that sets `lr` alone takes that.
        weight_decay: decoupled, on matrices only, times the learning rate.
        momentum: of Muon.
        betas: of AdamW.
        eps: of AdamW.
        clip: the largest global norm of the gradient; 0 doesn't clip.
    """

    kind: str = "muon"
    lr: float = 3e-3
    adamw_lr: float = 3e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name, bound in BOUNDS.items():  # not by fields: methods have defaults of their own
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else (value,):
                bound.check(f"optim.{name}", each)
        if len(self.betas) != 2:
            raise BedstoneError(f"optim.betas: {self.betas} was given; expected two numbers.")


KINDS = ("muon", "adamw")
BOUNDS: dict[str, Bound] = {
    "kind": OneOf(KINDS),
    **dict.fromkeys(("lr", "adamw_lr", "weight_decay", "clip"), Number(0.0)),
    "momentum": Number(0.0, 1.0, open_most=True),
    "betas": Number(0.0, 1.0, open_most=True),
    "eps": Number(0.0),
}
PIXEL_CHANNELS = 4  # a convolution with so few inputs reads a picture: it is an embedding


class AdamW:
    """torch's fused AdamW, its state by the parameters' names.

    Args:
        groups: (parameters by name, peak learning rate, weight decay) of each group.
        betas, eps: as in the paper (Kingma and Ba, 2015).
    """

    def __init__(
        self,
        groups: list[tuple[dict[str, Tensor], float, float]],
        *,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        groups = [
            ({name: ranks.local(weight) for name, weight in named.items()}, lr, decay)
            for named, lr, decay in groups
        ]
        self.named = {name: weight for named, _, _ in groups for name, weight in named.items()}
        self.peaks = [lr for _, lr, _ in groups]
        self.inner = torch.optim.AdamW(
            [
                {"params": list(named.values()), "lr": lr, "weight_decay": decay}
                for named, lr, decay in groups
            ],
            betas=betas,
            eps=eps,
            fused=True,
        )

    def step(self, factor: float = 1.0) -> None:
        """One update at `factor` times the peak rates. What has no gradient stays."""
        for group, peak in zip(self.inner.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.inner.step()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """`exp_avg`, `exp_avg_sq` and `step` of each parameter by its name, once it has moved."""
        state = self.inner.state
        return {name: dict(state[w]) for name, w in self.named.items() if state.get(w)}

    def foreign(self, state: dict[str, dict[str, Tensor]]) -> set[str]:
        """Names in `state` that aren't of these parameters."""
        return set(state) - set(self.named)

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.inner.state.clear()
        for name, weight in self.named.items():
            if name in state:
                self.inner.state[weight] = {
                    key: part.to(weight.device, copy=True) for key, part in state[name].items()
                }


# Weights whose names have changed, by how they begin: runs that began before go on.
RENAMED = {"look.": "image_norm."}


class Optimizer:
    """One or two optimizers that together move every trainable weight of a network."""

    def __init__(self, weights: list[Tensor], **parts: AdamW | Muon) -> None:
        self.weights = weights
        self.parts = parts

    def step(self, factor: float = 1.0) -> None:
        """One update at `factor` times the peak learning rates."""
        for part in self.parts.values():
            part.step(factor)

    def rates(self, factor: float = 1.0) -> dict[str, float]:
        """The learning rates of a step, for the log: AdamW's, and Muon's where it has weights."""
        found = {}
        for name, part in self.parts.items():
            peak = part.lr if isinstance(part, Muon) else max(part.peaks)
            found["learning_rate" if name == "adamw" else f"{name}_learning_rate"] = peak * factor
        return found

    def zero_grad(self) -> None:
        for weight in self.weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside weights and gradients: tensors by name.

        The tensors are the live ones: save them, or copy them, before the next step.
        """
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a `state_dict`.

        Raises:
            BedstoneError: it is of another network, or of another kind of optimizer.
        """
        state = {
            part: {_renamed(name): each for name, each in own.items()}
            for part, own in state.items()
        }
        strange = set(state) ^ set(self.parts)
        for name in set(state) & set(self.parts):
            strange |= self.parts[name].foreign(state[name])
        if strange:
            raise BedstoneError(
                "optimizer state: it is of another network or another optim.kind (they differ "
                f"in {min(strange)!r}). Resume with the recipe that the run began with."
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def build_optimizer(
    network: nn.Module, config: OptimConfig, together: Together | None = None
) -> Optimizer:
    """An optimizer for all weights of `network` that ask for a gradient.

    Args:
        together: of Muon, on several ranks.

    Raises:
        BedstoneError: there is nothing to train.
    """
    named: dict[str, Tensor] = {
        name: w for name, w in network.named_parameters() if w.requires_grad
    }
    if not named:
        raise BedstoneError("optim: the network has no weights to train; all are frozen.")
    hidden: dict[str, Tensor] = {}
    if config.kind == "muon":
        ours = _hidden_matrices(network)
        hidden = {name: w for name, w in named.items() if id(w) in ours}
    matrices = {name: w for name, w in named.items() if w.ndim >= 2 and name not in hidden}
    vectors = {name: w for name, w in named.items() if w.ndim < 2}
    groups = [
        (part, config.adamw_lr, decay)
        for part, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if part
    ]
    parts: dict[str, AdamW | Muon] = {}
    if groups:
        parts["adamw"] = AdamW(groups, betas=config.betas, eps=config.eps)
    if hidden:
        parts["muon"] = Muon(
            hidden,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            together=together,
        )
    return Optimizer([ranks.local(weight) for weight in named.values()], **parts)


def _hidden_matrices(network: nn.Module) -> set[int]:
    """Identities of the weights of linear maps inside stacks, and of convolutions of states."""
    linears = {
        id(linear.weight)
        for stack in network.modules()
        if isinstance(stack, Stack)
        for linear in stack.modules()
        if isinstance(linear, nn.Linear)
    }
    convolutions = {
        id(part.weight)
        for part in network.modules()
        if isinstance(part, nn.Conv2d) and part.in_channels > PIXEL_CHANNELS
    }
    return linears | convolutions


@torch.no_grad()
def clip_gradients(network: nn.Module, limit: float) -> float:
    """Scales all gradients so that their global norm is at most `limit`; 0 doesn't clip.

    Returns:
        The norm as it was. Where it isn't finite, the gradients are left as they are.
    """
    gradients = [w.grad for w in network.parameters() if w.grad is not None]
    if not gradients:
        return 0.0
    norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
    if 0 < limit < norm < float("inf"):
        torch._foreach_mul_(gradients, limit / norm)
    return norm


def _renamed(name: str) -> str:
    """The name that a weight has now."""
    begins = next((old for old in RENAMED if name.startswith(old)), "")
    return f"{RENAMED[begins]}{name.removeprefix(begins)}" if begins else name
