"""The sheet of queries and what was found."""

import numpy as np
import pytest
from PIL import Image

from bedstone.errors import BedstoneError
from bedstone.report.sheets import Query, search_sheet


def picture(colour, side=20):
    return np.full((side, side, 3), colour, dtype=np.uint8)


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_right_pictures_are_ticked_and_wrong_ones_crossed(tmp_path):
    green, red, blue = picture((0, 255, 0)), picture((255, 0, 0), 300), picture((0, 0, 255))
    known = search_sheet([Query("a thing", [green, red], [True, False], "1 of 2")], tmp_path / "a")
    assert {(0, 255, 0), (255, 0, 0), (27, 138, 58), (196, 200, 206)} <= colours(known)
    unknown = search_sheet([Query("a thing", [blue], [None])], tmp_path / "b")
    assert (0, 0, 255) in colours(unknown)
    assert not {(27, 138, 58), (196, 200, 206)} & colours(unknown)


def test_a_long_query_stays_on_its_line(tmp_path):
    shown = [picture((9, 9, 9))] * 2
    short = search_sheet([Query("a", shown, [True] * 2)] * 3, tmp_path / "a.png")
    long = search_sheet(
        [Query("a word " * 99, shown, [True] * 2, "a note")] * 3, tmp_path / "b.png"
    )
    with Image.open(short) as one, Image.open(long) as other:
        assert one.size == other.size
        assert one.width > one.height


def test_queries_that_found_nothing_make_no_sheet(tmp_path):
    for queries in ([], [Query("a", [], [])]):
        with pytest.raises(BedstoneError, match="nothing was found"):
            search_sheet(queries, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
