"""Rollouts as a stream: what is learnt of answers, denominators, states, when a run stops."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bedstone.checkpoints.state import load_state, save_state
from bedstone.data.dataset import Dataset
from bedstone.data.records import Faults, Reading
from bedstone.data.text.reinforcement import Prompts
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.objectives.policy import Critic, group_advantages, kl_terms
from bedstone.runtime import Precision
from bedstone.train.rollout import Rollouts, RolloutSettings, Scored
from small_models import SENTENCES, decoder

FP32 = Precision(torch.device("cpu"), torch.float32)
SETTINGS = RolloutSettings(prompts=3, group=4, max_tokens=6, batch_size=5, seed=1)


def prompts(count: int = 7) -> Prompts:
    words = " ".join(SENTENCES).split()
    rows = [{"prompt": f"{words[n]} {words[n + 1]}", "number": n} for n in range(count)]
    model = decoder(HeadConfig(), "llama")
    assert model.tokenizer is not None
    return Prompts(Dataset(rows), model.tokenizer, room=50)


def even(rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Scored:
    """The share of even tokens, by which answers differ."""
    totals = np.array([np.mean([number % 2 == 0 for number in own]) for own in ids])
    return Scored([""] * len(ids), ["even"], totals[:, None], totals)


def rollouts(score: Any = even, network: Any = None, count: int = 7, **changes: Any) -> Rollouts:
    network = network or decoder(HeadConfig(), "llama").network
    reference = decoder(HeadConfig(), "llama").network
    settings = replace(SETTINGS, **changes)
    how: dict[str, Any] = {"ends": [0], "precision": FP32, "reference": reference}
    return Rollouts(network, prompts(count), score, settings, **how)


def one_step(stream: Rollouts) -> list[Any]:
    found = [next(stream)]
    while not stream.ends_epoch:
        found.append(next(stream))
    return found


def test_a_step_has_all_answers_with_spread() -> None:
    stream = rollouts()
    batches = one_step(stream)
    rollout = stream.last
    assert rollout is not None
    live = rollout.live.nonzero()[:, 0]
    assert sum(len(batch.rows.lengths) for batch in batches) == len(live) > 0
    assert max(len(batch.rows.lengths) for batch in batches) <= 5
    tokens = int(rollout.sampled.lengths.sum())
    assert sum(batch.target_count for batch in batches) == pytest.approx(tokens)
    apart = group_advantages(rollout.rewards.view(3, 4)).flatten()
    owner = 0
    for batch in batches:
        for number in range(len(batch.rows.lengths)):
            mine = batch.owners == number
            answer = live[owner]
            assert batch.targets[mine].tolist() == rollout.sampled.answers()[answer]
            assert batch.advantages[mine].tolist() == pytest.approx(
                [float(apart[answer])] * int(mine.sum())
            )
            start, size = batch.rows.starts[number], int(mine.sum())
            whole = batch.rows.ids[0, start : batch.rows.starts[number + 1]].tolist()
            assert whole[-size:] == batch.targets[mine].tolist()
            assert whole[:-size] == stream.prompts.ids[int(rollout.rows[answer])]
            assert (batch.read[mine] + 1).tolist() == list(range(start + len(whole) - size,
                                                                 start + len(whole)))  # fmt: skip
            owner += 1
        assert batch.old is None and batch.reference is None
        assert batch.reward == pytest.approx(float(rollout.rewards.mean()))
    assert stream.figures()["reward"] == pytest.approx(batches[0].reward)


def test_groups_of_equal_rewards_are_counted_and_not_learnt() -> None:
    def first(rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Scored:
        found = even(rows, ids).totals * (np.array(rows) == rows[0])
        return Scored([""] * len(ids), ["first"], found[:, None], found)

    stream = rollouts(first, kl=0.5)
    batches = one_step(stream)
    assert stream.last is not None
    assert int(stream.last.live.sum()) == 4 == sum(len(b.rows.lengths) for b in batches)
    whole = int(stream.last.sampled.lengths.sum())
    assert sum(batch.target_count for batch in batches) == pytest.approx(whole)
    assert stream.figures()["no_spread"] == pytest.approx(2 / 3)


def chosen(*live: int) -> Any:
    """A reward by which only answers to prompts of those rows differ."""

    def score(rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Scored:
        totals = np.where(np.isin(rows, live), np.arange(len(rows)) % 4, 1.0)
        return Scored([""] * len(ids), ["chosen"], totals[:, None], totals)

    return score


def test_groups_without_spread_are_replaced_by_answers_to_further_prompts() -> None:
    drawn = rollouts(count=9)._stream
    order = [int(row) for _ in range(3) for row in next(drawn)[0]]
    plain = rollouts(chosen(order[1], order[5]), count=9)
    one_step(plain)
    stream = rollouts(chosen(order[1], order[5]), count=9, resample=3)
    batches = one_step(stream)
    rollout = stream.last
    assert rollout is not None and plain.last is not None
    # The first round has numbers 3 and 4 of the order, the second 5 and 6, the third 7.
    assert rollout.rows[::4].tolist() == [order[5], order[1], order[2]]
    assert rollout.live.view(3, 4).all(1).tolist() == [True, True, False]
    live = [owner for batch in batches for owner in batch.places]
    assert {stream.prompts.rows.where(order[1]), stream.prompts.rows.where(order[5])} == set(live)
    kept = plain.last.sampled.pick(torch.arange(4, 8))
    assert torch.equal(rollout.sampled.pick(torch.arange(4, 8)).ids, kept.ids)
    for number in range(4):  # tokens and rewards stay with their prompt
        laid = batches[0].targets[batches[0].owners == number].tolist()
        assert laid == rollout.sampled.answers()[number]
    figures = stream.figures()
    assert figures["resampled"] == pytest.approx((2 + 2 + 1) / 3)
    assert figures["no_spread"] == pytest.approx(6 / 8)
    assert figures["reward"] == pytest.approx((2 * 1.5 + 6 * 1.0) / 8)  # of all that were sampled
    assert stream.monitor.learnt == pytest.approx([1.0, 1.5, 1.0, 1.0, 1.0, 1.5, 1.0, 1.0])


def test_where_all_groups_have_spread_nothing_is_sampled_again() -> None:
    plain, stream = rollouts(), rollouts(resample=5)
    for _ in range(3):
        one, two = next(plain), next(stream)
        assert torch.equal(one.targets, two.targets)
        assert torch.equal(one.advantages, two.advantages)
    assert stream.figures()["resampled"] == 0.0 and "resampled" not in plain.figures()


def test_rounds_are_bounded_and_a_rollout_without_spread_is_not_learnt() -> None:
    calls = []

    def same(rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Scored:
        calls.append(len(rows))
        return Scored([""] * len(ids), ["same"], np.ones((len(ids), 1)), np.ones(len(ids)))

    with pytest.raises(BedstoneError, match="in 20 rollouts in a row"):
        next(rollouts(same, resample=2))
    assert calls == [12] * 60


def test_updates_and_minibatches() -> None:
    stream = rollouts(updates=2, minibatches=2, normalise="sequence")
    steps = [one_step(stream) for _ in range(4)]
    assert stream.last is not None
    counts = [sum(len(batch.rows.lengths) for batch in step) for step in steps]
    live = int(stream.last.live.sum())
    assert counts[0] + counts[1] == counts[2] + counts[3] == live
    total = sum(batch.target_count for step in steps[:2] for batch in step)
    assert total == pytest.approx(12)  # answers, those that aren't learnt too
    for step in steps:
        for batch in step:
            assert batch.old is not None
    stream2 = rollouts(updates=2, minibatches=2, normalise="sequence")
    assert torch.equal(one_step(stream2)[0].targets, steps[0][0].targets)


def test_the_divergence_is_part_of_the_loss_or_of_the_reward() -> None:
    stream = rollouts(kl=0.5)
    for batch in one_step(stream):
        assert batch.reference is not None
    inside = rollouts(kl=0.5, kl_in="reward", estimator="k2", baseline="others")
    with torch.no_grad():
        for weight in inside.reference.parameters():
            weight.mul_(1.1)
    (batch, *_) = one_step(inside)
    rollout = inside.last
    assert batch.reference is None and rollout is not None
    assert rollout.old is not None and rollout.reference is not None
    penalty = 0.5 * kl_terms(rollout.old, rollout.reference, "k2").sum(1)
    own = (rollout.rewards - penalty).view(3, 4)
    expected = (own - (own.sum(1, keepdim=True) - own) / 3).flatten() * rollout.live
    assert rollout.advantages[:, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert inside.divergence() == pytest.approx(
        float(kl_terms(rollout.old, rollout.reference, "k3")[rollout.sampled.real()].mean()),
        abs=1e-5,
    )


def test_a_critic_s_values() -> None:
    network = decoder(HeadConfig(), "llama").network
    network.critic = Critic(32)
    torch.nn.init.normal_(network.critic.out.weight)
    stream = rollouts(network=network, baseline="critic", kl=0.1, kl_in="reward", group=1,
                      prompts=6, updates=2)  # fmt: skip
    (batch, *_) = one_step(stream)
    rollout = stream.last
    assert rollout is not None and rollout.live.all() and batch.values is not None
    real = rollout.sampled.real()
    assert rollout.values is not None and rollout.returns is not None
    assert (rollout.values[real] != 0).all() and not rollout.values[~real].any()
    assert float(rollout.advantages[real].mean().abs()) < 1e-5
    with torch.no_grad():
        states = batch.states(network.eval())
    torch.testing.assert_close(network.critic(states), batch.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("resample", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_states_go_on_exactly(taken: int, resample: int, tmp_path: Any) -> None:
    how: dict[str, Any] = {"updates": 2, "minibatches": 2, "kl": 0.1, "resample": resample}
    how["score"] = chosen(0, 2, 4) if resample else even
    stream = rollouts(**how)
    for _ in range(taken):
        next(stream)
    save_state(tmp_path / "state", stream.state_dict())
    other = rollouts(**how)
    other.load_state_dict(load_state(tmp_path / "state"))
    for _ in range(12):
        one, two = next(stream), next(other)
        assert stream.ends_epoch == other.ends_epoch and one.number == two.number
        for name in ("targets", "advantages", "old", "reference"):
            assert torch.equal(getattr(one, name), getattr(two, name))
        assert one.target_count == two.target_count
    strange = rollouts(group=3)
    with pytest.raises(BedstoneError, match="group=4, and now group is 3"):
        strange.load_state_dict(stream.state_dict())


def test_a_rollout_is_the_same_beside_others() -> None:
    one, two = rollouts(batch_size=2), rollouts(batch_size=50)
    one_step(one), one_step(two)
    assert one.last is not None and two.last is not None
    assert torch.equal(one.last.sampled.ids, two.last.sampled.ids)


def test_answers_that_were_cut() -> None:
    never: dict[str, Any] = {"max_tokens": 2}
    stream = rollouts(**never, skip_cut=True)
    stream.ends = (10**6,)
    with pytest.raises(BedstoneError, match="all answers of 20 rollouts in a row were cut at 2"):
        next(stream)
    stream = rollouts(skip_cut=True, group=8)
    stream.ends = tuple(range(0, 300, 12))
    one_step(stream)
    assert stream.last is not None
    cut = ~stream.last.sampled.ended
    assert cut.any() and not cut.all()
    assert not stream.last.live[cut].any() and not stream.last.advantages[cut].any()
    assert 0 < stream.figures()["truncated"] < 1


def test_rewards_that_never_differ_stop_a_run() -> None:
    def same(rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Scored:
        return Scored([""] * len(ids), ["same"], np.ones((len(ids), 1)), np.ones(len(ids)))

    with pytest.raises(BedstoneError, match=r"in 20 rollouts in a row, .*equal rewards \(mean 1\)"):
        next(rollouts(same))


def test_rows_are_named_and_scored_by_their_columns() -> None:
    made = prompts()
    assert made.columns == ["number"] and made.values([2, 0]) == {"number": [2, 0]}
    ids = made.tokenizer.encode(" flew from")
    assert made.written(0, [*ids, 0]) == made.tokenizer.continuation(made.ids[0], [*ids, 0])
    faults = Faults("rows", 0.1, 21)
    rows = Dataset([{"prompt": "a " * 90}, *[{"prompt": "a b"}] * 20], reading=Reading(faults))
    few = Prompts(rows, made.tokenizer, room=20)
    assert len(few) == 20 and "1" in few.describe()
    with pytest.raises(BedstoneError, match="has no column for the prompt"):
        Prompts(Dataset([{"text": "a"}]), made.tokenizer, room=9)
    with pytest.raises(BedstoneError, match=r"row 1: .*tokens; 2 fit beside the longest answer"):
        Prompts(Dataset([{"prompt": "Zoë Müller flew"}] * 3), made.tokenizer, room=2)
