"""The tasks that a decoder does by prompting, with the inputs and results of their trained kin.

text-classification, zero-shot-classification and multiple-choice choose among labels;
token-classification, question-answering, translation and summarization read what is generated.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bedstone.data import labels
from bedstone.data.dataset import Dataset
from bedstone.data.labels import LETTERS, choice_row, listed_choices, right_choice
from bedstone.data.text.prompt_template import PromptTemplate, with_labels
from bedstone.data.text.seq2seq import pairs_of
from bedstone.errors import BedstoneError
from bedstone.generation.text import Written
from bedstone.metrics.ner import entity_spans
from bedstone.settings import at_least, whole
from bedstone.tasks.task import shown, text_of
from bedstone.tasks.text.prompting import (
    NO_LABEL,
    Choosing,
    Labelled,
    LabelOptions,
    Prompt,
    Prompted,
    PromptOptions,
)
from bedstone.tasks.text.text_classification import text_and_pair
from bedstone.tasks.text.zero_shot_classification import label_names

NOTHING = "none"  # of a text without entities
IMPOSSIBLE = "unanswerable"  # of a question without an answer
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian"}
LANGUAGES |= {"pt": "Portuguese", "nl": "Dutch", "pl": "Polish", "ru": "Russian", "cs": "Czech"}
LANGUAGES |= {"zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ar": "Arabic", "tr": "Turkish"}
LANGUAGES |= {"ro": "Romanian", "uk": "Ukrainian", "hi": "Hindi", "sv": "Swedish", "da": "Danish"}


@dataclass(frozen=True)
class ClassificationPromptOptions(LabelOptions):
    """Options of text-classification by prompting.

    Attributes:
        top_k: how many labels to give, best first; None gives all. Left out, it is one.
        return_all_scores: True gives all labels in the template's order.
    """

    top_k: Any = ""
    return_all_scores: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k != "":
            at_least(self, 1, "top_k", optional=True)


class PromptedClassification(Choosing):
    """Labels of a text or a pair, as `TextClassification` gives them.

    Where a generated answer names no label, the best one is `NO_LABEL`, with a score of 0.
    """

    name = "text-classification"
    fields = ("text", "label")
    metric = "classification"
    settings: ClassVar[type[Any]] = ClassificationPromptOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def usual(self, rows: Dataset | None) -> str:
        pair = rows is not None and rows.column("pair") is not None
        return "text-pair-classification" if pair else self.name

    def fields_of(self, value: Any, options: Any) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if isinstance(value, Mapping):
            more = {key: each for key, each in value.items() if key not in ("text", "text_pair")}
            value = {key: value[key] for key in ("text", "text_pair") if key in value}
        text, pair = text_and_pair(value)
        template = self.setup(options).template
        if pair is not None and not more and "text_pair" not in template.fields("input"):
            raise BedstoneError(
                f"the input is a pair of texts, and template {template.name} has no {{text_pair}}. "
                "Take template=text-pair-classification, or one of your own."
            )
        return {**more, "text": text, "text_pair": pair}

    def labelled(self, rows: Dataset, template: PromptTemplate, options: Any) -> list[Labelled]:
        texts, pair, column = rows.texts(rows.need("text")), rows.column("pair"), rows.need("label")
        pairs = rows.texts(pair, empty=True) if pair else [None] * len(rows)
        found = []
        for number, label in enumerate(labels.single(rows, column, None)):
            if template.labels and label not in template.labels:
                raise rows.fault(
                    number,
                    column,
                    f"has the label {label!r}, for which there is no label word",
                    f"Give labels, such as {label}=words, or a template that has it.",
                )
            fields = {**rows.rows[number], "text": texts[number], "text_pair": pairs[number]}
            words = template.labels.get(label, label)
            found.append(Labelled(fields, {"label": words}, label, (label,)))
        return found

    def candidates(
        self, fields: Mapping[str, Any], template: PromptTemplate, options: Any
    ) -> dict[str, str]:
        words = template.labels
        if not words:
            raise BedstoneError(
                f"labels: there is no label word: template {template.name} has none, and there are "
                "no examples. Give labels, such as labels=['good', 'bad']."
            )
        return _candidates(fields, template, words)

    def content(self, fields: Mapping[str, Any]) -> list[str]:
        return [fields[name] for name in ("text", "text_pair") if fields.get(name)]

    def blank(self, fields: Mapping[str, Any], text: str) -> dict[str, Any]:
        blanks = {name: text for name, each in fields.items() if isinstance(each, str)}
        return {**fields, **blanks, "labels": fields["labels"]}

    def results(self, rows: Sequence[Prompt], options: Any) -> Iterator[Any]:
        for row, scores in zip(rows, self.probabilities(rows, options), strict=True):
            pairs = zip(row.candidates, scores.tolist(), strict=True)
            named = [{"label": label, "score": score} for label, score in pairs]
            if options.top_k == "" and options.return_all_scores:
                yield named
                continue
            best = sorted(named, key=lambda each: -each["score"])
            if not scores.any():
                best = [{"label": NO_LABEL, "score": 0.0}, *best]
            yield best[0] if options.top_k == "" else best[: options.top_k]


def _candidates(
    fields: Mapping[str, Any], template: PromptTemplate, words: Mapping[str, str]
) -> dict[str, str]:
    """The output for each label.

    Raises:
        BedstoneError: two labels have the same words.
    """
    found = {
        label: template.write("output", {**fields, "label": each}) for label, each in words.items()
    }
    by_text: dict[str, str] = {}
    for label, text in found.items():
        other = by_text.setdefault(text.strip(), label)
        if other != label:
            raise BedstoneError(
                f"labels: {other!r} and {label!r} both have the words {text.strip()!r}, so nothing "
                "tells them apart. Give each its own."
            )
    return found


@dataclass(frozen=True)
class ZeroShotPromptOptions(LabelOptions):
    """Options of zero-shot-classification by prompting.

    Attributes:
        candidate_labels: a list, or one string with commas between.
    """

    candidate_labels: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        label_names(self.candidate_labels)


class PromptedZeroShot(PromptedClassification):
    """Labels that are named with the call: `sequence`, `labels`, `scores`, best first."""

    name = "zero-shot-classification"
    metric = "zero_shot"
    settings = ZeroShotPromptOptions

    def __call__(self, inputs: Any = None, candidate_labels: Any = None, **options: Any) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        inputs = options.pop("sequences", inputs)
        return Choosing.__call__(self, inputs, **options)

    def usual(self, rows: Dataset | None) -> str:
        return self.name

    def general(self, template: PromptTemplate, options: Any) -> dict[str, Any]:
        names = label_names(options.candidate_labels) or tuple(template.labels.values())
        return {"labels": ", ".join(names)}

    def candidates(
        self, fields: Mapping[str, Any], template: PromptTemplate, options: Any
    ) -> dict[str, str]:
        names = label_names(options.candidate_labels)
        if names:
            words = {each: template.labels.get(each, each) for each in names}
            return _candidates(fields, template, words)
        if not template.labels:
            raise BedstoneError(
                "candidate_labels: none were given; name what the text may be, such as "
                "candidate_labels=['sport', 'weather']."
            )
        return super().candidates(fields, template, options)

    def results(self, rows: Sequence[Prompt], options: Any) -> Iterator[Any]:
        for row, scores in zip(rows, self.probabilities(rows, options), strict=True):
            pairs = zip(row.candidates, scores.tolist(), strict=True)
            ranked = sorted(pairs, key=lambda each: -each[1])
            if not scores.any():
                ranked = [(NO_LABEL, 0.0), *ranked]
            yield {
                "sequence": row.fields["text"],
                "labels": [label for label, _ in ranked],
                "scores": [score for _, score in ranked],
            }


class MultipleChoice(Choosing):
    """{"question", "choices"} -> {"choice", "answer", "scores"}: which of several answers is right.

    An input may have a `context` too. `choice` counts from 0, and `scores` are in order. Where a
    generated answer names none, `choice` is None and `answer` is `NO_LABEL`.
    """

    name = "multiple-choice"
    fields = ("question", "choices", "answer")
    metric = "choices"
    settings = LabelOptions

    def fields_of(self, value: Any, options: Any) -> dict[str, Any]:
        found = self._fields(value)
        texts = [each.strip() for each in found["_choices"]]
        twice = next((each for each in texts if texts.count(each) > 1), None)
        if twice is not None and "_choices" not in value:  # a labelled row is taken as it is
            raise BedstoneError(
                f"the choices hold {twice[:80]!r} twice, so nothing tells them apart. Give each "
                "choice once."
            )
        return found

    def _fields(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise BedstoneError(
                f"the input is {shown(value)}; expected a dictionary of a question and choices."
            )
        choices = value.get("_choices") or listed_choices(value.get("choices"))
        if not isinstance(choices, list | tuple) or not 2 <= len(choices) <= len(LETTERS):
            raise BedstoneError(
                f"the choices are {shown(choices)}; expected a list of 2 to {len(LETTERS)} texts."
            )
        texts = [text_of(each, "a choice") for each in choices]
        lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]
        question = text_of(value.get("question"), "the question")
        return {**value, "question": question, "_choices": texts, "choices": "\n".join(lines)}

    def labelled(self, rows: Dataset, template: PromptTemplate, options: Any) -> list[Labelled]:
        found = []
        for number in range(len(rows)):
            fields = self._fields(choice_row(rows, number))
            right = right_choice(rows, number)
            found.append(Labelled(fields, _choice(fields["_choices"], right), LETTERS[right]))
        return found

    def candidates(
        self, fields: Mapping[str, Any], template: PromptTemplate, options: Any
    ) -> dict[str, str]:
        return {
            LETTERS[number]: template.write(
                "output", {**fields, **_choice(fields["_choices"], number)}
            )
            for number in range(len(fields["_choices"]))
        }

    def content(self, fields: Mapping[str, Any]) -> list[str]:
        return [fields["question"]]

    def blank(self, fields: Mapping[str, Any], text: str) -> dict[str, Any]:
        return {**fields, "question": text}

    def results(self, rows: Sequence[Prompt], options: Any) -> Iterator[Any]:
        for row, scores in zip(rows, self.probabilities(rows, options), strict=True):
            best = int(scores.argmax()) if scores.any() else None
            answer = NO_LABEL if best is None else row.fields["_choices"][best]
            yield {"choice": best, "answer": answer, "scores": scores.tolist()}


def _choice(choices: Sequence[str], number: int) -> dict[str, str]:
    return {"choice": choices[number], "letter": LETTERS[number], "label": LETTERS[number]}


# Tasks that read what is generated.


@dataclass(frozen=True)
class WritingPromptOptions(PromptOptions):
    """Options of tasks whose answers are generated.

    Attributes:
        max_new_tokens: of an answer.
    """

    max_new_tokens: int = whole(1, default=64)


def probability(found: Written) -> float:
    """Of a generated text, given its prompt."""
    return math.exp(sum(found.log_probabilities))


class Writing(Prompted):
    """Base of tasks whose answers are generated texts: {key_text: ...}."""

    settings = WritingPromptOptions
    fields = ("source", "target")
    key = ""

    def fields_of(self, value: Any, options: Any) -> dict[str, Any]:
        more = dict(value) if isinstance(value, Mapping) else {}
        source = more.get("source") if more else value
        return {**more, "source": text_of(source)}

    def labelled(self, rows: Dataset, template: PromptTemplate, options: Any) -> list[Labelled]:
        read = (getattr(options, "src_lang", None), getattr(options, "tgt_lang", None))
        translated = any("translation" in row for row in rows.rows)
        known = rows.column("source") is None or translated
        pairs = pairs_of(rows, rows.columns, *[each or "" for each in (read if known else ())])
        return [
            Labelled({**rows.rows[row], "source": source}, {"target": target})
            for row, source, target in zip(pairs.numbers, pairs.sources, pairs.targets, strict=True)
        ]

    def results(self, rows: Sequence[Prompt], options: Any) -> Iterator[Any]:
        template = self.setup(options).template
        for answer, found in self.answers([row.text for row in rows], template, options):
            text = found.text.strip() if answer is None else answer
            yield [{f"{self.key}_text": text, "score": probability(found)}]


class PromptedSummarization(Writing):
    """A text -> [{"summary_text": ..., "score": its probability}]."""

    name, key, metric = "summarization", "summary", "summaries"


@dataclass(frozen=True)
class TranslationPromptOptions(WritingPromptOptions):
    """Options of translation by prompting.

    Attributes:
        src_lang: the language of sources: a code, such as en, or a name.
        tgt_lang: the language to translate to.
    """

    src_lang: str | None = None
    tgt_lang: str | None = None


class PromptedTranslation(Writing):
    """A text -> [{"translation_text": ..., "score": its probability}]."""

    name, key, metric = "translation", "translation", "translations"
    settings = TranslationPromptOptions

    def general(self, template: PromptTemplate, options: Any) -> dict[str, Any]:
        named = {}
        for option, field in (("src_lang", "source_language"), ("tgt_lang", "target_language")):
            code = getattr(options, option)
            used = any(field in template.fields(part) for part in ("input", "instruction"))
            if code is None and used:
                raise BedstoneError(
                    f"{option}: none was given, and template {template.name} names it. Give a "
                    "language, such as de, or the task as translation_en_to_de."
                )
            named[field] = LANGUAGES.get(str(code), str(code))
        return named


@dataclass(frozen=True)
class AnswerPromptOptions(WritingPromptOptions):
    """Options of question-answering by prompting.

    Attributes:
        handle_impossible_answer: whether a question may have no answer, which is "".
    """

    max_new_tokens: int = whole(1, default=32)
    handle_impossible_answer: bool = False


class PromptedAnswering(Prompted):
    """{"question", "context"} -> {"score", "start", "end", "answer"}.

    `start` and `end` are None where the context doesn't hold the answer as it is written.
    """

    name = "question-answering"
    fields = ("question", "context", "answers")
    metric = "answers"

    settings = AnswerPromptOptions

    def fields_of(self, value: Any, options: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise BedstoneError(
                f"the input is {shown(value)}; expected a dictionary of a question and a context."
            )
        named = {name: text_of(value.get(name), f"the {name}") for name in ("question", "context")}
        return {**value, **named}

    def labelled(self, rows: Dataset, template: PromptTemplate, options: Any) -> list[Labelled]:
        column, found = rows.need("answers"), []
        sides = [rows.texts(rows.need(part)) for part in ("question", "context")]
        for number, (question, context) in enumerate(zip(*sides, strict=True)):
            value = rows.value(number, column)
            texts = value.get("text") if isinstance(value, Mapping) else value
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list | tuple):
                raise rows.fault(
                    number, column, f"is {shown(value)}; expected answers", "Mend that row."
                )
            fields = {**rows.rows[number], "question": question, "context": context}
            found.append(Labelled(fields, {"answer": str(texts[0]) if texts else IMPOSSIBLE}))
        return found

    def results(self, rows: Sequence[Prompt], options: Any) -> Iterator[Any]:
        template = self.setup(options).template
        answers = self.answers([row.text for row in rows], template, options)
        for row, (answer, found) in zip(rows, answers, strict=True):
            text = answer or ""
            none = options.handle_impossible_answer and text.lower().startswith(IMPOSSIBLE)
            text = "" if none else text
            start = row.fields["context"].find(text) if text else -1
            there = start >= 0
            yield {
                "score": probability(found),
                "start": start if there else None,
                "end": start + len(text) if there else None,
                "answer": text,
            }


@dataclass(frozen=True)
class EntityPromptOptions(WritingPromptOptions):
    """Options of token-classification by prompting.

    Attributes:
        labels: words of each type of entity; by default the template's, else those of the examples.
        aggregation_strategy: simple gives an entity a result; none a word, with B- and I- before
            its type.
        is_split_into_words: whether an input is a list of words; `start` and `end` count a space
            between.
        ignore_labels: taken and of no effect: words without an entity are in no result.
    """

    labels: Any = None
    aggregation_strategy: str = "simple"
    is_split_into_words: bool = False
    ignore_labels: Any = None


class PromptedEntities(Prompted):
    """A text -> its entities, as token-classification groups them; words are found in the text.

    The model writes a list, `Ada (PER); Bremen (LOC)`. What the text doesn't hold, or has another
    type than those of the labels, is left out and counted in `unread`.
    """

    name = "token-classification"
    fields = ("tokens", "tags")
    metric = "entities"
    settings = EntityPromptOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        split = options.get("is_split_into_words", self.options.is_split_into_words)
        if split and isinstance(inputs, list | tuple) and all(type(one) is str for one in inputs):
            inputs = [inputs]  # one list of words; as of trained models, its result is in a list
        return super().__call__(inputs, **options)

    def general(self, template: PromptTemplate, options: Any) -> dict[str, Any]:
        return {"labels": ", ".join(template.labels.values())}

    def fields_of(self, value: Any, options: Any) -> dict[str, Any]:
        if options.is_split_into_words and isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        more = dict(value) if isinstance(value, Mapping) else {}
        return {**more, "text": text_of(more.get("text") if more else value)}

    def labelled(self, rows: Dataset, template: PromptTemplate, options: Any) -> list[Labelled]:
        tokens, column = rows.need("tokens"), rows.need("tags")
        tags = labels.tags(rows, tokens, column, None)
        words = [rows.value(number, tokens) for number in range(len(rows))]
        kinds = sorted({kind for own in tags for kind, _, _ in entity_spans(own)})
        known = template if template.labels else with_labels(template, kinds)
        found = []
        for number, (own, said) in enumerate(zip(words, tags, strict=True)):
            spans = []
            for kind, first, last in entity_spans(said):
                if kind not in known.labels:
                    raise rows.fault(
                        number,
                        column,
                        f"has the type {kind!r}, for which there is no label word",
                        f"Give labels, such as {kind}=words.",
                    )
                spans.append(f"{' '.join(own[first : last + 1])} ({known.labels[kind]})")
            fields = {**rows.rows[number], "text": " ".join(own)}
            names = tuple(kind for kind, _, _ in entity_spans(said))
            found.append(Labelled(fields, {"entities": "; ".join(spans) or NOTHING}, names=names))
        return found

    def results(self, rows: Sequence[Prompt], options: Any) -> Iterator[Any]:
        setup = self.setup(options)
        kinds = setup.template.labels
        for row, (answer, found) in zip(
            rows, self.answers([row.text for row in rows], setup.template, options), strict=True
        ):
            score = probability(found)
            spans = self._found(row.fields["text"], answer or "", kinds)
            if options.aggregation_strategy == "none":
                yield [each for span in spans for each in _words(row.fields["text"], *span, score)]
                continue
            yield [
                {
                    "entity_group": kind,
                    "score": score,
                    "word": row.fields["text"][start:end],
                    "start": start,
                    "end": end,
                }
                for kind, start, end in spans
            ]

    def _found(
        self, text: str, answer: str, kinds: Mapping[str, str]
    ) -> list[tuple[str, int, int]]:
        """(type, start, end) of the entities that an answer names, in the text's order."""
        named = {words.lower(): kind for kind, words in kinds.items()}
        found: list[tuple[str, int, int]] = []
        for part in answer.split(";"):
            match = re.fullmatch(r"\s*(.+?)\s*\(([^()]+)\)\s*", part)
            if match is None:
                self.unread += part.strip().lower() not in ("", NOTHING)
                continue
            kind = named.get(match[2].strip().lower(), None if named else match[2].strip())
            places = (
                (each.start(), each.end())
                for each in re.finditer(rf"(?<!\w){re.escape(match[1])}(?!\w)", text)
            )
            free = (
                place
                for place in places
                if all(place[1] <= start or place[0] >= end for _, start, end in found)
            )
            place = next(free, None)
            if kind is None or place is None:
                self.unread += 1
            else:
                found.append((kind, *place))
        return sorted(found, key=lambda each: each[1])


def _words(text: str, kind: str, start: int, end: int, score: float) -> list[dict[str, Any]]:
    """An entity word by word, as tokens with B- and I-."""
    found = []
    for number, match in enumerate(re.finditer(r"\S+", text[start:end])):
        found.append(
            {
                "entity": f"{'I' if number else 'B'}-{kind}",
                "score": score,
                "word": match[0],
                "start": start + match.start(),
                "end": start + match.end(),
            }
        )
    return found
