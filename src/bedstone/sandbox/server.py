"""The process that starts programs: it stands in the sandbox itself, and never reads a program.

It is started anew, with an empty environment, loads what programs usually import, and shuts itself
in. For each run it forks: the new process shuts itself in further, and only then reads its program,
from a pipe whose other end is not here. So nothing of a program or of its tests is ever in this
process's memory, of which the next program gets a copy; what a program writes is in its folder,
which is emptied after each run; and programs can neither signal nor read any other process.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import stat
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bedstone.sandbox import kernel
from bedstone.sandbox.sides import (
    BROKEN,
    DEVICES,
    DISK,
    PATIENCE,
    Pipe,
    run_program,
    run_tests,
    serve_program,
)

# Loaded once, so that a program that imports one of them starts at once.
USUAL = (
    "abc", "ast", "bisect", "calendar", "cmath", "collections", "copy", "dataclasses", "datetime",
    "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "inspect", "io", "itertools",
    "json", "math", "numbers", "operator", "queue", "random", "re", "statistics", "string",
    "struct", "tempfile", "textwrap", "threading", "traceback", "typing", "unittest", "uuid",
)  # fmt: skip
INODES = 4096  # files and folders in it
LOOK = 0.05  # seconds between looks at the folder, where the kernel doesn't bound it
PARTING = 0.1  # seconds that a program has to end after its tests, so that its status is its own
WRITTEN = ("/dev/null",)  # devices that may be written too
CONTROL = 0  # the descriptor of the socket to Bedstone


def main() -> None:
    """Shuts itself in, says what it has, and starts programs until the other end is closed.

    Its one argument is JSON: `folder` for programs to write in, `readable` paths, `source`
    (the folder of this package), and whether a
    sandbox of files and namespaces stands around it already (`inside`).
    """
    given = json.loads(sys.argv[1])
    folder, inside = given["folder"], given["inside"]
    control = socket.socket(fileno=CONTROL)
    with contextlib.suppress(OSError):  # what the kernel ends first where memory is short
        Path("/proc/self/oom_score_adj").write_text("500")
    try:
        apart = inside or kernel.enter_namespaces(folder, DISK, INODES)
        if apart and not inside:
            _be_first(control)
        for name in USUAL:
            importlib.import_module(name)
        kernel.drop_rights()
        files = kernel.landlock_version()
        if files:
            kernel.allow_files(_files(folder, given["readable"]))
        elif not inside:
            raise OSError("the kernel has no Landlock (Linux 5.13 or later, turned on)")
    except OSError as error:
        control.sendall(json.dumps({"missing": str(error)}).encode())
        return
    sys.set_int_max_str_digits(0)
    sys.argv[1:], sys.path[:] = [], [path for path in sys.path if path != given["source"]]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    gc.collect()
    gc.freeze()  # what stands now is shared with the programs' processes, not copied
    control.sendall(json.dumps({"landlock": files, "namespaces": apart}).encode())
    with contextlib.suppress(ConnectionError):
        _serve(control, folder, watched=not apart)


def _be_first(control: socket.socket) -> None:
    """Goes on in a child, the first process of its namespace; with it all in there end."""
    child = os.fork()
    if child == 0:
        kernel.die_with_parent()
        return
    control.close()
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _files(folder: str, readable: Sequence[str]) -> list[tuple[str, int]]:
    rules = [(path, kernel.READ) for path in (*readable, *DEVICES)]
    rules += [(path, kernel.WRITE_FILE) for path in WRITTEN]
    return [*rules, (folder, kernel.CHANGE)]


def _serve(control: socket.socket, folder: str, *, watched: bool) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 5)
        if not message:
            return
        wanted = json.loads(message)
        if "stop" in wanted:  # of a run that has ended by now
            continue
        report = _run(wanted, descriptors, folder, watched)
        _empty(folder)
        control.sendall(json.dumps(report).encode())


def _run(
    wanted: dict[str, Any],
    descriptors: Sequence[int],
    folder: str,
    watched: bool,
) -> dict[str, Any]:
    """Starts a program, with its tests where there are any, and waits until all have ended.

    Descriptors are those of the program (request, output, errors) and of the tests (request,
    report).
    """
    began = time.monotonic()
    of_program, of_tests = descriptors[:3], descriptors[3:]
    ends = [*os.pipe(), *os.pipe()] if of_tests else []
    pids: dict[str, int] = {"program": _start(_program, wanted, of_program, ends, folder)}
    if of_tests:
        pids["tests"] = _start(_tests, wanted, of_tests, ends, folder)
    for descriptor in (*descriptors, *ends):
        os.close(descriptor)
    judge = "tests" if of_tests else "program"
    seconds = wanted["seconds"]
    deadline = began + PATIENCE * seconds
    report: dict[str, Any] = {"timeout": False, "disk": False}
    handles = {name: os.pidfd_open(pid) for name, pid in pids.items()}
    try:
        while True:
            left = min(deadline - time.monotonic(), seconds - _processor_time(pids.values()))
            if left <= 0:
                report["timeout"] = True
                break
            wait = min(left, LOOK) if watched else left
            ready, _, _ = select.select([handles[judge], CONTROL], [], [], wait)
            if ready:  # it ended, or Bedstone wants no more of it
                break
            if watched and _too_full(folder):
                report["disk"] = True
                break
        report["seconds"] = time.monotonic() - began
        if of_tests and not report["timeout"]:
            select.select([handles["program"]], [], [], PARTING)
    finally:
        for name, pid in pids.items():
            if name != judge or not _has_ended(handles[name]):
                os.kill(pid, signal.SIGKILL)
            os.close(handles[name])
    for name, pid in pids.items():
        _, status = os.waitpid(pid, 0)
        report[name] = os.waitstatus_to_exitcode(status)
    return report


def _processor_time(pids: Iterable[int]) -> float:
    """Seconds that processes have computed, so that limits don't depend on what else computes."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            total += time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    return total


def _has_ended(handle: int) -> bool:
    """Whether the process of a descriptor has ended."""
    return bool(select.select([handle], [], [], 0)[0])


def _start(
    side: Any, wanted: dict[str, Any], own: Sequence[int], ends: Sequence[int], folder: str
) -> int:
    child = os.fork()
    if child:
        return child
    try:
        side(wanted, own, ends, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(BROKEN)


def _program(
    wanted: dict[str, Any], own: Sequence[int], ends: Sequence[int], folder: str
) -> NoReturn:
    pipe = (ends[0], ends[3]) if ends else ()
    places = _keep((*own, *pipe), (None, 1, 2))
    _shut(wanted, folder)
    if pipe:
        serve_program(places[0], Pipe(*places[3:]))
    run_program(places[0])


def _tests(
    wanted: dict[str, Any], own: Sequence[int], ends: Sequence[int], folder: str
) -> NoReturn:
    request, report, source, target = _keep((own[0], own[1], ends[2], ends[1]), ())
    _shut(wanted, "")
    run_tests(request, report, Pipe(source, target))


def _keep(kept: Sequence[int], standard: Sequence[int | None]) -> list[int]:
    """Moves these descriptors to fixed places and closes all others; gives the places.

    Args:
        standard: for the first ones, their place of 0 to 2; None and the rest go behind.
    """
    high = [os.dup2(one, 100 + number) for number, one in enumerate(kept)]
    void = os.open("/dev/null", os.O_RDWR)
    for place in range(3):
        os.dup2(void, place)
    os.closerange(3, 100)
    places, free = [], 3
    for number, one in enumerate(high):
        fixed = standard[number] if number < len(standard) else None
        place = free if fixed is None else fixed
        free += fixed is None
        os.dup2(one, place)
        places.append(place)
    os.closerange(free, 1 << 16)
    return places


def _shut(wanted: dict[str, Any], folder: str) -> None:
    """The last of the sandbox: from here on, code of others may run.

    Args:
        folder: that may be written; none where empty.
    """
    os.chdir(folder or "/")
    os.environ.clear()
    if folder:
        os.environ.update(HOME=folder, TMPDIR=folder)
    random.seed(0)
    kernel.die_with_parent()
    kernel.hide_memory()
    kernel.limit(wanted["seconds"], wanted["memory"], wanted["file_size"], wanted["files"])
    if kernel.landlock_version():
        own = [(folder, kernel.CHANGE)] if folder else []
        devices = [(path, kernel.WRITE_FILE) for path in WRITTEN]
        kernel.allow_files([("/", kernel.READ), *devices, *own])
    kernel.allow_calls()


def _too_full(folder: str) -> bool:
    """Whether it holds too much, or folders that can't be counted: unreadable or far too deep."""
    size = count = 0
    faults: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=faults.append):
        count += len(folders) + len(names)
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118
        if size > DISK or count > INODES:
            return True
    return any(not isinstance(each, FileNotFoundError) for each in faults)


def _empty(folder: str) -> None:
    """Removes all that a program left in its folder.

    Folders are taken up to the top one by one, as they may be nested deeper than a path can be
    long, or than Python's stack. Links are removed, not followed. Raises OSError where something
    stays.
    """
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    moved = 0
    try:
        while names := os.listdir(top):  # noqa: PTH208
            for name in names:
                if not _is_folder(name, top):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    for each in os.listdir(inner):  # noqa: PTH208
                        if not _is_folder(each, inner):
                            os.unlink(each, dir_fd=inner)
                            continue
                        os.chmod(each, 0o700, dir_fd=inner)
                        moved += 1
                        new = f"moved-{moved}-{random.getrandbits(64):x}"
                        os.rename(each, new, src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _is_folder(name: str, place: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode)
