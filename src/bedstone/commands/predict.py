"""`bedstone predict`: the rows of a file with a task's result beside each."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.dataset import Dataset
from bedstone.data.open import open_dataset, with_images
from bedstone.data.records import MOST_BROKEN
from bedstone.data.text.chat import render
from bedstone.data.text.conversations import Conversations, holds_conversations
from bedstone.data.text.instructions import instruction_prompts
from bedstone.data.write import FORMATS, check_format, write_rows
from bedstone.errors import BedstoneError
from bedstone.evaluate.pairs import languages_of, source_texts
from bedstone.outputs import new_file
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import read_options
from bedstone.tasks.pipeline import check_head, named_options, natural_task, task_class
from bedstone.tasks.task import WRITTEN, Task
from bedstone.train.data import recorded_columns
from bedstone.train.logs import ProgressBar

AT_A_TIME = 64  # rows read ahead
NAMED = 5  # rows that can't be read, named at the end
PAIRS = {
    "question-answering": ("question", "context"),
    "visual-question-answering": ("image", "question"),
    "image-text-matching": ("image", "text"),
    "image-text-to-text": ("image", "text"),
}


def predict(
    model: str,
    rows: str,
    out: str | None = None,
    task: str | None = None,
    column: str | None = None,
    option: tuple[str, ...] = (),
    overwrite: bool = False,
    *,
    precision: str = "auto",
    device: str = "auto",
) -> Path:
    """Write the rows of a file with a prediction beside each; all columns are kept.

    New columns are `prediction` and, where the task has one, `score`; of a row that the task can't
    read they are empty, and `error` says why. Rows that are broken in the file (bad syntax, no such
    image) are left out and named on stderr; more than 0.05 of them are an error.

    Args:
        model: a folder (a model's or a run's), a name that `bedstone models` lists, or a hub id.
        rows: a file of rows: CSV, TSV, JSON, JSONL, Parquet or Arrow, or a folder of images.
        out: the file to write, CSV, TSV, JSON, JSONL or Parquet by its ending (default:
            NAME.predicted.csv beside the rows, in their format).
        task: the task (default: the one that the model was made for).
        column: the column of the text (default: that of the training rows, or a usual name).
        option: an option of the task, key=value; may be given several times.
        overwrite: replace a file of the same name.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone predict runs/finetune-own tickets.csv --out answered.csv
        bedstone predict MODEL texts.csv --task zero-shot-classification \\
            --option 'candidate_labels=["sport", "film"]'

    Raises:
        BedstoneError: the model can't do the task, the file has no such column, or no row can be
            read.
    """
    path = new_file(_out(rows, out), "--out", overwrite=overwrite)
    check_format(path)
    where = pick_device(device)
    pick_precision(precision, where)
    opened = open_model(model, device=where)
    kind = task_class(task or natural_task(opened))
    check_head(kind, opened)
    chosen = {**named_options(task), **read_options(kind.name, kind.settings, option)}
    ready = kind(opened, precision=precision)
    part = "source" if "source" in kind.fields else "text"
    given = {part: column} if column else None
    columns = recorded_columns(opened.record, rows, given, images=kind.reads == "pictures")
    if kind.reads == "pictures":
        data = with_images(rows, columns=columns)
    else:
        data = open_dataset(
            rows, columns=columns, most_broken=MOST_BROKEN, option="", as_written=True
        )
        data.faults.warn()
    if kind.name == "token-classification" and data.column("text") is None:
        chosen.setdefault("is_split_into_words", True)
    if kind.name == "text-generation":
        inputs = prompts_of(opened, data)
        if holds_conversations(data):
            chosen.setdefault("return_full_text", False)
    elif "source" in kind.fields:
        read = str(chosen.get("src_lang") or "")
        inputs = source_texts(data, languages_of(task or kind.name, opened, (read, ""))[0])
    else:
        inputs = inputs_of(kind, data)
    errors: dict[int, BedstoneError] = {}
    found: dict[int, Any] = {}
    with ProgressBar("predicting") as bar:
        for number, result in _results(ready, inputs, chosen, errors):
            found[number] = result
            bar.update(len(found) / max(len(inputs), 1), step=f"{len(found):,}/{len(inputs):,}")
    if not found:
        first = next(iter(errors.values()), "it has no rows")
        raise BedstoneError(f"{rows}: no row can be read: {first}")
    written = [
        beside(row, found.get(number), errors.get(number)) for number, row in enumerate(data.rows)
    ]
    write_rows(written, path, rows)
    print(f"{len(found):,} of {len(inputs):,} rows predicted by {kind.name}: {path}")
    for number in list(errors)[:NAMED]:
        print(f"  {data.where(number)}: {errors[number]}")
    if len(errors) > NAMED:
        print(f"  and {len(errors) - NAMED:,} more; the column `error` says why")
    return path


def _out(rows: str, out: str | None) -> Path:
    if out is not None:
        return Path(out)
    source = Path(rows)
    suffix = source.suffix if source.suffix.lower() in FORMATS else ".csv"
    return source.with_name(f"{source.stem}.predicted{suffix}")


def _prompt_of_chat(model: Model, rows: Dataset, row: int) -> Any:
    messages, tools, _ = Conversations(rows).read(row, answered=False)
    last = len(messages) - (messages[-1]["role"] == "assistant")
    return render(tokenizer_of(model), messages[:last], tools=tools)


def prompts_of(model: Model, rows: Dataset) -> list[Any]:
    """The prompt of each row, as training writes it: a conversation, a prompt, an instruction, or a
    text. Of a conversation that ends with an answer, what stands before that one.

    Raises:
        BedstoneError: there is no such column, or an instruction is empty.
    """
    if holds_conversations(rows):
        return [_prompt_of_chat(model, rows, row) for row in range(len(rows))]
    if rows.column("prompt"):
        return [row.get(rows.need("prompt")) for row in rows.rows]
    if rows.column("instruction"):
        tasks, given = rows.texts(rows.need("instruction")), rows.column("input")
        inputs = rows.texts(given, empty=True) if given else [""] * len(rows)
        return list(instruction_prompts(tokenizer_of(model), tasks, inputs))
    return [row.get(rows.need("text")) for row in rows.rows]


def inputs_of(kind: type[Task], rows: Dataset) -> list[Any]:
    """The task's input of each row.

    Raises:
        BedstoneError: a column that the task needs isn't there.
    """
    if kind.reads == "prompts":
        raise BedstoneError(f"{kind.name}: draws; use bedstone imagine.")
    parts = PAIRS.get(kind.name)
    if parts is not None:
        names = [part if part == "image" else rows.need(part) for part in parts]
        return [
            {part: row.get(name) for part, name in zip(parts, names, strict=True)}
            for row in rows.rows
        ]
    if kind.reads == "pictures":
        return [row["image"] for row in rows.rows]
    if kind.name == "token-classification" and rows.column("text") is None:
        return [row.get(rows.need("tokens")) for row in rows.rows]
    name, pair = rows.need("text"), rows.column("pair")
    if kind.name == "text-classification" and pair is not None:
        return [
            {"text": row.get(name), "text_pair": row[pair]} if row.get(pair) else row.get(name)
            for row in rows.rows
        ]
    return [row.get(name) for row in rows.rows]


def _results(
    task: Any, inputs: Sequence[Any], options: dict[str, Any], errors: dict[int, BedstoneError]
) -> Iterator[tuple[int, Any]]:
    """The number of each row that can be read, and its result."""
    chosen = task.chosen(**options)
    good = []
    for number, value in enumerate(inputs):
        try:
            task.prepare(value, chosen)
            good.append(number)
        except BedstoneError as error:
            errors[number] = error
    if task.reads == "pictures":

        def left_out(place: int, error: BedstoneError) -> None:
            errors[good[place]] = error

        for place, result in task.each([inputs[number] for number in good], left_out, **options):
            yield good[place], result
        return
    options = {"batch_size": AT_A_TIME, **options}
    yield from zip(good, task((inputs[number] for number in good), **options), strict=True)


def beside(row: Mapping[str, Any], result: Any, error: BedstoneError | None) -> dict[str, Any]:
    """A row with its result: `prediction`, `score` and, where it can't be read, `error`.

    Columns of the row that have these names are kept; the new ones are then named `prediction_2`.
    """
    new: dict[str, Any] = {"prediction": None, "score": None} if error else flat(result)
    if error is not None:
        new["error"] = str(error)
    kept = dict(row)
    for name, value in new.items():
        number, chosen = 1, name
        while chosen in row:
            number += 1
            chosen = f"{name}_{number}"
        kept[chosen] = value
    return kept


def flat(result: Any) -> dict[str, Any]:
    """A task's result as one prediction and its score: of several, the best.

    Entities, vectors and other results that are no choice stand whole, lists as JSON.
    """
    best = result[0] if isinstance(result, list) and result else result
    if isinstance(best, list) and best and isinstance(best[0], Mapping):  # one of several masks
        best = best[0]
    if isinstance(result, list) and best and "entity" in str(list(best))[:40]:
        return {"prediction": json.dumps(result, ensure_ascii=False, default=float)}
    if isinstance(best, Mapping):
        score = best.get("score")
        for name in ("label", "answer", *WRITTEN, "token_str", "text"):
            if name in best:
                found = {"prediction": best[name]}
                return {**found, "score": score} if isinstance(score, float) else found
        if "labels" in best and "scores" in best:  # zero-shot: lists, best first
            return {"prediction": best["labels"][0], "score": best["scores"][0]}
        if isinstance(score, float):
            return {"prediction": score}
    if isinstance(result, float) and math.isfinite(result):
        return {"prediction": result}
    plain = result.tolist() if hasattr(result, "tolist") else result
    return {"prediction": json.dumps(plain, ensure_ascii=False, default=_plain)}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
