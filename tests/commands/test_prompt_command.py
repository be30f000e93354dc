"""`bedstone prompt`: results, figures, and what it refuses."""

import json

import pytest

from bedstone.cli import main
from bedstone.models.heads import HeadConfig
from small_models import SENTENCES, decoder, model

ROWS = [
    {"text": f"{text} {number}", "label": "good" if number % 2 else "bad"}
    for number in range(4)
    for text in SENTENCES[2:]
]
TEMPLATE = 'task: text-classification\ninput: "{text} ="\noutput: " {label}"\nseparator: "; "\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt")
    decoder(HeadConfig("language"), "llama", 512).save(folder / "gpt")
    model(HeadConfig("tokens", ("O", "B-PER"))).save(folder / "bert")
    for name, rows in (("train", ROWS[:8]), ("test", ROWS[8:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "mine.yaml").write_text(TEMPLATE)
    return folder


def run(place, *words: str) -> int:
    given = [word.replace("@", f"{place}/") for word in words]
    return main(["prompt", *given])


def test_texts(place, capsys):
    common = ("@gpt", "--template", "@mine.yaml", "--examples", "@train.jsonl", "--shots", "2")
    assert run(place, *common, "a cat", "a film") == 0
    assert "a film" in (shown := capsys.readouterr().out) and "score" in shown
    assert run(place, *common, "--json", "a cat") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input"] == "a cat" and found["result"]["label"] in ("good", "bad")


def test_figures(place, tmp_path, capsys):
    words = ["@gpt", "--template", "@mine.yaml", "--examples", "@train.jsonl", "--data"]
    words += ["@test.jsonl", "--shots", "0,1,2", "--draws", "2", "--orders", "2"]
    words += ["--calibration", "none,content-free", "--select", "balanced"]
    plot = str(tmp_path / "k.png")
    assert run(place, *words, "--plot", plot) == 0
    shown = capsys.readouterr().out
    assert "content-free" in shown and "majority" in shown and plot in shown.replace("\n", "")
    assert run(place, *words, "--json", "--rows", "3") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rows"] == 3 and len(record["curve"]) == 6
    assert run(place, *words, "--plot", plot) == 2  # it is there


def test_the_right_choice_in_a_column_of_another_name(place, tmp_path, capsys):
    rows = [{"question": "cat?", "choices": ["a", "b"], "correct": each} for each in ("A", "b", 1)]
    (tmp_path / "mc.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("@gpt", "--task", "multiple-choice", "--data", str(tmp_path / "mc.jsonl"), "--json")
    assert run(place, *words, "--label-column", "correct") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rows"] == 3 and record["baselines"]["majority"] == pytest.approx(2 / 3)


def test_answers_that_name_no_label_are_no_class(place, capsys):
    words = ("@gpt", "--template", "@mine.yaml", "--examples", "@train.jsonl", "--shots", "0")
    more = ("--data", "@test.jsonl", "--json", "--option", "max_new_tokens=1")
    assert run(place, *words, *more, "--score", "generate") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["baselines"]["chance"] == pytest.approx(1 / 2)


def test_other_tasks(place, capsys):
    assert run(place, "@gpt", "a cat", "--task", "zero-shot-classification", "--labels", "x,y") == 0
    words = ("--task", "translation_en_to_de", "--option", "max_new_tokens=3", "--json")
    assert run(place, "@gpt", "a cat", *words) == 0
    assert "translation_text" in capsys.readouterr().out
    words = ("--task", "question-answering", "--context", "a cat ran", "--option")
    assert run(place, "@gpt", "who?", *words, "max_new_tokens=2") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["@gpt"], "there is nothing to read"),
        (["@bert", "a"], "needs a decoder with its language head"),
        (["@gpt", "a"], "there is no label word"),
        (["@gpt", "a", "--shots", "x"], "--shots: 'x' was given; expected a whole number"),
        (["@gpt", "a", "--shots", "0,1"], "--shots: 0,1 are several, which serve --data"),
        (["@gpt", "a", "--plot", "x.png"], "--plot: serves --data"),
        (["@gpt", "a", "--data", "@test.jsonl"], "Give texts or --data"),
        (["@gpt", "a", "--select", "similar"], "such as --embed minilm"),
        (["@gpt", "a", "--task", "fill-mask"], "can't be done by prompting"),
        (["@gpt", "a", "--task", "summarization", "--score", "sum"], "--score: summarization has"),
        (["@gpt", "a", "--context", "b"], "--context: text-classification takes none"),
        (["@gpt", "a", "--template", "sentimant"], "perhaps 'sentiment' is meant"),
        (["@gpt", "a", "--option", "shots=1"], "is an option of its own, --shots"),
        (["@gpt", "a", "--labels", "x,y", "--calibration", "nonce"], "calibration"),
        (["@gpt", "a", "--examples", "@train.jsonl", "--shots", "9"], "9 were wanted"),
        (["@gpt", "--data", "@test.jsonl", "--draws", "0"], "--draws: 0 was given"),
    ],
)
def test_what_is_refused(place, capsys, words, said):
    assert run(place, *words) == 2
    assert said in capsys.readouterr().err


def test_run_and_evaluate_name_the_command_for_decoders(place, capsys):
    assert main(["run", "text-classification", str(place / "gpt"), "a cat"]) == 2
    assert "bedstone prompt MODEL --task text-classification" in capsys.readouterr().err
    words = ["evaluate", str(place / "gpt"), str(place / "test.jsonl")]
    assert main([*words, "--task", "text-classification"]) == 2
    assert "bedstone prompt MODEL --task text-classification" in capsys.readouterr().err
