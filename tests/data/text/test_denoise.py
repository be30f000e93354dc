"""Noise on token ids: published arithmetic, nothing lost, the same whatever the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from bedstone.data.sources import Texts
from bedstone.data.text.denoise import (
    MASK,
    DenoiseConfig,
    GapSentences,
    NoisyTexts,
    SentencePermutation,
    SpanCorruption,
    TextInfilling,
    Windows,
    add_noise_tokens,
    noise_of,
    noise_tokens,
    sentence_scores,
    sentinel_count,
    span_counts,
    span_mask,
    window_room,
)
from bedstone.data.text.sentences import Documents, Sentences
from bedstone.data.text.seq2seq import pair_stream
from bedstone.data.text.token_cache import TokenSplit, token_cache
from bedstone.data.text.train_tokenizer import train_bpe, train_roberta, train_wordpiece
from bedstone.errors import BedstoneError

SENTINELS = np.arange(999, 899, -1)
HIDDEN = 500
lengths = some.integers(1, 300)
shares = some.sampled_from([0.1, 0.15, 0.3, 0.5, 0.8])
means = some.sampled_from([1.0, 2.0, 3.0, 10.0])
seeds = some.integers(0, 1000)


def text(length, seed=0):
    return np.random.default_rng(seed).integers(10, 400, length)


def cut(length, seed=0):
    """Starts of sentences in a text of `length` tokens."""
    inner = np.random.default_rng(seed).integers(1, length, 5) if length > 1 else []
    return np.unique(np.append(0, inner)).astype(np.int64)


def published_mask(length, density, mean, shuffled):
    """T5's mask, by its published steps one after another; `shuffled` shuffles two lists."""
    kept, length = length, max(length, 2)
    noise = int(np.round(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    spans = max(int(np.round(np.float32(noise) / np.float32(mean))), 1)

    def lengths_of(items, segments):
        first = [0, *shuffled([int(n < segments - 1) for n in range(items - 1)])]
        ids = np.cumsum(first)
        return [int((ids == n).sum()) for n in range(segments)]

    noise_lengths = lengths_of(noise, spans)
    other_lengths = lengths_of(length - noise, spans)
    flat = [size for pair in zip(other_lengths, noise_lengths, strict=True) for size in pair]
    starts = np.cumsum(flat)[:-1]
    indicator = np.zeros(length, int)
    np.add.at(indicator, starts, 1)
    return (np.cumsum(indicator) % 2 == 1)[:kept]


@settings(max_examples=300, deadline=None)
@given(
    lengths, some.sampled_from([0.1, 0.15, 0.3, 0.5]), some.sampled_from([2.0, 3.0, 10.0]), seeds
)
def test_spans_are_those_of_the_published_algorithm(length, share, mean, seed):
    draw = np.random.default_rng(seed)

    def shuffled(items):
        given = np.array(items, bool)
        draw.shuffle(given)
        return given.astype(int).tolist()

    wanted = published_mask(length, share, mean, shuffled)
    mask = span_mask(length, share, mean, np.random.default_rng(seed))
    assert mask.sum() == wanted.sum()
    if span_counts(length, share, mean)[1] > 1:
        assert (mask == wanted).all()


def test_counts_of_spans():
    assert span_counts(512, 0.15, 3.0) == (77, 26)  # T5's own rows: 512 tokens, 114 of targets
    assert span_counts(568, 0.15, 3.0) == (85, 28)
    assert span_counts(1, 0.15, 3.0) == (1, 1)
    assert span_counts(190, 0.15, 3.0) == (29, 10)  # 28.5 in fp64, a little more in fp32
    assert span_counts(30, 0.15, 3.0) == (4, 1)  # halves become even
    assert span_counts(10, 0.9, 1.0) == (9, 1)  # no more spans than there are tokens between


@settings(max_examples=200, deadline=None)
@given(some.integers(2, 300), shares, means, seeds)
def test_spans_and_their_sentinels_make_the_text_again(length, share, mean, seed):
    ids = text(length, seed)
    needed = span_counts(length, share, mean)[1] + 1
    sentinels = np.arange(2000, 2000 - needed, -1)  # as many as are counted, and no more
    noise = SpanCorruption(sentinels, share, mean)
    source, target = noise(ids, cut(length), np.random.default_rng(seed))
    assert target[0] == 2000 and target[-1] == sentinels[-1]
    spans, now = {}, None
    for number in target.tolist():
        if number > 1000:
            now = spans.setdefault(number, [])
        else:
            now.append(number)
    assert list(spans) == sentinels.tolist()  # counting down, one after another
    whole = [n for number in source.tolist() for n in spans.get(number, [number])]
    assert whole == ids.tolist()
    assert all(spans[number] for number in sentinels[:-1].tolist())
    assert sum(map(len, spans.values())) == span_counts(length, share, mean)[0]


def test_a_single_span_may_be_anywhere():
    starts = [int(span_mask(12, 0.15, 3.0, np.random.default_rng(n)).argmax()) for n in range(900)]
    assert np.bincount(starts, minlength=11)[1:] == pytest.approx(90, abs=35)
    assert starts.count(0) == 0


def test_where_spans_are_is_a_matter_of_chance():
    hits = sum(span_mask(40, 0.15, 3.0, np.random.default_rng(seed)) for seed in range(4000)) / 4000
    assert hits[0] == 0 and hits[-1] == 1  # as published: the last span is at the end
    assert (hits[1:-3] > 0).all() and hits[4:30] == pytest.approx(hits[4:30].mean(), abs=0.06)


@settings(max_examples=200, deadline=None)
@given(lengths, shares, means, seeds)
def test_infilling_hides_its_share_in_spans(length, share, mean, seed):
    ids = text(length, seed)
    source, target = TextInfilling(HIDDEN, share, mean)(
        ids, cut(length), np.random.default_rng(seed)
    )
    assert (target == ids).all()
    kept = source[source != HIDDEN]
    assert len(ids) - len(kept) == np.ceil(length * share - 1e-9)
    assert len(source) <= length
    rest = iter(ids.tolist())
    assert all(number in rest for number in kept.tolist())  # in their order
    masks = source == HIDDEN
    if masks.sum() <= len(kept) + 1:
        assert not (masks[1:] & masks[:-1]).any()


def test_infilled_spans_have_poisson_lengths():
    ids = np.arange(10, 410)
    sizes = []
    for seed in range(200):
        source, _ = TextInfilling(9)(ids, np.zeros(1, int), np.random.default_rng(seed))
        edges = np.concatenate(([9], source, [410]))
        for place in np.flatnonzero(source == 9) + 1:
            sizes.append(edges[place + 1] - edges[place - 1] - 1)
    counts = np.bincount(sizes)[:8] / len(sizes)
    poisson = np.exp(-3.0) * 3.0 ** np.arange(8) / [1, 1, 2, 6, 24, 120, 720, 5040]
    assert counts == pytest.approx(poisson, abs=0.02)  # spans of 0 among them
    assert sizes.count(0) > 100


def test_permuted_sentences_are_whole_and_the_target_is_the_text():
    ids, starts = np.arange(10, 40), np.array([0, 3, 9, 10, 22])
    sentences = [part.tolist() for part in np.split(ids, starts[1:])]
    orders = set()
    for seed in range(300):
        noise = SentencePermutation(TextInfilling(9, 0.0))
        source, target = noise(ids, starts, np.random.default_rng(seed))
        assert (target == ids).all() and sorted(source) == ids.tolist()
        order = [n for n in source.tolist() if n in {part[0] for part in sentences}]
        assert [n for first in order for s in sentences if s[0] == first for n in s] == list(source)
        orders.add(tuple(order))
    assert len(orders) > 100  # of 120
    both = SentencePermutation(TextInfilling(9, 0.3))
    source, target = both(ids, starts, np.random.default_rng(1))
    assert (source == 9).any() and (target == ids).all()


def test_gap_sentences_have_the_best_rouge():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1"])
    draw = np.random.default_rng(4)
    for _ in range(40):
        ids = draw.integers(10, 40, 60)
        starts = np.unique(np.append(0, draw.integers(1, 60, 7)))
        parts = [" ".join(f"w{n}" for n in part) for part in np.split(ids, starts[1:])]
        wanted = [
            scorer.score(" ".join(parts[:at] + parts[at + 1 :]), part)["rouge1"].fmeasure
            for at, part in enumerate(parts)
        ]
        assert sentence_scores(ids, starts) == pytest.approx(wanted)
        source, target = GapSentences(9, 0.3)(ids, starts, draw)
        count = max(round(0.3 * len(parts)), 1)
        best = sorted(sorted(range(len(parts)), key=lambda n: -round(wanted[n], 9))[:count])
        cuts = np.split(ids, starts[1:])
        assert target.tolist() == [n for at in best for n in cuts[at].tolist()]
        assert (source == 9).sum() == count
        assert len(source) + len(target) == 60 + count


def test_one_sentence_stays_and_one_goes():
    source, target = GapSentences(9, 0.95)(
        np.arange(10, 16), np.array([0, 3]), np.random.default_rng(0)
    )
    assert len(target) == 3 and len(source) == 4
    source, target = GapSentences(9, 0.01)(
        np.arange(10, 16), np.array([0, 3]), np.random.default_rng(0)
    )
    assert len(target) == 3


# Tokens, windows, rows.

TEXT = "The dog ran home. It was wet! Nobody in Bremen saw the dog.\nThe cat slept. " * 4
TEXTS = [TEXT, "One sentence alone", "x", "Two of them. One is so.", ""]


@pytest.fixture(scope="module")
def bpe():
    return train_roberta([TEXT], 300)


def documents(tokenizer, folder, texts=TEXTS):
    source = Sentences(Texts(texts, name="texts"))
    return Documents(token_cache(source, tokenizer, folder, validation_share=0.0).train)


def test_windows_end_with_sentences_and_hold_all_text(bpe, tmp_path):
    known = documents(bpe, tmp_path)
    windows = Windows.of(known, 20)
    assert np.diff(windows.spans)[:, 0].max() <= 20
    edges = {*known.sentences.tolist(), *known.stops.tolist()}
    assert {int(n) for n in windows.spans.ravel()} <= edges
    texts = [bpe.decode(windows[row][0].tolist()) for row in range(len(windows))]
    assert "".join(texts) == "".join(each for each in TEXTS if each != "x")
    assert windows.left_out == 1  # of "x"
    for row in range(len(windows)):
        ids, starts = windows[row]
        assert starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < len(ids)
        parts = [bpe.decode(part.tolist()) for part in np.split(ids, starts[1:])]
        assert all(part.rstrip()[-1:] in "!." for part in parts if "alone" not in part)
    several = Windows.of(known, 40, least_sentences=2)
    assert all(len(several[row][1]) > 1 for row in range(len(several)))
    assert several.left_out >= 1 + len(bpe.encode("One sentence alone"))


def test_a_sentence_longer_than_a_window_is_cut():
    split = TokenSplit.from_documents([np.arange(10, 60), np.arange(10, 13)])
    windows = Windows.of(Documents(split), 20)
    assert np.diff(windows.spans)[:, 0].tolist() == [20, 20, 10, 3]


KINDS = {
    "spans": DenoiseConfig("spans"),
    "infilling": DenoiseConfig("infilling"),
    "both": DenoiseConfig("infilling", permute=True),
    "gaps": DenoiseConfig("gap_sentences"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_recipe(kind, bpe, tmp_path):
    config = KINDS[kind]
    tokenizer = add_noise_tokens(bpe, config, 30)
    rows = rows_of(documents(tokenizer, tmp_path), tokenizer, config, seed=7)
    changed = 0
    for row in range(len(rows)):
        source, target = rows.pair(row, 0)
        again = rows.pair(row, 0)
        assert all((a == b).all() for a, b in zip((source, target), again, strict=True))
        other = rows.pair(row, 1)[0]
        changed += source.tolist() != other.tolist()
        assert max(len(source), len(target)) <= 30
        assert source[0] == target[0] == tokenizer.id_of("<s>")  # as every text has them
        assert source[-1] == target[-1] == tokenizer.eos_id
        fixed = rows.pair(row, None)[0]
        assert fixed.tolist() == rows.pair(row, None)[0].tolist()
    assert changed == 0 if kind == "gaps" else changed > len(rows) // 2
    seeded = rows_of(rows.windows.documents, tokenizer, config, seed=8)
    others = [seeded.pair(row, 0)[0].tolist() for row in range(len(rows))]
    same = others == [rows.pair(row, 0)[0].tolist() for row in range(len(rows))]
    assert same == (kind == "gaps")


def rows_of(known, tokenizer, config, context=30, **changes):
    return NoisyTexts.of(known, tokenizer, config, context, start=0, **changes)


def drawn(stream, count):
    """Source and target of each window of some batches, by the window."""
    found = []
    for _ in range(count):
        batch = next(stream)
        rows = [batch.sources.ids[0, a:b].tolist() for a, b in batch.sources.spans]
        written = [batch.targets[0, a:b].tolist() for a, b in batch.rows.spans]
        found += zip(batch.places, rows, written, strict=True)
    return found


def by_window(rows):
    return {place: pair for place, *pair in rows}


def test_a_stream_has_other_noise_in_each_epoch_whatever_its_batches(bpe, tmp_path):
    config = KINDS["both"]
    known = documents(bpe, tmp_path, [TEXT * n for n in (1, 2, 3)])

    def stream(size):
        rows = rows_of(known, bpe, config, seed=7, batch_size=size)
        return pair_stream(rows, size, seed=3, workers=0), rows

    small, rows = stream(2)
    steps = len(rows) // 2
    first, second = (by_window(drawn(small, steps)) for _ in range(2))
    both = first.keys() & second.keys()
    assert len(both) > 8 and all(first[place] != second[place] for place in both)
    large, _ = stream(3)
    other = by_window(drawn(large, len(rows) // 3))
    both = first.keys() & other.keys()
    assert len(both) > 8 and all(first[place] == other[place] for place in both)
    again, _ = stream(2)
    drawn(again, steps + 1)
    state = again.state_dict()
    rest = drawn(again, 5)
    resumed, _ = stream(2)
    resumed.load_state_dict(state)
    assert drawn(resumed, 5) == rest


def test_batches_for_measuring_are_the_same_each_time(bpe, tmp_path):
    rows = rows_of(documents(bpe, tmp_path), bpe, KINDS["infilling"], batch_size=4)
    one, two = ([b.sources.ids.tolist() for b in rows.evaluation_batches(4)] for _ in range(2))
    assert one == two and len(one) == -(-len(rows) // 4)
    batch = next(iter(rows.evaluation_batches(4)))
    for (a, b), row in zip(batch.rows.spans, range(4), strict=True):
        source, target = rows.pair(row, None)
        assert batch.targets[0, a:b].tolist() == target.tolist()
        assert batch.rows.ids[0, a:b].tolist() == [0, *target[:-1].tolist()]
        c, d = batch.sources.spans[row]
        assert batch.sources.ids[0, c:d].tolist() == source.tolist()


@settings(max_examples=100, deadline=None)
@given(some.integers(4, 60), shares, some.sampled_from([0.3, 1.0, 3.0]), seeds)
def test_no_row_is_longer_than_its_room(room, share, mean, seed):
    config = DenoiseConfig("spans", share, mean)
    longest = window_room(config, room)
    noise = SpanCorruption(SENTINELS, share, mean)
    sizes = [0]
    for length in range(2, longest + 1):
        pair = noise(text(length), cut(length), np.random.default_rng(seed))
        sizes += map(len, pair)
    assert max(sizes) <= room and longest >= room // 2 - 1


def test_special_tokens_are_added_on_the_last_ids():
    plain = train_bpe([TEXT], 300)
    spans = add_noise_tokens(plain, DenoiseConfig("spans"), 64)
    assert spans.vocab_size == plain.vocab_size + 100
    assert spans.id_of("<extra_id_0>") == spans.vocab_size - 1  # counting down, as T5's
    assert spans.id_of("<extra_id_99>") == plain.vocab_size
    assert spans.encode("a <dog>") == plain.encode("a <dog>") and spans.eos_id == plain.eos_id
    hidden = add_noise_tokens(plain, DenoiseConfig("infilling"), 64)
    assert hidden.mask_id == plain.vocab_size and plain.mask_id is None
    for own in (spans, hidden):
        assert (
            add_noise_tokens(own, DenoiseConfig("spans" if own is spans else "infilling"), 64)
            is own
        )
    wordpiece = train_wordpiece([TEXT], 120)
    assert add_noise_tokens(wordpiece, DenoiseConfig("gap_sentences"), 64) is wordpiece
    assert noise_tokens(None, DenoiseConfig("infilling"), 64) == [MASK]
    many = DenoiseConfig("spans", share=0.5, mean=1.0)
    assert sentinel_count(many, 400) == 201
    assert add_noise_tokens(plain, many, 400).id_of("<extra_id_200>") is not None
    assert add_noise_tokens(spans, many, 400).id_of("<extra_id_200>") is not None


BAD = {
    "kind": (lambda: DenoiseConfig("span"), r"denoise\.kind: 'span'"),
    "share": (lambda: DenoiseConfig("spans", share=1.0), r"denoise\.share: 1"),
    "no noise": (lambda: DenoiseConfig("infilling", share=0.0), r"denoise\.share: 0 leaves"),
    "permute": (lambda: DenoiseConfig("spans", permute=True), r"denoise\.permute: goes with"),
    "mask": (
        lambda: noise_of(train_bpe([TEXT], 300), DenoiseConfig("infilling"), 64),
        r"has no mask token.*<mask>.*tokenizer\.path",
    ),
    "sentinels": (
        lambda: noise_of(train_bpe([TEXT], 300), DenoiseConfig("spans"), 64),
        r"has no sentinel.*<extra_id_0>.*64 tokens.*T5",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_named(case):
    make, message = BAD[case]
    with pytest.raises(BedstoneError, match=message):
        make()


def test_texts_that_are_too_short_are_named(bpe, tmp_path):
    config = DenoiseConfig("gap_sentences")
    known = documents(bpe, tmp_path, ["one", "two"])
    with pytest.raises(BedstoneError, match="and 2 sentences in a window of 28 tokens"):
        rows_of(known, bpe, config)
    with pytest.raises(BedstoneError, match="context: leaves 1 tokens"):
        rows_of(known, bpe, config, 3)
