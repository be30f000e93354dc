"""Evaluation of image-text models: captions, answers by kind of question, matching.

Shapes: P pictures, n = m P texts, row i of picture i // m; T tokens, S places of the memory.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.dataset import Dataset, image_numbers
from bedstone.data.fields import Question, Sample, name_columns
from bedstone.data.images.image_text import (
    BlipWords,
    answer_text,
    gpt_words,
    padded,
    prompt_ids,
    targets_of,
)
from bedstone.data.images.pixels import ImageCache
from bedstone.data.open import ImageTextConfig
from bedstone.data.scenes.captions import negatives
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.data.scenes.datasets import heldout_image_text_scenes, image_text_scenes
from bedstone.errors import BedstoneError
from bedstone.evaluate.runner import Evaluation, Progress, present
from bedstone.evaluate.tasks import wrong_caption
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.ranking import rank
from bedstone.generation.settings import BeamSearch, GenerationSettings
from bedstone.metrics.captioning import captions as caption_figures
from bedstone.metrics.captioning import true_facts
from bedstone.metrics.figures import Figures
from bedstone.metrics.retrieval import matching
from bedstone.metrics.vqa import QuestionOnlyBaseline, vqa_accuracy
from bedstone.models.flamingo.network import FLAMINGO
from bedstone.models.published import fresh_processor
from bedstone.objectives.image_text import word_loss
from bedstone.objectives.tokens import token_loss
from bedstone.runtime import Precision
from bedstone.train.data import cached_images, recorded_columns, recorded_data
from bedstone.train.logs import ProgressBar

BATCH = 32  # pictures at a time, with all their texts
LONGEST = 64  # tokens of a caption that is written, at most
SHORTEST = 16  # tokens of an answer, at most, where it is written freely


Measure = Callable[[list[int], Tensor, "Predictions"], None]


@dataclass
class Predictions:
    """A model's captions, answers and matching probabilities, and what is right.

    Attributes:
        captions, captioned: captions, and the rows they are of.
        answers, questions: answers, the numbers of their images and their questions.
        chances: (P, 3) that a picture's own caption belongs to it, another's, and one that is
            nearly right; NaN where there is none such.
        losses: sums in nats and what they are of: tokens, or pairs.
    """

    captions: list[str] = field(default_factory=list)
    captioned: list[Sample] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    questions: list[tuple[int, Question]] = field(default_factory=list)
    chances: list[list[float]] = field(default_factory=list)
    losses: list[tuple[float, int]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """Nats a token; of matching alone, nats a pair."""
        total, count = (sum(column) for column in zip(*self.losses, strict=True))
        return total / max(count, 1)


@dataclass
class BlipScorer(Evaluation):
    """Figures of an image-text model on images with captions, questions, or both.

    Attributes:
        model: whose head says what is measured: captions, answers, matching, or all.
        images: of the rows, as the model reads them.
        precision: of the matrix products.
        blind: the question-only baseline of the training rows; None reports none.
        candidates: answers to choose among; empty lets the model write freely.
        blank: whether all images are hidden from it.
        usual: the majority caption of the training rows, a baseline; empty reports none.
        name: of the rows: validation or test.
        kind: what is measured of a network that could do more: captions, answers or joint.
    """

    model: Model
    images: ImageCache
    precision: Precision
    blind: QuestionOnlyBaseline | None = None
    candidates: Sequence[str] = ()
    blank: bool = False
    usual: str = ""
    name: str = "validation"
    kind: str = ""

    def log(self, network: Any) -> dict[str, float]:
        network.eval()
        found = self.predict()
        values = {"loss": found.loss}
        for name, figures in self.score(found, 0).items():
            if name in ("matching", "nearly right"):
                values[f"{name}_accuracy"] = figures["accuracy"]
            else:
                values |= {key: value for key, value in figures.values.items() if _logged(key)}
        plain = {name.replace("/", "_").replace(" ", "_"): v for name, v in values.items()}
        return {f"validation_{name}": value for name, value in plain.items()}

    @torch.no_grad()
    def predict(self, progress: Progress = None) -> Predictions:
        """What the model says of all pictures."""
        found, measured = Predictions(), self._measured()
        for done, chosen in self._chunks():
            numbers, memory = self._seen(chosen)
            with self.precision.autocast():
                for measure in measured:
                    measure(numbers, memory, found)
            if progress is not None:
                progress(done)
        return found

    def _measured(self) -> list[Measure]:
        """What is done with some rows' memories; each adds to what is found."""
        kind = self.model.config.head.kind
        known = {"captions": self._captions, "answers": self._answers, "matching": self._match}
        return [measure for name, measure in known.items() if kind in (name, "joint")]

    def score(self, found: Predictions, resamples: int) -> dict[str, Figures]:
        """By kind: `captions`, `true facts` (of scenes), `answers`, `matching`, `nearly right`."""
        figures: dict[str, Figures] = {}
        drawn = [row.scene for row in found.captioned if row.scene is not None]
        if found.captions and len(drawn) == len(found.captions):
            figures["true facts"] = true_facts(found.captions, drawn, resamples=resamples)
        elif found.captions:
            references = [row.captions for row in found.captioned]
            figures["captions"] = caption_figures(found.captions, references, resamples=resamples)
            if self.usual:
                same = caption_figures([self.usual] * len(references), references, resamples=0)
                beside = {f"{name}/majority": value for name, value in same.values.items()}
                figures["captions"].values.update(beside)
        if found.answers:
            questions = [one for _, one in found.questions]
            figures["answers"] = vqa_accuracy(
                found.answers,
                [one.answers for one in questions],
                [one.kind for one in questions],
                questions=[one.question for one in questions],
                blind=self.blind,
                images=image_numbers(self.images.rows, [number for number, _ in found.questions]),
                resamples=resamples,
            )
        if found.chances:
            own, *wrong = np.array(found.chances).T
            for name, other in zip(("matching", "nearly right"), wrong, strict=True):
                there = ~np.isnan(other)
                if there.any():
                    chances = np.concatenate((own[there], other[there]))
                    truth = np.arange(len(chances)) < there.sum()
                    figures[name] = matching(chances, truth, resamples=resamples)
        return figures

    def _chunks(self) -> Iterator[tuple[float, np.ndarray]]:
        """Numbers of some rows, those with as many questions together; and the share done."""
        rows, readable = self.images.rows, self.images.readable
        order = sorted(readable.tolist(), key=lambda number: len(rows[number].questions))
        for at in range(0, len(order), BATCH):
            yield at / len(order), np.array(order[at : at + BATCH])

    def _seen(self, numbers: np.ndarray) -> tuple[list[int], Tensor]:
        """Numbers of the rows whose pictures can be read, and their memory (P, S, D)."""
        processor = self.model.processor
        assert processor is not None
        numbers, pixels = self.images.read(numbers)
        shown = processor.normalise(torch.from_numpy(pixels)).to(self.precision.device)
        shown = torch.zeros_like(shown) if self.blank else shown
        with self.precision.autocast():
            return numbers.tolist(), self.model.network.memory(shown)

    def _captions(self, numbers: list[int], memory: Tensor, found: Predictions) -> None:
        rows = [self.images.rows[number] for number in numbers]
        kept = [place for place, row in enumerate(rows) if row.captions]
        if not kept:
            return
        rows, memory = [rows[place] for place in kept], memory[kept]
        network = self.model.network
        # Another caption of each row, as in training, where all are drawn.
        ids, targets = self._written(
            [row.captions[n % len(row.captions)] for n, row in enumerate(rows)]
        )
        self._count(found, network.caption_states(ids, None, memory), targets)
        prompts = [list(self.words.begin)] * len(rows)
        found.captions += self._write(network.writer(memory), prompts, LONGEST)
        found.captioned += rows

    def _answers(self, numbers: list[int], memory: Tensor, found: Predictions) -> None:
        questions = [self.images.rows[number].questions for number in numbers]
        kept = [place for place, each in enumerate(questions) if each]
        if not kept:
            return
        each = max(map(len, questions))
        # Every picture has as many questions; those that only fill up aren't scored.
        some = [n * each + m for n, place in enumerate(kept) for m in range(len(questions[place]))]
        filled = [(*questions[p], *[questions[p][-1]] * each)[:each] for p in kept]
        ids, keep = self._read([one.question for of_one in filled for one in of_one])
        states = self.model.network.read(ids, keep, memory[kept])[some]  # (n, T, D)
        keep = keep[some]
        said = [(numbers[place], one) for place in kept for one in questions[place]]
        ids, targets = self._written([one.answers[0] for _, one in said])
        self._count(found, self.model.network.answer_states(ids, None, states, keep), targets)
        writer = self.model.network.writer(states, keep)
        prompts = [list(self.words.begin)] * len(said)
        found.answers += self._write(writer, prompts, SHORTEST, self.candidates)
        found.questions += said

    def _match(self, numbers: list[int], memory: Tensor, found: Predictions) -> None:
        rows = [self.images.rows[number] for number in numbers]
        kept = [place for place, row in enumerate(rows) if row.captions]
        if not kept:
            return
        texts: list[str] = []
        for n, place in enumerate(kept):
            row = rows[place]
            own = row.captions[n % len(row.captions)]
            others = [rows[kept[(n + more) % len(kept)]] for more in range(1, 4)]
            hard = negatives(row.scene)[:1] if row.scene is not None else ()
            texts += [own, wrong_caption(row, others), hard[0] if hard else ""]
        ids, keep = self._read([text or "nothing" for text in texts])
        logits = self.model.network.match_logits(ids, keep, memory[kept]).float()  # (3 P, 2)
        real = torch.tensor([bool(text) for text in texts], device=logits.device)
        chances = logits.softmax(-1)[:, 1].masked_fill(~real, torch.nan)
        found.chances += chances.view(-1, 3).tolist()
        if self.model.config.head.kind == "matching":
            wanted = (torch.arange(len(texts), device=logits.device) % 3 == 0).long()
            loss = F.cross_entropy(logits[real], wanted[real], reduction="sum")
            found.losses.append((float(loss), int(real.sum())))

    def _count(self, found: Predictions, states: Tensor, targets: Tensor) -> None:
        loss, count = word_loss(self.model.network.head, states, targets)
        found.losses.append((float(loss), count))

    @property
    def words(self) -> BlipWords:
        """How the model reads and writes texts."""
        return BlipWords.of(tokenizer_of(self.model), self.model.config.context)

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n, T) ids and keep, as the encoder reads texts; what doesn't fit is cut."""
        words = self.words
        rows = [[*words.before, *row, *words.after] for row in self._cut(texts)]
        ids, keep = padded(rows, words.pad)
        return ids.to(self.precision.device), keep.to(self.precision.device)

    def _written(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(n, U) ids and targets, as the decoder writes texts; what doesn't fit is cut."""
        words = self.words
        ids, targets = targets_of([words.begin] * len(texts), self._ended(texts), words.pad)
        return ids.to(self.precision.device), targets.to(self.precision.device)

    def _cut(self, texts: Sequence[str]) -> list[list[int]]:
        words = self.words
        return [ids[: words.room].tolist() for ids in words.plain(texts)]

    def _ended(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as they are written, their end included; what doesn't fit is cut."""
        return [[*row, self.words.end] for row in self._cut(texts)]

    def _write(
        self, writer: Any, prompts: list[list[int]], most: int, candidates: Sequence[str] = ()
    ) -> list[str]:
        """The likeliest text after each prompt, or the likeliest of the candidates.

        It is looked for by beams where the model is to have them, else token by token.
        """
        words = self.words
        if candidates:
            best = rank(writer, prompts, self._ended(candidates)).argmax(1).tolist()
            return [candidates[number] for number in best]
        said = GenerationSettings(do_sample=False, max_new_tokens=most)
        search = said.resolve(self.model.generation)
        if isinstance(search, BeamSearch):
            found = beam_search(writer, prompts, search, eos=[words.end])
            return [words.tokenizer.decode(each[0].ids).strip() for each in found]
        done = generate(writer, prompts, search, eos=[words.end])
        return [words.tokenizer.decode(each.ids).strip() for each in done]


def _logged(name: str) -> bool:
    """Whether a figure belongs in a log: baselines are the same each time."""
    return not name.startswith(("majority", "blind"))


# Evaluation of a GPT with gated cross-attention.


@dataclass
class FlamingoScorer(BlipScorer):
    """As `BlipScorer`: the same figures, of a network that reads the question as it writes."""

    @property
    def words(self) -> BlipWords:
        return gpt_words(tokenizer_of(self.model), self.model.config.context)

    def _measured(self) -> list[Measure]:
        known = {"captions": self._captions, "answers": self._answers}
        return [measure for name, measure in known.items() if self.kind in (name, "joint")]

    def _captions(self, numbers: list[int], memory: Tensor, found: Predictions) -> None:
        rows = [self.images.rows[number] for number in numbers]
        kept = [place for place, row in enumerate(rows) if row.captions]
        rows = [rows[place] for place in kept]
        texts = [row.captions[n % len(row.captions)] for n, row in enumerate(rows)]
        prompts = [list(self.words.begin)] * len(rows)
        found.captions += self._written_after(prompts, texts, memory[kept], found, LONGEST)
        found.captioned += rows

    def _answers(self, numbers: list[int], memory: Tensor, found: Predictions) -> None:
        questions = [
            (place, number, one)
            for place, number in enumerate(numbers)
            for one in self.images.rows[number].questions
        ]
        prompts = prompt_ids(self.words, [one.question for _, _, one in questions])
        texts = [one.answers[0] for _, _, one in questions]
        memory = memory[[place for place, _, _ in questions]]
        found.answers += self._written_after(
            prompts, texts, memory, found, SHORTEST, self.candidates
        )
        found.questions += [(number, one) for _, number, one in questions]

    def _written_after(
        self,
        prompts: list[list[int]],
        texts: list[str],
        memory: Tensor,
        found: Predictions,
        most: int,
        candidates: Sequence[str] = (),
    ) -> list[str]:
        """What is written after each prompt; counts the loss of what should be."""
        if not prompts:
            return []
        words, network = self.words, self.model.network
        ended = zip(prompts, self._ended(texts), strict=True)
        rest = [said[: words.context + 1 - len(prompt)] for prompt, said in ended]
        ids, targets = (x.to(memory.device) for x in targets_of(prompts, rest, words.pad))
        states = network.states(ids, memory=memory)
        loss, count = token_loss(states, network.head, targets)
        found.losses.append((float(loss), count))
        return self._write(network.writer(memory), prompts, most, candidates)

    def _cut(self, texts: Sequence[str]) -> list[list[int]]:
        return super()._cut([answer_text(text) for text in texts])


MOST_MEASURED = 400  # scenes that are measured on, of combinations that training never shows
MOST_CANDIDATES = 1000  # answers that are ranked: the commonest of the training rows


def opened(
    data: ImageTextConfig,
    name: str,
    *,
    split: str | None = None,
    size: int = 64,
    option: str = "data.most_broken",
) -> Dataset:
    """The rows of a source, as a recipe says of its columns; of scenes, those to measure on."""
    if name == SCENES:
        return heldout_image_text_scenes(split or "test", MOST_MEASURED, size=size)
    return data.open(name, split, option=option)


def with_parts(head: str, rows: Dataset, where: str) -> Dataset:
    """The rows that have what a head is for: a caption, or a question; joint takes all.

    Raises:
        BedstoneError: none has it.
    """
    asks = head == "answers"
    kept = [i for i, row in enumerate(rows) if (row.questions if asks else row.captions)]
    if not kept and asks:
        raise BedstoneError(
            f"{where}: no row has a question with an answer. "
            f"{name_columns('question', 'answer')} Or choose task: image-to-text."
        )
    if not kept:
        raise BedstoneError(
            f"{where}: no row has a caption, which {head} needs. {name_columns('text')} "
            "Or choose task: visual-question-answering."
        )
    return rows if head == "joint" or len(kept) == len(rows) else rows.pick(kept)


def question_only_baseline(rows: Dataset) -> QuestionOnlyBaseline | None:
    """The question-only baseline of training rows; None where they have no questions."""
    questions = [(one.question, one.answers) for row in rows for one in row.questions]
    return QuestionOnlyBaseline(questions) if questions else None


def majority_caption(rows: Dataset) -> str:
    """The commonest caption of rows, a baseline; empty where they have none."""
    said = Counter(caption for row in rows for caption in row.captions)
    return said.most_common(1)[0][0] if said else ""


def answer_vocabulary(rows: Dataset) -> tuple[str, ...]:
    """The commonest answers of rows, to choose among."""
    return tuple(answer for answer, _ in rows.answers.most_common(MOST_CANDIDATES))


# Tasks of image-text models, and the head that the network of each has.
IMAGE_TEXT_TASKS = {
    "image-to-text": "captions",
    "visual-question-answering": "answers",
    "image-text-matching": "matching",
    "joint": "joint",
}


# `bedstone evaluate` for an image-text model.

LEARNT = 5000  # scenes that the baselines know, where a recipe's own aren't fewer


def evaluate_image_text(
    model: Model,
    data: str,
    precision: Precision,
    *,
    column: str = "",
    split: str | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Prints and returns the figures over all rows, with 95 % intervals.

    Columns are those of the model's own recipe where it has one. Beside the accuracy of answers
    stand the majority and question-only baselines of the rows that the model learnt from, where
    these can still be read.

    Args:
        model: for captions, answers, matching, or all.
        data: rows, as `data.fields` reads them, or `scenes`.
        column: the column of captions, where it isn't the recipe's.

    Raises:
        BedstoneError: the rows can't be read, or lack what the model is for.
    """
    recipe = model.record.get("recipe") or {}
    settings = recorded_data(ImageTextConfig, model.record)
    given = {"text": column} if column else {}
    columns = recorded_columns(model.record, data, given, split=split, images=True)
    measured = replace(settings, columns=columns)
    rows = opened(measured, data, split=split, size=max(model.config.image.size), option="")
    kind = model.config.head.kind
    kind = (
        IMAGE_TEXT_TASKS[recipe.get("task", "visual-question-answering")]
        if kind == "language"
        else kind
    )
    rows = with_parts(kind, rows, f"data {data!r}")
    if model.processor is None:
        model.processor = fresh_processor(model.config)
    learnt = training_rows(settings, recipe)
    made = FlamingoScorer if model.config.layout == FLAMINGO else BlipScorer
    scorer = made(
        model,
        cached_images(rows, model.processor, settings, "reading pictures", as_json),
        precision,
        None if learnt is None else question_only_baseline(learnt),
        answer_vocabulary(learnt) if learnt is not None and recipe.get("rank") else (),
        blank=settings.blank,
        usual="" if learnt is None else majority_caption(learnt),
        kind=kind,
    )
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = scorer.figures(progress=bar.update)
    record = {name: figures.record() for name, figures in found.items()}
    notes = []
    if "answers" in found and learnt is None:
        notes.append(f"No baselines: {settings.source} can't be read any more.")
    notes += filter(None, [rows.faults.left_out()])
    title = f"{model.path} on {data}"
    parts = {f"{title}: {name}": figures for name, figures in found.items()}
    return present(record, parts, notes=notes, as_json=as_json)


def training_rows(settings: ImageTextConfig, recipe: dict[str, Any]) -> Dataset | None:
    """The training rows of a model; None where they aren't known or can't be read any more."""
    if not recipe:
        return None
    if settings.source == SCENES:
        count = min(settings.most_rows or LEARNT, LEARNT)
        seed = int(recipe.get("seed", 0))
        return image_text_scenes(count, seed=seed, objects=settings.things, captions="none")
    try:
        return opened(settings, settings.source, split=settings.split)
    except BedstoneError:
        return None
