"""Prompt lookup: the text is that of plain decoding to the bit; drafts are read where they pay."""

import random
from dataclasses import replace

import pytest
import torch

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.commands.chat import _changes
from bedstone.commands.conversation import ChatSettings, LocalConversation
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.generation import autoregress
from bedstone.generation.autoregress import generate, stream
from bedstone.generation.beam import beam_search
from bedstone.generation.constraints import Constraints
from bedstone.generation.lookup import (
    MATCH,
    NGRAMS,
    PLACES,
    Lookup,
    OwnText,
    Pace,
    Places,
    Prediction,
)
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, GenerationSettings
from bedstone.generation.text import stream_text, write
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.runtime import pick_precision
from bedstone.tasks.image_text.engine import ImageTextGenerationOptions
from bedstone.tasks.text.text_generation import TextGeneration
from networks import randomise

VOCABULARY = 61
PLAIN = {"prompt_lookup_num_tokens": 0}


class OneByOne:
    """An exact decoder: it reads each token of a pass alone, and counts passes after the prompt."""

    exact = True

    def __init__(self, network) -> None:
        self.network, self.config = network, network.config
        self.passes: list[int] = []  # tokens of each
        self.cache = None

    def new_cache(self, batch, capacity):
        self.cache = self.network.new_cache(batch, capacity)
        return self.cache

    def states(self, ids, *, cache=None):
        if cache.length:
            self.passes.append(ids.shape[1])
        cache.coming = None
        parts = [self.network.states(part, cache=cache) for part in ids.split(1, dim=1)]
        return torch.cat(parts, 1)

    def head(self, states):
        return torch.cat([self.network.head(row[None]) for row in states])


def network(**changes):
    shape = {"vocab_size": VOCABULARY, "width": 32, "layers": 2, "heads": 4, "hidden": 48}
    made = build(GPTConfig(**{"layout": "llama", "context": 64, **shape, **changes}))
    randomise(made, seed=3)
    with torch.no_grad():
        for layer in made.stack.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(4)
    return made.eval()


@pytest.fixture(scope="module")
def decoder():
    return OneByOne(network(layers=1))


@pytest.fixture
def always(monkeypatch):
    """Drafts are read whole, whether they pay or not, from the second pass on."""
    monkeypatch.setattr(
        Pace,
        "worth",
        lambda self, chance, length: length * (not self._measured or bool(self._times)),
    )


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Of which half repeat something."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        ids = [draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 20))]
        made.append(ids + ids[: draw.randint(0, 10)] if number % 2 else ids)
    return made


def seen_of(decoder, prompt, sampling, **more):
    """All that can be seen of a row: its steps, and what the cache holds in the end."""
    decoder.passes.clear()
    steps = list(stream(decoder, [prompt], sampling, **more))
    cache = decoder.cache
    held = [
        each.narrow(2, 0, cache.length).clone()
        for layer in cache.layers
        for each in (layer.keys, layer.values)
    ]
    assert cache.lengths is None
    return steps, held


def check(decoder, prompt, sampling, prediction=(), **more):
    """Decoding with drafts is plain decoding; the passes of either."""
    plain, known = seen_of(decoder, prompt, replace(sampling, **PLAIN), **more)
    count = len(decoder.passes)
    assert set(decoder.passes) <= {1}
    steps, held = seen_of(decoder, prompt, sampling, prediction=prediction, **more)
    assert steps == plain
    assert all(torch.equal(*pair) for pair in zip(held, known, strict=True))
    return count, len(decoder.passes)


BANNED = Constraints(
    min_new_tokens=6,
    bad_words=((3,), (7, 9)),
    sequence_bias=(((5,), 2.0),),
    suppressed_first=(1, 2),
)
SETTINGS = {
    "greedy": Sampling(max_tokens=20),
    "sampled": Sampling(max_tokens=20, temperature=0.4, seed=3),
    "cut": Sampling(max_tokens=20, temperature=0.8, top_k=5, top_p=0.9, min_p=0.02, seed=4),
    "penalties": Sampling(max_tokens=20, repetition_penalty=1.1),
    "n-grams": Sampling(max_tokens=20, no_repeat_ngram=3),
    "constraints": Sampling(max_tokens=20, constraints=BANNED),
    "forced": Sampling(max_tokens=9, constraints=Constraints(forced_last=(8,), decay=(4, 1.2))),
}


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", ["own", "right", "wrong", "half"])
def test_the_text_is_that_of_plain_decoding(decoder, sampling, kind, always):
    draw = random.Random(kind)
    many = 40 if kind == "own" and sampling in (SETTINGS["greedy"], SETTINGS["sampled"]) else 8
    for number, prompt in enumerate(prompts(many)):
        ends = {draw.randrange(VOCABULARY) for _ in range(number % 3)}
        more = {"eos": ends, "top": number % 4}
        prediction = []
        if kind != "own":
            (plain,) = generate(decoder, [prompt], replace(sampling, **PLAIN), eos=ends)
            share = {"right": 0.0, "wrong": 1.0, "half": 0.5}[kind]
            wrong = [draw.random() < share for _ in plain.ids]
            prediction = [
                (token + bad) % VOCABULARY for token, bad in zip(plain.ids, wrong, strict=True)
            ]
        check(decoder, prompt, sampling, prediction, **more)


def test_the_pace_changes_nothing_but_passes(decoder):
    for sampling in SETTINGS.values():
        for prompt in prompts(10, seed=1):
            check(decoder, prompt, sampling)


@pytest.mark.parametrize("most", range(1, 19))
def test_no_pass_goes_beyond_what_may_be_generated(decoder, most, always):
    prompt = [1, 2, 3, 4, 5, 6]
    (whole,) = generate(decoder, [prompt], Sampling(max_tokens=19, **PLAIN))
    check(decoder, prompt, Sampling(max_tokens=most), whole.ids)
    assert sum(decoder.passes) <= most - 1
    check(decoder, [1, 2, 3] * 15 + [4] * most, Sampling(max_tokens=50))  # up to the context's end
    assert decoder.cache.length == 63


def test_a_row_ends_where_a_caller_says_so(decoder, always):
    (whole,) = generate(decoder, [[1, 2, 3]], Sampling(max_tokens=20, **PLAIN))
    for place in range(20):
        count = []

        def ended(step, place=place, count=count):
            count.append(step)
            return len(count) % (place + 1) == 0

        check(decoder, [1, 2, 3], Sampling(max_tokens=20), whole.ids, ended=ended)
        assert len(count) == 2 * (place + 1)


def test_what_nobody_reads_may_be_no_number(decoder, always):
    """A pass that reads a wrong draft may give nan there; plain decoding never sees it."""

    class Bad(OneByOne):
        def head(self, states):
            logits = super().head(states)
            logits[1:] = torch.nan
            return logits

    (plain,) = generate(decoder, [[1, 2]], Sampling(max_tokens=20, **PLAIN))
    wrong = [(token + 1) % VOCABULARY for token in plain.ids]
    bad = Bad(decoder.network)
    (found,) = generate(bad, [[1, 2]], Sampling(max_tokens=5), prediction=wrong)
    assert max(bad.passes) > 1 and found.ids == plain.ids[:5]
    with pytest.raises(BedstoneError, match="not finite"):
        generate(bad, [[1, 2]], Sampling(max_tokens=20), prediction=plain.ids)


def test_automatic_is_on_where_the_decoder_is_exact(decoder, always):
    plain = network()
    seen = []
    states = plain.states

    def counted(ids, **more):
        seen.append(ids.shape[1])
        return states(ids, **more)

    plain.states = counted
    prompt, how = [1, 2, 3] * 5, Sampling(max_tokens=30)
    (expected,) = generate(plain, [prompt], how)
    assert set(seen[1:]) == {1}
    (found,) = generate(
        plain, [prompt], replace(how, prompt_lookup_num_tokens=3), prediction=expected.ids
    )
    assert set(seen) >= {4} and max(seen[31:]) == 4
    assert found.ids == expected.ids
    check(decoder, prompt, how, expected.ids)
    assert max(decoder.passes) == 8


def test_rows_that_share_a_batch_read_one_token_a_pass(decoder, always):
    rows = prompts(3, seed=5)
    how = Sampling(max_tokens=20, temperature=0.7, seed=2)
    ended = {0: 3, 1: 20, 2: 7}

    def run(sampling, prediction=()):
        counts = {0: 0, 1: 0, 2: 0}

        def over(step):
            counts[step.row] += 1
            return counts[step.row] == ended[step.row]

        decoder.passes.clear()
        steps = list(stream(decoder, rows, sampling, ended=over, prediction=prediction))
        return steps, list(decoder.passes)

    plain, single = run(replace(how, **PLAIN))
    steps, passes = run(how, [step.token for step in plain if step.row == 1])
    assert set(single) == {1} and len(single) == 19
    assert steps == plain
    assert set(passes[:6]) == {1} and max(passes) > 1  # once the others have left


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_tokens_of_a_pass_have_the_frequencies_of_their_own_length(rope, always):
    scaling = {
        "dynamic": {"rope_type": "dynamic", "factor": 4.0},
        "longrope": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": 32,
        },
    }[rope]
    made = network(context=32 if rope == "dynamic" else 64, rope_scaling=scaling)
    object.__setattr__(made.config, "context", 64)  # positions past the trained length
    prompt, how = prompts(1, seed=9)[0] + [3] * 8, Sampling(max_tokens=30)
    (plain,) = generate(made, [prompt], how)
    (found,) = generate(
        made, [prompt], replace(how, prompt_lookup_num_tokens=7), prediction=plain.ids
    )
    assert found.ids == plain.ids
    assert found.log_probabilities == pytest.approx(plain.log_probabilities, abs=1e-4)


def test_beam_search_is_as_it_was(decoder):
    rows = prompts(2, seed=7)
    decoder.passes.clear()
    found = beam_search(decoder, rows, BeamSearch(beams=3, max_tokens=8), eos=[4])
    assert set(decoder.passes) == {1}
    whole = beam_search(decoder.network, rows, BeamSearch(beams=3, max_tokens=8), eos=[4])
    assert [[one.ids for one in row] for row in found] == [
        [one.ids for one in row] for row in whole
    ]


# The cache.


@pytest.mark.parametrize("kept", [4, [4, 6, 2]], ids=["all", "each"])
def test_a_cache_forgets_what_came_after(kept):
    made = network()
    ids = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
    cache = made.new_cache(3, 20)
    with torch.no_grad():
        made.states(ids[:, :7], cache=cache)
        cache.rewind(torch.tensor(kept) if isinstance(kept, list) else kept)
        got = made.states(ids[:, 8:11], cache=cache)
        for row in range(3):
            size = kept[row] if isinstance(kept, list) else kept
            known = torch.cat((ids[row, :size], ids[row, 8:11]))[None]
            torch.testing.assert_close(got[row], made.states(known)[0, size:])


@pytest.mark.parametrize("wrong", [8, -1, torch.tensor([3, 8])])
def test_a_cache_keeps_no_more_than_it_holds(wrong):
    made = network()
    cache = made.new_cache(2, 20)
    with torch.no_grad():
        made.states(torch.ones(2, 7, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="holds 7 tokens"):
        cache.rewind(wrong)


# The index.


def occurrences(ids: list[int], ending: list[int]) -> list[int]:
    """Places after the longest n-gram that `ending` ends with, by looking everywhere."""
    for size in NGRAMS:
        last = ending[-size:]
        found = [at for at in range(size, len(ids)) if ids[at - size : at] == last]
        if len(last) == size and found:
            return found
    return []


def test_places_are_those_that_looking_everywhere_finds():
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(4) for _ in range(draw.randint(0, 40))]
        ending = [draw.randrange(4) for _ in range(draw.randint(2, 6))]
        assert Places(ids).after(ending) == occurrences(ids, ending)
        assert Places(ids).after(ids) == occurrences(ids, ids)


def test_a_row_copies_from_the_longest_of_its_latest_matches():
    draw = random.Random(1)
    for _ in range(300):
        ids = [draw.randrange(draw.choice((2, 5))) for _ in range(draw.randint(1, 60))]
        own = OwnText()
        for token in ids:
            own.take(token)

        def match(at, ids=ids):
            sizes = range(min(at, MATCH) + 1)
            return max(n for n in sizes if ids[at - n : at] == ids[len(ids) - n :])

        places = occurrences(ids, ids)[-PLACES:]
        best = max(places, key=lambda at: (match(at), at), default=None)
        expected = []
        if best is not None:
            expected = [*ids[best:], *ids[best:] * 7][:7]
            assert own.matched == 0
        assert own.draft(7) == expected
        if best is not None:
            assert own.matched == match(best)


def test_a_place_is_kept_while_it_comes_true():
    own = OwnText()
    for token in [1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 4, 7, 8, 9, 1, 2]:
        own.take(token)
    assert own.draft(3) == [3, 4, 7]  # the longest match
    own = OwnText()
    for token in [1, 2, 3, 4, 5, 0, 8, 3, 4, 6, 0, 1, 2]:
        own.take(token)
    assert own.draft(3) == [3, 4, 5]
    own.take(3)
    own.take(4)  # the later place has a shorter match
    assert own.draft(2) == [5, 0]
    own.take(6)
    assert own.matched == 0


def test_what_repeats_itself_goes_on():
    own = OwnText()
    for token in [9, 1, 2, 1, 2, 1, 2]:
        own.take(token)
    assert own.draft(7) == [1, 2, 1, 2, 1, 2, 1]


TEXT = list(range(10, 40))


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        ([10, 11], [12, 13, 14]),
        ([10, 99], [12, 13, 14]),  # one token stands for another
        ([10, 99, 12, 13], [14, 15, 16]),
        ([10, 14], [15, 16, 17]),  # some are left out
        ([10, 99, 98, 97, 11, 12], [13, 14, 15]),  # others come between
        ([10, 11, 30, 31], [32, 33, 34]),  # much is left out
        ([10, 11, 12, 13, 14, 15, 11, 12, 13], [14, 15, 16]),  # some come again
        ([39], [11, 12, 13]),
        (TEXT, []),
        ([*TEXT, 1, 2, 3], []),
    ],
)
def test_a_prediction_is_followed_over_differences(came, expected):
    followed = Prediction(TEXT)
    assert followed.draft(3) == [10, 11, 12]
    for token in came:
        followed.take(token)
    assert followed.draft(3) == expected


def test_after_a_difference_the_nearest_place_counts():
    followed = Prediction([1, 2, 3, 4, 5, 1, 2, 6, 7, 1, 2, 8])
    for token in [1, 2, 3, 4, 5, 0, 1, 2]:
        followed.take(token)
    assert followed.draft(2) == [6, 7]
    followed = Prediction(list(range(1, 21)))
    for token in [1, 2, 3, 99, 10, 11, 98, 4]:  # 10 and 11 are there by chance
        followed.take(token)
    assert followed.draft(2) == [5, 6]
    text = list(range(100, 170))
    text[5:7] = text[60:62] = [1, 2]
    for read, expected in ((40, text[62:64]), (20, text[7:9])):
        followed = Prediction(text)
        for token in [*text[:read], 99, 1, 2]:
            followed.take(token)
        assert followed.draft(2) == expected


def test_a_prediction_goes_before_the_row_s_own_text():
    looked = Lookup(4, [5, 6, 7, 8], measured=False)
    assert looked.draft([1, 2, 1, 2], 7)[:3] == [5, 6, 7]
    looked = Lookup(4, measured=False)
    ids = [1, 2, 1, 2]
    for _ in range(3):
        draft = looked.draft(ids, 7)
        ids.append(ids[-2])
    assert draft == [1, 2, 1, 2, 1, 2, 1][: len(draft)] and len(draft) > 1
    assert looked.draft([*ids, 9], 7) == []  # nothing is known of what follows 9


def test_only_tokens_that_were_read_save_passes(monkeypatch):
    looked, earned = Lookup(3, [5, 6, 7, 8, 9], measured=False), []
    monkeypatch.setattr(looked.pace, "earn", earned.append)
    monkeypatch.setattr(looked.pace, "worth", lambda chance, length: 2)
    assert looked.draft([1, 2, 3], 7) == [5, 6]
    looked.draft([1, 2, 3, 5, 6, 7], 7)
    looked.draft([1, 2, 3, 5, 6, 7, 8, 0], 7)
    assert earned == [2, 1]


# The pace.


class Timed(OneByOne):
    """A decoder whose passes take what a price list says, by a clock of its own."""

    def __init__(self, network, price, monkeypatch) -> None:
        super().__init__(network)
        self.price, self.now = price, 0.0
        monkeypatch.setattr(autoregress.time, "perf_counter", lambda: self.now)

    def states(self, ids, *, cache=None):
        if cache.length:
            self.now += self.price(ids.shape[1], len(self.passes))
        return super().states(ids, cache=cache)


def test_right_drafts_save_passes(monkeypatch):
    timed = Timed(network(), lambda rows, number: 1.0 + 0.02 * rows, monkeypatch)
    sampling = Sampling(max_tokens=50, temperature=1.0, seed=0)
    (plain,) = generate(timed, [[1, 2, 3]], sampling)
    counts = {
        name: check(timed, [1, 2, 3], sampling, ids)
        for name, ids in {"none": [], "right": plain.ids, "other": [0] * 50}.items()
    }
    assert {before for before, _ in counts.values()} == {49}
    assert counts["right"][1] <= 9
    assert counts["other"][1] >= 40


@pytest.fixture(scope="module")
def long():
    """A network, what it says at length, and texts that share all, little or none of that."""
    made = network(context=400, layers=1)
    sampling = Sampling(max_tokens=380, temperature=1.0, seed=1)
    (said,) = generate(made, [[1, 2, 3]], sampling)
    draw = random.Random(0)
    rare = [token if draw.random() < 0.15 else (token + 1) % VOCABULARY for token in said.ids]
    return made, sampling, {"right": said.ids, "rare": rare, "none": []}, said.ids


def seconds(long, which, price, monkeypatch, **more):
    made, sampling, texts, said = long
    timed = Timed(made, price, monkeypatch)
    (found,) = generate(timed, [[1, 2, 3]], sampling, prediction=texts[which])
    assert found.ids == said
    return timed.now, timed


@pytest.mark.parametrize("eight", [0.9, 1.2, 2.0, 4.0, 20.0])
def test_little_is_lost_where_drafts_dont_come_true(long, monkeypatch, eight):
    def price(rows, number):
        return 1 + (eight - 1) * (rows - 1) / 7

    for which in ("rare", "none"):
        took, _ = seconds(long, which, price, monkeypatch)
        assert took <= 379 * (1.02 if eight < 20 else 1.06)  # of 20 the first alone is 5 %


@pytest.mark.parametrize(("eight", "least"), [(1.0, 6.0), (1.5, 4.0), (4.0, 1.6), (8.0, 0.9)])
def test_drafts_are_read_as_long_as_they_pay(long, monkeypatch, eight, least):
    took, timed = seconds(
        long, "right", lambda rows, number: 1 + (eight - 1) * (rows > 1), monkeypatch
    )
    assert 379 / took >= least
    if eight == 8:
        assert sum(rows > 1 for rows in timed.passes) < 8


@pytest.mark.parametrize("measured", [True, False])
def test_what_may_be_lost_is_bounded_whatever_chances_say(measured):
    pace, lost, plain = Pace(measured), 0.0, 0
    for _ in range(2000):
        drafts = pace.worth(0.6, 7) if plain else 0  # none of which comes true
        took = 1 + 0.05 * drafts
        pace.took(drafts + 1, took)
        lost, plain = lost + took - 1, plain + (drafts == 0)
    assert 1.0 <= lost <= 1.5 + 0.005 * plain
    assert plain > 1900


def test_shorter_drafts_where_longer_ones_are_dear(long, monkeypatch):
    def price(rows, number):
        return 1.1 if rows <= 4 else 30.0

    took, timed = seconds(long, "right", price, monkeypatch)
    assert 379 / took > 2.2
    assert sum(rows > 4 for rows in timed.passes) <= 2


def test_the_first_long_pass_may_make_things_ready(long, monkeypatch):
    def price(rows, number):
        return 1.0 if rows == 1 else 30.0 if number == 1 else 1.1

    _, timed = seconds(long, "right", price, monkeypatch)
    assert timed.passes[:3] == [1, 8, 8] and len(timed.passes) < 60


def test_drafts_are_read_again_once_they_come_true(long, monkeypatch):
    made, sampling, _, said = long
    wrong = [(token + 1) % VOCABULARY for token in said[:200]]
    timed = Timed(made, lambda rows, number: 1 + 0.05 * rows, monkeypatch)
    (found,) = generate(timed, [[1, 2, 3]], sampling, prediction=[*wrong, *said[200:]])
    assert found.ids == said
    assert len(timed.passes) < 379 - 100


def test_without_exactness_no_clock_counts(long, monkeypatch):
    made, sampling, texts, said = long
    counts = []
    for speed in (1.0, 50.0):
        timed = Timed(made, lambda rows, number, s=speed: rows**s % 7, monkeypatch)
        timed.exact = False
        how = replace(sampling, prompt_lookup_num_tokens=7)
        (found,) = generate(timed, [[1, 2, 3]], how, prediction=texts["right"])
        assert found.ids == said
        counts.append(timed.passes)
    assert counts[0] == counts[1] and len(counts[0]) < 80


# Settings.


def test_settings_of_lookup():
    made = GenerationSettings(prompt_lookup_num_tokens=5, prediction="a b").resolve({})
    assert (made.prompt_lookup_num_tokens, made.prediction) == (5, "a b")
    made = GenerationSettings().resolve({"prompt_lookup_num_tokens": 3})
    assert made.prompt_lookup_num_tokens is None  # a file's drafts change nothing
    for wrong, words in [
        ({"prompt_lookup_num_tokens": -1}, "prompt_lookup_num_tokens"),
        ({"prediction": 3}, "prediction: 3 was given; expected a text"),
    ]:
        with pytest.raises(BedstoneError, match=words):
            GenerationSettings(**wrong)
    for name, value in (("prompt_lookup_num_tokens", 4), ("prediction", "a")):
        with pytest.raises(BedstoneError, match=f"{name}: .* beam search"):
            GenerationSettings(num_beams=2, **{name: value}).resolve({})


def test_a_prediction_of_another_vocabulary_is_refused(decoder):
    with pytest.raises(BedstoneError, match="prediction: has id 61"):
        stream(decoder, [[1]], prediction=[1, 61])


TEXTS = ["the red boat of a cat and a dog. the red boat of a dog.", "a cat of a", "the the the"]


@pytest.fixture(scope="module")
def model():
    tokenizer = train_bpe([TEXTS[0]] * 3, 300)
    tokenizer.settings["chat_template"] = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return Model(network(vocab_size=tokenizer.vocab_size), tokenizer)


@pytest.mark.parametrize("stop", [(), ("e",), ("at", " b"), ("the",)])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_texts_and_stop_texts_are_those_of_plain_decoding(model, stop, temperature, always):
    exact = OneByOne(model.network)
    sampling = Sampling(max_tokens=30, stop=stop, temperature=temperature, seed=2)
    for text in TEXTS:
        (plain,) = write(exact, model.tokenizer, [text], replace(sampling, **PLAIN))
        exact.passes.clear()
        how = replace(sampling, prediction=plain.text)
        assert write(exact, model.tokenizer, [text], how) == [plain]
        pieces = list(stream_text(exact, model.tokenizer, [text], how))
        assert "".join(each.text for each in pieces) == plain.text
        assert [each.step.token for each in pieces] == plain.ids


@pytest.fixture
def looked(monkeypatch):
    """What every `Lookup` is made of."""
    seen = []

    def made(prompt, prediction, *, most, measured):
        seen.append((list(prediction), most, measured))
        return Lookup(prompt, prediction, most=most, measured=measured)

    monkeypatch.setattr(autoregress, "Lookup", made)
    return seen


def test_a_prediction_comes_from_every_side(model, looked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BEDSTONE_ENGINE", "off")  # the engine is exact, and looks by itself
    text, ids = "a red cat", model.tokenizer.encode("a red cat")
    options = {"prompt_lookup_num_tokens": 4, "prediction": text, "max_new_tokens": 5}
    plain = model.generate("the red", max_new_tokens=5)
    assert not looked
    assert model.generate("the red", **options) == plain
    (row,) = TextGeneration(model)("the red", **options)
    assert row["generated_text"] == "the red" + plain
    talk = LocalConversation(
        model, ChatSettings(**options), pick_precision("fp32", torch.device("cpu"))
    )
    talk.answer("the red", lambda text: None)
    file = tmp_path / "expected.txt"
    file.write_text(text)
    model.save(tmp_path / "m")
    words = ["--prompt-lookup-num-tokens", "4", "--prediction", str(file), "--max-new-tokens", "5"]
    words += ["--precision", "fp32"]
    assert main(["generate", str(tmp_path / "m"), "the red", *words]) == 0
    assert capsys.readouterr().out == f"the red{plain}\n"
    assert main(["chat", str(tmp_path / "m"), "--message", "the red", *words]) == 0
    assert looked == [(ids, 4, False)] * 5
    assert main(["generate", str(tmp_path / "m"), "the", "--prediction", str(tmp_path / "no")]) == 2
    assert "no: " in capsys.readouterr().err


def test_a_setting_of_a_conversation_names_a_file(tmp_path):
    (tmp_path / "code.py").write_text("a b")
    assert _changes(f"prediction={tmp_path / 'code.py'}") == {"prediction": "a b"}
    assert _changes("prediction=none") == {"prediction": None}
    with pytest.raises(BedstoneError, match=r"no\.py"):
        _changes(f"prediction={tmp_path / 'no.py'}")


def test_texts_about_images_take_no_prediction():
    with pytest.raises(BedstoneError, match=r"prediction: 'a' .* serves text-generation"):
        ImageTextGenerationOptions(prediction="a")
    with pytest.raises(BedstoneError, match="prediction: 'a'"):
        ImageTextGenerationOptions(generate_kwargs={"prediction": "a"})
