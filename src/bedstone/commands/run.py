"""`bedstone run`: runs a task on inputs from the command line or a file."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bedstone.bulk.places import Spread
from bedstone.bulk.shares import as_json as to_json
from bedstone.checkpoints.load import open_model
from bedstone.commands.bulk import ASK, AT_A_TIME, TaskRows, described, output_line
from bedstone.data.bytes import data_suffix, read_text
from bedstone.data.images.decode import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    find_images,
    find_unread,
)
from bedstone.data.open import open_dataset, with_images
from bedstone.data.records import FORMATS
from bedstone.errors import BedstoneError
from bedstone.outputs import new_file
from bedstone.reading import kind_of, to_path
from bedstone.recipes.library import find, names
from bedstone.report.pages import Captioned, Line, write_caption_page
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import read_options
from bedstone.tasks.pipeline import check_head, named_options, task_class
from bedstone.tasks.task import WRITTEN
from bedstone.tasks.text.semantic_search import read_corpus

REPORTED = 5  # broken images that are named


def reads_images(task: str) -> bool:
    """Whether a task's inputs are images."""
    return task_class(task).reads == "pictures"


def image_files(given: Sequence[str]) -> list[str]:
    """The images of each name: itself, or all below a folder, those that aren't read too.

    Raises:
        BedstoneError: a folder holds none.
    """
    found: list[str] = []
    for name in given:
        if kind_of(to_path(name, "picture")) != "a folder":
            found.append(name)
            continue
        inside = sorted([*find_images(name), *find_unread(name)])
        if not inside:
            raise BedstoneError(
                f"{name}: holds no picture; expected files that end in .jpg, .png, .webp and such."
            )
        found += map(str, inside)
    return found


def image_results(
    task: Any,
    inputs: Sequence[Any],
    options: dict[str, Any],
    broken: list[BedstoneError] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Each image and its result; a summary of broken ones is printed at the end.

    Args:
        broken: what is wrong with each image that can't be read is added to it.

    Raises:
        BedstoneError: none can be read.
    """
    if len(inputs) == 1:
        yield inputs[0], task(inputs[0], **options)
        return
    broken = [] if broken is None else broken
    faulty: dict[str, BedstoneError] = {}  # once, however often something is asked of it

    def left_out(number: int, error: BedstoneError) -> None:
        faulty.setdefault(_name(inputs[number], number), error)

    for number, result in task.each(inputs, left_out, **options):
        yield inputs[number], result
    broken += faulty.values()
    if not broken:
        return
    named = "\n".join(f"  {error}" for error in broken[:REPORTED])
    more = f"\n  and {len(broken) - REPORTED:,} more" if len(broken) > REPORTED else ""
    every = len({_name(value, number) for number, value in enumerate(inputs)})
    message = f"{len(broken):,} of {every:,} pictures were left out:\n{named}{more}"
    if len(broken) == every:
        raise BedstoneError(message)
    print(message, file=sys.stderr)


def _name(value: Any, number: int) -> str:
    """A name that identifies the image of an input."""
    image = value.get("image") if isinstance(value, dict) else value
    return str(image) if isinstance(image, str | Path) else str(number)


# Inputs from the command line of tasks that take both texts and images, such as moderation.

TASKS = ("moderation", "similar-items", "complementary-items")  # that take both


def items(texts: Sequence[str], file: str | None, column: str | None) -> list[Any]:
    """Texts, names of images as `Path`, and the lines or rows of a file.

    A word is an image where there is a file of that name and its suffix is an image's.
    """
    found: list[Any] = [_image(text) or text for text in texts]
    if file is None:
        return found
    path = Path(file)
    if path.is_file() and data_suffix(path) not in FORMATS:
        return [*found, *read_corpus(file, column)[0]]
    rows = with_images(file, columns={"text": column} if column else None)
    text = rows.column("text")
    for row in rows.rows:
        both = {"text": row.get(text) if text else None, "image": row["image"]}
        found.append({key: value for key, value in both.items() if value is not None})
    return found


def _image(word: str) -> Path | None:
    try:
        path = Path(word)
        named = path.suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES
        return path if named and path.is_file() else None
    except (OSError, ValueError):  # too long to be a name, or with a NUL
        return None


# Results of a task as tables.

LONGEST = 300  # characters of a cell
LEFT_OUT = ("row",)  # --json has it


def shown(value: Any, result: Any) -> list[RenderableType]:
    """An input and its result, to be printed one below the other."""
    if isinstance(value, Mapping) and "sentences" in value:
        pairs = zip(value["sentences"], result, strict=True)
        result = [{"sentence": sentence, "score": score} for sentence, score in pairs]
        value = value["source_sentence"]
    elif isinstance(value, Mapping) and "image" in value and value.keys() & {"question", "text"}:
        value = f"{value['image']}: {value.get('question') or value.get('text') or ''}"
    elif isinstance(value, Mapping):
        value = value.get("question", value)
    return [Text(_cell(value), style="bold"), *_tables(result), ""]


def _tables(result: Any) -> list[RenderableType]:
    if isinstance(result, Mapping) and "reason" in result:  # of moderation
        message = Text(f"{result['action']}: {result['reason']}")
        return [message, _table(result["categories"])]
    if isinstance(result, Mapping):
        return [_table(_rows_of(result))]
    if isinstance(result, list) and result and all(isinstance(one, Mapping) for one in result):
        for key in WRITTEN:  # without a table
            if all(set(one) == {key} for one in result):
                return [Text(one[key]) for one in result]
        return [_table(result)]
    if _is_numbers(result):
        return [Text(_shape(result) + "; --json prints them")]
    if isinstance(result, list) and result:
        return [each for one in result for each in _tables(one)]
    return [Text("nothing was found", style="dim")]


def _rows_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of a dictionary: of its lists as columns, of its fields, or the dictionary itself."""
    columns = {key: each for key, each in result.items() if isinstance(each, list)}
    if columns:  # labels beside their scores
        names = [key.removesuffix("s") for key in columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if all(each is None or isinstance(each, Mapping) for each in result.values()):
        return [{"field": name, **(each or {"answer": "-"})} for name, each in result.items()]
    return [result]


def _table(rows: list[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(key for row in rows for key in row if key not in LEFT_OUT))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        numbers = all(isinstance(row.get(name, 0), int | float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _is_numbers(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, int | float)


def _shape(value: Any) -> str:
    sizes = []
    while isinstance(value, list):
        sizes.append(len(value))
        value = value[0]
    return " x ".join(f"{size:,}" for size in sizes) + " numbers"


# `bedstone run` on images and words: questions, conversations, pages of captions.

PAGES = {"image-to-text": "Pictures in words", **dict.fromkeys(ASK, "Questions about pictures")}


def answered(
    task: str, images: Sequence[str], questions: Sequence[str], file: str | None
) -> list[dict[str, Any]]:
    """Each question of each image, those of an image side by side; then the rows of a file.

    Raises:
        BedstoneError: there is an image and no question, or the rows hold neither questions nor
            messages.
    """
    key = "question" if task == "visual-question-answering" else "text"
    names = image_files(images)
    found = [{"image": name, key: text} for name in names for text in questions]
    if names and not questions:
        if key == "question":
            raise BedstoneError(
                f"{task}: nothing is asked of the pictures. Give --question, several times for "
                "several questions."
            )
        found = [{"image": name, "text": ""} for name in names]
    if file is None:
        if questions and not names:
            raise BedstoneError(
                f"{task}: there is a question and no picture. Give its file or a folder after the "
                "model, or rows with an image by --file."
            )
        return found
    rows = with_images(file)
    for number, row in enumerate(rows.rows):
        if key == "text" and row.get("messages") is not None:
            held = {} if row["image"] is None else {"image": row["image"]}
            found.append({"messages": row["messages"], **held})
            continue
        own = row.get("question", row.get("text")) or list(questions)
        if not own:
            raise BedstoneError(
                f"{rows.where(number)}: has no question (column question); give one, or --question."
            )
        texts = own if isinstance(own, list | tuple) else [own]
        found += [{"image": row["image"], key: text} for text in texts]
    return found


class Page:
    """An HTML page of images with their captions or answers.

    Raises:
        BedstoneError: the task generates no text about images.
    """

    def __init__(self, task: str, path: str) -> None:
        if task not in PAGES:
            raise BedstoneError(f"--page: {task} makes none; {', '.join(PAGES)} do.")
        self.task, self.path = task, path
        self.images: list[Captioned] = []

    def add(self, value: Any, result: Any) -> None:
        """Adds a result; consecutive results of the same image stand together."""
        image = value.get("image") if isinstance(value, dict) else value
        question = ""
        if isinstance(value, dict):
            question = str(value.get("question") or value.get("text") or "")
        lines = [replace(line, question=question) for line in _lines(result)]
        last = self.images[-1] if self.images else None
        if last is not None and image is not None and last.picture == image:
            self.images[-1] = replace(last, lines=[*last.lines, *lines])
        else:
            name = str(image) if isinstance(image, str | Path) else f"{len(self.images) + 1}"
            self.images.append(Captioned(image, name, lines))

    def write(self, model: str, left_out: Sequence[BedstoneError] = ()) -> Path:
        """Writes it, whole or not at all."""
        lead = f"{len(self.images):,} pictures, by {Path(model).name}"
        if left_out:
            lead += f"; {len(left_out):,} can't be read: " + "; ".join(map(str, left_out[:5]))
            lead += " ..." if len(left_out) > 5 else ""
        return write_caption_page(self.path, PAGES[self.task], lead + ".", self.images)


def _lines(result: Any) -> Iterator[Line]:
    """Lines of a result: the best answer, or all captions."""
    for one in result[:1] if result and "answer" in result[0] else result:
        said = one.get("answer", one.get("generated_text"))
        if isinstance(said, list):  # messages: the last is the answer
            said = said[-1]["content"]
        yield Line(said, score=f"{one['score']:.2f}" if "score" in one else "")


@dataclass(frozen=True)
class Inputs:
    """Task inputs.

    Attributes:
        file: read inputs from the lines of a text file, or from rows (JSON, JSONL, CSV, Parquet,
            Arrow); for semantic-search, the corpus.
        column: the column of the text, for rows.
        context: for question-answering, the text that contains the answers, or its file.
        field: for information-extraction, name=question; may be given several times.
        policy: for moderation, the policy: a file, or moderation-policy, an example.
        question: a question about each image; may be given several times.
        glossary: for translation and such, a CSV of source and target terms: outputs hold the
            target terms of the source terms in their sources.
    """

    file: str | None = None
    column: str | None = None
    context: str | None = None
    field: tuple[str, ...] = ()
    policy: str | None = None
    question: tuple[str, ...] = ()
    glossary: str | None = None


HERE = Spread()


def run(
    task: str,
    model: str,
    text: list[str],
    given: Inputs,
    spread: Spread = HERE,
    option: tuple[str, ...] = (),
    page: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    *,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> int:
    """Run a task with a model: fill-mask, question-answering, semantic-search and others.

    docs/tasks.md lists all tasks with an example of each.

    Args:
        task: the name of the task, as in version 4 of transformers.
        model: a folder, a name that `bedstone models` lists, or a hub id.
        text: the inputs: texts; for question-answering the questions, for semantic-search the
            queries, for sentence-similarity a source and the texts to compare it with; for images
            their files or folders. `-` reads lines from standard input.
        option: an option of the task, key=value; may be given several times.
        page: an HTML file to write, with the images and their captions or answers.
        out: a file to write the lines of --json into. A run that is stopped goes on from OUT.part
            when it is given again; inputs that can't be read are set aside in OUT.aside.jsonl, and
            the exit code is 3.
        overwrite: replace files of the same names.
        as_json: print one JSON object per input.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone run ner runs/entities "Ada flew to Bremen." --option aggregation_strategy=simple

    Raises:
        BedstoneError: there is no such task or option, no input, or the model can't do the task.
    """
    spread.check()
    if (out is not None or not spread.is_usual) and page is not None:
        raise BedstoneError("--page: isn't there with --out, --shard or --on. Leave one out.")
    if spread.on != "here" and out is None:
        raise BedstoneError("--on: needs --out, the file that the lines are written into.")
    if spread.shard is not None and out is None and not as_json:
        raise BedstoneError(
            "--shard: writes lines of JSON, which are joined later. Give --json, or --out."
        )
    kind = task_class(task)
    name = kind.name
    chosen = read_options(name, kind.settings, option)
    inputs, more = make_inputs(name, text, given)
    for key in more:
        if key in chosen:
            raise BedstoneError(f"option {key!r}: is given twice. Leave one out.")
    chosen |= more
    if kind.reads == "prompts":  # images can't be printed
        chosen.setdefault("out", "drawn")
    if page is not None:
        new_file(page, "--page", overwrite=overwrite)
    shown_on = Page(name, page) if page is not None else None
    where = pick_device(device)
    pick_precision(precision, where)
    if out is not None or spread.shard is not None:
        rows = TaskRows(task, model, inputs, chosen, spread, precision, device)
        if out is not None:
            return rows.write(out, overwrite=overwrite)
        return rows.print_share()
    opened = open_model(model, device=where)
    check_head(kind, opened)
    ready = kind(opened, precision=precision, **named_options(task))
    console = Console(soft_wrap=False, highlight=False)
    broken: list[BedstoneError] = []
    if reads_images(name):
        results = image_results(ready, inputs, chosen, broken)
    else:
        results = _results(ready, inputs, chosen)
    for value, result in results:
        if shown_on is not None:
            shown_on.add(value, result)
        result = described(result) if name in ASK else result
        if as_json:
            print(output_line(value, to_json(result)), flush=True)
        else:
            value = described(value)
            console.print(*shown(value, result), sep="\n")
    if shown_on is not None:
        print(f"page: {shown_on.write(model, broken)}", file=sys.stderr if as_json else sys.stdout)
    return 0


def _results(
    task: Any, inputs: Sequence[Any], options: dict[str, Any]
) -> Iterator[tuple[Any, Any]]:
    if len(inputs) == 1:
        yield inputs[0], task(inputs[0], **options)
    else:
        options = {"batch_size": AT_A_TIME, **options}
        yield from zip(inputs, task(iter(inputs), **options), strict=True)


def make_inputs(task: str, words: Sequence[str], given: Inputs) -> tuple[list[Any], dict[str, Any]]:
    """The task's inputs, from the words of the command line, and options that follow from them.

    Raises:
        BedstoneError: there are none, or the task takes no such thing.
    """
    if given.context is not None and task != "question-answering":
        raise BedstoneError(f"--context: {task} takes none; question-answering does.")
    if given.field and task != "information-extraction":
        raise BedstoneError(f"--field: {task} takes none; information-extraction does.")
    if given.policy is not None and task != "moderation":
        raise BedstoneError(f"--policy: {task} takes none; moderation does.")
    if given.question and task not in ASK:
        raise BedstoneError(f"--question: {task} takes none; {' and '.join(ASK)} do.")
    if given.glossary is not None and not hasattr(task_class(task).settings, "glossary"):
        raise BedstoneError(f"--glossary: {task} takes none; translation and such do.")
    texts = [line for text in words for line in (_stdin() if text == "-" else [text])]
    more: dict[str, Any] = {} if given.policy is None else {"policy": _policy(given.policy)}
    more |= {} if given.glossary is None else {"glossary": given.glossary}
    inputs: list[Any]
    if task == "semantic-search":
        inputs, more = texts, {"file": given.file, "column": given.column}
        more = {key: value for key, value in more.items() if value is not None}
    elif task == "question-answering":
        inputs = _questions(texts, given)
    elif task in ASK:
        inputs = answered(task, texts, given.question, given.file)
    elif reads_images(task):
        inputs = image_files([*texts, *(_of_file(given) if given.file else [])])
    elif task in TASKS:
        inputs = items(texts, given.file, given.column)
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
    if task == "information-extraction" and given.field:
        more["fields"] = _fields(given.field)
    if not inputs:
        what = "pictures or folders" if reads_images(task) else "texts"
        raise BedstoneError(
            f"{task}: there is nothing to read. Give {what} after the model, or - for the lines of "
            "standard input" + ("." if task == "semantic-search" else ", or --file.")
        )
    return inputs, more


def _policy(given: str) -> str:
    """The file of a policy; a name of the package's recipes is that one's."""
    return given if kind_of(to_path(given)) or given not in names() else str(find(given))


def _stdin() -> list[str]:
    return [line.strip() for line in sys.stdin if line.strip()]


def _of_file(given: Inputs) -> list[str]:
    return read_corpus(str(given.file), given.column)[0]


def _questions(texts: Sequence[str], given: Inputs) -> list[Any]:
    """Questions of one context, or rows that have both."""
    if given.context is not None:
        context = _file_or_text(given.context)
        questions = [*texts, *(_of_file(given) if given.file else [])]
        return [{"question": question, "context": context} for question in questions]
    if given.file is None or texts:
        raise BedstoneError(
            "question-answering: expected questions and --context, a text or its file; or --file "
            "with rows that have a question and a context."
        )
    rows = open_dataset(given.file)
    sides = [rows.texts(rows.need(part)) for part in ("question", "context")]
    return [{"question": one, "context": two} for one, two in zip(*sides, strict=True)]


def _file_or_text(given: str) -> str:
    """The text of a file where one is named, else the words themselves.

    Raises:
        BedstoneError: the file can't be read, or one word that reads as a name names none.
    """
    try:
        path = to_path(given)
        kind = kind_of(path)
    except BedstoneError:  # too long to be a name, say
        return given
    if kind == "a plain file":
        return "".join(piece.text for piece in read_text(path))
    if kind or (not re.search(r"\s", given) and ("/" in given or path.suffix.lower() in TEXTS)):
        found = f"is {kind}" if kind else "there is no such file"
        raise BedstoneError(
            f"--context: {given}: {found}; expected a text, or a plain file that holds one."
        )
    return given


TEXTS = (".txt", ".md", ".rst", ".html", ".json", ".csv")  # endings that a text is named by


def _fields(given: Sequence[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for each in given:
        name, equals, question = each.partition("=")
        if not (equals and name.strip() and question.strip()):
            raise BedstoneError(f"--field {each!r}: expected name=question: place='Where was it?'.")
        fields[name.strip()] = question.strip()
    return fields
