"""Figures by the number of examples: their spread, and what is beside them."""

import functools

import pytest

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.dataset import Dataset
from bedstone.errors import BedstoneError
from bedstone.evaluate.prompting import Point, ShotCurve, shot_curve
from bedstone.metrics.figures import Figures
from bedstone.models.heads import HeadConfig
from bedstone.report.plots import draw_shot_curve
from small_models import SENTENCES, decoder

WORDS = ["cat", "dog", "film", "evening", "paris"]
ROWS = [
    {"text": f"{word} {number}", "label": "good" if number % 2 else "bad", "place": f"at {number}"}
    for number, word in enumerate(WORDS * 4)
]
TEMPLATE = {"input": "{text} =", "output": " {label}", "separator": "; "}


@functools.cache
def gpt() -> Model:
    return decoder(HeadConfig("language"), "llama", 512)


def task(name="text-classification", **options):
    options = {"template": TEMPLATE, "examples": ROWS[:10], **options}
    return bedstone.pipeline(name, gpt(), **options)


def figure(value: float) -> Figures:
    return Figures("classification", "accuracy", {"accuracy": value}, {}, 10)


def test_the_spread_of_draws_and_orders():
    scores = {(0, 0): 0.4, (0, 1): 0.6, (1, 0): 0.7, (1, 1): 0.7}
    points = [Point(2, "none", *key, figure(value)) for key, value in scores.items()]
    curve = ShotCurve(
        "text-classification", "accuracy", 10, [Point(0, "none", 0, 0, figure(0.5)), *points]
    )
    found = curve.spread(2)
    assert (found.count, found.worst, found.best) == (4, 0.4, 0.7)
    assert found.mean == pytest.approx(0.6) and found.deviation == pytest.approx(0.1414, abs=1e-4)
    assert found.orders == pytest.approx(0.1)  # 0.2 of the first draw, none of the second
    assert curve.spread(0).orders is None and curve.shots == [0, 2]
    assert [each["mean"] for each in curve.record()["curve"]] == pytest.approx([0.5, 0.6])


def test_a_curve():
    made, held = task(), Dataset(ROWS[10:], "held.jsonl")
    shares = []
    curve = shot_curve(
        made,
        held,
        shots=(0, 1, 4),
        draws=2,
        orders=2,
        calibrations=("none", "content-free"),
        progress=shares.append,
    )
    counts = {
        (each, name): curve.spread(each, name).count
        for each in (0, 1, 4)
        for name in curve.calibrations
    }
    assert counts == {
        (shots, name): count
        for shots, count in ((0, 1), (1, 2), (4, 4))
        for name in ("none", "content-free")
    }
    assert shares == sorted(shares) and shares[-1] == 1
    assert curve.rows == 10 and curve.baselines == {"majority": 0.5, "chance": 0.5}
    # a point is what the task gives with its options
    point = next(each for each in curve.points if (each.shots, each.seed, each.order) == (4, 1, 1))
    found = made([row["text"] for row in ROWS[10:]], shots=4, seed=1, order=1)
    right = sum(each["label"] == row["label"] for each, row in zip(found, ROWS[10:], strict=True))
    assert point.figures["accuracy"] == right / 10


def test_calibrating_anew_scores_no_row_again():
    made, held = task(), Dataset(ROWS[10:], "held.jsonl")
    read, score = [], made.writer.score
    made.writer.score = lambda pairs: read.append(len(pairs)) or score(pairs)
    shot_curve(made, held, shots=(2,), calibrations=("none", "content-free"))
    assert sum(read) == 10 * 2 + 3 * 2


def test_templates_may_name_any_column():
    made = task(template={**TEMPLATE, "input": "{text} {place} ="})
    curve = shot_curve(made, Dataset(ROWS[10:], "held.jsonl"), shots=(1,))
    assert curve.points[0].figures.rows == 10


def test_rows_that_are_examples_too_are_said():
    curve = shot_curve(task(), Dataset(ROWS[8:12], "held.jsonl"), shots=(0,))
    assert curve.notes == ["2 held-out rows are among the examples too: leave them out."]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("summarization", [{"source": each, "target": f"so {each[:5]}"} for each in SENTENCES]),
        (
            "question-answering",
            [
                {"question": "who?", "context": each, "answers": {"text": [each[:3]]}}
                for each in SENTENCES
            ],
        ),
        (
            "multiple-choice",
            [{"question": each, "choices": ["go", "cat"], "answer": "B"} for each in SENTENCES],
        ),
        (
            "token-classification",
            [
                {"tokens": ["Ada", "ran", each[:3]], "ner_tags": ["B-PER", "O", "O"]}
                for each in SENTENCES
            ],
        ),
    ],
)
def test_other_tasks(name, rows):
    short = {} if name == "multiple-choice" else {"max_new_tokens": 3}
    made = task(name, template="", examples=rows[:3], **short)
    curve = shot_curve(made, Dataset(rows[3:], "held.jsonl"), shots=(0, 2), draws=2)
    assert 0 <= curve.spread(2).mean <= 1
    assert curve.points[0].figures.rows == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": (0, 11)}, "11 were wanted, and examples has 10 rows"),
        ({"calibrations": ("nonce",)}, "perhaps 'none' is meant"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(BedstoneError, match=words):
        shot_curve(task(), Dataset(ROWS[10:], "held.jsonl"), **options)


def test_labels_that_have_no_words_name_their_row():
    rows = Dataset([*ROWS[10:12], {"text": "a cat", "label": "fair", "place": ""}], "held.jsonl")
    with pytest.raises(
        BedstoneError, match=r"held.jsonl.*'fair', for which there is no label word"
    ):
        shot_curve(task(), rows, shots=(0,))


def test_no_labels_to_calibrate():
    made = task("summarization", template="", examples=[{"source": "a", "target": "b"}])
    with pytest.raises(BedstoneError, match="summarization has no labels to calibrate"):
        shot_curve(
            made,
            Dataset([{"source": "c", "target": "d"}], "held.jsonl"),
            shots=(0,),
            calibrations=("domain",),
        )


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    curve = shot_curve(
        task(),
        Dataset(ROWS[10:], "held.jsonl"),
        shots=(0, 1, 2),
        draws=2,
        calibrations=("none", "domain"),
    )
    series = {name: curve.series(name) for name in curve.calibrations}
    path = draw_shot_curve(series, tmp_path / "k.png", "a $title$", "accuracy", curve.baselines)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert curve.table("title").row_count == 6
