"""The CLIP score: 2.5 max(cos, 0) of each picture with its own text."""

import numpy as np
import pytest

from bedstone.errors import BedstoneError
from bedstone.metrics.generative import clip_score
from bedstone.tasks.images.engine import ImageEngine
from image_models import WORDS, clip_model, pictures


class Compass:
    """Pictures and texts are angles."""

    name = "compass"

    def images(self, pictures):
        return self.texts(pictures)

    def texts(self, texts):
        angles = np.radians([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_scores():
    found = clip_score(Compass(), [0, 60, 180, 0], ["0", "0", "0", "180"])
    assert found.scores.tolist() == pytest.approx([2.5, 1.25, 0, 0])
    assert found.mean == pytest.approx(3.75 / 4) and found.clip == "compass"
    # with the one other text: 180, 120 and 0 degrees apart; of the last, 0
    assert found.others == pytest.approx((0 + 0 + 2.5 + 2.5) / 4)
    assert found.first == 0.5
    alike = clip_score(Compass(), [0, 60], ["0", "0"])
    assert alike.others != alike.others and alike.first == 1


def test_a_clip_of_ours():
    engine = ImageEngine(clip_model())
    shown = pictures(3)
    found = clip_score(engine, shown, WORDS)
    cosines = (engine.images(shown) * engine.texts(WORDS)).sum(1)
    assert found.scores == pytest.approx(2.5 * cosines.clip(0), abs=1e-5)
    assert found.clip == engine.name


def test_bad_counts():
    for shown, texts in (([0], ["0", "1"]), ([], [])):
        with pytest.raises(BedstoneError, match="one text for each"):
            clip_score(Compass(), shown or np.zeros(0), texts)
