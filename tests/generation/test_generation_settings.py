"""Generation settings: what is given before what the model says, and what doesn't go together."""

import pytest

from bedstone.errors import BedstoneError
from bedstone.generation.constraints import Constraints
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, GenerationSettings, without_usual_length
from bedstone.settings import fit


def resolved(given, published=(), prompt_tokens=0, **more):
    return GenerationSettings(**given).resolve(dict(published), prompt_tokens, **more)


def test_what_is_given_counts_before_what_the_model_says():
    model = {"num_beams": 5, "length_penalty": 2.0, "min_new_tokens": 20, "early_stopping": True}
    room = {"max_new_tokens": 9}
    found = resolved({"num_beams": None, "length_penalty": 0.5, **room}, model)
    assert found == BeamSearch(5, 0.5, True, min_tokens=9, max_tokens=9)
    least = Constraints(min_new_tokens=20)
    assert resolved({"num_beams": 1, **room}, model) == Sampling(9, constraints=least)
    assert resolved({"temperature": 0.7, **room}, model) == Sampling(9, 0.7, 50, constraints=least)
    assert resolved({"temperature": 0, **room}, model).beams == 5
    assert resolved({"temperature": 0, "do_sample": True, **room}, model).beams == 5
    assert resolved(room, {**model, "do_sample": True}) == Sampling(9, 1.0, 50, constraints=least)
    searched = resolved({"num_beams": 3, **room}, {"do_sample": True, "top_p": 0.8})
    assert searched == BeamSearch(3, max_tokens=9)
    assert resolved(room) == Sampling(9)


def test_chance_is_the_models_but_for_what_is_given():
    model = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.2}
    found = resolved({"top_k": 5, "seed": 3, "num_return_sequences": 2}, model)
    assert found == Sampling(256, 0.6, 5, repetition_penalty=1.2, seed=3, returned=2)
    assert resolved({"top_k": 0}, model).top_k == 0
    assert resolved({"do_sample": False}, model) == Sampling(256, repetition_penalty=1.2)
    assert resolved({"do_sample": False, "top_p": 0.9}).top_p == 1
    assert resolved({"top_p": 0.9}) == Sampling(256, 1.0, 50, top_p=0.9)
    assert resolved({}, {"do_sample": True}) == Sampling(256, 1.0, 50)  # as transformers has it
    assert resolved({}, {"do_sample": True, "top_k": 0}) == Sampling(256, 1.0, 0)
    assert resolved({}, {"do_sample": True, "top_p": 0.0}).top_p == 0
    assert resolved({}, {"do_sample": True, "temperature": 0.0}) == Sampling(256)
    several = {"do_sample": True, "num_return_sequences": 3}
    assert resolved({}, several).returned == 3
    assert resolved({"do_sample": False}, several).returned == 1
    assert resolved({"num_beams": 1}, model).temperature == 0.6


def test_lengths():
    assert resolved({}, {"max_length": 20}, 8).max_tokens == 12
    assert resolved({}, {"max_length": 20}, 30).max_tokens == 1
    assert resolved({}, {"max_length": 20, "max_new_tokens": 5}, 8).max_tokens == 5
    assert resolved({}, without_usual_length({"max_length": 20}), usual=7).max_tokens == 7
    assert resolved({}, without_usual_length({"max_length": 30}), 8).max_tokens == 22
    assert resolved({"max_length": 9}, {"max_new_tokens": 3}, 4).max_tokens == 5
    assert resolved({"max_length": 9, "max_new_tokens": 2}, {}, 4).max_tokens == 2
    with pytest.raises(BedstoneError, match="max_length: is 9, and the prompt alone has 9"):
        resolved({"max_length": 9}, {}, 9)


def test_a_least_length_counts_with_chance_and_without():
    found = resolved({"min_new_tokens": 4, "max_new_tokens": 9})
    assert found == Sampling(9, constraints=Constraints(min_new_tokens=4))
    assert resolved({"min_new_tokens": 4, "top_p": 0.9}).constraints.min_new_tokens == 4
    published = {"min_new_tokens": 3, "min_length": 9}  # the first goes before the second
    assert resolved({}, published).constraints == Constraints(min_new_tokens=3)
    assert resolved({}, {"min_length": 9}).constraints == Constraints(min_length=9)


def test_rows_of_a_prompt_have_their_seeds():
    assert Sampling(seed=7, returned=2).seeds(3) == [7, 8] * 3
    assert len(set(Sampling(returned=2).seeds(3))) == 6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_beams": 4, "do_sample": True}, "num_beams: 4 .* chance"),
        ({"num_beams": 4, "top_p": 0.9}, "num_beams: 4 .* chance"),
        ({"num_beams": 0}, "num_beams: 0"),
        ({"num_beams": "4"}, "num_beams: '4'"),
        ({"length_penalty": 2.0}, r"length_penalty: 2\.0 .* num_beams"),
        ({"num_beams": 1, "early_stopping": True}, "early_stopping"),
        ({"num_beams": 2, "min_new_tokens": 10}, "min_new_tokens: is 10"),
        ({"num_beams": 2, "stop": "x"}, "stop: 'x' .* beam search"),
        ({"num_beams": 2, "early_stopping": "often"}, "early_stopping: 'often'"),
        ({"num_return_sequences": 2}, "num_return_sequences: 2 .* do_sample=True"),
        ({"temperature": -1.0}, r"temperature: -1\.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": -0.1}, r"top_p: -0\.1"),
        ({"min_new_tokens": 10}, "min_new_tokens: is 10"),
        ({"min_p": 1.5}, r"min_p: 1\.5"),
        ({"seed": -1}, "seed: -1"),
        ({"stop": 5}, "stop: 5"),
    ],
)
def test_refuses_settings_that_dont_go_together(given, words):
    with pytest.raises(BedstoneError, match=words):
        resolved({"max_new_tokens": 9, **given})


def test_alternatives_by_their_number():
    found = GenerationSettings(num_beams=4, return_alternatives=3).resolve({})
    assert found.alternatives is True and found.returned == 3
    same = GenerationSettings(num_beams=4, return_alternatives=True, num_return_sequences=3)
    assert same.resolve({}) == found
    assert fit(bool | int | None, "3", "x") == 3 and fit(bool | int | None, "true", "x") is True
    assert not GenerationSettings(num_beams=4, return_alternatives=False).resolve({}).alternatives
    with pytest.raises(BedstoneError, match="return_alternatives: 0"):
        GenerationSettings(return_alternatives=0)
    with pytest.raises(BedstoneError, match="3 was given beside num_return_sequences 2"):
        GenerationSettings(return_alternatives=3, num_return_sequences=2)
