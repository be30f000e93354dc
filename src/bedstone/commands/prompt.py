"""`bedstone prompt`: a task by examples in a decoder's prompt, on texts or measured on rows."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console

from bedstone.checkpoints.model import Model
from bedstone.commands.bulk import described
from bedstone.commands.remote import Asking, open_writer, spent
from bedstone.commands.run import Inputs, make_inputs, shown
from bedstone.data.dataset import Dataset
from bedstone.data.labels import choice_row
from bedstone.data.open import open_dataset
from bedstone.errors import BedstoneError
from bedstone.evaluate.pairs import pair_rows
from bedstone.evaluate.prompting import ShotCurve, notes_of, shot_curve
from bedstone.outputs import new_file
from bedstone.remote.model import RemoteModel
from bedstone.report.plots import draw_shot_curve
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import read_options
from bedstone.tasks.pipeline import named_options, prompted_class
from bedstone.train.logs import ProgressBar


@dataclass(frozen=True)
class Prompting:
    """Prompt options.

    Attributes:
        examples: rows with labels or outputs that stand in the prompt, a file or a hub id.
        shots: number of examples in a prompt (default: 8, or all where there are fewer); with
            `data` several numbers with commas between, such as 0,1,2,4,8.
        select: how examples are chosen: random, balanced (equally many of each label) or similar
            to each input by the embeddings of `embed`.
        seed: of the draw of examples.
        embed: a model of embeddings, such as minilm.
        template: how rows are written: a YAML file or the name of a built-in template.
        labels: words of labels, label=words with commas between (default: the template's, or the
            labels of the examples).
        score: of labels: sum, token, byte, pmi or generate.
        calibration: none, content-free or domain; with `data` several with commas between.
        chat: use of the model's chat template: auto, turns, message or none.
        overflow: of a prompt that is longer than the model's context: drop examples, or refuse.
    """

    examples: str | None = None
    shots: str | None = None
    select: str = "random"
    seed: int = 0
    embed: str | None = None
    template: str = ""
    labels: str | None = None
    score: str | None = None
    calibration: str | None = None
    chat: str = "auto"
    overflow: str = "drop"


@dataclass(frozen=True)
class Measuring:
    """Measurement of prompts.

    Attributes:
        data: held-out rows with labels or outputs: prints figures by the number of examples.
        rows: number of held-out rows, drawn by chance; 0 takes all.
        draws: number of draws of examples.
        orders: number of orders of each draw.
        plot: a PNG file to draw the figures by the number of examples into.
    """

    data: str | None = None
    rows: int = 0
    draws: int = 1
    orders: int = 1
    plot: str | None = None


def prompt(
    model: str,
    text: list[str],
    how: Prompting,
    measure: Measuring,
    asking: Asking,
    task: str = "text-classification",
    file: str | None = None,
    context: str | None = None,
    column: str = "",
    label_column: str = "",
    split: str | None = None,
    option: tuple[str, ...] = (),
    overwrite: bool = False,
    *,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> ShotCurve | None:
    """Do a task by prompting a decoder with examples, without training it.

    Prints a result for each text, or with --data figures on held-out rows by the number of
    examples, with their spread over draws and orders. docs/prompting.md shows templates and tasks.

    Args:
        model: a decoder: a folder, a GGUF file, a name that `bedstone models` lists, or a hub id;
            or one behind an endpoint, openai:NAME or http://host/v1#NAME.
        text: the inputs; `-` reads lines from standard input.
        task: text-classification, zero-shot-classification, multiple-choice, token-classification,
            question-answering, translation_en_to_de and such, or summarization.
        file: read inputs from the lines of a text file, or from rows.
        context: for question-answering, the text that contains the answers, or its file.
        column: the column of the texts, in examples and data.
        label_column: the column of the labels or outputs, likewise.
        split: the split of a hub id or a folder with splits, for `data`.
        option: another option of the task, key=value; may be given several times.
        overwrite: replace a plot of the same name.
        as_json: print one JSON object per input, or of all figures.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone prompt smollm2-135m-instruct "a lovely film" --template sentiment
        bedstone prompt openai:gpt-4o-mini "a lovely film" --template sentiment \\
            --score generate --budget-tokens 10000
        bedstone prompt MODEL --template sentiment --examples train.jsonl --data test.jsonl \\
            --shots 0,1,2,4,8 --draws 3 --orders 2 --calibration none,content-free --plot k.png

    Raises:
        BedstoneError: the model is no decoder, the task can't be done by prompting, rows can't be
            read, or an option doesn't fit.
    """
    kind: Any = prompted_class(task)
    chosen = read_options(kind.name, kind.settings, option)
    shots = _shots(how.shots, measure)
    calibrations = _listed(how.calibration, "--calibration", measure) or ["none"]
    _check(kind, text, file, measure, how)
    if measure.plot is not None:
        new_file(measure.plot, "--plot", overwrite=overwrite)
    if context is not None and kind.name != "question-answering":
        raise BedstoneError(f"--context: {kind.name} takes none; question-answering does.")
    named = {each.name for each in fields(kind.settings)}
    given = {each.name: getattr(how, each.name) for each in fields(how)}
    given |= {"shots": shots[0] if shots else None, "calibration": calibrations[0]}
    for name in ("labels", "score", "calibration"):
        if name not in named:
            if getattr(how, name) is not None:
                raise BedstoneError(f"--{name}: {kind.name} has no use for it. Leave it out.")
            del given[name]
    given = {name: value for name, value in given.items() if value is not None}
    for name in chosen.keys() & {each.name for each in fields(how)}:
        raise BedstoneError(f"--option {name}: is an option of its own, --{name}.")
    parts = _parts(kind, column, label_column)
    if how.examples is not None:
        given["examples"] = open_dataset(how.examples, columns=parts)
    inputs = _inputs(kind, text, file, column, context)
    where = pick_device(device)
    pick_precision(precision, where)
    opened = open_writer(model, where, asking)
    ready = kind(opened, precision=precision, **{**named_options(task), **given, **chosen})
    console = Console(soft_wrap=False, highlight=False)
    if measure.data is not None:
        rows = open_dataset(measure.data, columns=parts, split=split).take(measure.rows)
        if "source" in kind.fields and isinstance(opened, Model):
            rows, _ = pair_rows(rows, task, opened)
        return _measure(ready, rows, shots, calibrations, measure, model, as_json)
    for value, result in zip(inputs, ready(iter(inputs)), strict=True):
        if as_json:
            line = {"input": described(value), "result": result}
            print(json.dumps(line, ensure_ascii=False, default=str), flush=True)
        else:
            console.print(*shown(described(value), result), sep="\n")
    for note in notes_of(ready):
        print(f"note: {note}", file=sys.stderr)
    if isinstance(opened, RemoteModel):
        print(f"note: {spent(opened)}", file=sys.stderr)
    return None


def _measure(
    ready: Any,
    rows: Dataset,
    shots: Sequence[int],
    calibrations: Sequence[str],
    measure: Measuring,
    model: str,
    as_json: bool,
) -> ShotCurve:
    """Measures, prints and draws."""
    with ProgressBar("prompting", quiet=as_json) as bar:
        curve = shot_curve(
            ready,
            rows,
            shots=shots or (ready.shots(ready.options),),
            draws=measure.draws,
            orders=measure.orders,
            calibrations=calibrations,
            resamples=0 if measure.draws * measure.orders > 1 else 1000,
            progress=bar.update,
        )
    title = f"{model} on {measure.data}: {curve.task}"
    if as_json:
        print(json.dumps(curve.record()))
    else:
        console = Console(highlight=False)
        console.print(curve.table(title))
        for note in curve.notes:
            console.print(f"note: {note}")
    if measure.plot is not None:
        series = {name: curve.series(name) for name in curve.calibrations}
        drawn = draw_shot_curve(series, measure.plot, title, curve.metric, curve.baselines)
        words = (
            f"plot: {drawn}" if drawn else "plot: needs matplotlib: pip install 'bedstone[train]'"
        )
        print(words, file=sys.stderr if as_json else sys.stdout)
    return curve


def _check(
    kind: Any, text: Sequence[str], file: str | None, measure: Measuring, how: Prompting
) -> None:
    """Raises BedstoneError for options that don't fit each other."""
    if measure.data is None:
        for name in ("plot", "draws", "orders", "rows"):
            if getattr(measure, name) != getattr(Measuring(), name):
                raise BedstoneError(f"--{name}: serves --data, which isn't given. Leave it out.")
        if not text and file is None:
            raise BedstoneError(
                "there is nothing to read. Give texts after the model, --file, or --data with rows "
                "to measure on."
            )
    elif text or file is not None:
        raise BedstoneError("--data: was given with inputs too. Give texts or --data.")
    for name, least in (("draws", 1), ("orders", 1), ("rows", 0)):
        if getattr(measure, name) < least:
            raise BedstoneError(
                f"--{name}: {getattr(measure, name)} was given; expected {least} or more."
            )
    if how.select == "similar" and how.embed is None:
        raise BedstoneError(
            "--select similar: needs a model of embeddings, such as --embed minilm."
        )


def _listed(given: str | None, option: str, measure: Measuring) -> list[str]:
    """The values of an option that may be several with --data."""
    found = [each.strip() for each in (given or "").split(",") if each.strip()]
    if len(found) > 1 and measure.data is None:
        raise BedstoneError(f"{option}: {given} are several, which serve --data. Give one.")
    return found


def _shots(given: str | None, measure: Measuring) -> list[int]:
    found = _listed(given, "--shots", measure)
    if given is not None and not (found and all(each.isdecimal() for each in found)):
        raise BedstoneError(
            f"--shots: {given!r} was given; expected a whole number, or several with commas "
            "between."
        )
    return [int(each) for each in found]


def _parts(kind: Any, column: str, label_column: str) -> dict[str, str] | None:
    """Which columns hold what, where they are named."""
    first, last = kind.fields[0], kind.fields[-1]
    last = "label" if last == "answer" else last  # of multiple-choice, as other labels are named
    found = {first: column, last: label_column}
    return {part: name for part, name in found.items() if name} or None


def _inputs(
    kind: Any, text: Sequence[str], file: str | None, column: str, context: str | None
) -> list[Any]:
    if not text and file is None:
        return []
    if kind.name == "multiple-choice":
        if text or file is None:
            raise BedstoneError(
                "multiple-choice: expected --file with rows that have a question and choices."
            )
        rows = open_dataset(file)
        return [choice_row(rows, number) for number in range(len(rows))]
    given = Inputs(file=file, column=column or None, context=context)
    return make_inputs(kind.name, text, given)[0]
