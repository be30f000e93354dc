"""The CLIP score of drawings: does each show the text that it was drawn from?

Shapes: N drawings, C channels, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from bedstone.checkpoints.artefact import tokenizer_of
from bedstone.checkpoints.drawing import DrawingModel
from bedstone.checkpoints.opening import open_model
from bedstone.errors import BedstoneError
from bedstone.inspect.clip_score import clip_score
from bedstone.inspect.samples import as_pixels
from bedstone.runtime import Precision
from bedstone.tasks.picture_engine import PictureEngine
from bedstone.tasks.task import compares


def open_clip(path: str, model: DrawingModel, precision: Precision) -> PictureEngine:
    """The CLIP that compares what `model` draws with its texts.

    Args:
        path: a run, a published folder or a hub id.

    Raises:
        BedstoneError: it can't be opened or is no CLIP, or the model draws no pictures from words.
    """
    form = model.signal
    if (form.condition, form.kind) != ("text", "image"):
        draws = "pictures" if form.kind == "image" else f"signals of the kind {form.kind!r}"
        raise BedstoneError(
            f"clip: {path} was given to score what {model.path} draws: {draws}, {model.told()}. "
            "Expected pictures from words, for a CLIP to compare with the words. Leave --clip out, "
            "and let a --judge see them; or give a text-to-image model."
        )
    clip = open_model(path, device=precision.device)
    if not compares(clip):
        raise BedstoneError(
            f"clip: {path} is of layout {clip.config.layout!r}, which doesn't compare pictures "
            "with texts. Expected a CLIP: a published one, or the run of a recipe such as "
            "recipes/clip-scenes.yaml."
        )
    tokenizer_of(clip)  # now, before anything is drawn
    return PictureEngine(clip, precision.name)


def clip_figures(
    path: str, clip: PictureEngine, drawn: Tensor, texts: Sequence[str]
) -> dict[str, Any]:
    """`clip_score`; that of the same drawings with the other texts, where there are some; and
    `clip_first`, the share nearer to their own text than to each of the others.

    Beside them `clip`, what compared; `clip_name`, its layout and the hash of its weights; and
    `clip_texts`, how many texts differ.

    Args:
        path: of the CLIP, as it was given.
        drawn: (N, 1 or 3, H, W), about -1 to 1, of any size.
        texts: N of them.
    """
    found = clip_score(clip, as_pixels(drawn), texts)
    differ = len(set(texts))
    others = {"clip_score/other texts": found.others, "clip_first": found.first}
    return {
        "clip_score": found.mean,
        **(others if differ > 1 else {}),
        "clip": path,
        "clip_name": found.clip,
        "clip_texts": differ,
    }


def clip_report(figures: dict[str, Any]) -> Group:
    """What `clip_figures` found, to print, and what it means."""
    named = f"CLIP score by {figures['clip']} ({figures['clip_name']})"
    said = "2.5 x the cosine of a drawing and its text, none below 0; compare within one CLIP."
    table = Table(show_header=False)
    for name in ("clip_score", "clip_score/other texts", "clip_first"):
        if name in figures:
            table.add_row(name, f"{figures[name]:.4f}")
    if "clip_first" in figures:
        texts = figures["clip_texts"]
        said += f" clip_first: nearest to its own of {texts:,} texts, {1 / texts:.4f} by chance."
    return Group(Text(named), table, Text(said))
