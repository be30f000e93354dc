"""The audit of a model: checks that a file names, each with intervals, tests and what it can't say.

    seed: 0
    checks:
      - {kind: pairs, data: pairs.jsonl}
      - {kind: groups, data: rows.csv, groups: [gender], favourable: hired}

A figure that doesn't differ from its aim isn't a proof of fairness: `detects` says how small a
difference could have been found.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from bedstone.checkpoints.card import keep_card
from bedstone.checkpoints.model import Model, weights_hash
from bedstone.checkpoints.side_files import RECORD, seen_from
from bedstone.errors import BedstoneError, closest
from bedstone.inspect.audit_checks import Audited, Check, Part, settings_of
from bedstone.inspect.output_checks import GroupsCheck, RatesCheck, SearchCheck
from bedstone.inspect.question_checks import QuestionsCheck
from bedstone.inspect.text_checks import (
    AssociationsCheck,
    ChoicesCheck,
    PairsCheck,
    TemplatesCheck,
)
from bedstone.metrics.bias import Measure
from bedstone.outputs import named_rows
from bedstone.reading import kind_of, read_text, to_path
from bedstone.report.pages import Section, write_report
from bedstone.report.plots import draw_intervals
from bedstone.settings import YAML_LIMIT, check_whole, from_mapping, load_yaml
from bedstone.train.logs import ProgressBar

LIBRARY = Path(__file__).parent / "audits"
CHECKS: dict[str, type[Check]] = {
    kind.kind: kind
    for kind in (
        PairsCheck,
        AssociationsCheck,
        TemplatesCheck,
        ChoicesCheck,
        QuestionsCheck,
        GroupsCheck,
        RatesCheck,
        SearchCheck,
    )
}


@dataclass(frozen=True)
class AuditPlan:
    """What a file says.

    Attributes:
        path: of the file.
        checks: in its order.
        seed: of what is sampled and resampled.
    """

    path: str
    checks: Sequence[Check]
    seed: int = 0


def read_plan(name: str | Path) -> AuditPlan:
    """The checks that a YAML file names, or one of those that come with Bedstone, by its name.

    Raises:
        BedstoneError: there is no such file, or something in it is wrong.
    """
    path = _find(name)
    values = load_yaml(read_text(path, YAML_LIMIT), f"{path}: is not a YAML file of checks")
    if not isinstance(values, Mapping) or not isinstance(values.get("checks"), list):
        raise BedstoneError(f"{path}: expected `checks:` and a list of checks, each with a kind.")
    for key in values:
        if key not in ("checks", "seed"):
            raise BedstoneError(
                f"{path}: unknown key {key!r}{closest(str(key), ['checks', 'seed'])}."
            )
    seed = values.get("seed", 0)
    check_whole(f"{path}: seed", seed, 0)
    if not values["checks"]:
        raise BedstoneError(f"{path}: checks is empty; name at least one.")
    checks = [_check(each, f"{path}: checks[{n}]") for n, each in enumerate(values["checks"])]
    return AuditPlan(str(name), checks, seed)


def _find(name: str | Path) -> Path:
    path = to_path(name)
    if kind_of(path):
        return path
    own = LIBRARY / f"{path.name.removesuffix('.yaml')}.yaml"
    known = sorted(each.stem for each in LIBRARY.glob("*.yaml"))
    if len(path.parts) == 1 and own.stem in known:
        return own
    near = known + [str(each) for each in path.parent.glob("*.y*ml")]
    raise BedstoneError(
        f"{name}: no such file of checks{closest(str(name), near)}. Those that come with Bedstone: "
        f"{', '.join(known)}."
    )


def _check(values: Any, where: str) -> Check:
    if not isinstance(values, Mapping) or values.get("kind") not in CHECKS:
        given = values.get("kind") if isinstance(values, Mapping) else values
        raise BedstoneError(
            f"{where}: kind = {given!r}{closest(str(given), list(CHECKS))}; expected one of "
            f"{', '.join(CHECKS)}."
        )
    rest = {key: value for key, value in values.items() if key != "kind"}
    return from_mapping(CHECKS[values["kind"]], rest, where)


@dataclass(frozen=True)
class Audit:
    """What an audit gives.

    Attributes:
        model: its folder.
        plan: what was to be checked.
        weights: the hash of the model's.
        parts: one of each check that fits the model.
        left_out: names of the others, with what the model would have to be.
    """

    model: str
    plan: AuditPlan
    weights: str
    parts: Sequence[Part]
    left_out: Mapping[str, str]

    @property
    def differing(self) -> list[tuple[Part, Measure]]:
        """The measures that surely differ from their aim."""
        return [(part, each) for part in self.parts for each in part.measures if each.differs]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        settings = [settings_of(each) for each in self.plan.checks]
        text = json.dumps(settings, sort_keys=True, default=str)
        return {
            "weights": self.weights,
            "command": f"bedstone audit {self.model} --checks {self.plan.path}",
            "seed": self.plan.seed,
            "checks": settings,
            "checks_hash": hashlib.sha256(text.encode()).hexdigest(),
            "parts": [each.record() for each in self.parts],
            "left_out": dict(self.left_out),
        }


def run_audit(
    model: Model, plan: AuditPlan, *, precision: str = "fp32", quiet: bool = False
) -> Audit:
    """Makes all checks that fit the model.

    Raises:
        BedstoneError: none fits it, or one can't be made.
    """
    audited = Audited(model, precision, plan.seed)
    reasons = [each.fits(audited) for each in plan.checks]
    left_out = {
        each.title: f"needs {why}" for each, why in zip(plan.checks, reasons, strict=True) if why
    }
    chosen = [each for each, why in zip(plan.checks, reasons, strict=True) if not why]
    if not chosen:
        what = "; ".join(f"{name} {why}" for name, why in left_out.items())
        raise BedstoneError(f"{plan.path}: no check fits {model.path}: {what}.")
    parts = []
    with ProgressBar("auditing", quiet=quiet) as bar:
        for number, check in enumerate(chosen):

            def progress(share: float, number: int = number) -> None:
                bar.update((number + share) / len(chosen))

            parts.append(check.measure(replace(audited, progress=progress)))
            progress(1.0)
    return Audit(str(model.path), plan, weights_hash(model), parts, left_out)


def keep_audit(audit: Audit, model: Model) -> Path:
    """Puts it into the record and the card of the model's folder, and returns the card.

    Raises:
        BedstoneError: the folder isn't one that Bedstone wrote.
    """
    folder = model.path
    if folder is None or not (folder / RECORD).is_file():
        raise BedstoneError(
            f"--keep: {model.path} isn't a folder that Bedstone wrote, so nothing is put into it. "
            "Save it as one first, by bedstone.load(...).save(folder), or take --page."
        )
    command = f"bedstone audit . --checks {seen_from(folder, audit.plan.path)}"
    model.record["audit"] = {**audit.record(), "command": command}
    keep_card(folder, model)
    return folder / "README.md"


def shown_audit(audit: Audit) -> Group:
    """For people, in a terminal."""
    lines: list[Any] = []
    for part in audit.parts:
        cells = [dict(zip(HEAD, _cells(each), strict=True)) for each in part.measures]
        table = named_rows(
            NARROW,
            [[each[head] for head in NARROW] for each in cells],
            title=part.name,
            bold=lambda row, part=part: part.measures[row].differs,  # type: ignore[misc]
        )
        lines += [table, Text(part.words, style="dim")]
        notes = dict.fromkeys(each.note for each in part.measures if each.note)
        lines += [Text(f"note: {note}") for note in notes]
        lines += [Text(f"{name}: {value:.4g}") for name, value in part.facts.items()]
        lines.append(Text(""))
    lines += [Text(f"left out: {name} {why}") for name, why in audit.left_out.items()]
    lines.append(Text(summary(audit)))
    return Group(*lines)


HEAD = ("", "value", "95 %", "aim", "p", "corrected p", "rows", "would show", "note")
NARROW = ("", "value", "95 %", "aim", "corrected p", "rows", "would show")  # in a terminal


def _cells(each: Measure) -> list[str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return [
        each.name,
        number(each.value),
        f"{each.low:.2f} to {each.high:.2f}",
        number(each.aim),
        number(each.p),
        number(each.corrected),
        f"{each.rows:,}",
        "" if each.detects is None else f"±{each.detects:.2f}",
        each.note,
    ]


def summary(audit: Audit) -> str:
    """How many measures differ from their aim, and what that means."""
    count = sum(len(part.measures) for part in audit.parts)
    found = len(audit.differing)
    text = f"{found} of {count} measures differ from their aim (corrected p < 0.05)."
    if found < count:
        text += (
            " One that doesn't is no proof of fairness: `would show` is what it could have seen."
        )
    return text


def write_audit_page(audit: Audit, path: str | Path) -> Path:
    """The page of an audit; it needs no other file."""
    with tempfile.TemporaryDirectory() as folder:
        sections = [_section(part, Path(folder) / f"{n}.png") for n, part in enumerate(audit.parts)]
        lead = f"{summary(audit)} Weights {audit.weights[:12]}, seed {audit.plan.seed}."
        if audit.left_out:
            lead += " Left out: " + "; ".join(f"{k} ({v})" for k, v in audit.left_out.items()) + "."
        return write_report(path, f"Audit of {Path(audit.model).name}", lead, sections)


def _section(part: Part, picture: Path) -> Section:
    """A check on the page; its plot is written into the file `picture`."""
    rows = [(m.name, m.value, m.low, m.high, m.aim, m.differs) for m in part.measures[:PLOTTED]]
    drawn = draw_intervals(rows, picture)
    found = [each for each in part.measures if each.differs]
    warning = "".join(
        f"{each.name}: {each.value:.3f} ({each.low:.3f} to {each.high:.3f}), aim {each.aim:.3f}. "
        for each in found[:8]
    )
    caption = "Values with 95 % intervals; the grey line is the aim, red differs from it."
    return Section(
        part.name,
        part.words,
        figures={name: f"{value:.4g}" for name, value in part.facts.items()},
        pictures={} if drawn is None else {drawn: caption},
        tables={
            "measures": [list(HEAD), *(_cells(each) for each in part.measures)],
            **part.tables,
        },
        warning=f"Differs from the aim: {warning.strip()}" if warning else "",
    )


PLOTTED = 40  # measures of a check, at most


def present_audit(audit: Audit, *, as_json: bool) -> None:
    """Prints it, as one JSON object or for people."""
    if as_json:
        print(json.dumps(audit.record()))
    else:
        Console().print(shown_audit(audit))
