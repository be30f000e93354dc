"""Calibration, thresholds and detection: by hand, beside the libraries on resamples, bad input."""

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as peer

from bedstone.errors import BedstoneError
from bedstone.metrics.calibration import (
    FIGURES,
    best_threshold,
    calibration_error,
    detection,
    reliability,
    sweep,
)
from bedstone.metrics.figures import bootstrap
from bedstone.report.plots import draw_calibration


def test_calibration_error_by_hand():
    # two bins of two rows: said 0.1 and found 1/2; said 0.8 and found 1
    scores, truth = [0.1, 0.1, 0.8, 0.8], [True, False, True, True]
    assert calibration_error(scores, truth, 2) == pytest.approx((0.4 + 0.2) / 2)
    found = reliability(scores, truth, 4)
    assert found.said.tolist() == pytest.approx([0.1, 0.8])
    assert found.found.tolist() == [0.5, 1]
    assert found.rows.tolist() == [2, 2] and found.counts.tolist() == [2, 0, 0, 2]


def test_certain_scores_have_the_outer_bins():
    assert calibration_error([0.0, 1.0, 1.0], [False, True, True]) < 1e-12
    # 0.9 and 1 share the last of two bins: said 0.95, found 1/2
    assert calibration_error([0.9, 1.0], [True, False], 2) == pytest.approx(0.45)
    assert reliability([0.9, 1.0], [True, False], 2).counts.tolist() == [0, 2]


def test_true_probabilities_are_calibrated_and_squashed_ones_are_not():
    random = np.random.default_rng(0)
    scores = random.random(20_000)
    truth = random.random(20_000) < scores
    assert calibration_error(scores, truth) < 0.02
    assert calibration_error(0.4 + 0.2 * scores, truth) > 0.15


def test_sweep_and_thresholds():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.1])
    truth = np.array([True, True, False, True, False, False])
    found = sweep(scores, truth)
    for threshold, precision, recall in zip(
        found.thresholds, found.precision, found.recall, strict=True
    ):
        guess = scores >= threshold
        assert precision == pytest.approx(peer.precision_score(truth, guess))
        assert recall == pytest.approx(peer.recall_score(truth, guess))
    assert found.taken.tolist() == [6, 5, 4, 3, 2, 1] and found.held == 3
    # best F1 takes four rows (3/4 and 3/3), all of precision 1 the first two
    assert best_threshold(found) == (pytest.approx(0.4), True)
    assert best_threshold(found, precision=0.99, sure=0) == (pytest.approx(0.75), True)
    assert best_threshold(found, precision=0.7, sure=0) == (pytest.approx(0.4), True)
    assert best_threshold(found, recall=0.6, sure=0) == (pytest.approx(0.75), True)
    assert best_threshold(found, recall=0.99, sure=0) == (pytest.approx(0.4), True)
    never = sweep([0.9, 0.5], [False, True])
    assert best_threshold(never, precision=0.9) == (0.5, False)
    # two rows of two are not enough to believe in; a hundred times as many are
    assert best_threshold(found, precision=0.9) == (pytest.approx(0.4), False)
    many = sweep(np.repeat(scores, 100), np.repeat(truth, 100))
    assert best_threshold(many, precision=0.9) == (pytest.approx(0.75), True)
    with pytest.raises(BedstoneError, match="wish for one"):
        best_threshold(found, precision=0.5, recall=0.5)
    with pytest.raises(BedstoneError, match=r"wished recall: 90"):
        best_threshold(found, recall=90)


def data(rows=60, seed=1):
    random = np.random.default_rng(seed)
    truth = random.random((rows, 2)) < [0.4, 0.2]
    scores = np.clip(truth * 0.4 + random.random((rows, 2)) * 0.6, 0, 1)
    scores[:3] = [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    return scores, truth


def test_detection_and_each_resample_have_the_figures_of_the_libraries(monkeypatch):
    import bedstone.metrics.calibration as ours

    scores, truth = data()
    thresholds = [0.5, 0.6]
    kept = []

    def spy(figures, rows, **more):
        drawn = np.random.default_rng(0).multinomial(rows, np.ones(rows) / rows, size=12)
        kept.extend([drawn, figures(drawn)])
        return bootstrap(figures, rows, **more)

    monkeypatch.setattr(ours, "bootstrap", spy)
    found = detection(scores, truth, thresholds, ["a", "b"])
    assert found.support == {"a": int(truth[:, 0].sum()), "b": int(truth[:, 1].sum())}
    draws, figures = kept
    everything = np.ones(60, dtype=int)
    flat = np.array(list(found.values.values()))
    for drawn, values in zip([everything, *draws], [flat, *figures], strict=True):
        named = dict(zip(found.values, values, strict=True))
        rows = np.repeat(np.arange(60), drawn)
        for column, label in enumerate("ab"):
            s, t = scores[rows, column], truth[rows, column]
            guess = s >= thresholds[column]
            wanted = {
                "precision": peer.precision_score(t, guess, zero_division=0),
                "recall": peer.recall_score(t, guess, zero_division=0),
                "f1": peer.f1_score(t, guess, zero_division=0),
                "ece": calibration_error(s, t),
                "brier": peer.brier_score_loss(t, s),
            }
            assert {name: named[f"{name}/{label}"] for name in FIGURES} == pytest.approx(wanted)
        assert named["f1_macro"] == pytest.approx((named["f1/a"] + named["f1/b"]) / 2)
    low, high = found.intervals["f1/a"]
    assert low < found["f1/a"] < high
    assert detection(scores, truth, thresholds, ["a", "b"], resamples=0).intervals == {}


def test_the_picture_is_drawn(tmp_path):
    scores, truth = data()
    path = draw_calibration(scores, truth, [0.5, 0.6], ["a", "b $x"], tmp_path / "c.png", "T")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 800
    with pytest.raises(BedstoneError, match="31 categories"):
        draw_calibration(scores, truth, [0.5], ["a"] * 31, tmp_path / "c.png")


@pytest.mark.parametrize(
    ("scores", "truth", "told"),
    [
        ([0.1, 1.2], [True, False], r"scores\[1\]: is 1.2"),
        ([0.1, float("nan")], [True, False], r"scores\[1\]: is nan"),
        ([0.1], [True, False], "expected one a row"),
        ([], [], "expected one a row"),
    ],
)
def test_bad_scores_are_named(scores, truth, told):
    for measure in (calibration_error, reliability, sweep):
        with pytest.raises(BedstoneError, match=told):
            measure(scores, truth)


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ((0.2, 0.61234567), 0.4062),
        ((0.99991, 0.99999), 0.99995),  # with four digits nothing would reach it
        ((0.99999, 1.0), 0.999995),
        ((0.1234567, 0.1234568), 0.12345675),
        ((0.12346, 0.12346), 0.12346),  # there is no lower one, and 0.1235 would take none
    ],
)
def test_a_threshold_is_short_and_takes_the_rows_it_was_chosen_for(scores, threshold):
    found = best_threshold(sweep(scores, [scores[0] == scores[1], True]))
    assert found == (threshold, True)
    assert (np.array(scores) >= found[0]).tolist() == [scores[0] == scores[1], True]


def test_a_category_that_never_holds_has_no_thresholds():
    with pytest.raises(BedstoneError, match="holds in no row"):
        sweep([0.1, 0.2], [False, False])
    with pytest.raises(BedstoneError, match="don't fit 1 labels"):
        detection(np.zeros((2, 2)), np.zeros((2, 2)), [0.5], ["a"])


def test_wilsons_lower_end_is_that_of_scipy():
    from scipy.stats import binomtest, norm

    from bedstone.metrics.calibration import SURE, _lower

    level = 1 - 2 * norm.sf(SURE)
    for right, rows in ((7, 10), (10, 10), (900, 1000)):
        ends = binomtest(right, rows).proportion_ci(level, method="wilson")
        assert _lower(np.array([right / rows]), rows, SURE)[0] == pytest.approx(ends.low)
