"""Words that must occur: their automaton, beams that hold them, their spellings."""

import itertools
import random
import string
from dataclasses import replace

import pytest
import torch
from test_beam import OFTEN, PROMPTS, SOME_END, Captioner, network

from bedstone.data.text.glossary import Glossary
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.beam import beam_search
from bedstone.generation.constraints import Constraints
from bedstone.generation.required import (
    CLOSED,
    START,
    RequiredWords,
    allowed,
    banned_words,
    glossary_words,
    in_turn,
    parse_words,
    required_words,
    words_of,
)
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, GenerationSettings

WORDS = {
    "one": [[8]],
    "long": [[8, 3, 9]],
    "two": [[8, 3], [30]],
    "prefix of another": [[8], [8, 3]],
    "overlapping": [[8, 3, 8], [3, 8, 4]],
    "twice": [[8, 3], [8, 3]],
    "repeating": [[8, 8, 9], [8]],
    "one of": [[[8, 3], [30], [4, 4, 4]], [31]],
    "four": [[8], [9, 10], [40], [41, 42]],
}


def words(value):
    return parse_words(value, "words")


def holds(ids, required) -> bool:
    """Whether there are places, each of one word, for all words: by trying every order."""
    for order in itertools.permutations(required):
        for choice in itertools.product(*order):
            at = 0
            for part in choice:
                while at <= len(ids) and tuple(ids[at : at + len(part)]) != part:
                    at += 1
                if at > len(ids):
                    break
                at += len(part)
            else:
                return True
    return False


@pytest.mark.parametrize("case", WORDS)
def test_the_automaton_knows_what_is_needed(case):
    """Beside a search over all shortest ways, on random token sequences of a few tokens."""
    required, draw = words(WORDS[case]), random.Random(case)
    known = RequiredWords(required)
    tokens = [*sorted({token for word in required for ids in word for token in ids}), 0]
    assert known.needed(known.start) == sum(min(map(len, word)) for word in required)
    complete = 0
    for number in range(150):
        ids = [draw.choice(tokens) for _ in range(draw.randint(1, 9))]
        if number % 3 == 0:
            parts = [draw.choice(word) for word in draw.sample(required, len(required))]
            ids = [token for part in parts for token in part] + ids[:2]
        state = known.after(known.start, ids)
        needed = known.needed(state)
        assert (needed == 0) == holds(ids, required), ids
        complete += needed == 0
        if needed:
            wanted = known.wanted(state)
            assert wanted
            for token in tokens:
                after = known.needed(known.after(state, [token]))
                assert (after == needed - 1) == (token in wanted)
                assert after >= needed - 1
    assert complete


def test_the_nearest_ways_lead_to_the_end():
    known = RequiredWords(words([[1, 2, 3], [2, 3, 4], [[3, 1], [2, 2]]]))
    state, ids = known.start, []
    while known.needed(state):
        ids.append(known.wanted(state)[0])
        state = known.after(state, ids[-1:])
    assert len(ids) == 8


def test_banks_take_turns_and_the_fullest_goes_first():
    found = in_turn([(2, "a"), (2, "b"), (0, "c"), (1, "d"), (0, "e")])
    assert found == [(0, "c"), (0, "d"), (0, "a"), (1, "e"), (1, "b")]


@pytest.mark.parametrize("case", WORDS)
@pytest.mark.parametrize("beams", [2, 5])
def test_all_that_ends_holds_the_words(case, beams):
    ours, required = network("llama"), words(WORDS[case])
    for eos, more in ((OFTEN, {}), (SOME_END, {"early_stopping": True}), ((), {})):
        required = tuple(
            word for word in required if not any(set(ids) & set(eos) for ids in word)
        ) or words([[8]])
        search = BeamSearch(beams, max_tokens=14, returned=beams, required=required, **more)
        for found in beam_search(ours, PROMPTS, search, eos=eos):
            assert found
            for one in found:
                assert holds(one.ids, required)
                assert one.finish == ("stop" if one.ids[-1] in eos else "length")
                assert len(one.ids) <= 14
                assert one.score == pytest.approx(one.log_probability / len(one.ids), abs=1e-4)


def test_words_just_fit_and_one_more_is_refused():
    ours, required = network("gpt2"), words([[8, 3, 9], [30], [30]])
    search = BeamSearch(3, max_tokens=5, returned=3, required=required)
    for found in beam_search(ours, PROMPTS, search, eos=SOME_END):
        assert all(sorted(one.ids) == [3, 8, 9, 30, 30] for one in found)
    with pytest.raises(
        BedstoneError, match=r"prompts\[0\]: the words .* take 5 tokens, .* leaves 4"
    ):
        beam_search(ours, PROMPTS, BeamSearch(3, max_tokens=4, required=required), eos=())
    last = Constraints(forced_last=(5,))
    ending = BeamSearch(3, max_tokens=6, required=required, constraints=last)
    assert beam_search(ours, PROMPTS, ending, eos=[5])[0][0].ids[-1] == 5
    with pytest.raises(BedstoneError, match="leaves 4"):
        tight = BeamSearch(3, max_tokens=5, required=required, constraints=last)
        beam_search(ours, PROMPTS, tight, eos=[5])
    first = BeamSearch(3, max_tokens=5, required=required, constraints=Constraints(forced_first=2))
    with pytest.raises(BedstoneError, match=r"prompts\[2\]: the words .* take 5 .* leaves 4"):
        beam_search(ours, PROMPTS, first, eos=())


def test_every_prompt_has_words_of_its_own_whatever_is_beside_it():
    ours = network("llama")
    own = [words([[8, 3]]), (), words([[30], [31]]), words([[[40], [41]]])]
    search = BeamSearch(4, max_tokens=10, returned=4, required=words([[22]]))
    together = beam_search(ours, PROMPTS, search, eos=SOME_END, words=own)
    for prompt, more, found in zip(PROMPTS, own, together, strict=True):
        alone = beam_search(ours, [prompt], search, eos=SOME_END, words=[more])[0]
        assert [one.ids for one in alone] == [one.ids for one in found]
        assert all(holds(one.ids, (*more, *words([[22]]))) for one in found)
    plain = BeamSearch(4, max_tokens=10, returned=4)
    some = beam_search(ours, PROMPTS, plain, eos=SOME_END, words=own)
    want = beam_search(ours, PROMPTS[1:2], plain, eos=SOME_END)
    assert [one.ids for one in some[1]] == [one.ids for one in want[0]]


def test_a_word_costs_little_and_far_less_than_at_the_end():
    """The best of all continuations with the word, by trying all, is found or nearly."""
    ours = network("gpt2")
    eos, total = (), []
    with torch.no_grad():
        for prompt in PROMPTS:
            rows = torch.tensor(list(itertools.product(range(47), repeat=2)))
            rows = torch.cat((torch.tensor([prompt]).expand(len(rows), -1), rows), 1)
            known = ours(rows).log_softmax(-1)[:, len(prompt) - 1 :]
            scores = known[:, :-1].gather(-1, rows[:, len(prompt) :, None])[..., 0].sum(-1)
            scores = scores[:, None] + known[:, -1]  # three tokens, all of them
            ids = torch.arange(47).expand(len(rows), 1, -1).mT  # the third
            ids = torch.cat((rows[:, None, len(prompt) :].expand(-1, 47, -1), ids), -1)
            has = (ids == 33).any(-1)
            best = scores.masked_fill(~has, -torch.inf).max().item()
            search = BeamSearch(5, max_tokens=3, required=words([[33]]))
            found = beam_search(ours, [prompt], search, eos=eos)[0][0]
            total.append(best - found.log_probability)
    assert min(total) > -1e-4
    assert sum(total) / len(total) < 0.3


def test_a_prefix_counts_and_memories_are_read():
    memory = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    required = words([[8, 3], [31]])
    search = BeamSearch(3, max_tokens=6, returned=3, required=required, early_stopping=True)
    prefixes = [[8, 3], [8], [31], [2]]
    decoder = Captioner(memory).eval()
    found = beam_search(decoder, PROMPTS, search, eos=OFTEN, prefixes=prefixes)
    for prefix, own in zip(prefixes, found, strict=True):
        assert all(list(one.ids[: len(prefix)]) == prefix for one in own)
        assert all(holds(one.ids, required) for one in own)
    served = beam_search(ours := network("llama"), [[1]], search, eos=(), prefixes=[[8, 3, 31]])
    free = beam_search(ours, [[1, 8, 3, 31]], BeamSearch(3, max_tokens=6), eos=())
    assert served[0][0].ids[3:] == free[0][0].ids


def test_what_must_not_occur_does_not():
    ours = network("llama")
    for prompt in PROMPTS:
        plain = beam_search(ours, [prompt], BeamSearch(4, max_tokens=10), eos=())[0][0].ids
        bad = (plain[:1], plain[3:5])
        rules = Constraints(bad_words=bad)
        search = BeamSearch(4, max_tokens=10, returned=4, constraints=rules)
        rows = [one.ids for one in beam_search(ours, [prompt], search, eos=())[0]]
        rows.append(generate(ours, [prompt], Sampling(10, constraints=rules))[0].ids)
        for ids in rows:
            text = (*prompt, *ids)
            for part in bad:
                at = range(len(prompt) - 1, len(text))
                assert not any(text[start : start + len(part)] == part for start in at)


def test_refuses_words_that_cant_be():
    ours = network("llama")
    cases = [
        ({"required": [[8, 47]]}, (), r"force_words_ids: \[8, 47\] has id 47"),
        ({"required": [[8, 5]]}, (5,), r"force_words_ids: \[\[8, 5\]\] must occur, and bad_words"),
        (
            {"required": [[2], [8, 3]], "constraints": Constraints(bad_words=((3,),))},
            (),
            r"force_words_ids: \[\[8, 3\]\] must occur",
        ),
        (
            {"required": [[[8, 3], [3]]], "constraints": Constraints(suppressed=(3,))},
            (),
            r"\[\[8, 3\], \[3\]\] must occur, .* suppress_tokens",
        ),
    ]
    for changes, eos, message in cases:
        with pytest.raises(BedstoneError, match=message):
            beam_search(ours, PROMPTS, BeamSearch(3, **changes), eos=eos)
    assert allowed(words([[[8, 3], [4]]]), [(3,)], (), 47) == (((4,),),)
    for value in ([8], [[]], [[[]]], "a", [["a"]], [[-1]], [[True]], 5, [[[1], 2]]):
        with pytest.raises(BedstoneError, match=r"force_words_ids: .*expected a list of words"):
            parse_words(value, "force_words_ids")
    with pytest.raises(BedstoneError, match=r"prompts\[0\]: no token may follow"):
        search = BeamSearch(2, max_tokens=3, required=words([[8], [8]]), no_repeat_ngram=1)
        beam_search(ours, [[1]], search, eos=())


def test_several_have_one_automaton():
    assert required_words(()) is None
    assert required_words(words([[1]])) is required_words(words([[1]]))


def test_force_words_of_settings(tmp_path):
    found = GenerationSettings(num_beams=3, force_words_ids=[[3, 4], [[5], [6]]]).resolve({})
    assert found.required == (((3, 4),), ((5,), (6,)))
    assert GenerationSettings().resolve({"num_beams": 2, "force_words_ids": [[3]]}).required
    for settings, message in (
        ({"force_words_ids": [[3]]}, "force_words_ids: .* num_beams of 2"),
        ({"force_words": "a"}, "force_words: 'a' .* num_beams of 2"),
        ({"force_words": "a", "num_beams": 2}, "force_words: texts .* no tokenizer"),
        ({"bad_words": ["a"]}, "bad_words: texts .* no tokenizer"),
        ({"force_words": [3]}, r"force_words: \[3\]"),
        ({"bad_words": [["a"]]}, r"bad_words: \[\['a'\]\]"),
        ({"force_words_ids": [3], "num_beams": 2}, "force_words_ids: 3"),
    ):
        with pytest.raises(BedstoneError, match=message):
            GenerationSettings(**settings).resolve({})


class Spelled:
    """A tokenizer of words and single letters; a word holds the space before it, as in GPT-2."""

    def __init__(self) -> None:
        self.pieces = [" sea", "sea", " ocean", " Sea", "(", " ", *string.ascii_letters]

    def encode(self, text, special=False):
        ids = []
        while text:
            fits = [piece for piece in self.pieces if text.startswith(piece)]
            if not fits:
                text = text[1:]
                continue
            best = max(fits, key=len)
            ids.append(self.pieces.index(best))
            text = text[len(best) :]
        return ids

    def decode(self, ids, skip_special=True):
        return "".join(self.pieces[number] for number in ids)

    joining_ids = frozenset({1, *range(6, 58)})


def test_spellings_of_words():
    known = Spelled()
    (sea, either) = words_of(known, ["sea", "ocean| sea "], "force_words")
    assert sea == ((0, CLOSED), (START, 1, CLOSED))
    assert either[0] == (2, CLOSED)
    assert set(sea) < set(either)
    banned = {known.decode(ids) for ids in banned_words(known, ["sea"], "bad_words")}
    assert banned == {" sea", "sea", " Sea", "Sea", " SEA", "SEA"}
    assert words_of(known, ["SEA"], "force_words")[0][0] == (*known.encode(" SEA"), CLOSED)
    for text in ("", "  ", "a||b"):
        with pytest.raises(BedstoneError, match=r"force_words: .* one letter or more"):
            words_of(known, [text], "force_words")
    with pytest.raises(BedstoneError, match=r"bad_words: 'küche' can't be spelled .* it reads"):
        banned_words(known, ["küche"], "bad_words")
    way = GenerationSettings(num_beams=2, force_words="sea", bad_words="ocean").resolve(
        {"force_words_ids": [[7]], "bad_words_ids": [[9]]}, tokenizer=known
    )
    assert way.required == (((7,),), sea)
    assert way.joining == known.joining_ids
    glossary = Glossary([("Meer", "sea"), ("das Meer", "ocean")])
    found = glossary_words(glossary, known, ["Das Meer, Meer", "nichts", "MEER"])
    assert found == [((*either[:1], (START, *known.encode("ocean"), CLOSED)), sea), (), (sea,)]
    with pytest.raises(BedstoneError, match="glossary: 'Küche': 'küche' can't be spelled"):
        glossary_words(Glossary([("Küche", "küche")]), known, ["Küche"])
    assert way.constraints.bad_words[:2] == ((9,), (2,))


def test_the_beginning_of_a_text_needs_no_space():
    ours = network("llama")
    plain = beam_search(ours, [[9]], BeamSearch(4, max_tokens=8), eos=())[0][0].ids
    word = ((20, 21), (START, plain[0]))
    search = BeamSearch(4, max_tokens=8, required=(word,))
    found = beam_search(ours, [[9]], search, eos=())[0]
    assert found[0].ids[0] == plain[0]
    first = BeamSearch(3, max_tokens=5, required=(word,), constraints=Constraints(forced_first=2))
    forced = beam_search(ours, [[9]], first, eos=())[0][0].ids
    assert forced[:2] == (2, plain[0]) or holds(forced, (((20, 21),),))
    short = replace(first, max_tokens=2)  # one token is forced, and only the other form fits
    assert beam_search(ours, [[9]], short, eos=())[0][0].ids == (2, plain[0])
    later = beam_search(ours, [[9, 9]], search, eos=())[0][0].ids
    assert holds(later, (((20, 21),),))


def test_a_word_by_its_text_doesnt_go_on():
    joining = frozenset({7, 8, 9})
    known = RequiredWords((((3, CLOSED),), ((4, 7, CLOSED), (4, 7, 8, CLOSED))), joining)
    assert known.needed(known.start) == 3
    for ids, needed in (
        ([3], 2), ([3, 8], 3), ([3, 5], 2), ([3, 3], 2), ([4, 7], 1), ([4, 7, 8], 1),
        ([4, 7, 8, 9], 3), ([4, 7, 9], 3), ([4, 7, 3], 0), ([4, 7, 3, 7], 1), ([4, 7, 3, 5, 7], 0),
    ):  # fmt: skip
        assert known.needed(known.after(known.start, ids)) == needed, ids
    ours = network("llama")
    joining = frozenset(range(10, 40))
    search = BeamSearch(4, max_tokens=9, returned=4, required=(((8, CLOSED),),), joining=joining)
    for found in beam_search(ours, PROMPTS, search, eos=()):
        for one in found:
            places = [at for at, token in enumerate(one.ids) if token == 8]
            assert any(at == 8 or one.ids[at + 1] not in joining for at in places)
