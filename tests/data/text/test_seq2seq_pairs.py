"""Pairs of texts: which columns are read, what is refused, and batches by tokens."""

import json

import numpy as np
import pytest
import torch

from bedstone.data.text.marian_tokenizer import train_marian
from bedstone.data.text.seq2seq import (
    PairExamples,
    PairsConfig,
    evaluation_batches,
    open_pairs,
    pair_stream,
)
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_pairs
from bedstone.errors import BedstoneError

TEXTS = [("a dog runs", "ein Hund rennt"), ("two cats sleep here", "zwei Katzen schlafen hier"),
         ("a man reads", "ein Mann liest"), ("birds", "Vögel")]  # fmt: skip


def opened(tmp_path, rows, **config):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_pairs(PairsConfig(**config), str(path))


@pytest.mark.parametrize(
    "names, config",
    [
        (("source", "target"), {}),
        (("document", "summary"), {}),
        (("prompt", "completion"), {}),
        (("instruction", "output"), {}),
        (("en", "de"), {"source_lang": "en", "target_lang": "de"}),
        (("x", "y"), {"columns": {"source": "x", "target": "y"}}),
        (("text", "y"), {"columns": {"target": "y"}}),
    ],
)
def test_the_columns_of_pairs_are_found(tmp_path, names, config):
    pairs = opened(tmp_path, [dict(zip(names, pair, strict=True)) for pair in TEXTS], **config)
    assert list(zip(pairs.sources, pairs.targets, strict=True)) == TEXTS


def test_rows_of_translations_are_read_either_way(tmp_path):
    rows = [{"translation": {"en": en, "de": de}} for en, de in TEXTS]
    there = opened(tmp_path, rows, source_lang="en", target_lang="de")
    back = opened(tmp_path, rows, source_lang="de", target_lang="en")
    assert (there.sources, there.targets) == (back.targets, back.sources)
    assert there.sources == [en for en, _ in TEXTS]
    assert list(there.texts())[:2] == list(TEXTS[0])


SEVERAL = [
    {"en": "a dog", "de": "ein Hund", "fr": "un chien"},
    {"en": "a cat", "de": "eine Katze", "fr": None},
    {"en": "a bird", "fr": "un oiseau"},
]
CODED = [
    (">>de<< a dog", "ein Hund"),
    (">>fr<< a dog", "un chien"),
    (">>de<< a cat", "eine Katze"),
    (">>fr<< a bird", "un oiseau"),
]


@pytest.mark.parametrize("nested", [True, False])
def test_a_row_gives_a_pair_for_each_language_that_it_has(tmp_path, nested):
    rows = [{"translation": row} for row in SEVERAL] if nested else SEVERAL
    pairs = opened(tmp_path, rows, source_lang="en", target_lang=["de", "fr"])
    assert list(zip(pairs.inputs(), pairs.targets, strict=True)) == CODED
    assert [pairs.where(pair).rpartition(" ")[2] for pair in range(4)] == ["1", "1", "2", "3"]
    assert ">>" not in "".join(pairs.texts()) and list(pairs.texts())[:2] == ["a dog", "ein Hund"]
    part = pairs.of(pairs.rows.pick([0, 2]))  # pairs of a row stay on one side
    assert (part.inputs(), part.numbers) == ([CODED[0][0], CODED[1][0], CODED[3][0]], [0, 0, 1])
    assert part.where(2) == pairs.where(3)


def test_a_source_is_read_after_its_language(tmp_path):
    import transformers

    pairs = opened(tmp_path, SEVERAL, source_lang="en", target_lang=["fr", "de"])
    known = train_pairs(pairs.texts(), 300, languages=["fr", "de"])
    assert known.languages == ["de", "fr"]
    examples = PairExamples(pairs, known, 0, (50, 50))
    for row, code in enumerate((">>fr<<", ">>de<<", ">>de<<", ">>fr<<")):
        ids = known.encode(pairs.sources[row], special=True)
        assert examples.sources[row].tolist() == [known.id_of(code), *ids]
        assert known.decode(examples.sources[row]).strip() == pairs.sources[row]
    known.save(tmp_path / "o")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "o")
    assert [theirs(text)["input_ids"] for text in pairs.inputs()] == [
        examples.sources[row].tolist() for row in range(4)
    ]
    assert Tokenizer.load(tmp_path / "o").languages == known.languages


ROWS = [{"source": en, "target": de} for en, de in TEXTS]


@pytest.mark.parametrize(
    "rows, config, message",
    [
        ([{"translation": {"en": "a", "de": "b"}}], {}, "data.source_lang: isn't given.*de, en"),
        (
            [{"translation": {"en": "a", "de": "b"}}],
            {"source_lang": "en", "target_lang": "fr"},
            "data.target_lang: .* has no text in 'fr'",
        ),
        (
            [{"translation": {"en": "a", "de": "b"}}],
            {"source_lang": "en", "target_lang": "en"},
            "is the source's too",
        ),
        ([{"translation": "a"}], {"source_lang": "en", "target_lang": "de"}, "has no text in 'en'"),
        (SEVERAL, {"source_lang": "en", "target_lang": ["de", "en"]}, "'en' is the source's too"),
        (SEVERAL, {"source_lang": "en", "target_lang": ["de", "it"]}, "has no text in 'it'"),
        (SEVERAL, {"source_lang": "en", "target_lang": []}, "target_lang: the list is empty"),
        (SEVERAL, {"source_lang": "en", "target_lang": ["de", "de"]}, "'de' is there twice"),
        (SEVERAL, {"source_lang": "en", "target_lang": ["d e"]}, r"'d e' can't stand in a token"),
        (
            [*SEVERAL, {"en": "a cow"}],
            {"source_lang": "en", "target_lang": ["de", "fr"], "most_broken": 0.0},
            "line 4.*has no text in de, fr",
        ),
        (
            [*SEVERAL, {"en": "a cow", "de": "eine Kuh", "fr": " "}],
            {"source_lang": "en", "target_lang": ["de", "fr"], "most_broken": 0.0},
            "line 4.*'fr'.*is empty",
        ),
        ([{"source": "a", "other": "b"}], {}, "no column for the target"),
        (ROWS, {"columns": {"source": "sorce"}}, "data.columns.source: .*'sorce'.*'source'"),
        (ROWS, {"columns": {"src": "source"}}, "'src' is no part of a pair"),
        (ROWS, {"columns": {"target": "source"}}, "both 'source'"),
        ([*ROWS, {"source": "a", "target": ""}], {"most_broken": 0.0}, "line 5.*'target'.*empty"),
        ([*ROWS, {"source": "a"}], {"most_broken": 0.0}, "line 5.*'target'.*missing"),
        ([*ROWS, {"source": None, "target": "b"}], {"most_broken": 0.0}, "line 5.*'source'.*null"),
        ([*ROWS, {"source": 7, "target": "b"}], {"most_broken": 0.0}, "line 5.*'source'.*7"),
        ([{"source": "a", "target": "a"}] * 3, {}, "in 3 of 3 pairs the source is the target"),
    ],
)
def test_what_is_no_pair_is_named(tmp_path, rows, config, message):
    with pytest.raises(BedstoneError, match=message):
        opened(tmp_path, rows, **config)


def test_few_broken_rows_are_left_out_and_counted(tmp_path):
    rows = [{"source": f"a {n}", "target": f"b {n}"} for n in range(40)]
    pairs = opened(tmp_path, [*rows[:20], {"source": "", "target": "x"}, *rows[20:]])
    assert len(pairs) == 40 and pairs.sources[20] == "a 20"
    assert "line 21" in str(pairs.rows.faults.left_out())


@pytest.fixture
def tokenizer():
    return train_pairs([text for pair in TEXTS for text in pair], 300)


def test_a_tokenizer_of_pairs_ends_texts_and_gives_them_back(tokenizer):
    for text in (TEXTS[0][0], TEXTS[3][1], "1234 unknown €"):
        ids = tokenizer.encode(text, special=True)
        assert ids[-1] == tokenizer.eos_id == 1 and tokenizer.pad_id == 0
        assert tokenizer.decode(ids).strip() == text
    lower = train_pairs(["A Dog"], 300, lowercase=True)
    assert lower.encode("A DOG") == lower.encode("a dog")


def test_batches_hold_sources_targets_and_what_follows(tmp_path, tokenizer):
    pairs = opened(tmp_path, ROWS)
    examples = PairExamples(pairs, tokenizer, 0, (100, 100))
    batch = examples.batch(np.array([1, 3]))
    assert batch.sources.lengths == tuple(
        len(tokenizer.encode(TEXTS[row][0])) + 1 for row in (1, 3)
    )
    first, second = (tokenizer.encode(TEXTS[row][1]) for row in (1, 3))
    assert batch.rows.ids[0].tolist() == [0, *first, 0, *second]
    assert batch.targets[0].tolist() == [*first, 1, *second, 1]
    assert batch.target_count == batch.rows.ids.numel()
    assert "line 2" in batch.places[0]
    counted = [each.target_count for each in evaluation_batches(examples, 3)]
    assert sum(counted) == len(examples.targets.ids)


def test_long_pairs_are_left_out_or_cut_and_counted(tmp_path, tokenizer):
    pairs = opened(tmp_path, ROWS)
    room = len(tokenizer.encode(TEXTS[0][0])) + 1
    examples = PairExamples(pairs, tokenizer, 0, (room, 100))
    assert 0 < len(examples) < 4 and examples.left_out == 4 - len(examples)
    assert f"{examples.left_out} pairs are longer" in examples.note()
    cut = PairExamples(pairs, tokenizer, 0, (room, 100), cut=True)
    assert len(cut) == 4 and cut.cut == examples.left_out
    assert all(len(cut.sources[row]) <= room and cut.sources[row][-1] == 1 for row in range(4))
    with pytest.raises(BedstoneError, match=r"all 4 pairs are longer.*Raise model.context"):
        PairExamples(pairs, tokenizer, 0, (1, 100))


def test_a_stream_goes_on_where_it_was(tmp_path, tokenizer):
    examples = PairExamples(opened(tmp_path, ROWS), tokenizer, 0, (100, 100))
    stream = pair_stream(examples, 3, seed=4)
    next(stream)
    state = stream.state_dict()
    expected = [next(stream).targets for _ in range(3)]
    again = pair_stream(examples, 3, seed=4)
    again.load_state_dict(state)
    assert all(torch.equal(next(again).targets, each) for each in expected)


def test_a_source_with_an_unknown_language_is_named(tmp_path):
    pytest.importorskip("sentencepiece")
    words = [f"a cat {n}" for n in range(40)]
    known = train_marian(words, words, 17)
    pairs = opened(
        tmp_path, [{"source": "a cat", "target": "7"}, {"source": ">>x<<", "target": "8"}]
    )
    with pytest.raises(BedstoneError, match=r"line 2: language code 'x' is unknown"):
        PairExamples(pairs, known, 0, (50, 50))
