"""`bedstone report` and `compare`: a run as one page, and several runs side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.text import Text

from bedstone.checkpoints.side_files import read_record
from bedstone.errors import BedstoneError
from bedstone.outputs import named_rows, new_file
from bedstone.reading import read_object
from bedstone.report.pages import Section, write_report
from bedstone.report.plots import draw_curves
from bedstone.settings import flat, read_values, to_yaml
from bedstone.train.logs import clock, counted, read_lines, read_log

PICTURES = {"curve.png": "Loss in training", "samples.png": "Samples", "answers.png": "Answers"}
# Figures that a comparison draws, by minutes or steps, with what is said below.
CURVES = (
    ("validation_loss", "minutes", "Validation loss by minutes of training"),
    ("validation_loss", "step", "Validation loss by steps"),
    ("loss", "step", "Training loss by steps"),
)
LEFT_OUT = ("kind", "main", "labels", "support", "confusion", "baselines", "warning", "rows")


@dataclass
class Run:
    """What a run's folder says.

    Attributes:
        recipe, data: of recipe.yaml and data.json.
        log: the lines of log.jsonl.
        figures: records of evaluation.json that have a main figure, by `validation`,
            `test/answers` and such.
        loose: figures of evaluation.json, or of the log's last evaluation, that have none.
    """

    folder: Path
    recipe: dict[str, Any]
    data: dict[str, Any]
    log: list[dict[str, Any]]
    figures: dict[str, dict[str, Any]]
    loose: dict[str, float]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def last(self) -> dict[str, Any]:
        """The last line of the log."""
        return self.log[-1] if self.log else {}


def open_run(folder: str | Path) -> Run:
    """Reads the folder of a run.

    Raises:
        BedstoneError: it is none, or a file in it is damaged.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise BedstoneError(
            f"{folder}: holds no recipe.yaml, so it is not a run's folder. Give the one that "
            "training wrote (its option out=)."
        )
    recipe = read_values(folder / "recipe.yaml")
    files = (folder / "data.json", folder / "evaluation.json")
    data, evaluation = (read_object(file, finite=False) if file.is_file() else {} for file in files)
    log = read_log(folder / "log.jsonl")
    figures = _with_main(evaluation)
    loose = {name: value for name, value in evaluation.items() if _is_number(value)}
    for line in log:
        if "validation_loss" in line:
            kept = {k: v for k, v in line.items() if k.startswith("validation_") and "/" not in k}
            loose = {**loose, **kept}
    return Run(folder, recipe, data, log, figures, loose)


def _with_main(found: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Records of `Figures` anywhere in an evaluation, by their path."""
    kept: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        if isinstance(value, dict) and value.get("main") in value:
            kept[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            kept |= _with_main(value, f"{prefix}{name}/")
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def report(run: str, out: str | None = None, overwrite: bool = False) -> Path:
    """Write one HTML page about a run: verdict, curve, metrics beside baselines, worst rows.

    Args:
        run: the run's folder.
        out: the page to write (default: report.html in the run's folder, made anew each time).
        overwrite: replace a page of the same name.

    Example:
        bedstone report runs/finetune-own

    Raises:
        BedstoneError: there is no run there.
    """
    found = open_run(run)
    path = found.folder / "report.html"
    if out is not None:
        path = new_file(out, "--out", overwrite=overwrite)
    sections = [verdict(found), *_measured(found), making(found)]
    write_report(path, f"Run {found.name}", _lead(found), [each for each in sections if each])
    for each in sections:
        if each is not None and each.warning:
            Console().print(Text(each.warning, style="bold yellow"))
    print(f"report: {path}")
    return path


def _lead(run: Run) -> str:
    task = run.recipe.get("task") or run.recipe.get("method") or "language modelling"
    ended = "finished" if (run.folder / "model").is_dir() else "not finished"
    last = run.last
    parts = [str(task), ended]
    if last:
        parts.append(f"{counted(last['step'], 'step')} in {clock(last.get('seconds', 0.0))}")
    return "; ".join(parts) + ". Brackets hold 95 % bootstrap intervals."


def verdict(run: Run) -> Section:
    """The main figure of each evaluation beside its baselines, or the last held-out loss."""
    figures: dict[str, str] = {}
    warnings = []
    for name, record in run.figures.items():
        main = record["main"]
        figures[f"{name}: {main}"] = _with_interval(record, main)
        for baseline, value in (record.get("baselines") or {}).items():
            figures[f"{name}: {main} of the baseline {baseline}"] = f"{value:.4f}"
        if record.get("warning"):
            warnings.append(f"{name}: {record['warning']}")
    if not figures:
        figures = {name: f"{value:.4f}" for name, value in run.loose.items()}
    words = "" if figures else "Nothing was measured on held-out data yet."
    return Section("Verdict", words, figures, warning=" ".join(warnings))


def _with_interval(record: Mapping[str, Any], name: str) -> str:
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    between = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    return f"{record[name]:.4f}{between}"


def _measured(run: Run) -> list[Section]:
    """The curve, and for each evaluation its figures, confusion and worst rows."""
    pictures = {run.folder / name: said for name, said in PICTURES.items()}
    curve = Section("Training", pictures={p: said for p, said in pictures.items() if p.is_file()})
    sections = [curve] if curve.pictures else []
    for name, record in run.figures.items():
        names = [key for key in _values(record) if "/" not in key and _is_number(record[key])]
        whole = {key: _with_interval(record, key) for key in names}
        title = f"Metrics: {name}"
        made = Section(title, f"{record.get('rows', 0):,} rows.", whole)
        if record.get("support"):
            made.tables["By class"] = _classes(record)
        confusion = run.folder / f"confusion-{name}.png"
        if confusion.is_file():
            made.pictures[confusion] = "Rows: what is so. Columns: what was predicted."
        worst = run.folder / f"worst-{name}.jsonl"
        if worst.is_file():
            made.tables["Mistaken most surely: look here for wrong labels"] = _worst(worst)
        sections.append(made)
    return sections


def _values(record: Mapping[str, Any]) -> list[str]:
    """The names of a record's figures, without the ends of their intervals."""
    ends = ("_low", "_high")
    return [key for key in record if key not in LEFT_OUT and not key.endswith(ends)]


def _classes(record: Mapping[str, Any]) -> list[list[str]]:
    """Figures of each class, a row each, the most frequent first."""
    pairs = [key.partition("/")[::2] for key in _values(record) if "/" in key]
    names = list(dict.fromkeys(figure for figure, _ in pairs))
    rows = [["class", *names, "rows"]]
    for label, count in sorted(record["support"].items(), key=lambda item: -item[1]):
        cells = [record.get(f"{name}/{label}") for name in names]
        rows.append([str(label), *("" if v is None else f"{v:.3f}" for v in cells), f"{count:,}"])
    return rows


def _worst(path: Path) -> list[list[str]]:
    rows = [["text", "labelled", "predicted", "probability", "where"]]
    for one in read_lines(path):
        where = str(one.get("where", one.get("row", ""))).rpartition("/")[2]
        said = [one.get("text", ""), one.get("actual", ""), one.get("predicted", "")]
        rows.append([*map(str, said), _short(one.get("probability")), where])
    return rows


def _short(value: Any) -> str:
    return f"{value:.2f}" if _is_number(value) else ""


def making(run: Run) -> Section:
    """The recipe, the data and the versions by which the run can be made again."""
    recipe = to_yaml(run.recipe)
    data = {key: str(value) for key, value in run.data.items() if not isinstance(value, dict)}
    versions = read_record(run.folder / "model", verify=False).get("versions")
    made = Section("How it was made", "The recipe, and the data that it names.", data)
    if isinstance(versions, dict):
        made.tables["Versions"] = [["", ""], *([str(k), str(v)] for k, v in versions.items())]
    made.commands[recipe] = "recipe.yaml, with all defaults: bedstone pretrain or finetune takes it"
    return made


def compare(
    runs: list[str], page: str | None = None, overwrite: bool = False, as_json: bool = False
) -> None:
    """Compare runs: where their recipes and data differ, and their metrics side by side.

    Args:
        runs: two or more folders of runs.
        page: an HTML file to write, with the curves too.
        overwrite: replace a page of the same name.
        as_json: print one JSON object.

    Example:
        bedstone compare runs/small runs/large --page compared.html

    Raises:
        BedstoneError: one is no run, or there is only one.
    """
    if len(runs) < 2:
        raise BedstoneError("compare: expected two runs or more. Give their folders.")
    if page is not None:
        new_file(page, "--page", overwrite=overwrite)
    found = [open_run(each) for each in runs]
    names = _names(found)
    tables = {
        "recipe": differences([each.recipe for each in found]),
        "data": differences([_data(each) for each in found]),
        "metrics": side_by_side(found),
    }
    warning = _other_data(found)
    if page is not None:
        _write_comparison(page, found, names, tables, warning)
    if as_json:
        print(json.dumps({"runs": names, "warning": warning, **_by_run(tables, names)}))
        return
    console = Console()
    for title, rows in tables.items():
        shown = named_rows(("", *names), rows, title=title) if rows else None
        console.print(shown or f"{title}: nothing differs")
    if warning:
        console.print(Text(warning, style="bold yellow"))
    if page is not None:
        print(f"page: {page}")


def _data(run: Run) -> dict[str, Any]:
    """What a run's data.json says, hashes by their first digits."""
    return {
        name: str(value)[:12] if "fingerprint" in name or name == "tokenizer" else value
        for name, value in run.data.items()
        if isinstance(value, str | int)
    }


def _other_data(runs: Sequence[Run]) -> str:
    """A warning where the figures are of other data; "" where they compare."""
    prints = {str(each.data.get("fingerprint")) for each in runs}
    if len(prints) < 2:
        return ""
    return (
        "The runs learnt from other data. Where what was held out differs too, their figures don't "
        "compare."
    )


def _by_run(tables: Mapping[str, list[list[str]]], names: Sequence[str]) -> dict[str, Any]:
    """The tables as mappings: of each, a row's values by the run."""
    return {
        title: {name: dict(zip(names, values, strict=True)) for name, *values in rows}
        for title, rows in tables.items()
    }


def _write_comparison(
    page: str,
    runs: Sequence[Run],
    names: Sequence[str],
    tables: Mapping[str, list[list[str]]],
    warning: str,
) -> None:
    """The page of a comparison: figures and curves, then what differs."""
    head = ["", *names]
    titles = {"recipe": "Where the recipes differ", "data": "Where the data differ"}
    with TemporaryDirectory() as folder:
        logs = {name: each.log for name, each in zip(names, runs, strict=True)}
        curves = Section("Metrics", tables={"": [head, *tables["metrics"]]}, warning=warning)
        for number, (figure, by, said) in enumerate(CURVES):
            path = Path(folder) / f"{number}.png"
            if (drawn := draw_curves(logs, path, said, figure=figure, by=by)) is not None:
                curves.pictures[drawn] = said
        differing = [
            Section(title, tables={"": [head, *tables[name]]})
            for name, title in titles.items()
            if tables[name]
        ]
        lead = ", ".join(str(each.folder) for each in runs)
        write_report(page, "Runs compared", lead, [curves, *differing])


def _names(runs: Sequence[Run]) -> list[str]:
    """Short names that differ."""
    short = [each.name for each in runs]
    return short if len(set(short)) == len(short) else [str(each.folder) for each in runs]


def differences(recipes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of fields that differ: the field, and its value in each recipe."""
    found = [flat(each) for each in recipes]
    fields = dict.fromkeys(name for each in found for name in each)
    rows = []
    for name in fields:
        values = [each.get(name, "") for each in found]
        if name != "out" and any(value != values[0] for value in values):
            rows.append([name, *map(str, values)])
    return rows


def side_by_side(runs: Sequence[Run]) -> list[list[str]]:
    """Rows of figures: the name, and each run's value with its interval."""
    columns = []
    for run in runs:
        values = {
            f"{name}: {record['main']}": _with_interval(record, record["main"])
            for name, record in run.figures.items()
        }
        loose = run.loose
        if values:  # the others are among the figures
            loose = {name: loose[name] for name in ("validation_loss",) if name in loose}
        values |= {name: f"{value:.4f}" for name, value in loose.items()}
        if run.last:
            values["steps"] = f"{run.last['step']:,}"
            values["time"] = clock(run.last.get("seconds", 0.0))
        columns.append(values)
    names = dict.fromkeys(name for values in columns for name in values)
    return [[name, *(values.get(name, "") for values in columns)] for name in names]
