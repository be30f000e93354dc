"""What a plan predicts beside what a run, or a server, then takes.

    python bench/plan.py runs [--only tinyshakespeare clip-scenes] [--run 75] [--seconds 20]
    python bench/plan.py serve [--model smollm2-135m-instruct] [--precision int8] [--rounds 3]

`runs` plans recipes of the library by `bedstone plan`, with as many steps as take about --run
seconds, and trains each in a process of its own: peak of resident memory (of the system's count),
and seconds in the training loop (the run's log). An error is the prediction less what came, as a
share of it. Recipes that need data read the shared data.

`serve` plans a served decoder, and then sends it eight prompts at once over the loopback interface,
drawn texts of one length: the seconds that all of them take beside those that the plan's speeds of
reading and of eight rows make.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bedstone.files import write_json
from bedstone.inspect.serving import plan_serving
from bedstone.recipes import library
from bedstone.recipes.given import read_any
from result import SHARED
from serve import Running

TEXT = SHARED / "text" / "tinyshakespeare.txt"
GLUE, CONLL = SHARED / "glue", SHARED / "conll2003"
SCENES = ["data.most_rows=1000"]
# Recipes with what they need of data; scenes are few, as drawing them isn't planned.
RECIPES: dict[str, list[str]] = {
    "tinyshakespeare": [f"data.source={TEXT}"],
    "python-gpt": [],
    "python-bert": [],
    "clip-scenes": SCENES,
    "vlm-scenes-captions": SCENES,
    "diffusion-scenes": SCENES,
    "autoencoder-scenes": SCENES,
    "dvae-scenes": SCENES,
    "gpt-scenes": [],
    "finetune-sst2": [
        f"data.train={GLUE}/sst2-validation.jsonl",
        f"data.validation={GLUE}/sst2-validation.jsonl",
    ],
    "finetune-stsb": [
        f"data.train={GLUE}/stsb-train.jsonl",
        f"data.validation={GLUE}/stsb-validation.jsonl",
    ],
    "finetune-conll": [
        f"data.train={CONLL}/train.jsonl",
        f"data.validation={CONLL}/validation.jsonl",
    ],
}
LEAST = 20  # steps of a run
TOGETHER, PROMPT, NEW = 8, 128, 64  # requests, tokens of a prompt, tokens written


def bedstone(*words: str) -> list[str]:
    return [sys.executable, "-m", "bedstone", *words]


def planned(name: str, overrides: list[str], seconds: float) -> dict[str, Any]:
    """The plan of a recipe, by a process of its own."""
    words = bedstone("plan", name, *overrides, "--seconds", f"{seconds:g}", "--json")
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def trained(name: str, overrides: list[str], out: Path) -> tuple[int, float]:
    """The peak of a run's resident memory in bytes, and the seconds of its training loop."""
    method, _ = read_any(library.find(name), overrides)
    command = "finetune" if method.name == "supervised" else "pretrain"
    words = bedstone(command, name, *overrides, f"out={out}")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(words)}: exit status {status}")
    last = json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return usage.ru_maxrss * 1024, float(last["seconds"])


def runs(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in options.only or RECIPES:
        overrides = RECIPES[name]
        step = planned(name, overrides, options.seconds / 4)["time"]["step_seconds"]
        steps = max(int(options.run / step), LEAST)
        overrides = [*overrides, f"budget={steps} steps"]
        plan = planned(name, overrides, options.seconds)
        with tempfile.TemporaryDirectory() as folder:
            peak, seconds = trained(name, overrides, Path(folder) / "run")
        inside = plan["time"]["from_seconds"] <= seconds <= plan["time"]["to_seconds"]
        found[name] = {
            "steps": steps,
            "peak_mb": [plan["memory_bytes"]["peak"] / 1e6, peak / 1e6],
            "peak_error": plan["memory_bytes"]["peak"] / peak - 1,
            "seconds": [plan["time"]["seconds"], seconds],
            "time_error": plan["time"]["seconds"] / seconds - 1,
            "within_interval": inside,
        }
        print(name, json.dumps(found[name]), flush=True)
        if options.write:
            write_json(options.write, found)
    for error in ("peak_error", "time_error"):
        sizes = [abs(each[error]) for each in found.values()]
        print(f"{error}: median {statistics.median(sizes):.3f}, worst {max(sizes):.3f}")
    return found


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds that eight requests take, predicted and over HTTP."""
    words = [f"precision={options.precision}", f"max_model_len={PROMPT + NEW + 64}"]
    plan = plan_serving(options.model, words, seconds=options.seconds, quiet=True)
    speeds = {each.rows: each for each in plan.speeds}
    tokens = TOGETHER * PROMPT, TOGETHER * NEW
    predicted = tokens[0] / speeds[0].rate + tokens[1] / speeds[TOGETHER].rate
    chosen = argparse.Namespace(
        model=options.model, precision=options.precision, requests=TOGETHER, prompt=PROMPT, new=NEW
    )
    taken = []
    with Running(chosen) as running:
        for number in range(options.rounds):
            prompts = [running.prompt(TOGETHER * number + each, PROMPT) for each in range(TOGETHER)]

            async def together(prompts: list[list[int]] = prompts) -> None:
                await asyncio.gather(
                    *(running.ask(each, NEW, temperature=1.0, seed=0) for each in prompts)
                )

            began = time.perf_counter()
            asyncio.run(together())
            taken.append(time.perf_counter() - began)
    return {
        "speeds": [each.text() for each in plan.speeds],
        "predicted_seconds": predicted,
        "seconds": taken,
        "error": predicted / statistics.median(taken) - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("runs", "serve"))
    parser.add_argument("--only", nargs="*", default=[], choices=list(RECIPES))
    parser.add_argument("--run", type=float, default=75.0, help="seconds of a run, about")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a plan's timing")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a JSON file of all figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = (runs if options.what == "runs" else serve)(options)
    print(json.dumps(found, indent=1))
    if options.write:
        write_json(options.write, found)


if __name__ == "__main__":
    main()
