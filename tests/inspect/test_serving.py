"""Plans of servers: their memory is the server's own, their speeds those of its scheduler."""

import json

import pytest

from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.inspect.serving import ServePlan, Speed, _speed, plan_serving
from bedstone.serve.models import GIB, Models, ServeSettings
from bedstone.serve.rows import Room
from served import small_decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved decoder with a context of 512 tokens."""
    path = tmp_path_factory.mktemp("serving") / "model"
    small_decoder().save(path)
    return str(path)


def opened(folder, **options):
    """What a server makes of a model: its rows, and bytes by its own count."""
    models = Models({"one": folder}, ServeSettings(**options), "fp32", "cpu")
    try:
        models.open_all()
        served = models.entries["one"].served
        assert served is not None
        return served.scheduler._rows.count, served.nbytes, served.capacity
    finally:
        models.close()


def test_rows_and_memory_are_the_servers(folder):
    for options in ({}, {"max_num_seqs": 3, "max_model_len": 128}, {"kv_memory": 0.001}):
        words = ["precision=fp32", *(f"{name}={value}" for name, value in options.items())]
        plan = plan_serving(folder, words, seconds=0, quiet=True)
        assert (plan.room.count, plan.room.nbytes, plan.room.capacity) == opened(folder, **options)
        assert plan.slots == plan.room.count and not plan.speeds


def test_rows_that_fit_are_what_a_server_opens_in_that_memory(folder):
    free = plan_serving(folder, ["precision=fp32", "prefix_memory=0"], seconds=0, quiet=True).room
    limit = (free.weights + 5.5 * free.row) / 1e9
    plan = plan_serving(
        folder, ["precision=fp32", "prefix_memory=0"], seconds=0, memory_gb=limit, quiet=True
    )
    assert plan.slots == plan.fitting(512) == 5
    assert plan.fitting(256) == 11 and plan.fitting(128) == 22
    count, nbytes, _ = opened(folder, **plan.options())
    assert count == 5 and nbytes <= limit * 1e9
    one_more = {**plan.options(), "max_num_seqs": 6, "kv_memory": 6 * free.row / GIB + 1e-6}
    with pytest.raises(BedstoneError, match="--memory lets all models have"):
        opened(folder, **one_more)
    assert "--max-num-seqs 5" in plan.command and "--prefix-memory 0" in plan.command


def test_a_server_may_be_given_no_more_rows_than_it_takes():
    room = Room(weights=10**6, prefixes=0, row=1000, capacity=512, count=16)
    plan = ServePlan("model", "fp32", {}, room, 0, limit=10**9)
    assert plan.slots == 256  # as many as max_num_seqs may say
    ServeSettings(**plan.options())
    assert ServePlan("model", "fp32", {}, room, 0, limit=10**6).slots == 0
    assert room.within(10**6 + 999) == 0 and room.within(10**6 + 1000) == 1


def test_an_interval_is_of_the_mean_time():
    one = _speed(2, [10.0, 12.0, 8.0, 10.0], 40, 128)
    assert one.low < one.rate < one.high
    assert one.rate == pytest.approx(4 / (1 / 10 + 1 / 12 + 1 / 8 + 1 / 10))
    steady = _speed(0, [100.0] * 3, 3, 64)
    assert (steady.low, steady.rate, steady.high) == pytest.approx((100,) * 3)
    few = _speed(1, [5.0, 10.0], 2, 1)
    assert few.low == few.rate == few.high == pytest.approx(20 / 3)
    assert "5 a row" in Speed(2, 10, 9, 11, 3, 4).text()


def test_speeds_are_timed_on_the_scheduler(folder):
    words = ["precision=fp32", "max_num_seqs=9"]
    plan = plan_serving(folder, words, seconds=2.0, price_hour=1.0, quiet=True)
    assert [each.rows for each in plan.speeds] == [0, 1, 8, 9] and not plan.missing
    reading, one, eight, _ = plan.speeds
    assert 0 < reading.low <= reading.rate <= reading.high and reading.before == 256
    assert one.timed > 3 and eight.rate > one.rate  # a pass over eight is no eight passes
    best = max(each.rate for each in plan.speeds if each.rows)
    assert plan.record()["cost_a_million_tokens"] == pytest.approx(1e6 / best / 3600)


def test_too_little_time_is_said(folder):
    plan = plan_serving(folder, ["precision=fp32"], seconds=1e-6, quiet=True)
    assert plan.missing and all("raise --seconds" in each for each in plan.missing)


def test_the_command(folder, capsys):
    words = ["plan", folder, "--serve", "precision=fp32", "--seconds", "0"]
    assert main([*words, "--json", "--memory-gb", "1", "prefix_memory=0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["slots"]["512"] <= found["slots"]["64"] and found["options"]["memory"] < 1
    assert main([*words, "--memory-gb", "0.5", "prefix_memory=0.5"]) == 1
    assert "doesn't fit" in capsys.readouterr().out
    for more, said in (
        (["max_model=3"], "perhaps 'max_model_len' is meant"),
        (["--strict"], "--strict: is of a run"),
        (["kv_memory=0.00001"], "hold no row of 512 tokens"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["plan", "python-bert", "--serve"]) == 2
    assert "writes no text a token at a time" in capsys.readouterr().err
