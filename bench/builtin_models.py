"""Trains the models that come with Bedstone, measures them, and puts them into the package.

    make builtin-models                                 # all, anew; hours on two cores
    python bench/builtin_models.py --only python-gpt
    python bench/builtin_models.py --only scenes-clip --run runs/mine   # of a run that is there

Each is a recipe of `bedstone recipes` with a budget in steps. Its weights are kept in bf16 and
measured so, on data that it never learnt from; figures, recipe and seed stand in its
`bedstone.json` and on its card. `tests/test_builtin.py` measures each again.
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bedstone
from bedstone.checkpoints.dalle import DallePipeline
from bedstone.checkpoints.golden import add_golden
from bedstone.checkpoints.model import part_fingerprint
from bedstone.checkpoints.names import BUILT_IN
from bedstone.checkpoints.pipeline import MediaPipeline
from bedstone.checkpoints.unclip import UnclipPipeline
from bedstone.data.scenes.world import COLOURS, SHAPES
from bedstone.data.signals.open import held_out_prompts
from bedstone.evaluate.contrastive import evaluate_contrastive
from bedstone.evaluate.generative import sample_prompts
from bedstone.evaluate.image_text import evaluate_image_text
from bedstone.recipes.base import train
from bedstone.recipes.given import recipe as recipe_of
from bedstone.recipes.library import find
from bedstone.runtime import Precision, pick_device, pick_precision
from bedstone.tasks.images.engine import ImageEngine

LARGEST = 6e6  # bytes of a model, and of all:
ALL = 34e6
DRAWN = 160  # pictures that the judge sees


@dataclass(frozen=True)
class BuiltIn:
    """A model that comes with Bedstone.

    Attributes:
        recipe: of `bedstone recipes`.
        overrides: of the recipe.
        measure: (model, precision) to figures by name.
        main: the figure that a new model must not fall under, by more than `slack`; of a loss, not
            rise above.
        slack: what other processors and other rounding may change.
    """

    recipe: str
    overrides: Sequence[str]
    measure: Callable[[Any, Precision], dict[str, float]]
    main: str
    slack: float


def of_pairs(model: Any, how: Precision) -> dict[str, float]:
    found = evaluate_contrastive(model, "scenes", how, as_json=True)
    return {
        "zero_shot_accuracy": found["zero-shot"]["accuracy"],
        "text_to_image_recall@1": found["retrieval"]["text_to_image_recall@1"],
    }


def of_answers(model: Any, how: Precision) -> dict[str, float]:
    found = evaluate_image_text(model, "scenes", how, as_json=True)
    answers, captions = found["answers"], found["true facts"]
    return {
        "accuracy": answers["accuracy"],
        "accuracy_by_the_question_alone": answers["blind"],
        "captions_all_true": captions["all_true"],
    }


def of_drawings(model: Any, how: Precision) -> dict[str, float]:
    """How often the built-in CLIP takes a picture for what its prompt says, of 80 combinations."""
    assert isinstance(model, MediaPipeline)
    named = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    chosen = []  # prompts with what they name
    for each in held_out_prompts(20 * DRAWN, objects=(1, 1)):
        chosen += [(each.text, name) for name in named if name in each.text]
    chosen = chosen[:DRAWN]
    drawn = sample_prompts(model, how, [text for text, _ in chosen], lambda share: None)
    judge = ImageEngine(bedstone.load("scenes-clip"), "fp32")
    whole = ((drawn.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    likeness = judge.images(list(whole)) @ judge.texts([f"a {name}" for name in named]).T
    seen = [named[best] for best in likeness.argmax(1)]
    right = [name == wanted for name, (_, wanted) in zip(seen, chosen, strict=True)]
    return {"drawn_as_described": float(np.mean(right))}


def of_text(model: Any, how: Precision) -> dict[str, float]:
    """Figures on documents that were held out, as the run measured them, of the weights as kept."""
    from bedstone.evaluate.language import evaluate_causal, evaluate_masked

    evaluate = evaluate_causal if model.writes_text else evaluate_masked
    found = evaluate(model, "python-docs", how, split="validation", as_json=True)
    return {name: float(value) for name, value in found.items() if isinstance(value, float)}


MODELS = {
    "scenes-clip": BuiltIn(
        "clip-scenes", ["budget=1400 steps"], of_pairs, "zero_shot_accuracy", 0.03
    ),
    "scenes-vlm": BuiltIn("vlm-scenes", [], of_answers, "accuracy", 0.03),
    "scenes-diffusion": BuiltIn(
        "diffusion-scenes", ["budget=3000 steps", "data.objects=[1,2]"],
        of_drawings, "drawn_as_described", 0.08,
    ),
    "scenes-dalle": BuiltIn(
        "dalle-scenes",
        [
            "budget=4000 steps", "shares={autoencoder: 0.25}", "average=0.99",
            "model={layout: dalle, width: 128, layers: 6, heads: 2}", "clip={}",
        ],
        of_drawings, "drawn_as_described", 0.08,
    ),
    "scenes-unclip": BuiltIn(
        "unclip-scenes",
        [
            "budget=3000 steps", "shares={prior: 0.15}", "average=0.99",
            "model={patch: 4, width: 88, layers: 6, heads: 2, conv_in: 2, embedding_tokens: 4}",
            "text={width: 88, layers: 1, heads: 4, context: 32}",
            "prior.model={layout: prior_transformer, width: 96, layers: 3, heads: 4}",
            "parts.clip=scenes-clip", "clip={}",
        ],
        of_drawings, "drawn_as_described", 0.08,
    ),
    "python-gpt": BuiltIn("python-gpt", [], of_text, "loss", 0.05),
    "python-bert": BuiltIn("python-bert", [], of_text, "loss", 0.05),
}  # fmt: skip


def measured(name: str, folder: str | Path) -> dict[str, float]:
    """The figures of a built-in model, computed in fp32."""
    model = bedstone.load(folder, dtype=torch.float32)
    with contextlib.redirect_stdout(None):  # where the figures are printed with all that they have
        return MODELS[name].measure(model, pick_precision("fp32", pick_device("cpu")))


def make(name: str, run: Path | None) -> Path:
    """Trains a model, or takes that of a run, measures it, and puts it into the package."""
    given = MODELS[name]
    if run is None:
        words = [*given.overrides, f"out=runs/builtin/{name}"]
        recipe, _ = recipe_of(find(given.recipe), words, None, {})
        run = train(recipe).run
    kept = bedstone.load(run)
    in_bf16(kept)
    folder = BUILT_IN / name
    kept.save(folder)
    figures = measured(name, folder)
    kept.record["metrics"] = figures
    kept.save(folder)
    add_golden(folder, bedstone.load(folder, dtype=torch.float32))  # as `bedstone check` computes
    size = size_of(folder)
    assert size <= LARGEST, f"{name}: {size / 1e6:.1f} MB; at most {LARGEST / 1e6:.0f} are shipped"
    print(name, f"{size / 1e6:.2f} MB", {key: round(value, 4) for key, value in figures.items()})
    return folder


def in_bf16(model: Any) -> None:
    """Holds all weights of a model in bf16; parts are then known by these."""
    parts = model.parts if isinstance(model, MediaPipeline) else {"": model}
    for part in parts.values():
        part.network.to(torch.bfloat16)
    if isinstance(model, DallePipeline | UnclipPipeline):
        named = {**parts, "autoencoder": getattr(model, "autoencoder", None)}
        model.made_with = {name: part_fingerprint(named[name]) for name in model.made_with}


def size_of(folder: Path) -> int:
    """Bytes of a model's folder."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=tuple(MODELS), action="append")
    parser.add_argument("--run", type=Path, help="a run that is there, of the one model in --only")
    options = parser.parse_args()
    for name in options.only or MODELS:
        make(name, options.run)


if __name__ == "__main__":
    main()
