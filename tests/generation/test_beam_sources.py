"""Beams and greedy texts over sources: sequences and scores are those of transformers."""

from collections import Counter

import pytest
import torch

import bedstone
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import GenerationSettings
from encoder_decoders import CASES, saved, sources

NEAR = ["marian", "marian-separate", "bart", "t5", "t5-v1.1"]
GRID = {
    "plain": {},
    "penalty 0.6": {"length_penalty": 0.6},
    "penalty 2": {"length_penalty": 2.0},
    "no repeats": {"no_repeat_ngram_size": 3},
    "forced": {"forced_bos_token_id": 7, "forced_eos_token_id": 5},
    "bad words": {"bad_words_ids": [[7], [11, 12], [96]]},
    "early": {"early_stopping": True},
    "never": {"early_stopping": "never", "length_penalty": 2.0},
    "least": {"min_new_tokens": 6, "repetition_penalty": 1.3},
    "all at once": {
        "length_penalty": 0.6,
        "no_repeat_ngram_size": 3,
        "forced_eos_token_id": 5,
        "bad_words_ids": [[96], [7]],
        "early_stopping": "never",
    },
}
ROWS = 20


@pytest.fixture(scope="module", params=NEAR)
def both(request, tmp_path_factory):
    """A random network, theirs and ours, sources, and ends that are likely enough to come."""
    folder = tmp_path_factory.mktemp("model")
    # their cache of a T5 has as many layers as the encoder
    changes = {"num_decoder_layers": 2} if request.param == "t5-v1.1" else {}
    theirs = saved(request.param, folder, seed=4, **changes)
    mine = bedstone.load(folder)
    start = mine.config.start_id
    ids, keep = sources(ROWS, seed=11)
    with torch.no_grad():
        writer = mine.network.writer(mine.network.memory(ids, keep), keep)
    rows = generate(writer, [[start]] * ROWS, Sampling(temperature=0, max_tokens=9))
    counted = Counter(token for row in rows for token in row.ids if token != start)
    ends = [token for token, _ in counted.most_common(4)[1:3]]
    return theirs, mine, ids, keep, start, ends


def expected(theirs, ids, keep, start, ends, **settings):
    import transformers

    known = {
        "num_beams": 4,
        "num_return_sequences": 4,
        "max_new_tokens": 10,
        "early_stopping": False,
        "length_penalty": 1.0,
        **settings,
    }
    how = transformers.GenerationConfig(
        decoder_start_token_id=start, eos_token_id=ends, pad_token_id=1, **known
    )
    theirs.generation_config = transformers.GenerationConfig()
    with torch.no_grad():
        return theirs.generate(
            input_ids=ids,
            attention_mask=keep.long(),
            generation_config=how,
            return_dict_in_generate=True,
            output_scores=True,
        )


def found(mine, ids, keep, start, ends, rows=slice(None), **settings):
    published = {"max_new_tokens": 10, **settings}
    way = GenerationSettings(num_beams=4, num_return_sequences=4).resolve(published, 1)
    network = mine.network
    ids, keep = ids[rows], keep[rows]
    with torch.no_grad():
        writer = network.writer(network.memory(ids, keep), keep)
    return beam_search(writer, [[start]] * len(ids), way, eos=ends)


@pytest.mark.parametrize("name", GRID)
def test_beams_are_those_of_transformers(both, name):
    theirs, mine, ids, keep, start, ends = both
    want = expected(theirs, ids, keep, start, ends, **GRID[name])
    got = found(mine, ids, keep, start, ends, **GRID[name])
    flat = [one for own in got for one in own]
    assert len(flat) == len(want.sequences) == 4 * ROWS
    stopped = 0
    rows = zip(flat, want.sequences.tolist(), want.sequences_scores, strict=True)
    for one, sequence, score in rows:
        said = sequence[1 : 1 + len(one.ids)]
        assert tuple(said) == one.ids
        assert abs(one.score - float(score)) < 1e-4
        stopped += one.finish == "stop"
    assert name in ("least", "no repeats") or stopped


def test_a_row_does_not_depend_on_its_batch(both):
    _, mine, ids, keep, start, ends = both
    together = found(mine, ids, keep, start, ends)
    for row in range(0, ROWS, 4):
        alone = found(mine, ids, keep, start, ends, rows=slice(row, row + 1))[0]
        for one, other in zip(alone, together[row], strict=True):
            assert one.ids == other.ids and abs(one.score - other.score) < 1e-4


def test_greedy_is_theirs(both):
    theirs, mine, ids, keep, start, ends = both
    settings = {"num_beams": 1, "num_return_sequences": 1}
    want = expected(theirs, ids, keep, start, ends, **settings).sequences.tolist()
    with torch.no_grad():
        writer = mine.network.writer(mine.network.memory(ids, keep), keep)
    got = generate(writer, [[start]] * ROWS, Sampling(temperature=0, max_tokens=10), eos=ends)
    for one, sequence in zip(got, want, strict=True):
        assert sequence[1 : 1 + len(one.ids)] == one.ids


def test_beams_of_one_source_share_its_keys(both):
    _, mine, ids, keep, start, ends = both
    network = mine.network
    held = []
    with torch.no_grad():
        writer = network.writer(network.memory(ids, keep), keep)
    made = writer.new_cache

    def new_cache(*sizes):
        held.append(made(*sizes))
        return held[0]

    writer.new_cache = new_cache
    way = GenerationSettings(num_beams=4).resolve({"max_new_tokens": 3})
    beam_search(writer, [[start]] * ROWS, way, eos=ends)
    memories = [layer.memory[0] for layer in held[0].layers]
    assert len(memories) == mine.config.decoder_layers
    assert all(len(each) * 4 == held[0].rows for each in memories)


def test_prompts_of_several_tokens_and_lengths(both):
    """A target may begin with given tokens: each row's own."""
    _, mine, ids, keep, start, ends = both
    prompts = [[start, 5, 6], [start], [start, 9]]
    way = GenerationSettings(num_beams=3).resolve({"max_new_tokens": 6})
    network = mine.network
    with torch.no_grad():
        memory = network.memory(ids[:3], keep[:3])
    together = beam_search(network.writer(memory, keep[:3]), prompts, way, eos=ends)
    for row, prompt in enumerate(prompts):
        writer = network.writer(memory[row : row + 1], keep[row : row + 1])
        alone = beam_search(writer, [prompt], way, eos=ends)[0]
        assert alone[0].ids == together[row][0].ids
        assert abs(alone[0].score - together[row][0].score) < 1e-4


def test_every_published_kind_is_among_the_cases():
    assert set(NEAR) <= set(CASES)
