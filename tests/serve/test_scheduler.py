"""Continuous batching: a row's result depends on nothing beside it; what it holds is freed."""

import random
import threading
import time

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate, ready
from bedstone.generation.sampling import Sampling
from bedstone.runtime import pick_precision
from bedstone.serve.scheduler import TASK_TOKENS, Pace, Turn
from bedstone.serve.work import Busy, Call, Leaving
from served import CPU, generation, ids, scheduler, small_decoder

LENGTHS = (1, 3, 17, 64, 65, 130, 200, 31)


@pytest.fixture(scope="module")
def model():
    return small_decoder()


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("engine", "fp32"), ("engine", "bf16"), ("engine", "int8"), ("engine", "int4"),
     ("torch", "fp32")],
)  # fmt: skip
def test_a_row_gives_the_same_bytes_alone_and_among_others(model, backend, precision):
    served = scheduler(model, backend=backend, precision=precision, prefixes=1 << 24)
    prompts = [ids(number, length) for number, length in enumerate(LENGTHS)]
    alone = []
    for number, prompt in enumerate(prompts):
        temperature = 0.0 if number % 3 == 0 else 0.9
        work, found = generation(prompt, seed=number, temperature=temperature, scope=b"alone")
        served.submit(work)
        alone.append(found.wait().steps)
    assert all(len(each) == 12 for each in alone)
    chance = random.Random(0)
    for round_number in range(3):
        order = list(range(len(prompts)))
        chance.shuffle(order)
        several = {}
        for number in order:
            temperature = 0.0 if number % 3 == 0 else 0.9
            # what others have read may be known already: keys and values are the same bits
            work, found = generation(
                prompts[number], seed=number, temperature=temperature, scope=b"others",
            )  # fmt: skip
            several[number] = found
            served.submit(work)
            if chance.random() < 0.4:
                time.sleep(0.004)
        for number, found in several.items():
            assert found.wait().steps == alone[number], (round_number, number)
    served.close(5)


def test_it_generates_what_autoregress_generates(model):
    network = ready(model.network, pick_precision("fp32", CPU))
    prompts = [ids(number, length) for number, length in enumerate(LENGTHS)]
    how = Sampling(max_tokens=12, temperature=0.9, top_k=40, top_p=0.95)
    expected = generate(network, prompts, how, seeds=range(len(prompts)), top=3)
    served = scheduler(model)
    works = [generation(prompt, seed=number) for number, prompt in enumerate(prompts)]
    for work, _ in works:
        served.submit(work)
    for (_, found), other in zip(works, expected, strict=True):
        assert [step[0] for step in found.wait().steps] == other.ids
        near = [step[1] for step in found.steps]
        assert near == pytest.approx(other.log_probabilities, abs=1e-5)
    served.close(5)


def test_prefixes_are_shared_within_a_scope_alone(model):
    served = scheduler(model, prefixes=1 << 24)
    prompt = ids(1, 200)
    works = [generation(prompt, scope=scope) for scope in (b"a", b"a", b"b", b"a")]
    cached = []
    for work, found in works:
        served.submit(work)
        cached.append(found.wait().cached)
    assert cached == [0, 192, 0, 192]
    assert len({tuple(found.steps) for _, found in works}) == 1
    work, found = generation([*prompt[:100], *ids(2, 50)], scope=b"a")
    served.submit(work)
    assert found.wait().cached == 64
    assert served.metrics.prefix_hits == 192 * 2 + 64
    served.close(5)


def test_a_reply_is_known_to_the_next_turn(model):
    served = scheduler(model, prefixes=1 << 24)
    prompt = ids(3, 60)
    work, found = generation(prompt, room=80)
    served.submit(work)
    reply = [step[0] for step in found.wait().steps]
    again, known = generation([*prompt, *reply, 9, 9])
    served.submit(again)
    assert known.wait().cached == 128  # the reply's last token was never read
    served.close(5)


def test_prefixes_take_no_more_than_their_bytes(model):
    served = scheduler(model, prefixes=100_000)
    for number in range(6):
        work, found = generation(ids(number, 200), room=2)
        served.submit(work)
        found.wait()
    assert 0 < served._prefixes.nbytes <= 100_000
    served.close(5)


def test_prompts_are_scored_as_one_pass_scores_them(model):
    served = scheduler(model)
    prompt = ids(5, 150)
    work, found = generation(prompt, room=0, top=2, scores=True)
    served.submit(work)
    scored = found.wait().scored
    with torch.no_grad():
        known = model.network(torch.tensor([prompt]))[0].log_softmax(-1)
    expected = known[:-1].gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    assert scored.own[0] is None
    assert scored.own[1:] == pytest.approx(expected, abs=1e-4)
    assert [len(each) for each in scored.top] == [0, *[2] * 149]
    best = dict(scored.top[1])
    assert max(best.values()) == pytest.approx(float(known[0].max()), abs=1e-4)
    served.close(5)


@pytest.mark.parametrize("backend", ["engine", "torch"])
def test_who_leaves_makes_room_and_changes_nobody(model, backend):
    served = scheduler(model, backend=backend, count=2)
    kept, found = generation(ids(1, 40), room=60, seed=1)
    served.submit(kept)
    expected = found.wait().steps
    chance = random.Random(1)
    kept, found = generation(ids(1, 40), room=60, seed=1)
    served.submit(kept)
    gone = []
    for number in range(30):
        work, other = generation(ids(number, 30), room=400, seed=number)
        served.submit(work)
        if chance.random() < 0.5:
            other.some.wait(1)
        work.cancel()
        served.wake()
        gone.append(other)
    assert found.wait().steps == expected
    last, other = generation(ids(1, 40), room=60, seed=1)
    served.submit(last)
    assert other.wait().steps == expected
    deadline = time.monotonic() + 5
    while not served.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.idle
    assert sorted(served._free) == [0, 1]
    assert served.metrics.kept == 0
    assert served.metrics.successes["abort"] == 30
    served.close(5)


def test_the_queue_is_bounded(model):
    served = scheduler(model, count=1, waiting=3)
    works = [generation(ids(number, 20), room=300) for number in range(4)]
    for work, _ in works:
        served.submit(work)
    with pytest.raises(Busy) as refusal:
        for _ in range(2):
            served.submit(generation(ids(9, 20))[0])
    assert 1 <= refusal.value.seconds <= 120
    assert served.metrics.refused == 1
    for work, _ in works:
        work.cancel()
    served.close(5)
    with pytest.raises(Leaving):
        served.submit(generation(ids(9, 20))[0])


def test_waiting_tokens_are_bounded_too(model):
    served = scheduler(model, count=1, waiting_tokens=300)
    work, found = generation(ids(0, 100), room=300)
    served.submit(work)
    assert found.some.wait(10)
    with pytest.raises(Busy):
        for _ in range(2):
            served.submit(generation(ids(9, 100), room=100)[0])
    work.cancel()
    served.close(0)


def test_constraints_that_leave_no_token_end_their_row_alone(model):
    served = scheduler(model)
    bad, failed = generation(range(model.config.vocab_size))
    object.__setattr__(bad.sampling, "no_repeat_ngram", 1)
    good, found = generation(ids(2, 5))
    served.submit(bad, good)
    assert len(found.wait().steps) == 12
    assert "every token would be a repeat" in str(failed.wait().events[-1])
    served.close(5)


def test_bias_and_penalties_change_the_choice(model):
    served = scheduler(model)
    plain, found = generation(ids(4, 9), temperature=0.0, room=20)
    served.submit(plain)
    tokens = [step[0] for step in found.wait().steps]
    biased, other = generation(ids(4, 9), temperature=0.0, room=3, bias={11: 100.0})
    served.submit(biased)
    assert [step[0] for step in other.wait().steps] == [11, 11, 11]
    rarer, third = generation(ids(4, 9), temperature=0.0, room=20, frequency=2.0, presence=2.0)
    served.submit(rarer)
    rare = [step[0] for step in third.wait().steps]
    assert len(set(rare)) >= len(set(tokens))
    assert rare[0] == tokens[0]
    assert len(set(rare)) > 15
    served.close(5)


def test_closing_lets_what_runs_end(model):
    served = scheduler(model)
    work, found = generation(ids(1, 20), room=50)
    served.submit(work)
    served.close(30)
    assert len(found.wait().steps) == 50
    assert not served.lives


def test_turns_are_taken_in_order():
    turn, seen, start = Turn(), [], threading.Barrier(3)

    def take(number):
        start.wait()
        for _ in range(3):
            with turn:
                seen.append(number)
                time.sleep(0.002)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(seen[:3]) != [seen[0]] * 3  # nobody goes twice while others wait
    assert len(seen) == 9


def test_pace_counts_time_at_work_alone():
    pace = Pace()
    assert pace.seconds(0) == 1
    for _ in range(10):
        pace.spent(0.5)
        pace.finished()
    assert pace.seconds(8) == pytest.approx(4)
    assert pace.seconds(10_000) == 120


def test_a_fault_of_ours_is_an_event_and_the_thread_goes_on(model, monkeypatch):
    served = scheduler(model)
    monkeypatch.setattr(served._rows, "read", lambda given: 1 / 0)
    work, found = generation(ids(1, 20))
    served.submit(work)
    assert isinstance(found.wait().events[-1], ZeroDivisionError)
    monkeypatch.undo()
    work, found = generation(ids(1, 20))
    served.submit(work)
    assert len(found.wait().steps) == 12
    assert not isinstance(found.events[-1], BedstoneError)
    served.close(5)


def test_a_long_call_lets_others_in_between(model):
    order = []

    def runs(task, inputs, options):
        order.append((task, len(inputs)))
        return [each * 2 for each in inputs]

    served = scheduler(model, runs=runs)
    long, short = [], []
    first = Call("long", list(range(10)), {}, long.append, "long", cost=10 * TASK_TOKENS)
    served.submit(first, *(Call("short", [n], {}, short.append, "short") for n in range(3)))
    deadline = time.monotonic() + 10
    while (not long or len(short) < 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert [each.values for each in long] == [[2 * n for n in range(10)]]
    assert [each.values for each in short] == [[0], [2], [4]]
    assert [count for task, count in order if task == "long"] == [1] * 10
    assert order.index(("short", 3)) == 1  # read together, before the rest of the long one
    served.close(5)


def test_a_call_that_was_called_off_stops_between_its_parts(model):
    done = []

    def runs(task, inputs, options):
        done.extend(inputs)
        call.cancel()
        return inputs

    served = scheduler(model, runs=runs)
    call = Call("long", list(range(10)), {}, done.append, "long", cost=10 * TASK_TOKENS)
    served.submit(call)
    deadline = time.monotonic() + 10
    while not served.idle and time.monotonic() < deadline:
        time.sleep(0.005)
    assert done == [0]
    served.close(5)
