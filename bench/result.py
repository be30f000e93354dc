"""The raw result of a benchmark as JSON: all timings, the command, the processor, the versions.

    python bench/NAME.py ... --write [FOLDER]

`bench/results/NAME.json` is what `bench/tables.py` makes the README's figures of. It is written at
the end, whole or not at all. A ratio is of the work a second, Bedstone's beside a peer's, taken
within each round; sides whose names begin with `bedstone` are Bedstone's, all others are peers.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bedstone.files import make_folder, write_json
from bedstone.metrics.figures import wilson as interval  # noqa: F401  # by this name in benches
from bedstone.runtime import versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SHARED = Path(os.environ.get("BEDSTONE_SHARED", ROOT.parent / "shared" / "data"))
OURS = "bedstone"
PEERS = ("transformers", "diffusers", "sentence_transformers", "peft", "datasets")
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")  # what makes bf16 fast


@dataclass(frozen=True)
class Side:
    """What one contestant took.

    Attributes:
        seconds: of each round.
        work: what was done in each round, as tokens or images; 1 where the time is the figure.
        quality: figures beside the time, such as a loss or a cosine.
    """

    seconds: Sequence[float]
    work: float = 1.0
    quality: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rates(self) -> list[float]:
        return [self.work / taken for taken in self.seconds]

    def over(self, peer: "Side") -> list[float]:
        """How many times the peer's rate, in each round."""
        return [a / b for a, b in zip(self.rates, peer.rates, strict=True)]


def add_write(parser: argparse.ArgumentParser) -> None:
    """The option `--write`, of every benchmark whose figures the README has."""
    parser.add_argument(
        "--write",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help="write the raw result as JSON, into bench/results if no folder is named",
    )


def write(folder: Path, name: str, unit: str, sides: Mapping[str, Side], **settings: Any) -> Path:
    """FOLDER/NAME.json; `unit` is that of the work, as `tokens`."""
    path = make_folder(folder) / f"{name}.json"
    write_json(path, record(name, unit, sides, **settings))
    print(path)
    return path


def record(name: str, unit: str, sides: Mapping[str, Side], **settings: Any) -> dict[str, Any]:
    """What the file holds."""
    mine = [side for side in sides if side.startswith(OURS)]
    peers = [side for side in sides if side not in mine]
    return {
        "bench": name,
        "command": command(sys.argv),
        "date": date.today().isoformat(),
        "processor": processor(),
        "versions": versions()
        | {peer: metadata.version(peer) for peer in PEERS if peer in sys.modules},
        "settings": settings,
        "unit": unit,
        "sides": {
            side: {
                "seconds": summary(each.seconds),
                "work": each.work,
                "rate": summary(each.rates),
                "quality": dict(each.quality),
            }
            for side, each in sides.items()
        },
        "ratios": {
            side: {peer: summary(sides[side].over(sides[peer])) for peer in peers} for side in mine
        },
    }


def summary(values: Sequence[float]) -> dict[str, Any]:
    """The values of all rounds, with their median and range."""
    rounds = [float(value) for value in values]
    middle = statistics.median(rounds)
    return {"rounds": rounds, "median": middle, "least": min(rounds), "most": max(rounds)}


def processor() -> dict[str, Any]:
    """The processor's name, how many threads compute, and the instructions that make bf16 fast."""
    can = torch.cpu.get_capabilities()
    name = str(can.get("cpu_name") or platform.processor() or "").strip()
    if not name:
        sys.exit("The processor's name can't be read here, so no result is written.")
    cores = int(can.get("num_physical_cores") or os.cpu_count() or 1)
    has = {instruction: bool(can.get(instruction, False)) for instruction in INSTRUCTIONS}
    return {"name": name, "cores": cores, "threads": torch.get_num_threads(), **has}


def command(words: Sequence[str]) -> str:
    """The command line without `--write` and without folders of this machine."""
    kept: list[str] = []
    after = ""
    for number, word in enumerate(words):
        if word.partition("=")[0] != "--write" and not (after == "--write" and word[:1] != "-"):
            kept.append(f"bench/{Path(word).name}" if number == 0 else portable(word))
        after = word
    return " ".join(kept)


def portable(word: str) -> str:
    """A path as it is in any checkout: below `$BEDSTONE_SHARED`, below the root, or its name."""
    path = Path(word)
    if not path.is_absolute():
        return word
    for folder, name in ((SHARED, "$BEDSTONE_SHARED"), (ROOT, "")):
        if path.is_relative_to(folder.resolve()):
            return str(Path(name) / path.relative_to(folder.resolve()))
    return path.name
