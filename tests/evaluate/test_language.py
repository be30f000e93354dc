"""Evaluation, curves and reports."""

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from bedstone.evaluate.language import text_figures
from bedstone.evaluate.runner import held_out_loss
from bedstone.report.pages import Sample, Section, write_report
from bedstone.report.plots import curve_points, draw_curve
from bedstone.runtime import pick_precision

FP32 = pick_precision("fp32", torch.device("cpu"))


def test_the_mean_is_over_tokens_not_batches():
    def batch(total, count):
        return SimpleNamespace(figures=(total, count), to=lambda _: batch(total, count))

    objective = lambda network, b: (torch.tensor(b.figures[0]), b.figures[1])  # noqa: E731
    batches = [batch(10.0, 10), batch(30.0, 10), batch(8.0, 2)]
    loss, count = held_out_loss(torch.nn.Identity(), objective, batches, FP32)
    assert (loss, count) == (48.0 / 22, 22)
    assert held_out_loss(torch.nn.Identity(), objective, batches, FP32, most_batches=1)[0] == 1.0


def test_figures_by_their_formulas():
    figures = text_figures(math.log(8), tokens_a_byte=0.5)
    assert figures["perplexity"] == pytest.approx(8)
    assert figures["bits_per_byte"] == pytest.approx(1.5)
    assert math.isfinite(text_figures(1e9, 1.0)["perplexity"])


RECORDS = [
    {"step": 1, "tokens": 100, "loss": 4.0},
    {"step": 2, "tokens": 200, "loss": None},
    {"step": 2, "tokens": 200, "validation_loss": 3.5},
    {"step": 3, "tokens": 300, "loss": 3.0},
]


def test_curves_pass_over_what_is_missing(tmp_path):
    assert curve_points(RECORDS, "loss") == ([1, 3], [4.0, 3.0])
    path = draw_curve(RECORDS, tmp_path / "curve.png", "a run")
    picture = Image.open(path).convert("L")
    assert picture.size == (960, 540)
    assert picture.getextrema()[0] < 100  # something is drawn
    draw_curve([], tmp_path / "empty.png", "an empty run")


def test_a_report_needs_no_other_file_and_trusts_no_sample(tmp_path):
    picture = draw_curve(RECORDS, tmp_path / "curve.png", "a run")
    sample = Sample("<script>", {"untrained": "</pre><b>&", "trained": "return 1"})
    section = Section(
        "GPT", "words", {"loss": "3.0"}, {picture: "the curve"}, [sample], {"bedstone info x": "go"}
    )
    page = write_report(tmp_path / "report.html", "Demo", "lead", [section]).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 1
    for word in ("Demo", "3.0", "the curve", "bedstone info x", "return 1"):
        assert word in page
