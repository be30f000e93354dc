"""`bedstone evaluate --task translation` and `summarization`: rows, figures, page and bad input."""

import json
from pathlib import Path

import pytest

from bedstone.cli import main
from encoder_decoders import HELD_OUT, in_words, trained_model
from small_models import NLI
from small_models import saved as encoder

NUMBERS = HELD_OUT[:12]
PLAIN = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(trained_model().save(tmp_path_factory.mktemp("model")))


def rows(path: Path, *lines: dict) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def pairs(source: str, target: str, several: bool = False) -> list[dict]:
    made = [{source: str(number), target: in_words(number)} for number in NUMBERS]
    return [{**row, target: [row[target], "none"]} for row in made] if several else made


def figures(capsys, *words) -> dict:
    assert main(["evaluate", *map(str, words), *PLAIN, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words) -> str:
    assert main(["evaluate", *map(str, words), *PLAIN]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_all_forms_of_rows_have_the_same_figures(folder, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    words = (folder, data, "--task", "translation")
    rows(data, *pairs("source", "target"))
    found = figures(capsys, *words)["translation"]
    assert found["bleu"] > 0.8 and found["bleu_low"] <= found["bleu"] <= found["bleu_high"]
    assert found["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert {"copied", "empty", "over_long", "chrf"} <= set(found) and "coverage" not in found
    rows(data, *({"translation": row} for row in pairs("en", "xx")))
    both = ("--source-lang", "en", "--target-lang", "xx")
    assert figures(capsys, *words, *both)["translation"] == found
    rows(data, *pairs("en", "xx"))
    assert figures(capsys, *words, *both)["translation"] == found
    named = (folder, data, "--task", "translation_en_to_xx")
    assert figures(capsys, *named)["translation"] == found
    rows(data, *({**row, "source": "x"} for row in pairs("a", "b")))
    named = ("--column", "a", "--label-column", "b")
    assert figures(capsys, *words, *named)["translation"] == found
    other = {"translation": {"en": "1", "xx": "none"}}
    rows(data, *({**row, **other} for row in pairs("a", "b")))
    assert figures(capsys, *words, *both, *named)["translation"] == found
    rows(data, *pairs("document", "summary"))
    short = figures(capsys, folder, data, "--task", "summarization")["summarization"]
    assert short["rouge1"] > 0.8 and "stemmer:yes" in short["signatures"]["rouge"]
    rows(data, *pairs("source", "target", several=True))
    assert figures(capsys, *words)["translation"]["signatures"]["bleu"].startswith("nrefs:2")


def test_languages_and_tasks_that_the_model_knows(tmp_path, capsys):
    model = trained_model()
    model.tokenizer.settings |= {"source_lang": "en", "target_lang": "xx"}
    folder = model.save(tmp_path / "settings")
    data = rows(tmp_path / "rows.jsonl", *({"translation": row} for row in pairs("en", "xx")))
    found = figures(capsys, folder, data, "--task", "translation")["translation"]
    model = trained_model()
    recipe = {"task": "translation", "data": {"source_lang": "en", "target_lang": "xx"}}
    model.record = {"recipe": {**recipe, "lowercase_bleu": True}}
    folder = model.save(tmp_path / "recipe")
    learnt = figures(capsys, folder, data)["translation"]  # the task is known too
    assert learnt["bleu"] == found["bleu"] and "case:lc" in learnt["signatures"]["bleu"]


def test_the_page(folder, tmp_path, capsys):
    lines = [*pairs("source", "target"), {"source": "77 of 912 and 3", "target": "unsayable"}]
    data, page = rows(tmp_path / "rows.jsonl", *lines), tmp_path / "page.html"
    words = (folder, data, "--task", "translation", "--page", page)
    found = figures(capsys, *words)["translation"]
    assert 0 < found["coverage"] <= 1
    text = page.read_text()
    assert text.count("of\n the source read") == len(lines)
    assert "unsayable" in text and "rows.jsonl: line 13" in text
    assert "page.html" in refused(capsys, *words)  # it is there already
    assert main(["evaluate", *map(str, words), *PLAIN, "--overwrite"]) == 0
    assert "page: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"source": "1"}, ("line 3", "'target'", "is missing", "Fill it in")),
        ({"source": "1", "target": None}, ("line 3", "'target'", "is null")),
        ({"source": None, "target": "one"}, ("line 3", "'source'", "is null")),
        ({"source": " ", "target": "one"}, ("line 3", "'source'", "is empty")),
        ({"source": "1", "target": ""}, ("line 3", "'target'", "is empty")),
        ({"source": 1, "target": "one"}, ("line 3", "'source'", "expected a string")),
        ({"source": "1", "target": ["one", "a"]}, ("line 3", "2 references", "as many")),
        ({"source": "1", "target": []}, ("line 3", "'target'", "expected a string")),
    ],
)
def test_a_broken_row_is_named(line, said, folder, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    rows(data, *pairs("source", "target")[:2], line)
    error = refused(capsys, folder, data, "--task", "translation")
    for part in ("rows.jsonl", *said):
        assert part in error


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"en": "1"}, ("line 3", "'translation', 'xx'")),
        ({"en": None, "xx": "one"}, ("line 3", "'translation', 'en'")),
        ("one", ("line 3", "'translation' is", "Expected")),
        (None, ("line 3", "'translation' is null")),
    ],
)
def test_a_broken_row_of_languages_is_named(cell, said, folder, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    rows(data, *({"translation": row} for row in [*pairs("en", "xx")[:2], cell]))
    words = (folder, data, "--task", "translation", "--source-lang", "en", "--target-lang", "xx")
    error = refused(capsys, *words)
    for part in ("rows.jsonl", *said):
        assert part in error


def test_data_that_is_refused_or_doubted(folder, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    words = (folder, data, "--task", "translation")
    rows(data, *({"translation": row} for row in pairs("en", "xx")))
    error = refused(capsys, *words)
    assert "en, xx" in error and "--source-lang" in error and "--target-lang" in error
    error = refused(capsys, *words, "--source-lang", "en", "--target-lang", "xy")
    assert "'xy'" in error and "perhaps 'xx'" in error
    rows(data, *pairs("source", "note"))
    error = refused(capsys, *words)
    assert "no column for the target" in error and "--label-column" in error
    error = refused(capsys, *words, "--label-column", "nota")
    assert "'nota'" in error and "perhaps 'note'" in error
    wrong = pairs("source", "target")
    said = "two and three say this"
    wrong = [{"source": f"zwei und drei {row['source']}", "target": said} for row in wrong]
    wrong[2] = {"source": said, "target": "zwei und drei"}
    rows(data, *wrong)
    found = figures(capsys, *words)["translation"]
    assert "rows.jsonl: line 3: source and reference look swapped" in found["warning"]
    same = [{"source": "1 2 3", "target": "1 2 3"}] * 4
    rows(data, *pairs("source", "target"), *same)
    assert "4 of 16 pairs the source is the target" in refused(capsys, *words)


def test_options_of_other_tasks(folder, tmp_path, capsys):
    data = rows(tmp_path / "rows.jsonl", *pairs("document", "summary"))
    short = (folder, data, "--task", "summarization")
    assert "no use" in refused(capsys, *short, "--source-lang", "en", "--target-lang", "xx")
    assert "--task translation or --task summarization" in refused(capsys, folder, data)
    other = encoder(tmp_path / "e", NLI)
    labelled = rows(tmp_path / "l.jsonl", {"text": "a", "label": NLI.labels[0]})
    page = ("--page", tmp_path / "p.html")
    assert "--page" in refused(capsys, other, labelled, *page)
    task = ("--task", "text-classification")
    assert "--page: text-classification has no use" in refused(
        capsys, other, labelled, *task, *page
    )
    assert "--source-lang" in refused(capsys, other, labelled, "--source-lang", "en")
    assert "needs an encoder-decoder" in refused(capsys, other, data, "--task", "translation")


def test_predictions_of_sources(folder, tmp_path, capsys):
    data = rows(tmp_path / "rows.jsonl", *pairs("document", "summary"))
    out = tmp_path / "out.jsonl"
    terms = tmp_path / "terms.csv"
    terms.write_text(f"{NUMBERS[0]},dozen\n")
    words = ["predict", folder, data, "--out", str(out), "--task", "summarization"]
    assert main([*words, "--option", f"glossary={terms}"]) == 0
    found = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert "dozen" in found[0].split() and found[1] == in_words(NUMBERS[1])
    assert main([*words, "--column", "summary", "--overwrite"]) == 0


def test_predict_reads_the_same_rows(folder, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    words = ("predict", folder, str(data), "--overwrite", "--task", "translation", *PLAIN)

    def predicted(*more: str) -> list[str]:
        assert main([*words, *more]) == 0, capsys.readouterr().err
        lines = (tmp_path / "rows.predicted.jsonl").read_text().splitlines()
        return [json.loads(line)["prediction"] for line in lines]

    rows(data, *pairs("source", "target"))
    found = predicted()
    assert sum(map(str.__eq__, found, map(in_words, NUMBERS))) > 0.7 * len(NUMBERS)
    rows(data, *({"translation": row} for row in pairs("en", "xx")))
    assert main([*words]) == 2
    assert "src_lang: isn't given" in capsys.readouterr().err
    assert predicted("--option", "src_lang=en") == found
    rows(data, *pairs("en", "xx"), {"en": None})
    assert predicted("--option", "src_lang=en") == [*found, None]


def test_of_several_languages_the_one_measured_is_named(tmp_path, capsys):
    model = trained_model()
    recipe = {"task": "translation", "data": {"source_lang": "en", "target_lang": ["xx", "yy"]}}
    model.record = {"recipe": recipe}
    folder = model.save(tmp_path / "recipe")
    data = rows(tmp_path / "rows.jsonl", *({"translation": row} for row in pairs("en", "xx")))
    assert "--target-lang" in refused(capsys, folder, data, "--task", "translation")
    named = (folder, data, "--task", "translation", "--target-lang", "xx")
    assert figures(capsys, *named)["translation"]["bleu"] > 0.8


def test_predict_takes_the_task_that_was_learnt_and_languages_of_its_name(tmp_path, capsys):
    model = trained_model()
    model.record = {"recipe": {"task": "translation", "data": {}}}
    folder = str(model.save(tmp_path / "model"))
    data = rows(tmp_path / "rows.jsonl", *({"translation": row} for row in pairs("en", "xx")))
    words = ("predict", folder, data, "--overwrite", *PLAIN)
    assert main([*words]) == 2
    assert "src_lang: isn't given" in capsys.readouterr().err
    assert main([*words, "--option", "src_lang=en"]) == 0
    assert "by translation:" in capsys.readouterr().out
    found = (tmp_path / "rows.predicted.jsonl").read_text()
    assert main([*words, "--task", "translation_en_to_xx"]) == 0
    assert (tmp_path / "rows.predicted.jsonl").read_text() == found
