"""`bedstone evaluate` on labelled rows and on hidden words."""

import json

import pytest

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.text.convert_tokenizer import train_wordpiece
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.heads import HeadConfig

TEXTS = ["the red boat sails", "a cold sea and no one", "far over the sea it goes"] * 8
HEADS = {
    "labels": HeadConfig("sequence", ("no", "yes")),
    "score": HeadConfig("sequence", ("score",), "regression"),
    "tags": HeadConfig("tokens", ("O", "B-X", "I-X")),
    "spans": HeadConfig("spans"),
    "words": HeadConfig("pretraining"),
    "states": HeadConfig("states"),
}
ROWS = {
    "labels": [{"text": t, "label": "yes" if "sea" in t else "no"} for t in TEXTS],
    "score": [{"text": t, "score": float(len(t))} for t in TEXTS],
    "tags": [{"tokens": t.split(), "ner_tags": ["B-X"] + ["O"] * t.count(" ")} for t in TEXTS],
    "spans": [
        {"question": "what ?", "context": t, "answers": {"text": [t[:3]], "answer_start": [0]}}
        for t in TEXTS
    ],
    "words": [{"text": f"{t}. {t}."} for t in TEXTS],
    "states": [{"text": t} for t in TEXTS],
}


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return Tokenizer(*train_wordpiece([" ".join(TEXTS)] * 4, 110))


def prepared(name: str, pieces: Tokenizer, folder) -> tuple[str, str]:
    config = BertConfig(
        vocab_size=pieces.vocab_size, width=32, layers=1, heads=2, context=40, head=HEADS[name]
    )
    Model(build(config, seed=1).eval(), pieces).save(folder / "model")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    return str(folder / "model"), str(path)


FIGURES = {"labels": "accuracy", "score": "spearman", "tags": "f1", "spans": "exact_match"}


@pytest.mark.parametrize("name", FIGURES)
def test_each_head_has_its_figures(name, pieces, tmp_path, capsys):
    model, rows = prepared(name, pieces, tmp_path)
    assert main(["evaluate", model, rows, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == len(TEXTS)
    figure = FIGURES[name]
    low, high = found[f"{figure}_low"], found[f"{figure}_high"]
    assert low - 1e-9 <= found[figure] <= high + 1e-9  # a correlation of 1 may round to less
    assert main(["evaluate", model, rows]) == 0
    assert figure in capsys.readouterr().out


def test_the_confusion_matrix_is_drawn(pieces, tmp_path, capsys):
    model, rows = prepared("labels", pieces, tmp_path)
    picture = tmp_path / "confusion.png"
    assert main(["evaluate", model, rows, "--confusion", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    tagger, tagged = prepared("tags", pieces, tmp_path / "tags")
    other = str(tmp_path / "tags.png")
    assert main(["evaluate", tagger, tagged, "--confusion", other]) == 2
    assert "no such matrix" in capsys.readouterr().err


def test_hidden_words_are_the_same_ones_every_time(pieces, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path / "cache"))
    model, rows = prepared("words", pieces, tmp_path)
    found = []
    for _ in range(2):
        assert main(["evaluate", model, rows, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["words"] > 20
    assert 0 <= found[0]["word_accuracy"] <= 1


def test_what_cannot_be_measured_is_told(pieces, tmp_path, capsys):
    model, rows = prepared("states", pieces, tmp_path)
    assert main(["evaluate", model, rows]) == 2
    assert "has no head" in capsys.readouterr().err
    labelled, _ = prepared("labels", pieces, tmp_path / "labels")
    (tmp_path / "unseen.jsonl").write_text('{"text": "a boat", "label": "yess"}\n')
    assert main(["evaluate", labelled, str(tmp_path / "unseen.jsonl")]) == 2
    assert "perhaps 'yes'" in capsys.readouterr().err
