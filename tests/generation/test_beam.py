"""Beam search: tokens and scores of transformers' generate; prompts read once, memories shared."""

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import Hypothesis, _Beam, _goes_on, _Search, beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import PUBLISHED, BeamSearch, published_beams
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.published import layout, to_published
from bedstone.nn.attention import CrossAttention
from bedstone.nn.blocks import Context
from bedstone.nn.cache import Cache
from bedstone.runtime import Precision
from networks import randomise

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7], [9], [2, 7, 1, 8, 2, 8, 2, 8]]
CPU = torch.device("cpu")


def network(family: str, seed: int = 3, context: int = 40):
    shape = {"vocab_size": 47, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "tied": False}
    made = build(GPTConfig(layout=family, context=context, **shape))
    randomise(made, seed)
    with torch.no_grad():  # so that what comes next depends on what came, and isn't sure
        for layer in made.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2 if layer is made.head else 3)
    return made.eval()


def twin(ours):
    """The same network in transformers."""
    import transformers

    how = layout(ours.config.layout)
    config = dict(how.write_config(ours.config))
    theirs = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    made = transformers.AutoModelForCausalLM.from_config(theirs).eval()
    made.load_state_dict(to_published(how, ours), strict=False)
    made.tie_weights()
    made.generation_config = transformers.GenerationConfig(pad_token_id=0)
    return made


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request):
    ours = network(request.param)
    return ours, twin(ours)


def theirs(model, prompt, search: BeamSearch, eos) -> list[tuple[list[int], float]]:
    settings = {name: getattr(search, field) for name, field in PUBLISHED.items()}
    settings["max_new_tokens"] = min(search.max_tokens, 40 - len(prompt))
    settings["repetition_penalty"] = float(settings["repetition_penalty"])
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=list(eos) or None,
        output_scores=True,
        return_dict_in_generate=True,
        **settings,
    )
    found = []
    for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
        new = row[len(prompt) :]
        ends = [place for place, token in enumerate(new) if token in eos]
        found.append((new[: ends[0] + 1] if ends else new, score))
    return found


def compare(pair, search: BeamSearch, eos, prompts=PROMPTS) -> None:
    ours, model = pair
    found = beam_search(ours, prompts, search, eos=eos)
    for prompt, own in zip(prompts, found, strict=True):
        want = theirs(model, prompt, search, eos)
        assert [list(each.ids) for each in own] == [ids for ids, _ in want], (search, eos, prompt)
        scores = [score for _, score in want]
        assert [each.score for each in own] == pytest.approx(scores, rel=1e-4, abs=1e-4)
        for each in own:
            assert each.finish == ("stop" if each.ids[-1] in eos else "length")


SOME_END = (5, 11)
OFTEN = tuple(range(0, 47, 6))
CASES = {
    "plain": (BeamSearch(beams=3, max_tokens=12, returned=3), SOME_END),
    "no end": (BeamSearch(beams=4, max_tokens=9, returned=2), ()),
    "one token": (BeamSearch(beams=2, max_tokens=1, returned=2), (7,)),
    "ends often": (BeamSearch(beams=4, max_tokens=20, returned=4), OFTEN),
    "early": (BeamSearch(beams=4, max_tokens=20, early_stopping=True, returned=4), OFTEN),
    "never": (BeamSearch(beams=4, max_tokens=20, early_stopping="never", returned=4), OFTEN),
    "long": (BeamSearch(beams=3, max_tokens=16, length_penalty=2.0, returned=3), OFTEN),
    "long, never": (
        BeamSearch(beams=3, max_tokens=16, length_penalty=1.5, early_stopping="never"),
        OFTEN,
    ),
    "short": (BeamSearch(beams=3, max_tokens=16, length_penalty=-1.0, returned=3), OFTEN),
    "short, never": (
        BeamSearch(3, -1.0, "never", max_tokens=16, returned=3),
        OFTEN,
    ),
    "shorter, never": (BeamSearch(2, -2.5, "never", max_tokens=20, returned=2), OFTEN),
    "no length, never": (BeamSearch(3, 0.0, "never", max_tokens=16, returned=3), OFTEN),
    "no length": (BeamSearch(beams=3, max_tokens=16, length_penalty=0, returned=3), OFTEN),
    "not before five": (BeamSearch(beams=3, max_tokens=12, min_tokens=5, returned=3), OFTEN),
    "no pair twice": (BeamSearch(beams=3, max_tokens=25, no_repeat_ngram=2, returned=2), SOME_END),
    "no token twice": (BeamSearch(beams=3, max_tokens=12, no_repeat_ngram=1), SOME_END),
    "penalty": (BeamSearch(beams=3, max_tokens=12, repetition_penalty=1.4, returned=2), SOME_END),
    "all": (
        BeamSearch(4, 0.7, "never", 2, 3, 4, 18, 1.2),
        OFTEN,
    ),
    "to the context's end": (BeamSearch(beams=3, max_tokens=100, returned=3), ()),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_scores_are_those_of_transformers(pair, case):
    compare(pair, *CASES[case])


@pytest.mark.parametrize("seed", range(6))
def test_random_settings_give_what_transformers_gives(seed):
    rng = random.Random(seed)
    ours = network(rng.choice(["gpt2", "llama"]), seed)
    model = twin(ours)
    for _ in range(3):
        beams = rng.choice([2, 3, 5])
        search = BeamSearch(
            beams=beams,
            length_penalty=rng.choice([0.0, 1.0, 2.0, -1.0, 0.6]),
            early_stopping=rng.choice([True, False, "never"]),
            no_repeat_ngram=rng.choice([0, 0, 1, 2, 3]),
            min_tokens=rng.choice([0, 0, 3]),
            returned=rng.randint(1, beams),
            max_tokens=rng.choice([4, 9, 15]),
            repetition_penalty=rng.choice([1.0, 1.3, 0.8]),
        )
        compare((ours, model), search, rng.choice([(), (7,), SOME_END, OFTEN]), PROMPTS[:3])


@pytest.mark.parametrize(
    ("penalty", "stopping", "goes_on"),
    [
        (1.0, "never", True),  # -2 over 20 tokens may be better than -0.5
        (1.0, False, False),  # -2 over 4 is not
        (1.0, True, False),
        (0.0, "never", False),  # -2, whatever the length
        (-0.5, "never", True),  # longer is worse: -2 sqrt(4) is the best to come, above -5
        (-0.5, False, True),
        (-0.5, True, False),
    ],
)
def test_a_prompt_goes_on_while_something_better_may_come(penalty, stopping, goes_on):
    """As in transformers: length as it is now, or the longest where that could be better."""
    search = BeamSearch(2, penalty, stopping, max_tokens=20)
    worst = -5.0 if penalty < 0 else -0.5
    ended = [Hypothesis((1,), score, score, "stop") for score in (worst / 2, worst)]
    one = _Search([1], 20, [_Beam((2, 3, 4, 5), -2.0, -2.0)] * 2, [0, 0], ended)
    assert _goes_on(one, search) == goes_on
    one.ended = ended[:1]
    assert _goes_on(one, search)  # not as many have ended as there are beams
    one.beams = []
    assert not _goes_on(one, search)


def test_the_cases_end_in_both_ways(pair):
    ours, _ = pair
    search, eos = CASES["ends often"]
    found = beam_search(ours, PROMPTS, search, eos=eos)
    finishes = [each.finish for own in found for each in own]
    assert finishes.count("stop") > 4
    assert len({len(each.ids) for own in found for each in own}) > 5
    early = beam_search(ours, PROMPTS, replace(search, early_stopping=True), eos=eos)
    assert early != found


def test_a_batch_equals_its_prompts_one_by_one(pair):
    ours, _ = pair
    search, eos = BeamSearch(beams=3, max_tokens=20, returned=3, early_stopping=True), OFTEN
    together = beam_search(ours, PROMPTS, search, eos=eos)
    for prompt, found in zip(PROMPTS, together, strict=True):
        alone = beam_search(ours, [prompt], search, eos=eos)[0]
        assert [each.ids for each in found] == [each.ids for each in alone]


def test_one_beam_is_greedy(pair):
    ours, _ = pair
    greedy = generate(ours, PROMPTS, Sampling(max_tokens=15), eos=OFTEN)
    for own, want in zip(
        beam_search(ours, PROMPTS, BeamSearch(1, max_tokens=15), eos=OFTEN), greedy, strict=True
    ):
        assert (list(own[0].ids), own[0].finish) == (want.ids, want.finish)
        assert own[0].log_probability == pytest.approx(sum(want.log_probabilities), abs=1e-4)


def test_enough_beams_find_the_likeliest_of_all():
    ours = build(GPTConfig(layout="llama", vocab_size=7, width=16, layers=1, heads=2, context=8))
    randomise(ours, 1)
    search = BeamSearch(beams=3, max_tokens=2, returned=1)
    with torch.no_grad():
        first = ours(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1)
        rows = torch.tensor([[1, 2, token] for token in range(7)])
        both = first[:, None] + ours(rows)[:, -1].log_softmax(-1)
    best = divmod(int(both.argmax()), 7)
    found = beam_search(ours.eval(), [[1, 2]], search, eos=())[0][0]
    assert found.ids == best
    assert found.score == pytest.approx(both.max().item() / 2, abs=1e-5)


def test_log_probabilities_are_the_models_own_whatever_the_penalties(pair):
    ours, _ = pair
    search = BeamSearch(3, 2.0, False, 2, 3, 3, 10, 1.5)
    for prompt, own in zip(PROMPTS, beam_search(ours, PROMPTS, search, eos=OFTEN), strict=True):
        for each in own:
            with torch.no_grad():
                known = ours(torch.tensor([[*prompt, *each.ids]]))[0].log_softmax(-1)
            want = sum(
                known[len(prompt) + place - 1, token].item() for place, token in enumerate(each.ids)
            )
            assert each.log_probability == pytest.approx(want, abs=1e-3)


def test_prompts_are_read_once_not_once_a_beam(pair, monkeypatch):
    ours, _ = pair
    seen = []
    states = ours.states
    monkeypatch.setattr(
        ours, "states", lambda ids, **more: seen.append(tuple(ids.shape)) or states(ids, **more)
    )
    beam_search(ours, PROMPTS, BeamSearch(beams=5, max_tokens=6), eos=())
    assert seen == [(4, 11), *[(20, 1)] * 5]


def test_prompts_that_are_done_leave_the_batch(pair, monkeypatch):
    ours, _ = pair
    seen = []
    states = ours.states
    monkeypatch.setattr(
        ours, "states", lambda ids, **more: seen.append(len(ids)) or states(ids, **more)
    )
    search = BeamSearch(beams=2, max_tokens=12)
    beam_search(ours, [[1] * 38, [2] * 30, [3]], search, eos=())
    assert seen == [3, 6, *[4] * 8, *[2] * 2]


class Captioner(nn.Module):
    """A decoder that reads a memory; rows may share one."""

    def __init__(self, memory: torch.Tensor) -> None:
        super().__init__()
        self.gpt = network("llama")
        torch.manual_seed(0)
        self.cross = CrossAttention(32, 4, memory_width=16)
        self.config, self.memory = self.gpt.config, memory

    def head(self, states):
        return self.gpt.head(states)

    def states(self, ids, *, cache=None):
        context = Context(memory=self.memory, cache=None if cache is None else cache.layers[0])
        states = self.gpt.states(ids, cache=cache)
        return states + 20 * self.cross(states, context)

    def new_cache(self, batch, capacity):
        return self.gpt.new_cache(batch, capacity)


@pytest.mark.parametrize("each", [1, 2])
def test_beams_share_the_memory_of_their_prompt(each, monkeypatch):
    memory = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(2))
    prompts = [[1, 2], [3], [4, 5, 6], [7], [8, 9], [10]][: 3 * each]
    search = BeamSearch(beams=3, max_tokens=12, returned=3, early_stopping=True)
    memories = []
    keep = Cache.keep

    def watched(cache, rows):
        keep(cache, rows)
        memories.append((len(rows) // 3, len(cache.layers[0].memory[0])))

    monkeypatch.setattr(Cache, "keep", watched)
    together = beam_search(Captioner(memory).eval(), prompts, search, eos=OFTEN)
    assert memories
    assert all(held <= rows for rows, held in memories)
    texts = set()
    for number, (prompt, found) in enumerate(zip(prompts, together, strict=True)):
        own = memory[number // each : number // each + 1]
        alone = beam_search(Captioner(own).eval(), [prompt], search, eos=OFTEN)[0]
        assert [one.ids for one in found] == [one.ids for one in alone]
        texts.add(found[0].ids)
        other = memory[[(number // each + 1) % 3]]
        without = beam_search(Captioner(other).eval(), [prompt], search, eos=OFTEN)[0]
        assert without[0].score != pytest.approx(found[0].score, abs=1e-3)
    assert len(texts) > 1


def test_precision_makes_a_copy(pair):
    ours, _ = pair
    search = BeamSearch(beams=3, max_tokens=8)
    plain = beam_search(ours, PROMPTS, search, eos=OFTEN)
    same = beam_search(ours, PROMPTS, search, eos=OFTEN, precision=Precision(CPU, torch.float32))
    assert [own[0].ids for own in same] == [own[0].ids for own in plain]
    beam_search(ours, PROMPTS, search, eos=OFTEN, precision=Precision(CPU, torch.bfloat16))
    assert {weight.dtype for weight in ours.parameters()} == {torch.float32}


def test_published_names():
    settings = {"num_beams": 3, "length_penalty": None, "no_repeat_ngram_size": 2, "top_k": 50}
    assert published_beams(settings) == {"beams": 3, "no_repeat_ngram": 2}
    everything = {**dict.fromkeys(PUBLISHED, 1), "early_stopping": True}
    assert BeamSearch(**published_beams(everything)) == BeamSearch(1, 1, True, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beams": 0}, "num_beams: 0 was given"),
        ({"beams": 2.5}, r"num_beams: 2\.5"),
        ({"beams": 2, "returned": 3}, "num_return_sequences: 3 .* num_beams, 2"),
        ({"returned": 0}, "num_return_sequences: 0"),
        ({"max_tokens": 0}, "max_new_tokens: 0"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_new_tokens: is 9, more than max_new_tokens, 8"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram_size: -1"),
        ({"length_penalty": float("nan")}, "length_penalty: nan"),
        ({"length_penalty": "long"}, "length_penalty: 'long'"),
        ({"length_penalty": 1e9}, "length_penalty: 1000000000"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty: 0\.0"),
        ({"early_stopping": "always"}, "early_stopping: 'always' .* \"never\""),
        ({"early_stopping": 1}, "early_stopping: 1"),
    ],
)
def test_refuses_settings_that_cant_be(changes, words):
    with pytest.raises(BedstoneError, match=words):
        BeamSearch(**changes)


@pytest.mark.parametrize(
    ("prompts", "search", "words"),
    [
        ([[1], []], BeamSearch(2), r"prompts\[1\]: is empty"),
        ([[1] * 40], BeamSearch(2), "40 tokens; the model's context is 40"),
        ([[47]], BeamSearch(2), "id 47"),
        (
            [[1]],
            BeamSearch(24),
            "24 beams need .* at least 48 tokens; the model.s has 47",
        ),
    ],
)
def test_refuses_what_it_cant_continue(pair, prompts, search, words):
    with pytest.raises(BedstoneError, match=words):
        beam_search(pair[0], prompts, search, eos=[7])


def test_says_when_no_ngram_is_left():
    ours = network("gpt2", context=64)
    search = BeamSearch(beams=2, max_tokens=8, no_repeat_ngram=1)
    with pytest.raises(BedstoneError, match=r"prompts\[1\]: no token may .* no_repeat_ngram"):
        beam_search(ours, [[1], [*range(46)]], search, eos=[])
    left = beam_search(ours, [[*range(46)]], replace(search, max_tokens=1), eos=[])[0]
    assert [each.ids for each in left] == [(46,)]
