"""The machine under a measurement of speed: its instructions, what else runs, and its roof.

The roof is how many bytes a second a loop reads from memory with as many threads as the
contestants have: decoding one sequence can't be faster than its weights are read. The loop is a
few lines of C++ in several forms, the best of which counts; without a compiler, torch reads.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

INSTRUCTIONS = ("avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
BUSY = 0.3  # of a core: beyond, something else runs here
BYTES = 256 << 20  # read at once: no cache of a small machine holds it
ROOF = r"""
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
typedef uint64_t lane __attribute__((vector_size(64)));
static volatile uint64_t sink;

// Sums a part of memory in `streams` pieces side by side, fetching `ahead` cells beforehand.
template <int streams, int ahead> void read(const lane *from, size_t cells) {
    lane sums[streams] = {};
    const size_t piece = cells / streams;
    for (size_t i = 0; i < piece; i++)
        for (int s = 0; s < streams; s++) {
            const lane *at = from + s * piece + i;
            if (ahead) __builtin_prefetch(at + ahead);
            sums[s] += *at;
        }
    for (int s = 1; s < streams; s++) sums[0] += sums[s];
    sink = sums[0][0] + sums[0][1] + sums[0][2] + sums[0][3];
}

int main(int count, char **words) {
    const size_t bytes = strtoull(words[1], 0, 10), threads = strtoull(words[2], 0, 10);
    lane *memory = (lane *)aligned_alloc(1 << 21, bytes);
    for (size_t i = 0; i < bytes / sizeof(lane); i++) memory[i] = lane{i, i, i, i, i, i, i, i};
    void (*forms[])(const lane *, size_t) = {read<1, 0>, read<2, 0>, read<4, 0>, read<8, 0>,
                                             read<1, 16>, read<4, 16>, read<4, 32>};
    double best = 0;
    for (int turn = 0; turn < 12; turn++)
        for (auto form : forms) {
            const size_t part = bytes / sizeof(lane) / threads;
            auto began = std::chrono::steady_clock::now();
            std::vector<std::thread> others;
            for (size_t t = 1; t < threads; t++) others.emplace_back(form, memory + t * part, part);
            form(memory, part);
            for (auto &each : others) each.join();
            std::chrono::duration<double> taken = std::chrono::steady_clock::now() - began;
            double rate = part * threads * sizeof(lane) / taken.count();
            if (rate > best) best = rate;
        }
    printf("%.0f\n", best);
}
"""


def instructions() -> dict[str, bool]:
    """Which of `INSTRUCTIONS` the processor has, as Linux names them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return {name: name in flags for name in INSTRUCTIONS}


def roof(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "roof.cpp"), Path(folder, "roof")
        source.write_text(ROOF, encoding="utf-8")
        compiler = ["g++", "-O3", "-march=native", "-pthread", "-o", str(program), str(source)]
        try:
            subprocess.run(compiler, check=True, capture_output=True)
            words = [str(program), str(BYTES), str(threads)]
            return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        except (OSError, subprocess.CalledProcessError, ValueError):
            return _roof_by_torch()


def _roof_by_torch() -> float:
    """The same by sums and largest values, which are slower than memory on some processors."""
    memory = torch.zeros(BYTES, dtype=torch.int8)
    views = (memory.view(torch.int64), memory.view(torch.float32))
    best = 0.0
    for _ in range(5):
        for view in views:
            for form in (torch.sum, torch.amax):
                began = time.perf_counter()
                form(view, 0)
                best = max(best, BYTES / (time.perf_counter() - began))
    return best


class Watch:
    """How busy others keep the processor, in cores, from its making on.

    What all processes did is in /proc/stat; what this one and its finished children did is known.
    """

    def __init__(self) -> None:
        self._start = self._read()

    def others(self) -> float:
        """Cores that other processes used on average so far."""
        now = self._read()
        wall, everyone, mine = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, (everyone - mine) / wall) if wall else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Seconds: of the clock, of all processes, of this one and its children."""
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
        user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, first)
        ticks = user + nice + system + interrupts + soft + stolen
        return (
            time.perf_counter(),
            ticks / os.sysconf("SC_CLK_TCK"),
            sum(os.times()[:4]),
        )


def require_quiet(anyway: bool) -> None:
    """Exits where other processes use more than `BUSY` cores, or only says so."""
    watch = Watch()
    time.sleep(1.5)
    if (busy := watch.others()) > BUSY:
        text = f"other processes use {busy:.2f} cores here, more than {BUSY}"
        if not anyway:
            sys.exit(f"{text}: no figure would hold. Wait, or see how it runs with --anyway.")
        print(f"warning: {text}; the figures don't hold", flush=True)


def lines(threads: int, read: float) -> list[str]:
    """What stands above the figures: the processor, its instructions, the roof."""
    have = [name for name, there in instructions().items() if there]
    lack = [name for name, there in instructions().items() if not there]
    return [
        f"{torch.cpu.get_capabilities().get('cpu_name') or 'unknown processor'}, "
        f"{os.cpu_count()} cores, {threads} threads, torch {torch.__version__} computes as "
        f"{torch.backends.cpu.get_cpu_capability()}",
        f"has {', '.join(have)}; not {', '.join(lack)}",
        f"roof: {read / 1e9:.1f} GB/s read by {threads} threads",
    ]
