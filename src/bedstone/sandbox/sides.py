"""The two sides of a scored program: the program in one process, its tests in another.

A program that shares an interpreter with its tests can change what they call and compare, end the
process before they run, or read what they expect. Here the tests have a process of their own. They
hold a stand-in (`Remote`) for each name of the program; to use it sends a line of JSON to the
program's process, and what comes back is data, made anew of plain types: no object of the program,
with its own `__eq__`, ever stands in a comparison. The tests' process alone is given the secret
that says they passed, after the program's process has begun.
"""

import builtins
import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NoReturn

LINE = 16 << 20  # bytes of one message between both
DISK = 64 << 20  # bytes that a program's folder may hold
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")  # that may be read
PATIENCE = 4  # seconds of the clock for each of the processor, at most
BROKEN = 70  # the exit status of a process in which the sandbox itself failed
_DEEP = "its data is nested too deeply"
# Exceptions that mean something to what calls: an iteration would end as if it were done.
_CONTROL = (StopIteration, StopAsyncIteration, GeneratorExit)


class Pipe:
    """Lines of JSON in both directions."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target, self._rest = source, target, b""

    def send(self, message: Any) -> None:
        """Raises OSError where nobody reads, ValueError where the message is too long."""
        data = json.dumps(message).encode() + b"\n"
        if len(data) > LINE:
            raise ValueError(f"a value of {len(data):,} bytes; at most {LINE:,} may be exchanged")
        while data:
            data = data[os.write(self.target, data) :]

    def receive(self) -> Any:
        """The next message. Raises EOFError where there is none, ValueError where it is none."""
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            part = os.read(self.source, 1 << 16)
            size += len(part)
            if not part:
                raise EOFError
            if size > LINE:
                raise ValueError(f"a message of more than {LINE:,} bytes")
            parts.append(part)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return json.loads(line)


def pack(value: Any, keep: Callable[[Any], list[Any]]) -> Any:
    """A value as JSON can write it: plain types exactly, of anything else a reference.

    Args:
        keep: gives the reference of an object that isn't plain.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [pack(one, keep) for one in value]
    if isinstance(value, dict):
        return {"d": [[pack(key, keep), pack(one, keep)] for key, one in value.items()]}
    for name, kind in _SEVERAL.items():
        if isinstance(value, kind):
            return {name: [pack(one, keep) for one in value]}
    for name, kind in _BYTES.items():
        if isinstance(value, kind):
            return {name: value.decode("latin-1")}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    return {"r": keep(value)}


_SEVERAL: dict[str, Any] = {"t": tuple, "s": set, "f": frozenset}
_BYTES: dict[str, Any] = {"b": bytes, "a": bytearray}


def unpack(value: Any, find: Callable[[list[Any]], Any]) -> Any:
    """The value of `pack`, of exact types.

    Args:
        find: gives what a reference stands for.

    Raises:
        ValueError, TypeError, KeyError: it isn't one.
    """
    if isinstance(value, list):
        return [unpack(one, find) for one in value]
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    if name == "d":
        return {unpack(key, find): unpack(one, find) for key, one in inner}
    if name in _SEVERAL:
        return _SEVERAL[name](unpack(one, find) for one in inner)
    if name in _BYTES:
        return _BYTES[name](inner.encode("latin-1"))
    if name == "c":
        return complex(*inner)
    if name == "r":
        return find(inner)
    raise ValueError(f"{name!r} is no kind of value")


# The program's side.


def run_program(source: int) -> NoReturn:
    """Runs a program as a script and ends the process as Python would.

    Args:
        source: descriptor of the request: the program, and its standard input.
    """
    request = _request(source)
    sys.stdin = io.StringIO(request["stdin"])
    status = 1
    try:
        _execute(request["program"], "__main__")
        status = 0
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
        if isinstance(done.code, str):
            print(done.code, file=sys.stderr)
    except BaseException as error:
        _show(error)
    _end(status)


def serve_program(source: int, pipe: Pipe) -> NoReturn:
    """Runs a program, then does with its names what the tests' side wants, until that ends."""
    request = _request(source)
    sys.stdin = io.StringIO("")
    names: dict[str, Any] = {}
    try:
        names = _execute(request["program"], "program")
        pipe.send({"value": None})
    except BaseException as error:
        _show(error)
        pipe.send(_raised(error))
        _end(1)
    held: list[Any] = []
    while True:
        try:
            wanted = pipe.receive()
        except EOFError:
            _end(0)
        try:
            pipe.send(_answer(wanted, names, held))
        except BaseException as error:
            pipe.send(_raised(error))


def _answer(wanted: Mapping[str, Any], names: dict[str, Any], held: list[Any]) -> dict[str, Any]:
    """What comes of one use of the program's names or objects."""

    def keep(value: Any) -> list[Any]:
        held.append(value)
        return [len(held) - 1, type(value).__name__]

    def find(reference: list[Any]) -> Any:
        return held[reference[0]]

    use, given = wanted["use"], unpack(wanted["given"], find)
    if use == "name":
        if given not in names:
            return {"absent": True}
        value = names[given]
        if isinstance(value, ModuleType):
            return {"module": value.__name__}
        return {"value": pack(value, keep)}
    thing = held[wanted["of"]]
    if use == "next":
        try:
            return {"value": pack(next(thing), keep)}
        except StopIteration:
            return {"absent": True}
    done = {
        "call": lambda: thing(*given[0], **given[1]),
        "attribute": lambda: getattr(thing, given),
        "iterate": lambda: iter(thing),
        "length": lambda: len(thing),
        "item": lambda: thing[given],
    }[use]()
    return {"value": pack(done, keep)}


def _execute(program: str, name: str) -> dict[str, Any]:
    """The names of a program, after it ran."""
    module = ModuleType(name)
    sys.modules[name] = module
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    exec(compile(program, "program", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _show(error: BaseException) -> None:
    """Prints an exception with the program's own lines of its traceback."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename != "program":
        place = place.tb_next
    traceback.print_exception(error.with_traceback(place))


def _raised(error: BaseException) -> dict[str, Any]:
    """An exception as its nearest built-in class, and its text."""
    known = next(one for one in type(error).__mro__ if one.__module__ == "builtins")
    try:
        text = str(error)[:2000]
    except BaseException:
        text = ""
    return {"raised": [known.__name__, text, type(error).__name__]}


def _request(source: int) -> Any:
    with os.fdopen(source, "rb") as stream:
        return json.loads(stream.read())


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


# The tests' side.


class ProgramFault(BaseException):
    """The program ended, or what it sent is no message; no `except Exception` of tests takes it."""


class Remote:
    """An object of the program, from the tests' side: it can be called, read and gone through.

    It is equal to itself alone, and has no other operator.
    """

    def __init__(self, link: "Link", number: int, kind: str) -> None:
        self.__dict__.update(_link=link, _number=number, _kind=kind)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._link.use("call", self._number, [list(arguments), named])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{name} of a program's {self._kind} can't be read")
        return self._link.use("attribute", self._number, name)

    def __iter__(self) -> Iterator[Any]:
        found = self._link.use("iterate", self._number)
        if not isinstance(found, Remote):
            raise TypeError(f"the program's {self._kind} gave no iterator")
        return found

    def __next__(self) -> Any:
        return self._link.use("next", self._number)

    def __len__(self) -> int:
        return int(self._link.use("length", self._number))

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, place: Any) -> Any:
        return self._link.use("item", self._number, place)

    def __repr__(self) -> str:
        return f"<the program's {self._kind}>"


class Link:
    """What the tests' side asks of the program's.

    What is handed to a call is a copy: what the program changes in it, the tests don't see, or a
    program could empty the list that its result is compared with.

    Attributes:
        raised: the last exception of the program, in words.
        broken: why it can't be spoken with any more; empty while it can.
    """

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.raised, self.broken = pipe, "", ""
        self._remote: dict[int, Remote] = {}

    def start(self) -> None:
        """Waits until the program has run. Raises what it raised."""
        self._value(self._receive())

    def use(self, use: str, of: int = 0, given: Any = None) -> Any:
        """One use of an object. Raises what the program raised, or ProgramFault."""
        answer = self._exchange({"use": use, "of": of, "given": pack(given, _refer)})
        if use == "next" and answer.get("absent"):
            raise StopIteration
        return self._value(answer)

    def name(self, name: str) -> Any:
        """What the program calls so. Raises NameError."""
        answer = self._exchange({"use": "name", "of": 0, "given": name})
        if answer.get("absent"):
            raise NameError(f"name {name!r} is not defined", name=name)
        module = answer.get("module")
        if module is not None:  # one that the program may have changed isn't used here
            if str(module).split(".")[0] not in sys.stdlib_module_names:
                raise NameError(f"name {name!r} is a module of the program", name=name)
            return importlib.import_module(str(module))
        return self._value(answer)

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            self.pipe.send(message)
        except OSError as error:
            raise self._fault("it ended before its tests did") from error
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            answer = self.pipe.receive()
        except EOFError as error:
            raise self._fault("it ended before its tests did") from error
        except (ValueError, RecursionError) as error:
            raise self._fault(f"it sent no message: {error}") from error
        if not isinstance(answer, dict):
            raise self._fault("it sent no message")
        return answer

    def _value(self, answer: dict[str, Any]) -> Any:
        if "raised" in answer:
            try:
                name, text, own = map(str, answer["raised"])
            except (TypeError, ValueError) as error:
                raise self._fault("it sent no message") from error
            self.raised = f"{own}: {text}" if text else own
            raise _exception(name, text)
        if "value" not in answer:
            raise self._fault("it sent no message")
        return self._unpacked(answer["value"])

    def _unpacked(self, value: Any) -> Any:
        try:
            return unpack(value, self._found)
        except RecursionError as error:
            raise self._fault(_DEEP) from error
        except (ValueError, TypeError, KeyError, AttributeError, UnicodeError) as error:
            raise self._fault(f"it sent no value: {error}") from error

    def _found(self, reference: list[Any]) -> Remote:
        number, kind = reference
        if type(number) is not int or not isinstance(kind, str):
            raise ValueError("a reference is a number and a name")
        return self._remote.setdefault(number, Remote(self, number, kind[:80]))

    def _fault(self, reason: str) -> ProgramFault:
        self.broken = reason
        return ProgramFault(reason)


def _refer(value: Any) -> list[Any]:
    if isinstance(value, Remote):
        return [value._number, value._kind]
    raise TypeError(f"a {type(value).__name__} can't be handed to a program: expected plain data")


def _exception(name: str, text: str) -> Exception:
    """The built-in exception of a name; one that steers what calls becomes a RuntimeError."""
    kind = getattr(builtins, name, None)
    fits = isinstance(kind, type) and issubclass(kind, Exception)
    if not fits or issubclass(kind, _CONTROL):  # type: ignore[arg-type]
        return RuntimeError(f"{name}: {text}")
    try:
        return kind(text)  # type: ignore[misc]
    except Exception:  # it takes other arguments
        return RuntimeError(f"{name}: {text}")


class _Names(dict[str, Any]):
    """Built-in names, and behind them those of the program."""

    def __init__(self, link: Link) -> None:
        super().__init__(vars(builtins))
        self._link = link

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        try:
            return self._link.name(name)
        except NameError as error:
            raise KeyError(name) from error  # the interpreter makes a NameError of it


def run_tests(source: int, target: int, pipe: Pipe) -> NoReturn:
    """Runs tests of the program at the other end, and says at `target` whether they passed.

    Args:
        source: descriptor of the request: the tests, and the secret of this run.
    """
    request = _request(source)
    token = request.pop("token")
    link = Link(pipe)
    report = {"token": "", "reason": ""}
    try:
        link.start()
        place = {"__builtins__": _Names(link), "__name__": "tests"}
        exec(compile(request["tests"], "tests", "exec", dont_inherit=True), place)
    except BaseException as error:
        report["reason"] = _reason(error, request["tests"], link)
    else:
        report["token"] = "" if link.broken else token
    if link.broken:
        report["reason"] = f"the program failed: {link.broken}"
    data = json.dumps(report).encode()
    while data:
        data = data[os.write(target, data) :]
    _end(0)


def _reason(error: BaseException, tests: str, link: Link) -> str:
    """Why tests failed: the exception, and the line of the tests that raised it."""
    try:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")[:500]
    except BaseException:
        text = type(error).__name__
    lines = tests.splitlines()
    numbers = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == "tests" and frame.lineno
    ]
    if numbers and numbers[-1] <= len(lines):
        text = f"{text} (line {numbers[-1]} of the tests: {lines[numbers[-1] - 1].strip()[:200]})"
    if link.raised and not text.startswith(link.raised.split(":")[0]):
        text += f"; the program raised {link.raised[:300]}"
    return text
