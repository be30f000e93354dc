"""How many threads a step of few rows is fastest on: measured once a processor and shape, and kept.

A step waits for the slowest of its threads some hundred times. Where cores differ, or some of them
read memory as fast as all, fewer threads than there are give more tokens a second. What is computed
doesn't depend on their number.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable

from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.nn.fast import kernels

FILE = "threads.json"
SMALL = 4 << 20  # bytes of weights below which nothing is measured
ROUNDS = 5
SECONDS = 0.5  # at most, for all rounds
BETTER = 0.9  # of the time on all threads: what fewer must stay below


def best_threads(name: str, nbytes: int, step: Callable[[int], None]) -> int:
    """The number of threads for calls of few rows.

    Args:
        name: of the network's shape; with the processor's it is what a result is kept by.
        nbytes: of the weights that a step reads.
        step: runs one on so many threads.
    """
    most = kernels.threads()
    if most == 1 or nbytes < SMALL:
        return most
    key = f"{kernels.processor()[0]}, {most} threads, {name}"
    known = _kept().get(key)
    if isinstance(known, int) and 1 <= known <= most:
        return known
    chosen = _measured(most, step)
    with contextlib.suppress(OSError, BedstoneError):  # a folder that can't be written keeps none
        folder = kernels.cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(folder / FILE, {**_kept(), key: chosen})
    return chosen


def _kept() -> dict[str, object]:
    """Results of earlier processes; none where the file can't be read."""
    try:
        found = json.loads((kernels.cache_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _measured(most: int, step: Callable[[int], None]) -> int:
    """The fastest of `most`, its half, and so on to 1; the best of interleaved rounds counts."""
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    best = dict.fromkeys(counts, math.inf)
    end = time.perf_counter() + SECONDS
    for _ in range(ROUNDS):
        for count in counts:
            began = time.perf_counter()
            step(count)
            best[count] = min(best[count], time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    fewer = min(counts, key=lambda count: best[count])
    return fewer if best[fewer] < BETTER * best[most] else most
