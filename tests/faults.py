"""Cuts a save at its n-th write, fsync, rename, exchange or removal: by exception or by death.

`raised` and `killed` run an action with one cut and say whether it came to that; counting up
until it did not visits every step there is.
"""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bedstone import files

MODES = ("before", "half", "after")
DEATH = 97


class Cut(Exception):
    """What a test throws in the middle; no code of ours expects it."""


class _File:
    """A file whose every write is a step that can be cut."""

    def __init__(self, file, step):
        self.file, self.step = file, step

    def write(self, data):
        data = data.encode() if isinstance(data, str) else bytes(data)
        raw = getattr(self.file, "buffer", self.file)

        def half():
            raw.write(data[: len(data) // 2])
            raw.flush()

        def whole():
            raw.write(data)
            raw.flush()
            return len(data)

        return self.step("write", whole, half)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@contextlib.contextmanager
def steps(at: int, mode: str, act: Callable[[], None], exchange: bool) -> Iterator[list[str]]:
    """Calls `act` before, half through or after the `at`-th step; yields the log of steps."""
    log: list[str] = []
    plain = {name: getattr(files, name) for name in ("_fsync", "_rename", "_exchange", "_remove")}
    plain_open = Path.open

    def step(kind, whole, half=lambda: None, note=""):
        log.append(f"{kind} {note}".strip())
        if len(log) != at:
            return whole()
        if mode == "before":
            act()
        elif mode == "half":
            half()
            act()
        result = whole()
        act()
        return result

    def remove(path):
        def half():
            if first := next((p for p in path.rglob("*") if p.is_file()), None):
                first.unlink()

        step("remove", lambda: plain["_remove"](path), half, path.name)

    def swap(one, other):
        if not exchange:
            return False
        return step("exchange", lambda: plain["_exchange"](one, other))

    def opened(path, mode="r", *rest, **options):
        file = plain_open(path, mode, *rest, **options)
        return _File(file, step) if set(mode) & set("wax+") else file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            files, "_fsync", lambda p: step("fsync", lambda: plain["_fsync"](p), note=p.name)
        )
        patch.setattr(
            files,
            "_rename",
            lambda a, b: step("rename", lambda: plain["_rename"](a, b), note=b.name),
        )
        patch.setattr(files, "_exchange", swap)
        patch.setattr(files, "_remove", remove)
        patch.setattr(Path, "open", opened)
        yield log


def raised(action: Callable[[], object], at: int, mode: str, exchange: bool = True) -> bool:
    """Runs the action with an exception at one step."""

    def act():
        raise Cut

    with steps(at, mode, act, exchange) as log, contextlib.suppress(Cut):
        action()
    return len(log) >= at


def killed(action: Callable[[], object], at: int, mode: str, exchange: bool = True) -> bool:
    """Runs the action in a process of its own that dies at one step, with no clean-up at all."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with steps(at, mode, lambda: os._exit(DEATH), exchange):
                action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, DEATH), f"the action failed by itself: exit {code}"
    return code == DEATH


def every_cut(
    run: Callable[..., bool],
    prepare: Callable[[], None],
    action: Callable[[], object],
    check: Callable[[], None],
    exchange: bool = True,
) -> int:
    """Cuts the action at every step in every way, checking after each; how many cuts there were."""
    cuts = 0
    for mode in MODES:
        for at in itertools.count(1):
            prepare()
            if not run(action, at, mode, exchange):
                break
            check()
            cuts += 1
    return cuts


@contextlib.contextmanager
def disk_calls(exchange: bool = True) -> Iterator[list[str]]:
    """Yields the system's calls that decide what a power cut leaves, in their order.

    `fsync NAME`, `rename NAME NEW`, `exchange NAME OTHER`, `remove NAME`; of a hidden name `~`
    stands for what makes it one of its own. Nothing of `bedstone.files` but the swap, which no
    function of Python's makes, is replaced: what it leaves out can't be seen here.
    """
    log: list[str] = []
    opened: dict[int, str] = {}
    plain_open, plain_replace = os.open, os.replace
    plain_exchange, plain_remove = files._exchange, files._remove

    def name(path):
        return re.sub(r"^\.(.+)\.tmp-\d+-\w{8}-\w{8}$", r"~\1", Path(path).name)

    def open_(path, *rest, **options):
        handle = plain_open(path, *rest, **options)
        opened[handle] = name(os.fsdecode(path)) if not isinstance(path, int) else str(path)
        return handle

    def fsync(handle):
        log.append(f"fsync {opened[handle]}")

    def replace(source, target, **options):
        log.append(f"rename {name(source)} {name(target)}")
        plain_replace(source, target, **options)

    def swap(one, other):
        if not exchange:
            return False
        log.append(f"exchange {name(one)} {name(other)}")
        return plain_exchange(one, other)

    def remove(path):
        log.append(f"remove {name(path)}")
        plain_remove(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_)
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        patch.setattr(files, "_exchange", swap)
        patch.setattr(files, "_remove", remove)
        yield log


syncs_by_fsync = pytest.mark.skipif(
    sys.platform in ("darwin", "win32"), reason="the system's own call differs"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can fork")
