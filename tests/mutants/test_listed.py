"""The list of mutants: each is one change that can be made today, with tests to run."""

import ast
from pathlib import Path

import pytest
import run
from run import ROOT, Mutant, changed, load

LISTED = load()
TARGET = "x = 1\nif x:\n    y = 2\n    z = 3\n"


@pytest.mark.parametrize("mutant", LISTED, ids=[each.id for each in LISTED])
def test_a_mutant_is_a_change_of_todays_tree(mutant):
    source = (ROOT / "src" / "bedstone" / mutant.file).read_text()
    new = changed(source, mutant)
    assert new is not None, "its text isn't in the file once: write the line as it is now"
    assert ast.dump(ast.parse(new)) != ast.dump(ast.parse(source))
    for test in mutant.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).is_file()
    assert mutant.tests and (not mutant.equivalent or len(mutant.equivalent) > 30)


def test_each_has_a_name_of_its_own():
    ids = [each.id for each in LISTED]
    assert len(ids) == len(set(ids)) and len(ids) > 150


def mutant(old: str, new: str) -> Mutant:
    return Mutant("m", "f.py", old, new, ("test_x.py",))


def test_a_text_of_several_lines_stands_at_any_depth():
    assert changed(TARGET, mutant("y = 2\nz = 3", "z = 3\ny = 2")) == TARGET.replace(
        "y = 2\n    z = 3", "z = 3\n    y = 2"
    )
    assert changed(TARGET, mutant("x", "a")) is None  # there twice
    assert changed(TARGET, mutant("w = 1", "a")) is None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package of one function, with a test that can fail and one that can't."""
    files = {
        "src/bedstone/__init__.py": "",
        "src/bedstone/f.py": "def twice(x):\n    return 2 * x\n",
        "tests/test_x.py": "from bedstone.f import twice\ndef test(): assert twice(3) == 6\n",
        "tests/test_weak.py": "from bedstone.f import twice\ndef test(): assert twice(0) == 0\n",
        "tests/test_slow.py": "import time\ndef test():\n    time.sleep(60)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.slow
def test_what_comes_of_a_change(tree, monkeypatch):
    for name in [each for each in run.sys.modules if each.split(".")[0] == "bedstone"]:
        monkeypatch.delitem(run.sys.modules, name)
    wrong = {"id": "m", "file": "f.py", "old": "2 * x", "new": "3 * x"}
    found = {
        name: run.outcome(tree, Mutant(**wrong, tests=(f"test_{name}.py",)), seconds)
        for name, seconds in (("x", 60), ("weak", 60), ("slow", 1))
    }
    assert found == {"x": run.KILLED, "weak": run.LIVED, "slow": run.KILLED}
    assert (tree / "src/bedstone/f.py").read_text().endswith("2 * x\n")  # taken back
    missing = Mutant("m", "f.py", "4 * x", "x", ("test_x.py",))
    assert run.outcome(tree, missing, 60) == run.MISSING
    assert run.tested(tree, ("test_x.py",))
