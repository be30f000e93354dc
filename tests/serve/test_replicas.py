"""Several processes behind one address: ready together, replaced where one dies, ended together."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from bedstone.cli import main
from bedstone.serve.metrics import ModelMetrics, merged, text_of
from bedstone.serve.replicas import Reports, reported
from served import saved_decoder

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(sys.platform == "win32", reason="ends processes by signals"),
]


class Server:
    """`bedstone serve --replicas` in a process of its own."""

    def __init__(self, model: Path, count: int, log: Path) -> None:
        self.count, self.log = count, log
        words = [str(model), "--replicas", str(count), "--port", "0", "--precision", "fp32"]
        words += ["--kv-memory", "0.05", "--prefix-memory", "0.02", "--drain-seconds", "10"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("BEDSTONE_API_KEY", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bedstone", "serve", *words],
            stderr=log.open("w"), env=environment,
        )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text()

    def until(self, what, seconds=300.0):
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(0.05)
        return found

    def opened(self) -> None:
        pattern = r"replicas are open, serving on http://127\.0\.0\.1:(\d+)"
        found = self.until(lambda: re.search(pattern, self.said()))
        self.port = int(found[1])

    def ask(self, path, body=None):
        line = HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = None if body is None else json.dumps(body).encode()
        line.request("GET" if body is None else "POST", path, data,
                     {"Content-Type": "application/json"})  # fmt: skip
        answer = line.getresponse()
        read = answer.read()
        line.close()
        kind = answer.getheader("content-type") or ""
        return answer.status, json.loads(read) if "json" in kind else read.decode()

    def ready(self) -> bool:
        return self.ask("/ready") == (200, {"ready": True})

    def replicas(self) -> list[int]:
        """Processes of the replicas: those below it that were spawned to serve."""
        found = []
        own = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for each in own.split():
            if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes():
                found.append(int(each))
        return found


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[Server]:
    """Two replicas of a model."""
    server = Server(model, 2, log)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes by /proc")
def test_replicas_answer_alike_and_one_that_dies_is_replaced(tmp_path):
    with serving(saved_decoder(tmp_path / "small"), tmp_path / "log") as server:
        server.opened()
        server.until(server.ready)
        said = server.said()
        assert "2 replicas, each with its own models" in said and "0.05 GiB of keys" in said
        body = {"model": "small", "prompt": "a cat", "max_tokens": 8, "seed": 1, "temperature": 1}
        answers = [server.ask("/v1/completions", body) for _ in range(12)]
        assert {(status, found["choices"][0]["text"]) for status, found in answers} == {
            (200, answers[0][1]["choices"][0]["text"])
        }
        # Figures are of all replicas, and both had work.
        server.until(lambda: "bedstone_replicas 2" in server.ask("/metrics")[1])

        def counted():
            text = server.ask("/metrics")[1]
            rows = re.findall(r'vllm:prompt_tokens_total\{.*replica="(\d)"\} (\d+)', text)
            return {number: int(count) for number, count in rows}

        each = len("a cat")  # at most
        total = server.until(lambda: sum(counted().values()) and counted())
        assert set(total) == {"1", "2"} and 12 <= sum(total.values()) <= 12 * each
        # What the next request might not find isn't kept, and that is said.
        asked = {"model": "small", "input": "a cat", "max_output_tokens": 4}
        status, first = server.ask("/v1/responses", asked)
        assert status == 200 and first["store"] is False
        for number in range(3):
            status, found = server.ask(
                "/v1/responses", {**asked, "previous_response_id": first["id"]}
            )
            assert status == 400 and "several replicas" in found["error"]["message"], number
            assert server.ask(f"/v1/responses/{first['id']}")[0] == 404
        # One is killed: it is said, and replaced.
        old = server.replicas()
        assert len(old) == 2
        os.kill(old[0], signal.SIGKILL)
        server.until(lambda: "ended by signal 9; it is started again now" in server.said())
        assert not server.ready()
        assert server.ask("/v1/completions", body)[0] == 200, "the other one answers"
        server.until(server.ready)
        new = server.replicas()
        assert len(new) == 2 and old[1] in new and old[0] not in new
        # One signal ends all, and what is at work ends first.
        line = HTTPConnection("127.0.0.1", server.port, timeout=60)
        long = {**body, "max_tokens": 400, "stream": True}
        line.request("POST", "/v1/completions", json.dumps(long),
                     {"Content-Type": "application/json"})  # fmt: skip
        answer = line.getresponse()
        begun = answer.read(10)
        server.process.send_signal(signal.SIGTERM)
        assert (begun + answer.read()).endswith(b"data: [DONE]\n\n")
        assert server.process.wait(60) == 0, server.said()
        assert not any(Path(f"/proc/{each}").exists() for each in new)
        assert "Traceback" not in server.said()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes by /proc")
def test_replicas_leave_with_the_process_above_them(tmp_path):
    with serving(saved_decoder(tmp_path / "small"), tmp_path / "log") as server:
        server.opened()
        own = server.replicas()
        server.process.kill()
        server.process.wait()
        end = time.monotonic() + 120
        while any(Path(f"/proc/{each}").exists() for each in own):
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_ends_all(tmp_path):
    folder = saved_decoder(tmp_path / "small")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with serving(folder, tmp_path / "log") as server:
        assert server.process.wait(300) == 2
        assert "ended with exit code 2 before" in server.said()
        assert "model.safetensors" in server.said() and "Traceback" not in server.said()


def test_a_number_of_replicas_that_cannot_be_is_refused(tmp_path, capsys):
    folder = saved_decoder(tmp_path / "small")
    for count in ("0", "65"):
        assert main(["serve", str(folder), "--replicas", count, "--port", "0"]) == 2
        assert f"--replicas: {count} was given; expected 1 to 64" in capsys.readouterr().err


class _Models:
    def __init__(self) -> None:
        self.ready, self.entries = True, {}


def test_all_are_ready_when_each_said_so_lately(tmp_path):
    reports = [Reports(tmp_path, number, 2, _Models()) for number in (1, 2)]
    for each in reports:
        each.say()
    assert reports[0].ready(True) and not reports[0].ready(False)
    reports[1].models.ready = False
    reports[1].say()
    assert not reports[0].ready(True)
    reports[1].models.ready = True
    reports[1].say()
    assert reports[0].ready(True)
    reports[0].say()
    os.utime(reported(tmp_path, 1), (0, 0))  # a replica that hangs says nothing more
    assert not reports[1].ready(True)
    reports[0].say()
    reported(tmp_path, 1).write_text("{")
    assert not reports[1].ready(True)


def test_figures_of_several_processes_are_one_text():
    metrics = [ModelMetrics(), ModelMetrics()]
    for number, each in enumerate(metrics, 1):
        each.prompt_tokens = 10 * number
    text = merged([text_of({"m": each}, f',replica="{n}"') for n, each in enumerate(metrics, 1)])
    lines = text.splitlines()
    at = lines.index('vllm:prompt_tokens_total{model_name="m",replica="1"} 10')
    assert lines[at + 1] == 'vllm:prompt_tokens_total{model_name="m",replica="2"} 20'
    assert lines[at - 1] == "# TYPE vllm:prompt_tokens_total counter"
    assert len([each for each in lines if each.startswith("# HELP vllm:prompt_tokens")]) == 1
    assert len(lines) == len(set(lines)), "no line stands twice"
