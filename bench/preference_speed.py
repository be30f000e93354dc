"""DPO throughput: Bedstone beside TRL's DPOTrainer, on the same network and rows.

    python bench/preference_speed.py [--rows 24] [--rounds 2] [--threads 1]

A llama of 4 blocks, width 256 and GPT-2's vocabulary (16M parameters) with random weights. Rows are
real pairs (`preference/dpo-en.jsonl` of the shared data): the last question, its chosen and its
rejected answer, as plain texts, rows of at most 256 tokens. One epoch of 4 pairs a step, AdamW,
fp32, dropout off.

TRL's clock is that of `train()` alone, its rows tokenised before, as it comes (the reference is
read in each step), and with `precompute_ref_log_probs`, whose pass is counted. Bedstone's is that
of all of `bedstone.finetune`: reading and tokenising rows, the reference, steps and the saved
artefact; its evaluation at the end is of 2 pairs. The figure is processor time, which others who
use the machine change less than the clock's, of a pair: of all pairs less that of a third of them,
so that what is done once a run doesn't count.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.models.gpt.network import GPTConfig, build
from result import SHARED

LIMIT, BATCH = 256, 4
FILES = ("vocab.json", "merges.txt")


def make_rows(tokenizer: Tokenizer, wanted: int) -> list[dict[str, str]]:
    found = []
    for line in (SHARED / "preference" / "dpo-en.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = row["conversations"][-1]["value"] + "\n\n"
        pair = {"prompt": prompt, "chosen": row["chosen"]["value"]}
        pair["rejected"] = row["rejected"]["value"]
        lengths = [len(tokenizer.encode(prompt + pair[side])) for side in ("chosen", "rejected")]
        if max(lengths) < LIMIT - 1 and pair["chosen"] != pair["rejected"]:
            found.append(pair)
    return found[:wanted]


def ours(base: Path, rows: list[dict[str, str]], folder: Path) -> float:
    began = time.process_time()
    result = bedstone.finetune(
        {
            "method": "dpo",
            "model": str(base),
            "out": str(folder / "run"),
            "limit": LIMIT,
            "batch_size": BATCH,
            "precision": "fp32",
            "device": "cpu",
            "evaluate_every": 10**6,
        },
        data={"train": rows, "validation": rows[:2]},
        quiet=True,
    )
    assert result.done.step == -(-len(rows) // BATCH)
    return time.process_time() - began


def theirs(base: Path, rows: list[dict[str, str]], folder: Path, **more: Any) -> float:
    words = transformers.AutoTokenizer.from_pretrained(base)
    words.pad_token = words.eos_token
    began = time.process_time()
    trainer = trl.DPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=trl.DPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            max_length=LIMIT,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **more,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words,
    )
    if not more:  # a pass for the reference is made when it is built
        began = time.process_time()
    trainer.train()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precomputed", action="store_true", help="TRL's other way besides")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        files = [str(SHARED / "tokenizers" / f"gpt2-{name}") for name in FILES]
        transformers.GPT2Tokenizer(*files).save_pretrained(folder / "words")
        tokenizer = Tokenizer.load(folder / "words")
        config = GPTConfig(
            layout="llama", vocab_size=50304, width=256, layers=4, heads=4, context=LIMIT
        )
        base = Model(build(config, seed=0), tokenizer).save(folder / "base")
        sides = {"bedstone": ours, "trl": theirs}
        if options.precomputed:
            sides["trl, precomputed"] = partial(theirs, precompute_ref_log_probs=True)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for name, side in sides.items():  # what is loaded once in a process
            (own := folder / f"first-{name}").mkdir()
            side(base, make_rows(tokenizer, BATCH), own)
        for number in range(options.rounds):
            for name, side in sides.items():
                taken = []
                for count in (options.rows // 3, options.rows):
                    own = folder / f"{number}-{name}-{count}"
                    own.mkdir()
                    taken.append(side(base, make_rows(tokenizer, count), own))
                times[name].append((taken[1] - taken[0]) / (options.rows - options.rows // 3))
                print(f"{name}: {taken[0]:.1f} s, {taken[1]:.1f} s", flush=True)
        best = statistics.median(times["bedstone"])
        for name, each in times.items():
            middle = statistics.median(each)
            print(f"{name}: {middle:.3f} s of processor time a pair, {middle / best:.2f} times")


if __name__ == "__main__":
    main()
