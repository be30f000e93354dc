"""Supervised fine-tuning on conversations: Bedstone beside TRL's SFTTrainer, on the same rows.

    python bench/sft.py [--model smollm2-135m-instruct] [--rows 64] [--rounds 3] [--threads 2]
        [--write]

All weights of the same model learn the same conversations (Alpaca's rows as messages, those over
512 tokens left out) in one pass: 8 rows a step, AdamW, the answers alone (`assistant_only_loss`,
with a template that marks them). First the losses of the first batch are compared. Sides: TRL as
it comes; TRL at its best (bf16, no gradient checkpointing, packed). The figure is trained tokens a
second; clocks begin with the first step, when rows are tokenised, and end with the last.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
import trl

import bedstone
from bedstone.data.dataset import Dataset
from bedstone.data.text.examples import Examples, example_stream
from bedstone.data.text.supervised import make_examples
from bedstone.objectives.supervised import completion_loss
from bedstone.runtime import pick_precision, seed_everything
from bedstone.train.optim import OptimConfig, build_optimizer, clip_gradients
from result import SHARED, Side, add_write, write

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LONGEST, BATCH, RATE = 512, 8, 2e-5


def conversations(count: int, examples_of: Any) -> list[dict[str, Any]]:
    """Rows that fit."""
    lines = (SHARED / "instruct" / "alpaca-en.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    random.Random(0).shuffle(rows)
    found = []
    for row in rows:
        text = f"{row['instruction']}\n\n{row['input']}".strip()
        talk = [{"role": "user", "content": text}, {"role": "assistant", "content": row["output"]}]
        if examples_of([{"messages": talk}]).lengths.max() < LONGEST:
            found.append({"messages": talk})
        if len(found) == count:
            break
    return found


def ours(model: Any, examples: Examples, seed: int) -> float:
    """Seconds of a pass."""
    optim = OptimConfig("adamw", adamw_lr=RATE, weight_decay=0.0, betas=(0.9, 0.999), clip=1.0)
    optimizer = build_optimizer(model.network, optim)
    precision = pick_precision("auto", torch.device("cpu"))
    batches = example_stream(examples, BATCH, seed=seed)
    steps = batches.steps_per_epoch
    model.network.train()
    began = time.perf_counter()
    for step in range(steps):
        batch = next(batches)
        with precision.autocast():
            loss, count = completion_loss(model.network, batch)
        (loss / count).backward()
        clip_gradients(model.network, optim.clip)
        optimizer.step(1 - step / steps)
        optimizer.zero_grad()
    return time.perf_counter() - began


class Clock(transformers.TrainerCallback):
    began = seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def trainer(folder: Path, rows: list[dict[str, Any]], out: str, **options: Any) -> Any:
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.chat_template = TEMPLATE
    return trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        processing_class=words,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[clock := Clock()],
        args=trl.SFTConfig(
            output_dir=out,
            assistant_only_loss=True,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=RATE,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10**6,
            **options,
        ),
    ), clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    add_write(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    model = bedstone.load(args.model, dtype=torch.float32)
    model.tokenizer.settings["chat_template"] = TEMPLATE
    work = Path(tempfile.mkdtemp())
    folder = model.save(work / "model")

    def examples_of(rows: list[dict[str, Any]]) -> Examples:
        return make_examples("text-generation", Dataset(rows), model.tokenizer, limit=1024)

    rows = conversations(args.rows, examples_of)
    examples = examples_of(rows)
    trained = int(sum(len(examples.batch(np.array([n])).targets) for n in range(len(examples))))
    best = {"gradient_checkpointing": False, "bf16": True, "packing": True, "max_length": 1024}
    peers: dict[str, dict[str, Any]] = {"trl": {}, "trl bf16, packed": best}

    one, _ = trainer(folder, rows[:BATCH], str(work / "out"), bf16=False)
    batch = next(iter(one.get_train_dataloader()))
    with torch.no_grad():
        theirs = one.compute_loss(one.model, batch).item()
        loss, count = completion_loss(model.network, examples.batch(np.arange(BATCH)))
    print(f"loss of the first {BATCH} rows: {float(loss / count):.6f}, TRL {theirs:.6f}")
    assert abs(float(loss / count) - theirs) < 1e-4

    seconds: dict[str, list[float]] = {"bedstone": [], **{name: [] for name in peers}}
    for number in range(args.rounds):
        seed_everything(number)
        learner = bedstone.load(folder, dtype=torch.float32)
        seconds["bedstone"].append(ours(learner, examples, number))
        for name, options in peers.items():
            one, clock = trainer(folder, rows, str(work / "out"), seed=number, **options)
            one.train()
            seconds[name].append(clock.seconds)
        print({name: round(each[-1], 1) for name, each in seconds.items()}, flush=True)
    sides = {name: Side(each, trained) for name, each in seconds.items()}
    for name, side in sides.items():
        ratios = sides["bedstone"].over(side)
        low, high = min(ratios), max(ratios)
        print(
            f"{name:18} {statistics.median(side.rates):8.1f} trained tokens/s  bedstone is "
            f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f}) x as fast"
        )
    if args.write:
        write(args.write, "sft", "trained tokens", sides, rows=len(rows), batch=BATCH)


if __name__ == "__main__":
    main()
