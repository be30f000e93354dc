"""Seconds to a BLEU on Multi30k: Bedstone's recipe, and transformers' Seq2SeqTrainer beside it.

    python bench/translate.py --bleu 25 35 [--most-minutes 60] [--lr 2e-3] [--write]
        [--side bedstone trainer trainer-bf16] [--recipe key=value ...] [--run FOLDER]

All sides train the same network (the recipe's, by its saved folder: the same fresh weights, dropout
and tokenizer) on the same 29,000 pairs in batches of the same number of pairs, with label smoothing
0.1, and are measured alike: lower-cased sacreBLEU of the first 200 validation pairs, written
greedily by Bedstone. The Trainer keeps its defaults (fp32, fused AdamW, batches padded to their
longest row, clipping at 1) but for what this task is known to need: Adam's betas of 0.9 and 0.98,
inverse-root decay after 400 steps of warm-up, and the best of a few rates (`--lr`). `trainer-bf16`
computes in bf16 and puts pairs of similar length together. Its rows are tokenised before the
clock starts, and its measuring stops the clock; Bedstone's measuring counts. The Trainer is also
given Bedstone's `keep_memory`, without which some systems spend most of its steps clearing pages.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

import bedstone
from bedstone.data.text.seq2seq import PairExamples, PairsConfig, open_pairs
from bedstone.evaluate.seq2seq import PairScorer
from bedstone.recipes.base import load_method, read, train
from bedstone.runtime import keep_memory, pick_device, pick_precision
from bedstone.train.run import prepare
from result import ROOT, SHARED, Side, add_write, write

FOLDER = SHARED / "multi30k-en-de"
RECIPE = ROOT / "recipes" / "translate-multi30k.yaml"
SIDES = ("bedstone", "trainer", "trainer-bf16")
Curve = list[tuple[float, float]]  # (seconds, BLEU)


def recipe_of(out: Path, more: list[str]) -> Any:
    """The recipe on the real data, with changes."""
    data = [f"data.source={FOLDER / 'train.jsonl'}", "data.test=", f"out={out}"]
    return read(RECIPE, [*data, f"data.validation={FOLDER / 'validation.jsonl'}", *more])


def save_fresh(folder: Path, more: list[str]) -> None:
    """The network that a run would begin with."""
    recipe = recipe_of(folder, more)
    prepare(load_method("seq2seq"), recipe, None, quiet=True).model.save(folder)


def bedstone_curve(folder: Path, minutes: float, every: int, more: list[str]) -> Curve:
    """A run of the recipe; its clock counts the measuring."""
    train(recipe_of(folder, [f"budget={minutes}m", f"evaluate_every={every}", *more]))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "validation_bleu" in line]
    return [(line["seconds"], 100 * line["validation_bleu"]) for line in measured]


class Measured(TrainerCallback):
    """Stops the clock, measures, and ends the training at a BLEU or a time."""

    def __init__(self, scorer: PairScorer, every: int, enough: float, most: float) -> None:
        self.scorer, self.every, self.enough, self.most = scorer, every, enough, most
        self.curve: Curve = []
        self.paused = self.began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        stopped = time.monotonic()
        seconds = stopped - self.began - self.paused
        with tempfile.TemporaryDirectory() as folder:
            kwargs["model"].save_pretrained(folder)
            network = bedstone.load(folder).network
        self.curve.append((seconds, 100 * self.scorer.log(network)["validation_bleu"]))
        print(json.dumps({"step": state.global_step, "seconds": round(seconds, 1),
                          "bleu": round(self.curve[-1][1], 2)}), flush=True)  # fmt: skip
        control.should_training_stop = self.curve[-1][1] >= self.enough or seconds >= self.most
        self.paused += time.monotonic() - stopped


def trainer_curve(start: Path, side: str, args: argparse.Namespace) -> Curve:
    """transformers' Seq2SeqTrainer on the saved fresh network."""
    keep_memory()
    model = bedstone.load(start)
    recipe = yaml.safe_load(RECIPE.read_text())
    languages = {"source_lang": "en", "target_lang": "de"}
    pairs, held = (
        open_pairs(PairsConfig(**languages), str(FOLDER / f"{name}.jsonl"))
        for name in ("train", "validation")
    )
    config = model.config
    start_id, most = config.start_id, (config.context, config.context)
    examples = PairExamples(pairs, model.tokenizer, start_id, most)
    rows = [
        {"input_ids": examples.sources[i].tolist(), "labels": examples.targets[i].tolist()}
        for i in range(len(examples))
    ]
    low = side == "trainer-bf16"
    scorer = PairScorer(
        model,
        PairExamples(held, model.tokenizer, start_id, most),
        pick_precision("auto", pick_device("cpu")),
        lowercase=True,
    )
    network = AutoModelForSeq2SeqLM.from_pretrained(start, dtype=torch.float32)
    measured = Measured(scorer, args.every, max(args.bleu), 60 * args.most_minutes)
    with tempfile.TemporaryDirectory() as out:
        settings = Seq2SeqTrainingArguments(
            out,
            per_device_train_batch_size=recipe["batch_size"],
            learning_rate=args.lr,
            adam_beta2=0.98,
            lr_scheduler_type="inverse_sqrt",
            warmup_steps=400,
            label_smoothing_factor=recipe["smoothing"],
            max_steps=10**6,
            bf16=low,
            train_sampling_strategy="group_by_length" if low else "random",
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=10**6,
        )
        collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(start), model=network)
        Seq2SeqTrainer(
            model=network,
            args=settings,
            train_dataset=rows,
            data_collator=collator,
            callbacks=[measured],
        ).train()
    return measured.curve


def seconds_to(curve: Curve, bleu: float) -> float | None:
    """When a curve first reaches it, in a straight line from the measure before; None: never."""
    before = (0.0, 0.0)
    for seconds, found in curve:
        if found >= bleu:
            share = (bleu - before[1]) / (found - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, found)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bleu", type=float, nargs="+", default=[25.0, 35.0])
    parser.add_argument("--most-minutes", type=float, default=60.0, help="of the Trainer")
    parser.add_argument("--minutes", type=float, default=20.0, help="of Bedstone's whole run")
    parser.add_argument("--side", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--lr", type=float, default=2e-3, help="the Trainer's rate")
    parser.add_argument("--every", type=int, default=50, help="steps between measures")
    parser.add_argument("--run", type=Path, help="keeps Bedstone's run there")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="KEY=VALUE")
    add_write(parser)
    args = parser.parse_args()
    curves: dict[str, Curve] = {}
    with tempfile.TemporaryDirectory() as work:
        start = Path(work) / "start"
        save_fresh(start, args.recipe)
        for side in args.side:
            if side == "bedstone":
                run = args.run or Path(work) / "run"
                curves[side] = bedstone_curve(run, args.minutes, args.every, args.recipe)
            else:
                curves[side] = trainer_curve(start, side, args)
    sides: dict[str, Side] = {}
    for bleu in args.bleu:
        found = {side: seconds_to(curve, bleu) for side, curve in curves.items()}
        for side, seconds in found.items():
            first = found.get("bedstone")
            ratio = f"{seconds / first:.2f}x" if seconds and first else ""
            print(
                f"BLEU {bleu:g}  {side:14} {f'{seconds:.0f} s' if seconds else 'never':>8} {ratio}"
            )
            if seconds:
                sides[f"{side}, BLEU {bleu:g}"] = Side([seconds])
    if args.write:
        write(args.write, "translate", "run", sides, curves=curves, lr=args.lr)


if __name__ == "__main__":
    main()
