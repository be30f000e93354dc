"""A model behind an endpoint does tasks as a local one; what it lacks is refused by name."""

import json

import pytest

import bedstone
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.remote import endpoint as endpoint_module
from bedstone.remote.ledger import Budget, Cassette
from bedstone.remote.model import PROBES, RemoteModel
from fake_endpoint import endpoint, events, said, send, usage


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(endpoint_module, "FIRST", 0.01)
    with endpoint() as made:
        yield made


def able(route, body):
    """An endpoint that does all that it is asked for."""
    if route == "completions":
        text = body["prompt"]
        if body.get("echo"):
            starts = [n for n, c in enumerate(text) if n == 0 or c == " "]
            values = [None, *(-0.5 * (n + 1) for n in range(len(starts) - 1))]
            best = [None, *({"x": value} for value in values[1:])]
            told = {"text_offset": starts, "token_logprobs": values, "top_logprobs": best}
            return {"choices": [{"text": text, "logprobs": told, "finish_reason": "length"}],
                    "usage": usage()}  # fmt: skip
        return {"choices": [{"text": " going on", "finish_reason": "stop"}], "usage": usage()}
    if "response_format" in body:
        return said('{"sea": true}')
    if "tools" in body:
        call = {"id": "1", "type": "function",
                "function": {"name": "look", "arguments": '{"sea": true}'}}  # fmt: skip
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage()}
    return said("the sea is wide")


def remote(fake, **options):
    return RemoteModel(f"{fake.url}#small", **options)


def test_six_requests_find_out_what_an_endpoint_does(fake):
    fake.answer = able
    model = remote(fake)
    assert model.abilities == dict.fromkeys(PROBES, True)
    assert len(fake.asked) == 6
    assert model.abilities and len(fake.asked) == 6  # asked once


def test_what_is_accepted_in_silence_counts_as_absent(fake):
    number = iter(range(100))
    fake.answer = lambda route, body: (
        {"choices": [{"text": "x", "finish_reason": "stop"}]}
        if route == "completions" and "suffix" not in body
        else None if route == "completions"
        else {"choices": [{"message": {"content": f"text {next(number)}"}}]}
    )  # fmt: skip
    found = remote(fake).abilities
    assert found == {**dict.fromkeys(PROBES, False), "chat": True}


def test_tasks_that_need_more_are_refused_by_name(fake):
    fake.answer = lambda route, body: said() if route.startswith("chat") else None
    model = remote(fake)
    with pytest.raises(BedstoneError, match=r"likelihoods.*log-probabilities of a prompt"):
        model.score([("a", " b")])
    classify = bedstone.pipeline("text-classification", model, template="sentiment", chat="none")
    with pytest.raises(BedstoneError, match="log-probabilities of a prompt"):
        classify("a lovely film")
    with pytest.raises(BedstoneError, match="json_schema: needs answers that follow a schema"):
        bedstone.pipeline("text-generation", model)("x", json_schema={"type": "object"})
    with pytest.raises(BedstoneError, match="suffix: needs texts before a suffix"):
        bedstone.pipeline("text-generation", model)("x", suffix="y")
    with pytest.raises(BedstoneError, match=r"fill-mask: needs .* on this machine"):
        bedstone.pipeline("fill-mask", model)
    with pytest.raises(BedstoneError, match="top_k: was given"):
        bedstone.pipeline("text-generation", model)("x", top_k=3)


def test_text_generation_has_the_calls_and_keys_of_a_local_model(fake):
    fake.answer = able
    task = bedstone.pipeline("text-generation", f"{fake.url}#small")
    assert task("The sea is") == [{"generated_text": "The sea is going on"}]
    talk = [{"role": "user", "content": "What of the sea?"}]
    (one,) = task(talk, max_new_tokens=9, do_sample=False, stop="\n", seed=3)
    assert one["generated_text"] == [*talk, {"role": "assistant", "content": "the sea is wide"}]
    body = fake.asked[-1][1]
    assert body["max_tokens"] == 9 and body["temperature"] == 0 and body["stop"] == ["\n"]
    assert body["seed"] == 3
    assert task(["a", "b"], return_full_text=False) == [[{"generated_text": " going on"}]] * 2
    assert list(task(iter(["a"]))) == [[{"generated_text": "a going on"}]]
    (whole,) = task("Say", json_schema={"type": "object"}, return_full_text=False)
    assert whole == {"generated_text": '{"sea": true}', "complete": True}
    assert task("The ", suffix=" sea")[0]["generated_text"] == "The  going on sea"


def test_json_that_was_cut_is_not_whole(fake):
    model = remote(fake, abilities=dict.fromkeys(PROBES, True))
    task = bedstone.pipeline("text-generation", model, return_full_text=False)
    for answer in (said('{"a": 1}', "length"), said('{"a": ')):
        fake.answer = lambda route, body, answer=answer: answer
        assert task("Say", json_schema={"type": "object"})[0]["complete"] is False


def test_a_model_without_the_route_is_asked_in_a_conversation(fake):
    fake.answer = lambda route, body: said("yes") if route.startswith("chat") else None
    task = bedstone.pipeline("text-generation", remote(fake), return_full_text=False)
    assert task("Is it?") == [{"generated_text": "yes"}]
    assert fake.asked[-1][1]["messages"] == [{"role": "user", "content": "Is it?"}]


def test_likelihoods_are_of_the_continuation_alone(fake):
    fake.answer = able
    model = remote(fake)
    (found,) = model.score([("one two", " three four")])
    # tokens: one, two, three, four, with 0, -.5, -1, -1.5
    assert found.log_probability == pytest.approx(-2.5) and found.tokens == 2 and found.greedy
    with pytest.raises(BedstoneError, match="first token"):
        model.score([("", "one")])


def test_prompted_tasks_generate_and_score(fake):
    fake.answer = able
    model = remote(fake)
    scored = bedstone.pipeline(
        "text-classification", model, labels={"bad": "no good thing", "good": "fine"}, chat="none"
    )
    (best,) = scored("a lovely film", top_k=1)
    assert best["label"] == "good"  # fewer words, of equal chance each
    fake.answer = lambda route, body: said("It is positive.")
    told = bedstone.pipeline(
        "text-classification", model, labels="positive,negative", score="generate"
    )
    assert told("a lovely film")[0]["label"] == "positive"
    assert fake.asked[-1][1]["messages"][-1]["role"] == "user"
    fake.answer = lambda route, body: said("Ein Haus.")
    translate = bedstone.pipeline("translation_en_to_de", model)
    assert translate("A house.")[0]["translation_text"] == "Ein Haus."


def test_eight_at_a_time_and_in_order(fake):
    import time

    def answer(route, body):
        time.sleep(0.03)
        return {"choices": [{"text": body["prompt"][::-1]}], "usage": usage()}

    fake.answer = answer
    task = bedstone.pipeline("text-generation", remote(fake), return_full_text=False)
    texts = [f"text {number}" for number in range(24)]
    assert [one[0]["generated_text"] for one in task(texts)] == [text[::-1] for text in texts]
    assert 1 < fake.most <= 8


def test_a_budget_stops_a_task(fake):
    fake.answer = able
    budget = Budget(tokens=700)
    task = bedstone.pipeline("text-generation", remote(fake, budget=budget))
    with pytest.raises(BedstoneError, match=r"budget\.tokens"):
        task(["a"] * 200, max_new_tokens=100)
    assert budget.spent.tokens <= 700 and len(fake.asked) < 200


def test_a_cassette_of_a_task(fake, tmp_path):
    fake.answer = able
    tape = tmp_path / "tape.jsonl"
    recorded = bedstone.pipeline(
        "text-generation", remote(fake, cassette=Cassette(tape, replay=False))
    )(["a", "b", "a"])
    count = len(fake.asked)
    replayed = bedstone.pipeline(
        "text-generation", remote(fake, cassette=Cassette(tape, replay=True))
    )(["a", "b", "a"])
    assert replayed == recorded and len(fake.asked) == count


def test_refusals_are_recorded_too(fake, tmp_path):
    fake.answer = able
    tape = tmp_path / "tape.jsonl"

    def lacking(route, body):
        return (lambda handler: send(handler, 400, b"{}")) if "tools" in body else able(route, body)

    fake.answer = lacking
    model = remote(fake, cassette=Cassette(tape, replay=False))
    (score,) = model.score([("one two", " three")])
    assert model.abilities["tools"] is False
    again = remote(fake, cassette=Cassette(tape, replay=True))
    count = len(fake.asked)
    assert again.score([("one two", " three")]) == [score]
    assert again.abilities == model.abilities and len(fake.asked) == count


def test_a_stream(fake):
    parts = [{"choices": [{"delta": {"content": text}}]} for text in ("the ", "sea")]
    parts.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
    fake.answer = lambda route, body: lambda handler: events(handler, parts)
    found = list(remote(fake).stream([{"role": "user", "content": "x"}]))
    assert "".join(one.text for one in found) == "the sea" and found[-1].finish == "length"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choices": []}, "without choices"),
        ({}, "without choices"),
        ({"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]},
         r"without a text \(content_filter\)"),
        ({"choices": [{"message": {"content": None, "refusal": "I won't"}}]}, "I won't"),
        ({"choices": [{"message": {"tool_calls": [{"function": {}}]}}]}, "without a name"),
    ],
)  # fmt: skip
def test_answers_that_are_none(answer, message, fake):
    fake.answer = lambda route, body: answer
    task = bedstone.pipeline("text-generation", remote(fake))
    with pytest.raises(BedstoneError, match=message):
        task([{"role": "user", "content": "x"}])


def test_the_command_line(fake, capsys, tmp_path):
    fake.answer = lambda route, body: said("positive")
    words = ["prompt", f"{fake.url}#small", "a lovely film", "--template", "sentiment"]
    assert main([*words, "--score", "generate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["result"]["label"] == "positive"
    rows = [{"text": f"film {n}", "label": "positive"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    measure = ["prompt", f"{fake.url}#small", "--template", "sentiment", "--score", "generate"]
    measure += ["--data", str(tmp_path / "rows.jsonl"), "--json"]
    assert main(measure) == 0
    capsys.readouterr()
    tape = str(tmp_path / "tape.jsonl")
    more = ["--score", "generate", "--json", "--budget-money", "0.01", "--price", "1,2"]
    assert main([*words, *more, "--record", tape]) == 0
    recorded = capsys.readouterr()
    assert "1 requests, 8 tokens, 0.0000 by the price" in recorded.err
    assert main([*words, *more, "--replay", tape]) == 0
    assert capsys.readouterr().out == recorded.out
    assert main([*words, "--score", "generate", "--budget-tokens", "3"]) == 2
    assert "budget.tokens" in capsys.readouterr().err
    assert main(["prompt", "python-gpt", "x", "--budget-tokens", "3"]) == 2
    assert "--budget-tokens: serves a model behind" in capsys.readouterr().err
    assert main([*words, "--price", "1"]) == 2
    assert "--price" in capsys.readouterr().err
    assert main(["complete", f"{__file__}:3", "--model", f"{fake.url}#small"]) == 2
    assert "behind an endpoint" in capsys.readouterr().err
    assert main(["prompt", "openai:", "x"]) == 2


def test_commands_write_and_talk_by_an_endpoint(fake, capsys, tmp_path):
    name = f"{fake.url}#small"
    fake.answer = able
    main(["generate", name, "The sea is", "--max-new-tokens", "5"])
    out, err = capsys.readouterr()
    assert out.startswith("The sea is going on") and "1 requests" in err
    main(["generate", name, "Say it.", "Again.", "--chat", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["generated_text"] for each in lines] == ["the sea is wide"] * 2
    parts = [{"choices": [{"delta": {"content": each}}]} for each in ("the ", "sea", " is wide")]
    parts += [{"choices": [{"delta": {}, "finish_reason": "stop"}]},
              {"choices": [], "usage": usage()}]  # fmt: skip
    fake.answer = lambda route, body: lambda handler: events(handler, parts)
    tape = tmp_path / "talk.jsonl"
    for more in (["--record", str(tape)], ["--replay", str(tape)]):
        main(["chat", name, "--message", "Say it.", "--system", "Be brief.", "--json", *more])
        found = json.loads(capsys.readouterr().out)
        assert found["messages"][-1] == {"role": "assistant", "content": "the sea is wide"}
        assert found["finish_reason"] == "stop"
    assert fake.asked[-1][1]["messages"][0] == {"role": "system", "content": "Be brief."}
    for words, message in {
        ("--precision", "int8"): "--precision",
        ("--top-k", "5"): "top_k",
        ("--choices", "a"): "choices",
    }.items():
        assert main(["chat", name, "--message", "x", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["generate", "python-gpt", "x", "--budget-tokens", "5"]) == 2
    assert "--budget-tokens: serves a model behind an endpoint" in capsys.readouterr().err


def test_programs_of_an_endpoint_are_judged(fake, capsys, tmp_path):
    row = {"task_id": "one", "prompt": "def one():\n", "entry_point": "one",
           "canonical_solution": "    return 1\n",
           "test": "def check(candidate):\n    assert candidate() == 1\n"}  # fmt: skip
    (tmp_path / "problems.jsonl").write_text(json.dumps(row) + "\n")
    name, words = f"{fake.url}#small", [str(tmp_path / "problems.jsonl"), "--task", "humaneval"]
    fake.answer = lambda route, body: said("```python\ndef one():\n    return 1\n```")
    main(["evaluate", name, *words, "--json"])
    assert json.loads(capsys.readouterr().out)["humaneval"]["pass@1"] == 1.0
    body = "    return 2\nprint(one())"
    fake.answer = lambda route, body_: {
        "choices": [{"text": body, "finish_reason": "stop"}], "usage": usage()
    }  # fmt: skip
    main(["evaluate", name, *words, "--chat", "none", "--json"])
    assert json.loads(capsys.readouterr().out)["humaneval"]["pass@1"] == 0.0
    assert len(fake.asked[-1][1]["stop"]) == 4
    assert main(["evaluate", name, words[0]]) == 2
    assert "bedstone prompt --data" in capsys.readouterr().err


def test_streams_that_hold_no_text_are_errors(fake):
    model = remote(fake)
    for parts in ([{"choices": [{"delta": {"content": 5}}]}], [{"choices": []}]):
        fake.answer = lambda route, body, parts=parts: lambda handler: events(handler, parts)
        with pytest.raises(BedstoneError, match=r"as a text|without a text"):
            list(model.stream([{"role": "user", "content": "hello"}]))
