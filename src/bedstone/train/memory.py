"""The peak memory of a run, predicted before its first step.

What a process holds when its model and data are ready is read from the system. To it come
gradients, the optimizer's states, and what a forward pass keeps for the backward pass, which hooks
on saved tensors (torch.autograd.graph) add up without keeping it; and a copy of the weights and
states, from which a checkpoint is written while the training goes on. The allocator keeps what a
step took (`runtime.keep_memory`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from bedstone.runtime import Precision, resident
from bedstone.train.optim import Muon, Optimizer

MB = 1e6
# What a run loads later: TensorBoard, the plots, and what the allocator keeps beside tensors.
LATER = 110 * MB
HOLES = 1.6  # measured at 30 times the rows: 1.51 GB, where 0.56 GB and 0.62 GB kept were counted


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        ready: of the process, with weights and data.
        weights: of the network's parameters and buffers, which `ready` holds too.
        gradients: of the weights that learn.
        optimizer: of its states.
        activations: kept for the backward pass of a micro-batch.
        passing: of tensors that live for a moment: a gradient beside what it is of.
        writing: copied while a checkpoint is written.
        later: loaded in the course of a run.
    """

    ready: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    passing: int
    writing: int
    later: int = int(LATER)

    @property
    def peak(self) -> int:
        """Of the process, at its most."""
        step = self.gradients + self.activations + self.passing
        return self.ready + self.optimizer + step + self.writing + self.later

    def growth(self, limit: float) -> float:
        """How many times as many rows a micro-batch may have for the peak to be `limit` bytes.

        What a step keeps grows with its rows, all else stays. More rows take `HOLES` times what
        they keep, for what lives only for a moment, and for the allocator's holes. 0 where all
        else is too much.
        """
        grows = max(self.activations + self.passing, 1)
        if limit >= self.peak:
            return 1 + (limit - self.peak) / (HOLES * grows)
        return max(limit - (self.peak - grows), 0.0) / grows

    def record(self) -> dict[str, int]:
        """For JSON."""
        return {**asdict(self), "peak": self.peak}

    def text(self) -> str:
        """The peak and its parts, in a line."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
        }
        each = ", ".join(f"{name} {value / MB:,.0f}" for name, value in parts.items())
        return f"peak memory about {self.peak / MB:,.0f} MB ({each} MB of it)"


def tensor_bytes(tensors: Any) -> int:
    """Bytes of tensors, each storage once."""
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(held.values())


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's states once every weight has moved: two moments of AdamW, one of
    Muon."""
    total = 0
    for part in optimizer.parts.values():
        if isinstance(part, Muon):
            total += sum(buffer.nbytes for buffer in part.buffers.values())
        else:
            total += sum(2 * weight.nbytes + 4 for weight in part.named.values())
    return total


class Saved:
    """What autograd kept: bytes of all storages that aren't the network's, and of the largest."""

    def __init__(self, known: set[int]) -> None:
        self._known = known
        self._seen: dict[int, StorageWeakRef] = {}  # a reference keeps its number from being reused
        self.bytes = self.largest = 0

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._known:
            return
        reference = StorageWeakRef(storage)
        if reference.cdata not in self._seen:
            self._seen[reference.cdata] = reference
            self.bytes += storage.nbytes()
            self.largest = max(self.largest, storage.nbytes())


@contextmanager
def counted_saves(network: nn.Module) -> Iterator[Saved]:
    """Counts what is kept for the backward pass, and keeps none of it: there can be none."""
    tensors = (*network.parameters(), *network.buffers())
    saved = Saved({each.untyped_storage().data_ptr() for each in tensors})

    def unpack(_: None) -> Tensor:
        raise RuntimeError("nothing was kept for a backward pass")

    with torch.autograd.graph.saved_tensors_hooks(saved.add, unpack):
        yield saved


class Foretelling:
    """An objective that says the peak of memory once its first micro-batch has passed forward.

    Nothing is computed for it, and what is computed is the same.

    Args:
        objective: what it calls, and whose attributes it has.
        say: is given a line.
    """

    def __init__(self, objective: Any, optimizer: Optimizer, say: Callable[[str], None]) -> None:
        self._objective, self._optimizer = objective, optimizer
        self._say: Callable[[str], None] | None = say

    def __call__(self, network: nn.Module, batch: Any) -> tuple[Tensor, float]:
        if self._say is None:
            found: tuple[Tensor, float] = self._objective(network, batch)
            return found
        ready = resident()
        weights = (*network.parameters(), *network.buffers())
        saved = Saved({each.untyped_storage().data_ptr() for each in weights})

        def pack(tensor: Tensor) -> Tensor:
            saved.add(tensor)
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = self._objective(network, batch)
        self._say(_memory(ready, network, saved, self._optimizer).text())
        self._say = None
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)


def _memory(ready: int, network: nn.Module, saved: Saved, optimizer: Optimizer) -> Memory:
    weights = tensor_bytes((*network.parameters(), *network.buffers()))
    gradients = sum(each.nbytes for each in network.parameters() if each.requires_grad)
    held = optimizer_bytes(optimizer)
    passing, writing = 2 * saved.largest, weights + held
    return Memory(ready, weights, gradients, held, saved.bytes, passing, writing)


def predict_memory(
    network: nn.Module,
    objective: Any,
    batch: Any,
    optimizer: Optimizer,
    precision: Precision,
) -> Memory:
    """The memory of a run, of which one micro-batch is passed forward.

    Args:
        batch: a micro-batch, on the device; the network's weights and the draws of dropout stay as
            they were.
    """
    ready = resident()
    state, training = torch.get_rng_state(), network.training
    buffers = [each.clone() for each in network.buffers()]  # statistics of batches
    network.train()
    try:
        with counted_saves(network) as saved, precision.autocast():
            objective(network, batch)
    finally:
        with torch.no_grad():
            for own, before in zip(network.buffers(), buffers, strict=True):
                own.copy_(before)
        network.train(training)
        torch.set_rng_state(state)
    return _memory(ready, network, saved, optimizer)
