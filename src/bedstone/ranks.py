"""The processes of one training run, its ranks: how many there are, and what they exchange.

`torchrun` starts a process for each rank and says by the environment who is who. A run of one
process has one rank and exchanges nothing: everything here then does what it would do without.

What goes between ranks is tensors and JSON, never pickle. A fault of one rank is raised by all of
them, so that none is left waiting; what only one process is to do, rank 0 does.
"""

import contextlib
import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bedstone.errors import BedstoneError

T = TypeVar("T")

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What hangs is found by `train.watch`: a rank may wait for an evaluation of another for hours.
PATIENCE = timedelta(days=1)
MEETING = timedelta(minutes=10)  # for all ranks to come
LOST = "connection|socket|broken pipe|timed out|reset by peer|gloo|nccl"  # of messages of torch


_groups = itertools.count()  # of this process, one after the other


class EveryRank(BedstoneError):
    """An error that all ranks raise: rank 0 says it."""


class _Here(threading.local):
    """Of this thread: whether it does something by itself, as one process would; and the group over
    which it exchanges, None for that of all threads."""

    alone = False
    group: Any = None


_here = _Here()


def count() -> int:
    """How many ranks the run has; 1 of a run of one process, and of what one rank does alone."""
    return 1 if _here.alone else world()


def world() -> int:
    """How many ranks the run has, whoever does what."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return dist.get_rank() if _joined() else 0


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this rank exchanges nothing: it does what the others don't, or do by themselves."""
    before, _here.alone = _here.alone, True
    try:
        yield
    finally:
        _here.alone = before


def new_group() -> Any:
    """A group for another thread to exchange over, which all ranks make; None of one process."""
    return dist.new_group(backend="gloo", timeout=PATIENCE) if count() > 1 else None


@contextlib.contextmanager
def within(group: Any) -> Iterator[None]:
    """Within it this thread exchanges over a group of `new_group`, while others do over theirs."""
    before, _here.group = _here.group, group
    try:
        yield
    finally:
        _here.group = before


def launched() -> tuple[int, int]:
    """Rank and number of ranks that a launcher said by the environment; (0, 1) without one.

    Raises:
        BedstoneError: what it said can't be.
    """
    given = {name: os.environ.get(name, "") for name in NAMES}
    if not all(given.values()):
        return 0, 1
    try:
        mine, many = int(given["RANK"]), int(given["WORLD_SIZE"])
        sound = 0 <= mine < many and 0 < int(given["MASTER_PORT"]) < 2**16
    except ValueError:
        sound = False
    if not sound:
        raise BedstoneError(
            f"RANK={given['RANK']}, WORLD_SIZE={given['WORLD_SIZE']}, "
            f"MASTER_PORT={given['MASTER_PORT']}: expected a rank from 0 to below the number of "
            "ranks, and a port. Start it by torchrun, or unset these variables."
        )
    return mine, many


def restarted() -> bool:
    """Whether the launcher started this run anew after a rank of it died."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within it the ranks that a launcher started are one group. Nothing, without a launcher.

    Raises:
        BedstoneError: the environment says what can't be, the others don't come, or one is lost.
    """
    mine, many = launched()
    if many == 1 or _joined():
        yield
        return
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    if os.environ["MASTER_ADDR"] in (*LOOPBACK, socket.gethostname()):
        loopback = "lo0" if hasattr(os, "uname") and os.uname().sysname == "Darwin" else "lo"
        if int(os.environ.get("LOCAL_WORLD_SIZE", many)) == many:  # all on this machine
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend, store=_store(mine, many), rank=mine, world_size=many, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise BedstoneError(
            f"rank {mine} of {many}: can't meet the others at {where} ({_first_line(error)}). "
            "Start all ranks with the same address, on a port that is free."
        ) from error
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in LOST.split("|")):
            raise
        raise BedstoneError(
            f"rank {mine} of {many}: lost another rank, which has stopped or died "
            f"({_first_line(error)}). What it said stands above or below. Go on from the last "
            "checkpoint by bedstone resume."
        ) from error
    finally:
        dist.destroy_process_group()


def _store(mine: int, many: int) -> Any:
    """Where ranks find each other. torchrun's outlives a restart, with the addresses of processes
    that are dead, so those of each start have a prefix of their own."""
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        many,
        is_master=mine == 0 and not hosted,
        timeout=MEETING,
        multi_tenant=True,
    )
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"bedstone/{again}/{next(_groups)}", store)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def device(kind: torch.device) -> torch.device:
    """The device of this rank: of several GPUs its own.

    Raises:
        BedstoneError: there are fewer GPUs than ranks on this machine, or one is named for all.
    """
    if world() == 1 or kind.type != "cuda":
        return kind
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", world())) > 1:
        raise BedstoneError(
            f"device: {kind} was given to {world()} ranks. Say device=cuda: each takes its own."
        )
    if local >= torch.cuda.device_count():
        raise BedstoneError(
            f"device: rank {rank()} is number {local} on this machine, which has "
            f"{torch.cuda.device_count()} GPUs. Start as many processes as there are GPUs."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


# Exchange of plain values.


def agreed(value: T) -> T:
    """Rank 0's value, which is plain, as JSON has them."""
    if count() == 1:
        return value
    data = _bytes(value) if rank() == 0 else torch.zeros(0, dtype=torch.uint8)
    size = torch.tensor([len(data)])
    dist.broadcast(size, 0, _here.group)
    if rank():
        data = torch.zeros(int(size), dtype=torch.uint8)
    dist.broadcast(data, 0, _here.group)
    found: T = _value(data)
    return found


def gathered(value: T) -> list[T]:
    """Every rank's value, which is plain, in their order."""
    if count() == 1:
        return [value]
    data = _bytes(value)
    sizes = [int(each) for each in all_gather(torch.tensor([len(data)]))]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(data)] = data
    return [_value(each[:size]) for each, size in zip(all_gather(padded), sizes, strict=True)]


def _bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _value(data: Tensor) -> Any:
    return json.loads(bytes(data.tolist()).decode())


def together(work: Callable[[], T]) -> T:
    """Does something on every rank; what one of them refuses is raised by all.

    Raises:
        BedstoneError: of the first rank that has one, which it names.
    """
    if count() == 1:
        return work()
    found, fault = _tried(work)
    for number, said in enumerate(gathered(fault)):
        if said:
            raise EveryRank(f"rank {number}: {said}" if number else said)
    return found  # type: ignore[return-value]


def first(work: Callable[[], T]) -> T:
    """Does something on rank 0 alone; all get its plain value, or raise what it refuses.

    Raises:
        BedstoneError: of rank 0.
    """
    if count() == 1:
        return work()
    found, fault = None, ""
    if rank() == 0:
        with alone():
            found, fault = _tried(work)
    value, fault = agreed((found, fault))
    if fault:
        raise EveryRank(fault)
    return value  # type: ignore[return-value]


def _tried(work: Callable[[], T]) -> tuple[T | None, str]:
    try:
        return work(), ""
    except BedstoneError as error:
        return None, str(error) or type(error).__name__
    except OSError as error:
        return None, f"{error.filename or 'the system'}: {error.strerror or error}"


def in_turn(work: Callable[[], T]) -> T:
    """Does something on rank 0, whose files the others then find, and on them after it.

    Raises:
        BedstoneError: of the first rank that has one, which it names.
    """
    if count() == 1:
        return work()
    found: list[T] = []

    def by_itself() -> T:
        with alone():
            return found[0] if found else work()

    first(lambda: found.append(work()))
    return together(by_itself)


# Exchange of tensors.


def total(values: Tensor) -> Tensor:
    """The sum over ranks, in place; every rank has the same bits."""
    if count() > 1:
        dist.all_reduce(values, group=_here.group)
    return values


def all_gather(values: Tensor) -> list[Tensor]:
    """Every rank's tensor, of one shape, in their order."""
    found = [torch.empty_like(values) for _ in range(count())]
    dist.all_gather(found, values.contiguous(), _here.group)
    return found


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank has: all of a plain one."""
    return getattr(tensor, "_local_tensor", tensor)


def own_rows(rows: int) -> slice:
    """Which rows of a sharded tensor are this rank's: equal parts, the last ones shorter."""
    size = -(-rows // count())
    return slice(min(rank() * size, rows), min((rank() + 1) * size, rows))


def all_rows(own: Tensor) -> Tensor:
    """The rows of all ranks, (n, ...), in their order, of this one's (m, ...); with gradient.

    Each rank must make the same of them, and divide its loss by the number of ranks: then the
    gradient of this rank's rows is known here, and nothing is exchanged for it.
    """
    if count() == 1:
        return own
    found: Tensor = _AllRows.apply(own)
    return found


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        sizes = [int(each) for each in all_gather(torch.tensor([len(own)]))]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [each[:size] for each, size in zip(all_gather(padded), sizes, strict=True)]
        begin = sum(sizes[: rank()])
        ctx.mine = slice(begin, begin + len(own))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.mine] * count()


# Chance. Random numbers of a batch's rows are those that one process draws: each rank draws those
# of the whole batch, from a generator that is in the same state everywhere, and takes its own. What
# is drawn inside a network, as dropout is, each rank draws by itself.


class _Chance:
    def __init__(self) -> None:
        self.shared: list[Tensor] | None = None
        self.rows: tuple[np.ndarray, int] | None = None


_chance = _Chance()


def _states() -> list[Tensor]:
    there = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *there]


def _set_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def share_chance(*, anew: bool = False) -> None:
    """Makes the generator that all ranks share what rank 0's is now.

    Args:
        anew: whether that is torch's own, as of a run that begins.
    """
    if count() > 1:
        states = _states() if anew or _chance.shared is None else _chance.shared
        for state in states:
            dist.broadcast(state, 0, _here.group)
        _chance.shared = states


def shared_state() -> Tensor:
    """The state of the generator on the CPU that all ranks share; of one process its only one."""
    return _states()[0] if _chance.shared is None or count() == 1 else _chance.shared[0]


@contextlib.contextmanager
def shared_chance() -> Iterator[None]:
    """Within it torch's generator is the one that is the same on all ranks."""
    if _chance.shared is None or count() == 1:
        yield
        return
    own = _states()
    _set_states(_chance.shared)
    try:
        yield
    finally:
        _chance.shared = _states()
        _set_states(own)


def own_chance(*seeds: int) -> None:
    """Seeds torch's generator of this rank for what it draws by itself."""
    torch.manual_seed(int(np.random.SeedSequence((*seeds, rank())).generate_state(1, np.uint64)[0]))


@contextlib.contextmanager
def part_of(rows: np.ndarray, many: int) -> Iterator[None]:
    """Within it `drawn` gives the random numbers of these rows of a batch of so many."""
    _chance.rows = (rows, many)
    try:
        yield
    finally:
        _chance.rows = None


def drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """`draw(rows)`: random numbers, an entry for each row of a batch.

    Of a part of a batch they are those that the whole batch would have there.

    Args:
        draw: gives an entry for each of so many rows.
    """
    if _chance.rows is None:
        return draw(rows)
    mine, many = _chance.rows
    with shared_chance():
        return draw(many)[torch.from_numpy(mine)]
