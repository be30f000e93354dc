"""A run on several ranks: what each computes of a step, and how the parts become one.

Every rank draws the same global batches, in an order that seed and epoch alone decide, and takes
its own rows of each: row i is of rank i mod R. Sums of losses are divided by the targets of the
whole batch, so that the loss and its gradient are those of one process, whatever R is. Two ways:

    ddp    every rank has all weights, and gradients are summed (Li et al., 2020, PyTorch DDP)
    fsdp   weights, gradients and optimizer states are split over the ranks; a block's weights are
           gathered while it computes (Zhao et al., 2023, FSDP; torch's `fully_shard`)

Muon needs whole matrices: each rank orthogonalises some of them, and all get the result.

Shapes: R ranks.
"""

import contextlib
import copy
import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from bedstone import ranks
from bedstone.checkpoints.state import Sharded
from bedstone.errors import BedstoneError
from bedstone.nn.blocks import Stack
from bedstone.train import watch
from bedstone.train.optim import Together, clip_gradients, orthogonalise

BUCKET = 25 * 2**20  # bytes of gradients that are summed at a time
WAYS = ("ddp", "fsdp")
Measure = Callable[[Any], dict[str, float]]


class Alone:
    """One process: it has all rows and all weights."""

    whole: Any = None  # the network with whole weights, where the one that learns has only parts
    network: Any = None  # that learns

    def begin(self, trainer: Any) -> None:
        """Called once before the first step."""

    @contextlib.contextmanager
    def part(self, batch: Any) -> Iterator[Any]:
        """The rows of a batch that this process computes."""
        yield batch

    def loss(self, objective: Any, network: nn.Module, batch: Any) -> Tensor:
        """The sum of losses of a part."""
        found: Tensor = objective(network, batch)[0]
        return found

    def spoilt(self, fault: BaseException, named: bool = False) -> None:
        """Takes a fault of this process: nothing may be updated.

        Args:
            named: whether it says by itself of which rank it is.
        """
        raise fault

    def summed(self, total: float, micro: list[Any]) -> float:
        """The losses of all processes, and every gradient summed over them."""
        return total

    @property
    def orthogonalise(self) -> Together | None:
        """What orthogonalises Muon's matrices on several ranks."""
        return None

    def clip(self, network: nn.Module, limit: float) -> float:
        """The norm of the gradient, which is cut to `limit`."""
        return clip_gradients(network, limit)

    def clock(self, seconds: float) -> float:
        """The time that all decide by."""
        return seconds

    def signal(self, received: signal.Signals | None) -> signal.Signals | None:
        """The signal that asks all processes to leave."""
        return received

    def evaluate(self, measure: Measure, network: Any) -> dict[str, float]:
        """Figures of the network."""
        return measure(network)

    def gather(self) -> None:
        """Makes rank 0's whole weights those that were learnt."""

    def write(self, write: Callable[[], None]) -> None:
        """Writes an artefact of whole weights."""
        write()

    def shards(self, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A training state with what every rank writes by itself taken out, and that."""
        return state, {}

    def own(self, state: dict[str, Any]) -> dict[str, Any]:
        """What of a whole training state this process has."""
        return state


class Replicas(Alone):
    """R ranks, each with all weights.

    Args:
        network: that learns; every rank gets rank 0's weights.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.rank, self.count = ranks.rank(), ranks.count()
        self._fault = ""  # in words
        self._filler = False
        self._taken = 0  # rows of the step that this rank took
        self._agreed: tuple[float, int] | None = None  # rank 0's clock, and the signal
        self._trainer: Any = None
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                dist.broadcast(tensor.data, 0)

    def begin(self, trainer: Any) -> None:
        self._trainer = trainer
        ranks.share_chance(anew=True)
        self._agreed = ranks.agreed(trainer.elapsed()), 0

    @contextlib.contextmanager
    def part(self, batch: Any) -> Iterator[Any]:
        watch.computing(self._trainer.step + 1)
        rows, many = np.arange(self.rank, batch.row_count, self.count), batch.row_count
        ranks.own_chance(self._trainer.step, batch.number)
        self._filler, self._taken = not len(rows), self._taken + len(rows)
        # A rank without a row computes one that counts for nothing: what the others exchange in
        # the course of a step, it has to exchange with them.
        rows = rows if len(rows) else np.zeros(1, np.int64)
        mine = batch.pick(rows) if self._filler else batch.part(self.rank, self.count)
        with ranks.part_of(rows, many):
            yield mine

    def loss(self, objective: Any, network: nn.Module, batch: Any) -> Tensor:
        found = self._computed(objective, network, batch)
        return found * 0.0 if self._filler else found

    def _computed(self, objective: Any, network: nn.Module, batch: Any) -> Tensor:
        found: Tensor = objective(network, batch)[0]
        return found

    def spoilt(self, fault: BaseException, named: bool = False) -> None:
        said = str(fault) if named else f"rank {self.rank}: {fault}"
        self._fault = self._fault or said

    def summed(self, total: float, micro: list[Any]) -> float:
        watch.waiting()
        used = self._used()
        left = self._trainer.received()
        spoilt = bool(self._fault)
        clock = self._trainer.own_seconds() if self.rank == 0 else 0.0
        figures = [0.0 if spoilt else total, self._taken, spoilt, clock, left or 0]
        sums = ranks.total(torch.tensor([*map(float, figures), *map(float, used)]).double())
        total, taken, faults, clock, _ = sums[:5].tolist()
        if faults:
            raise ranks.EveryRank(next(filter(None, ranks.gathered(self._fault))))
        whole = sum(batch.row_count for batch in micro)
        if taken != whole:
            raise ranks.EveryRank(
                f"step {self._trainer.step + 1}: the ranks computed {taken:.0f} rows of a batch of "
                f"{whole}: they don't read the same data. Look at what each of them reads."
            )
        left = max(ranks.gathered(left or 0)) if sums[4] else 0
        self._agreed, self._taken = (clock, left), 0
        self._reduce((sums[5:] > 0).tolist())
        return float(total)

    def _learning(self) -> dict[str, Tensor]:
        return {name: w for name, w in self.network.named_parameters() if w.requires_grad}

    def _used(self) -> list[bool]:
        """Of each weight that learns, whether it has a gradient here."""
        return [weight.grad is not None for weight in self._learning().values()]

    def _reduce(self, used: list[bool]) -> None:
        """Sums the gradients of weights that some rank has one of."""
        weights = [w for w, on in zip(self._learning().values(), used, strict=True) if on]
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        sum_gradients(weights)

    @property
    def orthogonalise(self) -> Together | None:
        return orthogonalise_in_shares

    def clock(self, seconds: float) -> float:
        return seconds if self._agreed is None else self._agreed[0]

    def signal(self, received: signal.Signals | None) -> signal.Signals | None:
        number = 0 if self._agreed is None else self._agreed[1]
        return signal.Signals(number) if number else None

    def evaluate(self, measure: Measure, network: Any) -> dict[str, float]:
        self.gather()
        with ranks.shared_chance():
            found = ranks.first(lambda: measure(network if self.whole is None else self.whole))
        ranks.share_chance()
        self._agree()
        return found

    def _agree(self) -> None:
        """Takes rank 0's clock, after what only rank 0 did."""
        clock = ranks.agreed(self._trainer.own_seconds())
        self._agreed = clock, 0 if self._agreed is None else self._agreed[1]

    def write(self, write: Callable[[], None]) -> None:
        self.gather()
        if self.rank == 0:
            with ranks.alone():
                write()

    def shards(self, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        own: dict[str, Tensor] = {}

        def cut(key: str, name: str, values: Tensor) -> Any:
            rows = self._rows_to_write(name, values)
            if rows is None:
                return values
            own[key] = rows
            return Sharded(key)

        return by_weight(state, cut), own

    def _rows_to_write(self, name: str, values: Tensor) -> Tensor | None:
        """The rows of a weight's state that this rank writes; None where rank 0 writes all."""
        return values[ranks.own_rows(len(values))] if values.dim() else None


class Shards(Replicas):
    """R ranks, each with a part of every weight.

    `whole` is the network that all else knows: rank 0's has the whole weights after `gather`.

    Args:
        network: whole; a copy of it learns.
        device: of the weights.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__(network)
        learner = copy.deepcopy(network)
        self.network, self.whole = learner, network
        self._seen: set[str] = set()  # weights with a gradient in this step
        self._hooked: set[int] = set()
        # FSDP doesn't split what has no rows.
        single = {weight for weight in learner.parameters() if not weight.dim()}
        how: Any = {"mesh": init_device_mesh(device.type, (ranks.count(),))}
        for name, block in blocks_of(learner).items():
            own = {each for each in single if any(each is w for w in block.parameters())}
            fully_shard(block, ignored_params=own, **how)
            block.register_forward_pre_hook(lambda module, _, name=name: self._watch(module, name))
        root = Step(learner, lambda: self._watch(learner, ""))
        fully_shard(root, ignored_params=single, **how)
        self._root: Any = root
        parts: list[Any] = [each for each in root.modules() if isinstance(each, FSDPModule)]
        for part in parts:
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no mean, and says nothing
            part.set_reduce_scatter_unused_params(True)  # without a target, a rank has no head's
        self.sharded = {n for n, w in learner.named_parameters() if ranks.local(w) is not w}
        if self.rank:  # only rank 0 writes and evaluates
            for weight in network.parameters():
                weight.data = weight.data.new_empty(0)

    def _computed(self, objective: Any, network: nn.Module, batch: Any) -> Tensor:
        self._root.objective = [objective]
        found: Tensor = self._root(batch)
        return found

    def _watch(self, module: nn.Module, prefix: str) -> None:
        """Notes which weights get a gradient, once they are gathered and before they compute."""
        for name, weight in module.named_parameters(prefix):
            if weight.requires_grad and id(weight) not in self._hooked:
                self._hooked.add(id(weight))
                weight.register_post_accumulate_grad_hook(lambda _, name=name: self._seen.add(name))

    def _used(self) -> list[bool]:
        return [name in self._seen for name in self._learning()]

    def _reduce(self, used: list[bool]) -> None:
        left = []
        for weight, on in zip(self._learning().values(), used, strict=True):
            own = ranks.local(weight)
            if own is weight:
                left += [weight] if on else []
                continue
            own.grad = ranks.local(weight.grad) if on and weight.grad is not None else None
            weight.grad = None
        for weight in left:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        sum_gradients(left)
        self._seen.clear()

    @property
    def orthogonalise(self) -> Together | None:
        def whole(updates: Tensor, iterations: int, rows: int) -> Tensor:
            found = orthogonalise_in_shares(joined_rows(updates, rows), iterations, rows)
            return found[:, ranks.own_rows(rows)]

        return whole

    @torch.no_grad()
    def clip(self, network: nn.Module, limit: float) -> float:
        split: list[Tensor] = []
        whole: list[Tensor] = []
        for name, weight in self._learning().items():
            if (gradient := ranks.local(weight).grad) is not None:
                (split if name in self.sharded else whole).append(gradient)
        parts = [torch.stack(torch._foreach_norm(each)).norm() if each else torch.zeros(())
                 for each in (split, whole)]  # fmt: skip
        square = ranks.total(parts[0].double().square().cpu())
        norm = math.sqrt(float(square + parts[1].double().square().cpu()))
        if 0 < limit < norm < math.inf:
            torch._foreach_mul_([*split, *whole], limit / norm)
        return norm

    @torch.no_grad()
    def gather(self) -> None:
        into = dict(self.whole.named_parameters())
        weight: Any
        for name, weight in self._learning().items():
            full = weight.full_tensor() if name in self.sharded else weight
            if self.rank == 0:
                into[name].copy_(full)
        for own, mine in zip(self.whole.buffers(), self.network.buffers(), strict=True):
            own.copy_(mine)

    def _rows_to_write(self, name: str, values: Tensor) -> Tensor | None:
        return values if name in self.sharded and values.dim() else None

    def own(self, state: dict[str, Any]) -> dict[str, Any]:
        def cut(key: str, name: str, values: Tensor) -> Tensor:
            mine = name in self.sharded and values.dim()
            return values[ranks.own_rows(len(values))] if mine else values

        return by_weight(state, cut)


class Step(nn.Module):
    """A network with its objective, as the module at whose call FSDP gathers weights.

    Attributes:
        objective: in a list, so that it isn't taken for a part.
    """

    def __init__(self, network: nn.Module, watch: Callable[[], None]) -> None:
        super().__init__()
        self.network = network
        self.watch = watch
        self.objective: list[Any] = []

    def forward(self, batch: Any) -> Tensor:
        self.watch()
        found: Tensor = self.objective[0](self.network, batch)[0]
        return found


def parallel(way: str, network: nn.Module, objective: Any, device: torch.device) -> Alone:
    """How this process takes part in a run.

    Args:
        way: one of `WAYS`, of several ranks.
        network: that is to learn, on the device.
        objective: that it learns by.

    Raises:
        BedstoneError: the network can't learn on several ranks.
    """
    if ranks.count() == 1:
        return Alone()
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise BedstoneError(
                f"model: {name} is a batch norm, whose statistics are of the rows of one rank, not "
                f"of the batch. Train it in one process, or choose a tower without (a ViT)."
            )
    if way == "fsdp" and getattr(objective, "zero_padding", False):
        raise BedstoneError(
            "parallel: this model's embedding of padding is kept at zero, as fsdp doesn't. "
            "Set parallel=ddp."
        )
    return Shards(network, device) if way == "fsdp" else Replicas(network)


def blocks_of(network: nn.Module) -> dict[str, nn.Module]:
    """Blocks whose weights are gathered while they compute, by their names.

    The last of a stack is left out, which a network may compute piece by piece (`stack_at`), and so
    are those that share a weight with what is outside.
    """
    uses = Counter(
        id(weight) for module in network.modules() for weight in module.parameters(recurse=False)
    )
    found = {}
    for name, stack in network.named_modules():
        if not isinstance(stack, Stack):
            continue
        for index, block in enumerate(list(stack.children())[:-1]):
            inside = Counter(
                id(weight) for part in block.modules() for weight in part.parameters(recurse=False)
            )
            if inside and all(uses[each] == many for each, many in inside.items()):
                found[f"{name}.{index}" if name else str(index)] = block
    return found


def sum_gradients(weights: list[Tensor]) -> None:
    """Sums the gradients of weights over the ranks, a bucket at a time."""
    bucket: list[Tensor] = []
    filled = 0
    for number, weight in enumerate(weights):
        assert weight.grad is not None
        bucket.append(weight.grad)
        filled += weight.grad.nbytes
        ends = number + 1 == len(weights) or weights[number + 1].dtype != weight.dtype
        if filled >= BUCKET or ends:
            flat = ranks.total(torch.cat([each.reshape(-1) for each in bucket]))
            parts = flat.split([each.numel() for each in bucket])
            for own, part in zip(bucket, parts, strict=True):
                own.copy_(part.view_as(own))
            bucket, filled = [], 0


def orthogonalise_in_shares(updates: Tensor, iterations: int, rows: int) -> Tensor:
    """`orthogonalise` of (N, R, C), each rank some of the N, and all of them the result."""
    each = -(-len(updates) // ranks.count())
    mine = updates[ranks.own_rows(len(updates))]
    done = updates.new_zeros(each, *updates.shape[1:])
    if len(mine):
        done[: len(mine)] = orthogonalise(mine, iterations).to(updates.dtype)
    return torch.cat(ranks.all_gather(done))[: len(updates)]


def joined_rows(own: Tensor, rows: int) -> Tensor:
    """(N, R, C) of every rank's rows of N matrices, (N, r, C)."""
    size = -(-rows // ranks.count())
    padded = own.new_zeros(own.shape[0], size, *own.shape[2:])
    padded[:, : own.shape[1]] = own
    return torch.cat(ranks.all_gather(padded), 1)[:, :rows]


def by_weight(state: dict[str, Any], change: Callable[[str, str, Tensor], Any]) -> dict[str, Any]:
    """A training state whose tensors of weights and of buffers are changed.

    Args:
        change: of where a tensor is, the weight that it is of, and the tensor.
    """

    def changed(key: str, name: str, values: Any) -> Any:
        if isinstance(values, Tensor):
            return change(key, name, values)
        if isinstance(values, dict):
            return {each: changed(f"{key}.{each}", name, part) for each, part in values.items()}
        return values

    found = dict(state)
    for section in ("optimizer", "average"):
        found[section] = {
            part: {name: changed(f"{section}.{part}.{name}", name, each)
                   for name, each in own.items()} if isinstance(own, dict) else own
            for part, own in state.get(section, {}).items()
        }  # fmt: skip
    return found
