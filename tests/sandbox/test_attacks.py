"""Hostile programs: none has an effect outside the sandbox, and none passes its tests."""

import pytest

import attacks
from bedstone.errors import BedstoneError
from bedstone.sandbox.run import Sandbox, working_way

try:
    working_way()
except BedstoneError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_one_of_each_family_is_kept_in():
    with Sandbox(attacks.LIMITS) as sandbox:
        count, wrong = attacks.campaign(sandbox, quick=True)
    assert wrong == {}
    assert count == len(attacks.FAMILIES) - len(attacks.SLOW) >= 38


@pytest.mark.slow
def test_all_are_kept_in():
    with Sandbox(attacks.LIMITS) as sandbox:
        count, wrong = attacks.campaign(sandbox)
    assert wrong == {}
    assert count >= 200


def test_an_effect_would_be_noticed():
    """The judge of attacks, on programs that do leave something behind."""
    with attacks.world() as made:
        before = made.state()
        (made.folder / made.mark).write_text("x")
        made.canary.chmod(0o777)
        after = made.state()
        assert {key for key in before if after[key] != before[key]} == {"files", "rights"} | (
            {"marks"} if before["marks"] != after["marks"] else set()
        )
        made.victim.kill()
        made.victim.wait()
        assert made.state()["victim"] is not None
        with attacks.socket.create_connection(made.server.getsockname()):
            assert made.connected() == ["server"]


def test_a_false_pass_would_be_noticed():
    with attacks.world() as made, Sandbox(attacks.LIMITS) as sandbox:
        attack = attacks.Attack("none", "", "def f(x):\n    return 5", "assert f(2) == 5", "x")
        assert attacks.run(attack, made, sandbox)[1] == ["it passed"]
        program = f"print('GOT it', {made.secret!r})\ndef f(x):\n    return 5"
        attack = attacks.Attack("none", "", program, "assert f(2) == 6", "x")
        wrong = attacks.run(attack, made, sandbox)[1]
        assert wrong == [f"GOT it {made.secret}", "it knows a secret"]
