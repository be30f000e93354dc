"""Which of several ways is the fastest on this machine: measured once, and kept on disk.

Processors differ, so what is fastest is found by trying, not by a name. A result holds for one
processor with its instruction set, number of threads, and versions of torch and Bedstone; what is
kept are the seconds of each way, in `$BEDSTONE_CACHE/speed`, from which the choice follows anew
each time. A file that is damaged, another user's, or says what can't be is measured over.
"""

import contextlib
import functools
import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bedstone.errors import BedstoneError
from bedstone.files import cache_folder, write_json
from bedstone.reading import read_json

FILE = "measured.json"
FORMAT = 1  # of the file; another one is measured over
LIMIT = 1 << 20  # bytes of the file
KEPT = 500  # results; the oldest are forgotten
ROUNDS = 5
SECONDS = 0.6  # after which no other round begins
QUIET = 0.7  # of the time that passes, processor time from which on nobody else disturbed
BETTER = 0.9  # of the first way's time: what another must stay below to be taken
LONGEST = 100.0  # seconds of one call: a kept number beyond is none
_known: dict[tuple[Path, str, str], dict[str, float]] = {}  # of this process
_adopted: dict[str, dict[str, float]] = {}  # of another, by question


@dataclass(frozen=True)
class Measured:
    """A choice and what it follows from.

    Attributes:
        best: the way to take.
        seconds: of one call of each way, the best of several.
        kept: whether they were measured before, by this process or another.
    """

    best: str
    seconds: dict[str, float]
    kept: bool = False


def fastest(
    question: str, ways: Mapping[str, Callable[[], object]], *, better: float = BETTER
) -> Measured:
    """The first way, or another where that takes less than `better` of the first's time.

    Each is called once to make ready what it needs, then in turns; its best call counts.

    Args:
        question: what is measured, with all that the times depend on but the machine.
        ways: what to call, by name.
    """
    names = list(ways)
    place, here = cache_folder("speed") / FILE, machine()
    found = _known.get((place, here, question))
    if set(_adopted.get(question, ())) == set(names):
        found = _known[place, here, question] = _adopted[question]
    if found is None or set(found) != set(names):
        found = _sound(_read(place).get(here), question, names)
    if found is not None:
        _known[place, here, question] = found
        return Measured(_choice(found, names, better), found, kept=True)
    found, busy = _measure(ways)
    _known[place, here, question] = found
    if not busy:  # else the next process measures anew
        _keep(place, here, question, found)
    return Measured(_choice(found, names, better), found)


def best_count(question: str, most: int, call: Callable[[int], object]) -> int:
    """The fastest of `most` threads, half of them, and so on to 1."""
    counts = [most]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    ways = {str(count): functools.partial(call, count) for count in counts}
    return int(fastest(f"threads: {question}", ways).best)


def known() -> dict[str, dict[str, float]]:
    """The seconds of each way, by question, that this process has chosen by."""
    return {question: dict(found) for (_, _, question), found in _known.items()}


def adopt(found: Mapping[str, Mapping[str, float]]) -> None:
    """Has this process choose as another did, whose `known` is given, on whatever machine.

    So processes that share out some work compute it in the same way, bit for bit.
    """
    _adopted.update({question: dict(seconds) for question, seconds in found.items()})


def machine() -> str:
    """What a result holds for: the processor, its instructions, threads and versions."""
    name, flags = processor()
    digest = hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:8]
    threads = torch.get_num_threads()
    return f"{name}, instructions {digest}, {threads} threads, {_versions()}"


@functools.cache
def _versions() -> str:
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        return f"torch {torch.__version__}, bedstone {metadata.version('bedstone')}"
    return f"torch {torch.__version__}"


@functools.cache
def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and what instructions it has, as Linux says; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor(), frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = frozenset(each.replace("_", "") for each in fields.get("flags", "").split())
    return fields.get("model name", platform.processor()), flags


def _choice(seconds: Mapping[str, float], names: list[str], better: float) -> str:
    first, best = names[0], min(names, key=lambda name: seconds[name])
    return best if seconds[best] < better * seconds[first] else first


def _measure(ways: Mapping[str, Callable[[], object]]) -> tuple[dict[str, float], bool]:
    """Seconds of each way; and whether others had the processor, so that they mean little."""
    best = dict.fromkeys(ways, math.inf)
    computed, passed = time.process_time(), time.perf_counter()
    end = time.perf_counter() + SECONDS
    for call in ways.values():
        call()
    for _ in range(ROUNDS):
        for name, call in ways.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    computed, passed = time.process_time() - computed, time.perf_counter() - passed
    return best, computed < QUIET * passed


def _read(place: Path) -> dict[str, Any]:
    """Results of earlier processes by machine; none where the file isn't this user's or sound."""
    try:
        if hasattr(os, "getuid") and place.stat().st_uid != os.getuid():
            return {}
        held = read_json(place, LIMIT)
    except (OSError, BedstoneError):
        return {}
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        return {}
    results = held.get("results")
    return results if isinstance(results, dict) else {}


def _sound(held: Any, question: str, names: list[str]) -> dict[str, float] | None:
    """The seconds that are kept of each way, where they can be believed."""
    found = held.get(question) if isinstance(held, dict) else None
    if not isinstance(found, dict) or set(found) != set(names):
        return None
    for each in found.values():
        if type(each) not in (int, float) or not 0 < each < LONGEST:
            return None
    return {name: float(found[name]) for name in names}


def _keep(place: Path, here: str, question: str, found: Mapping[str, float]) -> None:
    """Writes a result beside those that are there; a folder that can't be written keeps none."""
    results = {name: dict(held) for name, held in _read(place).items() if isinstance(held, dict)}
    own = results.pop(here, {})
    own.pop(question, None)
    own[question] = dict(found)
    results[here] = dict(list(own.items())[-KEPT:])  # what was measured last stands last
    while len(results) > 1 and sum(map(len, results.values())) > KEPT:
        results.pop(next(iter(results)))
    with contextlib.suppress(OSError, BedstoneError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(place, {"format": FORMAT, "results": results})


def threads_of(processes: int) -> int:
    """Threads of each of several processes: OMP_NUM_THREADS where it says how many, or its share
    of the cores."""
    word = os.environ.get("OMP_NUM_THREADS", "")
    return int(word) if word.isdigit() and int(word) else max((os.cpu_count() or 1) // processes, 1)
