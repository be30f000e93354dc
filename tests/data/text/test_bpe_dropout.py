"""BPE-dropout: without dropout the tokenizer's ids, with it the published distribution, seeded."""

import functools
import json
import random
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from bedstone.data.text import bpe_dropout
from bedstone.data.text.bpe_dropout import BPEDropout, RecutPairs
from bedstone.data.text.denoise import DenoiseConfig, add_noise_tokens
from bedstone.data.text.seq2seq import PairExamples, PairsConfig, open_pairs, pair_stream
from bedstone.data.text.train_tokenizer import (
    train_bpe,
    train_characters,
    train_clip,
    train_pairs,
    train_roberta,
    train_wordpiece,
)
from bedstone.errors import BedstoneError

SAID = """the dog ran home unhurriedly and nobody in Bremen saw it's banana Zoë 漢字 naïve
    misunderstandings 1984 x=y; (no) internationally e-mail ... <mask> </s> 🙂"""
WORDS = SAID.split()


def sentence(number):
    draw = random.Random(number)
    words = draw.choices(WORDS, k=draw.randint(1, 25))
    parts = [word + draw.choice(["", "", "", "\t", " ", "\n", ","]) for word in words]
    return draw.choice(["", " ", "\n"]) + " ".join(parts) + draw.choice(".!?\n ")


@functools.cache
def tokenizer(train=train_bpe, size=600):
    return train([sentence(number) for number in range(300)], size)


def plain_ids(known, text):
    return known.encode_batch([text])[0].tolist()


@pytest.mark.parametrize("train", [train_bpe, train_roberta])
def test_without_dropout_ids_are_the_tokenizers(train):
    known = tokenizer(train)
    cut = BPEDropout(known, 0.0)
    texts = [sentence(number) for number in range(10_000)]
    wanted = known.encode_batch(texts)
    draw = np.random.default_rng(0)
    assert all(cut(text, draw) == ids.tolist() for text, ids in zip(texts, wanted, strict=True))


def test_long_texts_and_special_names_are_text():
    known = add_noise_tokens(tokenizer(), DenoiseConfig("infilling"), 64)
    text = " ".join(sentence(number) for number in range(400)) + " <mask> <|endoftext|>"
    ids = BPEDropout(known, 0.0)(text, np.random.default_rng(0))
    assert ids == plain_ids(known, text) and not set(ids) & set(known.special_ids)
    assert BPEDropout(known, 0.1)("", np.random.default_rng(0)) == []


def test_cuts_say_the_same_text_and_are_those_of_a_seed():
    known = tokenizer()
    cut, other = BPEDropout(known, 0.3), BPEDropout(known, 0.3)
    texts = [sentence(number) for number in range(200)]
    first = [cut(text, np.random.default_rng((5, n))) for n, text in enumerate(texts)]
    again = [other(t, np.random.default_rng((5, n))) for n, t in reversed([*enumerate(texts)])]
    assert first == again[::-1]  # whatever is known already
    assert all(known.decode(ids) == text for ids, text in zip(first, texts, strict=True))
    plain = [plain_ids(known, text) for text in texts]
    assert sum(map(len, first)) > 1.3 * sum(map(len, plain))
    assert first != [cut(text, np.random.default_rng((6, n))) for n, text in enumerate(texts)]


def test_nodes_that_arent_kept_change_nothing(monkeypatch):
    known = tokenizer()
    kept, bare = BPEDropout(known, 0.3), BPEDropout(known, 0.3)
    wanted = [kept(sentence(n), np.random.default_rng(n)) for n in range(50)]
    monkeypatch.setattr(bpe_dropout, "NODES", 3)
    assert wanted == [bare(sentence(n), np.random.default_rng(n)) for n in range(50)]
    assert len(bare._nodes) <= 3 and len(bare._words) <= 3


def provilkov(known, word, share, draw):
    """The published procedure, as it is written: every possible merge is dropped by itself."""
    merges = _merges(known)
    parts = list(word)
    while True:
        possible = [
            (merges[pair], place)
            for place, pair in enumerate(pairwise(parts))
            if pair in merges and draw.random() >= share
        ]
        if not possible:
            return tuple(parts)
        _, place = min(possible)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@functools.cache
def _merges(known):
    found = json.loads(known.backend.to_str())["model"]["merges"]
    return {tuple(m.split(" ") if isinstance(m, str) else m): n for n, m in enumerate(found)}


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("word", ["banana", "nobody", "aaaa"])
def test_cuts_are_as_likely_as_published(word, share):
    known = tokenizer()
    draw, number, rounds = random.Random(3), np.random.default_rng(4), 20_000
    wanted = Counter(provilkov(known, word, share, draw) for _ in range(rounds))
    cut = BPEDropout(known, share)
    words = cut.words(word)
    names = {i: name for name, i in known.backend.get_vocab().items()}
    found = Counter(tuple(names[i] for i in cut.cut(words, number)) for _ in range(rounds))
    for parts in wanted | found:
        assert found[parts] / rounds == pytest.approx(wanted[parts] / rounds, abs=0.015)


BAD = {
    "wordpiece": lambda: train_wordpiece(["the dog"] * 3, 120),
    "characters": lambda: train_characters(["the dog"]),
    "clip": lambda: train_clip(["the dog"] * 3, 300),
}


@pytest.mark.parametrize("kind", ["wordpiece", "characters"])
def test_other_tokenizers_are_refused(kind):
    with pytest.raises(BedstoneError, match=r"bpe_dropout: .* no plain byte-level BPE"):
        BPEDropout(BAD[kind](), 0.1)


def test_a_lower_case_bpe_is_cut_as_it_reads():
    known = BAD["clip"]()
    assert BPEDropout(known, 0.0)("The DOG", np.random.default_rng(0)) == plain_ids(
        known, "The DOG"
    )


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_below_one(share):
    with pytest.raises(BedstoneError, match="bpe_dropout"):
        BPEDropout(tokenizer(), share)


def opened(folder, rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_pairs(PairsConfig(), str(path))


def examples(folder, known, most):
    rows = [{"source": sentence(n).strip(), "target": sentence(n + 500).strip()} for n in range(60)]
    return PairExamples(opened(folder, rows), known, 0, (most, most))


@pytest.mark.parametrize("train", [train_pairs, train_roberta])
def test_pairs_are_cut_anew(train, tmp_path):
    known = tokenizer(train)
    pairs = examples(tmp_path, known, 200)

    def stream(share):
        return pair_stream(RecutPairs(pairs, known, share, (200, 200)), 7, seed=4, workers=0)

    plain, own, cut = pair_stream(pairs, 7, seed=4, workers=0), stream(0.0), stream(0.2)
    seen = {}
    for step in range(16):
        one, two, three = next(plain), next(own), next(cut)
        assert one.sources.ids.tolist() == two.sources.ids.tolist()
        assert one.targets.tolist() == two.targets.tolist()
        assert one.places == three.places and len(three.targets[0]) > len(one.targets[0])
        for row, place in enumerate(three.places):
            (a, b), (c, d) = one.sources.spans[row], three.sources.spans[row]
            new = three.sources.ids[0, c:d].tolist()
            assert known.decode(new) == known.decode(one.sources.ids[0, a:b].tolist())
            seen.setdefault(place, set()).add(tuple(new))
        if step == 9:
            state = cut.state_dict()
    assert any(len(cuts) > 1 for cuts in seen.values())
    resumed = stream(0.2)
    resumed.load_state_dict(state)
    for _ in range(6):
        batch = next(resumed)
    assert batch.sources.ids.tolist() == three.sources.ids.tolist()


def test_no_cut_is_longer_than_the_network_reads(tmp_path):
    known = tokenizer(train_pairs)
    pairs = examples(tmp_path, known, 30)
    stream = pair_stream(RecutPairs(pairs, known, 0.5, (30, 30)), 4, seed=4, workers=0)
    batches = [next(stream) for _ in range(40)]
    assert 20 < max(max(batch.sources.lengths) for batch in batches) <= 30
    assert 20 < max(max(batch.rows.lengths) for batch in batches) <= 30


def test_special_names_in_a_source_stay(tmp_path):
    known = add_noise_tokens(tokenizer(train_pairs), DenoiseConfig("infilling"), 64)
    rows = [{"source": f"<mask> internationally {n}", "target": "nobody"} for n in range(2)]
    pairs = PairExamples(opened(tmp_path, rows), known, 0, (40, 40))
    cut = RecutPairs(pairs, known, 0.5, (40, 40))
    batch = cut.collate(np.arange(2), np.random.default_rng(0), 0)
    assert batch.sources.ids[0].tolist() == [*pairs.sources[0], *pairs.sources[1]]
    assert known.mask_id in pairs.sources[0]


def test_the_language_before_a_source_stays_and_the_rest_is_cut(tmp_path):
    rows = [{"en": sentence(n).strip(), "de": f"x {n}", "fr": f"y {n}"} for n in range(4)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = PairsConfig(source_lang="en", target_lang=["de", "fr"])
    opened = open_pairs(named, str(path))
    known = train_pairs(opened.texts(), 300, languages=["de", "fr"])
    pairs = PairExamples(opened, known, 0, (200, 200))
    cut = RecutPairs(pairs, known, 0.3, (200, 200))
    batch = cut.collate(np.arange(8), np.random.default_rng(0), 0)
    for row, (start, end) in enumerate(batch.sources.spans):
        ids, plain = batch.sources.ids[0, start:end].tolist(), pairs.sources[row].tolist()
        assert ids[0] == plain[0] == known.id_of((">>de<<", ">>fr<<")[row % 2])
        assert len(ids) > len(plain) and known.decode(ids) == known.decode(plain)


def test_it_is_fast():
    cut = BPEDropout(tokenizer(), 0.1)
    rows = [cut.words(sentence(number)) for number in range(2000)]
    for _ in range(2):
        began = time.process_time()
        for number, words in enumerate(rows):
            cut.cut(words, np.random.default_rng(number))
        spent = time.process_time() - began
    assert sum(map(len, rows)) / spent > 20_000  # words a second; it does many more
