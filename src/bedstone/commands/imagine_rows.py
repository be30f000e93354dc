"""Prompts and seeds of `bedstone imagine` as rows that are drawn in some place.

A result is the signal itself, so files and sheets are made of what a single process draws.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bedstone.bulk.places import Job, Spread, Worker
from bedstone.bulk.results import results_of
from bedstone.bulk.shares import as_json, fingerprint
from bedstone.checkpoints.load import open_model
from bedstone.errors import BedstoneError
from bedstone.runtime import pick_device
from bedstone.tasks.media.generator import Generated, Prompt
from bedstone.tasks.media.unclip import open_generator


def open_drawer(model: str, options: Mapping[str, Any], precision: str, device: str) -> Worker:
    """A model that draws as work on rows (prompt, seed), whose results are JSON.

    Args:
        options: of `draw`, the same for all rows.

    Raises:
        BedstoneError: the model can't be opened, or draws nothing.
    """
    drawer = open_generator(open_model(model, device=pick_device(device)), precision)

    def work(rows: list[tuple[Prompt, int]]) -> list[str]:
        prompts, seeds = zip(*rows, strict=True)
        drawn = drawer.draw(list(prompts), list(seeds), **options)
        pairs = zip(drawn.signals.numpy(), drawn.recipes, strict=True)
        return [_packed(signal, recipe, drawn.kind) for signal, recipe in pairs]

    return work


def _packed(signal: np.ndarray, recipe: Mapping[str, Any], kind: str) -> str:
    """A drawn signal (C, *S) as JSON, without a loss."""
    data = base64.b64encode(np.ascontiguousarray(signal, "<f4").tobytes()).decode()
    return as_json({"signal": data, "shape": signal.shape, "recipe": recipe, "kind": kind})


def draw_rows(
    model: str,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    spread: Spread,
    *,
    results: str | None,
    precision: str,
    device: str,
    overwrite: bool,
    progress: Callable[[float], object],
) -> Generated | None:
    """Draws all rows in some place; None of a share, whose results are written.

    Args:
        options: of `draw`, plain values.
        results: the file of the results.

    Raises:
        BedstoneError: a row can't be drawn, or as `bulk.results.results_of` does.
    """
    rows = list(zip(prompts, seeds, strict=True))
    settings = {"model": model, "options": dict(options), "precision": precision}
    job = Job("bedstone.commands.imagine_rows:open_drawer", {**settings, "device": device})
    found = results_of(
        job,
        rows,
        spread,
        work=fingerprint(settings, rows),
        path=results,
        overwrite=overwrite,
        progress=progress,
    )
    if found is None:
        return None
    held = [json.loads(each) for each in found]
    kinds = {each["kind"] for each in held}
    try:
        signals = [
            np.frombuffer(base64.b64decode(each["signal"]), "<f4").reshape(each["shape"])
            for each in held
        ]
    except ValueError as error:
        raise BedstoneError(
            f"{results}: holds a damaged signal ({error}). Draw it again by --overwrite."
        ) from error
    recipes = [each["recipe"] for each in held]
    return Generated(torch.from_numpy(np.stack(signals).astype("f4")), recipes, kinds.pop())
