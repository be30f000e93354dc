"""Hyperparameter search by TPE and ASHA beside random search at full budgets, on tinyshakespeare.

    python bench/tune.py [--trials 40] [--steps 160] [--seeds 0] [--workers 1] [--write]
    python bench/tune.py --sides bedstone    # one of the two alone

Both search the same five fields of the same small recipe (a GPT of 0.1M parameters on characters),
from the same seeds. Random search gives every trial its whole budget. The cost is counted in
trained tokens, which are equal work here: no field that is varied changes the network or the batch.
Compared are the best validation losses, both measured at the end of a whole budget, on the same
held-out text. The first trial of a search is the recipe as it is, where its space holds it; here,
it doesn't. Seconds are of the training loops, evaluation and checkpoints included.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bedstone.commands.tune import base_recipe
from bedstone.inspect.space import check_space, read_space
from bedstone.inspect.study import StudySettings, create
from bedstone.inspect.tune import search
from bedstone.recipes import library
from result import SHARED, Side, add_write, write

SPACE = (
    "optim.lr=log:1e-4..1e-1",
    "optim.adamw_lr=log:1e-4..1e-1",
    "optim.momentum=0.5..0.98",
    "schedule.decay=0.1..0.9",
    "schedule.warmup=0.01..0.2",
)
SIDES = {"bedstone": ("tpe", "asha"), "random": ("random", "none")}


def recipe(text: Path, steps: int) -> dict[str, Any]:
    """The recipe that all trials share, whose rates are outside the space."""
    return base_recipe(
        library.find("tinyshakespeare"),
        [
            f"data.source={text}",
            f"budget={steps} steps",
            "model.width=64",
            "model.layers=2",
            "batch_size=16",
            "evaluate_tokens=8192",
            "optim.lr=1.0",
            "precision=fp32",
            "device=cpu",
        ],
    )


def run(
    side: str, folder: Path, values: dict[str, Any], seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """One search: its best loss, what it trained, and what its trials came to."""
    sampler, pruner = SIDES[side]
    space = read_space(None, SPACE)
    settings = StudySettings(sampler=sampler, pruner=pruner, seed=seed)
    check_space(space, values, settings.by)
    study = create(folder / f"{side}-{seed}", values, space, settings, 1)
    search(study, args.trials, args.workers)
    results, best = study.results(), study.best()
    if best is None:
        raise SystemExit(f"{side}, seed {seed}: no trial finished.")
    return {
        "best": best.value,
        "values": dict(best.values),
        "tokens": sum(each.items for each in results),
        "seconds": sum(each.seconds for each in results),
        "finished": sum(each.state == "finished" for each in results),
        "pruned": sum(each.state == "pruned" for each in results),
        "diverged": sum(each.state == "diverged" for each in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    add_write(parser)
    args = parser.parse_args()
    values = recipe(SHARED / "text" / "tinyshakespeare.txt", args.steps)
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for side in args.sides:
                found = run(side, Path(folder), values, seed, args)
                rounds[side].append(found)
                print(f"seed {seed}, {side}: {found}", flush=True)
            if len(args.sides) < 2:
                continue
            ours, other = (rounds[side][-1] for side in SIDES)
            print(
                f"seed {seed}: best {ours['best']:.4f}, random {other['best']:.4f} "
                f"({ours['best'] / other['best'] - 1:+.2%}) for "
                f"{ours['tokens'] / other['tokens']:.1%} of its tokens",
                flush=True,
            )
    if args.write:
        sides = {
            side: Side([one["seconds"] for one in each], args.trials, {"rounds": each})
            for side, each in rounds.items()
        }
        write(args.write, "tune", "trials", sides, steps=args.steps, seeds=args.seeds)


if __name__ == "__main__":
    main()
