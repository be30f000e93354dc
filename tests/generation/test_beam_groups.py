"""Groups of beams, alternatives at a place, prefixes: beside plain forms of the same."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_beam import OFTEN, PROMPTS, SOME_END, network

from bedstone.errors import BedstoneError
from bedstone.generation.beam import beam_search, likeliest
from bedstone.generation.settings import BeamSearch, GenerationSettings
from bedstone.models.gpt.network import GPTConfig, build
from networks import randomise


def after(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1].log_softmax(-1)


def diverse(model, prompt, search: BeamSearch, eos) -> list[tuple[list[int], float]]:
    """Vijayakumar et al., 2016, section 4, with the ends of version 4 of transformers.

    Every group is a beam search of its own; a token's log-probability is less by the penalty for
    each beam of an earlier group that goes on by it in the same step, and stays so in its sum.
    """
    each = search.beams // search.groups
    groups = [[((), 0.0)] for _ in range(search.groups)]
    ended: list[list] = [[] for _ in range(search.groups)]
    done = [False] * search.groups
    for length in range(1, search.max_tokens + 1):
        counts: Counter = Counter()
        for number, beams in enumerate(groups):
            if done[number]:
                continue
            found = []
            for ids, total in beams:
                scores = after(model, [*prompt, *ids])
                for token, count in counts.items():
                    scores[token] -= search.diversity * count
                found += [(total + score, (*ids, t)) for t, score in enumerate(scores.tolist())]
            found = sorted(found, key=lambda one: -one[0])[: max(2, 1 + len(eos)) * each]
            going = [(ids, total) for total, ids in found if ids[-1] not in eos][:each]
            for total, ids in found[:each]:
                if ids[-1] in eos:
                    ended[number].append((ids, search.scored(total, length)))
            if length == search.max_tokens:
                ended[number] += [(ids, search.scored(total, length)) for ids, total in going]
            ended[number] = sorted(ended[number], key=lambda one: -one[1])[:each]
            groups[number] = going
            counts.update(ids[-1] for ids, _ in going)
            if len(ended[number]) == each:
                highest = search.scored(found[0][0], length)
                done[number] = search.early or ended[number][-1][1] >= highest
    best = sorted((one for own in ended for one in own), key=lambda one: -one[1])
    return best[: search.returned]


CASES = {
    "two": (BeamSearch(4, groups=2, diversity=1.5, max_tokens=8, returned=4), SOME_END),
    "of one beam": (BeamSearch(3, groups=3, diversity=0.7, max_tokens=9, returned=3), OFTEN),
    "ends often": (BeamSearch(6, groups=3, diversity=2.5, max_tokens=9, returned=6), OFTEN),
    "early": (
        BeamSearch(6, 2.0, True, groups=2, diversity=0.5, max_tokens=9, returned=6),
        OFTEN,
    ),
    "no end": (BeamSearch(4, groups=2, diversity=0.4, max_tokens=6, returned=3), ()),
    "no penalty": (BeamSearch(4, groups=2, max_tokens=8, returned=4), SOME_END),
}


@pytest.mark.parametrize("case", CASES)
def test_groups_give_what_the_plain_algorithm_gives(case):
    ours, (search, eos) = network("llama"), CASES[case]
    together = beam_search(ours, PROMPTS, search, eos=eos)
    for prompt, found in zip(PROMPTS, together, strict=True):
        want = diverse(ours, prompt, search, eos)
        assert [one.ids for one in found] == [ids for ids, _ in want]
        assert [one.score for one in found] == pytest.approx([score for _, score in want], abs=1e-4)


def test_a_penalty_makes_groups_differ_and_none_leaves_the_best_score():
    ours = network("gpt2")
    plain = beam_search(ours, PROMPTS, BeamSearch(2, 1.0, True, max_tokens=10), eos=SOME_END)
    same = BeamSearch(6, 1.0, True, max_tokens=10, groups=3, returned=6)
    for one, many in zip(plain, beam_search(ours, PROMPTS, same, eos=SOME_END), strict=True):
        assert many[0].ids == one[0].ids
        assert many[0].score == pytest.approx(one[0].score, abs=1e-5)
        assert len({each.ids for each in many}) == 2  # three times the same two
    apart = replace(same, diversity=2.0)
    for many in beam_search(ours, PROMPTS, apart, eos=SOME_END):
        assert len({each.ids[0] for each in many}) > 1
        assert len({each.ids for each in many}) > 3


def test_groups_that_are_done_leave_and_a_batch_equals_its_prompts(monkeypatch):
    ours = network("llama")
    search = BeamSearch(4, 1.0, True, groups=2, diversity=1.0, max_tokens=14, returned=4)
    together = beam_search(ours, PROMPTS, search, eos=OFTEN)
    rows = []
    states = ours.states
    monkeypatch.setattr(
        ours, "states", lambda ids, **more: rows.append(len(ids)) or states(ids, **more)
    )
    for prompt, found in zip(PROMPTS, together, strict=True):
        alone = beam_search(ours, [prompt], search, eos=OFTEN)[0]
        assert [one.ids for one in alone] == [one.ids for one in found]
    assert {1, 2, 4} == set(rows)  # the prompt; one group; both


@pytest.mark.parametrize("beams", [1, 3])
def test_alternatives_continue_each_of_the_likeliest_tokens_by_its_best(beams):
    ours = network("llama")
    search = BeamSearch(beams, max_tokens=8, returned=5, alternatives=True)
    for prompt, found in zip(PROMPTS, beam_search(ours, PROMPTS, search, eos=OFTEN), strict=True):
        scores = after(ours, prompt)
        best = scores.topk(5).indices.tolist()
        assert [one.ids[0] for one in found] == best
        for token, one in zip(best, found, strict=True):
            if token in OFTEN:
                assert one.ids == (token,)
                continue
            rest = replace(search, alternatives=False, returned=1, max_tokens=7, length_penalty=0)
            own = beam_search(ours, [[*prompt, token]], rest, eos=OFTEN)[0][0]
            total = own.log_probability + scores[token].item()
            if search.beams == 1:
                assert one.ids[1:] == own.ids
                assert one.log_probability == pytest.approx(total, abs=1e-4)
            assert one.score >= total / (1 + len(own.ids)) - 1e-4


def test_alternatives_follow_a_prefix_and_may_be_more_than_beams():
    ours = network("gpt2")
    search = BeamSearch(1, max_tokens=5, returned=6, alternatives=True)
    found = beam_search(ours, PROMPTS[:2], search, eos=(), prefixes=[[4, 4], [8]])
    for prompt, prefix, own in zip(PROMPTS, ([4, 4], [8]), found, strict=False):
        likely = after(ours, [*prompt, *prefix]).topk(6).indices.tolist()
        size = len(prefix)
        assert [list(one.ids[: size + 1]) for one in own] == [[*prefix, each] for each in likely]
        assert {len(one.ids) for one in own} == {size + 5}


def test_prefixes_are_read_and_their_scores_are_not_counted():
    ours = network("llama")
    search, prefixes = BeamSearch(3, max_tokens=6, returned=3), [[7], [], [1, 2, 3], [9, 9]]
    found = beam_search(ours, PROMPTS, search, eos=SOME_END, prefixes=prefixes)
    whole = [[*ids, *more] for ids, more in zip(PROMPTS, prefixes, strict=True)]
    want = beam_search(ours, whole, search, eos=SOME_END)
    for prefix, own, plain in zip(prefixes, found, want, strict=True):
        assert [one.ids for one in own] == [(*prefix, *one.ids) for one in plain]
        assert [one.score for one in own] == [one.score for one in plain]
    with pytest.raises(BedstoneError, match=r"prompts\[0\]: has 40 tokens"):
        beam_search(ours, [[1]], search, eos=(), prefixes=[[2] * 39])


@pytest.mark.parametrize("width", [47, 1024, 1500, 4097])
@pytest.mark.parametrize("count", [1, 6, 40])
def test_the_largest_are_found_whatever_the_width(width, count):
    scores = torch.randn(6, width, generator=torch.Generator().manual_seed(width))
    scores[1, :-3] = -torch.inf
    scores[2] = -torch.inf
    totals = torch.tensor([[0.5, -1.0], [-2.0, 0.0], [3.0, -1e9]])
    values, beams, tokens = likeliest(scores, totals, count)
    whole = scores.view(3, 2, width) + totals[..., None]
    torch.testing.assert_close(values, whole.flatten(1).topk(count).values)
    found = whole[torch.arange(3)[:, None], beams, tokens]
    torch.testing.assert_close(values, found)
    for row in range(3):
        real = values[row] > -1e8
        places = [*zip(beams[row, real].tolist(), tokens[row, real].tolist(), strict=True)]
        assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": 3}, "num_beam_groups: 3 groups can't share 4 beams"),
        ({"groups": 0}, "num_beam_groups: 0"),
        ({"diversity": 1.0}, r"diversity_penalty: 1\.0 .* num_beam_groups"),
        ({"groups": 2, "diversity": -1.0}, r"diversity_penalty: -1\.0"),
        ({"groups": 2, "alternatives": True}, "return_alternatives"),
        ({"alternatives": 1}, "return_alternatives: 1"),
        ({"groups": 2, "required": [[3]]}, "num_beam_groups: is 2, and words"),
        ({"beams": 1, "required": [[3]]}, "num_beams: is 1, and words"),
    ],
)
def test_refuses_what_doesnt_go_together(changes, words):
    with pytest.raises(BedstoneError, match=words):
        BeamSearch(**changes)


def test_settings_of_the_model_and_given_ones():
    published = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}
    assert GenerationSettings().resolve(published) == BeamSearch(
        4, groups=2, diversity=0.5, max_tokens=256
    )
    assert GenerationSettings(num_beam_groups=4).resolve(published).groups == 4
    assert GenerationSettings(num_beams=1).resolve(published).returned == 1
    with pytest.raises(BedstoneError, match=r"diversity_penalty: 0\.5 .* num_beams of 2"):
        GenerationSettings(diversity_penalty=0.5).resolve({})


def test_a_large_vocabulary_gives_what_all_of_it_sorted_gives(monkeypatch):
    shape = {"vocab_size": 1501, "width": 32, "layers": 2, "heads": 4, "context": 40}
    ours = build(GPTConfig(layout="gpt2", **shape)).eval()
    randomise(ours, 5)
    with torch.no_grad():
        ours.head.weight.mul_(4)
    ends = range(0, 1501, 40)
    for search in (
        BeamSearch(4, max_tokens=12, returned=4, early_stopping=True),
        BeamSearch(4, max_tokens=12, returned=4, groups=2, diversity=1.0),
        BeamSearch(4, max_tokens=12, returned=4, required=[[1500], [1, 2]], no_repeat_ngram=2),
    ):
        for eos in ((7,), ends):
            with monkeypatch.context() as patch:
                patch.setattr("bedstone.generation.beam.COLUMNS", 10**6)
                want = beam_search(ours, PROMPTS, search, eos=eos)
            found = beam_search(ours, PROMPTS, search, eos=eos)
            assert [[one.ids for one in own] for own in found] == [
                [one.ids for one in own] for own in want
            ]
            alone = [beam_search(ours, [prompt], search, eos=eos)[0] for prompt in PROMPTS]
            assert [[one.ids for one in own] for own in alone] == [
                [one.ids for one in own] for own in want
            ]
