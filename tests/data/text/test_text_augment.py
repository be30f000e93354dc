"""New rows keep labels and tags, are never empty, and come out the same whoever makes them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bedstone.data.text.augment import (
    MARK,
    AugmentConfig,
    Augmenter,
    Slot,
    augment,
    cut,
    joined,
    sample,
)
from bedstone.data.text.synonyms import read_synonyms
from bedstone.errors import BedstoneError
from bedstone.metrics.ner import entity_spans
from bedstone.settings import from_mapping

ALL = AugmentConfig(copies=4, synonyms=0.3, insertion=0.3, deletion=0.3, swap=0.3)
KEPT = set(ALL.keep)


def propose(words, place):
    """Another word for every word, which depends on it alone."""
    return [f"new{words[place].lower()}", words[place]]


def made(rows, config=ALL, **parts):
    return list(augment(rows, config, propose=propose, **parts))


def only(**share):
    return AugmentConfig(copies=1, **{"deletion": 0, "swap": 0, **share})


pieces = ["Good", "not", "film,", "(the", "end.)", "'s", "¡Olé!", "日本語", "a"]
texts = some.one_of(
    some.text(max_size=60),
    some.text(alphabet=some.characters(codec=None, exclude_categories=()), max_size=20),
    some.lists(some.sampled_from(pieces)).map(" ".join),
)


@settings(max_examples=150, deadline=None)
@given(texts, some.integers(0, 5))
def test_text_rows(text, seed):
    config = AugmentConfig(**{**vars(ALL), "seed": seed})
    rows = made([{"text": text, "label": 3, "id": "x"}], config)
    assert rows[0] == {"text": text, "label": 3, "id": "x"}
    assert len(rows) <= 5
    for row in rows[1:]:
        assert (row["label"], row["id"]) == (3, "x")
        assert row[MARK] in ("synonym", "insertion", "deletion", "swap")
        assert row["text"].strip() and row["text"] != text
        old, new = text.lower().split(), row["text"].lower().split()
        assert [w for w in new if w in KEPT] == [w for w in old if w in KEPT]
    assert rows == made([{"text": text, "label": 3, "id": "x"}], config)


@given(texts)
def test_a_text_cut_and_joined_is_the_text(text):
    pieces, end = cut(text)
    slots = [Slot(piece.word, place, place) for place, piece in enumerate(pieces)]
    assert joined(pieces, end, slots) == text


words = some.sampled_from(["Paris", "won", "the", "big", "not", ",", "2", "Ünal", "don't"])
tags = some.sampled_from(["O", "O", "O", "B-PER", "I-PER", "I-LOC"])


@settings(max_examples=150, deadline=None)
@given(some.lists(some.tuples(words, tags), min_size=1, max_size=12))
def test_tagged_rows(pairs):
    row = {"tokens": [w for w, _ in pairs], "ner_tags": [t for _, t in pairs]}
    row["pos_tags"] = [f"{n}" for n in range(len(pairs))]
    found = entities_of(row)
    for new in made([row])[1:]:
        assert len(new["tokens"]) == len(new["ner_tags"]) == len(new["pos_tags"]) > 0
        assert entities_of(new) == found  # none lost, made, joined or changed
        for word, tag, source in zip(
            new["tokens"], new["ner_tags"], map(int, new["pos_tags"]), strict=True
        ):
            assert row["ner_tags"][source] == tag
            old = row["tokens"][source].lower()
            assert word.lower() in (old, f"new{old}") and " " not in word


def test_entities_stay_apart_when_the_words_between_them_go():
    tags = ["O", "O", "B-PER", "O", "O", "I-PER", "O"]
    row = {"tokens": ["Paris"] * len(tags), "ner_tags": tags}
    for seed in range(40):
        config = AugmentConfig(copies=4, deletion=0.9, swap=0.0, seed=seed)
        for new in list(augment([row], config))[1:]:
            assert len(entities_of(new)) == 2


def entities_of(row):
    return [
        (kind, row["tokens"][start : end + 1]) for kind, start, end in entity_spans(row["ner_tags"])
    ]


def test_tags_that_are_numbers():
    row = {"tokens": ["Ann", "saw", "a", "dog"], "ner_tags": [1, 0, 0, 0]}
    for new in made([row])[1:]:
        assert new["ner_tags"][0] == 1 and set(new["ner_tags"][1:]) == {0}
        assert new["tokens"][0] == "Ann"
    other = {"tokens": ["Ann", "saw"], "ner_tags": [0, 9]}
    for new in made([other], outside=9)[1:]:
        assert new["tokens"][0] == "Ann"


def test_rows_are_the_same_in_any_order_and_on_any_worker():
    rows = [
        {"text": f"one day the {n} good people of the town sang", "label": n} for n in range(80)
    ]
    whole = made(rows)
    parts = made(rows[:33]) + made(rows[33:], start=33)
    assert parts == whole
    maker = Augmenter(ALL, propose=propose)
    backwards = {n: maker.copies(rows[n], n) for n in reversed(range(80))}
    assert [row for n in range(80) for row in (rows[n], *backwards[n])] == whole
    assert made(rows, AugmentConfig(**{**vars(ALL), "seed": 1})) != whole
    shares = [row.get(MARK) for row in whole]
    assert all(shares.count(name) > 40 for name in ("synonym", "insertion", "deletion", "swap"))


def test_copies_of_a_row_differ():
    rows = made([{"text": "a good long day by the sea"}])
    assert len({row["text"] for row in rows}) == len(rows) == 5


def test_synonyms_keep_case_and_punctuation():
    config = only(synonyms=0.99)
    (_, new) = made([{"text": 'Great film, "truly" great; NASA and Rome!'}], config)
    assert new["text"] == 'Newgreat newfilm, "newtruly" newgreat; NASA newand Rome!'


def test_the_share_is_that_of_the_words():
    text = " ".join(["word"] * 50)
    (_, new) = made([{"text": text}], only(synonyms=0.1))
    assert new["text"].split().count("newword") == 5
    (_, new) = made([{"text": text}], only(insertion=0.1))
    assert len(new["text"].split()) == 55


def test_deletion_and_swap_leave_punctuation_and_the_capital_in_place():
    marks = set()
    for seed in range(30):
        (_, new) = made(
            [{"text": "The dog, a cat."}], AugmentConfig(copies=1, swap=0, deletion=0.2, seed=seed)
        )
        marks.add(new["text"])
    assert marks == {"Dog, a cat.", "The dog, cat.", "Dog, cat."}
    swapped = set()
    for seed in range(30):
        (_, new) = made([{"text": "The dog, ran."}], AugmentConfig(1, deletion=0, seed=seed))
        swapped.add(new["text"])
    assert swapped == {"Dog the, ran.", "Ran dog, the.", "The ran, dog."}


def test_negations_stay():
    for seed in range(20):
        config = AugmentConfig(copies=3, deletion=0.9, seed=seed)
        for new in made([{"text": "I do not like it"}], config)[1:]:
            assert "not" in new["text"].split()


def test_a_word_alone_makes_no_row():
    rows = [{"text": text} for text in ("", " \n", "Word", "...", "日本語")]
    assert list(augment(rows, AugmentConfig(copies=3))) == rows


def test_pairs_and_questions():
    row = {"sentence1": "a dog ran home", "sentence2": "home is far away", "label": 1}
    for new in made([row], columns=("sentence1", "sentence2"))[1:]:
        assert new["label"] == 1
        assert (new["sentence1"], new["sentence2"]) != (row["sentence1"], row["sentence2"])
    row = {"question": "who ran far away", "context": "a dog", "answers": {"answer_start": [0]}}
    for new in made([row])[1:]:
        assert new["context"] == "a dog" and new["answers"] == {"answer_start": [0]}
        assert new["question"] != row["question"]


def test_paraphrases_are_wanted_together_and_once():
    calls = []

    def paraphrase(texts):
        calls.append(texts)
        return ["" if "odd" in text else f"so: {text}" for text in texts]

    config = AugmentConfig(copies=3, deletion=0, swap=0, paraphrase="model")
    rows = [{"text": f"odd {n}" if n % 2 else f"even {n}", "label": n} for n in range(40)]
    new = list(augment(rows, config, paraphrase=paraphrase))
    assert [len(call) for call in calls] == [32, 8]
    assert [row for row in new if MARK in row] == [
        {"text": f"so: even {n}", "label": n, MARK: "paraphrase"} for n in range(0, 40, 2)
    ]


def test_a_paraphraser_that_loses_texts_is_named():
    config = AugmentConfig(copies=1, paraphrase="model")
    with pytest.raises(BedstoneError, match=r"augment\.paraphrase: .* texts were handed over"):
        list(augment([{"text": "a b c"}] * 9, config, paraphrase=lambda texts: []))


def test_two_ways_of_saying_it():
    calls = {"paraphrase": [], "back_translate": []}

    def model(name):
        def write(texts):
            calls[name] += texts
            return [f"{name}: {text}" for text in texts]

        return write

    config = AugmentConfig(
        copies=2, deletion=0, swap=0, paraphrase="model", back_translate=("there", "back")
    )
    rows = [{"text": f"one {n}", "label": n} for n in range(20)]
    new = list(augment(rows, config, **{name: model(name) for name in calls}))
    assert len(new) == 60
    for row in new:
        if how := row.get(MARK):
            assert row["text"] == f"{how}: one {row['label']}"
    assert all(sorted(texts) == sorted(row["text"] for row in rows) for texts in calls.values())


def test_words_that_are_given_are_taken_before_a_models(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# mine\nGood: fine\nfilm: motion picture, movie\n")
    config = AugmentConfig(1, synonyms=0.9, deletion=0, swap=0, thesaurus=str(path))
    (_, new) = augment([{"text": "good old film"}], config)
    assert new["text"] in ("fine old movie", "fine old motion picture")
    (_, new) = made([{"text": "good old"}], config)
    assert new["text"] == "fine newold"
    row = {"tokens": ["good", "film"], "ner_tags": ["O", "O"]}
    (_, new) = augment([row], config)
    assert new["tokens"] == ["fine", "movie"]  # a tag needs one word


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\ufeffFilm: movie , motion  picture, film\nfilm: flick\n"),
        ("a.tsv", "film\tmovie\tmotion picture\tflick\n"),
        ("a.json", json.dumps({"film": ["movie", "motion picture"], "Film": "flick"})),
    ],
)
def test_thesaurus_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    known = read_synonyms(tmp_path / name)
    assert known("film") == ("movie", "motion picture", "flick") and known("x") == ()


def wordnet(folder, offset=12):
    """A database of one noun synset, one of verbs, in WordNet's own form."""
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("")
        (folder / f"index.{part}").write_text("  1 This licence\n")
    head = "  1 licence\n"
    synset = "00000012 06 n 04 movie 0 film 0 motion_picture 0 Oscar 0 000 | seen  \n"
    (folder / "data.noun").write_text(head + synset)
    lines = [f"{w} n 1 1 @ 1 1 {offset:08}  " for w in ("movie", "film", "saw", "in")]
    (folder / "index.noun").write_text("\n".join(["  1 licence", *lines]) + "\n")
    (folder / "data.verb").write_text(head + "00000012 36 v 02 film 0 shoot 0 000 | take  \n")
    (folder / "index.verb").write_text("  1 licence\nfilm v 1 0 1 0 00000012  \n")
    (folder / "verb.exc").write_text("saw see\n")


def test_wordnets_database(tmp_path):
    wordnet(tmp_path)
    known = read_synonyms(tmp_path)
    assert known("movie") == ("film", "motion picture")  # no names
    assert known("film") == ("movie", "motion picture")  # oftener a noun than a verb
    assert known("saw") == known("in") == known("x") == ()


BAD_FILES = {
    "lines": ("a.txt", "film = movie\n", "line 1 is 'film = movie'"),
    "json": ("a.json", "{", "not valid JSON"),
    "list": ("a.json", "[1]", "expected an object"),
    "value": ("a.json", '{"a": 3}', "'a' has 3"),
    "empty": ("a.txt", "\n", "no words"),
    "missing": (None, None, "can't be read"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_thesauruses_are_named(tmp_path, case):
    name, text, message = BAD_FILES[case]
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(BedstoneError, match=message):
        read_synonyms(tmp_path / (name or "none.txt"))


def test_bad_wordnets_are_named(tmp_path):
    with pytest.raises(BedstoneError, match=r"index\.noun or data\.noun can't be read"):
        read_synonyms(tmp_path)
    wordnet(tmp_path, offset=999)
    with pytest.raises(BedstoneError, match="not of one version"):
        read_synonyms(tmp_path)("film")
    (tmp_path / "index.adv").write_text("fast r 2 0 1 0 00000012\n")
    with pytest.raises(BedstoneError, match=r"index\.adv: line 1 is not WordNet's"):
        read_synonyms(tmp_path)


BAD = {
    "copies": (lambda: AugmentConfig(copies=-1), r"augment\.copies: -1"),
    "share": (lambda: AugmentConfig(swap=10), r"augment\.swap: 10"),
    "unused": (lambda: AugmentConfig(thesaurus="x"), r"augment\.thesaurus: is named"),
    "no words": (lambda: augment([], AugmentConfig(1, synonyms=0.1)), r"augment\.synonyms: needs"),
    "no model": (lambda: augment([], AugmentConfig(1, paraphrase="m")), r"no function that writes"),
    "one model": (lambda: AugmentConfig(1, back_translate=("m",)), r"expected two models"),
    "no models": (
        lambda: augment([], AugmentConfig(1, back_translate=("m", "n"))),
        r"augment\.back_translate: .* no function that writes",
    ),
    "nothing": (lambda: augment([], only()), r"there is no operation"),
    "column": (lambda: made([{"txt": "a"}]), r"row 0 has no column 'text'.*'txt'"),
    "type": (lambda: made([{"text": "a b"}, {"text": None}]), r"row 1, column 'text': None"),
    "tokens": (lambda: made([{"tokens": "a b", "ner_tags": "O"}]), r"a list of words"),
    "tags": (
        lambda: made([{"tokens": ["a"], "ner_tags": []}]),
        r"'ner_tags': \[\]; expected a tag",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(BedstoneError, match=message):
        call()


def test_a_recipe_reads_it():
    config = from_mapping(AugmentConfig, {"copies": 2, "keep": ["x"]}, "recipe", "augment.")
    assert config.copies == 2 and config.keep == ("x",)
    assert list(augment([{"text": "a b"}], AugmentConfig())) == [{"text": "a b"}]


def test_a_sample_shows_before_and_after():
    rows = [{"text": "!?!"}, {"text": "[bold] day by the sea"}, {"text": "one two"}]
    shown = sample(rows, ALL, 1, propose=propose)
    assert "[bold] day by the sea" in shown and "one two" not in shown and "!?!" not in shown
    assert any(name in shown for name in ("synonym", "swap", "deletion", "insertion"))
    assert "No row was changed" in sample([{"text": "Word"}], AugmentConfig(1))


def test_long_texts_are_quick():
    rows = [{"text": "a" * 5_000_000}, {"text": "!" * 5_000_000 + "x y"}, {"text": "a b " * 50_000}]
    assert len(made(rows, AugmentConfig(copies=1))) >= 4
