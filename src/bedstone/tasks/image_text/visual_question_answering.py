"""visual-question-answering: short answers to questions about images.

Shapes: P images, n = m P questions (row i of image i // m), T tokens, C candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.generation.ranking import rank
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch
from bedstone.generation.structure import KINDS
from bedstone.settings import whole
from bedstone.tasks.image_text.engine import (
    ImageTextGenerationOptions,
    ImageTextTask,
    answers,
    by_count,
    by_value,
    image_of,
    ranked,
    some_at_a_time,
    texts_of,
)
from bedstone.tasks.images.engine import LabelledQuery, is_image
from bedstone.tasks.task import shown

NEW_TOKENS = 16  # of an answer, at most, where nothing says how many


@dataclass(frozen=True)
class VQAOptions(ImageTextGenerationOptions):
    """Options of visual-question-answering.

    Attributes:
        question: what is asked of images that come without a question of their own.
        top_k: how many answers to give, best first.
        candidates: the answers to choose among; None takes those that the model learnt from,
            where it says which these are.
        free: write answers freely, whatever the model learnt from.
        truncation: cut a question that is too long, and say so.
    """

    question: str | None = None
    top_k: int = whole(1, default=5)
    candidates: Sequence[str] | None = None
    free: bool = False
    truncation: bool | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None:
            object.__setattr__(self, "candidates", texts_of(self.candidates, "candidates"))
            if self.free:
                raise BedstoneError("free: was asked for beside candidates. Leave one out.")

    @property
    def other_meaning(self) -> tuple[str, ...]:
        return ("top_k",)


@dataclass(frozen=True)
class Question(LabelledQuery):
    """An image, a question, and candidate answers; without candidates the answer is generated."""

    ids: tuple[int, ...] = ()
    candidates: tuple[str, ...] = ()


class VisualQuestionAnswering(ImageTextTask):
    """An image and a question -> [{"score", "answer"}], best first.

    Of candidates a score is the probability that the model would give this answer, if it had to
    give one of them; of answers that are written freely, that it would write it.
    """

    name = "visual-question-answering"
    fields = ("image", "questions")
    metric = "vqa"
    asks = "a network that answers questions about pictures (BlipForQuestionAnswering)"
    settings = VQAOptions
    keys = ("image", "question", "candidates")

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self.known_answers = self._distinct(learnt_answers(model))

    @classmethod
    def fits(cls, model: Model) -> bool:
        return answers(model)

    def __call__(self, inputs: Any = None, question: Any = None, **options: Any) -> Any:
        """The answers to a question about an image.

        Args:
            inputs: or `image`: an image, a list or a generator of them; or one or several
                dictionaries with `image` and `question`.
            question: a text; or a list: each question of each image, all of the first question
                first, as version 4 has it.
        """
        inputs = image_of(inputs, options)
        if question is None or isinstance(question, str):
            given = {} if question is None else {"question": question}
            return super().__call__(inputs, **given, **options)
        if not isinstance(question, list | tuple):
            raise BedstoneError(
                f"{self.name}: question: {shown(question)} was given; expected a text, or a list."
            )
        images = [inputs] if is_image(inputs) else inputs
        if not isinstance(images, list | tuple):
            raise BedstoneError(
                f"{self.name}: {shown(inputs)} was given with a list of questions; expected a "
                "picture, or a list."
            )
        # in this order each image is seen once
        rows = [{"image": one, "question": text} for one in images for text in question]
        results, each = super().__call__(rows, **options), len(question)
        return [results[at] for first in range(each) for at in range(first, len(results), each)]

    def prepare(self, value: Any, options: VQAOptions) -> Question:
        query = super().prepare(value, options)
        own = value if isinstance(value, dict) else {}
        question = own.get("question", options.question)
        if question is None:
            raise BedstoneError(
                "question: none was given; say what is asked of the picture, such as "
                'question="What colour is the car?".'
            )
        candidates = options.candidates
        if candidates is None:
            candidates = () if options.free or _formed(options) else self.known_answers
        if own.get("candidates") is not None:
            candidates = texts_of(own["candidates"], "candidates")
        form = self.engine.form
        read = self.cut(question, form.question, form.room, "question", options, form.kept)
        ids = form.framed(read)
        if candidates:
            self.candidate_ids(tuple(candidates), options, self._begun([form.prompt(ids)]))
        else:
            self._way(options)
        return Question(query.image, ids=tuple(ids), candidates=tuple(candidates))

    def say(
        self, memory: Tensor, rows: Sequence[Sequence[Question]], options: VQAOptions
    ) -> list[list[Any]]:
        engine = self.engine
        results: list[list[Any]] = [[] for _ in rows]
        for places, states, questions in by_count(memory, rows):
            reading = engine.form.read(engine.network, [row.ids for row in questions], states)
            found: list[Any] = [None] * len(questions)
            for candidates, same in by_value(questions, lambda row: row.candidates):
                for part in some_at_a_time(same):
                    best = self._best(*reading.part(part), candidates, options)
                    for at, own in zip(part, best, strict=True):
                        found[at] = own
            each = len(questions) // len(places)
            for number, place in enumerate(places):
                results[place] = found[number * each : (number + 1) * each]
        return results

    def _best(
        self,
        writer: Any,
        prompts: Sequence[Sequence[int]],
        candidates: tuple[str, ...],
        options: VQAOptions,
    ) -> Iterator[list[dict[str, Any]]]:
        """The likeliest answers to each question; of candidates, where there are any."""
        if candidates:
            given = self.candidate_ids(candidates, options, self._begun(prompts))
            for scores in rank(writer, prompts, given).softmax(-1):  # of (n, C)
                best = ranked(candidates, scores)[: options.top_k]
                yield [{"score": score, "answer": text} for text, score in best]
            return
        engine = self.engine
        for own in engine.write(writer, prompts, self._way(options)):
            found: dict[str, dict[str, Any]] = {}
            distinct = {tuple(one.ids): one for one in own}  # chance repeats itself
            for ids, one in distinct.items():  # the same words may be other tokens
                text = engine.text(ids)
                answer = {"score": 0.0, "answer": text, **one.wholeness}
                found.setdefault(text, answer)["score"] += one.probability
            yield sorted(found.values(), key=lambda one: -one["score"])[: options.top_k]

    def _begun(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that the longest prompt has more than what every text begins with."""
        return max(max(map(len, prompts)) - len(self.engine.words.begin), 0)

    def _distinct(self, answers: Sequence[str]) -> tuple[str, ...]:
        """Of answers that are written with the same tokens, such as Yes and yes, the first."""
        found: dict[bytes, str] = {}
        for text, ids in zip(answers, self.engine.form.output(answers), strict=True):
            found.setdefault(ids.tobytes(), text)
        return tuple(found.values())

    def _way(self, options: VQAOptions) -> Sampling | BeamSearch:
        """How answers are generated: several are searched for by beams, unless chance is given."""
        best, own = options.top_k, self.model.generation
        settings = options.generation()
        if best > 1 and not settings.samples(own) and not _formed(options):
            beams = settings.num_beams or own.get("num_beams") or max(best, 3)
            several = settings.num_return_sequences or min(best, beams)
            settings = replace(settings, num_beams=beams, num_return_sequences=several)
        return settings.resolve(own, 1, usual=NEW_TOKENS, tokenizer=self.engine.tokenizer)


def _formed(options: VQAOptions) -> bool:
    """Whether answers of a form are asked for, which are written freely, one at a time."""
    return any(name in options.generation().given for name in KINDS)


def learnt_answers(model: Model) -> tuple[str, ...]:
    """The answers in the model's training data, if its record holds them, commonest first."""
    record = model.record
    data = record.get("data")
    known = record.get("answers") or (data.get("answers") if isinstance(data, dict) else None)
    if not isinstance(known, list):
        return ()
    return tuple(dict.fromkeys(text for text in known if isinstance(text, str) and text.strip()))
