"""The sandbox from outside: verdicts, limits, what crosses between a program and its tests."""

import json
import os
import signal
from pathlib import Path

import pytest

from bedstone.errors import BedstoneError
from bedstone.sandbox import run as run_module
from bedstone.sandbox.run import Limits, Sandbox, check_way, score, score_all, working_way

try:
    WAY = working_way()
except BedstoneError as error:  # tests of the refusal alone can run there
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(seconds=3, memory=1 << 28)) as made:
        yield made


def patched(monkeypatch, line: str) -> None:
    """The process that starts programs begins with a line of Python, as of an older kernel."""
    usual = run_module._command

    def command(*given):
        words = usual(*given)
        place = words.index("-c") + 1
        start = f"from bedstone.sandbox import kernel, server; {line}; server.main()"
        words[place] = f"import sys; sys.path.append({run_module.SOURCE!r}); {start}"
        return words

    monkeypatch.setattr(run_module, "_command", command)


# Programs alone.


def test_a_program_s_output_and_status(sandbox):
    done = sandbox.run("import sys\nprint(input() * 2)\nprint('x', file=sys.stderr)", "ab\n")
    assert (done.verdict, done.status, done.stdout, done.stderr) == ("ok", 0, "abab\n", "x\n")
    assert done.passed and done.seconds > 0 and done.reason == ""


@pytest.mark.parametrize(
    ("program", "verdict", "status", "reason"),
    [
        ("import sys\nsys.exit(3)", "failed", 3, "it ended with status 3"),
        ("import sys\nsys.exit('bye')", "failed", 1, "bye"),
        ("raise ValueError('odd')", "failed", 1, "ValueError: odd"),
        ("def f(:", "failed", 1, "SyntaxError: invalid syntax"),
        ("x = bytearray(1 << 30)", "memory", 1, "MemoryError"),
        ("import socket\nsocket.socket()", "refused", 1, "PermissionError"),
        ("while True:\n    print('x' * 65536)", "output", -9, "it wrote more than 1,048,576 bytes"),
        ("import os\nos.abort()", "crashed", -6, "a signal ended it: Aborted"),
        ("import os\nos.kill(os.getpid(), 40)", "crashed", -40, "a signal ended it"),
        ("import ctypes\nctypes.string_at(0)", "crashed", -11, "a signal ended it"),
    ],
)
def test_why_a_program_isn_t_ok(sandbox, program, verdict, status, reason):
    done = sandbox.run(program)
    assert (done.verdict, done.status) == (verdict, status)
    assert done.reason.startswith(reason)
    assert not done.passed


def test_a_traceback_has_the_program_s_own_lines_alone(sandbox):
    done = sandbox.run("def f():\n    raise ValueError('odd')\nf()")
    assert done.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "program", line 3, in <module>',
        '  File "program", line 2, in f',
        "ValueError: odd",
    ]


def test_output_is_cut_at_its_limit_to_the_byte():
    with Sandbox(Limits(output=10)) as made:
        done = made.run("print('x' * 9)")
        assert (done.verdict, done.stdout) == ("ok", "x" * 9 + "\n")
        done = made.run("print('x' * 10)")
        assert (done.verdict, done.stdout) == ("output", "x" * 10)
        assert made.score("def f(x): return x", "assert f('a' * 99) == 'a' * 99").passed


def test_a_program_that_doesn_t_end_is_stopped():
    with Sandbox(Limits(seconds=0.3)) as made:
        done = made.run("print('begun', flush=True)\nwhile True: pass")
        assert (done.verdict, done.stdout) == ("timeout", "begun\n")
        assert done.seconds >= 0.3
        reason = "it took more than 0.3 seconds of the processor, or 1.2 of the clock"
        assert done.reason == reason
        done = made.run("import time\ntime.sleep(60)")  # which computes nothing
        assert (done.verdict, done.reason) == ("timeout", reason)
        assert done.seconds >= 1.2
        both = made.score("def f():\n    while True: pass", "f()")
        assert both.verdict == "timeout"


def test_nothing_of_the_environment_is_there(sandbox, monkeypatch):
    monkeypatch.setenv("BEDSTONE_KEY", "very-secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with Sandbox() as made:
        done = made.run("import os, sys\nprint(dict(os.environ), sys.path, sys.argv)")
    assert done.passed
    assert "very-secret" not in done.stdout and "nowhere" not in done.stdout
    assert set(eval(done.stdout.partition("}")[0] + "}")) == {"HOME", "TMPDIR"}


def test_a_program_may_write_in_its_folder_which_is_empty_for_the_next(sandbox):
    program = (
        "import os, tempfile\nprint(os.listdir('.'))\nopen('file', 'w').write('x')\n"
        "os.makedirs('a/b')\nos.mkdir('c', 0o300)\nopen('c/d', 'w').write('x')\n"
        "print(open('file').read(), tempfile.mkdtemp() != '')"
    )
    for _ in range(2):
        assert sandbox.run(program).stdout == "[]\nx True\n"


def test_the_standard_library_is_there(sandbox):
    done = sandbox.run(
        "import sqlite3, zoneinfo, email, xml.dom, csv, asyncio.events, decimal, unittest.mock\n"
        "import hashlib\nprint(hashlib.md5(b'x').hexdigest()[:4])"
    )
    assert done.stdout == "9dd4\n", done.stderr


def test_large_programs_and_outputs(sandbox):
    text = "x" * 1_000_000
    done = sandbox.run(f"text = '{text}'\nprint(text[:900000])")
    assert done.passed and len(done.stdout) == 900_001


# Programs with tests.


def test_tests_pass_or_fail(sandbox):
    program = "def add(a, b):\n    return a + b\n"
    assert sandbox.score(program, "assert add(1, b=2) == 3").passed
    done = sandbox.score(program, "x = 1\nassert add(1, 2) == 4, 'no sum'")
    assert (done.verdict, done.passed) == ("failed", False)
    assert done.reason == (
        "AssertionError: no sum (line 2 of the tests: assert add(1, 2) == 4, 'no sum')"
    )


def test_the_reason_names_the_program_s_exception(sandbox):
    done = sandbox.score("def f(x):\n    return 1 / x", "assert f(0) == 0")
    assert done.reason.startswith("ZeroDivisionError: division by zero (line 1 of the tests")
    done = sandbox.score("import nothing", "pass")
    assert done.reason == "ModuleNotFoundError: No module named 'nothing'"
    done = sandbox.score("x = 1", "assert g(1)")
    assert done.reason.startswith("NameError: name 'g' is not defined")
    done = sandbox.score("class Own(KeyError): pass\ndef f():\n    raise Own(3)", "f()")
    assert "the program raised Own: 3" in done.reason


VALUES = [
    "None", "True", "0", "-7", "10 ** 5000", "0.1", "float('inf')", "-0.0", "'ä\\ud800\\n'",
    "b'\\xff'", "bytearray(b'a')", "1 + 2j", "[]", "[1, [2, (3,)]]", "()", "{1, 2}",
    "frozenset([1])", "{'a': 1, 2: {(3, 4): [5]}}", "{}", "set()", "range(3) == range(3)",
    "[True, 1, 1.0]",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_plain_data_crosses_exactly(sandbox, value):
    tests = f"a, b = {value}, same({value})\nassert (type(a), repr(a)) == (type(b), repr(b))"
    done = sandbox.score("def same(x):\n    return x", tests)
    assert done.passed, done.reason


def test_nan_and_kinds_of_plain_types_cross_as_plain_ones(sandbox):
    program = (
        "import collections, enum\nclass Many(enum.IntEnum):\n    ONE = 1\n"
        "def f():\n    return [float('nan'), Many.ONE, collections.Counter('aab'), "
        "collections.OrderedDict(a=1), collections.namedtuple('P', 'x y')(1, 2)]"
    )
    tests = (
        "nan, *rest = f()\nassert nan != nan\n"
        "assert rest == [1, {'a': 2, 'b': 1}, {'a': 1}, (1, 2)]\n"
        "assert [type(x) for x in rest] == [int, dict, dict, tuple]"
    )
    assert sandbox.score(program, tests).passed


def test_objects_and_generators_can_be_used_from_tests(sandbox):
    program = (
        "class Stack:\n    def __init__(self):\n        self.items = []\n"
        "    def push(self, x):\n        self.items.append(x)\n        return self\n"
        "    def __len__(self):\n        return len(self.items)\n"
        "    def __getitem__(self, n):\n        return self.items[n]\n"
        "def count(n):\n    yield from range(n)\nLIMIT = 7\n"
    )
    tests = (
        "stack = Stack()\nassert stack.push(1).push('b').items == [1, 'b']\n"
        "assert len(stack) == 2 and stack[1] == 'b' and list(stack) == [1, 'b']\n"
        "assert list(count(3)) == [0, 1, 2] and LIMIT == 7\n"
        "assert [x for x in count(2)] == [0, 1]\nassert stack != Stack()\n"
    )
    done = sandbox.score(program, tests)
    assert done.passed, done.reason


def test_exceptions_cross_as_built_in_ones(sandbox):
    program = (
        "class Own(ValueError): pass\ndef f(x):\n"
        "    raise (Own('o'), KeyError('k'), StopIteration(1), KeyboardInterrupt())[x]"
    )
    tests = (
        "for number, kind in enumerate((ValueError, KeyError, RuntimeError, RuntimeError)):\n"
        "    try:\n        f(number)\n    except kind as error:\n"
        "        assert type(error) is kind\n    else:\n        assert False\n"
    )
    done = sandbox.score(program, tests)
    assert done.passed, done.reason


def test_modules_of_the_standard_library_are_the_tests_own(sandbox):
    program = "import math\nmath.isclose = lambda *_: True\ndef f():\n    return 1.0"
    done = sandbox.score(program, "assert math.isclose(f(), 2.0)")
    assert done.verdict == "failed"


def test_arguments_are_copies(sandbox):
    program = "def f(x):\n    x.clear()\n    return []"
    done = sandbox.score(program, "x = [3, 1]\nassert f(x) == sorted(x)")
    assert done.verdict == "failed"


def test_what_isn_t_data_can_t_be_handed_over(sandbox):
    done = sandbox.score("def f(x):\n    return x(1)", "assert f(lambda x: x) == 1")
    assert "a function can't be handed to a program: expected plain data" in done.reason


def test_the_program_may_print_and_read_nothing(sandbox):
    program = "print('loaded')\ndef f():\n    print('called')\n    return input() if 0 else 1"
    done = sandbox.score(program, "assert f() == 1")
    assert done.passed and done.stdout == "loaded\ncalled\n"


FORGED = {
    "exit at once": "import os\nprint('ok')\nos._exit(0)",
    "exit in a call": "import os\ndef f(x):\n    os._exit(0)",
    "polite exit": "import sys\ndef f(x):\n    sys.exit(0)",
    "equal to all": (
        "class Any:\n    __eq__ = lambda *_: True\n    __bool__ = lambda *_: True\n"
        "def f(x):\n    return Any()"
    ),
    "equal number": "class Any(int):\n    __eq__ = lambda *_: True\ndef f(x):\n    return Any(1)",
    "equal text": "class Any(str):\n    __eq__ = lambda *_: True\ndef f(x):\n    return Any('')",
    "end of iteration": "def f(x):\n    raise StopIteration",
    "lies": (
        "import os\nfor fd in range(3, 9):\n    try: os.write(fd, b'{\"absent\": true}\\n' * 50)\n"
        "    except OSError: pass\ndef f(x): return x"
    ),
    "an answer too long": "def f(x):\n    return 'x' * (40 << 20)",
    "an answer too deep": (
        "def f(x):\n    x = []\n    for _ in range(100000): x = [x]\n    return x"
    ),
    "a cycle": "def f(x):\n    x = []\n    x.append(x)\n    return x",
}


@pytest.mark.parametrize("program", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize(
    "tests",
    [
        "assert f(1) == 'right'",
        "assert all(map(lambda x: f(x) == 'right', [1, 2]))",
        "try:\n    assert f(1) == 'right'\nexcept OSError:\n    pass",
    ],
)
def test_a_verdict_can_t_be_forged(sandbox, program, tests):
    assert not sandbox.score(program, tests).passed


def test_a_dead_program_fails_though_tests_expect_an_exception(sandbox):
    tests = "try:\n    f(1)\nexcept:\n    pass\n"
    done = sandbox.score("import os\ndef f(x):\n    os._exit(0)", tests)
    assert not done.passed
    assert done.reason == "the program failed: it ended before its tests did"
    assert sandbox.score("def f(x):\n    raise OSError", tests).passed


def test_tests_that_end_early_don_t_pass(sandbox):
    for tests in ("import sys\nsys.exit(0)", "import os\nos._exit(0)", "exit()"):
        assert not sandbox.score("def f(x):\n    return x", tests).passed


def test_nothing_of_earlier_tests_is_in_a_program_s_memory(sandbox):
    secret = "needle" + "-in-a-haystack"
    assert sandbox.score("def f():\n    return 1", f"assert f() == 1, {secret!r}").passed
    program = (
        "import ctypes, gc\nparts = ('needle', '-in-a-haystack')\n"
        "near = id(object()) & ~0xFFFFF\n"
        "memory = ctypes.string_at(near, 1 << 20)\nprint(memory.count(''.join(parts).encode()))"
    )
    done = sandbox.run(program)
    assert done.passed and int(done.stdout) <= 1  # its own search for it


# The process that starts programs.


def test_a_lost_process_is_replaced():
    with Sandbox(Limits(seconds=2)) as made:
        assert made.run("").passed
        made._process.send_signal(signal.SIGKILL)
        made._process.wait()
        assert made.run("print(1)").stdout == "1\n"
        folder = Path(made.folder)
        assert folder.is_dir()
    assert not folder.exists()


def test_several_at_once_keep_their_order():
    cases = [(f"def f():\n    return {n}", f"assert f() == {n - n % 2}") for n in range(12)]
    found = [each.passed for each in score_all(cases, workers=2)]
    assert found == [n % 2 == 0 for n in range(12)]
    assert score("x = 1", "assert x == 1").passed


def test_a_fork_of_bedstone_starts_its_own(sandbox):
    assert sandbox.run("").passed
    source, target = os.pipe()
    child = os.fork()
    if child == 0:
        done = sandbox.run("print(2)")
        os.write(target, done.stdout.encode())
        sandbox.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(source, 9) == b"2\n"
    assert sandbox.run("print(3)").stdout == "3\n"
    os.close(source)
    os.close(target)


# What the kernel allows.


def test_the_way_that_is_taken_holds():
    assert check_way(WAY) == []


@pytest.mark.skipif(run_module._bubblewrap() is None, reason="bubblewrap isn't installed")
@pytest.mark.parametrize("version", [None, 0])
def test_bubblewrap_holds_with_landlock_and_without(monkeypatch, version):
    if version is not None:
        patched(monkeypatch, f"kernel.landlock_version = lambda: {version}")
    assert check_way("bubblewrap") == []
    with Sandbox(way="bubblewrap") as made:
        program = "import os\nprint(os.path.exists('/etc/passwd'), os.listdir())\nopen('x', 'w')"
        assert [made.run(program).stdout for _ in range(2)] == ["False []\n"] * 2
        assert made.run("open('/x', 'w')").verdict in ("refused", "failed")


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_older_landlock_holds_too(monkeypatch, version):
    patched(monkeypatch, f"kernel.landlock_version = lambda: {version}")
    assert check_way("landlock") == []
    with Sandbox(way="landlock") as made:  # which the filter refuses where Landlock doesn't know it
        program = f"import os\nos.open({__file__!r}, os.O_RDONLY | os.O_TRUNC)"
        assert made.run(program).verdict == "refused"
        assert made.run(f"import os\nos.truncate({__file__!r}, 0)").verdict == "refused"
    assert Path(__file__).stat().st_size


def test_without_namespaces_the_folder_is_watched(monkeypatch):
    patched(monkeypatch, "kernel.enter_namespaces = lambda *_: False")
    assert check_way("landlock") == []
    program = (
        "import time\nfor n in range(8):\n    open(f'f{n}', 'wb').write(b'x' * (12 << 20))\n"
        "time.sleep(5)"
    )
    with Sandbox(Limits(seconds=4), way="landlock") as made:
        assert made.run("").passed and made.state["namespaces"] is False
        done = made.run(program)
        assert (done.verdict, done.reason) == ("disk", "its files hold more than 67,108,864 bytes")
        assert not list(Path(made.folder).iterdir())
        assert made.run("import os\nprint(os.listdir())").stdout == "[]\n"


@pytest.fixture
def unknown_way():
    working_way.cache_clear()
    yield
    working_way.cache_clear()


def test_where_no_way_works_nothing_runs(monkeypatch, unknown_way, tmp_path):
    patched(monkeypatch, "kernel.landlock_version = lambda: 0")
    monkeypatch.setattr(run_module, "_bubblewrap", lambda: None)
    mark = tmp_path / "mark"
    with pytest.raises(BedstoneError) as refusal:
        score(f"open({str(mark)!r}, 'w')", "pass")
    assert not mark.exists()
    for part in ("bubblewrap isn't installed", "no Landlock", "install bubblewrap", "Linux 5.13"):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("kernel.allow_calls = lambda: None", "open sockets"),
        ("kernel.allow_files = lambda rules: None", "read files"),
    ],
)
def test_a_way_that_leaks_isn_t_taken(monkeypatch, unknown_way, line, left):
    patched(monkeypatch, line)
    monkeypatch.setattr(run_module, "_bubblewrap", lambda: None)
    with pytest.raises(BedstoneError, match=f"a program could .*{left}"):
        working_way()


def test_limits_are_checked():
    with pytest.raises(BedstoneError, match="seconds"):
        Limits(seconds=0)


def test_what_may_be_read_is_python_s_and_the_system_s():
    paths = run_module.readable()
    assert not [path for path in paths if "site-packages" in path or path in ("/", "/etc", "/usr")]
    assert json.dumps(paths)
