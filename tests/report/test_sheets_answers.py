"""The sheet of pictures with questions and answers."""

import numpy as np
import pytest
from PIL import Image

from bedstone.errors import BedstoneError
from bedstone.report.pages import Captioned, Line
from bedstone.report.sheets import answer_sheet


def picture(colour, height=20, width=20):
    return np.full((height, width, 3), colour, dtype=np.uint8)


def colours(path):
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_right_answers_are_ticked_and_wrong_ones_crossed(tmp_path):
    green, red = (27, 138, 58), (179, 38, 30)
    for right, mark in ((True, {green}), (False, {red}), (None, set())):
        line = Line("yes", "Is it so?", right, "no")
        path = answer_sheet([Captioned(picture((0, 0, 255)), "a", [line])], tmp_path / "a.png")
        assert {green, red} & colours(path) == mark
        assert (0, 0, 255) in colours(path)


def test_the_sheet_has_room_for_all(tmp_path):
    lines = [Line("word " * 50, "what " * 50, False, "else " * 50)] * 6
    some = [Captioned(picture(9, 300, 10), str(n), lines) for n in range(3)]
    with Image.open(answer_sheet(some, tmp_path / "a.png")) as sheet:
        assert sheet.size == (2 * (664 + 20) + 20, 2 * (6 * 56 + 20) + 20)
        edge = np.asarray(sheet.convert("L"))
    assert (edge[:, -20:] == 255).all() and (edge[-20:] == 255).all()


def test_what_cannot_be_drawn_is_told(tmp_path):
    with pytest.raises(BedstoneError, match="no picture"):
        answer_sheet([], tmp_path / "a.png")
    with pytest.raises(BedstoneError, match=r"b\.png"):
        answer_sheet([Captioned(b"nothing", "b.png")], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
