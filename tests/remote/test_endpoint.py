"""Requests to an endpoint: faults, retries, streams, and a key that is nowhere to be seen."""

import logging
import threading
import time
import traceback

import pytest

from bedstone.errors import BedstoneError
from bedstone.remote import endpoint as endpoint_module
from bedstone.remote.endpoint import Endpoint, is_remote, parse_address
from bedstone.remote.ledger import Budget, Cassette, Price, Usage, most_of
from fake_endpoint import KEY, cut, endpoint, events, hang, said, send, usage

BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
ROUTE = "chat/completions"


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setenv("BEDSTONE_REMOTE_KEY", KEY)
    monkeypatch.setattr(endpoint_module, "FIRST", 0.01)
    with endpoint() as made:
        yield made


def asker(fake, **options):
    options = {"seconds": 0.5, "total": 2.0, **options}
    return Endpoint(parse_address(f"{fake.url}#small"), **options)


def test_addresses(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    found = parse_address("openai:gpt-4o-mini")
    assert (found.url, found.model, found.key) == (
        "https://api.openai.com/v1", "gpt-4o-mini", "OPENAI_API_KEY",
    )  # fmt: skip
    found = parse_address("http://host:8000/v1/#org/name")
    assert (found.url, found.model, found.key) == (
        "http://host:8000/v1", "org/name", "BEDSTONE_REMOTE_KEY",
    )  # fmt: skip
    assert is_remote("openai:x") and is_remote("https://a/v1#b")
    assert not is_remote("minilm") and not is_remote("org/name") and not is_remote(None)
    for wrong in ("openai:", "http://host/v1", "http://#x", "http://u:p@host/v1#x",
                  "http://host/v1?key=a#x"):  # fmt: skip
        with pytest.raises(BedstoneError, match="model: "):
            parse_address(wrong)


def test_an_answer(fake):
    assert asker(fake).post(ROUTE, BODY)["choices"][0]["message"]["content"] == "hello"
    ((route, body, headers),) = fake.asked
    assert route == ROUTE and body == {"model": "small", **BODY}
    assert headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("fault", "tries"),
    [(408, 2), (409, 2), (429, 2), (500, 2), (502, 2), (503, 2), (cut, 2), (hang(0.8), 2)],
)
def test_what_passes_is_tried_again(fault, tries, fake):
    fake.faults = [fault]
    assert asker(fake).post(ROUTE, BODY)["choices"]
    assert len(fake.asked) == tries


@pytest.mark.parametrize(
    ("fault", "message", "tries"),
    [
        ((401, {"error": {"message": f"Incorrect key {KEY}"}}, {}), r"refused the key \(401\)", 1),
        ((403, {}, {}), "refused the key", 1),
        ((404, {"error": {"message": "no model small"}}, {}), "no model small", 1),
        ((400, {"error": {"message": "bad n"}}, {}), r"refused the request \(400\).*bad n", 1),
        ((422, {"detail": "bad"}, {}), r"\(422\)", 1),
        ((301, b"", {"Location": "http://127.0.0.1:1/"}), "isn't followed", 1),
        ((429, {"error": {"message": "slow down"}}, {}), "fewer requests.*slow down", 3),
        ((500, {"error": "broken"}, {}), r"failed \(500\), also after 2", 3),
        ((503, b"<html>no</html>", {}), r"failed \(503\)", 3),
        ((500, {}, {"x-should-retry": "false"}), r"failed \(500\)", 1),
        ((200, b"<html>hello</html>", {}), "no JSON object.*/v1", 3),
        ((200, b"[1]", {}), "no JSON object", 3),
        (cut, "broke off", 3),
        (hang(0.8), "in time|broke off", 3),
    ],
)
def test_what_stays_is_told(fault, message, tries, fake):
    fake.faults = [fault] * 5
    with pytest.raises(BedstoneError, match=message) as told:
        asker(fake).post(ROUTE, BODY)
    assert len(fake.asked) == tries
    assert fake.url in str(told.value)
    assert KEY not in "".join(traceback.format_exception(told.value))


def test_faults_of_all_kinds_count_together(fake):
    fake.faults = [cut, 500, cut, 500, cut]
    with pytest.raises(BedstoneError, match="broke off"):
        asker(fake).post(ROUTE, BODY)
    assert len(fake.asked) == 3


def test_it_waits_as_long_as_it_is_asked_to(fake):
    fake.faults = [(429, {}, {"Retry-After": "0.4"})]
    began = time.monotonic()
    asker(fake).post(ROUTE, BODY)
    assert time.monotonic() - began >= 0.4
    fake.faults = [(429, {}, {"Retry-After": "100000"})]  # nobody waits a day
    began = time.monotonic()
    asker(fake).post(ROUTE, BODY)
    assert time.monotonic() - began < 5


def test_nothing_there():
    with pytest.raises(BedstoneError, match="can't be reached"):
        Endpoint(parse_address("http://127.0.0.1:9/v1#small"), retries=0).post(ROUTE, BODY)


def test_an_answer_that_never_ends(fake):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    fake.faults = [drip]
    with pytest.raises(BedstoneError, match=r"isn't whole after 0\.6 s|in time|broke off"):
        asker(fake, total=0.6, retries=0).post(ROUTE, BODY)


PARTS = [
    {"choices": [{"delta": {"content": "he"}}]},
    {"choices": [{"delta": {"content": "llo"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": usage(4, 2)},
]


def test_a_stream(fake):
    fake.answer = lambda route, body: lambda handler: events(handler, PARTS)
    one = asker(fake, budget=Budget(tokens=1000))
    assert list(one.stream(ROUTE, BODY)) == PARTS
    assert one.budget.spent == Usage(4, 2)
    assert fake.asked[0][1]["stream_options"] == {"include_usage": True}


def test_a_stream_that_breaks_off_is_not_whole(fake):
    fake.answer = lambda route, body: lambda handler: events(handler, PARTS[:1], done=False)
    one, seen = asker(fake, budget=Budget(tokens=1000)), []
    with pytest.raises(BedstoneError, match="broke off before its end, after 1 events"):
        for event in one.stream(ROUTE, BODY):
            seen.append(event)
    assert seen == PARTS[:1] and len(fake.asked) == 1
    assert one.budget.spent == most_of(BODY)  # nothing told what it took
    fake.answer = lambda route, body: lambda handler: events(handler, [{"error": {"message": "x"}}])
    with pytest.raises(BedstoneError, match="x"):
        list(one.stream(ROUTE, BODY))


def test_the_key_is_nowhere(fake, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    tape = Cassette(tmp_path / "tape.jsonl", replay=False)
    one = asker(fake, cassette=tape)
    one.post(ROUTE, BODY)
    fake.faults = [(400, {"error": {"message": f"you sent {KEY}"}}, {})]
    with pytest.raises(BedstoneError) as told:
        one.post(ROUTE, BODY)
    held = (tmp_path / "tape.jsonl").read_text() + caplog.text + "".join(capsys.readouterr())
    held += "".join(traceback.format_exception(told.value)) + repr(one.address)
    assert KEY not in held


def test_without_a_key_openai_is_not_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(BedstoneError, match="OPENAI_API_KEY: isn't set"):
        Endpoint(parse_address("openai:gpt-4o-mini")).post(ROUTE, BODY)


# Budgets.


def test_a_budget_is_never_passed_by_eight_at_once(fake):
    def slow(route, body):
        time.sleep(0.02)
        return said(usage=usage(most_of(body).read, 8))  # the most that it can take

    fake.answer = slow
    each = most_of(BODY).tokens
    budget = Budget(tokens=10 * each + each // 2)
    one, refused = asker(fake, budget=budget, seconds=5.0, total=9.0), []

    def work():
        for _ in range(4):
            try:
                one.post(ROUTE, BODY)
            except BedstoneError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.spent.tokens <= 10 * each + each // 2
    assert len(fake.asked) == budget.requests == 10
    assert len(refused) == 22 and all("budget.tokens" in text for text in refused)
    assert fake.most > 1


def test_money(fake):
    price = Price(read=1.0, written=10.0)
    budget = Budget(money=0.001, price=price)
    one = asker(fake, budget=budget)
    one.post(ROUTE, BODY)
    assert budget.cost == pytest.approx((5 * 1 + 3 * 10) / 1e6)
    with pytest.raises(BedstoneError, match=r"budget\.money: 0\.0000 of 0\.001 is spent"):
        one.post(ROUTE, {**BODY, "max_tokens": 200})
    assert len(fake.asked) == 1
    with pytest.raises(BedstoneError, match="price"):
        Budget(money=1.0)
    with pytest.raises(BedstoneError, match="more than 0"):
        Budget(tokens=0)


def test_without_usage_a_request_counts_as_the_most_that_it_can_take(fake):
    fake.answer = lambda route, body: {"choices": said()["choices"]}
    one = asker(fake, budget=Budget(tokens=10_000))
    one.post(ROUTE, BODY)
    assert one.budget.spent == most_of(BODY) and one.usage_missing == 1
    fake.faults = [500] * 3  # what fails may have been done, and paid for
    before = one.budget.spent.tokens
    with pytest.raises(BedstoneError):
        one.post(ROUTE, BODY)
    assert one.budget.spent.tokens == before  # it said that it wasn't


# Cassettes.


def test_a_cassette_replays_to_the_byte_offline(fake, tmp_path):
    texts = iter(["one", "two", "three"])
    fake.answer = lambda route, body: said(next(texts))
    tape = tmp_path / "tape.jsonl"
    one = asker(fake, cassette=Cassette(tape, replay=False))
    first = [one.post(ROUTE, BODY), one.post(ROUTE, BODY), one.post(ROUTE, {**BODY, "n": 1})]
    fake.answer = lambda route, body: lambda handler: events(handler, PARTS)
    streamed = list(one.stream(ROUTE, BODY))
    count = len(fake.asked)
    again = asker(fake, cassette=Cassette(tape, replay=True))
    found = [again.post(ROUTE, BODY), again.post(ROUTE, BODY), again.post(ROUTE, {**BODY, "n": 1})]
    assert found == first and list(again.stream(ROUTE, BODY)) == streamed
    assert len(fake.asked) == count
    with pytest.raises(BedstoneError, match="2 times only recorded"):
        again.post(ROUTE, BODY)
    with pytest.raises(BedstoneError, match="never recorded"):
        again.post(ROUTE, {**BODY, "max_tokens": 9})


def test_hurt_cassettes(fake, tmp_path):
    tape = tmp_path / "tape.jsonl"
    asker(fake, cassette=Cassette(tape, replay=False)).post(ROUTE, BODY)
    whole = tape.read_bytes()
    tape.write_bytes(whole + b'{"key": "a')  # killed while writing: recording goes on
    one = asker(fake, cassette=Cassette(tape, replay=False))
    assert tape.read_bytes() == whole
    one.post(ROUTE, BODY)
    assert asker(fake, cassette=Cassette(tape, replay=True)).post(ROUTE, BODY)
    tape.write_bytes(whole.replace(b"small", b"smoll", 1) + whole)
    with pytest.raises(BedstoneError, match="line 1 holds no recorded answer"):
        Cassette(tape, replay=True)
    with pytest.raises(BedstoneError, match=r"missing\.jsonl"):
        Cassette(tmp_path / "missing.jsonl", replay=True)


def test_sends_are_counted_once(fake):
    fake.faults = [lambda handler: send(handler, 200, b"{}")]
    one = asker(fake)
    assert one.post(ROUTE, BODY) == {}
    assert one.budget.requests == 1
