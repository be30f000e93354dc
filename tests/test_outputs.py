"""Outputs keep what stands there already: names are refused, or make way for the next free one."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.outputs import free_path, named_rows, new_file, new_folder, next_number


def test_a_file_that_is_there_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "page.html"
    assert new_file(path, "--page") == path
    path.write_text("kept")
    with pytest.raises(BedstoneError, match=r"--page: .* is there already.* --overwrite"):
        new_file(path, "--page")
    assert new_file(path, "--page", overwrite=True) == path
    for overwrite in (False, True):
        with pytest.raises(BedstoneError, match="is a folder"):
            new_file(tmp_path, "--page", overwrite=overwrite)
    assert new_file("/dev/null", "--page") == Path("/dev/null")


def test_a_folder_that_holds_files_is_taken_only_on_demand(tmp_path):
    assert new_folder(tmp_path, "--out") == tmp_path
    assert new_folder(tmp_path / "new", "--out") == tmp_path / "new"
    (tmp_path / "file").write_text("kept")
    with pytest.raises(BedstoneError, match="holds files already"):
        new_folder(tmp_path, "--out")
    assert new_folder(tmp_path, "--out", overwrite=True) == tmp_path
    with pytest.raises(BedstoneError, match="is a file"):
        new_folder(tmp_path / "file", "--out", overwrite=True)


def test_names_that_nobody_gave_make_way(tmp_path):
    path = tmp_path / "sheet.png"
    for expected in ("sheet.png", "sheet-2.png", "sheet-3.png"):
        found = free_path(path)
        assert found.name == expected
        found.write_text("kept")


def test_numbers_go_on_after_the_greatest(tmp_path):
    assert next_number(tmp_path / "nowhere") == next_number(tmp_path) == 0
    for name in (
        "000-a.png",
        "007.png",
        "012-circle.wav",
        "13-short.png",
        "x-099.png",
        "sheet.png",
    ):
        (tmp_path / name).write_text("")
    assert next_number(tmp_path) == 13


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "MODEL", "DATA", "--confusion", "FILE"],
        ["run", "image-to-text", "MODEL", "x.png", "--page", "FILE"],
        ["search", "INDEX", "words", "--page", "FILE"],
        ["calibrate", "moderation-policy.yaml", "MODEL", "DATA", "--out", "FILE"],
        ["pretrain", "clip-scenes", "--sample", "FILE"],
        ["predict", "MODEL", "DATA", "--out", "FILE"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_refuses_before_it_begins(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["recipes", "moderation-policy"])
    (tmp_path / "moderation-policy.yaml").write_text(capsys.readouterr().out)
    file = tmp_path / ("kept.csv" if words[0] == "predict" else "kept.png")
    file.write_text("kept")
    assert main([str(file) if word == "FILE" else word for word in words]) == 2
    assert "is there already. Choose another name" in capsys.readouterr().err
    assert file.read_text() == "kept"


def test_figures_by_name_are_a_table_where_it_fits_and_blocks_where_not():
    def printed(width):
        console = Console(width=width, file=io.StringIO())
        rows = [("he", "0.25"), ("a_name_that_is_as_wide_as_the_terminal_itself", "0.75")]
        shown = named_rows(("", "value"), rows, title="shares", width=width)
        console.print(shown)
        return console.file.getvalue()

    assert "│" in printed(80)
    narrow = printed(50)
    assert "│" not in narrow
    lines = [each.rstrip() for each in narrow.splitlines()]
    assert lines == [
        "shares",
        "he",
        "  value 0.25",
        "a_name_that_is_as_wide_as_the_terminal_itself",
        "  value 0.75",
    ]
