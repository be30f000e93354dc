"""`bedstone evaluate` for a model that puts pictures into words: captions, answers, matching."""

import json
from functools import partial
from typing import Any

from rich.console import Console
from rich.rule import Rule

from bedstone.checkpoints.artefact import Model
from bedstone.commands.picture_data import pictures_of, recorded_data
from bedstone.commands.sighted_scoring import SightedScorer
from bedstone.commands.told_data import blind_of, candidates_of, opened, usual_of, with_parts
from bedstone.commands.told_model import usual_processor
from bedstone.commands.told_scoring import ToldScorer
from bedstone.data.scenes import NAME as SCENES
from bedstone.data.told import ToldRows
from bedstone.data.told_scenes import told_scenes
from bedstone.errors import BedstoneError
from bedstone.recipes_sighted import LAYOUT as SIGHTED
from bedstone.recipes_told import TASKS, ToldConfig
from bedstone.runtime import Precision
from bedstone.train.progress import ProgressBar

LEARNT = 5000  # scenes that the baselines know, where a recipe's own aren't fewer


def evaluate_told(
    model: Model,
    data: str,
    precision: Precision,
    *,
    column: str = "text",
    split: str | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns the figures over all rows, with 95 % intervals.

    Columns are those of the model's own recipe where it has one. Beside the accuracy of answers
    stands that of who doesn't look: the commonest answer of the rows that the model learnt from,
    where these can still be read.

    Args:
        model: for captions, answers, matching, or all.
        data: rows, as `data.told_reader` reads them, or `scenes`.
        column: the column of captions, where it isn't the recipe's.

    Raises:
        BedstoneError: the rows can't be read, or lack what the model is for.
    """
    recipe = model.record.get("recipe") or {}
    settings = recorded_data(ToldConfig, recipe)
    if column != "text":
        settings.columns = {**settings.columns, "text": column}
    rows = opened(settings, data, split=split, size=max(model.config.image.size))
    kind = model.config.head.kind
    kind = TASKS[recipe.get("task", "visual-question-answering")] if kind == "language" else kind
    rows = with_parts(kind, rows, f"data {data!r}")
    if model.processor is None:
        model.processor = usual_processor(model.config)
    learnt = learnt_rows(settings, recipe)
    made = ToldScorer
    if model.config.layout == SIGHTED:
        made = partial(SightedScorer, kind=kind)  # type: ignore[assignment]
    scorer = made(
        model,
        pictures_of(rows, model.processor, settings, "reading pictures", as_json),
        precision,
        None if learnt is None else blind_of(learnt),
        candidates_of(learnt) if learnt is not None and recipe.get("rank") else (),
        blank=settings.blank,
        usual="" if learnt is None else usual_of(learnt),
    )
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = scorer.figures(told=bar.update)
    record = {name: figures.record() for name, figures in found.items()}
    if as_json:
        print(json.dumps(record))
        return record
    for name, figures in found.items():
        Console().print(Rule(f"{model.path} on {data}: {name}", align="left"), figures)
    if "answers" in found and learnt is None:
        Console().print(f"No baselines: {settings.source} can't be read any more.", highlight=False)
    if rows.faults.broken:
        Console().print(f"Left out: {rows.faults.told()}", highlight=False)
    return record


def learnt_rows(settings: ToldConfig, recipe: dict[str, Any]) -> ToldRows | None:
    """What a model learnt from; None where that isn't known, or isn't there any more."""
    if not recipe:
        return None
    if settings.source == SCENES:
        count = min(settings.most_rows or LEARNT, LEARNT)
        seed = int(recipe.get("seed", 0))
        return told_scenes(count, seed=seed, objects=settings.things, captions="none")
    try:
        return opened(settings, settings.source, split=settings.split)
    except BedstoneError:
        return None
