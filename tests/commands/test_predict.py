"""`bedstone predict`: every task on rows; all columns kept, broken rows named, nothing replaced."""

import csv
import json

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

import bedstone
from bedstone.cli import main
from bedstone.commands.predict import beside, flat, predict, prompts_of
from bedstone.data.open import open_dataset
from bedstone.data.text.instructions import alpaca_prompt, alpaca_template
from bedstone.data.write import write_rows
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from image_models import labelled_model
from small_models import NLI, SENTENCES, TAGS, decoder, model, saved

LABELS = HeadConfig("sequence", ("bad", "good"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return str(saved(tmp_path_factory.mktemp("classifier"), LABELS))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_columns_are_kept_and_predictions_are_the_tasks(classifier, tmp_path, capsys):
    source = tmp_path / "tickets.csv"
    source.write_text(
        "id,text,price,note\n"
        + "".join(f'00{n},"{text}",1.50,\n' for n, text in enumerate(SENTENCES))
    )
    assert main(["predict", classifier, str(source)]) == 0
    assert "5 of 5 rows predicted by text-classification" in capsys.readouterr().out
    found = rows_of(tmp_path / "tickets.predicted.csv")
    assert list(found[0]) == ["id", "text", "price", "note", "prediction", "score"]
    assert [row["id"] for row in found] == [f"00{n}" for n in range(5)]
    assert [row["price"] for row in found] == ["1.50"] * 5
    expected = bedstone.pipeline("text-classification", classifier, precision="auto")(SENTENCES)
    assert [row["prediction"] for row in found] == [each["label"] for each in expected]
    for row, each in zip(found, expected, strict=True):
        assert float(row["score"]) == pytest.approx(each["score"], abs=1e-2)


@pytest.mark.parametrize("suffix", [".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_comes_back_as_it_was(classifier, tmp_path, suffix):
    rows = [{"n": n, "text": text, "more": [n, n + 1]} for n, text in enumerate(SENTENCES)]
    source = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    elif suffix == ".tsv":
        source.write_text("n\ttext\n" + "".join(f"{row['n']}\t{row['text']}\n" for row in rows))
    else:
        lines = [json.dumps(row) for row in rows]
        source.write_text(f"[{','.join(lines)}]" if suffix == ".json" else "\n".join(lines))
    assert main(["predict", classifier, str(source)]) == 0
    made = tmp_path / f"rows.predicted{suffix}"
    if suffix == ".parquet":
        found = parquet.read_table(made).to_pylist()
    elif suffix == ".tsv":
        found = list(csv.DictReader(made.read_text().splitlines(), delimiter="\t"))
    else:
        text = made.read_text()
        found = json.loads(text) if suffix == ".json" else [*map(json.loads, text.splitlines())]
    assert [str(row["n"]) for row in found] == ["0", "1", "2", "3", "4"]
    assert suffix == ".tsv" or [row["more"] for row in found] == [row["more"] for row in rows]
    assert all(row["prediction"] in ("bad", "good") for row in found)


def test_the_ending_decides_whatever_its_case(classifier, tmp_path):
    source = tmp_path / "ROWS.JSONL"
    source.write_text(json.dumps({"text": "go"}) + "\n")
    assert main(["predict", classifier, str(source)]) == 0
    assert json.loads((tmp_path / "ROWS.predicted.JSONL").read_text())["text"] == "go"


def test_rows_that_cannot_be_read_stay_with_their_reason(classifier, tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    texts = ["go", "", None, "a cat"]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert main(["predict", classifier, str(source)]) == 0
    said = capsys.readouterr().out
    assert "2 of 4 rows" in said and "line 2" in said
    found = [*map(json.loads, (tmp_path / "rows.predicted.jsonl").read_text().splitlines())]
    assert [row["text"] for row in found] == texts
    assert [bool(row.get("error")) for row in found] == [False, True, True, False]
    assert [row["prediction"] is None for row in found] == [False, True, True, False]
    source.write_text(json.dumps({"text": ""}) + "\n")
    assert main(["predict", classifier, str(source), "--overwrite"]) == 2
    assert "no row can be read" in capsys.readouterr().err


@pytest.mark.parametrize("images", [False, True])
def test_broken_rows_of_a_file_are_left_out_and_named(classifier, tmp_path, caplog, capsys, images):
    network = str(labelled_model().save(tmp_path / "model")) if images else classifier
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    rows = [json.dumps({"image": "0.png"} if images else {"text": "a cat"})] * 40
    rows[6] = '{"text'
    if images:
        rows[9] = json.dumps({"image": "1.png"})
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(rows))
    assert main(["predict", network, str(source)]) == 0
    count = 38 if images else 39
    assert f"{count} of {count} rows predicted" in capsys.readouterr().out
    assert len((tmp_path / "rows.predicted.jsonl").read_text().splitlines()) == count
    assert f"{40 - count} rows left out" in caplog.text and "line 7 is not valid" in caplog.text
    assert ("1.png" in caplog.text) == images
    source.write_text("\n".join(rows[:10]))
    assert main(["predict", network, str(source), "--overwrite"]) == 2
    assert "of 10 rows are broken, more than 5% of them" in capsys.readouterr().err


def test_other_tasks_and_options(tmp_path, capsys):
    source = tmp_path / "rows.csv"
    source.write_text("body\n" + "".join(f'"{text}"\n' for text in SENTENCES))
    nli = str(saved(tmp_path / "nli", NLI))
    words = ["predict", nli, str(source), "--task", "zero-shot-classification", "--column", "body"]
    option = ["--option", 'candidate_labels=["sport", "film"]']
    assert main([*words, *option, "--out", str(tmp_path / "zero.csv")]) == 0
    assert {row["prediction"] for row in rows_of(tmp_path / "zero.csv")} <= {"sport", "film"}
    tagger = str(saved(tmp_path / "tags", TAGS))
    out = tmp_path / "tags.csv"
    assert main(["predict", tagger, str(source), "--column", "body", "--out", str(out)]) == 0
    found = [json.loads(row["prediction"]) for row in rows_of(out)]
    assert all(isinstance(each, list) for each in found)
    spans = str(saved(tmp_path / "spans", HeadConfig("spans")))
    source.write_text("question,context\n" + "".join(f'who?,"{text}"\n' for text in SENTENCES))
    out = tmp_path / "answers.csv"
    assert main(["predict", spans, str(source), "--out", str(out)]) == 0
    for row, text in zip(rows_of(out), SENTENCES, strict=True):
        assert row["prediction"] in text


def test_pictures_of_a_folder(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (32, 32), (80 * n, 0, 200)).save(folder / f"{n}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    path = labelled_model().save(tmp_path / "model")
    assert main(["predict", str(path), str(folder)]) == 0
    found = rows_of(tmp_path / "photos.predicted.csv")
    assert len(found) == 4
    assert sum(bool(row["error"]) for row in found) == 1
    assert all(bool(row["prediction"]) != bool(row["error"]) for row in found)


def test_pictures_of_a_phone_are_counted_and_named(tmp_path, caplog, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(20):
        Image.new("RGB", (32, 32)).save(folder / f"{n}.png")
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    path = labelled_model().save(tmp_path / "model")
    assert main(["predict", str(path), str(folder)]) == 0
    assert "20 of 20 rows predicted" in capsys.readouterr().out
    assert "1 rows left out" in caplog.text and "IMG_1.HEIC" in caplog.text
    (folder / "IMG_2.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    assert main(["predict", str(path), str(folder), "--overwrite"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 22 rows are broken" in said and "convert it to JPEG or PNG" in said


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_labels_that_are_numbers_stay_as_they_are_written(classifier, tmp_path, suffix):
    labels = ["1.50", "2.0", "1e3", "-7", "3."]
    mark = "," if suffix == ".csv" else "\t"
    source = tmp_path / f"a{suffix}"
    lines = [f"the cat {n}{mark}{label}" for n, label in enumerate(labels)]
    source.write_text("\n".join([f"text{mark}score", *lines]))
    assert main(["predict", classifier, str(source)]) == 0
    with (tmp_path / f"a.predicted{suffix}").open(newline="") as file:
        assert [row["score"] for row in csv.DictReader(file, delimiter=mark)] == labels


def test_odd_values_come_back_as_they_were(classifier, tmp_path):
    """Half characters in JSON, carriage returns in CSV, types of Parquet that aren't inferred."""
    source = tmp_path / "a.jsonl"
    source.write_text('{"id": "\\ud800", "text": "go"}\n')
    assert main(["predict", classifier, str(source)]) == 0
    assert json.loads((tmp_path / "a.predicted.jsonl").read_text())["id"] == "\ud800"
    with pytest.raises(BedstoneError, match="half a character"):
        write_rows([{"id": "\ud800"}], tmp_path / "b.csv")
    with pytest.raises(BedstoneError, match="can't be written as columns"):
        write_rows([{"id": "\ud800"}], tmp_path / "b.parquet")
    write_rows([{"text": "a\rb"}, {"text": "c\r\nd\n"}], tmp_path / "b.csv")
    assert open_dataset(tmp_path / "b.csv").rows == [{"text": "a\rb"}, {"text": "c\r\nd\n"}]
    source = tmp_path / "a.parquet"
    moments = pyarrow.array([1704164645678901234, None], pyarrow.timestamp("ns"))
    table = pyarrow.table(
        {
            "text": ["go", "go"],
            "at": moments,
            "zoned": moments.cast(pyarrow.timestamp("ns", "UTC")),
            "large": pyarrow.array([2**64 - 1, None], pyarrow.uint64()),
        }
    )
    parquet.write_table(table, source)
    assert main(["predict", classifier, str(source)]) == 0
    found = parquet.read_table(tmp_path / "a.predicted.parquet")
    for name in ("at", "zoned", "large"):
        assert found[name].to_pylist() == table[name].to_pylist()


def test_what_is_wrong_is_named(classifier, tmp_path, capsys):
    source = tmp_path / "rows.csv"
    source.write_text("body\nhello\n")
    for words, message in (
        ([], "column"),
        (["--out", str(tmp_path / "x.xlsx")], "no format of rows; expected one of .csv"),
        (["--column", "boddy"], "boddy"),
        (["--task", "image-to-text"], "needs"),
        (["--option", "top_q=1", "--column", "body"], "top_k"),
    ):
        assert main(["predict", classifier, str(source), *words]) == 2
        assert message in capsys.readouterr().err, words


def test_results_become_columns():
    assert flat([{"label": "a", "score": 0.5}, {"label": "b", "score": 0.4}]) == {
        "prediction": "a",
        "score": 0.5,
    }
    assert flat({"labels": ["x", "y"], "scores": [0.7, 0.3], "sequence": ""})["prediction"] == "x"
    assert json.loads(flat([{"entity": "B", "score": 0.5}])["prediction"])[0]["entity"] == "B"
    assert flat([]) == {"prediction": "[]"}
    row = {"text": "a", "prediction": "theirs"}
    assert beside(row, [{"label": "a", "score": 0.5}], None) == {
        **row,
        "prediction_2": "a",
        "score": 0.5,
    }
    assert beside(row, None, BedstoneError("why"))["error"] == "why"
    assert model(LABELS).writes_text is False


def test_instructions_are_written_as_they_were_learnt(tmp_path):
    """Of a model for text, the prompt of a row is the one of training."""
    made = decoder(HeadConfig("language"), "llama")
    rows, out = tmp_path / "rows.jsonl", tmp_path / "o.jsonl"
    rows.write_text('{"instruction": "go", "input": "a cat", "output": "x"}\n')
    opened = open_dataset(rows)
    made.tokenizer.settings["chat_template"] = alpaca_template(made.tokenizer)
    assert prompts_of(made, opened) == [alpaca_prompt("go", "a cat")]
    made.tokenizer.settings["chat_template"] = "{{ messages[0]['content'] }}:"
    assert prompts_of(made, opened) == ["go\n\na cat:"]
    folder = made.save(tmp_path / "model")
    predict(str(folder), str(rows), str(out), option=("max_new_tokens=4",), precision="fp32")
    (found,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"instruction", "input", "output", "prediction"} <= set(found)
    prompts = open_dataset(_written(tmp_path / "p.jsonl", '{"prompt": "a", "completion": "b"}\n'))
    assert prompts_of(made, prompts) == ["a"]


def _written(path, text):
    path.write_text(text)
    return path
