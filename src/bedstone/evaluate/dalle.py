"""Evaluation of DALL-E: nats of held-out codes and words, a sheet; what re-ranking is worth.

Of several candidates a CLIP keeps one. How often a judge finds that one right stands between two
figures that need no CLIP: `random`, any of the candidates, and `oracle`, whether one of them is
right at all. They say whether the CLIP or the generator is the limit.

Shapes: P prompts, N candidates of each, B images, C channels, H x W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bedstone.checkpoints.dalle import DallePipeline
from bedstone.data.images.codes import CodeRows
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.signals.open import held_out_prompts
from bedstone.data.signals.signals import SignalsConfig
from bedstone.diffusion.sample import candidate_seeds
from bedstone.errors import BedstoneError
from bedstone.evaluate.generative import at_size
from bedstone.evaluate.runner import Evaluation, present
from bedstone.evaluate.scene_judge import SceneJudge, judge_scenes, open_scene_judge, stated
from bedstone.metrics.figures import Figures, wilson
from bedstone.objectives.dalle import DalleLoss
from bedstone.report.sheets import samples_sheet
from bedstone.runtime import Precision
from bedstone.settings import check_whole
from bedstone.tasks.media.dalle import DalleGenerator
from bedstone.train.data import recorded_data
from bedstone.train.logs import ProgressBar

LOSS_BATCH = 128  # rows of a pass
DRAWN = 256  # images drawn at a time


@dataclass
class DalleScorer(Evaluation):
    """Nats of held-out images in training, and a sheet of what is drawn of their words.

    Attributes:
        model: whose network it is.
        objective: what it learns by.
        held: images held out, as codes.
        precision: in which it computes.
        rows: held-out rows that are read at most.
        samples: how many are drawn.
        sheet: where what is drawn is shown.
    """

    model: DallePipeline
    objective: DalleLoss
    held: CodeRows
    precision: Precision
    rows: int
    samples: int
    sheet: Path

    @torch.no_grad()
    def log(self, network: nn.Module) -> dict[str, float]:
        """`validation_loss`, and the nats of a code and of a word; draws the sheet anew."""
        network.eval()
        codes = words = loss = 0.0
        count = 0
        for batch in self.held.in_order(LOSS_BATCH, self.rows):
            moved = batch.to(self.precision.device)
            with self.precision.autocast():
                of_codes, of_words = self.objective.parts(network, moved)
                total = self.objective.weighed(of_codes, of_words)
            codes += of_codes.sum().item()
            words += 0.0 if of_words is None else of_words.sum().item()
            loss += total.sum().item()
            count += batch.items
        if self.samples:
            self.show()
        found = {"validation_loss": loss / count, "validation_code_nats": codes / count}
        return found if self.model.masked else {**found, "validation_word_nats": words / count}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        return {"validation": metrics}

    def show(self) -> Path:
        """Draws the first held-out rows' words anew, always by the same seeds."""
        count = min(self.samples, len(self.held))
        rows = np.arange(count)
        condition, _ = self.held.texts.draw(rows, None)
        titles = list(self.held.texts.known.numbers)
        texts = [titles[self.held.texts.numbers[row][0]] for row in rows]
        with self.precision.autocast():
            codes = self.model.codes(range(count), condition=condition, batch=count)
        return samples_sheet(self.model.decode(codes), self.sheet, titles=texts)


# What re-ranking is worth.


def rerank_figures(
    model: DallePipeline,
    precision: Precision,
    judge: SceneJudge,
    prompts: Sequence[str],
    candidates: int,
    *,
    seed: int = 0,
    update: Callable[[float], None] = lambda share: None,
) -> Figures:
    """How often a judge finds the chosen candidate right, for 1, 2, 4, ... of them.

    Args:
        prompts: of scenes.
        candidates: of each prompt; those of fewer are the first of these.
        seed: of the first prompt; each further one has the next.

    Raises:
        BedstoneError: the model has no CLIP, or less than one candidate is wanted.
    """
    check_whole("candidates", candidates, 1)
    generator = DalleGenerator(model, precision.name)
    if candidates > 1:
        generator.clip  # noqa: B018  # said before anything is drawn
    sampling, scores, right = generator.settings({"candidates": 1}), [], []
    wanted = [stated(text) for text in prompts]
    at_once = max(DRAWN // candidates, 1)
    for first in range(0, len(prompts), at_once):
        part = slice(first, first + at_once)
        texts = list(prompts[part])
        seeds = [
            each
            for place in range(len(texts))
            for each in candidate_seeds(seed + first + place, candidates)
        ]
        rows = model.prompts.condition([text for text in texts for _ in range(candidates)])
        drawn = model.sample(
            seeds, condition=rows, sampling=sampling, batch=DRAWN, **generator.options
        )
        things = judge.things(at_size(drawn, judge.size))
        own = [each for each in wanted[part] for _ in range(candidates)]
        found = [judge_scenes([seen], [one]).right for seen, one in zip(things, own, strict=True)]
        right.append(np.reshape(found, (-1, candidates)))
        images = drawn.unflatten(0, (-1, candidates))
        scores.append(generator.scores(images, texts) if candidates > 1 else right[-1] * 0)
        update((first + len(texts)) / len(prompts))
    counts = [each.total() for each in wanted]
    return rerank_curve(np.concatenate(scores), np.concatenate(right), counts)


def evaluate_reranking(
    model: Any,
    data: str,
    precision: Precision,
    *,
    judge: str,
    candidates: int,
    samples: int = 1000,
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns `rerank_figures` of prompts whose combinations training never showed.

    Raises:
        BedstoneError: the model is no DALL-E, the data isn't `scenes`, or there is no judge.
    """
    if not isinstance(model, DallePipeline):
        raise BedstoneError(
            f"candidates: {candidates} were given, and {model.path} is no DALL-E. Leave it out."
        )
    if data != SCENES or not judge:
        raise BedstoneError(
            "candidates: are judged on `scenes` by --judge, the folder of a judge of scenes "
            "(python bench/scene_judge.py FOLDER)."
        )
    check_whole("samples", samples, 1)
    objects = recorded_data(SignalsConfig, model.record).things
    prompts = [one.text for one in held_out_prompts(samples, objects=objects)]
    with ProgressBar("drawing", quiet=as_json) as bar:
        figures = rerank_figures(
            model, precision, open_scene_judge(judge), prompts, candidates, update=bar.update
        )
    record = {**figures.record(), "judge": judge, "sampling": asdict(model.sampling)}
    heading = f"{model.path}: {candidates} candidates a prompt, judged by {judge}"
    return present(record, {heading: figures}, as_json=as_json)


def rerank_curve(scores: np.ndarray, right: np.ndarray, things: Sequence[int] = ()) -> Figures:
    """The figures of candidates whose scores and verdicts (1.0 is right) are (P, N).

    `right/n`: of the first n, the one with the highest score; `oracle/n`: one of them is right;
    `random/n`: any of them. `gain` is what all candidates add to one, `gain_of_oracle` its share of
    what they could add. By the number of things that a prompt states: `right/n/2 things`.

    Raises:
        BedstoneError: there are none, or not as many of both.
    """
    if scores.shape != right.shape or not right.size:
        raise BedstoneError(
            f"candidates: scores {scores.shape} and verdicts {right.shape} were given; expected "
            "as many of both, (prompts, candidates)."
        )
    total, most = right.shape
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    steps = [2**power for power in range(most.bit_length()) if 2**power <= most]
    for count in dict.fromkeys((*steps, most)):
        chosen = right[np.arange(total), scores[:, :count].argmax(1)]
        kinds = {"right": chosen, "oracle": right[:, :count].max(1)}
        for name, verdicts in kinds.items():
            values[f"{name}/{count}"] = float(verdicts.mean())
            intervals[f"{name}/{count}"] = wilson(int(verdicts.sum()), total)
        values[f"random/{count}"] = float(right[:, :count].mean())
        for number in sorted(set(things)):
            own = chosen[np.array(things) == number]
            values[f"right/{count}/{number} thing{'s' * (number > 1)}"] = float(own.mean())
    values["gain"] = values[f"right/{most}"] - values["right/1"]
    possible = values[f"oracle/{most}"] - values["right/1"]
    values["gain_of_oracle"] = values["gain"] / possible if possible else 0.0
    return Figures("candidates", f"right/{most}", values, intervals, rows=total)
