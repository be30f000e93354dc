"""How requests end that can not: a server stops, heads never come, too much is asked for."""

import json
import socket
import threading
import time
from http.client import HTTPConnection

import pytest

from bedstone.errors import BedstoneError
from bedstone.remote.model import RemoteModel
from served import Running, saved_decoder


@pytest.fixture(scope="module")
def small(tmp_path_factory, cache):
    return str(saved_decoder(tmp_path_factory.mktemp("models") / "small", 1024))


@pytest.fixture(scope="module")
def server(small):
    running = Running({"small": small}, body_seconds=0.5, max_queue=100)
    yield running
    running.stop()


def slowed(running) -> None:
    """Makes each pass of the model take a while."""
    scheduler = running.models.entries["small"].served.scheduler
    passes = scheduler._pass

    def slow() -> None:
        time.sleep(0.02)
        passes()

    scheduler._pass = slow


def sent(running, path: str, body: dict) -> HTTPConnection:
    line = HTTPConnection("127.0.0.1", running.port, timeout=30)
    line.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return line


def test_a_server_that_stops_says_so_in_the_shape_of_each_answer(small):
    running = Running({"small": small}, drain_seconds=0.3, max_num_seqs=3)
    slowed(running)
    body = {"model": "small", "max_tokens": 900, "temperature": 1, "seed": 1}
    hello = {"messages": [{"role": "user", "content": "a cat"}]}
    chat = sent(running, "/v1/chat/completions", {**body, **hello, "stream": True})
    chat_answer = chat.getresponse()
    chat_answer.readline()
    # greedy: a sampled answer could end by itself before the server does
    items = {"model": "small", "input": "a cat", "max_output_tokens": 900, "stream": True}
    items["temperature"] = 0
    item_answer = sent(running, "/v1/responses", items).getresponse()
    item_answer.readline()
    plain = sent(running, "/v1/completions", {**body, "prompt": "a cat"})
    waiting = sent(running, "/v1/completions", {**body, "prompt": "a red cat"})
    deadline = time.monotonic() + 10
    scheduler = running.models.entries["small"].served.scheduler
    while len(scheduler._queue) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    last = chat_answer.read().decode().strip().rpartition("\n\n")[2]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "service_unavailable_error" and "ending" in error["message"]
    events = item_answer.read().decode().strip().split("\n\n")
    assert [each.split("\n")[0] for each in events[-2:]] == [
        "event: error", "event: response.failed"
    ]  # fmt: skip
    assert json.loads(events[-1].partition("data: ")[2])["response"]["status"] == "failed"
    for each in (plain, waiting):
        answer = each.getresponse()
        assert answer.status == 503 and answer.headers["retry-after"]
        assert json.loads(answer.read())["error"]["code"] == "unavailable"
    stopping.join(20)
    assert time.monotonic() - began < 10
    assert not scheduler.lives


def test_a_head_that_never_comes_is_not_waited_for(server):
    def closed(line: socket.socket) -> bool:
        line.settimeout(5)
        return line.recv(100) == b""

    for data in (b"", b"GET /v1/mod", b"GET /v1/models HTTP/1.1\r\nHost: loc"):
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(data)
            assert closed(line)
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        line.settimeout(5)
        assert b"200 OK" in line.recv(4096)
        line.sendall(b"GET /version HT")
        while line.recv(4096):
            pass
    slow = sent(server, "/v1/completions", {"model": "small", "prompt": "a", "max_tokens": 900})
    assert slow.getresponse().status == 200  # a request that came is waited for


def test_what_could_never_wait_is_refused_before_it_is_read(server):
    body = {"model": "small", "prompt": ["a cat " * 400] * 2000, "n": 128, "max_tokens": 4}
    began = time.monotonic()
    status, headers, answer = server.ask("/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, "n")
    assert "256,000 continuations" in answer["error"]["message"]
    assert "retry-after" not in headers
    assert time.monotonic() - began < 1
    hello = [{"role": "user", "content": "a cat"}]
    status, _, answer = server.ask(
        "/v1/chat/completions", {"model": "small", "messages": hello, "n": 128}
    )
    assert (status, answer["error"]["param"]) == (400, "n")


def test_a_model_that_is_not_there_is_said_to_be_absent(server):
    with pytest.raises(BedstoneError, match=r"no model 'smal' \(404\); there are small\."):
        RemoteModel(f"{server.url}/v1#smal").needs("echo", "likelihoods")
    with pytest.raises(BedstoneError, match=r"isn't there \(404\).*version, such as /v1"):
        RemoteModel(f"{server.url}/v2#small").needs("tools", "agent")


def test_where_nothing_more_may_wait_a_request_is_refused_unread(small):
    """Also one that would be refused for what it holds: reading it costs what others need."""
    running = Running({"small": small, "other": small})
    try:
        schedulers = [each.served.scheduler for each in running.models.entries.values()]
        schedulers[0]._most = -100
        assert running.ask("/v1/completions", b"{")[0] == 400  # the other one takes more
        schedulers[1]._most = -100
        status, headers, answer = running.ask("/v1/completions", b"{")
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(headers["retry-after"]) >= 1
        assert running.ask("/v1/models")[0] == 200
        assert schedulers[0].metrics.refused == 1
    finally:
        running.stop()
