"""MLM throughput: Bedstone beside transformers' Trainer, on the same sentences.

    python bench/mlm.py [--rounds 3] [--sentences 6400] [--threads 2] [--write]

BERT of 4 layers, width 256, 4 heads, hidden 1024, and the 30,522 words of bert-base-uncased, from
random weights. Rows are the sentences of WikiText-2's validation part, one a row, as long as they
come (3 to 128 tokens); held out, 500 of its test part. 15 % of tokens are targets (80/10/10), drawn
anew for every batch. One pass, 32 sentences a step, AdamW, linear decay from 1e-3, gradients
clipped at 1. Dropout is 0, which is faster for the peer than its default of 0.1 and learns more
from a single pass.

Peers: the Trainer as it comes (fp32, batches padded to their longest row), and at its best, in bf16
with rows grouped by length.

The figure is real tokens a second, padding not counted. Both clocks begin where the first batch is
next to be made, with network, rows and optimizer at hand, and end with the last step. The loss is
the mean over the targets of the held-out sentences, masked once for all, in fp32, by one function
for all: Bedstone's network is saved and opened by transformers.
"""

import argparse
import random
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, DataCollatorForLanguageModeling

import bedstone
from bedstone.checkpoints.store import CheckpointStore
from bedstone.data.text.masked_lm import (
    Chosen,
    Corruption,
    MaskedBatch,
    MaskingConfig,
    RowMaker,
    row_keys,
)
from bedstone.data.text.sentences import ALONE, Documents, Segments
from bedstone.data.text.token_cache import TokenSplit
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.objectives.masked import MaskedLoss
from bedstone.runtime import pick_precision, seed_everything
from bedstone.train.loop import Trainer as Loop
from bedstone.train.optim import OptimConfig, build_optimizer
from bedstone.train.schedule import ScheduleConfig, build_schedule, parse_budget
from peer_pass import one_pass
from result import SHARED, add_write
from rounds import Run, keep, show, take_turns

SHAPE = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
RATE, BATCH, SHARE, HELD = 1e-3, 32, 0.15, 500
SHORTEST, LONGEST = 3, 128  # tokens of a sentence, its two ends included
TOLERANCE = 0.03  # nats a target: what another order of the rows may change
Row = dict[str, list[int]]  # input_ids, [CLS] and [SEP] included


@dataclass
class Task:
    """What every side is handed."""

    base: Path  # a folder of BERT's layout with the random weights and the tokenizer
    train: list[Row]
    held: list[dict[str, torch.Tensor]]  # masked batches
    tokenizer: Any

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.train)


def sentences(path: Path, tokenizer: Any, wanted: int) -> list[Row]:
    """The first `wanted` sentences of a file whose full stops stand alone, in random order."""
    rows: list[Row] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith(" ="):
            continue  # blank, or a heading
        parts = [part for part in re.split(r"(?<= [.!?]) ", line.strip()) if part]
        ids = tokenizer(parts)["input_ids"]
        rows.extend({"input_ids": row} for row in ids if SHORTEST <= len(row) <= LONGEST)
    rows = rows[:wanted]
    random.Random(0).shuffle(rows)
    return rows


def masked_once(rows: list[Row], tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=SHARE, seed=0)
    ranked = sorted(rows, key=lambda row: len(row["input_ids"]))
    return [collator(ranked[at : at + 50]) for at in range(0, len(ranked), 50)]


@torch.no_grad()
def held_loss(network: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Nats a target."""
    network.float().eval()
    total, count = 0.0, 0
    for batch in batches:
        targets = int((batch["labels"] != -100).sum())
        total += network(**batch).loss.item() * targets
        count += targets
    return total / count


class OneSentenceRows:
    """The rows as Bedstone's stream has them: shuffled, 32 a step, other words hidden each time."""

    def __init__(self, rows: list[Row], tokenizer: Tokenizer, seed: int) -> None:
        ids = [row["input_ids"][1:-1] for row in rows]
        split = TokenSplit.from_documents(ids)
        ends = tokenizer.cls_id, tokenizer.sep_id
        corruption = Corruption.of(tokenizer, MaskingConfig(share=SHARE))
        self.rows = RowMaker(Documents(split), corruption, *ends, LONGEST, pairs=False)
        spans = np.stack((split.starts, split.starts + split.lengths()), 1)
        count = len(spans)
        self.segments = Segments(
            spans, np.zeros(count, np.int64), np.arange(count + 1), np.full(count, ALONE)
        )
        self.order = np.random.default_rng(seed).permutation(count)
        self.keys = row_keys((seed,), np.arange(count))
        self.at = 0

    def __iter__(self) -> Iterator[MaskedBatch]:
        return self

    def __next__(self) -> MaskedBatch:
        chosen = self.order[self.at : self.at + BATCH]
        self.at += BATCH
        return self.rows.batch([Chosen(self.segments, chosen, self.keys[chosen])], self.at // BATCH)


def ours(number: int, task: Task) -> Run:
    """Bedstone's side, by the training loop's own steps."""
    seed_everything(number)
    model = bedstone.load(task.base)
    model.network.train()
    optim = OptimConfig(kind="adamw", adamw_lr=RATE, weight_decay=0.0, betas=(0.9, 0.999), clip=1.0)
    steps = -(-len(task.train) // BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Loop(
            network=model.network,
            objective=MaskedLoss(),
            batches=OneSentenceRows(task.train, model.tokenizer, number),
            optimizer=build_optimizer(model.network, optim),
            budget=parse_budget(f"{steps} steps"),
            schedule=build_schedule(ScheduleConfig(warmup=0.0, decay=1.0)),
            precision=pick_precision("auto", torch.device("cpu")),
            store=CheckpointStore(Path(folder)),
            write_model=lambda _, __: None,
        )
        began = time.perf_counter()
        while (share := trainer.share()) < 1.0:
            trainer.one_step(share)
        seconds = time.perf_counter() - began
        model.save(Path(folder) / "model")
        network = BertForMaskedLM.from_pretrained(Path(folder) / "model")
        return Run("bedstone", number, seconds, task.tokens, steps, held_loss(network, task.held))


def theirs(number: int, task: Task, side: str, **options: Any) -> Run:
    """BertForMaskedLM and the Trainer."""
    transformers.set_seed(number)
    network = BertForMaskedLM.from_pretrained(task.base)
    collator = DataCollatorForLanguageModeling(task.tokenizer, mlm_probability=SHARE)
    seconds, steps = one_pass(
        network, task.train, collator, rate=RATE, batch=BATCH, seed=number, **options
    )
    return Run(side, number, seconds, task.tokens, steps, held_loss(network, task.held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=6400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers-alone", action="store_true")
    add_write(parser)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()

    tokenizer = BertTokenizer(str(chosen.data / "tokenizers" / "bert-base-uncased-vocab.txt"))
    text = chosen.data / "text"
    train = sentences(text / "wikitext2-valid.txt", tokenizer, chosen.sentences)
    held = masked_once(sentences(text / "wikitext2-test.txt", tokenizer, HELD), tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SHAPE))
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task = Task(Path(folder), train, held, tokenizer)
        mean = task.tokens / len(train)
        longest = max(len(row["input_ids"]) for row in train)
        print(f"{len(train)} sentences, {task.tokens:,} tokens, {mean:.1f} each, at most {longest}")
        print(f"loss before training: {held_loss(network, held):.4f}", flush=True)
        best = {"bf16": True, "train_sampling_strategy": "group_by_length"}
        peers: dict[str, dict[str, Any]] = {"trainer": {}, "trainer bf16 grouped": best}
        sides = {} if chosen.peers_alone else {"bedstone": partial(ours, task=task)}
        for side, options in peers.items():
            sides[side] = partial(theirs, task=task, side=side, **options)
        runs = take_turns(sides, chosen.rounds)
    show(runs, TOLERANCE)
    if chosen.write:
        keep(chosen.write, "mlm", runs, sentences=len(train), longest=longest)


if __name__ == "__main__":
    main()
