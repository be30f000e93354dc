"""A server's life: golden outputs at its start, models that make room, SIGTERM; other families."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

import bedstone
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.serve.models import Models, ServeSettings, named_sources
from bedstone.serve.work import Leaving
from drawings import drawing
from image_models import clip_model, pictures
from image_text_models import told_model
from served import Running, saved_decoder
from small_models import saved as saved_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def small(folder):
    return str(saved_decoder(folder / "small"))


def test_golden_outputs_that_differ_keep_a_server_from_being_ready(folder, small, caplog):
    other = saved_decoder(folder / "other")
    golden = json.loads((other / "golden.json").read_text())
    scores = golden["cases"][0]["outputs"]
    name = next(name for name in scores if "scores" in scores[name])
    scores[name]["scores"][0] += 1.0
    (other / "golden.json").write_text(json.dumps(golden))
    record = json.loads((other / "bedstone.json").read_text())
    record.pop("files", None)
    (other / "bedstone.json").write_text(json.dumps(record))
    running = Running({"small": small, "other": str(other)})
    try:
        assert running.ask("/ready")[::2] == (503, {"ready": False})
        assert running.ask("/health")[0] == 200
        assert not running.models.entries["small"].failed
        assert "golden outputs" in running.models.entries["other"].failed
        assert "other: doesn't give the outputs" in caplog.text
    finally:
        running.stop()


def test_the_model_used_least_lately_makes_room(folder, small):
    settings = {"kv_memory": 0.004, "prefix_memory": 0.001}
    one = Models({"a": small}, ServeSettings(**settings), "fp32", "cpu")
    one.open_all()
    each = one.entries["a"].nbytes
    one.close()
    limit = 2.5 * each / (1 << 30)
    sources = dict.fromkeys("abc", small)
    models = Models(sources, ServeSettings(**settings, memory=limit), "fp32", "cpu")
    models.open_all()

    def held():
        return [name for name, entry in sorted(models.entries.items()) if entry.served]

    assert held() == ["b", "c"]
    assert models.ready
    with models.use("b"):
        pass
    with models.use("a") as served:
        assert held() == ["a", "b"]
        assert served.scheduler.lives
        with models.use("b"), pytest.raises(Leaving, match="in use"), models.use("c"):
            pass
    with models.use("c"):
        assert held() == ["b", "c"]
    models.close()
    with pytest.raises(BedstoneError, match="--memory"):
        Models(
            {"a": small}, ServeSettings(**settings, memory=0.5 * each / (1 << 30)), "fp32", "cpu"
        ).open_all()


def test_a_model_that_can_not_be_opened_again_is_a_503_without_its_place(folder, small):
    gone = folder / "gone"
    shutil.copytree(small, gone)
    running = Running({"gone": str(gone)})
    try:
        running.models.entries["gone"].served.scheduler.close()
        running.models.entries["gone"].served = None
        shutil.rmtree(gone)
        body = {"model": "gone", "prompt": "a", "max_tokens": 1}
        status, _, answer = running.ask("/v1/completions", body)
        assert status == 503
        assert str(folder) not in json.dumps(answer)
    finally:
        running.stop()


def test_what_fits_no_row_is_refused(small):
    models = Models({"a": small}, ServeSettings(kv_memory=1e-6), "fp32", "cpu")
    with pytest.raises(BedstoneError, match="--kv-memory"):
        models.open_all()


def test_names_of_models(folder):
    found = named_sources(["minilm", "runs/chat", "fr=runs/fr", "x/y=z"])
    assert found == {
        "minilm": "minilm", "chat": "runs/chat", "fr": "runs/fr", "y=z": "x/y=z",
    }  # fmt: skip
    with pytest.raises(BedstoneError, match="called 'chat' already"):
        named_sources(["runs/chat", "other/chat"])
    with pytest.raises(BedstoneError, match="NAME=MODEL"):
        named_sources(["=x"])


def url_of(image) -> str:
    data = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


@pytest.fixture(scope="module")
def families(folder, small):
    clip_model().save(folder / "clip")
    told_model().save(folder / "blip")
    drawing("text").save(folder / "draws")
    saved_encoder(folder / "encoder", HeadConfig("states"))
    names = ("clip", "blip", "draws")
    running = Running({"small": small, **{name: str(folder / name) for name in names}})
    yield running
    running.stop()


def test_pictures_are_told_of(families):
    image = pictures(1, seed=1)[0]
    content = [
        {"type": "image_url", "image_url": {"url": url_of(image)}},
        {"type": "text", "text": "how many green stars are there?"},
    ]
    body = {"model": "blip", "messages": [{"role": "user", "content": content}], "max_tokens": 6}
    status, _, answer = families.ask("/v1/chat/completions", body)
    assert status == 200, answer
    model = families.models.entries["blip"].served.model
    task = bedstone.pipeline("image-text-to-text", model)
    given = {"image": np.asarray(image), "text": "how many green stars are there?"}
    expected = task(given, max_new_tokens=6, return_full_text=False)
    said = answer["choices"][0]["message"]["content"]
    assert said == expected[0]["generated_text"]
    status, _, read = families.ask("/v1/chat/completions", {**body, "stream": True})
    assert status == 200
    assert read.endswith(b"data: [DONE]\n\n")
    assert families.ask("/v1/chat/completions", {**body, "logprobs": True})[0] == 400


def test_pictures_are_embedded_and_compared(families):
    image = url_of(pictures(1, seed=2)[0])
    body = {"model": "clip", "inputs": [image, image], "candidate_labels": ["a circle", "a star"]}
    status, _, found = families.ask("/v1/tasks/zero-shot-image-classification", body)
    assert status == 200, found
    assert {each["label"] for each in found["results"][0]} == {"a circle", "a star"}
    status, _, found = families.ask("/v1/embeddings", {"model": "clip", "input": "a circle"})
    assert status == 200, found
    assert np.linalg.norm(found["data"][0]["embedding"]) == pytest.approx(1, abs=1e-4)


def test_images_are_drawn(families):
    body = {"model": "draws", "prompt": "ink", "n": 2, "seed": 5, "steps": 2}
    status, _, found = families.ask("/v1/images/generations", body)
    assert status == 200, found
    assert [each["seed"] for each in found["data"]] == [5, 6]
    image = Image.open(io.BytesIO(base64.b64decode(found["data"][0]["b64_json"])))
    assert image.size[0] > 1
    again = families.ask("/v1/images/generations", body)[2]
    assert again["data"] == found["data"]
    for changed in ({"size": "99999x1"}, {"size": "x"}, {"n": 11}, {"response_format": "url"},
                    {"model": "small"}, {"prompt": "x" * 5000}, {"steps": 10**6}):  # fmt: skip
        status, _, answer = families.ask("/v1/images/generations", {**body, **changed})
        assert status == 400, answer
    status, _, found = families.ask(
        "/v1/tasks/text-to-image", {"model": "draws", "inputs": "ink", "num_inference_steps": 2}
    )
    assert status == 200, found
    assert found["results"]["image"].startswith("data:image/png;base64,")


def test_all_families_at_once(families):
    image = url_of(pictures(1, seed=1)[0])
    asks = [
        ("/v1/completions", {"model": "small", "prompt": "a cat", "max_tokens": 30, "seed": 1}),
        ("/v1/embeddings", {"model": "clip", "input": "a circle"}),
        ("/v1/images/generations", {"model": "draws", "prompt": "ink", "seed": 1, "steps": 2}),
        ("/v1/tasks/image-to-text", {"model": "blip", "inputs": image}),
    ] * 4
    answers: list = [None] * len(asks)

    def ask(number):
        answers[number] = families.ask(*asks[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asks))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    texts = set()
    for (path, _), (status, _, answer) in zip(asks, answers, strict=True):
        assert status == 200, (path, answer)
        if path == "/v1/completions":
            texts.add(answer["choices"][0]["text"])
    assert len(texts) == 1
    assert families.idle()


def command(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("BEDSTONE_API_KEY", None)
    return subprocess.Popen(
        [sys.executable, "-m", "bedstone.cli", "serve", *words], stderr=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip


def test_a_signal_lets_streams_end_and_then_the_server(small):
    process = command(small, "--port", "0", "--precision", "fp32", "--kv-memory", "0.05")
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "serving on" in line:
                break
        port = int(lines[-1].rsplit(":", 1)[1])
        ask = HTTPConnection("127.0.0.1", port, timeout=30)
        body = {"model": "small", "prompt": "a cat", "max_tokens": 450, "stream": True, "seed": 1}
        ask.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        answer = ask.getresponse()
        first = answer.read(10)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        rest = answer.read()
        assert (first + rest).endswith(b"data: [DONE]\n\n")
        assert process.wait(20) == 0
        assert time.monotonic() - began < 20
        log = "".join(lines) + process.stderr.read()
        assert "Traceback" not in log
        assert "a cat" not in log
    finally:
        process.kill()
        process.wait()


def test_the_command_refuses_at_once_what_it_would_refuse_later(small, capsys):
    for words, said in (
        ((small, "--host", "0.0.0.0"), "no key is set"),
        (("no/such/model",), "no/such/model"),
        ((small, "--precision", "fp61"), "fp61"),
        ((small, "--max-num-seqs", "0"), "max_num_seqs: 0"),
        ((small, small), "called 'small' already"),
        ((small, "--keys", "no/such/file"), "no/such/file"),
    ):
        assert main(["serve", *words, "--port", "0"]) == 2
        assert said in capsys.readouterr().err


SEEDED = {"seed": 11, "temperature": 1.0, "top_p": 0.9}
GREEDY = {"temperature": 0}
CHANGING = re.compile(
    r'"(id|item_id|response_id)":"[^"]*"|"(created|created_at|completed_at)":[\d.]+'
)
KNOWN = re.compile(r'"cached_tokens":\d+')


def answers(running: Running) -> list[str]:
    """What a server answers to the same requests, whole and as streams, without ids and times."""
    text = "a red circle over " * 12
    said = [{"role": "user", "content": text}]
    asks = {
        "/v1/completions": {"prompt": text, "max_tokens": 12, "logprobs": 3},
        "/v1/chat/completions": {"messages": said, "max_tokens": 12, "logprobs": True},
        "/v1/responses": {"input": said, "max_output_tokens": 12, "store": False},
    }
    found = []
    for path, ask in asks.items():
        for how in (SEEDED, GREEDY):
            for stream in (False, True):
                body = json.dumps({"model": "small", **ask, **how, "stream": stream})
                line = HTTPConnection("127.0.0.1", running.port, timeout=60)
                line.request("POST", path, body, {"Content-Type": "application/json"})
                answer = line.getresponse()
                assert answer.status == 200, answer.read()
                found.append(CHANGING.sub("", answer.read().decode()))
                line.close()
    return found


def test_a_restart_changes_no_byte_of_an_answer(small):
    both = []
    for _ in range(2):
        running = Running({"small": small})
        try:
            both.append((answers(running), answers(running)))
        finally:
            running.stop()
    (first, again), (restarted, _) = both
    assert len(set(first)) == len(first)
    assert first == restarted
    assert any('"cached_tokens":0' not in each for each in again)
    assert [KNOWN.sub("", each) for each in first] == [KNOWN.sub("", each) for each in again]


def test_answers_do_not_wait_for_an_acknowledgement(small):
    running = Running({"small": small})
    try:
        with socket.create_connection(("127.0.0.1", running.port), timeout=20) as line:
            line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert line.recv(100).startswith(b"HTTP/1.1 200")
            (connection,) = running.server.server_state.connections
            own = connection.transport.get_extra_info("socket")
            # else a body waits 40 ms for the acknowledgement of its head
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        running.stop()
