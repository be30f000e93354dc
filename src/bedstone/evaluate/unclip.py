"""Evaluation of unCLIP: what its prior adds to the words, variations, what lies between images.

A prior is judged by retrieval, not by its loss: whether the embedding that it makes of a caption is
nearest, of 100 images, to one that has this caption. Beside it stand the words' own embedding,
which needs no prior, and the prior's embedding of another image's caption, which is chance.

Shapes: B rows, n images, E width of embeddings, C channels, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.text import Text
from torch import Tensor, nn

from bedstone.checkpoints.model import Model
from bedstone.checkpoints.unclip import PRIOR_SCHEDULER, UnclipPipeline, sample_prior
from bedstone.data.scenes.world import COLOURS
from bedstone.data.signals.batches import SignalTexts
from bedstone.data.signals.open import held_out_prompts, signals_to_measure
from bedstone.data.signals.signals import Signals, SignalsConfig
from bedstone.diffusion.samplers import slerp
from bedstone.evaluate.generative import (
    at_size,
    loss_of_held,
    prompt_figures,
    sample_prompts,
    samples_of,
)
from bedstone.evaluate.runner import Evaluation, present
from bedstone.evaluate.scene_judge import (
    SceneJudge,
    Things,
    judge_scenes,
    open_scene_judge,
    stated,
)
from bedstone.models.unclip.network import StandardisedPrior, joint, read_words
from bedstone.report.sheets import as_pixels, samples_sheet
from bedstone.runtime import Precision
from bedstone.settings import check_whole
from bedstone.tasks.media.unclip import UnclipGenerator
from bedstone.train.data import recorded_data
from bedstone.train.logs import ProgressBar

LOSS_BATCH = 256  # rows of a pass
AMONG = 100  # images of which one is a caption's own
BRIEF = 100  # captions that embeddings are made of in training
STEPS = 25  # of the prior
IDLE = 0.05  # of right, that embeddings of other prompts have to cost
PLAIN = {"upsample": False}  # as the denoiser draws them, not enlarged
VARIED, PAIRS, BETWEEN = 200, 50, 11  # variations, pairs of images, images from one to the other


def retrieval(
    found: Tensor, images: Tensor, captions: Sequence[Any] = (), among: int = AMONG
) -> float:
    """How often an embedding (n, E) is nearest, of `among` images' (n, E), to that of its row, or
    of another with the same caption: no prior could tell these apart.

    Rows go by groups of `among`; what is left over of several is not read.
    """
    groups = max(len(found) // among, 1)
    count = min(among, len(found))
    right = 0
    for first in range(0, groups * count, count):
        part = slice(first, first + count)
        scores = joint(found[part]) @ joint(images[part]).T
        own = list(captions[part]) or list(range(count))
        right += sum(own[place] == own[row] for row, place in enumerate(scores.argmax(1).tolist()))
    return right / (groups * count)


def prior_figures(
    made: Tensor, words: Tensor, images: Tensor, captions: Sequence[Any] = ()
) -> dict[str, float]:
    """Figures of the embeddings (n, E) that a prior made of captions.

    Args:
        words: embeddings (n, E) of the captions themselves.
        images: those of their images.
        captions: what each is, as they are compared; all differ where none are given.
    """
    cosine = nn.functional.cosine_similarity
    return {
        "cosine": float(cosine(made, images).mean()),
        "cosine_words": float(cosine(words, images).mean()),
        "retrieval": retrieval(made, images, captions),
        "retrieval_words": retrieval(words, images, captions),
        "retrieval_shuffled": retrieval(made.roll(1, 0), images, captions),
    }


@dataclass
class PriorScorer(Evaluation):
    """Held-out loss of a prior, and its figures by `prior_figures`.

    Attributes:
        model: whose network the prior is.
        clip: whose embeddings it makes.
        objective: what it learns by.
        held: standardised embeddings held out.
        texts: their captions by their tokens.
        precision: in which it computes.
        rows: held-out rows that are read at most.
    """

    model: Model
    clip: Model
    objective: Any
    held: Signals
    texts: SignalTexts
    precision: Precision
    rows: int

    def log(self, network: nn.Module) -> dict[str, float]:
        """`validation_loss`, with the same noise and times every time, and figures of a few."""
        loss = loss_of_held(
            network, self.objective, self.held, self.texts, self.rows, self.precision
        )
        figures = {"loss": loss, **self.figures_of(BRIEF)}
        return {f"validation_{name}": value for name, value in figures.items()}

    def report(
        self, folder: Path, metrics: dict[str, float], *, quiet: bool = False
    ) -> dict[str, Any]:
        return {"validation": {**metrics, **self.figures_of(self.rows)}}

    @torch.no_grad()
    def figures_of(self, most: int) -> dict[str, float]:
        """The figures of at most so many held-out captions."""
        prior, clip = self.model.network.eval(), self.clip.network
        assert isinstance(prior, StandardisedPrior)
        rows = np.arange(min(most, len(self.held)))
        condition, _ = self.texts.draw(rows, None)
        moved = condition.to(self.precision.device)
        null, seeds = self.texts.null, rows.tolist()
        images = prior.restored(self.held.read(rows).to(prior.mean))
        assert moved.ids is not None and moved.keep is not None
        made = sample_prior(prior, clip, seeds, condition, null, PRIOR_SCHEDULER, STEPS)
        words, _ = read_words(clip, moved.ids, moved.keep)
        return prior_figures(made, words, images, [self.texts.numbers[row][0] for row in rows])


# What is made of images: variations, what lies between two, what words change.


class EmbeddingFigures:
    """What an unCLIP makes of real images of scenes, judged.

    Args:
        drawer: what draws.
        judge: of scenes.
        real: pictures with captions that name every thing.
    """

    def __init__(self, drawer: UnclipGenerator, judge: SceneJudge, real: Signals) -> None:
        self.drawer, self.judge = drawer, judge
        self.pixels = real.read(np.arange(len(real)))
        self.captions = [texts[0] for texts in real.captions or ()]
        vectors = drawer.clip.images(as_pixels(self.pixels))
        self.embeddings = drawer.model.image_embeddings(vectors).cpu()  # (n, E)
        self.shown: list[tuple[str, Tensor]] = []  # some of what was drawn, by what it is

    def retrieval(self) -> dict[str, float]:
        """`prior_figures` of the captions; nothing of a model without a prior."""
        model = self.drawer.model
        if model.prior is None:
            return {}
        words = model.prompts.condition(self.captions)
        own = replace(model.sampling, prior="none")
        plain = model.embeddings([0] * len(self.captions), words, own).cpu()
        made = model.embeddings(range(len(self.captions)), words, _with_prior(model)).cpu()
        found = prior_figures(made, plain, self.embeddings, self.captions)
        return {f"prior/{name}": value for name, value in found.items()}

    def by_image(self, most: int) -> dict[str, float]:
        """How often an image of a caption is right that is drawn by the embedding of a real image
        of it: what no prior could do better, so that it says what the denoiser is worth."""
        texts = self.captions[:most]
        own = self.embeddings[:most]
        drawn = self.drawer.decoded(own, range(len(texts)), {}, PLAIN, prompts=texts).signals
        found = judge_scenes(self.see(drawn), [stated(text) for text in texts])
        return {"right/image embedding": found.right}

    def variations(self, most: int) -> dict[str, float]:
        """Of pictures of one thing: how often a variation shows that thing, and how far it is from
        its picture, beside how far two random pictures of such a thing are from one another."""
        rows, things = self.ones(most)
        if not rows:
            return {}
        drawn = self.decode(self.embeddings[rows], range(len(rows)))
        self.shown += [("image", self.pixels[rows[:10]]), ("variation", drawn[:10])]
        seen = self.see(drawn)
        agree = [there[thing] == 1 for there, thing in zip(seen, things, strict=True)]
        apart = _distance(self.pixels[rows], drawn)
        places: dict[tuple[str, str], list[int]] = {}
        for row, thing in zip(rows, things, strict=True):
            places.setdefault(thing, []).append(row)
        pairs = [pair for own in places.values() for pair in pairwise(own)]
        found = {
            "variations/agreement": float(np.mean(agree)),
            "variations/distance": float(apart.mean()),
        }
        if pairs:
            one, other = (self.pixels[[pair[side] for pair in pairs]] for side in (0, 1))
            found["variations/distance of two"] = float(_distance(one, other).mean())
            ratio = found["variations/distance"] / found["variations/distance of two"]
            found["variations/ratio"] = ratio
        return found

    def between(self, most: int) -> dict[str, float]:
        """Spearman's correlation of the place between two images with the CLIP's cosine to the last
        one, and to the first one turned, in the mean over both and over all pairs."""
        found = []
        shares = torch.linspace(0, 1, BETWEEN)
        for first in range(0, 2 * min(most, len(self.embeddings) // 2), 2):
            ends = self.embeddings[first : first + 2]
            first_end, last_end = (each.expand(BETWEEN, -1) for each in ends)
            rows = slerp(first_end, last_end, shares)
            drawn = self.decode(joint(rows), [first] * BETWEEN)
            if len(self.shown) < 6:
                self.shown.append(("between", drawn[:10]))
            vectors = self.drawer.clip.images(as_pixels(drawn))
            cosines = vectors @ torch.nn.functional.normalize(ends, dim=1).numpy().T
            found += [rank_correlation(cosines[:, 1]), -rank_correlation(cosines[:, 0])]
        return {"between/spearman": float(np.mean(found))} if found else {}

    def differences(self, most: int) -> dict[str, float]:
        """Of pictures of one thing, turned from its colour to another: how often that colour is
        seen, and how often the shape stays."""
        rows, things = self.ones(most)
        if not rows:
            return {}
        wanted, changes, shown = [], [], []
        names = sorted(COLOURS)
        for row, (shape, colour) in zip(rows, things, strict=True):
            other = names[(names.index(colour) + 1 + row % (len(names) - 1)) % len(names)]
            changes.append(f"a {other} {shape}")
            shown.append(f"a {colour} {shape}")
            wanted.append((shape, other))
        starts = self.embeddings[rows]
        ends = self.drawer.changed(starts, changes, shown)
        drawn = self.decode(joint(slerp(starts, ends, self.drawer.turn)), range(len(rows)))
        self.shown += [("image", self.pixels[rows[:10]]), ("another colour", drawn[:10])]
        seen = self.see(drawn)
        changed = [
            any(each[1] == want[1] for each in there) for there, want in _pairs(seen, wanted)
        ]
        stays = [any(each[0] == want[0] for each in there) for there, want in _pairs(seen, wanted)]
        return {
            "differences/changed": float(np.mean(changed)),
            "differences/shape stays": float(np.mean(stays)),
        }

    def ones(self, most: int) -> tuple[list[int], list[tuple[str, str]]]:
        """Rows of pictures of one thing, at most so many, and their shape and colour."""
        found = [(row, stated(text)) for row, text in enumerate(self.captions)]
        single = [(row, next(iter(things))) for row, things in found if things.total() == 1]
        single = [(row, thing) for row, thing in single if all(thing)][:most]
        return [row for row, _ in single], [thing for _, thing in single]

    def see(self, images: Tensor) -> list[Things]:
        """What the judge sees in images (B, C, H, W)."""
        return self.judge.things(at_size(images, self.judge.size))

    def decode(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images (B, C, H, W) of embeddings (B, E), without words."""
        return self.drawer.decoded(embeddings, list(seeds), {}, PLAIN).signals


def evaluate_unclip(
    model: UnclipPipeline,
    data: str,
    precision: Precision,
    *,
    judge: str,
    samples: int = 1000,
    out: str = "",
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns the figures of an unCLIP on scenes.

    `right` is the share of prompts of combinations that training never showed whose images a judge
    finds right, `right/no prior` the same from the words' own embeddings, `right/other embedding`
    from the prior's embeddings of other prompts: where it is as high, embeddings aren't read.
    `right/image embedding` is that of test captions from the embeddings of their images,
    `prior/...` what `prior_figures` says of test captions, `variations/...`, `between/...` and
    `differences/...` what `EmbeddingFigures` says of test images.

    Args:
        data: `scenes`.
        judge: the folder of a judge of scenes.
        samples: how many prompts and test images.
        out: a folder for sheets of what was drawn.

    Raises:
        BedstoneError: there is no judge.
    """
    check_whole("samples", samples, 2)
    sees = open_scene_judge(judge)
    section = recorded_data(SignalsConfig, model.record)
    task, seed = "text-to-image", int((model.record.get("recipe") or {}).get("seed", 0))
    prompts = [one.text for one in held_out_prompts(samples, objects=section.things)]
    sheets: list[tuple[str, Tensor]] = []
    with ProgressBar("drawing", quiet=as_json) as bar:
        figures = None
        own = {"right": replace(model, sampling=_with_prior(model))} if model.prior else {}
        own["right/no prior"] = replace(model, sampling=replace(model.sampling, prior="none"))
        for name, way in own.items():
            drawn = sample_prompts(way, precision, prompts, bar.update)
            found = prompt_figures(sees, drawn, prompts)
            sheets.append((name, drawn[:10]))
            if figures is None:
                figures = found
                if model.upsampler is not None:
                    large = way.enlarged(drawn, range(len(prompts)))
                    found_large = prompt_figures(sees, large, prompts)
                    figures.values["right/enlarged"] = found_large["right"]
                    sheets.append(("enlarged", at_size(large[:10], drawn.shape[-1])))
            else:
                figures.values[name] = found["right"]
                figures.values["gain of the prior"] = figures["right"] - found["right"]
    assert figures is not None
    if model.prior is not None:
        with ProgressBar("drawing", quiet=as_json) as bar:
            drawn = sample_others(model, precision, prompts, bar.update)
        sheets.append(("right/other embedding", drawn[:10]))
        figures.values["right/other embedding"] = prompt_figures(sees, drawn, prompts)["right"]
    real = signals_to_measure(section, task, data, samples, seed=seed)
    beside = EmbeddingFigures(UnclipGenerator(model, precision.name), sees, real)
    for more in (
        beside.retrieval(),
        beside.by_image(min(samples, VARIED)),
        beside.variations(min(samples, VARIED)),
        beside.between(min(samples // 2, PAIRS)),
        beside.differences(min(samples, VARIED)),
    ):
        figures.values.update(more)
    if out:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        shown = [*sheets, *beside.shown]
        titles = [name for name, images in shown for _ in images]
        images = torch.cat([images for _, images in shown])
        samples_sheet(images, folder / "drawn.png", titles=titles, columns=10)
    record = {**figures.record(), "judge": judge, "sampling": asdict(model.sampling)}
    heading = f"{model.path} beside {data}, judged by {judge}"
    said: list[Any] = [figures]
    other = figures.values.get("right/other embedding")
    if other is not None and is_idle(figures["right"], other):
        said.append(
            Text(
                f"Right is {other:.3f} with the embeddings of other prompts, too: what draws reads "
                "words alone, and the prior is idle, whatever its gain. Train with a smaller drop, "
                "or a larger drop_text."
            )
        )
    return present(record, {heading: Group(*said)}, as_json=as_json)


def is_idle(right: float, other: float) -> bool:
    """Whether embeddings of other prompts cost nothing of what is right, where something is."""
    return right >= IDLE and right - other < IDLE


def sample_others(
    model: UnclipPipeline, precision: Precision, prompts: Sequence[str], update: Any
) -> Tensor:
    """A sample of each prompt, (N, 3, S, S), with the prior's embedding of the prompt before it."""
    words, null = model.prompts.condition(prompts), model.prompts.condition([""])
    made = model.embeddings(range(len(prompts)), words, _with_prior(model)).cpu()
    others = replace(words, embedding=made.roll(1, 0))
    return samples_of(model, precision, others, null, len(prompts), update)


def rank_correlation(values: np.ndarray) -> float:
    """Spearman's correlation of values (n,) with their order, equal ones sharing the mean of their
    ranks; 0 where all are the same."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        return 0.0
    ranks = (counts.cumsum() - (counts - 1) / 2)[places]
    return float(np.corrcoef(np.arange(len(values)), ranks)[0, 1])


def _with_prior(model: UnclipPipeline) -> Any:
    """The settings of sampling, by the prior."""
    assert model.prior is not None
    return replace(model.sampling, prior=model.prior.config.kind)


def _pairs(seen: Sequence[Things], wanted: Sequence[tuple[str, str]]) -> Any:
    return zip(seen, wanted, strict=True)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """The root mean square difference of images (B, C, H, W), (B,)."""
    return (one - other).square().flatten(1).mean(1).sqrt()
