"""Signals as pictures: nothing is lost of small ones, low tones are at the bottom."""

import pytest
import torch

from bedstone.report.sheets import MOST, as_pixels, to_images
from drawings import SHAPES


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_becomes_a_picture(kind):
    found = to_images(torch.rand(3, *SHAPES[kind]), kind)
    assert as_pixels(found).shape[0] == 3


def test_low_tones_are_at_the_bottom():
    sound = torch.zeros(1, 4, 6)
    sound[0, 0] = 1  # the lowest
    assert to_images(sound, "audio")[0, 0, -1].tolist() == [1] * 6
    assert to_images(sound, "audio")[0, 0, :-1].sum() == 0


def test_frames_stand_in_rows_the_first_and_the_last_among_them():
    video = torch.arange(20.0)[None, None, :, None, None].expand(1, 3, 20, 2, 2)
    sheet = to_images(video, "video")
    assert sheet.shape == (1, 3, 4, MOST)  # two rows of four, each 2 by 2
    shown = sheet[0, 0, ::2, ::2].flatten().tolist()
    assert (shown[0], shown[-1]) == (0, 19)
    assert shown == sorted(shown)
    few = to_images(video[:, :, :3], "volume")
    assert few[0, 0, 0, ::2].tolist() == [0, 1, 2]
    five = to_images(video[:, :, :5], "volume")
    assert five[0, 0, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 1]]  # what is left over is white
