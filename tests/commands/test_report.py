"""`bedstone report` and `compare`: what a page says of a run, and of runs side by side."""

import html
import json
import math
import re
import shutil

import pytest

import bedstone
from bedstone.cli import main
from bedstone.commands.report import differences, open_run, side_by_side, verdict
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from small_models import SENTENCES, saved

ROWS = [{"text": f"{each} {n}", "label": "abc"[n % 3]} for n, each in enumerate(SENTENCES * 12)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    encoder = str(saved(folder / "encoder", HeadConfig("sequence", ("x", "y"))))
    for name, rate in (("slow", 1e-9), ("other", 1e-3)):
        bedstone.finetune(
            "finetune-own",
            f"optim.adamw_lr={rate}",
            "data.validation_share=0.3",
            model=encoder,
            data=ROWS,
            out=str(folder / name),
            epochs=1,
            device="cpu",
            quiet=True,
        )
    return folder


def test_the_page_says_how_good_it_is_and_how_it_was_made(runs, capsys):
    assert main(["report", str(runs / "slow")]) == 0
    said = capsys.readouterr().out
    page = (runs / "slow" / "report.html").read_text()
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "report.html" in said.replace("\n", "")
    record = json.loads((runs / "slow" / "evaluation.json").read_text())["validation"]
    assert f"validation: accuracy {record['accuracy']:.4f}" in text
    assert f"of the baseline majority {record['baselines']['majority']:.4f}" in text
    assert record["warning"] and record["warning"] in html.unescape(text)
    assert "baseline" in said  # the warning is printed too
    for part in (
        "Verdict",
        "Training",
        "Metrics: validation",
        "How it was made",
        "1.0e-09",
    ):
        assert part in text
    assert page.count("data:image/png;base64") == 2  # curve and confusion
    assert "Mistaken most surely" in text and "train.parquet: row" in text
    assert not re.findall(r'(?:src|href)="(?!data:image|#part)', page)


def test_worst_rows_are_those_mistaken_most_surely(runs):
    lines = [*map(json.loads, (runs / "slow" / "worst-validation.jsonl").read_text().splitlines())]
    assert lines and all(one["predicted"] != one["actual"] for one in lines)
    chances = [one["probability"] for one in lines]
    assert chances == sorted(chances, reverse=True)
    predict = bedstone.pipeline("text-classification", runs / "slow" / "model")
    for one in lines[:3]:
        found = predict(one["text"])[0]
        assert found["label"] == one["predicted"]
        assert found["score"] == pytest.approx(one["probability"], abs=1e-2)


def test_a_page_elsewhere_replaces_nothing(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(runs / "slow"), "--out", str(out)]) == 0
    assert main(["report", str(runs / "slow"), "--out", str(out)]) == 2
    assert main(["report", str(runs / "slow"), "--out", str(out), "--overwrite"]) == 0
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no recipe.yaml" in capsys.readouterr().err


def test_runs_are_compared_by_recipe_and_metrics(runs, tmp_path, capsys):
    page = tmp_path / "compared.html"
    folders = [str(runs / "slow"), str(runs / "other")]
    assert main(["compare", *folders, "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert "optim.adamw_lr" in said and "validation: accuracy" in said
    assert "batch_size" not in said  # it doesn't differ
    assert page.read_text().count("data:image/png") == 2  # so short a run logs no training loss
    assert "compare." not in page.read_text()
    assert main(["compare", folders[0]]) == 2
    assert main(["compare", folders[0], folders[0]]) == 0
    assert "nothing differs" in capsys.readouterr().out


def test_runs_of_other_data_are_compared_with_a_warning(runs, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(runs / "slow", other)
    record = json.loads((other / "data.json").read_text()) | {"fingerprint": "f" * 64}
    (other / "data.json").write_text(json.dumps(record))
    page = tmp_path / "compared.html"
    words = ["compare", str(runs / "slow"), str(other)]
    assert main([*words, "--page", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["slow", "other"]
    assert found["data"]["fingerprint"]["other"] == "f" * 12
    assert "don't compare" in found["warning"]
    assert found["warning"] in html.unescape(page.read_text())
    assert main([*words[:2], str(runs / "slow"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["warning"] == "" and again["recipe"] == again["data"] == {}


def test_differences_and_figures_side_by_side(runs):
    other = {"a": 1, "b": {"c": 3, "d": 4}, "out": "y"}
    rows = differences([{"a": 1, "b": {"c": 2}, "out": "x"}, other])
    assert rows == [["b.c", "2", "3"], ["b.d", "", "4"]]
    found = [open_run(runs / name) for name in ("slow", "other")]
    table = {row[0]: row[1:] for row in side_by_side(found)}
    assert set(table) == {"validation: accuracy", "validation_loss", "steps", "time"}
    losses = [each.loose["validation_loss"] for each in found]
    assert table["validation_loss"] == [f"{loss:.4f}" for loss in losses]
    assert losses[0] != losses[1]
    assert verdict(found[0]).figures


def test_a_page_is_made_of_a_run_with_damaged_lines_and_losses_that_are_not_finite(runs, tmp_path):
    hurt = tmp_path / "hurt"
    shutil.copytree(runs / "slow", hurt)
    worst = hurt / "worst-validation.jsonl"
    worst.write_text('{"text": "kept", "probability": 0.5}\n{"text": "cut', encoding="utf-8")
    record = json.loads((hurt / "evaluation.json").read_text())
    record["validation"]["loss"] = math.nan
    (hurt / "evaluation.json").write_text(json.dumps(record))
    assert main(["report", str(hurt)]) == 0
    assert "kept" in (hurt / "report.html").read_text()


def test_a_damaged_run_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(BedstoneError, match=r"recipe.yaml: .* can be read"):
        open_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("budget: 1 steps")
    (tmp_path / "evaluation.json").write_text("[1]")
    with pytest.raises(BedstoneError, match=r"evaluation\.json"):
        open_run(tmp_path)
