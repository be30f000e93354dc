"""The demo, small: every part runs and the report holds what it promises."""

import types
from functools import partial

from bedstone.data.python_passages import python_passages
from bedstone.demo import bert, gpt, run
from runs import make_text


def test_every_file_of_the_folder_is_a_part():
    names = [module.__name__ for module in run.demonstrations()]
    assert names == ["bedstone.demo.bert", "bedstone.demo.gpt"]
    assert all(module.SHARE > 0 for module in run.demonstrations())


def test_the_demo_trains_saves_and_reports(tmp_path, monkeypatch, capsys):
    recipe = {
        **gpt.RECIPE,
        "data": {"source": str(make_text(tmp_path / "text")), "validation_share": 0.1},
        "tokenizer": {"vocab_size": 300},
        "model": {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1},
        "context": 64,
        "batch_size": 4,
        "evaluate_tokens": 1000,
    }
    monkeypatch.setattr(gpt, "RECIPE", recipe)
    text = {"source": str(tmp_path / "text"), "validation_share": 0.1}
    shape = {"layout": "bert", "width": 32, "layers": 1, "heads": 2}
    small = {"context": 32, "batch_size": 4, "evaluate_tokens": 500, "data": text, "model": shape}
    words = {"kind": "wordpiece", "vocab_size": 300}
    monkeypatch.setattr(bert, "PRETRAIN", {**bert.PRETRAIN, **small, "tokenizer": words})
    monkeypatch.setattr(bert, "python_passages", partial(python_passages, 200))
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path / "cache"))
    report = run.run_demo(tmp_path / "demo", minutes=0.1)
    page = report.read_text()
    assert report == tmp_path / "demo" / "report.html"
    for promised in (
        "untrained",
        "trained",
        "validation loss",
        "data:image/png",
        "bedstone generate",
        "kinds told apart",
        "without pretraining",
        "bedstone run fill-mask",
    ):
        assert promised in page
    assert (tmp_path / "demo" / "gpt" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "demo" / "gpt" / "curve.png").is_file()
    assert (tmp_path / "demo" / "bert" / "tuned" / "confusion-validation.png").is_file()
    shown = capsys.readouterr().out
    for prompt in gpt.PROMPTS:
        assert prompt.strip() in shown
    again = run.run_demo(tmp_path / "demo", minutes=0.05)  # a second demo replaces the first
    assert again.is_file()


def test_parts_share_the_time_by_their_weights(tmp_path, monkeypatch):
    from bedstone.inspect.report import Section

    given = {}

    def part(name, share):
        module = types.ModuleType(f"bedstone.demo.{name}")
        module.SHARE = share
        module.demonstrate = lambda folder, minutes: given.update({name: minutes}) or Section(name)
        return module

    monkeypatch.setattr(run, "demonstrations", lambda: [part("a", 1.0), part("b", 3.0)])
    run.run_demo(tmp_path, minutes=8.0)
    assert given == {"a": 2.0, "b": 6.0}
