"""LoRA throughput: Bedstone beside peft with transformers' Trainer, on the same rows.

    python bench/lora.py [--rounds 3] [--rows 128] [--threads 2] [--write] [--small]

A network of GPT-2's shape (124M parameters) with random weights, the same for all; rank 16, alpha
32, on peft's default target (c_attn: queries, keys and values). Rows are real instructions (Alpaca
and code, half each, GPT-2's own tokenizer), as long as they come; those over 512 tokens are left
out. Only the answer and its end are targets. One pass, 8 rows a step, AdamW, linear decay from
1e-3, gradients clipped at 1. Dropout is 0 everywhere, which is faster for the peer than its
default of 0.1, and makes losses comparable.

Peers: `peft`, the Trainer as it comes (fp32, batches padded to their longest row); and at its best,
in bf16 with rows either grouped by length or packed end to end (DataCollatorWithFlattening, whose
documents are first proven not to see each other), over base weights kept in fp32 or bf16.

The figure is real tokens a second, prompts included, padding not. Both clocks begin where the first
batch is next to be made, with network, rows and optimizer at hand, and end with the last step. The
loss is the mean over the answers of rows held out, each row alone, in fp32, by one function for
all: Bedstone's adapter is written as peft's files and opened by peft.
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
)

import bedstone
from bedstone.checkpoints.adapters import adapt, save_adapter
from bedstone.data.dataset import Dataset
from bedstone.data.text.examples import example_stream
from bedstone.data.text.supervised import make_examples
from bedstone.nn.lora import LoraConfig
from bedstone.objectives.supervised import completion_loss
from bedstone.runtime import pick_precision, seed_everything
from bedstone.train.optim import OptimConfig, build_optimizer, clip_gradients
from peer_pass import one_pass
from result import SHARED, add_write
from rounds import Run, keep, show, take_turns

RANK, ALPHA, RATE, BATCH, LONGEST = 16, 32, 1e-3, 8, 512
TOLERANCE = 0.02  # nats a token
PUBLISHED = ("input_ids", "labels")
Row = dict[str, Any]  # input_ids, and labels of the same length: -100 over the prompt


@dataclass
class Task:
    """What every side is handed."""

    base: Path  # a folder of GPT-2's layout with the random weights
    train: list[Row]
    held: list[Row]
    padding: Any  # a tokenizer that knows how to pad

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.train)


def instruction_rows(data: Path, tokenizer: Any, wanted: int) -> list[Row]:
    """`wanted` rows, half of each set, in a fixed random order."""
    rows: list[Row] = []
    for name in ("alpaca-en", "code-alpaca"):
        lines = (data / "instruct" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        random.Random(0).shuffle(lines)
        every = (encoded(json.loads(line), tokenizer) for line in lines)
        fit = (row for row in every if len(row["labels"]) <= LONGEST)
        rows.extend(islice(fit, wanted // 2))
    random.Random(1).shuffle(rows)
    return rows


def encoded(row: dict[str, str], tokenizer: Any) -> Row:
    asked = f"### Instruction:\n{row['instruction']}\n\n"
    if row["input"]:
        asked += f"### Input:\n{row['input']}\n\n"
    asked += "### Response:\n"
    prompt = tokenizer(asked)["input_ids"]
    answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
    return {
        "input_ids": prompt + answer,
        "labels": [-100] * len(prompt) + answer,
        "source": {"prompt": asked, "completion": row["output"]},
    }


@torch.no_grad()
def held_loss(network: torch.nn.Module, rows: list[Row]) -> float:
    """Nats a target token."""
    network.float().eval()
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        targets = int((labels[:, 1:] != -100).sum())
        total += network(input_ids=ids, labels=labels).loss.item() * targets
        count += targets
    return total / count


def ours(number: int, task: Task) -> Run:
    """Bedstone: bf16, rows laid end to end, the adapter written as peft's files."""
    seed_everything(number)
    model = bedstone.load(task.base)
    adapt(model.network, LoraConfig(RANK, ALPHA, targets=("q", "k", "v")), seed=number)
    rows = Dataset([row["source"] for row in task.train])
    examples = make_examples("text-generation", rows, model.tokenizer, limit=LONGEST + 1)
    for place, row in enumerate(task.train):  # cut as the peer's are
        assert examples.input(place)[0].ids == row["input_ids"]
    batches = example_stream(examples, BATCH, seed=number)
    optim = OptimConfig("adamw", adamw_lr=RATE, weight_decay=0.0, betas=(0.9, 0.999), clip=1.0)
    optimizer = build_optimizer(model.network, optim)
    precision = pick_precision("auto", torch.device("cpu"))
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
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, Path(folder) / "adapter")
        network = peft.PeftModel.from_pretrained(
            GPT2LMHeadModel.from_pretrained(task.base), f"{folder}/adapter"
        )
        return Run("bedstone", number, seconds, task.tokens, steps, held_loss(network, task.held))


def theirs(
    number: int, task: Task, side: str, base: torch.dtype, packed: bool, **options: Any
) -> Run:
    """peft and the Trainer."""
    transformers.set_seed(number)
    network = peft.get_peft_model(
        GPT2LMHeadModel.from_pretrained(task.base, dtype=base),
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, task_type="CAUSAL_LM", fan_in_fan_out=True),
    )
    seconds, steps = one_pass(
        network,
        [{name: row[name] for name in PUBLISHED} for row in task.train],
        DataCollatorWithFlattening() if packed else DataCollatorForSeq2Seq(task.padding),
        rate=RATE,
        batch=BATCH,
        seed=number,
        **options,
    )
    return Run(side, number, seconds, task.tokens, steps, held_loss(network, task.held))


@torch.no_grad()
def prove_apart(task: Task) -> None:
    """Documents that DataCollatorWithFlattening lays end to end don't see each other."""
    network = GPT2LMHeadModel.from_pretrained(task.base).eval()
    network.config.use_cache = False  # as the Trainer sets it; with a cache they would
    rows = sorted(task.train, key=lambda row: len(row["labels"]))[:3]
    alone = [network(torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    batch = DataCollatorWithFlattening()([{name: row[name] for name in PUBLISHED} for row in rows])
    packed = network(batch["input_ids"], position_ids=batch["position_ids"]).logits[0]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-3, rtol=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--held", type=int, default=64, help="rows that are scored")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-alone", action="store_true")
    parser.add_argument("--small", action="store_true", help="a tiny network: does it run?")
    add_write(parser)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()

    words = chosen.data / "tokenizers"
    tokenizer = GPT2Tokenizer(
        vocab=str(words / "gpt2-vocab.json"), merges=str(words / "gpt2-merges.txt")
    )
    tokenizer.pad_token = tokenizer.eos_token
    rows = instruction_rows(chosen.data, tokenizer, chosen.rows + chosen.held)
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 2} if chosen.small else {}
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**shape, **still)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task = Task(Path(folder), rows[: -chosen.held], rows[-chosen.held :], tokenizer)
        prove_apart(task)
        longest = max(len(row["labels"]) for row in task.train)
        print(f"{len(task.train)} rows, {task.tokens:,} tokens, the longest {longest}")
        print(
            f"before training: {held_loss(GPT2LMHeadModel.from_pretrained(folder), task.held):.4f}"
        )
        grouped = {"bf16": True, "train_sampling_strategy": "group_by_length"}
        peers = {
            "peft": (torch.float32, False, {}),
            "peft bf16 grouped": (torch.float32, False, grouped),
            "peft bf16 packed": (torch.float32, True, {"bf16": True}),
            "peft bf16 base packed": (torch.bfloat16, True, {"bf16": True}),
        }
        sides = {} if chosen.peers_alone else {"bedstone": partial(ours, task=task)}
        for side, (base, packed, options) in peers.items():
            sides[side] = partial(theirs, task=task, side=side, base=base, packed=packed, **options)
        runs = take_turns(sides, chosen.rounds)
    show(runs, TOLERANCE)
    if chosen.write:
        keep(chosen.write, "lora", runs, rows=len(task.train), held=len(task.held))


if __name__ == "__main__":
    main()
