"""The results of a task that is to be scored, worked on in some place or kept in a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bedstone.bulk.places import Job, Spread, Worker
from bedstone.bulk.results import results_of
from bedstone.bulk.shares import as_json, fingerprint
from bedstone.checkpoints.load import open_model
from bedstone.evaluate.runner import Progress
from bedstone.evaluate.tasks import BATCH, TaskEvaluation
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.pipeline import pipeline


def open_results(
    task: str, model: str, given: Mapping[str, Any], options: Mapping[str, Any], **how: str
) -> Worker:
    """A task as work on its inputs, whose results are JSON.

    Args:
        given: options of the task itself; `options` are those of its calls.
        how: `precision` and `device`, by their names.
    """
    precision = pick_precision(how["precision"], pick_device(how["device"]))
    opened = open_model(model, dtype=precision.weights, device=precision.device)
    ready = pipeline(task, opened, precision=precision.name, **given)

    def work(rows: list[Any]) -> list[Any]:
        return [as_json(each) for each in ready(iter(rows), **options, batch_size=BATCH)]

    return work


@dataclass(frozen=True)
class SpreadResults:
    """Gives an evaluation its results, worked on in some place; `evaluate_task` calls it.

    Attributes:
        task: by the name it was given.
        spread: where its inputs are worked on.
        precision: by its name.
        path: a file of results: written, or read where it is there. None keeps them in memory.
        device: of the actors.
        overwrite: whether a file that is there is written anew.
    """

    task: str
    spread: Spread
    precision: str
    path: str | None = None
    device: str = "auto"
    overwrite: bool = False

    def __call__(self, evaluation: TaskEvaluation, progress: Progress) -> list[Any] | None:
        """The results of all inputs; None of a share, whose file is written.

        Raises:
            BedstoneError: an input has no result, or the file is of other work.
        """
        done, metric = evaluation.task, evaluation.metric
        given = {name: getattr(done.options, name) for name in sorted(done.given)}
        settings = {
            "task": self.task,
            "model": str(done.model.path),
            "given": given,
            "options": metric.options,
            "precision": self.precision,
            "device": self.device,
        }
        job = Job("bedstone.evaluate.spread:open_results", settings)
        inputs = metric.inputs()
        rows = evaluation.rows.fingerprint()
        work = fingerprint({**settings, "device": ""}, rows)
        found = results_of(
            job,
            inputs,
            self.spread,
            work=work,
            path=self.path,
            overwrite=self.overwrite,
            progress=progress,
        )
        return None if found is None else [json.loads(each) for each in found]
