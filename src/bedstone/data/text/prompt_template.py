"""Templates of prompts: how a row of a task is written for a language model, and what it answers.

A template is a YAML file. Names in braces stand for what a row holds: the task's own fields, such
as {text} and {label}, or any column of the row.

    task: text-classification
    instruction: "Classify the review as {labels}."
    input: "Review: {text}\\nSentiment:"
    output: " {label}"
    labels: {positive: good, negative: bad}

A prompt is the instruction, examples with their outputs, and the input of the row in question
(Brown et al., 2020, figure 2.1), with separators between; or the same as a conversation.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar

from bedstone.errors import BedstoneError, nearest
from bedstone.reading import kind_of, to_path
from bedstone.settings import Settings, read_recipe

LIBRARY = Path(__file__).parents[2] / "builtin" / "prompts"
# Of each task: fields of an input that a template must write, other fields, those of an output.
TASK_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "text-classification": (("text",), ("text_pair", "labels"), ("label",)),
    "zero-shot-classification": (("text",), ("labels",), ("label",)),
    "token-classification": (("text",), ("labels",), ("entities",)),
    "question-answering": (("question", "context"), (), ("answer",)),
    "translation": (("source",), ("source_language", "target_language"), ("target",)),
    "summarization": (("source",), (), ("target",)),
    "multiple-choice": (("question",), ("choices", "context"), ("choice", "letter")),
}


@dataclass(frozen=True)
class PromptTemplate(Settings):
    """How rows are written as a prompt.

    Attributes:
        task: the task that it is for.
        input: a row without its output, with fields in braces.
        output: what follows it; the model's answer.
        instruction: what stands before all examples; as a conversation, the system message.
        separator: between the instruction, the examples and the row in question.
        labels: the words for each label; labels without words are their own.
        answer: a regular expression that finds the answer in a generated text: its first group, or
            all of it. Empty takes the text as it is.
        stop: texts that end a generation.
        content_free: inputs without content, for calibration (Zhao et al., 2021, section 4).
        name: of its file.
    """

    section: ClassVar[str] = "template."

    task: str = ""
    input: str = ""
    output: str = ""
    instruction: str = ""
    separator: str = "\n\n"
    labels: dict[str, str] = field(default_factory=dict)
    answer: str = ""
    stop: tuple[str, ...] = ("\n",)
    content_free: tuple[str, ...] = ("N/A", "", "[MASK]")
    name: str = "template"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASK_FIELDS:
            raise BedstoneError(
                f"{self.name}: task: {self.task!r} can't be done by prompting"
                f"{nearest(self.task, TASK_FIELDS)}."
            )
        for part in ("input", "output", "instruction"):
            self.fields(part)  # braces are in order
        needed, _, written = TASK_FIELDS[self.task]
        inputs = self.fields("input")
        own = {*needed, *TASK_FIELDS[self.task][1]}
        missing = [each for each in needed if each not in inputs]
        if missing and not set(inputs) - own:
            raise BedstoneError(
                f"{self.name}: input: {self.input!r} has no {{{missing[0]}}}, so the model would "
                "not see it. Put it there."
            )
        if not set(self.fields("output")) & set(written):
            named = " or ".join(f"{{{each}}}" for each in written)
            raise BedstoneError(f"{self.name}: output: {self.output!r} has no {named}. Add it.")
        if any(isinstance(label, bool) for label in self.labels):
            raise BedstoneError(
                f"{self.name}: labels: {self.labels!r}: YAML reads yes, no, on and off as true and "
                'false. Put them in quotes: "yes".'
            )
        texts = {str(label): words for label, words in self.labels.items()}
        object.__setattr__(self, "labels", texts)
        for label, words in self.labels.items():
            if not isinstance(words, str) or not words.strip():
                raise BedstoneError(
                    f"{self.name}: labels: {label!r} has no label word ({words!r}). Give it one."
                )
        try:
            re.compile(self.answer)
        except re.error as error:
            raise BedstoneError(
                f"{self.name}: answer: {self.answer!r} is no regular expression ({error})."
            ) from error

    def fields(self, part: str) -> list[str]:
        """Names in braces of `input`, `output` or `instruction`.

        Raises:
            BedstoneError: the braces hold more than a name.
        """
        text = getattr(self, part)
        try:
            found = [tuple(each) for each in Formatter().parse(text)]
        except ValueError as error:
            raise BedstoneError(
                f"{self.name}: {part}: {text!r} isn't in order ({error}). Write a brace that is "
                "meant as such twice."
            ) from error
        names = []
        for _, name, form, conversion in found:
            if name is None:
                continue
            if not re.fullmatch(r"\w[\w .-]*", name) or form or conversion:
                raise BedstoneError(
                    f"{self.name}: {part}: {{{name}}} is no name of a field; expected such as "
                    "{text}. Write a brace that is meant as such twice."
                )
            names.append(name)
        return names

    def write(self, part: str, values: Mapping[str, Any]) -> str:
        """`input`, `output` or `instruction` with the values of a row.

        Raises:
            BedstoneError: the row has no such field.
        """
        written = []
        for text, name, *_ in Formatter().parse(getattr(self, part)):
            written.append(text)
            if name is None:
                continue
            value = values.get(name)
            if value is None:
                known = [key for key, each in values.items() if each is not None]
                raise BedstoneError(
                    f"{self.name}: {part}: has the field {{{name}}}, which the row lacks"
                    f"{nearest(name, known)}."
                )
            written.append(str(value))
        return "".join(written)

    @property
    def cue(self) -> str:
        """What stands between the last field of the input and the output."""
        parts = list(Formatter().parse(self.input))
        return parts[-1][0].lstrip() if parts and parts[-1][1] is None else ""

    def text(self, head: str, examples: Sequence[tuple[str, str]], given: str) -> str:
        """A prompt as one text.

        Args:
            head: the instruction; may be empty.
            examples: inputs and outputs as they are written.
            given: the input of the row in question.
        """
        parts = [head, *(one + other for one, other in examples), given]
        return self.separator.join(parts if head else parts[1:])

    def messages(
        self, head: str, examples: Sequence[tuple[str, str]], given: str, *, turns: bool
    ) -> list[dict[str, str]]:
        """A prompt as a conversation: an example a turn of both, or all in the user's message."""
        if not turns:
            return [{"role": "user", "content": self.text(head, examples, given)}]
        found = [{"role": "system", "content": head}] if head else []
        for one, other in examples:
            found.append({"role": "user", "content": one.strip()})
            found.append({"role": "assistant", "content": other.strip()})
        return [*found, {"role": "user", "content": given.strip()}]

    def find(self, text: str) -> str | None:
        """The answer in a generated text; None where the pattern doesn't fit."""
        if not self.answer:
            return text.strip()
        match = re.search(self.answer, text)
        if match is None:
            return None
        return ((match[1] if match.re.groups else match[0]) or "").strip()


def template_names(task: str = "") -> list[str]:
    """Names of the templates that come with Bedstone; of one task, or of all."""
    names = sorted(path.stem for path in LIBRARY.glob("*.yaml"))
    return [name for name in names if not task or open_template(name).task == task]


def open_template(given: Any, task: str = "") -> PromptTemplate:
    """A template by its name, its file, or its values; "" is the usual one of a task.

    Raises:
        BedstoneError: there is none, it is of another task, or it can't be used.
    """
    if isinstance(given, PromptTemplate):
        found = given
    elif isinstance(given, Mapping):
        found = read_recipe(PromptTemplate, {"task": task, **given})
    else:
        path = _file(str(given) or task, task)
        name = path.stem if path.parent == LIBRARY else str(path)
        found = read_recipe(PromptTemplate, path, name=name, task=task)
    if task and found.task != task:
        raise BedstoneError(
            f"template: {found.name} is for {found.task}, not for {task}"
            f"{nearest(found.name, template_names(task))}."
        )
    return found


def _file(name: str, task: str) -> Path:
    own = LIBRARY / f"{name}.yaml"
    path = to_path(name, "template")
    if kind_of(path) == "a plain file":
        return path
    if "/" not in name and own.is_file():
        return own
    raise BedstoneError(
        f"template: there is no file {name!r}, nor a template of that name"
        f"{nearest(name, template_names(task))}."
    )


def with_labels(template: PromptTemplate, given: Any) -> PromptTemplate:
    """The template with the label words given: {label: words}, a list, or a text with commas."""
    if isinstance(given, str):
        pairs = [each.partition("=") for each in given.split(",") if each.strip()]
        given = {one.strip(): (other.strip() or one.strip()) for one, _, other in pairs}
    elif isinstance(given, list | tuple):
        given = {str(each): str(each) for each in given}
    if not isinstance(given, Mapping):
        raise BedstoneError(f"labels: {given!r} was given; expected words by label, or a list.")
    return replace(template, labels={str(key): value for key, value in given.items()})
