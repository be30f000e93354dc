"""A rule learnt from preferences: share of answers that follow it, before and after DPO or KTO.

    python bench/preferences.py [--rule upper] [--method dpo] [--minutes 3] [--seed 0]

A small GPT (about 1M parameters) learns to answer questions in two styles, half each; which one it
takes is chance. Preferences over other questions then say which style is better; both have the same
number of characters:

    upper   answers in upper case, not lower case
    unit    numbers with the unit after them, not before ("45 km", not "km 45")

The figure is the share of answers to held-out questions that follow the rule, sampled at
temperature 1, with a 95 % interval of resampled answers. Beside it: characters of answers, the
log-probability of chosen answers, and the divergence from the reference, log p - log p_ref a token,
of the answers that are sampled.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bedstone
from bedstone.data.dataset import Dataset
from bedstone.data.text.preference_examples import PreferenceExamples, preference_batches
from bedstone.data.text.preferences import read_judged
from bedstone.metrics.figures import bootstrap
from bedstone.objectives.preferences import answer_log_probs

THINGS = ("tower", "river", "bridge", "road", "canal", "wall", "valley", "island", "lake", "tunnel")
PLACES = ("Ulm", "Oslo", "Bari", "Lyon", "Cork", "Graz", "Turku", "Porto", "Delft", "Split")
SIZES = ("long", "wide", "deep", "high")
UNITS = ("km", "feet", "miles", "yards", "meters")
CONTEXT = 64
ROWS = {"start": 6000, "preferences": 1500, "held": 300}
Row = dict[str, Any]


def answers(rule: str, thing: str, place: str, size: str, draw: random.Random) -> tuple[str, str]:
    """An answer that follows the rule, and one that doesn't."""
    number, unit = draw.randint(2, 99), draw.choice(UNITS)
    if rule == "upper":
        text = f" the {thing} of {place} is {number} {unit} {size}"
        return text.upper(), text.lower()
    text = f" the {thing} of {place} is {size}:"
    return f"{text} {number} {unit}", f"{text} {unit} {number}"


RULES: dict[str, Callable[[str], bool]] = {
    "upper": lambda text: text == text.upper() and any(map(str.isalpha, text)),
    "unit": lambda text: text.strip().endswith(UNITS),
}


def make_rows(rule: str, seed: int) -> dict[str, list[Row]]:
    """Rows of each kind; a question of one kind is in no other."""
    draw = random.Random(seed)
    asks = [(a, b, c, n) for a in THINGS for b in PLACES for c in SIZES for n in range(20)]
    draw.shuffle(asks)
    found: dict[str, list[Row]] = {}
    for kind, count in ROWS.items():
        rows = []
        for thing, place, size, number in asks[:count]:
            prompt = f"{number + 1}. how {size} is the {thing} of {place}?"
            good, bad = answers(rule, thing, place, size, draw)
            rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
        found[kind], asks = rows, asks[count:]
    return found


def start_model(folder: Path, rows: list[Row], minutes: float, seed: int) -> Path:
    """A GPT that answers in both styles."""
    draw = random.Random(seed)
    texts = [row["prompt"] + draw.choice((row["chosen"], row["rejected"])) for row in rows]
    result = bedstone.pretrain(
        {
            "out": str(folder / "start"),
            "model": {"width": 128, "layers": 4, "heads": 4},
            "tokenizer": {"vocab_size": 600},
            "context": CONTEXT,
            "batch_size": 32,
            "budget": f"{round(60 * minutes)}s",
            "device": "cpu",
            "seed": seed,
        },
        data=texts,
        quiet=True,
    )
    assert result.model is not None
    return result.model


def prefer(
    folder: Path, start: Path, rows: list[Row], method: str, rate: float, beta: float, seed: int
) -> Any:
    """The run of the method, from the start."""
    if method == "kto":
        kinds = (("chosen", True), ("rejected", False))
        rows = [
            {"prompt": row["prompt"], "completion": row[kind], "label": good}
            for number, row in enumerate(rows)
            for kind, good in [kinds[number % 2]]
        ]
    result = bedstone.finetune(
        {
            "method": method,
            "model": str(start),
            "out": str(folder / method),
            "beta": beta,
            "batch_size": 16,
            "optim": {"adamw_lr": rate},
            **({"sft": 0.1} if method == "dpo" else {}),
            "device": "cpu",
            "seed": seed,
        },
        data=rows,
        quiet=True,
    )
    assert result.model is not None
    return result


def sample(path: Path, rows: list[Row]) -> list[str]:
    """An answer to each question, at temperature 1."""
    torch.manual_seed(1)
    write = bedstone.pipeline("text-generation", str(path))
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 40}
    found = write([row["prompt"] for row in rows], return_full_text=False, **how)
    return [each[0]["generated_text"] for each in found]


def log_probs(path: Path, rows: list[Row], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each answer, and its tokens."""
    model = bedstone.load(str(path))
    judged = [
        {"prompt": row["prompt"], "completion": text or " ", "label": number % 2 == 0}
        for number, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
    examples = PreferenceExamples(Dataset(judged), model.tokenizer, limit=CONTEXT, read=read_judged)
    sums, counts = [], []
    with torch.inference_mode():
        for batch in preference_batches(examples, 32):
            found = answer_log_probs(model.network.eval(), batch.half(0))
            sums.append(found.sums.numpy())
            counts.append(found.counts.numpy())
    return np.concatenate(sums), np.concatenate(counts)


def measure(label: str, path: Path, start: Path, rows: list[Row], rule: str) -> None:
    texts = sample(path, rows)
    kept = [number for number, text in enumerate(texts) if text.strip()]
    rows, texts = [rows[n] for n in kept], [texts[n] for n in kept]
    follows = np.array([[RULES[rule](text)] for text in texts], float)
    ((low, high),) = bootstrap(lambda drawn: drawn @ follows / len(follows), len(follows))
    own, counts = log_probs(path, rows, texts)
    theirs, _ = log_probs(start, rows, texts)
    chosen, _ = log_probs(path, rows, [row["chosen"] for row in rows])
    print(
        f"{label}: {follows.mean():.3f} follow the rule ({low:.3f} to {high:.3f}) of {len(texts)}; "
        f"{np.mean([len(text) for text in texts]):.1f} characters; log-probability of chosen "
        f"answers {chosen.mean():.2f}; divergence {(own - theirs).sum() / counts.sum():.4f} nats a "
        f"token; such as {texts[0]!r}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rule", choices=RULES, default="upper")
    parser.add_argument("--method", choices=("dpo", "kto"), default="dpo")
    parser.add_argument("--minutes", type=float, default=3.0, help="of learning both styles")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="a model of an earlier call, to begin with")
    parser.add_argument("--keep", type=Path, help="a folder for the models")
    options = parser.parse_args()
    rows = make_rows(options.rule, options.seed)
    with tempfile.TemporaryDirectory() as made:
        folder = options.keep or Path(made)
        began = time.monotonic()
        start = options.start or start_model(folder, rows["start"], options.minutes, options.seed)
        print(f"both styles: {time.monotonic() - began:.0f} s")
        measure("before", start, start, rows["held"], options.rule)
        began = time.monotonic()
        how = (options.method, options.lr, options.beta, options.seed)
        result = prefer(folder, start, rows["preferences"], *how)
        print(f"{options.method}: {time.monotonic() - began:.0f} s, {result.done.step} steps")
        measure("after", result.model, start, rows["held"], options.rule)
        print(", ".join(f"{name} {value:.4f}" for name, value in result.done.metrics.items()))


if __name__ == "__main__":
    main()
