"""A campaign of rows that lie: what every reader makes of `row_cells` and `row_files`.

    python tests/hostile/row_campaign.py [--numbers 1] [--inputs 0] [--kinds PART]

Each case is read by every reader in a process of its own. What a reader did is counted:

    right      refused in one paragraph that names the file, and the place where rows are broken
    accepted   gave the values that were written, doubts and broken rows named
    unnamed    refused without the file's name or place, or in more than 1,200 letters
    needless   refused what is sound
    wrong      gave other values than were written, lost rows or saw no doubt, without a word
    traceback, slow (over 1 s), memory (over 1 GB)
"""

import argparse
import collections
import contextlib
import csv
import decimal
import io
import json
import logging
import math
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from campaign import Wrong, outcomes, run
from pyarrow import parquet
from row_cells import Case, Rows
from row_files import cases

import image_models
import small_models
from bedstone.data import labels as labelling
from bedstone.data.bytes import data_suffix
from bedstone.data.dataset import Dataset
from bedstone.data.fields import PAIRS
from bedstone.data.open import open_dataset, with_images
from bedstone.data.records import Faults
from bedstone.data.sources import open_source
from bedstone.data.summary import summarise
from bedstone.data.text.supervised import usable_rows
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.search.fill import FolderSource, RowSource, _typed
from bedstone.tasks.text.semantic_search import read_corpus

MOST = 0.9  # of rows that may be broken, where a reader takes that
SECONDS = 1.0


def same(found: Any, written: Any, cells: bool, number: bool = False) -> bool:
    """Whether a value is the one that was written; of cells that are texts, an equal number too."""
    if cells and isinstance(written, str):
        if found == written or (found is None and written == ""):
            return True
        if not number or isinstance(found, str) or found is None:
            return False
        if type(found) is int:
            return str(found) == written
        return decimal.Decimal(repr(found)) == decimal.Decimal(written)
    if isinstance(written, float) and math.isnan(written):
        return isinstance(found, float) and math.isnan(found)
    if isinstance(written, list | tuple):
        return len(found or ()) == len(written) and all(
            same(one, two, False) for one, two in zip(found, written, strict=True)
        )
    return type(found) is type(written) and found == written


def in_order(
    found: Sequence[Any], written: Sequence[Any], equal: Callable[[Any, Any], bool], broken: int
) -> None:
    """Raises Wrong unless what was found is what was written, but for as many as are broken."""
    rest, missing = iter(written), 0
    for each in found:
        first = None
        for other in rest:
            if equal(each, other):
                break
            first = first if missing else other
            missing += 1
        else:
            raise Wrong(f"{each!r} was read, which nobody wrote; perhaps {first!r}")
    missing += len(list(rest))
    if missing > broken:
        raise Wrong(f"{missing} values are missing and {broken} are said to be broken")


def lost(faults: Faults) -> int:
    """How many rows are said to be broken; one over several lines may be as many rows."""
    spans = [re.search(r"lines (\d+) to (\d+) are", each) for each in faults.broken]
    return len(spans) + sum(int(span[2]) - int(span[1]) for span in spans if span)


class Reading:
    """What readers are given: a case, its folder, and models."""

    def __init__(self, case: Case, home: Path, models: dict[str, Path]) -> None:
        self.case, self.home, self.models = case, home, models
        self.path = home / case.path
        self.cells = data_suffix(self.path).lower() in (".csv", ".tsv") or (
            self.path.is_dir() and any(self.path.rglob("metadata.csv"))
        )

    def rows(
        self, found: Rows, broken: int, typed: Sequence[str] = (), less: Sequence[str] = ()
    ) -> None:
        """Compares rows with those written; `typed` columns may hold numbers."""
        known = self.case.rows or []

        def equal(row: dict[str, Any], other: dict[str, Any]) -> bool:
            names = [name for name in other if name not in less]
            return all(
                same(row.get(name), other[name], self.cells, name in typed) for name in names
            )

        in_order(found, known, equal, broken)
        if broken < self.case.broken:
            raise Wrong(f"{self.case.broken} rows are broken; {broken} were counted")


def rows(reading: Reading) -> None:
    data = open_dataset(reading.path, most_broken=MOST)
    reading.rows(data.rows, lost(data.faults), ("label", "labels"))


def samples(reading: Reading) -> None:
    data = open_dataset(reading.path, PAIRS, most_broken=MOST)

    def equal(sample: Any, row: dict[str, Any]) -> bool:
        text, label = row.get("text"), row.get("label")
        texts = text if isinstance(text, list) else [] if text is None else [text]
        texts = [each.strip() for each in texts if isinstance(each, str)]
        plain = label is not None and not isinstance(label, list | dict) and str(label).strip()
        known = str(label).strip() if plain else None
        return sample.label == known and (sample.made or list(sample.captions) == texts)

    in_order(data.rows, reading.case.rows or [], equal, lost(data.faults))
    if lost(data.faults) < reading.case.broken:
        raise Wrong(f"{reading.case.broken} rows are broken; {lost(data.faults)} counted")
    doubts(reading, data, [row.label or "" for row in data.rows])


def images(reading: Reading) -> None:
    data = with_images(reading.path)
    reading.rows(data.rows, lost(data.faults), less=("image",))
    for row in data.rows:
        if not isinstance(row["image"], bytes) and not row["image"].is_file():
            raise Wrong(f"there is no image {row['image']}")


def pieces(reading: Reading) -> None:
    source = open_source(reading.path, most_broken=MOST)
    found = list(source.documents())
    known = [row["text"] for row in reading.case.rows or [] if row.get("text") != ""]
    in_order(found, known, lambda one, two: one == two, lost(source.faults))


def corpus(reading: Reading) -> None:
    found = read_corpus(str(reading.path))[0]
    known = [row["text"] for row in reading.case.rows or []]
    in_order(found, known, lambda one, two: one == two, 0)


def labels(reading: Reading) -> None:
    """As training reads them: names or numbers, broken rows and doubts."""
    data = usable_rows("text-classification", open_dataset(reading.path, most_broken=MOST))
    column = data.need("label")
    problem = labelling.find_problem(data, column)
    written = [row.get("label") for row in reading.case.rows or []]
    found: Sequence[Any]
    if problem == "regression":
        found = labelling.figures(data, column).tolist()
    elif problem == "multi":
        found = labelling.several(data, column, None)
    else:
        found = labelling.single(data, column, None)

    def equal(one: Any, other: Any) -> bool:
        if problem == "regression":
            with contextlib.suppress(TypeError, ValueError):
                several = other if isinstance(other, list) else [other]
                return bool(one == [float(np.float32(float(each))) for each in several])
            return False
        if problem == "multi":
            on = [str(place) for place, each in enumerate(other) if each]
            return one in (on, list(dict.fromkeys(map(str, other))))
        return bool(one == str(other))

    in_order(found, written, equal, lost(data.faults))
    doubts(reading, data, found)


def doubts(reading: Reading, data: Dataset, found: Sequence[Any]) -> None:
    said = summarise({"train": data}, {"train": found}, ("text", "label")).doubts
    pattern = reading.case.doubt
    if pattern and not re.search(pattern, "; ".join([*said, *data.faults.broken])):
        raise Wrong(f"no doubt says {pattern!r}: {said}")


def index(reading: Reading) -> None:
    """As an index of search reads metadata."""
    if reading.path.is_dir():
        source: Any = FolderSource(reading.path)
        items = source.items()
        known = {(Path(row["file_name"])).as_posix(): row for row in reading.case.rows or []}
        for item in items:
            row = known[Path(item.key).name] if Path(item.key).name in known else next(
                row for name, row in known.items() if item.key.endswith(name))  # fmt: skip
            for name in row.keys() - {"file_name"}:
                if not same(item.columns.get(name), row[name], reading.cells, number=True):
                    raise Wrong(f"{row[name]!r} became {item.columns.get(name)!r}")
        return
    source = RowSource(reading.path)
    source.items()
    found = _typed(source.rows, reading.path)
    less = [name for name in found[0] if any(isinstance(row.get(name), object) and
            type(row.get(name)) is object for row in found)]  # fmt: skip
    reading.rows(found, 0, tuple(found[0]), ("image", *less))


def predict(reading: Reading) -> None:
    suffix = data_suffix(reading.path).lower()
    out = reading.home / f"out{'.parquet' if suffix == '.arrow' else suffix}"
    broken = predicted(reading.models["text"], reading.path, out)
    reading.rows(stored(out), broken)


def predict_images(reading: Reading) -> None:
    out = reading.home / "out.csv"
    broken = predicted(reading.models["image"], reading.path, out)
    reading.cells = True
    reading.rows(stored(out), broken)


def predicted(model: Path, path: Path, out: Path) -> int:
    """Runs the command; how many rows it says that it left out."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("bedstone").addHandler(handler)
    run("predict", model, path, "--out", out)
    left = re.search(r"(\d+) rows left out", said.getvalue())
    return int(left[1]) if left else 0


def stored(path: Path) -> Rows:
    """The rows of a file, by the standard library and pyarrow."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".json":
        return json.loads(data)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in data.decode().split("\n")[:-1]]
    text = io.StringIO(data.decode(), newline="")
    return list(csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ","))


READERS: dict[str, Callable[[Reading], None]] = {
    "rows": rows,
    "samples": samples,
    "images": images,
    "pieces": pieces,
    "corpus": corpus,
    "labels": labels,
    "index": index,
    "predict": predict,
    "predict images": predict_images,
}

FAILURES = ("unnamed", "needless", "wrong", "traceback", "slow", "memory")


def models(home: Path) -> dict[str, Path]:
    """Small classifiers of texts and of images."""
    small_models.model(HeadConfig("sequence", ("bad", "good"))).save(home / "text")
    image_models.labelled_model().save(home / "image")
    return {"text": home / "text", "image": home / "image"}


def readers_of(case: Case) -> tuple[str, ...]:
    if case.readers:
        return case.readers
    return tuple(name for name in READERS if name != "predict images")


def judged(case: Case, home: Path, known: dict[str, Path]) -> Iterator[tuple[str, str, str]]:
    """Each reader, what it made of a case, and the message."""
    folder = home / "case"
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    names = readers_of(case)
    reading = Reading(case, folder, known)
    try:
        uses = [lambda _, name=name: READERS[name](reading) for name in names]
        found = outcomes(uses, folder, seconds=SECONDS)
    finally:
        shutil.rmtree(folder)
    sound = case.rows is not None and not case.free and not case.broken
    for name, (kind, said) in zip(names, found, strict=True):
        if kind == "accepted" and case.rows is None:
            kind, said = "wrong", "was read, and must be refused"
        elif kind == "right" and case.place and not re.search(case.place, said):
            kind = "unnamed"
        elif kind == "right" and sound and name not in may_refuse(case):
            kind = "needless"
        yield name, kind, said


def may_refuse(case: Case) -> set[str]:
    """Readers that need more of a row than its values: a text, or a label."""
    texts = [row.get("text") for row in case.rows or []]
    found = {"samples", "labels"} if re.search("labels|multi-hot|list", case.kind) else set()
    if "half" in case.kind or not all(isinstance(text, str) and text.strip() for text in texts):
        found |= {"corpus", "pieces", "samples", "predict", "labels"}
    return found


def campaign(
    numbers: int, count: int, part: str, home: Path
) -> tuple[dict[str, collections.Counter[str]], int]:
    """Outcomes by kind of fault, and how many inputs there were; failures are printed."""
    known = models(home)
    chosen = [case for number in range(numbers) for case in cases(number) if part in case.kind]
    if count:
        chosen = random.Random(0).sample(chosen, count)
    warm = next(case for case in cases(0) if case.kind == "labels of whole numbers")
    for reader in readers_of(warm):  # so that all that it imports is there before a fork
        with contextlib.suppress(BedstoneError):
            (home / "warm").mkdir(exist_ok=True)
            for name, data in warm.files.items():
                (home / "warm" / name).write_bytes(data)
            READERS[reader](Reading(warm, home / "warm", known))
    counts: dict[str, collections.Counter[str]] = {}
    for case in chosen:
        for reader, found, said in judged(case, home, known):
            counts.setdefault(case.kind, collections.Counter())[found] += 1
            if found in FAILURES:
                words = " ".join(said.split())[-400:]
                print(f"{found}: {case.kind}: {case.format}: {reader}: {words}", flush=True)
    return counts, len(chosen)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--numbers", type=int, default=1, help="draws of values for each fault")
    options.add_argument("--inputs", type=int, default=0, help="only so many of the cases")
    options.add_argument("--kinds", default="", help="only kinds whose name has this part")
    given = options.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        counts, inputs = campaign(given.numbers, given.inputs, given.kinds, Path(home))
    columns = ("right", "accepted", *FAILURES)
    print(f"{'kind':<48}" + "".join(f"{name:>10}" for name in columns))
    for kind, found in sorted(counts.items()):
        print(f"{kind:<48}" + "".join(f"{found[name]:>10}" for name in columns))
    total = sum(counts.values(), collections.Counter())
    print(f"{'all':<48}" + "".join(f"{total[name]:>10}" for name in columns))
    print(
        f"{len(counts)} kinds, {inputs} inputs, {sum(total.values())} trials, "
        f"{time.monotonic() - began:.0f} s"
    )
    return int(any(total[name] for name in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
