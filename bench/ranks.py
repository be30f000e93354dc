"""Training on several ranks beside one process: losses and gradient norms of nine families.

    python bench/ranks.py --steps 50 --ranks 1 2 4
    python bench/ranks.py --kills 200

Small recipes of each family learn in one process, then by torchrun on so many ranks over gloo, by
DDP and by FSDP2, in fp32 and without dropout. Printed are the largest relative difference of the
loss of a step, that of the gradient's norm at the first step, which a mean taken for a sum would
show, and whether all saw the same rows (the ledger).

With --kills a GPT learns on two ranks. A random one is killed (SIGKILL) at a random moment, every
fourth time while a checkpoint is being written, and both are started again, until so many have
been killed; then the last run is left to its end. Each run's weights have to be those of one that
nothing disturbed, bit for bit, and its ledger too.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from bedstone import ranks  # noqa: E402
from bedstone.recipes.base import read, train  # noqa: E402
from bedstone.train.logs import read_log  # noqa: E402
from method_recipes import RECIPES  # noqa: E402
from rank_worker import ended, fork  # noqa: E402
from runs import weights_hash  # noqa: E402

CALM = {"kind": "adamw", "lr": 1e-4, "adamw_lr": 1e-4}
# Without dropout, which each rank draws by itself; at rates at which rounding isn't amplified.
CHANGES: dict[str, dict[str, Any]] = {
    "causal_lm": {"optim": {"kind": "muon", "lr": 3e-4, "adamw_lr": 1e-4}, "batch_size": 5},
    "masked_lm": {
        "optim": CALM,
        "model": {"layout": "bert", "dropout": 0.0, "attention_dropout": 0.0},
    },
    "supervised": {"optim": CALM, "dropout": 0.0},
    "seq2seq": {"optim": CALM, "model": {"layout": "t5", "dropout": 0.0}},
    "contrastive": {"optim": CALM, "chunk": 0},
    "diffusion": {"optim": {**CALM, "eps": 1e-6}, "samples": 0},
    "sft": {"optim": CALM, "lora": {"rank": 4, "dropout": 0.0}},
    "reward": {"optim": CALM},
    "dpo": {"optim": CALM, "sft": 0.0},
    "image_text": {"optim": CALM, "task": "image-to-text"},
}


def recipe(name: str, folder: Path, steps: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    made, change = RECIPES[name](folder), dict(CHANGES[name])
    if isinstance(made.get("model"), dict):
        change["model"] = {**made["model"], **change.get("model", {})}
        change["model"]["layers"] = 2 if "layers" in change["model"] else None
        change["model"] = {k: v for k, v in change["model"].items() if v is not None}
    if name == "image_text":
        vit = {"image_size": 16, "patch": 8, "width": 16, "layers": 2, "heads": 2}
        text = {"width": 16, "layers": 2, "heads": 2, "context": 40, "dropout": 0.0}
        change["model"] = {"layout": "blip", "image": vit, "text": text, "embed": 8}
        change["data"] = {"most_rows": 24}
    made.pop("epochs", None)
    shared = {"device": "cpu", "precision": "fp32", "log_every": 1, "evaluate_every": 10**6}
    return {**made, **change, **shared, "budget": f"{steps} steps", "save_minutes": 60.0}


def figures(run: Path) -> list[tuple[float, float]]:
    logged = [each for each in read_log(run / "log.jsonl") if each.get("loss") is not None]
    return [(each["loss"], each["gradient_norm"]) for each in logged]


def work(count: int, paths: list[Path]) -> dict[str, str]:
    """The ledger of each recipe, trained on so many ranks; none of those that fail."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    done = subprocess.run(
        [sys.executable, *launcher, str(TESTS / "rank_worker.py"), *map(str, paths)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {each["run"]: each["ledger"] for each in found}


class Life:
    """Two ranks that train until they end or are killed, from the last checkpoint if there is one.

    They are forked, not launched by torchrun, for the sake of time; what they are told by the
    environment is the same.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.run, self.note = path.with_suffix(""), path.with_suffix(".ledger")
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
        self.processes = fork([lambda: self._train(path)] * 2, quiet=True)
        self.codes: list[int] = []

    def _train(self, path: Path) -> None:
        torch.set_num_threads(1)
        with ranks.joined():
            done = train(read(path, usual="causal_lm"), quiet=True).done
            if ranks.rank() == 0:
                self.note.write_text(done.ledger)

    def logged(self) -> int:
        """Bytes of the log, which grows once the ranks learn."""
        log = self.run / "log.jsonl"
        return log.stat().st_size if log.is_file() else 0

    def saving(self) -> bool:
        return any((self.run / "checkpoints").glob(".step-*.tmp-*"))

    def wait_until(self, what: Callable[[], bool]) -> bool:
        """Waits for it; False where a rank ended before."""
        while not what():
            for process in self.processes:
                if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return False
            time.sleep(0.001)
        return True

    def killed(self, draw: random.Random, saving: bool) -> bool:
        """Kills a random rank, some time after they began to learn; False where they ended before.

        Args:
            saving: whether to do it while a checkpoint is being written.
        """
        before = self.logged()
        if not self.wait_until(lambda: self.logged() > before):
            return False
        if saving and not self.wait_until(self.saving):
            return False
        until = time.monotonic() + draw.uniform(0, 0.05 if saving else 1.0)
        if not self.wait_until(lambda: time.monotonic() > until):
            return False
        os.kill(draw.choice(self.processes), signal.SIGKILL)
        return True


def kills(count: int, steps: int, way: str, seed: int) -> None:
    """Kills ranks so many times, over as many runs as that takes."""
    folder, draw = Path(tempfile.mkdtemp()), random.Random(seed)
    values = {**recipe("causal_lm", folder / "recipe", steps), "save_every": 5, "parallel": way}
    values["log"] = []
    torch.set_num_threads(1)
    small = {**values, "budget": "2 steps", "out": str(folder / "small")}
    train(read(small, usual="causal_lm"), quiet=True)  # what is imported here, no life imports

    def path_of(name: str) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**values, "out": str(path.with_suffix(""))}))
        return path

    def result(run: Path) -> tuple[str, str]:
        return weights_hash(run / "model"), run.with_suffix(".ledger").read_text()

    whole = path_of("whole")
    if any(ended(Life(whole, 0).processes, 3600)):
        raise SystemExit("The undisturbed run failed.")
    expected = result(whole.with_suffix(""))
    done, in_saves, runs, alike, began = 0, 0, 0, 0, time.monotonic()
    while done < count:
        runs += 1
        path, lives, codes = path_of(f"run{runs}"), 0, [1]
        while any(codes):
            life = Life(path, lives)
            lives, saving = lives + 1, done % 4 == 3
            hit = done < count and life.killed(draw, saving)
            done, in_saves = done + hit, in_saves + (hit and saving)
            codes = ended(life.processes, 3600)
            if any(codes) and not hit:
                raise SystemExit(f"{path}: exit codes {codes} of ranks of which none was killed.")
        alike += result(path.with_suffix("")) == expected
        print(
            f"{done} kills ({in_saves} of them in a save), {runs} runs of {steps} steps by {way}, "
            f"{alike} with the weights and the ledger of the undisturbed one; "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    if alike < runs:
        raise SystemExit(f"Not all runs were alike: look into {folder}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--way", choices=("ddp", "fsdp"), default="ddp", help="of --kills")
    parser.add_argument("--seed", type=int, default=0, help="of --kills")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--families", nargs="+", default=list(CHANGES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.kills:
        kills(given.kills, given.steps, given.way, given.seed)
        return
    folder, rows = Path(tempfile.mkdtemp()), []
    recipes = {name: recipe(name, folder / name, given.steps) for name in given.families}

    def write(name: str, kind: str, **more: Any) -> Path:
        path = folder / name / f"{kind}.yaml"
        values = {**recipes[name], **more, "out": str(path.with_suffix(""))}
        path.write_text(yaml.safe_dump(values))
        return path

    lone = {name: write(name, "one") for name in recipes}
    ledgers = work(1, list(lone.values()))
    print("| family | way | ranks | steps | loss | norm at step 1 | same rows |\n|" + "---|" * 7)
    for count in given.ranks:
        for way in ("ddp", "fsdp"):
            began = time.monotonic()
            paths = {name: write(name, f"{way}{count}", parallel=way) for name in recipes}
            found = work(count, list(paths.values()))
            for name, path in paths.items():
                one, other = (figures(each.with_suffix("")) for each in (lone[name], path))
                if str(path) not in found or len(one) != len(other):
                    print(f"| {name} | {way} | {count} | failed | | | |", flush=True)
                    continue
                apart = [abs(a[0] - b[0]) / abs(a[0]) for a, b in zip(one, other, strict=True)]
                norm = abs(one[0][1] - other[0][1]) / one[0][1]
                same = found[str(path)] == ledgers[str(lone[name])]
                row = {"family": name, "way": way, "ranks": count, "steps": len(one)}
                rows.append({**row, "loss": max(apart), "norm": norm, "same_rows": same})
                print(
                    f"| {name} | {way} | {count} | {len(one)} | {max(apart):.1e} | {norm:.1e} | "
                    f"{'yes' if same else 'NO'} |",
                    flush=True,
                )
            print(f"{way} on {count}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
