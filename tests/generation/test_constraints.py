"""Constraints of a generation_config.json: the tokens that transformers generates, or a refusal."""

import random

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.constraints import KEYS, constraints_of
from bedstone.generation.sampling import Sampling, constrain
from bedstone.generation.settings import BeamSearch, GenerationSettings
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.published import layout, to_published
from networks import randomise

transformers = pytest.importorskip("transformers")

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5], [9]]
EOS = (5, 11, 17)
VOCABULARY = 47


@pytest.fixture(scope="module")
def pair():
    shape = {"vocab_size": VOCABULARY, "width": 32, "layers": 2, "heads": 4, "hidden": 48}
    ours = build(GPTConfig(layout="llama", context=64, tied=False, **shape))
    randomise(ours, 3)
    with torch.no_grad():  # so that what comes next depends on what came, and isn't sure
        for layer in ours.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(2 if layer is ours.head else 3)
    how = layout("llama")
    config = dict(how.write_config(ours.config))
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(to_published(how, ours), strict=False)
    return ours.eval(), theirs


def check_equal(pair, published, prompts=PROMPTS):
    """Ours and transformers' tokens, where a generation_config.json holds `published`."""
    ours, theirs = pair
    for prompt in prompts:
        way = GenerationSettings().resolve(published, len(prompt), usual=10)
        if isinstance(way, BeamSearch):
            found = [list(one.ids) for one in beam_search(ours, [prompt], way, eos=EOS)[0]]
        else:
            found = [generate(ours, [prompt], way, eos=EOS)[0].ids]
        theirs.generation_config = transformers.GenerationConfig(
            **{**({} if "max_length" in published else {"max_new_tokens": 10}), **published},
            eos_token_id=list(EOS),
            pad_token_id=0,
        )
        ids = torch.tensor([prompt])
        rows = theirs.generate(ids, attention_mask=torch.ones_like(ids))[:, len(prompt) :].tolist()
        for one, row in zip(found, rows, strict=True):
            ends = [place for place, token in enumerate(row) if token in EOS]
            assert one == (row[: ends[0] + 1] if ends else row), (published, prompt)


CASES = {
    "suppressed": {"suppress_tokens": [3, 8, 30, 31]},
    "suppressed at first": {"begin_suppress_tokens": list(range(0, 40, 2))},
    "bad words": {"bad_words_ids": [[4], [7, 9], [1, 5, 9], [5], [2, 6]]},
    "biased": {"sequence_bias": [[[4], 3.5], [[5], -9.0], [[9, 2], 8.0]]},
    "least new": {"min_new_tokens": 7},
    "least length": {"min_length": 9},
    "both": {"min_length": 14, "min_new_tokens": 2},
    "first": {"forced_bos_token_id": 8},
    "first, and suppressed": {"forced_bos_token_id": 8, "begin_suppress_tokens": [*range(20)]},
    "last": {"forced_eos_token_id": 11, "max_new_tokens": 4},
    "growing": {"exponential_decay_length_penalty": [2, 1.6], "max_new_tokens": 16},
    "penalties": {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2, "suppress_tokens": [2]},
    "normal again": {"renormalize_logits": True, "suppress_tokens": [3, 8], "min_length": 6},
    "source likelier": {"encoder_repetition_penalty": 1.7},
    "source less likely": {"encoder_repetition_penalty": 0.4, "repetition_penalty": 1.2},
    "nothing of the source": {"encoder_no_repeat_ngram_size": 1, "bad_words_ids": [[7, 9]]},
    "no pair of the source": {"encoder_no_repeat_ngram_size": 2},
    "short": {"max_new_tokens": 3},
    "whole length": {"max_length": 12},
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_transformers(pair, case, beams):
    check_equal(pair, {**CASES[case], "num_beams": beams})


@pytest.mark.parametrize("seed", range(6))
def test_random_settings_give_what_transformers_gives(pair, seed):
    draw = random.Random(seed)
    some = draw.sample(list(CASES.values()), 3)
    beams = {"num_beams": draw.choice((1, 2, 4)), "num_return_sequences": 1}
    published = {key: value for each in some for key, value in each.items()} | beams
    if published.get("min_length", 0) > 12:
        published.pop("max_length", None)
    if published.get("max_new_tokens", 10) < published.get("min_new_tokens", 0):
        published.pop("max_new_tokens")
    check_equal(pair, published)


def test_one_of_several_end_tokens_is_the_last(pair):
    check_equal(pair, {"forced_eos_token_id": [11, 5], "max_new_tokens": 4})


def test_several_are_returned_of_the_files_own_beams(pair):
    check_equal(pair, {"num_beams": 4, "num_return_sequences": 3, "suppress_tokens": [3]})


@pytest.mark.parametrize(
    "published",
    [
        {"typical_p": 0.6},
        {"epsilon_cutoff": 0.05},
        {"eta_cutoff": 0.1},
        {"top_p": 0.0},
        {"typical_p": 0.9, "temperature": 0.7, "top_k": 30},
        {"epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "suppress_tokens": [1, 2, 3], "min_p": 0.01},
    ],
)
def test_what_is_drawn_from_is_what_transformers_draws_from(pair, published):
    settings = {"do_sample": True, **published}
    how = GenerationSettings().resolve(settings)
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    history = [[1, 2, 3]] * 4
    theirs = pair[1]
    theirs.generation_config = transformers.GenerationConfig(**settings, pad_token_id=0)
    prepared, _ = theirs._prepare_generation_config(None)
    processors = theirs._get_logits_processor(prepared, input_ids_seq_length=3)
    wanted = processors(torch.tensor(history), logits.clone())
    torch.testing.assert_close(how.warp(logits, history, [3] * 4), wanted)


def test_rows_of_a_batch_have_their_own_constraints(pair):
    way = Sampling(8, constraints=constraints_of({"min_length": 9, "bad_words_ids": [[3, 5]]}))
    together = generate(pair[0], PROMPTS, way, eos=EOS)
    alone = [generate(pair[0], [prompt], way, eos=EOS)[0] for prompt in PROMPTS]
    assert [one.ids for one in together] == [one.ids for one in alone]


@pytest.mark.parametrize(
    ("published", "words"),
    [
        ({"guidance_scale": 1.5}, r"guidance_scale = 1\.5 is not supported"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"constraints": ["x"], "num_beams": 2}, "constraints = .* Take the key out of the file"),
        ({"force_words_ids": [[3]]}, "force_words_ids = .* num_beams of 2 or more"),
        ({"encoder_repetition_penalty": 0.0}, r"encoder_repetition_penalty = 0\.0"),
        ({"encoder_no_repeat_ngram_size": -1}, "encoder_no_repeat_ngram_size = -1"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"top_h": 0.5}, "top_h"),
        ({"stop_strings": ["x"], "num_beams": 2}, "stop_strings .* beam search"),
        ({"suppress_tokens": ["a"]}, r"suppress_tokens = \['a'\]"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"sequence_bias": {"a": 1.0}}, "sequence_bias"),
        ({"exponential_decay_length_penalty": 3}, "exponential_decay_length_penalty = 3"),
        ({"min_length": -1}, "min_length = -1"),
    ],
)
def test_what_isnt_built_is_refused_by_name(published, words):
    with pytest.raises(BedstoneError, match=f"generation_config.json: {words}"):
        GenerationSettings().resolve(published)


def test_constraints_that_leave_nothing_are_named():
    way = Sampling(constraints=constraints_of({"suppress_tokens": [0, 1, 2]}))
    with pytest.raises(BedstoneError, match=r"generation_config.json: no token .* suppress_tokens"):
        way.choose(torch.zeros(1, 3), [[0]], [], [1])
    bad = Sampling(constraints=constraints_of({"bad_words_ids": [[7]]}))
    with pytest.raises(BedstoneError, match="the token 7 of bad_words_ids"):
        constrain(torch.zeros(1, 3), [[0]], bad, [1], ())


def test_every_key_of_transformers_is_in_a_list():
    usual = transformers.GenerationConfig()
    assert list(KEYS.unknown({**usual.to_dict(), **usual._get_default_generation_params()})) == []
    KEYS.check({**usual.to_dict(), **usual._get_default_generation_params()}, "its defaults")


def test_a_source_of_its_own_is_compared_with(pair):
    """Of a decoder with a memory: the ids that the memory was made of, not the prompt."""
    ours, source = pair[0], [[7, 9, 30], [4, 4], [1, 2, 3, 8]]
    for beams in (1, 3):
        plain = GenerationSettings(num_beams=beams, max_new_tokens=8).resolve({})
        ban = {"encoder_no_repeat_ngram_size": 1}
        way = GenerationSettings(num_beams=beams, max_new_tokens=8, **ban).resolve({})
        if beams == 1:
            found = [one.ids for one in generate(ours, PROMPTS, way, sources=source)]
            free = [one.ids for one in generate(ours, PROMPTS, plain)]
            likely = GenerationSettings(max_new_tokens=8, encoder_repetition_penalty=50.0)
            many = generate(ours, PROMPTS, likely.resolve({}), sources=source)
            often = [sum(t in own for t in one.ids) for one, own in zip(many, source, strict=True)]
            seldom = [sum(t in own for t in ids) for ids, own in zip(free, source, strict=True)]
            assert sum(often) > sum(seldom)
        else:
            found = [own[0].ids for own in beam_search(ours, PROMPTS, way, eos=(), sources=source)]
            free = [own[0].ids for own in beam_search(ours, PROMPTS, plain, eos=())]
        assert not any(set(ids) & set(own) for ids, own in zip(found, source, strict=True))
        assert any(set(ids) & set(own) for ids, own in zip(free, source, strict=True))


@pytest.mark.parametrize("kind", [list, tuple])
def test_ngrams_of_a_source_of_any_kind_are_found(kind):
    way = Sampling(constraints=constraints_of({"encoder_no_repeat_ngram_size": 3}))
    source = [kind([1, 2, 9, 1, 2, 4, 2, 1, 2])]
    logits = constrain(torch.zeros(1, 12), [[7, 1, 2]], way, [1], (), sources=source)
    assert (logits[0] == -torch.inf).nonzero()[:, 0].tolist() == [4, 9]


def test_a_source_whose_ngrams_leave_nothing_is_named(pair):
    way = GenerationSettings(encoder_no_repeat_ngram_size=1, max_new_tokens=4)
    with pytest.raises(BedstoneError, match="encoder_no_repeat_ngram_size"):
        generate(pair[0], [[3]], way.resolve({}), sources=[[*range(VOCABULARY)]])
    beams = GenerationSettings(encoder_no_repeat_ngram_size=1, num_beams=2).resolve({})
    with pytest.raises(BedstoneError, match="encoder_no_repeat_ngram_size"):
        beam_search(pair[0], [[3]], beams, eos=(), sources=[[*range(VOCABULARY)]])
