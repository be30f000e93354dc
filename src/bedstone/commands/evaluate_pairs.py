"""`bedstone evaluate` for a model of pairs: recall both ways, zero-shot accuracy."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.commands.pair_data import encoder_of, reader_of
from bedstone.commands.pair_model import usual_processor
from bedstone.commands.pair_scoring import PairScorer
from bedstone.commands.picture_data import pictures_of, recorded_data
from bedstone.data.pair_batches import PairTexts
from bedstone.data.pair_reader import open_pairs
from bedstone.data.scene_pairs import measured_scenes
from bedstone.data.scenes import NAME as SCENES
from bedstone.errors import BedstoneError
from bedstone.inspect.confusion import draw_confusion
from bedstone.recipes_pairs import PairsConfig
from bedstone.runtime import Precision
from bedstone.train.progress import ProgressBar


def evaluate_pairs(
    model: Model,
    data: str,
    precision: Precision,
    *,
    column: str = "text",
    split: str | None = None,
    as_json: bool = False,
    picture: str | None = None,
) -> dict[str, Any]:
    """Prints and returns the figures over all pairs, with 95 % intervals.

    Columns, templates and names of classes are those of the model's own recipe where it has one.

    Args:
        model: of pairs.
        data: pairs, as `data.pair_rows` reads them, or `scenes`.
        column: the column of texts, where it isn't the recipe's.
        picture: a PNG to draw the confusion matrix of zero-shot classification into.

    Raises:
        BedstoneError: the pairs can't be read, or there is nothing to measure.
    """
    settings = recorded_data(PairsConfig, model.record.get("recipe") or {})
    if column != "text":
        settings.columns = {**settings.columns, "text": column}
    if data == SCENES:
        rows = measured_scenes(split or "test", size=max(model.config.image.size))
    else:
        rows = open_pairs(data, reader_of(settings), split=split, most_broken=settings.most_broken)
    if model.processor is None:
        model.processor = usual_processor(model.config)
    pictures = pictures_of(rows, model.processor, settings, "reading pictures", as_json)
    texts = PairTexts(rows, encoder_of(tokenizer_of(model), model.config))
    kind = "sigmoid" if model.config.layout == "siglip" else "softmax"
    scorer = PairScorer(model, pictures, texts, precision, kind)
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = scorer.figures(told=bar.update)
    if not found:
        raise BedstoneError(
            f"data {data!r}: has neither texts of its own to find nor two classes to tell apart."
        )
    record = {name: figures.record() for name, figures in found.items()}
    if picture is not None:
        if "zero-shot" not in found:
            raise BedstoneError("confusion: the rows have no labels, so there is no such matrix.")
        told = found["zero-shot"]
        title = f"{model.path} on {Path(data).name}"
        draw_confusion(told.confusion or [], told.labels, picture, title)
    if as_json:
        print(json.dumps(record))
        return record
    for name, figures in found.items():
        Console().print(Rule(f"{model.path} on {data}: {name}", align="left"), figures.table())
    if rows.faults.broken:
        Console().print(f"Left out: {rows.faults.told()}", highlight=False)
    return record
