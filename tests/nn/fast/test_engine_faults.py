"""Faults around the engine: the ends of memory, other runtimes of OpenMP, processes that die."""

import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from bedstone.nn.fast import kernels, passes
from bedstone.nn.fast.panels import BF16, FP32, panels
from bedstone.nn.fast.program import LOGITS, PRODUCT, Program, X
from bedstone.nn.quantize import encode
from engine_forms import FORMS

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect and /proc of Linux")
pytestmark = [
    linux,
    pytest.mark.skipif(kernels.library() is None, reason="there is no engine here"),
]

# Reads one byte beyond a guarded tensor: what a test of guards must die of.
BEYOND = """
import ctypes, sys, torch
sys.path[:0] = ["tests/nn/fast", "tests"]
from test_engine_faults import Guarded
held = Guarded().put(torch.arange(100, dtype=torch.uint8))
assert ctypes.string_at(held.data_ptr() + 99, 1) == b"c"
ctypes.string_at(held.data_ptr() + 100, 1)
"""
# Two runtimes of OpenMP: that of the engine and torch, and another copy under another name.
TWO = """
import ctypes, shutil, sys, torch
from pathlib import Path
from bedstone.nn.fast import kernels, passes
torch.set_num_threads(2)
logits, tokens = torch.randn(8, 9000), torch.zeros(8, 1, dtype=torch.int64)
own = passes.log_probabilities(logits, tokens)
maps = Path("/proc/self/maps").read_text().split()
first = next(each for each in maps if "libgomp" in each or "libomp" in each)
copy = shutil.copy(first, Path(sys.argv[1]) / "libother_omp.so")
other = ctypes.CDLL(copy)
assert other.omp_get_max_threads() >= 1
other.omp_set_num_threads(3)
assert ctypes.CDLL(first).omp_get_max_threads() == 2
kept = {each for each in Path("/proc/self/maps").read_text().split() if "omp" in each}
assert len({Path(each).name for each in kept if ".so" in each}) >= 2, kept
assert torch.equal(passes.log_probabilities(logits, tokens), own)
assert torch.allclose(torch.log_softmax(logits, 1)[:, :1], own, atol=1e-4)
"""


class Guarded:
    """Copies of tensors that end where a page begins which nobody may touch."""

    def __init__(self):
        self._maps = []

    def put(self, tensor):
        """The same numbers, the last byte just before the guard."""
        size = tensor.numel() * tensor.itemsize
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, room + mmap.PAGESIZE)
        self._maps.append(memory)
        view = torch.frombuffer(memory, dtype=torch.uint8)
        failed = ctypes.CDLL(None, use_errno=True).mprotect(
            ctypes.c_void_p(view.data_ptr() + room), ctypes.c_size_t(mmap.PAGESIZE), 0
        )
        assert not failed
        own = view[room - size : room].view(tensor.dtype).view(tensor.shape)
        return own.copy_(tensor)


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", request.param)


def run(code, *words, **options):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, **options)


def test_a_guard_stops_who_reads_beyond():
    assert run(BEYOND).returncode == -signal.SIGSEGV


@pytest.mark.parametrize("rows", [1, 2, 7, 9, 21])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int4"])
def test_a_product_reads_and_writes_not_one_byte_beyond(form, kind, rows):
    guarded = Guarded()
    torch.manual_seed(rows)
    for outs, ins in ((16, 32), (48, 96), (5, 33), (1, 1)):
        if kind == "int4":
            ins = 32 * (1 + ins // 64)
        weight = torch.randn(outs, ins)
        bits = {"int8": 8, "int4": 4}.get(kind)
        given = encode(weight, bits, 32) if bits else weight
        program = Program()
        made = panels(given, FP32 if kind == "fp32" else BF16, bias=torch.randn(outs)).settle()
        program.add(PRODUCT, X, LOGITS, made)
        for name in ("data", "scales", "bias"):
            if (held := getattr(made, name)) is not None:
                copy = guarded.put(held)
                setattr(made, name, copy)
                setattr(made.struct, name, copy.data_ptr())
        x = torch.zeros(rows, made.ins)
        x[:, :ins] = torch.randn(rows, ins)
        x, found = guarded.put(x), guarded.put(torch.zeros(rows, made.outs))
        area = guarded.put(torch.zeros(max(rows, 2), 4 * max(made.ins, 64), dtype=torch.uint8))
        scores = guarded.put(torch.zeros(1, max(made.ins, 64)))
        call = kernels.Call()
        call.ops, call.count, call.rows, call.threads, call.active = program.array, 1, rows, 1, 1
        call.coarse = 0.0 if kind == "fp32" else 2.0
        call.buffers[X], call.buffers[LOGITS] = x.data_ptr(), found.data_ptr()
        call.strides[X], call.strides[LOGITS] = made.ins, made.outs
        call.area, call.area_stride = area.data_ptr(), area.shape[1]
        call.scores, call.scores_stride = scores.data_ptr(), scores.shape[1]
        kernels.library().bedstone_run(ctypes.byref(call))
        whole = given.whole(torch.float32) if bits else weight
        expected = x[:, :ins] @ whole.T + made.bias.flatten()[:outs]
        error = (found[:, :outs] - expected).abs().max()
        assert error <= 0.03 * expected.abs().max() + 1e-4


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_passes_over_logits_read_not_one_byte_beyond(form, count):
    guarded = Guarded()
    logits = guarded.put(torch.randn(3, count))
    tokens = guarded.put(torch.full((3, 1), count - 1))
    known = passes.log_probabilities(logits, tokens)
    torch.testing.assert_close(known, logits.log_softmax(-1)[:, -1:], atol=1e-5, rtol=1e-5)
    numbers = guarded.put(torch.full((3,), 0.999, dtype=torch.float64))
    for cut in ((0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.2)):
        found = passes.drawn(logits, numbers, kernels.Drawing(1.0, 0, *cut))
        assert ((found >= 0) & (found < count)).all()
    for dtype in passes.TYPES:
        own = guarded.put(logits.to(dtype))
        assert passes.softmax_errors(own, None, tokens.view(-1), 0.1).isfinite().all()
        assert passes.dropped(guarded.put(logits.to(dtype)), 1, 1 << 15, 2.0).isfinite().all()


def test_two_runtimes_of_openmp_in_one_process(tmp_path):
    done = run(TWO, str(tmp_path), timeout=100)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.slow
def test_killed_while_the_engine_is_built(tmp_path):
    """What is left behind isn't taken for the engine; the next process builds it."""
    compiler = tmp_path / "slow-compiler"
    real = shutil.which("g++") or shutil.which("clang++")
    assert real is not None
    compiler.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo slow 1; exit; fi\n'
        "for last; do :; done\n"
        f'if [ -e "{tmp_path}/go" ]; then echo "int made;" > "{tmp_path}/a.cpp"\n'
        f'exec {real} -shared -fPIC "{tmp_path}/a.cpp" -o "$last"; fi\n'
        'printf half > "$last"\n'
        "exec sleep 60\n"
    )
    compiler.chmod(0o755)
    settings = os.environ | {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = "from bedstone.nn.fast import kernels; print(kernels._built(kernels.instructions()))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=settings, start_new_session=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    folder = tmp_path / "cache" / "bedstone" / "engine"
    end = time.monotonic() + 60
    while not [each for each in folder.glob("*.so") if each.read_bytes() == b"half"]:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(folder.glob("*.sha256"))  # nothing says that the half is whole
    (tmp_path / "go").touch()
    done = run(code, env=settings, timeout=100)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    file = kernels.Path(done.stdout.decode().strip())
    assert file.parent == folder and ctypes.CDLL(str(file)).made is not None
    assert kernels._digest(file) == file.with_suffix(".sha256").read_text()
