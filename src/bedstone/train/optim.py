"""What moves the weights: Muon for hidden matrices, AdamW for the rest; or AdamW alone.

Muon is for matrices inside a stack and the kernels of convolutions: embeddings, the head,
positions, norms and biases learn better with AdamW (Jordan et al., 2024). Weight decay is on
matrices only, and decoupled (Loshchilov and Hutter, 2019).
"""

from typing import Any

import torch
from torch import Tensor, nn

from bedstone.config import OptimConfig
from bedstone.errors import BedstoneError, nearest
from bedstone.nn.stack import Stack
from bedstone.train.muon import Muon

KINDS = ("muon", "adamw")
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


class Optimizer:
    """One or two optimizers that together move every trainable weight of a network."""

    def __init__(self, weights: list[Tensor], **parts: AdamW | Muon) -> None:
        self.weights = weights
        self.parts = parts

    def step(self, factor: float = 1.0) -> None:
        """One update at `factor` times the peak learning rates."""
        for part in self.parts.values():
            part.step(factor)

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


def build_optimizer(network: nn.Module, config: OptimConfig) -> Optimizer:
    """An optimizer for all weights of `network` that ask for a gradient.

    Raises:
        BedstoneError: an unknown kind, or nothing to train.
    """
    if config.kind not in KINDS:
        raise BedstoneError(f"optim.kind: {config.kind!r} is unknown{nearest(config.kind, KINDS)}.")
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
            hidden, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return Optimizer(list(named.values()), **parts)


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
