"""Figures of labels and numbers: by hand, beside their libraries on every resample, bad input."""

import io
import json
import math
import sys

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from sklearn import metrics as peer

from bedstone.errors import BedstoneError
from bedstone.metrics.classification import AVERAGES, classification, multi_label
from bedstone.metrics.figures import bootstrap
from bedstone.metrics.regression import regression

NAMES = ["a", "b", "c"]


def test_classification_by_hand():
    found = classification(list("aabbc"), list("abbbb"), NAMES)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision/b"] == 1 and found["recall/b"] == pytest.approx(1 / 2)
    assert found["f1/a"] == pytest.approx(2 / 3) and found["f1/c"] == 0
    assert found["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 3)
    assert found["f1_micro"] == found["accuracy"] == found.score
    assert found.confusion == [[1, 0, 0], [1, 2, 1], [0, 0, 0]]
    assert found.support == {"a": 1, "b": 4, "c": 0}
    assert found.rows == 5


def test_macro_is_over_classes_that_occur():
    found = classification(list("aab"), list("abb"), NAMES)
    assert found["f1_macro"] == pytest.approx(2 / 3)
    assert found["f1/c"] == 0 and found.support["c"] == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("guess", "right"), [("a", 1.0), ("b", 0.0)])
def test_a_single_row_is_scored_without_a_warning(guess, right):
    found = classification([guess], ["a"], ["a", "b"])
    assert found.values["accuracy"] == right and found.values["matthews"] == 0.0
    assert multi_label([[guess]], [["a"]], ["a", "b"]).values["subset_accuracy"] == right
    assert regression([1.0], [2.0], ["score"]).values["pearson"] == 0.0


def test_labels_by_number_and_by_name_are_one():
    names = classification(list("aabbc"), list("abbbb"), NAMES)
    numbers = classification(np.array([0, 0, 1, 1, 2]), [0, 1, 1, 1, 1], NAMES)
    assert names == numbers
    assert classification(list("aabbc"), list("abbbb")) == names


def resampled(rows, count=25, seed=0):
    """The rows of each resample that `bootstrap` would draw of this many."""
    kept = []
    bootstrap(lambda drawn: kept.append(drawn) or drawn[:, :1], rows, resamples=count, seed=seed)
    return [np.repeat(np.arange(rows), drawn) for drawn in np.concatenate(kept)]


def one_by_one(values, index):
    return [values[place] for place in index]


def averages(truth, guess, **more):
    parts = [
        peer.precision_recall_fscore_support(truth, guess, average=kind, zero_division=0, **more)
        for kind in ("micro", "macro")
    ]
    return dict(zip(AVERAGES, [*parts[0][:3], *parts[1][:3]], strict=True))


@pytest.fixture
def as_rows(monkeypatch):
    """The bootstrap's draws of groups, replaced by known draws of their rows."""

    def use(module, groups_of):
        def fake(figures, repeats, *, resamples, seed):
            weights = [
                np.bincount(groups_of[index], minlength=len(repeats))
                for index in resampled(len(groups_of))
            ]
            kept.append(figures(np.array(weights)))
            return bootstrap(figures, repeats, resamples=resamples, seed=seed)

        kept = []
        monkeypatch.setattr(module, "bootstrap", fake)
        return kept

    return use


def test_every_resample_has_the_figures_of_scikit_learn(as_rows):
    import bedstone.metrics.classification as ours

    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 40)
    guess = np.where(random.random(40) < 0.6, truth, random.integers(0, 3, 40))
    truth[:2], guess[:2] = 3, [3, 0]  # a rare class, absent from some resamples
    cells = [tuple(pair) for pair in np.argwhere(peer.confusion_matrix(truth, guess))]
    kept = as_rows(ours, np.array([cells.index(pair) for pair in zip(truth, guess, strict=True)]))
    found = classification(guess, truth, [*NAMES, "d"])
    for index, figures in zip(resampled(40), kept[0], strict=True):
        values = dict(zip(found.values, figures, strict=True))
        t, g = truth[index], guess[index]
        wanted = {"accuracy": peer.accuracy_score(t, g), "matthews": peer.matthews_corrcoef(t, g)}
        wanted |= averages(t, g, labels=np.union1d(t, g))
        wanted["f1/d"] = peer.f1_score(t, g, labels=[3], average="macro", zero_division=0)
        assert {name: values[name] for name in wanted} == pytest.approx(wanted)


def test_every_resample_of_label_sets_too(as_rows):
    import bedstone.metrics.classification as ours

    random = np.random.default_rng(1)
    truth = random.random((30, 3)) < 0.3
    guess = truth ^ (random.random((30, 3)) < 0.2)
    both = np.concatenate([(truth == guess).all(1)[:, None], guess & truth, guess, truth], axis=1)
    kept = as_rows(ours, np.unique(both, axis=0, return_inverse=True)[1].ravel())
    sets = [[np.flatnonzero(row).tolist() for row in side] for side in (guess, truth)]
    found = multi_label(*sets, NAMES)
    assert found["subset_accuracy"] == pytest.approx((truth == guess).all(1).mean())
    for index, figures in zip(resampled(30), kept[0], strict=True):
        values = dict(zip(found.values, figures, strict=True))
        t, g = truth[index], guess[index]
        wanted = {"subset_accuracy": peer.accuracy_score(t, g), **averages(t, g)}
        assert {name: values[name] for name in wanted} == pytest.approx(wanted)


def test_every_resample_of_numbers_too():
    from bedstone.metrics.regression import _column_rates

    random = np.random.default_rng(2)
    truth = random.integers(0, 6, 60).astype(float)  # ties
    guess = np.round(truth + random.normal(0, 1, 60), 1)
    indices = resampled(60)
    drawn = np.array([np.bincount(index, minlength=60) for index in indices])
    for index, figures in zip(indices, _column_rates(guess, truth)(drawn), strict=True):
        g, t = guess[index], truth[index]
        wanted = [
            stats.pearsonr(g, t).statistic,
            stats.spearmanr(g, t).statistic,
            peer.root_mean_squared_error(t, g),
            peer.mean_absolute_error(t, g),
        ]
        assert figures.tolist() == pytest.approx(wanted)


def test_multi_label_by_hand():
    found = multi_label([["a"], [], {"a", "c"}], [["a", "b"], [], ["c"]], NAMES)
    assert found["subset_accuracy"] == pytest.approx(1 / 3)
    assert found["precision_micro"] == pytest.approx(2 / 3)
    assert found["recall_micro"] == pytest.approx(2 / 3)
    assert found["f1/a"] == pytest.approx(2 / 3) and found["f1/b"] == 0 and found["f1/c"] == 1
    assert found.score == found["f1_micro"]


def test_a_constant_prediction_has_no_correlation():
    found = regression([1, 1, 1], [1, 2, 3])
    assert found["pearson"] == found["spearman"] == 0
    assert found["mae"] == pytest.approx(1) and found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert "pearson" not in found.intervals and "mae" in found.intervals
    json.dumps(found.record(), allow_nan=False)
    json.dumps(regression([0.1], [0.2]).record(), allow_nan=False)


def test_several_numbers_a_row():
    one, two = [1.0, 2.0, 4.0, 3.0], [4.0, 3.0, 1.0, 2.5]
    truth = [1.0, 2.0, 3.0, 4.0]
    both = regression(list(zip(one, two, strict=True)), [[t, t] for t in truth], ["up", "down"])
    assert both["mae/up"] == regression(one, truth)["mae"]
    assert both["spearman/down"] == regression(two, truth)["spearman"]
    assert both["rmse"] == pytest.approx((both["rmse/up"] + both["rmse/down"]) / 2)


def test_the_interval_holds_the_figure_and_narrows_with_rows():
    random = np.random.default_rng(3)
    widths = []
    for rows in (100, 10_000):
        truth = random.integers(0, 2, rows)
        guess = np.where(random.random(rows) < 0.9, truth, 1 - truth)
        found = classification(guess, truth, ["no", "yes"])
        low, high = found.intervals["matthews"]
        assert low < found["matthews"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    assert found == classification(guess, truth, ["no", "yes"])
    assert not classification(guess, truth, ["no", "yes"], resamples=0).intervals


def test_figures_are_flat_json_and_a_table():
    found = classification(list("ab"), list("aa"), ["a", "b"])
    flat = found.flat()
    assert flat["accuracy"] == 0.5 and flat["accuracy_low"] == 0 and flat["accuracy_high"] == 1
    assert all(isinstance(value, (int, float)) for value in flat.values())
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["confusion"] == [[1, 1], [0, 0]] and record["labels"] == ["a", "b"]
    strange = classification(["[bold]x", "/"], ["[bold]x", "/"], ["[bold]x", "/"])
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(strange)
    shown = console.export_text()
    assert "[bold]x" in shown and "matthews" in shown and "0.0000 to 1.0000" in shown


CASES = {
    "lengths": (lambda: classification(["a"], ["a", "b"], NAMES), "1 predictions for 2 rows"),
    "empty": (lambda: classification([], [], NAMES), "no rows"),
    "unseen": (lambda: classification(["a", "bb"], ["a", "b"], ["a", "bbb"]), "row 1: 'bb'.*'bbb'"),
    "number": (lambda: classification([3], [0], NAMES), "row 0: 3 .* 0 to 2"),
    "none": (lambda: classification([None], ["a"], NAMES), "row 0: None"),
    "nan": (lambda: classification([math.nan], ["a"], NAMES), "row 0: nan"),
    "unnamed": (lambda: classification([1], [1]), "labels: 1 is no name"),
    "twice": (lambda: classification(["a"], ["a"], ["a", "a"]), "'a' is there twice"),
    "string": (lambda: multi_label(["ab"], [["a"]], NAMES), "predicted, row 0: 'ab' is one value"),
    "set": (lambda: multi_label([["a"]], [["x"]], NAMES), "actual, row 0: 'x'"),
    "nothing": (lambda: multi_label([[]], [[]]), "no row has any"),
    "not finite": (lambda: regression([1.0, math.nan], [1, 2]), "predicted, row 1: is nan"),
    "text": (lambda: regression([1.0], ["2"]), "actual, row 0: '2' is no number"),
    "ragged": (lambda: regression([[1, 2], [1]], [[1, 2], [1, 2]]), "row 1: has 1"),
    "widths": (lambda: regression([[1, 2]], [1]), "predicted: 2 numbers a row"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case):
    call, named = CASES[case]
    with pytest.raises(BedstoneError, match=named):
        call()


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(BedstoneError, match=r"pip install 'bedstone\[evaluate\]'"):
        classification(["a"], ["a"], NAMES)
