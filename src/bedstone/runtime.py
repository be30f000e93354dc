"""Where and how numbers are computed: device, precision, threads, seeds."""

import contextlib
import ctypes
import functools
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from bedstone import ranks
from bedstone.errors import BedstoneError
from bedstone.measured import Measured, fastest


class _WithoutValues(TorchFunctionMode):
    """Leaves weights of the meta device as they are where a module would draw their values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "normal_":
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Modules made in it have shapes and no memory; weights are assigned to them later.

    Drawing normal numbers for a tensor without memory would load all of torch's compiler.
    """
    with torch.device("meta"), _WithoutValues():
        yield


def pick_device(name: str = "auto") -> torch.device:
    """The best device present, or the one named (`cpu`, `cuda`, `cuda:1`, `mps`).

    Raises:
        BedstoneError: the named device is not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return ranks.device(torch.device("cuda"))
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BedstoneError(
            f"device: {name!r} can't be used on this machine ({str(error).splitlines()[0]}). "
            "Use device=auto or device=cpu."
        ) from error
    return ranks.device(device)


def check_finite(values: torch.Tensor | np.ndarray, what: str) -> None:
    """Raises BedstoneError if what a network computed isn't finite."""
    found = torch.as_tensor(values)
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise BedstoneError(
            f"{what} are not finite (nan or infinite), so no result follows from them: the weights "
            "hold such values, or the computation overflows. Check the file of the weights, or "
            "compute in precision fp32."
        )


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 products are faster there than fp32: measured on a CPU, and kept."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _bf16_is_faster()


@functools.cache
def _bf16_is_faster() -> bool:
    # hardware is 1.5 to 8 times as fast, emulation a third: no timing is near the margin
    return products(512, 512).best == "bf16"


def products(ins: int, outs: int) -> Measured:
    """Whether the CPU multiplies rows of so many inputs faster in bf16 or in fp32."""
    wide, weight = torch.ones(256, ins), torch.ones(outs, ins)
    rough, low = wide.bfloat16(), weight.bfloat16()
    linear = torch.nn.functional.linear
    ways = {"fp32": lambda: linear(wide, weight), "bf16": lambda: linear(rough, low)}
    return fastest(f"products of 256 rows, {ins} to {outs}", ways)


@dataclass(frozen=True)
class Precision:
    """How a training step or a generation computes.

    Attributes:
        dtype: of matrix products.
        bits: of the weights that inference quantises, 8 or 4; None leaves them as they are.
        auto: whether `dtype` is a guess, which `nn.fast.pick` replaces by what it measures for the
            network at hand.
    """

    device: torch.device
    dtype: torch.dtype
    bits: int | None = None
    auto: bool = False

    @property
    def name(self) -> str:
        if self.bits is not None:
            return f"int{self.bits}"
        return "bf16" if self.dtype is torch.bfloat16 else "fp32"

    @property
    def weights(self) -> torch.dtype | None:
        """What to hold weights in where activations stay fp32: fp32, or None for as stored."""
        exact = self.dtype is torch.float32 and self.bits is None
        return torch.float32 if exact else None

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Matrix products in `dtype`; norms, losses and parameters stay fp32."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


TRAINING = ("auto", "bf16", "fp32")
BITS = {"int8": 8, "int4": 4}  # of the weights, by the precisions of inference alone


def pick_precision(name: str, device: torch.device, *, learns: bool = False) -> Precision:
    """`auto` is bf16 where the hardware has it, else fp32; `bf16` and `fp32` are taken as said.

    `int8` and `int4` quantise weights for inference, and compute as `auto` does. For inference on a
    CPU `nn.fast.pick` then measures what `auto` is for a network.

    Args:
        learns: whether it is to train in.

    Raises:
        BedstoneError: the name is unknown, or of inference alone where the network learns.
    """
    bits = BITS.get(name)
    if learns and bits:
        raise BedstoneError(
            f"precision: {name!r} is of inference alone; expected {', '.join(TRAINING)}. To train "
            f"an adapter over weights of {bits} bits, fine-tune with lora.rank and quantize={bits}."
        )
    if bits is None and name not in TRAINING:
        known = "auto, bf16 or fp32" if learns else "auto, bf16, fp32, int8 or int4"
        raise BedstoneError(f"precision: {name!r} is unknown; expected {known}.")
    fast = name == "bf16" or (name != "fp32" and has_fast_bf16(device))
    left_open = not learns and device.type == "cpu" and name not in ("bf16", "fp32")
    return Precision(device, torch.bfloat16 if fast else torch.float32, bits, left_open)


def keep_memory() -> None:
    """Lets a training keep the memory of its large tensors from step to step, under glibc.

    What is handed back to the system has to be cleared page by page when it is asked for again:
    the gradient of a 47 MB embedding took 21 ms of a core, and takes 6 when its memory is kept.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: everything from the heap,
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: which isn't given back


class KeptMemory:
    """Keeps the memory of a training (`keep_memory`), and gives back what it keeps in vain.

    Steps of rows of many lengths leave holes behind.

    A step's tensors don't fit the holes of a step with others, so the memory that is kept grows
    from step to step: SFT of 135M weights on rows of 400 to 530 tokens took 13 GB after 100 steps,
    where one step needs 5. It is given back where it has grown to `MOST` times what a step needs.

    Attributes:
        needed: bytes after a step that began with nothing kept, the most of those so far.
    """

    MOST = 1.3

    def __init__(self) -> None:
        keep_memory()
        self.needed, self._measures = 0, True
        self._trim: Any = None
        try:
            self._trim = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError, TypeError):
            return

    def after_step(self) -> None:
        """Looks at the memory of this process; called after each step."""
        size = resident()
        if self._trim is None or not size:
            return
        if self._measures:
            self.needed, self._measures = max(self.needed, size), False
        elif size > self.MOST * self.needed:
            self._trim(0)
            self._measures = True


def resident() -> int:
    """Bytes of memory that this process has; 0 where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def lone_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads on each of which torch computes alone.

    A thread on which torch shares its work out has helpers of its own. As soon as these and the
    training's are more than there are processors, OpenMP lets all of them sleep between two pieces
    of work: elementwise work on 2 threads then took 2.5 times as long, for the rest of the run.
    """
    threads, ready = torch.get_num_threads(), Barrier(count + 1)

    def alone() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # only this makes it last, whatever other threads are told later
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="data")
    for _ in range(count):
        pool.submit(alone)
    ready.wait()
    torch.set_num_threads(threads)
    return pool


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@functools.cache
def versions() -> dict[str, str]:
    """What an artefact records of the software that wrote it."""
    import platform
    from importlib import metadata

    names = ("bedstone", "torch", "tokenizers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
