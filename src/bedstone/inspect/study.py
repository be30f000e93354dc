"""A study on disk: trials by optuna, each of them an ordinary run, held by one process at a time.

    study.json      what is varied, by what trials are compared and how they are chosen
    recipe.yaml     what all trials share
    journal/        optuna's journal, a line for each event
    trials/0007/    the run of trial 7
    claims/0007/    held by the process that runs it

A trial whose process has died is one that runs by the journal and that nobody holds. Whoever finds
it goes on with its run, so that no trial is lost and none is run twice. Optuna's own file backend
isn't used: half a line, which a killed process leaves, makes that unreadable for good, and its lock
stays for half a minute.

Trials are chosen by TPE (Bergstra et al., 2011) and stopped early by ASHA (Li et al., 2020): at
each rung, a share of the budget, a trial goes on that is among the best 1/η of those that came so
far.
"""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError, nearest
from bedstone.files import lock, make_folder, write_json, write_text
from bedstone.inspect.space import Dimension
from bedstone.reading import is_plain, read_object, shown
from bedstone.recipes.base import read
from bedstone.report.trials import Result
from bedstone.settings import Settings, flat, number, one_of, read_values, to_yaml, whole
from bedstone.train.resume import DATA, RECIPE, DataChanged

SETTINGS, JOURNAL = "study.json", "journal/journal.jsonl"
PARTS = 1000  # a trial's progress is counted in so many parts of its budget
NAME = "study"  # optuna's, of the only study in a journal
DEATHS = 10  # of a trial's processes, without a step between, before it is given up
FAULTS = 3  # trials that fail at the beginning, with none that doesn't, before the study stops


@dataclass
class StudySettings(Settings):
    """How trials are chosen, compared and stopped.

    Attributes:
        by: the figure that trials are compared by, as the log has it; lower is better, and of
            `-NAME` higher.
        sampler: what chooses values: tpe, or random.
        pruner: what stops trials early: asha, or none.
        first: the share of a trial's budget after which it may be stopped first.
        reduction: of so many trials that come to a rung, one goes on; rungs lie so many times
            further apart, too.
        seed: of the choices.
    """

    by: str = "validation_loss"
    sampler: str = one_of("tpe", "random", default="tpe")
    pruner: str = one_of("asha", "none", default="asha")
    first: float = number(0.001, 1.0, open_most=True, default=0.1)
    reduction: int = whole(2, default=4)
    seed: int = whole(0, default=0)


class Journal:
    """Where optuna's `JournalStorage` keeps its events: a JSON object a line, in one file.

    The lock is the system's, which a killed process lets go of, and a line that it left cut short
    is taken away before the next one is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts = [0]  # the place in the file where each event begins
        make_folder(path.parent)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The events from a number on."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            number = min(log_number_from, len(self.starts) - 1)
            file.seek(self.starts[number])
            for line in file:
                if not line.endswith(b"\n"):  # another process is writing it, or has died
                    return
                number += 1
                if number == len(self.starts):
                    self.starts.append(self.starts[-1] + len(line))
                if number > log_number_from:
                    yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends events, which are on the disk then."""
        data = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in logs).encode()
        with lock(self.path.parent, wait=True), self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 2**20, 0))
            tail = file.read()
            whole = size - len(tail) + tail.rfind(b"\n") + 1
            if whole < size:
                file.truncate(whole)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


class Study:
    """A study in a folder.

    Args:
        folder: that `create` has filled.

    Raises:
        BedstoneError: it is no study, or optuna isn't installed.
    """

    def __init__(self, folder: Path) -> None:
        if not is_plain(folder / SETTINGS):
            raise BedstoneError(f"{folder}: holds no {SETTINGS}, so it is no study of `tune`.")
        self.folder = folder
        kept = read_object(folder / SETTINGS)
        self.settings = StudySettings(**kept["settings"])
        self.space = [
            Dimension(**{**each, "choices": tuple(each["choices"])}) for each in kept["space"]
        ]
        self.threads = int(kept["threads"])
        self.recipe = read_values(folder / RECIPE)
        self.optuna = _optuna()
        storage = self.optuna.storages.JournalStorage(Journal(folder / JOURNAL))
        names = [each.study_name for each in storage.get_all_studies()]
        make = self.optuna.load_study if NAME in names else self.optuna.create_study
        direction = {} if NAME in names else {"direction": self._direction}
        self.study = make(
            study_name=NAME, storage=storage, sampler=self._sampler(0), pruner=self._pruner(),
            **direction,
        )  # fmt: skip

    @property
    def _direction(self) -> str:
        return "maximize" if self.settings.by.startswith("-") else "minimize"

    def _sampler(self, number: int) -> Any:
        """What chooses the values of one trial: its draws follow from its number alone."""
        seed = self.settings.seed * 100_003 + number
        samplers = self.optuna.samplers
        if self.settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)

    def _pruner(self) -> Any:
        if self.settings.pruner == "none":
            return self.optuna.pruners.NopPruner()
        return self.optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(round(self.settings.first * PARTS), 1),
            reduction_factor=self.settings.reduction,
        )

    # Trials.

    @contextlib.contextmanager
    def claimed(self, trials: int) -> Iterator[tuple[Any, dict[str, Any]] | None]:
        """A trial that nobody runs and its values, held for as long; None if there is none.

        One that began and whose process has died comes before a new one.

        Args:
            trials: of the study in all.
        """
        with contextlib.ExitStack() as stack:
            with lock(self.folder, wait=True):
                trial = self._left(stack) or self._new(trials, stack)
                found = trial and (trial, {each.name: each.suggest(trial) for each in self.space})
            yield found

    def _left(self, stack: contextlib.ExitStack) -> Any:
        """A trial that a dead process has left, with what values it has."""
        for each in self._trials():
            if not (each.state.name == "RUNNING" and self._hold(each.number, stack)):
                continue
            if self._trials()[each.number].state.name == "RUNNING":
                self.study.sampler = self._sampler(each.number)
                return self.optuna.trial.Trial(self.study, each._trial_id)
            stack.close()  # whoever held it has just ended it
        return None

    def _new(self, trials: int, stack: contextlib.ExitStack) -> Any:
        known = self._trials()
        if sum(each.state.name != "WAITING" for each in known) >= trials:
            return None
        usual = [] if known else self._usual()
        if usual and all(each.holds(own) for each, own in usual):
            # the recipe as it is: what a search has to be better than
            self.study.enqueue_trial({each.name: each.stored(own) for each, own in usual})
        self.study.sampler = self._sampler(len(known))
        trial = self.study.ask()
        if not self._hold(trial.number, stack):
            raise BedstoneError(f"{self.folder / 'claims'}: a new trial is held. Remove that lock.")
        return trial

    def _trials(self) -> list[Any]:
        found: list[Any] = self.study.get_trials(deepcopy=False)
        return found

    def _usual(self) -> list[tuple[Dimension, Any]]:
        """Each dimension, and its value in the recipe that trials share."""
        own = flat(asdict(read(self.recipe, usual="supervised")))
        return [(each, own.get(each.name)) for each in self.space]

    def _hold(self, number: int, stack: contextlib.ExitStack) -> bool:
        try:
            stack.enter_context(lock(make_folder(self.folder / "claims" / f"{number:04}")))
        except BedstoneError:
            return False
        return True

    def made(self, values: Mapping[str, Any], out: Path) -> Any:
        """The recipe with such values, which runs into a folder."""
        return read(self.recipe, [dict(values), {"out": str(out)}], usual="supervised")

    def run_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04}"

    def count_start(self, trial: Any, step: int) -> int:
        """How often a trial was begun at a step, this time among them."""
        at, times = trial.user_attrs.get("begun", (step, 0))
        times = times + 1 if at == step else 1
        trial.set_user_attr("begun", (step, times))
        return int(times)

    def figure(self, figures: Mapping[str, float]) -> float:
        """The figure that trials are compared by.

        Raises:
            BedstoneError: it isn't among those that were measured.
        """
        name = self.settings.by.removeprefix("-")
        if name not in figures:
            hint = nearest(name, figures) if figures else ", for nothing is held out"
            raise BedstoneError(f"--by: {name!r} isn't measured of this recipe{hint}.")
        return float(figures[name])

    @property
    def events(self) -> int:
        """How many bytes of events the journal holds."""
        path = self.folder / JOURNAL
        return path.stat().st_size if path.exists() else 0

    def check_data(self, number: int) -> None:
        """Raises DataChanged where a trial learns from other data than the first one did."""
        with lock(self.folder, wait=True):
            if "data" not in self.study.user_attrs:
                self.study.set_user_attr("data", self._data(number))
        if self.has_other_data(number):
            raise DataChanged(
                f"{self.folder}: the data of trial {number} isn't that of the trials before it, so "
                "their figures don't compare. Bring the data back as it was, or begin another "
                "study with --out."
            )

    def has_other_data(self, number: int) -> bool:
        """Whether a trial's data isn't that of the study."""
        first = self.study.user_attrs.get("data")
        return first is not None and self._data(number) not in (None, first)

    def _data(self, number: int) -> Any:
        path = self.run_folder(number) / DATA
        return read_object(path, finite=False).get("fingerprint") if is_plain(path) else None

    def end(self, trial: Any, state: str, value: float | None = None, **facts: Any) -> None:
        """Records what became of a trial.

        Args:
            state: of `Result`.
            value: of a finished trial.
            facts: other attributes of `Result`.
        """
        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        if value is not None:
            trial.report(value, PARTS)
        trial.set_user_attr("ended", state)
        states = self.optuna.trial.TrialState
        kind = {"finished": states.COMPLETE, "failed": states.FAIL}.get(state, states.PRUNED)
        self.study.tell(trial, value, state=kind)

    def results(self) -> list[Result]:
        """All trials by their number."""
        return [self._result(each) for each in self._trials()]

    def _result(self, trial: Any) -> Result:
        names = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        facts = trial.user_attrs
        state = names.get(trial.state.name, trial.state.name.lower())
        if state == "pruned":
            state = facts.get("ended", state)
        has = [each for each in self.space if each.name in trial.params]
        params = {each.name: each.read(trial.params[each.name]) for each in has}
        known = {"steps", "items", "seconds", "fault"} & facts.keys()
        curve = [(at / PARTS, value) for at, value in sorted(trial.intermediate_values.items())]
        return Result(
            trial.number,
            state,
            params,
            trial.value if state == "finished" else None,
            [(at, value) for at, value in curve if math.isfinite(value)],
            **{name: facts[name] for name in known},
        )

    def best(self) -> Result | None:
        """The finished trial with the best value; None as long as none has finished."""
        done = [each for each in self.results() if each.value is not None]
        sign = -1 if self._direction == "maximize" else 1
        return min(done, key=lambda each: sign * (each.value or 0.0), default=None)

    def stuck(self) -> str:
        """Why the study can't go on: all trials so far have failed. "" where it can."""
        ended = [each for each in self.results() if each.ended]
        if len(ended) < FAULTS or any(each.state != "failed" for each in ended):
            return ""
        return (
            f"{self.folder}: the first {len(ended)} trials failed, the last one by: "
            f"{ended[-1].fault} Mend the recipe or the search space, and begin another study."
        )

    def importance(self) -> tuple[dict[str, float], float]:
        """How much each field decides who is among the best, and at which share of the budget.

        By PED-ANOVA (Watanabe et al., 2023), of the figures of all trials at the first share that
        at least half of them have; {} with fewer than eight.
        """
        found = self._trials()
        curves = {each.number: each.intermediate_values for each in found}
        steps = sorted({min(curve) for curve in curves.values() if curve})
        at = steps[len(steps) // 2] if steps else 0
        trials = []
        for each in found:
            value = next((v for step, v in sorted(curves[each.number].items()) if step >= at), None)
            if value is not None and math.isfinite(value) and len(each.params) == len(self.space):
                trials.append(
                    self.optuna.trial.create_trial(
                        params=each.params, distributions=each.distributions, value=value
                    )
                )
        if len(trials) < 8:
            return {}, 0.0
        alone = self.optuna.create_study(direction=self._direction)
        alone.add_trials(trials)
        importance = self.optuna.importance
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = importance.get_param_importances(
                alone, evaluator=importance.PedAnovaImportanceEvaluator()
            )
        return dict(shares), at / PARTS


def create(
    folder: Path,
    recipe: Mapping[str, Any],
    space: Sequence[Dimension],
    settings: StudySettings,
    threads: int,
) -> Study:
    """The study of a folder: a new one, or the one that is there, which is to be the same.

    Args:
        threads: of each trial; a study that goes on keeps its own, on which last bits depend.

    Raises:
        BedstoneError: another study is there, or the folder holds something else.
    """
    document = {"settings": asdict(settings), "space": [asdict(each) for each in space]}
    document = json.loads(json.dumps(document))
    text = to_yaml(dict(recipe))
    _optuna()
    with lock(make_folder(folder), wait=True):
        if is_plain(folder / SETTINGS):
            _check_same(folder, document, text)
        elif is_plain(folder / RECIPE):
            raise BedstoneError(f"{folder}: holds a run. Choose another folder by --out.")
        else:
            write_text(folder / RECIPE, text)
            write_json(folder / SETTINGS, {**document, "threads": threads})
        return Study(folder)


def _check_same(folder: Path, document: Mapping[str, Any], recipe: str) -> None:
    there = read_object(folder / SETTINGS)
    parts = {"the search space": ("space", "space")}
    parts |= {f"--{name}": ("settings", name) for name in document["settings"]}
    for said, (part, name) in parts.items():
        now, then = document[part], there.get(part)
        if part == "settings":
            now, then = now[name], (then or {}).get(name)
        if now != then:
            raise BedstoneError(
                f"{folder}: holds a study with another value of {said}: {shown(then)}, now "
                f"{shown(now)}. Give what it was begun with, or choose another folder by --out."
            )
    if (folder / RECIPE).read_text(encoding="utf-8") != recipe:
        raise BedstoneError(
            f"{folder}: holds a study of another recipe ({folder / RECIPE}). Give the recipe that "
            "it was begun with, or choose another folder by --out."
        )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise BedstoneError(
            "tune: needs optuna. Install it: pip install 'bedstone[tune]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
