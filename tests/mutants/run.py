"""Mutation testing: makes one wrong change at a time and runs the nearest tests.

    python tests/mutants/run.py [--only TEXT] [--jobs N]

The changes are in `listed.yaml`. Each is made in a temporary copy of the tree, never in the tree
itself. A change that a test notices is killed; one that none notices has lived, and a test that
can fail is missing. A change that no user could see is listed with `equivalent`, the reason, and
isn't run. A change whose text is no longer in its file, or is there twice, doesn't apply.

Exits with 1 if a change has lived or doesn't apply, or if tests fail without any change.
"""

import argparse
import compileall
import contextlib
import importlib
import os
import py_compile
import re
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LISTED = HERE / "listed.yaml"
# Imported once, before a process for each change is forked: none of it is changed.
PRELOADED = ("torch", "numpy", "pytest", "hypothesis", "tokenizers", "safetensors.torch", "PIL")
PRELOADED += (
    "transformers.modeling_utils",
    "transformers.generation.logits_process",
    "sklearn.metrics",
)
KILLED, LIVED, EQUIVALENT, MISSING = "killed", "lived", "equivalent", "does not apply"
RED = "tests fail without a change"


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        id: its name.
        file: below src/bedstone.
        old, new: the text, once in the file, and what takes its place. Where a text has several
            lines, those after the first are indented as far as it takes.
        tests: files below tests/, or tests in them (`nn/test_lora.py::test_name`).
        equivalent: why no user could see the change, if so.
    """

    id: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""


def load(path: Path = LISTED) -> list[Mutant]:
    """All changes of a list."""
    return [
        Mutant(
            row["id"],
            row["file"],
            row["from"],
            row["to"],
            tuple(row["tests"].split()),
            row.get("equivalent", ""),
        )
        for row in yaml.safe_load(path.read_text())
    ]


def changed(source: str, mutant: Mutant) -> str | None:
    """The file's text with the change made; None if its text isn't there exactly once."""
    for indent in range(0, 41, 4):
        old, new = (
            text.replace("\n", "\n" + " " * indent).replace("\n" + " " * indent + "\n", "\n\n")
            for text in (mutant.old, mutant.new)
        )
        if source.count(old) == 1:
            return source.replace(old, new)
    return None


def copy_tree(target: Path) -> Path:
    """A copy of what the tests read."""
    target.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "runs")
    for name in ("src", "tests", "bench", "docs", "recipes"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, target)
    # Bytecode that goes by its source's content: by its time and size, a change within a second
    # that keeps the size would be missed.
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(target / "src", quiet=1, invalidation_mode=mode)
    return target


def tested(tree: Path, tests: tuple[str, ...], seconds: float = 900.0) -> bool:
    """Whether those tests pass in a tree, in a process of its own; taking too long is failing."""
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what a test starts ends with it
        code = 2
        with contextlib.suppress(BaseException), (tree / "pytest.log").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            os.chdir(tree)
            source = str(tree / "src")
            os.environ["PYTHONPATH"] = source
            sys.path.insert(0, source)
            import pytest

            paths = [f"tests/{test}" for test in tests]
            options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
            code = int(pytest.main([*options, *paths]))
        os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def outcome(tree: Path, mutant: Mutant, seconds: float) -> str:
    """What came of one change, made in `tree` and taken back."""
    path = tree / "src" / "bedstone" / mutant.file
    plain = path.read_text()
    new = changed(plain, mutant)
    if new is None:
        return MISSING
    path.write_text(new)
    try:
        return LIVED if tested(tree, mutant.tests, seconds) else KILLED
    finally:
        path.write_text(plain)


def run_all(mutants: list[Mutant], jobs: int) -> dict[str, str]:
    """What came of each change, by its id, said as it comes."""
    sys.dont_write_bytecode = True  # see `copy_tree`
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("BEDSTONE_SHARED", str(ROOT.parent / "shared" / "data"))
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # an extra
            importlib.import_module(name)
    found = {each.id: EQUIVALENT for each in mutants if each.equivalent}
    by_tests: dict[tuple[str, ...], list[Mutant]] = {}
    for each in mutants:
        if not each.equivalent:
            by_tests.setdefault(each.tests, []).append(each)

    def work(tests: tuple[str, ...]) -> None:
        tree = trees.get()
        began = time.monotonic()
        green = tested(tree, tests)
        limit = 60 + 5 * (time.monotonic() - began)
        if not green:
            print((tree / "pytest.log").read_text()[-2000:], flush=True)
        for mutant in by_tests[tests]:
            found[mutant.id] = outcome(tree, mutant, limit) if green else RED
            print(f"{found[mutant.id]:15} {mutant.id}", flush=True)
        trees.put(tree)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        trees: Queue[Path] = Queue()  # one for each change at a time
        for number in range(jobs):
            trees.put(copy_tree(Path(folder, str(number))))
        list(pool.map(work, by_tests))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="run those whose id or file has this (regex)")
    parser.add_argument("--jobs", type=int, default=1, help="how many to run at a time")
    given = parser.parse_args()
    wanted = re.compile(given.only)
    mutants = [each for each in load() if wanted.search(each.id) or wanted.search(each.file)]
    found = run_all(mutants, given.jobs)
    counts = {name: [i for i, what in found.items() if what == name] for name in found.values()}
    for name, ids in counts.items():
        print(f"{len(ids)} {name}" + (f": {', '.join(ids)}" if name not in (KILLED,) else ""))
    judged = len(counts.get(KILLED, [])) + len(counts.get(LIVED, []))
    print(f"{len(counts.get(KILLED, []))} of {judged} noticed")
    return int(any(name in counts for name in (LIVED, MISSING, RED)))


if __name__ == "__main__":
    sys.exit(main())
