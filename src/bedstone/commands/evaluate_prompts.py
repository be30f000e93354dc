"""Scenes drawn from prompts whose combinations of shape and colour no training picture had.

Shapes: N drawings, S pixels of a side.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from bedstone.checkpoints.drawing import DrawingModel
from bedstone.commands.drawings import TOGETHER, drawings
from bedstone.inspect.figures import Figures
from bedstone.inspect.scene_judge import SceneJudge, judge_scenes, stated
from bedstone.runtime import Precision


def draw_prompts(
    model: DrawingModel, precision: Precision, prompts: Sequence[str], told: Callable[[float], None]
) -> Tensor:
    """A drawing of each prompt, (N, 3, S, S); `told` is handed the share done."""
    parts, null = [], model.prompts.condition([""])
    for first in range(0, len(prompts), TOGETHER):
        part = list(prompts[first : first + TOGETHER])
        condition = model.prompts.condition(part)
        parts.append(drawings(model, precision, condition, null, len(part), first=first))
        told((first + len(part)) / len(prompts))
    return torch.cat(parts)


def prompt_figures(judge: SceneJudge, drawn: Tensor, prompts: Sequence[str]) -> Figures:
    """Whether a judge sees all that prompts state: over all, and by how many things they state.

    Args:
        drawn: (N, 3, S, S), of any size: brought to that of the judge.
    """
    seen = judge.things(_at_size(drawn, judge.size))
    wanted = [stated(text) for text in prompts]
    found = judge_scenes(seen, wanted)
    values = {name: value for name, value in asdict(found).items() if name != "count"}
    for count in sorted({things.total() for things in wanted}):
        rows = [row for row, things in enumerate(wanted) if things.total() == count]
        own = judge_scenes([seen[row] for row in rows], [wanted[row] for row in rows])
        values[f"right/{count} thing{'s' * (count > 1)}"] = own.right
    return Figures("drawings", "right", values, {}, rows=len(prompts))


def _at_size(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-1] == size:
        return pictures
    return torch.nn.functional.interpolate(pictures, size=(size, size), mode="area")
