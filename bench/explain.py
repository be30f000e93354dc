"""Explanations measured: do they add up, beat chance, change with the weights; and beside captum.

    python bench/explain.py families [--rows 200] [--only scenes-clip sst2] [--runs FOLDER]
    python bench/explain.py captum --model FOLDER [--rows 200] [--captum FOLDER]

`families` explains rows of each family by integrated gradients. It says for how many the scores add
up to within 1 % of the change, how much better than chance deletion and insertion are in their
order (with p of the mean by flipping signs), the same for attention rollout where there is one, and
the rank correlation with the scores of shuffled weights on the first rows. Built-in models read the
built-in data; with `--runs`, a folder of fine-tuned models (sst2, conll, policyqa, cifar10) reads
the validation rows of the shared data.

`captum` times integrated gradients of a text classifier beside captum's (`pip install --no-deps
--target FOLDER captum==0.9.0`), of the same network, one thread, in the processor's time. Its steps
are the fewest, the same for all rows, by which as many rows add up; and, row by row, doubled from
8 until they do.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedstone.checkpoints.load import load
from bedstone.data.images.decode import decode
from bedstone.data.scenes.datasets import scene_rows
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.inspect.attribution import integrated_gradients
from bedstone.inspect.explain import TARGETS, open_task
from bedstone.inspect.faithfulness import (
    Faithfulness,
    randomised,
    rank_correlation,
)
from bedstone.inspect.text_targets import label_target, log_odds
from bedstone.metrics.figures import bootstrap, sign_flip
from result import SHARED

ORDERS, STEPS = 4, 6  # by chance, and of a curve: for the mean over rows few are enough
SANE = 20  # rows whose weights are shuffled
PROMPT = 24  # words that a decoder goes on from


def classified(folder: Path) -> Iterator[Any]:
    yield from (row["text"] for row in _lines(folder / "glue" / "sst2-validation.jsonl"))


def tagged(folder: Path) -> Iterator[Any]:
    for row in _lines(folder / "conll2003" / "validation.jsonl"):
        if any(tag != "O" for tag in row["ner_tags"]) and 6 <= len(row["tokens"]) <= 40:
            yield " ".join(row["tokens"])


def answered(folder: Path) -> Iterator[Any]:
    for row in _lines(folder / "policyqa" / "test.jsonl"):
        if len(row["context"]) < 240:
            yield {"question": row["question"], "context": row["context"]}


def photographed(folder: Path) -> Iterator[Any]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(folder / "cifar10-jpeg" / "test.parquet")
    name = next(name for name in table.column_names if "im" in name)
    for row in table[name].slice(0, 500).to_pylist():
        yield decode(row["bytes"] if isinstance(row, dict) else row)


def sentences() -> Iterator[list[str]]:
    """Sentences of Python's own documentation, in words."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        for part in topics[topic].replace("\n", " ").split(". "):
            words = part.split()
            if 8 <= len(words) <= 40 and part.isascii():
                yield words


def pictured(_: Path) -> Iterator[Any]:
    for row in scene_rows(400, split="test", seed=7, objects=(1, 3)):
        yield {"image": row["image"], "text": row["captions"][0]}


def questioned(_: Path) -> Iterator[Any]:
    for number, row in enumerate(scene_rows(400, split="test", seed=7, objects=(1, 3))):
        question = row["questions"][number % len(row["questions"])]
        yield {"image": row["image"], "question": question.text}


def drawn(_: Path) -> Iterator[Any]:
    for number, row in enumerate(scene_rows(400, split="train", seed=9, objects=(1, 2))):
        yield {"prompt": row["captions"][0], "seed": number}


def masked(_: Path) -> Iterator[Any]:
    for words in sentences():
        half = len(words) // 2
        yield " ".join([*words[:half], "[MASK]", *words[half + 1 :]])


def continued(_: Path) -> Iterator[Any]:
    yield from (" ".join(words[:PROMPT]) for words in sentences())


def compared(_: Path) -> Iterator[Any]:
    before: list[str] = []
    for words in sentences():
        if before:
            yield {"text": " ".join(before), "text_pair": " ".join(words)}
        before = words


# Model, task, rows; those with a folder's name are fine-tuned ones.
FAMILIES: dict[str, tuple[str, str, Callable[[Path], Iterator[Any]]]] = {
    "python-bert": ("python-bert", "fill-mask", masked),
    "python-gpt": ("python-gpt", "text-generation", continued),
    "minilm": ("minilm", "sentence-similarity", compared),
    "scenes-clip": ("scenes-clip", "zero-shot-image-classification", pictured),
    "scenes-vlm-answers": ("scenes-vlm", "visual-question-answering", questioned),
    "scenes-vlm-captions": ("scenes-vlm", "image-to-text", pictured),
    "scenes-diffusion": ("scenes-diffusion", "text-to-image", drawn),
    "smollm2": ("smollm2-135m-instruct", "text-generation", continued),
    "sst2": ("RUNS/sst2", "text-classification", classified),
    "conll": ("RUNS/conll", "token-classification", tagged),
    "policyqa": ("RUNS/policyqa", "question-answering", answered),
    "cifar10": ("RUNS/cifar10", "image-classification", photographed),
}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def measure(name: str, runs: Path, rows: int, most_seconds: float) -> dict[str, Any]:
    """A family's figures, by view: a picture's cells, words."""
    place, task, values = FAMILIES[name]
    model = load(place.replace("RUNS", str(runs)))
    whole, ready = open_task(model, task)
    found: dict[str, dict[str, list[float]]] = {}
    started, done, skipped = time.process_time(), 0, 0
    for value in values(SHARED):
        if done == rows or time.process_time() - started > most_seconds:
            break
        try:
            made = TARGETS[task](ready, value, None, "auto")
        except BedstoneError:
            skipped += 1
            continue
        done += 1
        for number, target in enumerate(made if isinstance(made, list) else [made]):
            kept = found.setdefault(f"{target.family} by {_by(target)}", {})
            _row(target, whole, kept, shuffled=done <= SANE, seed=2 * done + number)
    return {"rows": done, "skipped": skipped} | {key: _summed(own) for key, own in found.items()}


def _by(target: Any) -> str:
    return "words" if target.texts else "cells"


def _row(
    target: Any, whole: Any, kept: dict[str, list[float]], *, shuffled: bool, seed: int
) -> None:
    case = target.case(whole)
    if len(case) < 4:
        return
    test = Faithfulness(case, orders=ORDERS, steps=STEPS, seed=seed)
    one = integrated_gradients(case)
    curves = test.curves(one.scores)
    assert one.completeness is not None
    figures = {
        "error": one.completeness.error,
        "gradients": one.completeness.gradients,
        "fall": curves.fall,
        "rise": curves.rise,
        "change": abs(one.completeness.change),
    }
    if target.rollout is not None:
        attention = test.curves(target.rollout(whole))
        figures |= {"attention_fall": attention.fall, "attention_rise": attention.rise}
    if shuffled:
        other = integrated_gradients(target.case(randomised(whole, seed=seed)))
        figures["shuffled"] = rank_correlation(one.scores, other.scores)
    for name, value in figures.items():
        kept.setdefault(name, []).append(float(value))


def _summed(kept: dict[str, list[float]]) -> dict[str, Any]:
    errors = np.array(kept["error"])
    found: dict[str, Any] = {
        "n": len(errors),
        "within_1_percent": float((errors <= 0.01).mean()),
        "median_error": float(np.median(errors)),
        "median_gradients": float(np.median(kept["gradients"])),
        "mean_change": float(np.mean(kept["change"])),
    }
    for name in ("fall", "rise", "attention_fall", "attention_rise"):
        if name in kept:
            values = np.array(kept[name])
            found[name] = [float(values.mean()), *_interval(values)]
            found[f"{name}_p"] = sign_flip(values)
            found[f"{name}_better_rows"] = float((values > 0).mean())
    if "shuffled" in kept:
        found["shuffled_correlation"] = float(np.mean(kept["shuffled"]))
        found["shuffled_rows"] = len(kept["shuffled"])
    return found


def _interval(values: np.ndarray) -> list[float]:
    ends = bootstrap(lambda drawn: drawn @ values[:, None] / len(values), len(values))
    return ends[0].tolist()


def beside_captum(model: str, rows: int, captum: Path | None) -> dict[str, Any]:
    """Integrated gradients of a text classifier, ours and captum's."""
    if captum is not None:
        sys.path.append(str(captum))
    from captum.attr import IntegratedGradients

    whole, ready = open_task(load(model), "text-classification")
    texts = list(classified(SHARED))[:rows]
    cases = [label_target(ready, text, None, "auto").case(whole) for text in texts]
    integrated_gradients(cases[0])
    started = time.process_time()
    own = [integrated_gradients(case).completeness for case in cases]
    seconds = time.process_time() - started
    errors = np.array([each.error for each in own if each is not None])
    found: dict[str, Any] = {
        "rows": len(cases),
        "bedstone": {
            "seconds": seconds,
            "within_1_percent": float((errors <= 0.01).mean()),
            "gradients": float(np.mean([each.gradients for each in own if each is not None])),
        },
    }

    changes = [each.change for each in own if each is not None]

    def attribute(number: int, steps: int, score: Any = None) -> float:
        """The error of captum's scores of a row with so many steps."""
        case = cases[number]
        values, blank = case.values[None], case.baseline[None]
        method = IntegratedGradients(score or case.score)
        scores = method.attribute(values, blank, n_steps=steps)
        return abs(float(scores.sum()) - changes[number]) / abs(changes[number])

    def timed(name: str, steps: int, scores: Any = None) -> float:
        """Times all rows; the share that adds up."""
        attribute(0, 8, scores and scores[0])
        started = time.process_time()
        errors = [attribute(row, steps, scores and scores[row]) for row in range(len(cases))]
        met = float(np.mean(np.array(errors) <= 0.01))
        found[name] = {"seconds": time.process_time() - started, "within_1_percent": met}
        print(name, found[name], flush=True)
        return met

    wanted = found["bedstone"]["within_1_percent"]
    timed("captum, 50 steps", 50)
    fewest = 0
    for steps in (32, 40, 48, 64, 80, 100, 150, 200):
        fewest = steps
        if timed(f"captum, {steps} steps", steps) >= wanted:
            break
    peers = published_scores(ready.model.path or Path(model), cases)
    timed(f"captum over transformers, {fewest} steps", fewest, peers)
    started = time.process_time()
    met_rows = 0
    for row in range(len(cases)):
        steps = 8
        while attribute(row, steps) > 0.01 and steps < 512:
            steps *= 2
        met_rows += steps < 512
    found["captum, doubled from 8 row by row"] = {
        "seconds": time.process_time() - started,
        "within_1_percent": met_rows / len(cases),
    }
    for side in found.values():
        if isinstance(side, dict):
            side["times_bedstone"] = side["seconds"] / seconds
    return found


def published_scores(folder: Path, cases: Any) -> list[Callable[[Any], Any]]:
    """The same numbers of the same weights by transformers, as captum is used by most."""
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for case in cases:
        with torch.no_grad():
            which = int(network(inputs_embeds=case.values[None]).logits.argmax())
            ours = float(case.score(case.values[None]))
            theirs = float(log_odds(network(inputs_embeds=case.values[None]).logits, which)[0])
        assert abs(ours - theirs) < 1e-3, (ours, theirs)
        found.append(lambda x, which=which: log_odds(network(inputs_embeds=x).logits, which))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("families", "captum"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[], choices=list(FAMILIES))
    parser.add_argument("--runs", type=Path, default=None, help="a folder of fine-tuned models")
    parser.add_argument("--seconds", type=float, default=1e9, help="of a family, at most")
    parser.add_argument("--model", default="", help="a text classifier, for captum")
    parser.add_argument("--captum", type=Path, help="the folder that captum was installed into")
    parser.add_argument("--write", type=Path, help="a JSON file of all figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if options.what == "captum":
        found = beside_captum(options.model, options.rows, options.captum)
        print(json.dumps(found, indent=1))
    else:
        known = [
            name
            for name in FAMILIES
            if options.runs is not None or not FAMILIES[name][0].startswith("RUNS")
        ]
        for name in options.only or known:
            found[name] = measure(name, options.runs or Path(), options.rows, options.seconds)
            print(name, json.dumps(found[name], indent=1), flush=True)
            if options.write:
                write_json(options.write, found)
    if options.write:
        write_json(options.write, found)


if __name__ == "__main__":
    main()
