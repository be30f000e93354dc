"""Rows of `bedstone run` as lines of JSON: printed, as a share, or into a file from any place."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bedstone.bulk.journal import ASIDE, REPORTED, work_on
from bedstone.bulk.places import Aside, Here, Job, Spread, Watch, Worker, in_order
from bedstone.bulk.shares import BLOCK, Written, as_json, fingerprint, last_line, numbered
from bedstone.checkpoints.load import open_model
from bedstone.errors import BedstoneError
from bedstone.runtime import pick_device
from bedstone.tasks.pipeline import check_head, named_options, task_class
from bedstone.train.logs import ProgressBar

ASK = ("visual-question-answering", "image-text-to-text")  # whose results name their images
AT_A_TIME = BLOCK  # inputs read ahead


def described(value: Any) -> Any:
    """An input as it is printed: images by their names."""
    if isinstance(value, dict):
        return {key: described(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return str(value) if isinstance(value, Path) else value


def output_line(value: Any, result: str) -> str:
    """What --json prints of an input; its result is JSON already."""
    return f'{{"input": {as_json(described(value))}, "result": {result}}}'


def open_task(
    task: str, model: str, options: Mapping[str, Any], precision: str, device: str
) -> Worker:
    """A task as work on rows, whose results are JSON.

    Raises:
        BedstoneError: the model can't be opened, or can't do the task.
    """
    kind = task_class(task)
    opened = open_model(model, device=pick_device(device))
    check_head(kind, opened)
    ready: Any = kind(opened, precision=precision, **named_options(task))

    shown = described if kind.name in ASK else (lambda result: result)

    def of_images(rows: list[Any]) -> list[Any]:
        results: list[Any] = [None] * len(rows)

        def left_out(number: int, error: BedstoneError) -> None:
            results[number] = Aside(str(error))

        for number, result in ready.each(rows, left_out, **options):
            results[number] = as_json(shown(result))
        return results

    def of_texts(rows: list[Any]) -> list[Any]:
        found = ready(iter(rows), **{"batch_size": AT_A_TIME, **options})
        return [as_json(shown(result)) for result in found]

    return of_images if kind.reads == "pictures" else of_texts


class TaskRows:
    """A task on the rows of a command, to be worked on in some place.

    Args:
        task: its name or alias.
        options: of its calls.

    Raises:
        BedstoneError: the place can't be, or the task writes files of its own.
    """

    def __init__(
        self,
        task: str,
        model: str,
        inputs: Sequence[Any],
        options: Mapping[str, Any],
        spread: Spread,
        precision: str,
        device: str,
    ) -> None:
        spread.check()
        kind = task_class(task)
        if kind.reads == "prompts" and spread.on != "here":
            raise BedstoneError(
                f"--on: {task} writes files of its own. Take bedstone imagine --on {spread.on}."
            )
        self.inputs, self.spread = inputs, spread
        settings: dict[str, Any] = {"task": task, "model": model, "options": dict(options)}
        self.job = Job(
            "bedstone.commands.bulk:open_task",
            {**settings, "precision": precision, "device": device},
        )
        size = options.get("batch_size") or BLOCK
        self.block = -(-BLOCK // size) * size  # what is read together is of one block
        given = described(list(inputs)), described(dict(options))
        self.work = fingerprint(kind.name, model, *given, precision)

    def _line(self, row: int, result: str) -> str:
        return output_line(self.inputs[row], result)

    def write(self, path: str, *, overwrite: bool) -> int:
        """Writes the lines into a file; the exit code."""
        with ProgressBar("running") as bar:
            done = work_on(
                path,
                self.job,
                self.inputs,
                self.spread,
                work=self.work,
                as_line=self._line,
                block=self.block,
                overwrite=overwrite,
                progress=bar.update,
            )
        print(done.summary(), file=sys.stderr)
        return done.code

    def print_share(self) -> int:
        """Prints the lines of the share, with its last line; the exit code."""
        share = self.spread.share
        rows = share.rows(len(self.inputs), self.block)
        parts = [rows[at : at + self.block] for at in range(0, len(rows), self.block)]
        blocks = enumerate([self.inputs[row] for row in part] for part in parts)
        written, watch, faults = Written(), Watch(), []
        for part, results in zip(parts, in_order(Here().run(self.job, blocks)), strict=True):
            for row, result in zip(part, watch.see(results), strict=True):
                if isinstance(result, Aside):
                    faults.append(f"row {row}: {result.reason}")
                else:
                    print(written.add(numbered(self._line(row, result), row)), flush=True)
        watch.check()
        print(last_line(share, len(self.inputs), written, self.work, block=self.block))
        for fault in faults[:REPORTED]:
            print(fault, file=sys.stderr)
        if faults:
            print(f"{len(faults):,} of {len(rows):,} rows were left out", file=sys.stderr)
        return ASIDE if faults else 0
