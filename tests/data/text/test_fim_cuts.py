"""Documents cut for fill-in-the-middle: nothing is lost, shares are kept, caches and streams."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from bedstone.data.bytes import Piece
from bedstone.data.sources import Texts
from bedstone.data.stream import IGNORED
from bedstone.data.text import token_cache as tokens_module
from bedstone.data.text.causal_lm import PackedBatches, StreamedBatches
from bedstone.data.text.fim import STYLES
from bedstone.data.text.fim_cuts import FimConfig, FimCounts, FimCutter
from bedstone.data.text.token_cache import token_cache
from bedstone.data.text.train_tokenizer import END, train_bpe
from bedstone.errors import BedstoneError

STYLE = STYLES["starcoder"]
TOKENIZER = train_bpe(["abc"], 256 + 6, special_tokens=(END, *STYLE.tokens))  # a token a byte
PRE, SUF, MID = (TOKENIZER.id_of(token) for token in STYLE.needed)


def document(number, least=0, most=80):
    choose = random.Random(number)
    size = choose.randint(least, most)
    return "".join(choose.choices(["ab", "c ", "ü", "漢", "\r\n", "d\r\n", "\n"], k=size))


def cutter(passage=0, seed=0, **config):
    return FimCutter(TOKENIZER, FimConfig(**config), passage, seed)


def restored(ids):
    """The text of a document, its parts put back in their order, and how it was cut."""
    ids = list(ids)
    if ids[:1] != [PRE]:
        return TOKENIZER.decode(ids), ""
    assert ids[-1] == TOKENIZER.eos_id
    assert [ids.count(each) for each in (PRE, SUF, MID, TOKENIZER.eos_id)] == [1, 1, 1, 1]
    suffix, middle = ids.index(SUF), ids.index(MID)
    if suffix == 1:  # the middle goes on behind the prefix
        return TOKENIZER.decode(ids[middle + 1 :] + ids[2:middle]), "spm"
    return TOKENIZER.decode(ids[1:suffix] + ids[middle + 1 :] + ids[suffix + 1 : middle]), "psm"


def documents(split):
    return [part.tolist() for part in np.split(split.tokens, split.starts[1:])]


def test_every_character_survives_in_its_place():
    texts = [document(number) for number in range(400)]
    found = cutter(rate=1.0).encode(texts, [True] * 400, [True] * 400)
    orders = []
    for text, cut in zip(texts, found, strict=True):
        assert cut.starts == ()
        again, order = restored(cut.ids.tolist())
        assert again == text
        assert bool(order) == (len(text) > 1)  # of fewer characters there is no middle
        assert cut.open_ended == (not order)
        orders.append(order)
    assert any("\r\n" in text for text in texts)
    assert 0.4 < orders.count("spm") / (len(orders) - orders.count("")) < 0.6


def test_middles_are_cut_at_two_random_characters():
    text = "0123456789" * 10
    found = cutter(rate=1.0, spm=0.0).encode(
        [f"{text}{n}" for n in range(2000)], *[[True] * 2000] * 2
    )
    firsts, lasts = [], []
    for cut in found:
        ids = cut.ids.tolist()
        size = len(ids) - 4
        firsts.append((ids.index(SUF) - 1) / size)
        lasts.append(1 - (ids.index(MID) - ids.index(SUF) - 1) / size)
    assert abs(np.mean(firsts) - 1 / 3) < 0.02 and abs(np.mean(lasts) - 2 / 3) < 0.02
    assert min(firsts) == 0 and max(lasts) == 1


def test_a_share_of_middles_is_the_rest_of_one_line():
    text = "def f(a):\r\n    return a\r\n\r\n"
    texts = [f"{text}# {number}" for number in range(1500)]
    found = cutter(rate=1.0, spm=0.0, lines=1.0).encode(texts, *[[True] * 1500] * 2)
    middles = {}
    for cut in found:
        ids = cut.ids.tolist()
        middle = TOKENIZER.decode(ids[ids.index(MID) + 1 : -1])
        assert middle and "\n" not in middle and "\r" not in middle
        rest = TOKENIZER.decode(ids[ids.index(SUF) + 1 : ids.index(MID)])
        assert rest.startswith("\r\n") or not rest
        middles[middle] = middles.get(middle, 0) + 1
    lines, thirds = 1500 / 3, 1 / 3
    assert middles["    return a"] == pytest.approx(lines * thirds, rel=0.3)
    assert middles["return a"] == pytest.approx(lines * (thirds + thirds / 8), rel=0.3)
    assert middles["def f(a):"] == pytest.approx(lines * (2 * thirds + thirds / 9), rel=0.3)
    half = cutter(rate=1.0, spm=0.0, lines=0.5).encode(texts, *[[True] * 1500] * 2)
    several = sum("\n" in TOKENIZER.decode(cut.ids[cut.ids.tolist().index(MID) :].tolist())
                  for cut in half)  # fmt: skip
    assert several > 300
    blank = cutter(rate=1.0, lines=1.0).encode(["\n \n\n"] * 3, *[[True] * 3] * 2)
    assert all(cut.counts.cut for cut in blank)  # at two characters of all


def test_cut_passages_may_stay_in_their_document():
    texts = [document(number, 300, 600) for number in range(40)]
    flags = [True] * 40, [True] * 40
    apart, joined = (cutter(60, apart=apart).encode(texts, *flags) for apart in (True, False))
    assert any(cut.starts for cut in apart)
    for one, other in zip(apart, joined, strict=True):
        assert np.array_equal(one.ids, other.ids) and other.starts == ()
        assert one.open_ended == other.open_ended and one.counts == other.counts
    assert cutter(apart=False).identity() != cutter().identity()


def test_without_that_share_cuts_and_caches_stay_what_they_were():
    assert not {"lines", "apart"} & cutter().identity().keys()
    assert cutter(lines=0.5).identity()["lines"] == 0.5


@pytest.mark.parametrize("size", [20, 100])
def test_passages_of_a_long_document(size):
    texts = [document(number, 300, 600) for number in range(60)]
    found = cutter(size, rate=0.5).encode(texts, [True] * 60, [True] * 60)
    total = FimCounts()
    for text, cut in zip(texts, found, strict=True):
        parts = [part.tolist() for part in np.split(cut.ids, cut.starts)]
        pairs = [restored(part) for part in parts]
        assert "".join(part for part, _ in pairs) == text
        assert all(0 < len(part) <= size for part, order in pairs if order)
        # what stays between two is one document, and only what is cut ends
        orders = [order for _, order in pairs]
        assert all(a or b for a, b in pairwise(orders))
        assert all(TOKENIZER.eos_id not in part for part, each in zip(parts, orders, strict=True)
                   if not each)  # fmt: skip
        assert cut.open_ended == (not orders[-1])
        total = total.plus(cut.counts)
    assert abs(total.cut / total.passages - 0.5) < 0.06
    assert abs(total.spm / total.cut - 0.5) < 0.08


def test_pieces_of_one_document_go_on():
    """A document in pieces: where two meet, it stays as it is, so that it goes on."""
    texts = [document(number, 200, 300) for number in range(3)]
    begins, ends = [True, False, False], [False, False, True]
    found = cutter(30, rate=1.0).encode(texts, begins, ends)
    for text, cut, begin, end in zip(texts, found, begins, ends, strict=True):
        parts = [restored(part.tolist()) for part in np.split(cut.ids, cut.starts)]
        assert "".join(part for part, _ in parts) == text
        assert bool(parts[0][1]) == begin and bool(parts[-1][1]) == end
        assert cut.counts.cut == len([1 for _, order in parts if order]) > 2
    whole = cutter(0, rate=1.0).encode(texts, begins, ends)  # not in sight as a whole
    assert all(cut.counts.cut == 0 and cut.open_ended for cut in whole)


def test_draws_are_of_the_seed_and_the_text_alone():
    texts = [document(number, 5) for number in range(100)]
    flags = [True] * 100, [True] * 100
    first = cutter().encode(texts, *flags)
    again = cutter().encode(texts[::-1], *flags)[::-1]
    other = cutter(seed=1).encode(texts, *flags)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    assert sum(np.array_equal(a.ids, b.ids) for a, b in zip(first, other, strict=True)) < 60


def test_defaults_and_shares_that_the_convention_lacks():
    assert FimConfig() == FimConfig(
        rate=0.5, spm=None, style="", passage=None, lines=0.0, apart=True
    )
    assert cutter().spm == 0.5
    names = (END, *STYLES["qwen2.5-coder"].tokens)
    qwen = train_bpe(["abc"], 270, special_tokens=names)
    assert FimCutter(qwen, FimConfig(), 0, 0).spm == 0
    with pytest.raises(BedstoneError, match=r"fim\.spm: 0\.5 .* qwen2\.5-coder has psm alone"):
        FimCutter(qwen, FimConfig(spm=0.5), 0, 0)
    mistral = train_bpe(["abc"], 270, special_tokens=(END, *STYLES["codestral"].tokens))
    assert FimCutter(mistral, FimConfig(), 0, 0).spm == 1
    for wrong in (
        {"rate": 1.5},
        {"spm": -0.1},
        {"style": "starcode"},
        {"passage": -1},
        {"lines": 2},
    ):
        with pytest.raises(BedstoneError, match=rf"fim\.{next(iter(wrong))}"):
            FimConfig(**wrong)


@pytest.fixture
def many():
    return Texts([document(number, 1) for number in range(2000)], "many")


@pytest.fixture
def few():
    return Texts([document(number, 1) for number in range(250)], "few")


def test_the_cache_holds_the_share_and_validation_stays_as_it_is(many, tmp_path):
    plain = token_cache(many, TOKENIZER, tmp_path, validation_share=0.1)
    cut = token_cache(many, TOKENIZER, tmp_path, validation_share=0.1, fim=cutter())
    assert np.array_equal(cut.validation.tokens, plain.validation.tokens)
    assert np.array_equal(cut.validation.starts, plain.validation.starts)
    assert cut.train.bytes == plain.train.bytes
    found = [restored(each if each[0] == PRE else each[:-1]) for each in documents(cut.train)]
    assert [text for text, _ in found] == [
        TOKENIZER.decode(each) for each in documents(plain.train)
    ]
    # the share in the tokens themselves, of documents that can be cut
    orders = [order for text, order in found if len(text) > 1]
    assert abs(1 - orders.count("") / len(orders) - 0.5) < 0.035
    assert int((cut.train.tokens == MID).sum()) == len(orders) - orders.count("")
    assert cut.counts[:2] == (len(found), len(orders) - orders.count(""))
    # without a prefix both orders are the same
    assert 0.4 < cut.counts.spm / cut.counts.cut < 0.6 and cut.counts.spm <= orders.count("spm")
    assert not (cut.validation.tokens == MID).any()
    again = token_cache(many, TOKENIZER, tmp_path, validation_share=0.1, fim=cutter())
    assert again.folder == cut.folder and again.counts == cut.counts


def test_settings_make_another_cache(few, tmp_path):
    ways = [None, cutter(), cutter(seed=1), cutter(rate=0.4), cutter(spm=0.4), cutter(passage=30)]
    names = {token_cache(few, TOKENIZER, tmp_path, fim=way).folder.name for way in ways}
    assert len(names) == len(ways)


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_is_held_out_by_position_stays_as_it_is(pieces, tmp_path, monkeypatch):
    """Few documents: the end of all tokens is held out, which is found before they are cut."""
    monkeypatch.setattr(tokens_module, "GROUP", 1 << 10)
    texts = [document(number, 3000, 4000) for number in range(pieces)]
    source = Texts([Piece(text, ends=n == pieces - 1) for n, text in enumerate(texts)], "one")
    plain = token_cache(source, TOKENIZER, tmp_path, validation_share=0.05)
    cut = token_cache(source, TOKENIZER, tmp_path, validation_share=0.05, fim=cutter(50))
    assert np.array_equal(cut.validation.tokens, plain.validation.tokens)
    assert len(plain.validation) and plain.train.bytes == cut.train.bytes
    found = [restored(each) for each in documents(cut.train)]
    joined, wanted = "".join(text for text, _ in found), TOKENIZER.decode(plain.train.tokens)
    wanted = wanted.rstrip("\ufffd")  # the split may lie within a character
    assert joined.startswith(wanted) and len(joined) <= len(wanted) + 1
    assert abs(cut.counts.cut / cut.counts.passages - 0.5) < 0.12


def test_documents_that_are_cut_are_documents_of_their_own_in_batches(many, tmp_path):
    cut = token_cache(many, TOKENIZER, tmp_path, validation_share=0, fim=cutter(40)).train
    assert cut.documents > 2000
    assert (cut.tokens[cut.starts] == PRE).sum() == (cut.tokens == PRE).sum()
    batches = PackedBatches(cut, 32, 4, 0)
    for _ in range(50):
        batch = next(batches)
        for ids, numbers, targets in zip(batch.ids, batch.documents, batch.targets, strict=True):
            starts = torch.nonzero(ids == PRE)[:, 0]
            assert all(n == 0 or numbers[n] != numbers[n - 1] for n in starts.tolist())
            assert not (targets == PRE).any()  # nothing predicts which documents are cut


def stream_of(source, fim, share=0.1, block=300, seed=3):
    return StreamedBatches(source, TOKENIZER, 16, 2, seed, share, block, fim)


def test_a_stream_cuts_the_same_documents(few, tmp_path):
    fim = cutter(30)
    cache = token_cache(few, TOKENIZER, tmp_path, validation_share=0.1, fim=fim)
    keep = np.ones(len(cache.train), bool)
    keep[cache.train.starts] = False
    wanted = np.bincount(cache.train.tokens[keep], minlength=262)
    for block in (300, 10**7):
        stream, found = StreamedBatches(few, TOKENIZER, 16, 1, 3, 0.1, block, fim), []
        while True:
            batch = next(stream)
            if stream.state_dict()["epoch"]:
                break
            found.append(batch.targets.flatten())
        targets = torch.cat(found)
        counts = np.bincount(targets[targets != IGNORED].numpy(), minlength=262)
        assert np.array_equal(counts, wanted)
    assert stream.cut() == cache.counts
    held = stream.held_out()
    assert np.array_equal(held.tokens, cache.validation.tokens)


def test_a_stream_resumes_exactly_and_notices_other_settings(few):
    stream = stream_of(few, cutter(30))
    for steps in (0, 7, 150):
        for _ in range(steps):
            next(stream)
        state = json.loads(json.dumps(stream.state_dict()))
        other = stream_of(few, cutter(30))
        other.load_state_dict(state)
        for _ in range(20):
            a, b = next(stream), next(other)
            assert torch.equal(a.ids, b.ids) and torch.equal(a.documents, b.documents)
    for fim in (None, cutter(31), cutter(30, rate=0.4)):
        with pytest.raises(BedstoneError, match="taken with fim="):
            stream_of(few, fim).load_state_dict(state)
    plain = stream_of(few, None).state_dict()
    del plain["identity"]["fim"]  # of a run that began before there was any
    stream_of(few, None).load_state_dict(plain)
