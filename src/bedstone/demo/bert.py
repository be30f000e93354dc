"""The demo's BERT: pretrained on Python's documentation, then fine-tuned on its passages."""

import json
from pathlib import Path
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.python_docs import PASSAGE_KINDS, python_passages, split_passages
from bedstone.demo.run import Demo, Trained
from bedstone.files import write_text
from bedstone.models.bert.network import build
from bedstone.recipes.base import train
from bedstone.recipes.supervised import FinetuneRecipe
from bedstone.report.pages import Sample, Section
from bedstone.settings import from_mapping
from bedstone.tasks.pipeline import pipeline
from bedstone.train.logs import clock
from bedstone.train.run import RunResult

PRETRAINING = 0.7  # of the time; the rest goes to two fine-tunings, from it and from nothing

PRETRAIN: dict[str, Any] = {
    "data": {"source": "python-docs"},
    "tokenizer": {"kind": "wordpiece", "vocab_size": 4096, "sample_mb": 4.0},
    "model": {
        "layout": "bert",
        "width": 192,
        "layers": 4,
        "heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "masking": {"whole_words": True, "share": 0.25},
    "optim": {"lr": 3e-3, "adamw_lr": 5e-3, "momentum": 0.9},
    "schedule": {"warmup": 0.1, "decay": 0.6},
    "context": 128,
    "batch_size": 16,
    "evaluate_tokens": 20_000,
    "save_minutes": 2.0,
}
FINETUNE: dict[str, Any] = {
    "task": "text-classification",
    "batch_size": 32,
    "dropout": 0.1,
    "optim": {"adamw_lr": 3e-4},
    "save_minutes": 2.0,
}
SENTENCES = (
    "Return a new [MASK] with the same items.",
    "If the file does not exist, an exception is [MASK].",
    "The [MASK] statement is used to define a function.",
    "def __init__ ( self , [MASK] ) :",
)


def show(trained: Trained) -> Section:
    """Fine-tunes with and without the pretraining; shows masked tokens and classes predicted."""
    folder, model = trained.folder, trained.model
    untrained = folder / "untrained"
    Model(build(model.config, seed=1), model.tokenizer).save(untrained)
    rows = _write_passages(folder)
    budget = f"{max((1 - PRETRAINING) / 2 * trained.seconds, 1):.0f}s"
    tuned = _tune(trained.path, rows, folder / "tuned", budget)
    from_nothing = _tune(untrained, rows, folder / "tuned-from-nothing", budget)
    samples = _filled(model)
    for sample in samples:
        trained.console.print(
            f"{sample.prompt}\n[dim]{sample.outputs['proposes']}[/dim]", highlight=False
        )
    figures, metrics = _figures(tuned), trained.metrics
    assert tuned.model is not None
    return Section(
        title="BERT: masked tokens and classification",
        words=(
            "An encoder trained from random weights to predict masked tokens and whether one "
            "passage follows another, then fine-tuned to classify passages as one of four kinds: "
            f"{', '.join(PASSAGE_KINDS)}. It is validated on modules that it was not trained on."
        ),
        figures={
            "masked tokens predicted": f"{metrics['validation_word_accuracy']:.1%}",
            "next passage predicted": _pairs(metrics),
            "fine-tuned for": _spent(tuned),
            "accuracy of kinds": _with_interval(figures),
            "without pretraining": _with_interval(_figures(from_nothing)),
        },
        pictures={
            folder / "curve.png": "Pretraining: loss against tokens read",
            tuned.run / "confusion-validation.png": "Predicted kind of each actual kind",
        },
        samples=samples,
        commands={
            f'bedstone run fill-mask {trained.path} "Return a new [MASK]."': "fill in a mask",
            f'bedstone run text-classification {tuned.model} "def read(self): return 1"': (
                "classify a passage"
            ),
            "bedstone pretrain bert-python-docs": "pretrain longer",
            "bedstone finetune finetune-own model=MODEL data.train=ROWS": (
                "fine-tune on your own labels"
            ),
        },
    )


def _write_passages(folder: Path) -> dict[str, str]:
    learn, measure = split_passages(python_passages())
    found = {}
    for name, rows in (("train", learn), ("validation", measure)):
        path = folder / f"passages-{name}.jsonl"
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        found[name] = str(path)
    return found


def _tune(model: str | Path, rows: dict[str, str], out: Path, budget: str) -> RunResult:
    values = {**FINETUNE, "model": str(model), "data": rows, "out": str(out), "budget": budget}
    return train(from_mapping(FinetuneRecipe, values, "demo"))


def _pairs(metrics: dict[str, float]) -> str:
    share = metrics.get("validation_pair_accuracy")
    return (
        "the texts have no second sentences" if share is None else f"{share:.1%} (half by chance)"
    )


def _spent(run: RunResult) -> str:
    return f"{clock(run.done.seconds)}, {run.done.tokens:,} tokens"


def _figures(run: RunResult) -> dict[str, Any]:
    return json.loads((run.run / "evaluation.json").read_text(encoding="utf-8"))["validation"]


def _with_interval(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_low"], figures["accuracy_high"]
    return f"{figures['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def _filled(model: Model) -> list[Sample]:
    fill = pipeline("fill-mask", model)
    samples = []
    for sentence in SENTENCES:
        found = [f"{each['token_str']} {each['score']:.0%}" for each in fill(sentence, top_k=4)]
        samples.append(Sample(sentence, {"proposes": "\n" + ", ".join(found)}))
    return samples


DEMO = Demo(
    "BERT from scratch: masked words, then kinds of passages",
    "masked_lm",
    PRETRAIN,
    show,
    part=PRETRAINING,
)
