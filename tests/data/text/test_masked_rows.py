"""Masked rows: what is hidden, which texts make a pair, how rows are laid."""

import numpy as np
import pytest
import torch

from bedstone.data.sources import Texts
from bedstone.data.text import masked_lm
from bedstone.data.text.masked_lm import (
    Corruption,
    MaskedBatches,
    MaskingConfig,
    RowMaker,
    evaluation_batches,
    row_keys,
    word_edges,
)
from bedstone.data.text.sentences import ALONE, NEXT, OTHER, Documents, Sentences, sentences
from bedstone.data.text.token_cache import TokenSplit, token_cache
from bedstone.data.text.train_tokenizer import train_roberta, train_wordpiece
from bedstone.errors import BedstoneError

CLS, SEP, MASK = 2, 3, 4
SIZE = 500  # of the made-up vocabulary, five special


def make_split(lengths, sentence=9, seed=0, eos_id=None):
    """Documents of random tokens; sentences of 1 to `sentence` tokens."""
    draw = np.random.default_rng(seed)
    documents = [draw.integers(5, SIZE, length) for length in lengths]
    pieces, at = [], 0
    for length in lengths:
        edges = np.cumsum(draw.integers(1, sentence + 1, length))
        pieces += [at, *(at + edges[edges < length]).tolist()]
        at += length
    split = TokenSplit.from_documents(documents, eos_id=eos_id)
    return TokenSplit("train", split.tokens, split.starts, 0, eos_id, np.array(pieces))


def corruption(**changes):
    hides = np.ones(SIZE, bool)
    hides[:5] = False
    return Corruption(MASK, np.arange(5, SIZE), hides, **changes)


def maker(split, context=40, pairs=True, short=0.0, **changes):
    return RowMaker(Documents(split), corruption(**changes), CLS, SEP, context, pairs, short)


def epoch(rows, seed=1):
    """Each row of a pass as a batch of its own."""
    batches = MaskedBatches(rows, 1, seed)
    while batches.epoch < 1:
        yield next(batches)


def rows_of(batch):
    """Of each row: original ids, types."""
    ids = batch.rows.ids[0].clone()
    ids[batch.read] = batch.targets
    for start, end in batch.rows.spans:
        yield ids[start:end], batch.rows.types[0, start:end]


SPLIT = make_split([300, 7, 1, 80, 200, 555, 2, 120] * 3)


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_shares_and_kinds(share):
    batches = MaskedBatches(maker(SPLIT, share=share), 400, seed=3)
    hidden, targets, real = [], [], 0
    for _ in range(120):
        batch = next(batches)
        hidden.append(batch.ids[0, batch.read])
        targets.append(batch.targets)
        real += int((batch.ids[0] >= 4).sum())
        assert (batch.targets >= 5).all()  # special tokens are never hidden
        assert batch.target_count == len(batch.targets) == len(batch.read)
        assert (batch.read.diff() > 0).all()
    hidden, targets = torch.cat(hidden), torch.cat(targets)
    assert len(targets) / real == pytest.approx(share, abs=0.01)
    assert (hidden == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
    assert (hidden == targets).float().mean() == pytest.approx(0.1, abs=0.015)
    other = hidden[(hidden != MASK) & (hidden != targets)]
    assert other.min() >= 5
    assert len(other.unique()) > 300  # drawn from the whole vocabulary


def test_everything_hidden_becomes_a_target():
    ids, lengths = np.arange(5, 205), np.array([120, 80])
    keys = row_keys((0,), np.arange(2))
    hidden, read = corruption(share=1.0, mask=1.0, other=0.0)(ids, lengths, keys)
    assert (hidden == MASK).all() and len(read) == 200
    kept, read = corruption(share=1.0, mask=0.0, other=0.0)(ids, lengths, keys)
    assert (kept == ids).all() and len(read) == 200
    only = np.array([CLS, SEP, 7, SEP, 1])
    hidden, read = corruption()(only, np.array([2, 3]), keys)
    assert read.tolist() == [2]  # one at least, where there is one


def test_a_row_is_masked_equally_whatever_stands_beside_it():
    ids = np.random.default_rng(0).integers(5, SIZE, 100)
    keys = row_keys((1, 2), np.arange(3))
    hide = corruption()
    whole, read = hide(ids, np.array([30, 50, 20]), keys)
    alone, one = hide(ids[30:80], np.array([50]), keys[1:2])
    assert (whole[30:80] == alone).all()
    assert (read[(read >= 30) & (read < 80)] - 30 == one).all()


TEXT = "unfriendliness, misunderstandings internationally! " * 30
SMALL = {
    "wordpiece": lambda: train_wordpiece([TEXT], 110),
    "roberta": lambda: train_roberta([TEXT], 275),
}


@pytest.mark.parametrize("kind", SMALL)
def test_whole_words_are_hidden_whole(kind):
    tokenizer = SMALL[kind]()
    hide = Corruption.of(tokenizer, MaskingConfig(share=0.3, mask=1.0, other=0.0, whole_words=True))
    text = "unfriendly (misunderstood) internationals! " * 40
    encoding = tokenizer.backend.encode(text)
    ids = np.array(encoding.ids)
    hidden, read = hide(ids, np.array([len(ids)]), row_keys((0,), np.arange(1)))
    # Letters that touch are of one word.
    words, word = [], -1
    for start, end in encoding.offsets:
        letters = text[start:end].strip()
        joined = words and text[start].isalnum() and text[start - 1].isalnum()
        word += not joined
        words.append(word if letters else -1)
    chosen = set(np.array(words)[read])
    for word in chosen - {-1}:
        assert all(ids[i] < 5 or hidden[i] == MASK for i, w in enumerate(words) if w == word)
    assert 0.25 < len(read) / len(ids) < 0.35
    assert len(chosen) < len(set(words))
    several = [w for w in chosen if words.count(w) > 2]
    assert several  # words of several pieces were among them
    begins, ends = word_edges(tokenizer)
    assert begins.any() and not begins.all() and (kind == "wordpiece") == (not ends[5:].any())


@pytest.mark.parametrize("kind", SMALL)
def test_any_token_of_text_may_be_hidden_and_no_special_one(kind):
    tokenizer = SMALL[kind]()
    hide = Corruption.of(tokenizer, MaskingConfig())
    special = set(tokenizer.special_ids)
    assert {tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id} <= special
    assert set(hide.ordinary.tolist()) == set(range(tokenizer.vocab_size)) - special
    assert not hide.hides[list(special)].any()
    assert hide.hides.sum() == tokenizer.vocab_size - len(special)


def test_a_word_does_not_go_on_past_what_is_hidden_from_masking_or_another_row():
    begins = np.ones(SIZE, bool)
    begins[100:] = False  # from 100 on tokens go on with a word
    hide = corruption(begins=begins, ends=np.zeros(SIZE, bool))
    ids = np.array([7, 100, SEP, 101, 102, 8, 103, 104])
    owner = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    places = np.flatnonzero(hide.hides[ids])
    new = hide._new_words(ids, places, owner[places])
    assert new.tolist() == [True, False, True, False, True, False, True]


def test_masks_differ_by_epoch_and_repeat_by_seed():
    split = make_split([60, 50])
    for pairs in (True, False):
        first, again, other = (MaskedBatches(maker(split, 40, pairs), 400, s) for s in (1, 1, 2))
        visits = []
        for _ in range(6):
            a, b, c = next(first), next(again), next(other)
            assert torch.equal(a.ids, b.ids) and torch.equal(a.read, b.read)
            assert a.ids.shape != c.ids.shape or not torch.equal(a.ids, c.ids)
            visits.append(tuple(a.ids[0].tolist()))
        assert len(set(visits)) == 6
    fixed = [list(evaluation_batches(maker(split), 100)) for _ in range(2)]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(*fixed, strict=True))


def test_a_word_is_taken_while_half_of_it_still_fits(monkeypatch):
    """Words of four tokens: of ten to be hidden, two words and half a third are, so three."""
    begins = np.arange(SIZE) % 4 == 1  # 5, 9, 13, ... begin a word
    ends = np.zeros(SIZE, bool)
    ids, lengths, plain = np.arange(5, 5 + 40), np.array([40]), masked_lm._draw
    monkeypatch.setattr(  # the share is rounded down
        masked_lm, "_draw", lambda k, p, s: (s != masked_lm._COUNT) * plain(k, p, s)
    )
    for share, tokens in ((0.25, 12), (0.2, 8), (0.15, 8), (0.225, 8), (0.3, 12), (0.05, 4)):
        hide = corruption(share=share, begins=begins, ends=ends)
        for key in range(20):
            _, read = hide(ids, lengths, row_keys((key,), np.arange(1)))
            assert len(read) == tokens
            assert (read.reshape(-1, 4) == read[::4, None] + np.arange(4)).all()  # whole words


def test_labels_of_pairs_are_those_of_the_published_head():
    """0 where the second text goes on with the first, 1 where it doesn't, -100 is not learnt."""
    assert (NEXT, OTHER, ALONE) == (0, 1, -100)
    segments = maker(SPLIT, 40).segments(np.arange(24), (1,))
    seen = set()
    for row, label in enumerate(segments.pairs.tolist()):
        spans = segments.spans[segments.rows[row] : segments.rows[row + 1]]
        follows = len(spans) == 2 and spans[0, 1] == spans[1, 0]
        assert label == (-100 if len(spans) == 1 else 0 if follows else 1)
        seen.add(label)
    assert seen == {0, 1, -100}


@pytest.mark.parametrize("short", [0.0, 0.5])
def test_pairs_are_what_they_say(short):
    assert sum(next(MaskedBatches(maker(SPLIT), 400)).rows.lengths) in range(360, 401)
    labels, lengths, seen = [], [], np.zeros(len(SPLIT), int)
    documents = Documents(SPLIT)
    for batch in epoch(maker(SPLIT, 40, short=short)):
        spans = batch.spans
        starts = SPLIT.starts[spans[:, 1]]
        for row, (ids, types) in enumerate(rows_of(batch)):
            mine = np.flatnonzero(spans[:, 0] == row)
            label = ALONE if batch.pairs is None else int(batch.pairs[row])
            parts = [
                SPLIT.tokens[starts[i] + spans[i, 2] : starts[i] + spans[i, 3]].tolist()
                for i in mine
            ]
            assert len(parts) == (1 if label == ALONE else 2)
            want = [CLS]
            for part in parts:
                assert part
                want += [*part, SEP]
            assert ids.tolist() == want
            edge = len(parts[0]) + 2
            assert types.tolist() == [0] * edge + [1] * (len(want) - edge)
            first, last = spans[mine[0]], spans[mine[-1]]
            if label == NEXT:
                assert first[1] == last[1] and first[3] == last[2]
            if label == OTHER:
                assert first[1] != last[1]
            if label != ALONE:  # the second text begins with a sentence
                assert SPLIT.starts[last[1]] + last[2] in documents.sentences
            own = mine if label != OTHER else mine[:1]
            for i in own:
                seen[starts[i] + spans[i, 2] : starts[i] + spans[i, 3]] += 1
            labels.append(label)
            lengths.append(len(want))
    assert (seen == 1).all()  # every token is read once an epoch
    assert max(lengths) <= 40
    full = np.mean(np.array(lengths) >= 39)
    assert full > 0.5 if short == 0 else full < 0.6


def test_text_from_elsewhere_is_any_sentence_of_another_document():
    documents = Documents(make_split([20, 1, 33, 8]))

    class Next:
        """Draws each number of a range in turn."""

        def randrange(self, stop):
            self.stop, at = stop, self.at
            self.at += 1
            return at

    for own in range(len(documents)):
        draw, found = Next(), []
        draw.at, draw.stop = 0, 1
        while draw.at < draw.stop:
            start, stop = documents.elsewhere(own, draw)
            other = np.searchsorted(documents.starts, start, side="right") - 1
            assert other != own and stop == documents.stops[other]
            found.append(start)
        mine = documents.edges(own)
        assert found == [at for at in documents.sentences.tolist() if at not in mine]


def test_half_of_the_pairs_follow():
    batches = MaskedBatches(maker(SPLIT, 40), 2000, seed=6)
    pairs = torch.cat([next(batches).pairs for _ in range(40)])
    pairs = pairs[pairs != ALONE]
    assert (pairs == NEXT).float().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("eos_id", [None, 3])
def test_full_sentences_go_over_documents(eos_id):
    split = make_split([50, 5, 5, 90, 1, 30, 200], sentence=12, eos_id=eos_id)
    documents, seen = Documents(split), np.zeros(len(split), int)
    edges = {*documents.sentences.tolist(), *documents.stops.tolist()}
    crossing = 0
    for batch in epoch(maker(split, 32, pairs=False)):
        assert batch.pairs is None
        assert not batch.rows.types.any()
        assert max(batch.rows.lengths) <= 32
        for row in range(len(batch.rows.lengths)):
            mine = batch.spans[batch.spans[:, 0] == row]
            crossing += len(mine) > 1
            for _, document, first, last in mine:
                start = split.starts[document]
                seen[start + first : start + last] += 1
                assert {start + first, start + last} <= edges  # none is longer than a row
    assert crossing
    ends = documents.stops
    assert seen.sum() == (ends - documents.starts).sum() and seen.max() == 1


def test_a_sentence_longer_than_a_row_is_read_in_parts():
    split = make_split([100, 30], sentence=1000)
    for pairs in (True, False):
        found = list(epoch(maker(split, 16, pairs)))
        assert max(max(batch.rows.lengths) for batch in found) <= 16
        assert sum(len(ids) for batch in found for ids, _ in rows_of(batch)) >= 130


@pytest.mark.parametrize("pairs", [True, False])
def test_streams_resume_exactly_and_any_block_is_left(pairs):
    rows = maker(SPLIT, 40, pairs, short=0.1)

    def stream():
        return MaskedBatches(rows, 300, seed=4, block_tokens=700)

    straight = stream()
    straight_batches = [next(straight) for _ in range(40)]
    assert straight.epoch > 1
    for stop in (1, 7, 23):
        first = stream()
        for _ in range(stop):
            next(first)
        second = stream()
        second.load_state_dict(first.state_dict())
        for want in straight_batches[stop : stop + 6]:
            found = next(second)
            assert torch.equal(found.ids, want.ids) and torch.equal(found.read, want.read)
            assert found.number == want.number and found.rows.lengths == want.rows.lengths
    with pytest.raises(BedstoneError, match="seed"):
        MaskedBatches(rows, 300, seed=5, block_tokens=700).load_state_dict(first.state_dict())


def test_what_is_hidden_does_not_depend_on_the_batch_size():
    def rows(tokens):
        stream = MaskedBatches(maker(SPLIT), tokens, seed=8)
        batches = [next(stream) for _ in range(4000 // tokens)]
        ids = [batch.ids[0, a:b].tolist() for batch in batches for a, b in batch.rows.spans]
        return ids[:80]

    assert rows(200) == rows(900)


def test_batches_say_where_they_are_from():
    batch = next(MaskedBatches(maker(SPLIT), 200))
    text = batch.describe()
    assert text.startswith(f"batch 0: {batch.target_count} hidden tokens\n  row 0: document ")
    assert batch.to("cpu") is batch


TEXTS = [
    'One sentence. Another one! "A third?" (A fourth.)  A fifth, e.g. this; 3.5 too.\n\n\n  Last',
    "no end",
    "\n\n",
    "a.\nb",
    "x" * 10_000,
    "." * 10_000,
]


@pytest.mark.parametrize("text", TEXTS)
def test_sentences_joined_are_the_text(text):
    assert "".join(sentences(text)) == text


def test_where_sentences_end():
    assert sentences(TEXTS[0]) == [
        "One sentence.",
        " Another one!",
        ' "A third?"',
        " (A fourth.)",
        "  A fifth, e.g. this; 3.5 too.\n\n\n",
        "  Last",
    ]


def test_the_cache_knows_where_sentences_begin(tmp_path):
    texts = [f"The {n} cats sat. The dogs barked at {n}!\nAnd so on" for n in range(60)]
    tokenizer = train_wordpiece(texts, 120)
    source = Sentences(Texts(texts, "made"))
    cache = token_cache(source, tokenizer, tmp_path, validation_share=0.2)
    again = token_cache(source, tokenizer, tmp_path, validation_share=0.2)
    assert cache.folder == again.folder
    for split in (again.train, again.validation):
        assert split.documents and len(split.pieces) == 3 * split.documents
        ends = [*split.pieces[1:], len(split)]
        message = [
            tokenizer.decode(split.tokens[a:b].tolist())
            for a, b in zip(split.pieces, ends, strict=True)
        ]
        assert message[1].startswith("the dogs barked") and message[2] == "and so on"
    assert again.train.documents + again.validation.documents == 60
    one = token_cache(
        Sentences(Texts(["\n".join(texts)], "one")), tokenizer, tmp_path, validation_share=0.2
    )
    for split in (one.train, one.validation):  # cut by position
        assert split.pieces[0] == 0 and (np.diff(split.pieces) > 0).all()
        assert split.pieces[-1] < len(split)


def test_too_little_is_refused():
    empty = TokenSplit.from_documents([])
    with pytest.raises(BedstoneError, match="holds no text"):
        MaskedBatches(maker(empty, pairs=False), 100)
    with pytest.raises(BedstoneError, match="a single document"):
        MaskedBatches(maker(make_split([50])), 100)
