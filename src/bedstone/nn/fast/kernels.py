"""The C++ engine (native/): built where a compiler is, once a processor, and kept in a cache.

Without a compiler, or on other processors than x86 with AVX2, `library` gives None and says why in
`why_not`; all that uses the engine then computes by torch's own operations.

`BEDSTONE_ENGINE` in the environment: `off`, `avx2` to leave AVX-512 out, or `avx512` to leave the
matrix unit (AMX) out; else what there is.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from ctypes import c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path

import torch

from bedstone.errors import BedstoneError
from bedstone.measured import processor

NATIVE = Path(__file__).with_name("native")
SOURCES = ("engine.cpp", "passes.cpp", "dot.h", "tiles.h", "math.h")
OPTIONS = (
    "-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-Wno-psabi",
)  # fmt: skip
AVX2 = ("avx2", "fma", "f16c")
AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
OPTIONAL = ("avx512bf16",)
TILES = ("amxtile", "amxint8", "amxbf16")  # the matrix unit
_PERMIT = 158, 0x1023, 18  # arch_prctl, ARCH_REQ_XCOMP_PERM, the tiles' registers
CHOICES = ("auto", "avx512", "avx2", "off")  # of the environment
BUILD_SECONDS = 120
LARGE_PAGE = 2**21
_PROCESS = os.getpid()


class Weights(ctypes.Structure):
    """`Weights` of engine.cpp."""

    _fields_ = (
        ("kind", c_int32), ("outs", c_int32), ("ins", c_int32), ("group", c_int32),
        ("data", c_void_p), ("scales", c_void_p), ("bias", c_void_p),
    )  # fmt: skip


class Norm(ctypes.Structure):
    """`Norm` of engine.cpp."""

    _fields_ = (
        ("kind", c_int32), ("width", c_int32), ("eps", c_float),
        ("weight", c_void_p), ("bias", c_void_p),
    )  # fmt: skip


class Attention(ctypes.Structure):
    """`Attention` of engine.cpp."""

    _fields_ = (
        ("heads", c_int32), ("groups", c_int32), ("width", c_int32), ("padded", c_int32),
        ("window", c_int32), ("scale", c_float), ("q_norm", Norm), ("k_norm", Norm),
    )  # fmt: skip


class Op(ctypes.Structure):
    """`Op` of engine.cpp."""

    _fields_ = (
        ("code", c_int32), ("source", c_int32), ("target", c_int32), ("offset", c_int32),
        ("adds", c_int32), ("reads_bf16", c_int32), ("gives_bf16", c_int32),
        ("activation", c_int32), ("layer", c_int32), ("factor", c_float),
        ("norm", Norm),
        ("weights", ctypes.POINTER(Weights)), ("attention", ctypes.POINTER(Attention)),
    )  # fmt: skip


class Slots(ctypes.Structure):
    """`Cache` of engine.cpp."""

    _fields_ = (
        ("keys", c_void_p), ("values", c_void_p),
        ("key_scales", c_void_p), ("value_scales", c_void_p),
        ("layers", c_int32), ("capacity", c_int32),
    )  # fmt: skip


class Drawing(ctypes.Structure):
    """`Drawing` of passes.cpp."""

    _fields_ = (
        ("divisor", c_float), ("from_top", c_int32), ("top_k", c_int64),
        ("top_p", c_float), ("min_p", c_float),
    )  # fmt: skip


class Call(ctypes.Structure):
    """`Call` of engine.cpp."""

    _fields_ = (
        ("ops", ctypes.POINTER(Op)),
        ("count", c_int32), ("rows", c_int32), ("threads", c_int32), ("active", c_int32),
        ("cache_kind", c_int32), ("area_stride", c_int32), ("scores_stride", c_int32),
        ("coarse", c_float),
        ("buffers", c_void_p * 6), ("strides", c_int32 * 6),
        ("area", c_void_p), ("scores", c_void_p),
        ("cache", Slots), ("memory", Slots),
        ("ids", c_void_p), ("owners", c_void_p), ("slots", c_void_p),
        ("memories", c_void_p), ("seen", c_void_p),
        ("cosines", c_void_p), ("sines", c_void_p), ("learnt", c_void_p),
        ("distances", c_void_p), ("reach", c_int32),
    )  # fmt: skip


def instructions() -> tuple[str, ...]:
    """Those that the engine is compiled for here; empty where it can't run."""
    _, flags = processor()
    choice = os.environ.get("BEDSTONE_ENGINE") or "auto"
    if choice not in CHOICES:
        raise BedstoneError(
            f"BEDSTONE_ENGINE: {choice!r} was given; expected one of {', '.join(CHOICES)}."
        )
    if choice == "off" or not flags.issuperset(AVX2):
        return ()
    if choice == "avx2" or not flags.issuperset(AVX512):
        return AVX2
    found = AVX2 + AVX512 + tuple(each for each in OPTIONAL if each in flags)
    tiles = choice != "avx512" and flags.issuperset(TILES + OPTIONAL) and _tiles_permitted()
    return found + TILES if tiles else found


@cache
def _tiles_permitted() -> bool:
    """Whether the system lets this process, which must ask, use the matrix unit."""
    try:
        return ctypes.CDLL(None, use_errno=True).syscall(*_PERMIT) == 0
    except (OSError, AttributeError):
        return False


@cache
def _loaded(chosen: tuple[str, ...]) -> tuple[ctypes.CDLL | None, str]:
    """The library for these instructions, or why there is none."""
    if not chosen:
        off = os.environ.get("BEDSTONE_ENGINE") == "off"
        return None, "BEDSTONE_ENGINE=off" if off else "the processor has no AVX2"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None, f"it is made for Linux on x86, not {sys.platform} on {platform.machine()}"
    try:
        found = ctypes.CDLL(str(_built(chosen)))
    except (OSError, subprocess.SubprocessError) as error:
        if chosen[-len(TILES) :] == TILES:  # compilers are younger than processors
            return _loaded(chosen[: -len(TILES)])
        return None, f"it couldn't be built ({str(error).splitlines()[0][:300]})"
    found.bedstone_run.argtypes = [ctypes.POINTER(Call)]
    found.bedstone_run.restype = None
    found.bedstone_read.argtypes = [c_void_p, c_int64, c_int32]
    found.bedstone_read.restype = c_uint64
    found.bedstone_dropout.argtypes = [
        c_void_p, c_void_p, c_int64, c_int32, c_uint64, c_uint32, c_float, c_int32,
    ]  # fmt: skip
    found.bedstone_dropout.restype = None
    found.bedstone_errors.argtypes = [
        c_void_p, c_int32, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p,
        c_int32,
    ]  # fmt: skip
    found.bedstone_errors.restype = None
    found.bedstone_best.argtypes = [
        c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32, c_int32, c_void_p,
        c_void_p, c_void_p, c_void_p, c_int32,
    ]  # fmt: skip
    found.bedstone_best.restype = None
    found.bedstone_known.argtypes = [
        c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int32,
    ]  # fmt: skip
    found.bedstone_known.restype = None
    found.bedstone_draw.argtypes = [
        c_void_p, c_int64, c_int64, c_int64, ctypes.POINTER(Drawing), c_void_p, c_void_p, c_void_p,
        c_int32,
    ]  # fmt: skip
    found.bedstone_draw.restype = None
    found.bedstone_move.argtypes = [
        c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int32,
    ]  # fmt: skip
    found.bedstone_move.restype = None
    found.bedstone_turn.argtypes = [
        c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_int64, c_uint32, c_int32,
    ]  # fmt: skip
    found.bedstone_turn.restype = None
    return found, ""


def library() -> ctypes.CDLL | None:
    """The engine, built at the first use (some seconds); None where there can be none."""
    return _loaded(instructions())[0]


def why_not() -> str:
    """Why there is no engine; empty where there is one."""
    return _loaded(instructions())[1]


def threads() -> int:
    """Of a call: torch's, from whose pool they come; one in a process that was forked.

    What OpenMP keeps of the parent's threads isn't there in a child, which would wait for them.
    """
    return torch.get_num_threads() if os.getpid() == _PROCESS else 1


def large_pages(size: int) -> torch.Tensor:
    """Bytes in pages of 2 MB, where the system gives such: a walk through them misses fewer."""
    whole = torch.empty(size + LARGE_PAGE, dtype=torch.uint8)
    start = -whole.data_ptr() % LARGE_PAGE
    with contextlib.suppress(OSError, AttributeError):  # it is a hint
        ctypes.CDLL(None).madvise(c_void_p(whole.data_ptr() + start), ctypes.c_size_t(size), 14)
    return whole[start : start + size]


def cache_folder() -> Path:
    """Where built engines are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bedstone" / "engine"


def _built(chosen: tuple[str, ...]) -> Path:
    """The compiled file, from the cache or made now.

    Its name holds a hash of the sources, the options and the compiler; beside it stands the hash
    of its content: a file that is another's or was cut is compiled anew.

    Raises:
        OSError: no compiler, or no folder to write to.
        CalledProcessError, TimeoutExpired: the compiler failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise OSError("no C++ compiler: install g++, or name one in CXX")
    options = [*OPTIONS, *(f"-m{each.replace('amx', 'amx-')}" for each in chosen)]
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=BUILD_SECONDS
    ).stdout
    parts = [(NATIVE / name).read_bytes() for name in SOURCES]
    key = hashlib.sha256(b"\0".join([*parts, " ".join(options).encode(), version])).hexdigest()[:20]
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _own(folder)
        return _kept(folder / f"{key}.so", compiler, options)
    except OSError:  # read-only, full, or open to others
        return _kept(_passing() / f"{key}.so", compiler, options)


@cache
def _passing() -> Path:
    """A folder for this process alone, where the cache can't be written."""
    return Path(tempfile.mkdtemp(prefix="bedstone-engine-"))


def _own(folder: Path) -> None:
    """Raises PermissionError for a folder where others could put code for us to run."""
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022 or not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} can be written by others, or not by this user")


def _kept(file: Path, compiler: str, options: list[str]) -> Path:
    """`file` if it is whole, else compiled to a name of its own and then given its place."""
    mark = file.with_suffix(".sha256")
    if file.is_file() and mark.is_file() and mark.read_text() == _digest(file):
        return file
    handle, name = tempfile.mkstemp(suffix=".so", dir=file.parent)
    os.close(handle)
    made = Path(name)
    try:
        if sys.stderr.isatty():
            print("Compiling the engine for this processor, once: about 10 s.", file=sys.stderr)
        files = [str(NATIVE / name) for name in SOURCES if name.endswith(".cpp")]
        subprocess.run(
            [compiler, *options, *files, "-o", str(made)],
            check=True, capture_output=True, timeout=BUILD_SECONDS,
        )  # fmt: skip
        digest = made.with_suffix(".sha256")
        digest.write_text(_digest(made))
        made.replace(file)
        digest.replace(mark)
    finally:
        made.unlink(missing_ok=True)
        made.with_suffix(".sha256").unlink(missing_ok=True)
    return file


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
