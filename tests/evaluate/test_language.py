"""Evaluation, curves and reports."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.evaluate.language import text_figures
from bedstone.evaluate.runner import held_out_loss
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.report.pages import Sample, Section, write_report
from bedstone.report.plots import curve_points, draw_curve
from bedstone.runtime import pick_precision
from networks import randomise

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


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", ""])
def test_a_model_is_scored_as_transformers_scores_it(tmp_path, template, capsys):
    """Each document between the tokens that the tokenizer sets around a text, or as in training."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    texts = ["the cat sees a dog", "a dog runs, and the cat", "go"]
    known = train_bpe([" ".join(texts)] * 9, 300, special_tokens=("<s>", "</s>"))
    first, last = known.id_of("<s>"), known.id_of("</s>")
    known.settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    if template:
        known.backend.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<s>", first), ("</s>", last)]
        )
    sizes = {"width": 32, "layers": 2, "heads": 4, "hidden": 48, "context": 64}
    network = build(GPTConfig(layout="llama", vocab_size=known.vocab_size, **sizes), seed=1)
    randomise(network, seed=3)
    path = Model(network.eval(), known).save(tmp_path / "model")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["evaluate", str(path), str(tmp_path / "a.jsonl"), "--precision", "fp32"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    loss, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if not template:
            ids = torch.cat([ids, torch.tensor([[last]])], 1)
        with torch.no_grad():
            loss += float(theirs(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(loss / count, abs=1e-5)
    assert found["before"] == ("<s>" if template else "")
    assert found["end_token"] is (template != "<s> $A")
    assert main(words) == 0
    said = "all tokens, after <s>" if template else "all tokens but the first"
    assert said in capsys.readouterr().out


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
