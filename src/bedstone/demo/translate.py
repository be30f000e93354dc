"""The demo's encoder-decoder: numbers in digits to English words, and back."""

from collections.abc import Sequence
from typing import Any

from bedstone.data.numbers import HELD_OUT, held_out_rows
from bedstone.demo.run import Demo, Trained
from bedstone.report.pages import Sample, Section
from bedstone.tasks.pipeline import pipeline

RECIPE: dict[str, Any] = {
    "task": "text2text-generation",
    "data": {"source": "numbers", "validation": "numbers-held-out"},
    "tokenizer": {"vocab_size": 400},
    "model": {
        "layout": "marian",
        "width": 128,
        "layers": 2,
        "heads": 4,
        "hidden": 256,
        "context": 64,
        "activation": "relu",
        "dropout": 0.0,
    },
    "batch_size": 128,
    "smoothing": 0.0,
    "average": 0.99,
    "evaluate_rows": 100,
    "optim": {"lr": 5e-3, "adamw_lr": 5e-3},
    "schedule": {"warmup": 0.1, "decay": 0.5},
    "save_minutes": 60.0,
}
SHOWN = 3  # rows of each direction


def show(trained: Trained) -> Section:
    """Writes every held-out number both ways, and counts those that are right."""
    rows = held_out_rows()
    task = pipeline("text2text-generation", trained.model, precision=trained.precision.name)
    said = [each["generated_text"] for each in task([row["source"] for row in rows])]
    halves = slice(0, HELD_OUT), slice(HELD_OUT, None)
    words, digits = (_share(rows[half], said[half]) for half in halves)
    samples = []
    for half in halves:
        for row, text in list(zip(rows[half], said[half], strict=True))[:SHOWN]:
            trained.console.print(f"{row['source']}  [dim]{text}[/dim]", highlight=False)
            samples.append(
                Sample(f"{row['source']}\n\n", {"writes": text, "expected": row["target"]})
            )
    return Section(
        title="Encoder-decoder: numbers in words, and back",
        words=(
            "The Transformer of Vaswani et al. (2017), trained from random weights on pairs of "
            "texts: numbers below 100,000 in digits and in English words, both ways. It is "
            f"measured on {HELD_OUT} numbers that it never saw: the whole text must be right."
        ),
        figures={
            "digits to words, right": f"{words:.1%}",
            "words to digits, right": f"{digits:.1%}",
        },
        samples=samples,
        commands={
            f'bedstone run text2text-generation {trained.path} "4 8 2 1"': "a number in words",
            "bedstone pretrain translate-own data.source=YOUR_PAIRS.jsonl": "train on your pairs",
        },
        glance={f"{words:.0%}": "of unseen numbers written right by a Transformer, from nothing"},
    )


def _share(rows: Sequence[dict[str, Any]], said: Sequence[str]) -> float:
    return sum(row["target"] == text for row, text in zip(rows, said, strict=True)) / len(rows)


DEMO = Demo(
    "Encoder-decoder from scratch: numbers in words, and back",
    "seq2seq",
    RECIPE,
    show,
    share=0.4,
    part=0.9,
)
