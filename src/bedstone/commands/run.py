"""`bedstone run`: a task done with a model on what stands on the command line or in a file."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bedstone.checkpoints.opening import open_model
from bedstone.commands import run_posts
from bedstone.commands.run_pictures import picture_files, picture_results, reads_pictures
from bedstone.commands.run_tables import shown
from bedstone.commands.run_told import ASK, Page, asked
from bedstone.data.labelled import open_rows
from bedstone.data.readers import read_text
from bedstone.errors import BedstoneError, nearest
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.pipeline import check_head, task_class
from bedstone.tasks.search import read_corpus

AT_A_TIME = 64  # inputs read ahead
# What a word on the command line may mean that is no JSON.
WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Given:
    """What the command line gives a task to read; see `bedstone run --help`."""

    texts: Sequence[str] = ()
    file: str | None = None
    column: str | None = None
    context: str | None = None
    fields: Sequence[str] = field(default_factory=list)
    policy: str | None = None
    questions: Sequence[str] = ()


def run(
    task: str,
    path: str,
    given: Given,
    options: Sequence[str] = (),
    *,
    as_json: bool = False,
    page: str | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Prints what a task gives for each input, as tables or one JSON object a line.

    Args:
        task: one of `tasks.pipeline.TASKS`, or of its aliases.
        path: a model's folder or hub id.
        options: the task's own, each `key=value`.
        page: a file for a page of the pictures with what is said of them, too.

    Raises:
        BedstoneError: there is no such task or option, nothing to read, or the model is none for
            the task.
    """
    kind = task_class(task)
    name = kind.name
    chosen = read_options(name, kind.settings, options)
    inputs, more = make_inputs(name, given)
    for key in more:
        if key in chosen:
            raise BedstoneError(f"option {key!r}: is given twice. Leave one out.")
    chosen |= more
    if kind.reads == "prompts":  # pictures can't be printed
        chosen.setdefault("out", "drawn")
    shown_on = Page(name, page) if page is not None else None
    where = pick_device(device)
    pick_precision(precision, where)
    model = open_model(path, device=where)
    check_head(kind, model)
    ready = kind(model, precision=precision)
    console = Console(soft_wrap=False, highlight=False)
    broken: list[BedstoneError] = []
    if reads_pictures(name):
        results = picture_results(ready, inputs, chosen, broken)
    else:
        results = _results(ready, inputs, chosen)
    for value, result in results:
        if shown_on is not None:
            shown_on.add(value, result)
        value = run_posts.told(value)
        result = run_posts.told(result) if name in ASK else result
        if as_json:
            line = {"input": value, "result": result}
            print(json.dumps(line, ensure_ascii=False, default=_plain), flush=True)
        else:
            console.print(*shown(value, result), sep="\n")
    if shown_on is not None:
        print(f"page: {shown_on.write(path, broken)}", file=sys.stderr if as_json else sys.stdout)


def _plain(value: Any) -> float | str:
    """A number of another library's as Python's; a date, say, in words."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _results(
    task: Any, inputs: Sequence[Any], options: dict[str, Any]
) -> Iterator[tuple[Any, Any]]:
    if len(inputs) == 1:
        yield inputs[0], task(inputs[0], **options)
    else:
        options = {"batch_size": AT_A_TIME, **options}
        yield from zip(inputs, task(iter(inputs), **options), strict=True)


def read_options(task: str, settings: type[Any], given: Sequence[str]) -> dict[str, Any]:
    """Options `key=value`; a value is JSON, or true, false or none in any case, or else text."""
    names = {each.name for each in dataclasses.fields(settings)}
    found: dict[str, Any] = {}
    for each in given:
        key, equals, value = each.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise BedstoneError(f"--option {each!r}: expected key=value, such as top_k=3.")
        if key not in names:
            raise BedstoneError(
                f"--option {key!r}: {task} has no such option{nearest(key, names)}."
            )
        found[key] = _value(value)
    return found


def _value(word: str) -> Any:
    if word.lower() in WORDS:
        return WORDS[word.lower()]
    try:
        return json.loads(word)
    except ValueError:
        return word


def make_inputs(task: str, given: Given) -> tuple[list[Any], dict[str, Any]]:
    """The task's inputs, and options that follow from them.

    Raises:
        BedstoneError: there are none, or the task takes no such thing.
    """
    if given.context is not None and task != "question-answering":
        raise BedstoneError(f"--context: {task} takes none; question-answering does.")
    if given.fields and task != "information-extraction":
        raise BedstoneError(f"--field: {task} takes none; information-extraction does.")
    if given.policy is not None and task != "moderation":
        raise BedstoneError(f"--policy: {task} takes none; moderation does.")
    if given.questions and task not in ASK:
        raise BedstoneError(f"--question: {task} takes none; {' and '.join(ASK)} do.")
    texts = [line for text in given.texts for line in (_stdin() if text == "-" else [text])]
    more: dict[str, Any] = {} if given.policy is None else {"policy": given.policy}
    inputs: list[Any]
    if task == "semantic-search":
        inputs, more = texts, {"file": given.file, "column": given.column}
        more = {key: value for key, value in more.items() if value is not None}
    elif task == "question-answering":
        inputs = _questions(texts, given)
    elif task in ASK:
        inputs = asked(task, texts, given.questions, given.file)
    elif reads_pictures(task):
        inputs = picture_files([*texts, *(_of_file(given) if given.file else [])])
    elif task in run_posts.TASKS:
        inputs = run_posts.posts(texts, given.file, given.column)
    else:
        inputs = [*texts, *(_of_file(given) if given.file else [])]
    if task.startswith("unconditional-"):
        inputs = inputs or [""]
    if task == "sentence-similarity":
        if len(inputs) < 2:
            raise BedstoneError(
                "sentence-similarity: expected a text and at least one to compare it with, as more "
                "texts or the lines of --file."
            )
        inputs = [{"source_sentence": inputs[0], "sentences": inputs[1:]}]
    if task == "information-extraction" and given.fields:
        more["fields"] = _fields(given.fields)
    if not inputs:
        what = "pictures or folders" if reads_pictures(task) else "texts"
        raise BedstoneError(
            f"{task}: there is nothing to read. Give {what} after the model, or - for the lines of "
            "standard input" + ("." if task == "semantic-search" else ", or --file.")
        )
    return inputs, more


def _stdin() -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()]


def _of_file(given: Given) -> list[str]:
    return read_corpus(str(given.file), given.column)[0]


def _questions(texts: Sequence[str], given: Given) -> list[Any]:
    """Questions of one context, or rows that have both."""
    if given.context is not None:
        context = _file_or_text(given.context)
        asked = [*texts, *(_of_file(given) if given.file else [])]
        return [{"question": question, "context": context} for question in asked]
    if given.file is None or texts:
        raise BedstoneError(
            "question-answering: expected questions and --context, a text or its file; or --file "
            "with rows that have a question and a context."
        )
    rows = open_rows(given.file)
    sides = [rows.texts(rows.need(part)) for part in ("question", "context")]
    return [{"question": one, "context": two} for one, two in zip(*sides, strict=True)]


def _file_or_text(given: str) -> str:
    try:
        there = Path(given).is_file()
    except OSError:  # too long to be a name
        there = False
    return "".join(piece.text for piece in read_text(Path(given))) if there else given


def _fields(given: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for each in given:
        name, equals, question = each.partition("=")
        if not (equals and name.strip() and question.strip()):
            raise BedstoneError(f"--field {each!r}: expected name=question: place='Where was it?'.")
        fields[name.strip()] = question.strip()
    return fields
