"""What saving a checkpoint costs a training: how long it stands still, and what comes beside.

    python bench/checkpoint.py --steps 30 --every 10 --layers 17

A GPT of 124M weights learns on text made up here and saves every so many steps. Printed are the
median step, the seconds for which each save stops the run, the seconds until it is on the disk, and
what all saves together cost, in seconds of the run.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from bedstone.checkpoints.store import CheckpointStore
from bedstone.recipes.base import read, train
from bedstone.train.loop import Trainer
from runs import make_text


def timed(kind: type, name: str, into: list[tuple[float, float]]) -> None:
    """Notes when each call of a method begins and ends."""
    before = getattr(kind, name)

    def around(*given: Any, **named: Any) -> Any:
        began = time.monotonic()
        try:
            return before(*given, **named)
        finally:
            into.append((began, time.monotonic()))

    setattr(kind, name, around)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=10, help="steps between saves")
    parser.add_argument("--layers", type=int, default=17, help="of width 768; 17 are 124M weights")
    parser.add_argument("--rows", type=int, default=4, help="of 128 tokens, a step")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    given = parser.parse_args()
    steps: list[tuple[float, float]] = []
    saves: list[tuple[float, float]] = []
    written: list[tuple[float, float]] = []
    timed(Trainer, "one_step", steps)
    timed(Trainer, "save", saves)
    timed(CheckpointStore, "_prune", written)  # the last thing of a save
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        made = {
            "model": {"width": 768, "layers": given.layers, "heads": 12, "hidden": 2048},
            "data": {"source": str(make_text(folder / "text", 200)), "validation_share": 0.1},
            "tokenizer": {"vocab_size": 300},
            "optim": {"kind": "adamw", "adamw_lr": 1e-4},
            "context": 128,
            "batch_size": given.rows,
            "budget": f"{given.steps} steps",
            "save_every": given.every,
            "evaluate_every": 10**6,
            "evaluate_tokens": 256,
            "device": "cpu",
            "precision": "fp32",
            "out": str(folder / "run"),
            "keep": 1,
        }
        train(read(made, usual="causal_lm"), quiet=True)
        size = sum(each.stat().st_size for each in (folder / "run/checkpoints").rglob("*"))
        latest = CheckpointStore(folder / "run" / "checkpoints").latest()
    assert latest is not None and latest.step == given.steps
    lengths = [end - begin for begin, end in steps[2:]]
    usual = statistics.median(lengths)
    stalls = [end - begin for begin, end in saves[:-1]]  # the last one ends the run
    disk = [end - begin for (begin, _), (_, end) in zip(saves, written, strict=True)]
    between = steps[-1][1] - steps[2][0]
    print(
        json.dumps(
            {
                "checkpoint_bytes": size,
                "step_seconds": round(usual, 3),
                "stall_seconds": [round(each, 3) for each in stalls],
                "on_disk_seconds": [round(each, 3) for each in disk],
                "cost_of_a_save_seconds": round(
                    (between - usual * len(lengths)) / max(len(stalls), 1), 3
                ),
                "slowest_step_seconds": round(max(lengths), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
