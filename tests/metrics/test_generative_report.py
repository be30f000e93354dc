"""What sets of drawings are worth: real ones beside themselves, noise beside real ones, copies."""

import torch

from bedstone.evaluate.judges import Judge
from bedstone.metrics.generative import beside_real, beside_training


def judge() -> Judge:
    """Sees the mean of each channel, and takes the brightest for the class."""

    def look(pixels):
        means = pixels.mean((2, 3))
        return means, means

    return Judge("brightest", ("r", "g", "b"), lambda whole: whole / 127.5 - 1, look)


def pictures(count=60, seed=0):
    """Pictures of each colour in turn."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 4, 4, generator=random) * 0.2 - 0.4
    classes = torch.arange(count) % 3
    x[torch.arange(count), classes] += 0.8
    return x.clamp(-1, 1), classes


def test_real_ones_beside_real_ones_and_noise_beside_them():
    real, classes = pictures()
    others, _ = pictures(seed=1)
    alike = beside_real(others, real, judge(), classes=classes)
    assert alike["accuracy"] == 1
    assert alike.intervals["accuracy"] == (1, 1)
    assert alike.score == alike["fid"]
    assert alike.rows == 60
    grey = beside_real(torch.zeros_like(real) + 0.01 * others, real, judge(), classes=classes)
    assert grey["fid"] > 10 * alike["fid"]
    assert grey["kid"] > alike["kid"]
    assert grey["recall"] < alike["recall"]
    wrong = beside_real(others, real, judge(), classes=(classes + 1) % 3, resamples=0)
    assert wrong["accuracy"] == 0
    assert "accuracy" not in beside_real(others, real, judge()).values


def test_what_a_judge_or_a_sample_cannot_carry_is_said():
    real, _ = pictures(1200)
    sharp = beside_real(pictures(1200, seed=1)[0], real, judge())
    assert sharp.warning == ""
    assert sharp["precision_of_noise"] < 0.1 < sharp["precision"]
    assert sharp["fid_of_noise"] > 10 * sharp["fid"]
    assert "warning" not in sharp.record()

    def blind(pixels):  # noise and real ones look the same to it
        means = pixels.flatten(1)[:, :3] * 0
        return means + torch.rand(means.shape, generator=torch.Generator().manual_seed(0)), means

    dull = beside_real(real, real, Judge("blind", ("r", "g", "b"), judge().prepare, blind))
    assert "The judge can't carry the precision" in dull.warning
    assert "no nearer to real ones than noise" in dull.warning
    assert dull.record()["warning"] == dull.warning

    few = beside_real(pictures(60, seed=1)[0], real, judge())
    assert "60 samples are few" in few.warning
    assert "judge" not in few.warning


def test_who_copies_is_nearer_to_training_than_what_was_held_out():
    training, held, fresh = (pictures(seed=seed)[0] for seed in (2, 3, 4))
    copied, found = beside_training(training[:20] + 1e-4, held, training, count=3)
    assert copied["nearest"] < 0.01 < copied["nearest_held_out"]
    assert copied["nearer"] == 1
    assert copied["suspects"] == 1
    assert found.places[:, 0].tolist() == list(range(20))
    assert found.places.shape == (20, 3)
    honest, _ = beside_training(fresh, held, training)
    assert 0.25 < honest["nearer"] < 0.75
