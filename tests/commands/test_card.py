"""`bedstone card`: figures with interval, data hash and command, that are measured again."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bedstone
from bedstone.checkpoints.card import Measured, weight_files_hash
from bedstone.cli import main
from bedstone.inspect.card import LOSS, data_hash, differs, held_out_figures, with_intervals
from bedstone.models.heads import HeadConfig
from runs import recipe_values
from small_models import SENTENCES, saved

ROWS = [{"text": f"{each} {n}", "label": "abc"[n % 3]} for n, each in enumerate(SENTENCES * 12)]


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """The run of a small language model."""
    folder = tmp_path_factory.mktemp("language")
    values = recipe_values(folder, budget="10 steps", precision="fp32")
    return bedstone.pretrain(values, quiet=True)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """The run of a small classifier by an adapter, and a file of rows to test it on."""
    folder = tmp_path_factory.mktemp("labels")
    encoder = str(saved(folder / "encoder", HeadConfig("sequence", ("x", "y"))))
    run = bedstone.finetune(
        "finetune-own",
        "data.validation_share=0.3",
        model=encoder,
        data=ROWS,
        out=str(folder / "run"),
        epochs=1,
        lora={"rank": 2},
        device="cpu",
        precision="fp32",
        quiet=True,
    )
    test = folder / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:40]))
    return run, test


@pytest.fixture
def model(language, tmp_path):
    """A copy of the language model, to write into."""
    return shutil.copytree(language.model, tmp_path / "model")


def printed(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_new_card_says_how_figures_are_measured(language, capsys):
    assert main(["card", str(language.run)]) == 0
    said = capsys.readouterr().out
    assert "validation_loss, in training" in said and "card . --measure" in said
    assert "hash of that data" in said
    assert main(["card", str(language.run), "--check"]) == 2
    assert "no figures to check" in capsys.readouterr().err


def test_held_out_figures_are_those_of_the_run_with_intervals(language, model, capsys):
    found = {e["name"]: e for e in printed(capsys, "card", model, "--measure")["figures"]}
    metrics = language.done.metrics
    assert set(found) == {LOSS, "validation_perplexity", "validation_bits_per_byte"}
    for name, each in found.items():
        assert each["value"] == pytest.approx(metrics[name], rel=1e-6)
        assert each["low"] < each["value"] < each["high"]
        assert each["command"] == "bedstone card . --check"
    assert found["validation_perplexity"]["high"] == pytest.approx(math.exp(found[LOSS]["high"]))
    record = json.loads((model / "bedstone.json").read_text())
    assert found[LOSS]["data"] == record["data"]["fingerprint"]
    assert record["figures"]["weights"] == weight_files_hash(model)
    text = (model / "README.md").read_text()
    assert "## Figures" in text and record["data"]["fingerprint"] in text
    assert found[LOSS]["data"][:16] in text and "in training" not in text
    bedstone.load(model)  # its manifest is that of the new files
    assert main(["card", str(model), "--check"]) == 0
    assert "all figures are the same" in capsys.readouterr().out


def test_a_figure_that_is_not_so_is_found(model, capsys):
    printed(capsys, "card", model, "--measure")
    path = model / "bedstone.json"
    record = json.loads(path.read_text())
    record["figures"]["measured"][0]["value"] -= 0.1
    path.write_text(json.dumps(record))
    assert main(["card", str(model), "--check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["figures"]
    assert [each["differs"] for each in found] == [True, False, False]
    assert found[0]["now"] == pytest.approx(found[0]["value"] + 0.1)


def test_a_card_of_other_weights_is_refused(model, capsys):
    printed(capsys, "card", model, "--measure")
    other = bedstone.load(model)
    with torch.no_grad():
        next(other.network.parameters()).mul_(1.01)
    path = model / "model.safetensors"
    kept = (model / "bedstone.json").read_text()
    other.save(model)
    assert "figures" not in json.loads((model / "bedstone.json").read_text())  # saved anew
    (model / "bedstone.json").write_text(kept)  # whoever changed the weights kept the card
    assert path.exists()
    assert main(["card", str(model), "--check"]) == 2
    said = capsys.readouterr().err
    assert "its weights aren't those that its card is of" in said


def test_changed_data_is_refused(tmp_path, capsys):
    run = bedstone.pretrain(recipe_values(tmp_path, budget="2 steps"), quiet=True)
    printed(capsys, "card", run.run, "--measure")
    path = tmp_path / "text" / "000.txt"
    path.write_text(path.read_text() + " more")
    assert main(["card", str(run.run), "--check"]) == 2
    assert "isn't the data" in capsys.readouterr().err


def test_evaluations_are_added_and_measured_again(labels, capsys):
    run, test = labels
    found = printed(capsys, "card", run.run, "--measure")["figures"]
    names = {each["name"] for each in found}
    assert "validation/accuracy" in names
    report = json.loads((run.run / "evaluation.json").read_text())["validation"]
    accuracy = next(each for each in found if each["name"] == "validation/accuracy")
    assert accuracy["value"] == report["accuracy"]
    assert (accuracy["low"], accuracy["high"]) == (report["accuracy_low"], report["accuracy_high"])
    more = printed(capsys, "card", run.model, "--add", test)["figures"]
    assert [each for each in more if each in found] == found
    added = [each for each in more if each not in found]
    assert {each["data"] for each in added} == {data_hash(str(test))}
    assert "test.jsonl/accuracy" in {each["name"] for each in added}
    again = printed(capsys, "card", run.model, "--add", test)["figures"]
    assert len(again) == len(more)  # replaced, not there twice
    assert main(["card", str(run.model), "--check"]) == 0
    capsys.readouterr()
    test.write_text(test.read_text().replace('"label": "a"', '"label": "b"'))
    assert main(["card", str(run.model), "--check"]) == 2
    assert "isn't the data" in capsys.readouterr().err


def test_a_check_changes_nothing(language, capsys):
    for other in (["--measure"], ["--add", "rows.csv"]):
        assert main(["card", str(language.model), "--check", *other]) == 2
        assert f"leave it out, or {other[0]}" in capsys.readouterr().err


def test_what_is_no_saved_model_is_refused(language, tmp_path, capsys):
    checkpoint = next((language.run / "checkpoints").iterdir())
    for folder, said in ((tmp_path, "is no folder of a model"), (checkpoint, "is a checkpoint")):
        assert main(["card", str(folder)]) == 2
        assert said in capsys.readouterr().err
    assert main(["card", str(language.model), "--task", "x"]) == 2
    assert "is an option of --add" in capsys.readouterr().err
    assert main(["card", str(language.model), "--add", str(tmp_path / "none.csv")]) == 2
    assert "no file, folder or built-in data" in capsys.readouterr().err


def test_intervals_are_found_wherever_they_stand():
    inner = {"rows": 9, "f1": 0.5, "f1_low": 0.4, "f1_high": 0.6, "loss": 1.0, "f1/a": 0.1}
    found = with_intervals({"validation": inner, "kind": "x"})
    assert found == {"validation/f1": (0.5, 0.4, 0.6, 9)}
    one = Measured("a", 1.0, 0.9, 1.1, 9, "hash", "command", "fp32")
    assert not differs(one, one) and differs(one, Measured(**{**vars(one), "value": 1.01}))


def test_the_same_weights_give_the_same_figures(language):
    record = json.loads((language.model / "bedstone.json").read_text())
    first, second = (held_out_figures(language.model, record) for _ in range(2))
    assert first == second


def test_a_file_is_named_from_the_models_folder(language, model, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "held.txt"
    rows.write_text("a text that nothing was trained on. " * 200)
    monkeypatch.chdir(tmp_path)
    found = {e["name"]: e for e in printed(capsys, "card", "model", "--add", "held.txt")["figures"]}
    loss = found["held.txt/loss"]
    assert loss["command"] == "bedstone evaluate . ../held.txt"
    assert loss["low"] < loss["value"] < loss["high"]
    perplexity = found["held.txt/perplexity"]
    assert perplexity["value"] == pytest.approx(math.exp(loss["value"]), rel=1e-6)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["card", str(model), "--check"]) == 0
    assert "all figures are the same" in capsys.readouterr().out
    rows.rename(tmp_path / "gone.txt")
    assert main(["card", str(model), "--check"]) == 2
    assert "named from this folder, and it isn't there" in capsys.readouterr().err


def test_the_advice_after_changed_weights_comes_to_an_end(model, tmp_path, capsys):
    path = str(model)
    assert main(["card", path, "--measure"]) == 0
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] * 1.01}, model / "model.safetensors")
    capsys.readouterr()
    for words in (["card", path, "--check"], ["card", path, "--measure"], ["audit", path]):
        assert main(words) == 2  # each says the same way out
        assert f"bedstone.load('{path}', verify=False).save('{path}')" in capsys.readouterr().err
    bedstone.load(path, verify=False).save(path)
    assert main(["card", path, "--check"]) == 2
    assert f"bedstone card {path} --measure" in capsys.readouterr().err
    assert main(["card", path, "--measure"]) == main(["card", path, "--check"]) == 0


def test_a_run_whose_data_is_not_here_says_from_where_it_is_named(tmp_path, monkeypatch, capsys):
    values = recipe_values(tmp_path, budget="4 steps", precision="fp32", out="run")
    source = values["data"]["source"]
    monkeypatch.chdir(tmp_path)
    values["data"] = {**values["data"], "source": str(Path(source).relative_to(tmp_path))}
    bedstone.pretrain(values, quiet=True)
    monkeypatch.chdir("/")
    assert main(["card", str(tmp_path / "run"), "--measure"]) == 2
    assert "from the folder in which the run was started" in capsys.readouterr().err
