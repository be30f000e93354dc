"""Rows on a Ray cluster of this machine: the bytes of a local run, whatever is killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from bedstone.bulk.journal import work_on
from bedstone.bulk.places import Job, Spread
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from small_models import SENTENCES, saved

HAVE = find_spec("ray") is not None  # importing it here would come before it can be set up
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAVE, reason="the extra ray is missing")]
TESTS = Path(__file__).parents[1]
ROWS = 400
DRIVER = """
import sys
from bedstone.bulk.journal import work_on
from bedstone.bulk.places import Job, Spread
rows = list(range(400))
rows[100], rows[200], rows[300] = "die", "raise", "once"
job = Job("bulk_work:open_doubling", {"folder": sys.argv[2], "seconds": 0.05})
done = work_on(sys.argv[1], job, rows, Spread(on="ray", actors=2), work="w", block=8,
    as_line=lambda row, result: f'{{"id": {row}, "e": {result}}}')
sys.exit(done.code)
"""


def processes(parent):
    """Numbers and titles of all processes below one."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            above = int(path.read_text().rpartition(")")[2].split()[1])
            title = path.with_name("cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        found[int(path.parent.name)] = (above, title)
    chosen = {parent}
    while more := {n for n, (above, _) in found.items() if above in chosen} - chosen:
        chosen |= more
    return {number: found[number][1] for number in chosen & found.keys()}


def listening(numbers):
    """Addresses on which these processes listen, as /proc has them."""
    sockets = set()
    for number in numbers:
        for link in Path(f"/proc/{number}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:
                continue
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_actors_and_the_driver_are_killed_and_every_row_is_there_once(tmp_path):
    out, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part" / "blocks.jsonl"
    words = [sys.executable, "-c", DRIVER, str(out), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    killed, until = 0, time.monotonic() + 900
    for turn in range(2):
        driver = subprocess.Popen(words, env=env)
        while driver.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            done = journal.read_bytes().count(b"\n") if journal.exists() else 0
            below = processes(driver.pid)
            actors = [n for n, title in below.items() if title.startswith("ray::_Actor")]
            if done >= 6 * (killed + 1) and actors and killed < 3:
                if not killed:
                    assert listening(below) <= loopback
                os.kill(actors[0], signal.SIGKILL)
                killed += 1
            if turn == 0 and done >= 26:
                driver.kill()
        if turn == 0:
            assert driver.wait(30) == -signal.SIGKILL and not out.exists()
    assert driver.wait(30) == 3 and killed == 3  # rows were set aside
    found = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [row for row in range(ROWS) if row not in (100, 200)]
    assert found == [{"id": row, "e": "once" if row == 300 else 2 * row} for row in rows]
    aside = (tmp_path / "out.aside.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in aside] == [
        {"row": 100, "reason": "ended its process 3 times"},
        {"row": 200, "reason": "ValueError: no number"},
    ]


def test_a_run_on_ray_is_the_local_run(tmp_path, capsys):
    words = " ".join(SENTENCES).split()
    texts = [" ".join(words[n % 7 : n % 7 + 1 + n % 5]) for n in range(150)]
    (tmp_path / "rows.txt").write_text("\n".join(texts) + "\n")
    model = str(saved(tmp_path, HeadConfig("pooled")))
    command = ["run", "feature-extraction", model, "--file", str(tmp_path / "rows.txt")]
    assert main([*command, "--json"]) == 0
    local = capsys.readouterr().out
    out = tmp_path / "out.jsonl"
    assert main([*command, "--out", str(out), "--on", "ray", "--actors", "2"]) == 0
    assert out.read_text() == local and "150 rows" in capsys.readouterr().err


def test_a_cluster_that_is_there_is_joined(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    local = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # names of sockets have 107 bytes at most
    words = ["start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    words += ["--node-ip-address=127.0.0.1", "--block", f"--temp-dir={folder}"]
    env = {**os.environ, **local, "RAY_AUTH_MODE": "disabled"}
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
    cluster = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    script = DRIVER.replace('on="ray"', f'on="ray:127.0.0.1:{port}"').replace('"die"', "100")
    try:
        until, ready = time.monotonic() + 300, False
        while not ready and time.monotonic() < until:
            time.sleep(0.5)
            with socket.socket() as knock:
                ready = knock.connect_ex(("127.0.0.1", port)) == 0
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path)], env=env
        )
        assert done.returncode == 3
        found = [json.loads(line)["id"] for line in (tmp_path / "out").read_text().splitlines()]
        assert found == [row for row in range(ROWS) if row != 200]
    finally:
        os.killpg(cluster.pid, signal.SIGTERM)
        cluster.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def test_no_cluster_there_is_said(tmp_path):
    script = (
        "from bedstone.bulk.on_ray import OnRay\nfrom bedstone.errors import BedstoneError\n"
        "try: OnRay('127.0.0.1:9', None, 1)\nexcept BedstoneError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "no Ray cluster can be joined there" in done.stdout


def test_work_that_cannot_be_opened_is_refused(tmp_path):
    job = Job("bedstone.commands.bulk:open_task")
    settings = {"task": "ner", "model": str(tmp_path / "none"), "options": {}}
    job = Job(job.opener, {**settings, "precision": "fp32", "device": "cpu"})
    with pytest.raises(BedstoneError, match="none"):
        work_on(
            tmp_path / "out",
            job,
            ["a"],
            Spread(on="ray", actors=1),
            work="w",
            as_line=lambda row, result: result,
        )
