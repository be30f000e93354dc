"""Places to work on rows: what raises or kills is set aside, all else is done once, in order."""

import os
import random
import sys
from types import SimpleNamespace

import pytest

from bedstone import measured
from bedstone.bulk import on_ray
from bedstone.bulk.on_ray import DEATHS, OnRay
from bedstone.bulk.places import FIRST, TRIES, Aside, Here, Job, Spread, Watch, in_order
from bedstone.errors import BedstoneError

JOB = Job("bulk_work:open_doubling")


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class FakeRay:
    """Ray without a cluster: actors are objects, and die as `dies(rows)` says."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, dies=lambda rows: False, refuses="", seed=0):
        self.dies, self.refuses, self.dice = dies, refuses, random.Random(seed)
        self.made, self.killed = [], []
        self.opened = []

    def remote(self, kind):
        fake = self

        class Actor:
            def __init__(self):
                fake.made.append(self)
                self.open = SimpleNamespace(remote=self._open)
                self.do = SimpleNamespace(remote=self._do)

            def _open(self, job, folder, threads, choices):
                fake.opened.append(choices)
                self.work = job.open()
                return Reference(lambda: fake.refuses)

            def _do(self, rows):
                if fake.dies(rows):
                    return Reference(error=RayError("The actor died"))
                known, warnings = {"q": {"a": 1.0}}, ["a text was cut", f"of {len(rows)}"]
                return Reference(lambda: (on_ray.attempt(self.work, rows), known, warnings))

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=Actor))

    def wait(self, references, num_returns, timeout):
        one = self.dice.choice(references)
        return [one], [each for each in references if each is not one]

    def get(self, reference):
        if reference.error is not None:
            raise reference.error
        return reference.value()

    def kill(self, actor):
        self.killed.append(actor)


class Reference:
    def __init__(self, value=None, error=None):
        self.value, self.error = value, error


def on_fake(fake, count=3):
    place = OnRay.__new__(OnRay)
    place._ray, place._threads, place.count = fake, 1, count
    place._uses, place._seats, place._folder = {}, {}, None
    place.choices, place._deaths, place._said = None, 0, set()
    return place


def blocks(rows, size=8):
    return [(at // size, rows[at : at + size]) for at in range(0, len(rows), size)]


@pytest.mark.parametrize("place", ["here", "fake"])
def test_every_row_has_one_result_in_order(place):
    rows = list(range(100))
    at = Here() if place == "here" else on_fake(FakeRay())
    found = [each for part in in_order(at.run(JOB, blocks(rows))) for each in part]
    assert found == [str(2 * row) for row in rows]


def test_a_row_that_raises_is_set_aside_with_its_reason():
    rows = [1, 2, "raise", 4]
    (found,) = (results for _, results in Here().run(JOB, [(0, rows)]))
    assert found == ["2", "4", Aside("ValueError: no number"), "8"]


@pytest.mark.parametrize("seed", range(5))
def test_a_row_that_kills_is_found_and_the_rest_is_done(seed):
    rows = list(range(60))
    rows[7] = rows[41] = "die"
    fake = FakeRay(dies=lambda given: "die" in given, seed=seed)
    found = [each for part in in_order(on_fake(fake).run(JOB, blocks(rows))) for each in part]
    assert [n for n, each in enumerate(found) if isinstance(each, Aside)] == [7, 41]
    assert found[7].reason == f"ended its process {TRIES} times"
    assert [each for each in found if isinstance(each, str)] == [
        str(2 * row) for row in rows if row != "die"
    ]
    assert len(fake.made) <= 3 + 4 * TRIES  # each death is one actor's: whole blocks, then alone


@pytest.mark.parametrize("seed", range(5))
def test_random_deaths_lose_nothing(seed):
    dice = random.Random(seed)
    fake = FakeRay(dies=lambda rows: dice.random() < 0.1, seed=seed)
    found = [each for p in in_order(on_fake(fake).run(JOB, blocks(list(range(200))))) for each in p]
    assert found == [str(2 * row) for row in range(200)]


def test_actors_that_always_die_end_the_work():
    fake = FakeRay(dies=lambda rows: True)
    with pytest.raises(BedstoneError, match=f"{DEATHS} actors died one after another"):
        list(on_fake(fake).run(JOB, blocks(list(range(500)))))


def test_what_actors_warn_of_is_said_once(caplog):
    list(on_fake(FakeRay()).run(JOB, blocks(list(range(20)))))
    assert caplog.messages == ["a text was cut", "of 8", "of 4"]


def test_work_that_cannot_be_opened_is_refused():
    with pytest.raises(BedstoneError, match="no such model"):
        list(on_fake(FakeRay(refuses="no such model")).run(JOB, blocks([1, 2])))


def test_all_actors_choose_as_the_first():
    fake = FakeRay()
    place = on_fake(fake)
    list(place.run(JOB, blocks(list(range(100)))))
    assert fake.opened[0] == {} and set(map(str, fake.opened[1:])) == {"{'q': {'a': 1.0}}"}
    assert place.choices == {"q": {"a": 1.0}} and len(fake.opened) == 3


def test_a_process_chooses_as_another_did(monkeypatch):
    monkeypatch.setattr(measured, "_adopted", {})
    ways = {"one": lambda: None, "two": lambda: sum(range(20_000))}
    assert measured.fastest("a question of this test", ways).best == "one"
    measured.adopt({"a question of this test": {"one": 2.0, "two": 1.0}})
    assert measured.fastest("a question of this test", ways).best == "two"
    assert measured.known()["a question of this test"] == {"one": 2.0, "two": 1.0}
    measured.adopt({"another": {"one": 1.0}})  # of other ways: measured anew
    assert set(measured.fastest("another", ways).seconds) == {"one", "two"}


def test_work_of_which_nothing_comes_is_stopped():
    watch = Watch()
    watch.see([Aside("first")] * (FIRST - 1))
    with pytest.raises(BedstoneError, match=f"each of the first {FIRST} rows had a fault: first"):
        watch.see([Aside("second")])
    watch = Watch()
    watch.see(["1"])
    watch.see([Aside("x")] * FIRST)
    watch.check()


def test_values_come_in_order_as_soon_as_they_can():
    assert list(in_order([(1, "b"), (0, "a"), (2, "c")])) == ["a", "b", "c"]
    assert list(in_order([(9, "i"), (4, "d")], [4, 9])) == ["d", "i"]
    assert next(in_order([(0, "a"), (5, "f")])) == "a"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": "rey"}, "'rey' was given; expected here, ray, or ray:HOST:PORT"),
        ({"on": "ray:"}, "'ray:' was given"),
        ({"on": "here:1"}, "'here:1' was given"),
        ({"on": "ray:somewhere"}, "'ray:somewhere' was given"),
        ({"actors": 2}, "2 was given; it is of --on ray"),
        ({"on": "ray", "actors": 0}, "0 was given; expected 1 or more"),
        ({"shard": "3/2"}, "expected number/shares"),
    ],
)
def test_places_that_are_none(given, message):
    with pytest.raises(BedstoneError, match=message):
        Spread(**given).check()


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(BedstoneError, match=r"pip install 'bedstone\[ray\]'"):
        OnRay("", None, 1)


def test_a_process_that_has_ray_already_starts_no_open_cluster(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setattr(os, "environ", {})
    with pytest.raises(BedstoneError, match="imported Ray before it could be kept to the loopback"):
        OnRay("", None, 1)
