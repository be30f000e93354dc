"""What a rank does in tests: trains by recipes, one after the other, with a fault where asked.

    torchrun ... rank_worker.py [--fault KIND:RANK:STEP] [--figures FILE] RECIPE.yaml|FOLDER ...

A folder is a run that is to be resumed; `FOLDER@N` and `RECIPE.yaml@N` stop after step N, as a
signal does. Faults: nan, stop (SIGSTOP), kill, hang, full (a full disk), cut (killed in a save).
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bedstone import files, ranks
from bedstone.checkpoints import tensors
from bedstone.cli import main as command
from bedstone.recipes.base import go_on, read, train
from bedstone.train import loop, watch

watch.LOST, watch.BEAT, watch.STUCK = 4.0, 0.5, 4.0  # a test doesn't wait for a minute


def arm(kind: str, number: int, step: int) -> None:
    """Lets this rank fail so at that step."""
    if ranks.launched()[0] != number or ranks.restarted():
        return
    before = loop.Trainer.one_step

    def one_step(self: Any, share: float) -> Any:
        if self.step + 1 == step:
            if kind == "nan":
                objective = self.objective
                self.objective = lambda *given: (objective(*given)[0] * float("nan"), 1)
            elif kind == "hang":
                self.objective = lambda *given: time.sleep(600)
            elif kind in ("stop", "kill"):
                os.kill(os.getpid(), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
        return before(self, share)

    loop.Trainer.one_step = one_step  # type: ignore[method-assign]
    if kind == "full":
        write = tensors._write_file

        def full(path: Path, *given: Any) -> None:
            if "shard-" in path.name:
                raise OSError(28, "No space left on device", str(path))
            write(path, *given)

        tensors._write_file = full
    if kind == "cut":  # at so many operations on files since the run began
        cut_at(step)


def cut_at(count: int) -> None:
    """Kills this process at its `count`th write, sync or rename inside a save."""
    left = [count]

    def counting(before: Any) -> Any:
        def counted(*given: Any) -> Any:
            if any("step-" in str(each) for each in given):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
            return before(*given)

        return counted

    for name in ("_write", "_fsync", "_rename", "_exchange"):
        setattr(files, name, counting(getattr(files, name)))


def stop_after(step: int) -> None:
    """As if SIGTERM came to one rank after that step."""
    before = loop.Trainer.one_step

    def one_step(self: Any, share: float) -> Any:
        if self.step + 1 == step and ranks.rank() == ranks.count() - 1:
            signal.raise_signal(signal.SIGTERM)
        return before(self, share)

    loop.Trainer.one_step = one_step  # type: ignore[method-assign]


def work(words: list[str]) -> None:
    plain = loop.Trainer.one_step
    for word in words:
        loop.Trainer.one_step = plain  # type: ignore[method-assign]
        path, _, last = word.partition("@")
        if last:
            stop_after(int(last))
        if path.endswith(".yaml"):
            done = train(read(path, usual="supervised"), quiet=True).done
        else:
            done = go_on(Path(path), quiet=True).done
        if ranks.rank() == 0:
            print(json.dumps({"run": path, "ledger": done.ledger, "step": done.step}), flush=True)


def fork(works: list[Callable[[], object]], quiet: bool = False) -> list[int]:
    """Does each of these in a process of its own, which are the ranks of a run; the processes.

    Args:
        quiet: nothing that they say is printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = []
    for rank, own in enumerate(works):
        process = os.fork()
        if process:
            there.append(process)
            continue
        code = 1
        try:
            if len(works) > 1:
                said = {"RANK": rank, "WORLD_SIZE": len(works), "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in said.items()})
                os.environ.update(MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
            if quiet:
                with Path(os.devnull).open("w") as nowhere:
                    os.dup2(nowhere.fileno(), 1)
                    os.dup2(nowhere.fileno(), 2)
            own()
            code = 0
        finally:
            os._exit(code)
    return there


def ended(processes: list[int], seconds: float = 400, grace: float = 20) -> list[int]:
    """The exit codes of processes of `fork`, when all have ended.

    Args:
        seconds: after which those that haven't are killed.
        grace: likewise, after one of them failed.
    """
    codes: dict[int, int] = {}
    until = time.monotonic() + seconds
    while len(codes) < len(processes):
        for process in processes:
            if process in codes:
                continue
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                codes[process] = os.waitstatus_to_exitcode(status)
                if codes[process]:
                    until = min(until, time.monotonic() + grace)
            elif time.monotonic() > until:
                os.kill(process, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[process] for process in processes]


def forked(works: list[Callable[[], object]]) -> list[int]:
    """The exit codes of ranks that did each of these; what they print of a fault is dropped."""
    return ended(fork(works, quiet=len(works) > 1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = sys.argv[1:]
    if given[0] == "--fault":
        kind, number, step = given[1].split(":")
        arm(kind, int(number), int(step))
        given = given[2:]
    if given[0] == "--command":
        sys.exit(command(given[1:]))
    with ranks.joined():
        work(given)
