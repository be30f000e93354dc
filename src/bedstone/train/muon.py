"""Muon: momentum, made orthogonal (Jordan et al., 2024; scaled as in Liu et al., 2025).

The same update as `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, faster where matrices are
small: those of one shape are stacked, and one batched product serves them all. A convolution's
kernels are a matrix too: a row for each output channel.

Shapes: N matrices, R rows, C columns.
"""

import torch
from torch import Tensor

from bedstone.runtime import has_fast_bf16

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
    """

    def __init__(
        self,
        named: dict[str, Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
    ) -> None:
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.iterations = iterations
        self.groups: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, matrix in named.items():
            self.groups.setdefault(tuple(matrix.shape), {})[name] = matrix
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
            update = orthogonalise(update.flatten(2), self.iterations).to(buffer.dtype)
            # A matrix of orthogonal rows has entries of size 1 / sqrt(max(R, C)); 0.2 is the
            # usual size of AdamW's update.
            size = 0.2 * max(update.shape[1:]) ** 0.5
            update = update.view_as(buffer)
            if self.weight_decay:
                torch._foreach_mul_(matrices, 1.0 - lr * self.weight_decay)
            torch._foreach_add_(matrices, list(update.unbind()), alpha=-lr * size)

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
