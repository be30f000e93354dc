"""Tasks by prompting: a decoder does a task that it wasn't trained for, by examples in its prompt.

In-context learning (Brown et al., 2020, section 2): a template writes examples with their outputs
and the row in question, and the model goes on. A label is chosen by the likelihood of its words
(`generation.likelihood`) or read from a generated answer; a text is generated.

Calibration divides a label's probability by that of the same prompt with an input without content
(Zhao et al., 2021, equation 2 with b = 0), or with random words of the examples (Fei et al., 2023,
https://arxiv.org/abs/2305.19148, equation 4).

Shapes: n rows, L labels.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.data.dataset import Dataset
from bedstone.data.open import open_dataset
from bedstone.data.text.demonstrations import SELECTIONS, Demonstrations, Embed
from bedstone.data.text.prompt_template import PromptTemplate, open_template, with_labels
from bedstone.data.write import dictionaries
from bedstone.errors import BedstoneError
from bedstone.generation.likelihood import Likelihood
from bedstone.generation.text import Written
from bedstone.remote.model import RemoteModel
from bedstone.settings import one_of, optional, whole
from bedstone.tasks.task import Options, Task, shown
from bedstone.tasks.text.feature_extraction import can_embed, embedder_of
from bedstone.tasks.text.writers import LocalWriter, RemoteWriter, Writer

SHOTS = 8  # where examples are given, and not how many of them
CHATS = ("auto", "turns", "message", "none")
SCORES = ("sum", "token", "byte", "pmi", "generate")
CALIBRATIONS = ("none", "content-free", "domain")
DRAWN = 20  # random texts of domain calibration, as Fei et al. have
NO_LABEL = "(no label)"  # in the place of a label, where a generated answer names none
KEPT = 8192  # likelihoods that are kept, so that calibrating anew costs nothing
TOGETHER = 16  # prompts continued at a time


@dataclass(frozen=True)
class PromptOptions(Options):
    """Prompting options.

    Attributes:
        examples: rows with their outputs: a file, a list of dictionaries, a mapping of columns, a
            DataFrame or a `Dataset`.
        shots: number of examples in a prompt; 8 by default, fewer where fewer are given.
        select: how examples are chosen: random; balanced, equally many of each label; similar, the
            most similar to each input by the embeddings of `embed`.
        order: of the examples: 0 as drawn (similar ones: the most similar last), n shuffles them.
        seed: of the draw of examples.
        embed: a model of embeddings for similar examples, such as minilm.
        template: how rows are written: a YAML file, the name of a built-in template, or its values.
        chat: use of the model's chat template: turns writes each example as two messages, message
            all in one; none writes plain text; auto is turns where the model has a chat template
            and its answer is generated.
        overflow: of a prompt longer than the model's context: drop leaves out its first examples,
            refuse is an error.
    """

    examples: Any = None
    shots: int | None = optional(whole(0))
    select: str = one_of(*SELECTIONS, default="random")
    order: int = whole(0, default=0)
    seed: int = whole(0, default=0)
    embed: Any = None
    template: Any = ""
    chat: str = one_of(*CHATS, default="auto")
    overflow: str = one_of("drop", "refuse", default="drop")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("truncation", "max_length", "stride"):
            if (value := getattr(self, name)) is not None:
                raise BedstoneError(
                    f"{name}: {shown(value)} was given; prompts are read whole, and overflow says "
                    "what becomes of long ones. Leave it out."
                )


@dataclass(frozen=True)
class LabelOptions(PromptOptions):
    """Options of tasks that choose among labels.

    Attributes:
        labels: words of each label: {label: words}, a list, or label=words with commas between;
            by default the template's, else the labels of the examples.
        score: of a label: the log-probability of its words as a sum, per token or per byte; pmi
            subtracts that after the template's last words alone (Holtzman et al., 2021); generate
            looks for a label in a generated answer.
        calibration: none, content-free or domain.
        max_new_tokens: of a generated answer.
    """

    labels: Any = None
    score: str = one_of(*SCORES, default="sum")
    calibration: str = one_of(*CALIBRATIONS, default="none")
    max_new_tokens: int = whole(1, default=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score == "generate" and self.calibration != "none":
            raise BedstoneError(
                f"calibration: {self.calibration} was given with score=generate, which has no "
                "probabilities to calibrate. Leave one out."
            )


@dataclass(frozen=True)
class Labelled:
    """A row with its output, as a template reads it.

    Attributes:
        fields: of its input, and its columns.
        outputs: fields of its output.
        label: by which examples are balanced; "" where a task has none.
        names: labels that need words: of a row one, of entities their types.
    """

    fields: Mapping[str, Any]
    outputs: Mapping[str, Any]
    label: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A row in question.

    Attributes:
        fields: of the row, by name.
        text: the prompt.
        candidates: continuations to score, by label.
    """

    fields: Mapping[str, Any]
    text: str
    candidates: Mapping[str, str]


@dataclass(frozen=True)
class _Setup:
    """What all prompts of some options share."""

    options: PromptOptions
    template: PromptTemplate
    rows: list[Labelled]
    examples: Demonstrations | None


class Prompted(Task):
    """Base of tasks by prompting.

    Attributes:
        dropped: (prompts, examples): how many prompts lost examples for want of room, and how many.
        unread: generated answers that the template's pattern didn't fit, or that name no label.
    """

    asks = "a decoder with its language head"
    settings: ClassVar[type[Any]] = PromptOptions

    @classmethod
    def fits(cls, model: Model) -> bool:
        return model.writes_text

    def open(self, precision: str) -> None:
        if isinstance(self.model, RemoteModel):
            self.writer: Writer = RemoteWriter(self.model)
        else:
            super().open(precision)
            self.writer = LocalWriter(self.model, self.engine)
        self.dropped, self.unread = (0, 0), 0
        self._setup: _Setup | None = None
        self._embedders: dict[Any, Embed] = {}

    # What a task says.

    def fields_of(self, value: Any, options: Any) -> dict[str, Any]:
        """An input's fields by name.

        Raises:
            BedstoneError: it is no input of the task.
        """
        raise NotImplementedError

    def labelled(self, rows: Dataset, template: PromptTemplate, options: Any) -> list[Labelled]:
        """Examples from rows.

        Raises:
            BedstoneError: a row lacks something, naming it.
        """
        raise NotImplementedError

    def general(self, template: PromptTemplate, options: Any) -> dict[str, Any]:
        """Fields that all rows have."""
        return {}

    def candidates(
        self, fields: Mapping[str, Any], template: PromptTemplate, options: Any
    ) -> dict[str, str]:
        """Continuations to score, by label; none where a text is written."""
        return {}

    # Prompts.

    def prepare(self, value: Any, options: Any) -> Prompt:
        setup = self.setup(options)
        fields = {**self.general(setup.template, options), **self.fields_of(value, options)}
        candidates = self.candidates(fields, setup.template, options)
        return Prompt(fields, self.prompt(fields, candidates, options), candidates)

    def prompt(self, fields: Mapping[str, Any], candidates: Mapping[str, str], options: Any) -> str:
        """The prompt of a row, with as many examples as fit.

        Raises:
            BedstoneError: it doesn't fit the model's context.
        """
        setup = self.setup(options)
        template, examples = setup.template, setup.examples
        given = template.write("input", fields)
        head = template.write("instruction", fields)
        shots = self.shots(options)
        chosen: list[int] = []
        if examples is not None:
            chosen = examples.choose(
                shots, options.select, seed=options.seed, order=options.order, given=given
            )
        elif shots:
            raise BedstoneError(
                f"shots: {shots} were wanted, and there are no examples. Give rows as examples."
            )
        room = self.writer.context - self._answer_tokens(candidates, options)
        for first in range(len(chosen) + 1):
            shown_rows = [
                (examples.inputs[row], examples.outputs[row])  # type: ignore[union-attr]
                for row in chosen[first:]
            ]
            text = self._written(template, head, shown_rows, given, options)
            size = self.writer.size(text)
            if size <= room:
                break
            if options.overflow == "refuse" or first == len(chosen):
                raise BedstoneError(
                    f"the prompt has {size:,} tokens with {len(chosen) - first} examples; the "
                    f"model's context of {self.writer.context:,} leaves {room:,} beside the "
                    "answer. "
                    + (
                        "Lower shots, or shorten the text."
                        if first < len(chosen)
                        else "Shorten the text, or the template."
                    )
                )
        if first:
            self.dropped = (self.dropped[0] + 1, self.dropped[1] + first)
            self.tell(
                f"prompts with {len(chosen)} examples are longer than the model's context of "
                f"{self.writer.context:,} tokens: the first examples are dropped.",
                once=f"overflow {len(chosen)}",
            )
        return text

    def _written(
        self,
        template: PromptTemplate,
        head: str,
        examples: Sequence[tuple[str, str]],
        given: str,
        options: PromptOptions,
    ) -> str:
        if not self.chats(options):
            return template.text(head, examples, given)
        turns = options.chat != "message"
        return self.writer.render(template.messages(head, examples, given, turns=turns))

    def chats(self, options: PromptOptions) -> bool:
        """Whether prompts are conversations."""
        known = self.writer.chats
        if options.chat in ("turns", "message") and not known:
            raise BedstoneError(
                f"chat: {options.chat} was given, and the model has no chat template. Take none."
            )
        if options.chat == "auto":
            return known and self._generates(options)
        return known and options.chat != "none"

    def _generates(self, options: Any) -> bool:
        """Whether answers are generated, not scored."""
        return getattr(options, "score", "generate") == "generate"

    def _answer_tokens(self, candidates: Mapping[str, str], options: Any) -> int:
        """Tokens of an answer that are read after the prompt, at most."""
        if self._generates(options):
            return int(options.max_new_tokens)
        return max(self.writer.answer_size(each) for each in candidates.values()) - 1

    def shots(self, options: PromptOptions) -> int:
        """How many examples a prompt is to have."""
        if options.shots is not None:
            return options.shots
        examples = self.setup(options).examples
        return 0 if examples is None else min(SHOTS, len(examples))

    def setup(self, options: PromptOptions) -> _Setup:
        """The template and examples of some options; read once while they stay."""
        names = ("examples", "template", "embed", "labels", "src_lang", "tgt_lang")
        last = self._setup
        if last is None or any(_differ(last.options, options, name) for name in names):
            given = self._rows(options.examples)
            template = open_template(options.template or self.usual(given), self.name)
            if getattr(options, "labels", None) is not None:
                template = with_labels(template, options.labels)  # type: ignore[attr-defined]
            rows = [] if given is None else self.labelled(given, template, options)
            names_of = sorted({name for row in rows for name in row.names})
            if names_of and not template.labels:
                template = with_labels(template, names_of)
            shared = self.general(template, options)
            inputs, outputs = (
                [template.write(part, {**shared, **row.fields, **row.outputs}) for row in rows]
                for part in ("input", "output")
            )
            examples = None
            if given is not None:
                classes = [row.label for row in rows if row.label]
                examples = Demonstrations(
                    inputs, outputs, classes, given.name, self._embed(options)
                )
            self._setup = last = _Setup(options, template, rows, examples)
        return last

    def usual(self, rows: Dataset | None) -> str:
        """The name of the template where none is given; `rows` are the examples."""
        return self.name

    def _rows(self, rows: Any) -> Dataset | None:
        if rows is None or isinstance(rows, Dataset):
            return rows
        if isinstance(rows, str | Path):
            return open_dataset(str(rows))
        return Dataset(dictionaries(rows, "examples"), "examples")

    def _embed(self, options: PromptOptions) -> Embed | None:
        model = options.embed
        if model is None or model == "":
            return None
        key = model if isinstance(model, str) else id(model)
        if key not in self._embedders:
            opened = model if isinstance(model, Model) else open_model(str(model))
            if not can_embed(opened):
                raise BedstoneError(
                    f"embed: {shown(model)} gives no embeddings; name a model of sentences, such "
                    "as minilm."
                )
            self._embedders[key] = embedder_of(opened).texts
        return self._embedders[key]

    # Generated answers.

    def answers(
        self, prompts: Sequence[str], template: PromptTemplate, options: Any
    ) -> Iterator[tuple[str | None, Written]]:
        """What the model writes after each prompt: the answer in it, and all of it."""
        size = options.batch_size or TOGETHER
        for start in range(0, len(prompts), size):
            part = list(prompts[start : start + size])
            for one in self.writer.write(part, options.max_new_tokens, template.stop):
                found = template.find(one.text)
                self.unread += found is None
                yield found, one


class Choosing(Prompted):
    """Base of tasks that choose among labels."""

    settings = LabelOptions

    def open(self, precision: str) -> None:
        super().open(precision)
        self._known: dict[tuple[str, str], Likelihood] = {}

    def general(self, template: PromptTemplate, options: Any) -> dict[str, Any]:
        return {"labels": ", ".join(template.labels.values())}

    def blank(self, fields: Mapping[str, Any], text: str) -> dict[str, Any]:
        """The fields of an input with a text in place of all that it says."""
        raise NotImplementedError

    def probabilities(self, rows: Sequence[Prompt], options: LabelOptions) -> list[np.ndarray]:
        """The probability of each label of each row, (L,)."""
        if options.score == "generate":
            return self._generated(rows, options)
        found = self._scores(rows, options)
        if options.calibration != "none":
            texts = self._contents(options)
            blanks = [self._blanks(row, texts, options) for row in rows]
            scores = iter(self._scores([each for own in blanks for each in own], options))
            found = [
                own - np.log(np.mean([_softmax(next(scores)) for _ in texts], axis=0) + 1e-30)
                for own in found
            ]
        return [_softmax(own) for own in found]

    def _scores(self, rows: Sequence[Prompt], options: LabelOptions) -> list[np.ndarray]:
        """The score of each label of each row, (L,), in nats."""
        chat = self.chats(options)
        pairs = [
            (row.text, each.strip() if chat else each)
            for row in rows
            for each in row.candidates.values()
        ]
        values = [_scaled(each, options.score) for each in self._likelihoods(pairs)]
        if options.score == "pmi":
            cue = self.setup(options).template.cue
            context = self._written(self.setup(options).template, "", (), cue, options)
            alone = self._likelihoods([(context, each) for _, each in pairs])
            values = [own - other.log_probability for own, other in zip(values, alone, strict=True)]
        scores = iter(values)
        return [np.array([next(scores) for _ in row.candidates]) for row in rows]

    def _likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Likelihoods of continuations, each of which is scored once while it is kept."""
        new = list(dict.fromkeys(pair for pair in pairs if pair not in self._known))
        if len(self._known) + len(new) > KEPT:
            self._known, new = {}, list(dict.fromkeys(pairs))
        self._known.update(zip(new, self.writer.score(new), strict=True))
        return [self._known[pair] for pair in pairs]

    def _contents(self, options: LabelOptions) -> Sequence[str]:
        """Inputs without content: those of the template, or random words of the examples."""
        setup = self.setup(options)
        if options.calibration == "content-free":
            return setup.template.content_free
        texts = [" ".join(map(str, self.content(row.fields))) for row in setup.rows]
        words = [text.split() for text in texts]
        every = [word for own in words for word in own]
        if not every:
            raise BedstoneError(
                "calibration: domain draws words from examples, and there are none. Give examples, "
                "or take content-free."
            )
        draw = random.Random(options.seed)
        size = max(1, round(len(every) / len(words)))
        return [" ".join(draw.choices(every, k=size)) for _ in range(DRAWN)]

    def content(self, fields: Mapping[str, Any]) -> list[str]:
        """The texts of an input."""
        raise NotImplementedError

    def _blanks(self, row: Prompt, texts: Sequence[str], options: LabelOptions) -> list[Prompt]:
        given = row.fields
        made = []
        for text in texts:
            fields = self.blank(given, text)
            made.append(
                Prompt(fields, self.prompt(fields, row.candidates, options), row.candidates)
            )
        return made

    def _generated(self, rows: Sequence[Prompt], options: LabelOptions) -> list[np.ndarray]:
        """1 for the label that a generated answer names first, 0 for all where it names none."""
        template = self.setup(options).template
        found = []
        for row, (answer, _) in zip(
            rows, self.answers([row.text for row in rows], template, options), strict=True
        ):
            scores = np.zeros(len(row.candidates))
            named = _first_named(answer or "", [each.strip() for each in row.candidates.values()])
            if named is None:
                self.unread += answer is not None
            else:
                scores[named] = 1.0
            found.append(scores)
        return found


def _differ(one: Any, other: Any, name: str) -> bool:
    first, second = getattr(one, name, None), getattr(other, name, None)
    if first is second:
        return False
    if name == "examples" and not isinstance(first, str | Path | list | tuple):
        return True  # columns and tables aren't compared value by value
    return bool(first != second)


def _scaled(found: Likelihood, score: str) -> float:
    size = {"token": found.tokens, "byte": found.bytes}.get(score, 1)
    return found.log_probability / max(size, 1)


def _softmax(values: np.ndarray) -> np.ndarray:
    raised: np.ndarray = np.exp(values - values.max())
    return raised / raised.sum()


def _first_named(answer: str, words: Sequence[str]) -> int | None:
    """Which of some words stands first in an answer, as a word of its own; the longest there."""
    places = []
    for number, each in enumerate(words):
        match = re.search(rf"(?<!\w){re.escape(each)}(?!\w)", answer, re.IGNORECASE)
        if match is not None:
            places.append((match.start(), -len(each), number))
    return min(places)[2] if places else None
