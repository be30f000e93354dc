"""Hyperparameter search: processes that run the trials of a study, and what is made of it.

    python -m bedstone.inspect.tune FOLDER TRIALS    one of those processes

Each process takes a trial, runs it as training runs any recipe, and takes the next. One that is
killed is started anew; its trial goes on from its last checkpoint, in whichever process finds it.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bedstone.checkpoints.store import CheckpointStore
from bedstone.errors import BedstoneError
from bedstone.files import make_folder, write_text
from bedstone.inspect.study import DEATHS, PARTS, Study
from bedstone.recipes.base import go_on, train
from bedstone.report.plots import UNITS
from bedstone.report.trials import Result, ranked, write_tuning_page
from bedstone.settings import to_yaml
from bedstone.train.logs import Interrupts, ProgressBar, clock, counted, read_log
from bedstone.train.loop import Diverged
from bedstone.train.resume import DataChanged
from bedstone.train.run import RunResult, said

POLL = 0.3  # seconds between looks at the study
DYING = 10  # processes that end one after the other without a word in the journal
ENDED_EARLY = ("pruned", "diverged", "failed")


@dataclass
class TrialWatch:
    """Reports a trial's evaluations to its study, and ends it where the study says so."""

    study: Study
    trial: Any
    known: bool = False  # whether its data has been compared

    def __call__(self, share: float, figures: dict[str, float]) -> bool:
        if not self.known:
            self.study.check_data(self.trial.number)
            self.known = True
        value = self.study.figure(figures)
        if not math.isfinite(value):
            self.trial.set_user_attr("ended", "diverged")
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an evaluation that is made again after a death
            self.trial.report(value, round(share * PARTS))
        if self.trial.should_prune():
            self.trial.set_user_attr("ended", "pruned")
            return True
        return False


def work(folder: Path, trials: int) -> None:
    """Runs trials of a study until all have ended, a signal came or the parent process is gone.

    Raises:
        BedstoneError: the study can't go on.
    """
    study = Study(folder)
    parent = os.getppid()
    while os.getppid() == parent:
        if why := study.stuck():
            raise BedstoneError(why)
        with study.claimed(trials) as claim:
            if claim is not None and not run_trial(study, *claim):
                return
        if claim is None:
            if finished(study.results(), trials):
                return
            time.sleep(POLL)


def finished(results: list[Result], trials: int) -> bool:
    """Whether so many trials are there and none is still to be run."""
    return len(results) >= trials and all(each.ended for each in results)


def run_trial(study: Study, trial: Any, values: Mapping[str, Any]) -> bool:
    """Runs a trial, or goes on with it, and records how it ended; False where a signal stopped it.

    Raises:
        DataChanged: the trial's data isn't that of the study; the trial is left as it was.
    """
    folder = study.run_folder(trial.number)
    if trial.user_attrs.get("ended") in ENDED_EARLY:  # its process died before it was recorded
        _end_early(study, trial, folder, _spent(folder))
        return True
    try:
        result = _run(study, trial, values, folder)
    except DataChanged:
        if study.has_other_data(trial.number):  # it is begun anew once the data is back
            shutil.rmtree(folder)
        raise
    except Diverged as error:
        study.end(trial, "diverged", fault=str(error))
        return True
    except BedstoneError as error:
        study.end(trial, "failed", fault=str(error))
        return True
    except Exception as error:
        traceback.print_exc()
        study.end(trial, "failed", fault=f"{type(error).__name__}: {error}")
        return True
    done = result.done
    facts = {"steps": done.step, "items": done.tokens, "seconds": done.seconds}
    if done.reason == "pruned":
        _end_early(study, trial, folder, facts)
    elif done.reason != "finished":
        return False
    else:
        _end_finished(study, trial, done.metrics, facts)
    return True


def _end_early(study: Study, trial: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Records a trial that its watch ended; nobody goes on with it, so its checkpoints are gone."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    study.end(trial, trial.user_attrs["ended"], **facts)


def _spent(folder: Path) -> dict[str, Any]:
    """What a run has spent, as its log says."""
    log = read_log(folder / "log.jsonl")
    if not log:
        return {}
    last = {name: value for record in log for name, value in record.items() if value is not None}
    items = next((int(last[unit]) for unit in UNITS if unit in last), 0)
    return {"steps": log[-1]["step"], "items": items, "seconds": last.get("seconds", 0.0)}


def _run(study: Study, trial: Any, values: Mapping[str, Any], folder: Path) -> RunResult:
    checkpoint = CheckpointStore(folder / "checkpoints").latest()
    begun = study.count_start(trial, -1 if checkpoint is None else checkpoint.step)
    if begun > DEATHS:
        raise BedstoneError(
            f"{folder}: its process ended {DEATHS} times before it came to another checkpoint, "
            "perhaps for lack of memory. Leave such values out of the search space."
        )
    watch = TrialWatch(study, trial)
    if checkpoint is not None:
        return go_on(folder, quiet=True, watch=watch)
    return train(study.made(values, folder), quiet=True, watch=watch)


def _end_finished(
    study: Study, trial: Any, metrics: dict[str, float], facts: dict[str, Any]
) -> None:
    study.check_data(trial.number)
    try:
        value = study.figure(metrics)
    except BedstoneError as error:
        study.end(trial, "failed", fault=str(error), **facts)
        return
    if math.isfinite(value):
        study.end(trial, "finished", value, **facts)
    else:
        study.end(trial, "diverged", fault=f"its last {study.settings.by} is {value}", **facts)


# The process that starts the others.


@dataclass
class Workers:
    """Processes that run the trials of a study.

    Attributes:
        logs: the folder of what they print.
    """

    study: Study
    trials: int
    count: int
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    deaths: int = 0  # since there was last a word in the journal
    words: int = 0

    @property
    def logs(self) -> Path:
        return make_folder(self.study.folder / "workers")

    def keep_up(self) -> None:
        """Starts those that are missing.

        Raises:
            BedstoneError: one refused to go on, or they die as soon as they are started.
        """
        for number in range(self.count):
            process = self.processes.get(number)
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                self._look_at(number, process.returncode)
            with (self.logs / f"{number}.log").open("ab") as log:
                self.processes[number] = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(self.study.folder), str(self.trials)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": str(self.study.threads)},
                    start_new_session=True,  # Ctrl-C comes to us, and each of them once from us
                )

    def _look_at(self, number: int, code: int) -> None:
        """Raises BedstoneError where a process that ended isn't to be started anew."""
        events = self.study.events
        self.deaths = self.deaths + 1 if events == self.words else 0
        self.words = events
        if code <= 0 and self.deaths < DYING:
            return
        log = self.logs / f"{number}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"exit code {code}"
        raise BedstoneError(f"{why.removeprefix('bedstone: ')} (All that was said: {log})")

    def stop(self) -> None:
        """Asks all to save and leave, and waits until they have."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        try:
            for process in self.processes.values():
                process.wait()
        except KeyboardInterrupt:  # a second time
            for process in self.processes.values():
                process.kill()
            raise


def search(study: Study, trials: int, workers: int, *, quiet: bool = False) -> str:
    """Runs a study's trials, as many at a time as there are workers; `finished`, or a signal.

    Raises:
        BedstoneError: the study can't go on; what was found is kept.
    """
    team = Workers(study, trials, workers)
    with Interrupts() as interrupts, ProgressBar("tuning", quiet=quiet) as bar:
        try:
            while not finished(results := study.results(), trials):
                if interrupts.received is not None:
                    return interrupts.received.name
                if why := study.stuck():
                    raise BedstoneError(why)
                team.keep_up()
                share, figures = _progress(study, results, trials)
                bar.update(share, **figures)
                time.sleep(POLL)
        finally:
            team.stop()
            write_results(study)
    return "finished"


def _progress(study: Study, results: list[Result], trials: int) -> tuple[float, dict[str, str]]:
    """The share done, and what is said beside it."""
    spent = sum(1.0 if each.ended else each.share for each in results)
    figures = {
        "trials": f"{sum(each.ended for each in results)}/{trials}",
        "stopped_early": str(sum(each.state == "pruned" for each in results)),
    }
    if (best := study.best()) is not None:
        figures["best"] = f"{best.value:.4f}"
    return spent / trials, figures


def write_results(study: Study) -> None:
    """`tune.html` and, where a trial has finished, `best.yaml` into the study's folder."""
    folder, settings = study.folder, study.settings
    results = ranked(study.results(), highest=settings.by.startswith("-"))
    best, text = study.best(), ""
    if best is not None:
        text = to_yaml(said(study.made(best.values, folder / "best")))
        write_text(folder / "best.yaml", text)
    seconds = sum(each.seconds for each in results)
    count = {state: sum(each.state == state for each in results) for state in
             ("finished", "pruned", "diverged", "failed", "running")}  # fmt: skip
    said_of = ", ".join(f"{number} {state}" for state, number in count.items() if number)
    write_tuning_page(
        folder / "tune.html",
        f"Search {folder.resolve().name}",
        f"{counted(len(results), 'trial')} ({said_of}) by {settings.sampler} and "
        f"{settings.pruner}, compared by {settings.by}; {clock(seconds)} of training.",
        results,
        by=settings.by.removeprefix("-"),
        logarithmic=[each.name for each in study.space if each.log],
        importance=study.importance(),
        recipe=text,
    )


def main(folder: str, trials: str) -> int:
    """A process of a study; the exit code: 2 where it can't go on, else 0."""
    try:
        work(Path(folder), int(trials))
    except BedstoneError as error:
        print(f"bedstone: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
