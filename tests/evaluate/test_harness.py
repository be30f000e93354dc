"""lm-evaluation-harness: our model in it beside its own of transformers, tasks, and refusals."""

import json
import sys

import pytest
import torch
import yaml

import bedstone
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.evaluate.harness import (
    HarnessSettings,
    _cut,
    _figures,
    _generation,
    harness_model,
    read_tasks,
    run_tasks,
)
from bedstone.models.heads import HeadConfig
from bedstone.runtime import pick_device, pick_precision
from small_models import SENTENCES, decoder

FP32 = pick_precision("fp32", pick_device("cpu"))
ROWS = [{"text": each, "label": n % 2, "answer": each.split()[0]} for n, each in
        enumerate(SENTENCES * 3)]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a small GPT."""
    path = tmp_path_factory.mktemp("gpt") / "model"
    made = decoder(HeadConfig("language"), "llama", context=64)
    made.save(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return bedstone.load(folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """YAML files of tasks of every kind of request, with their rows."""
    place = tmp_path_factory.mktemp("tasks")
    rows = place / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    kinds = {
        "choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "Text: {{text}}\nLabel:",
            "doc_to_choice": ["good", "bad"],
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "likelihood": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": " {{answer}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        "rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}} {{text}} {{text}} {{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "written": {
            "output_type": "generate_until",
            "doc_to_text": "{{text}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, kind in kinds.items():
        config = {"task": name, "dataset_path": "json", "test_split": "test", **kind}
        config["dataset_kwargs"] = {"data_files": {"test": str(rows)}}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return place


def every(tasks) -> str:
    return ",".join(str(path) for path in sorted(tasks.glob("*.yaml")))


def samples(found) -> dict[str, list]:
    return {
        name: [one["filtered_resps"] for one in sorted(each, key=lambda one: one["doc_id"])]
        for name, each in found["samples"].items()
    }


def test_equals_the_model_of_the_harness_on_every_kind_of_request(folder, model, tasks):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    ours = run_tasks(model, HarnessSettings("lm-eval", every(tasks)), FP32)
    peer = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4,
                logits_cache=False)  # fmt: skip
    theirs = lm_eval.simple_evaluate(
        peer, tasks=read_tasks(every(tasks)), bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    mine, other = samples(ours), samples(theirs)
    assert set(mine) == {"choice", "likelihood", "rolling", "written"}
    assert mine["written"] == other["written"]
    for name in ("choice", "likelihood", "rolling"):
        for one, two in zip(mine[name], other[name], strict=True):
            if name == "rolling":
                torch.testing.assert_close(
                    torch.tensor(one).flatten(), torch.tensor(two).flatten(), atol=1e-4, rtol=0
                )
                continue
            for (value, greedy), (known, best) in zip(one, two, strict=True):
                assert value == pytest.approx(known, abs=1e-4)
                assert greedy == best
    for name, values in ours["results"].items():
        for key, value in values.items():
            if isinstance(value, float) and "stderr" not in key:
                assert value == pytest.approx(theirs["results"][name][key], rel=1e-4), (name, key)


def test_the_command_prints_figures_with_intervals(folder, tasks, capsys):
    pytest.importorskip("lm_eval")
    words = ["evaluate", folder, "--harness", "lm-eval", "--precision", "fp32", "--json"]
    words += ["--tasks", tasks / "choice.yaml", "--limit", "6", "--shots", "0"]
    assert main(list(map(str, words))) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rows"] == {"choice": 6} and found["precision"] == "fp32"
    figures = found["results"]["choice"]
    assert figures["acc_low"] <= figures["acc"] <= figures["acc_high"]
    assert found["harness"].startswith("lm-eval")


@pytest.mark.slow  # the harness reads the files of all its tasks
def test_a_misspelt_task_is_named(folder, capsys):
    pytest.importorskip("lm_eval")
    words = ["evaluate", folder, "--harness", "lm-eval", "--tasks", "arc_eazy"]
    assert main(list(map(str, words))) == 2
    assert "perhaps 'arc_easy' is meant" in capsys.readouterr().err


def test_rows_that_are_gone_are_named(model, tasks, tmp_path):
    pytest.importorskip("lm_eval")
    config = yaml.safe_load((tasks / "choice.yaml").read_text())
    config["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "none.jsonl")
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(BedstoneError, match="can't run them"):
        run_tasks(model, HarnessSettings("lm-eval", str(path)), FP32)


@pytest.mark.parametrize(
    "change",
    [
        {"doc_to_text": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
        {"metric_list": [{"metric": "./metric.py"}]},
        {"metric_list": [{"metric": "acc", "hf_evaluate": True}]},
        {"include": "other.yaml"},
    ],
)
def test_a_task_s_file_runs_no_program(model, tasks, tmp_path, change):
    pytest.importorskip("lm_eval")
    config = yaml.safe_load((tasks / "choice.yaml").read_text()) | change
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(BedstoneError, match=r"SecurityError|is no metric|include isn't followed"):
        run_tasks(model, HarnessSettings("lm-eval", str(path)), FP32)


def test_prompts_that_are_too_long_lose_their_beginning(model):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    adaptor = harness_model(model, FP32)
    long, settings = " ".join(SENTENCES * 20), {"until": [], "max_gen_toks": 4}
    asks = [Instance("generate_until", {}, (text, settings), 0) for text in (long, "a cat")]
    first, second = adaptor.generate_until(asks)
    assert [first, second] == [adaptor.generate_until([each])[0] for each in asks]
    settings["max_gen_toks"] = 64
    with pytest.raises(BedstoneError, match="max_gen_toks"):
        adaptor.generate_until(asks)


# What needs no harness.


def test_tasks_are_names_and_files(tasks):
    found = read_tasks(f"arc_easy, {tasks / 'choice.yaml'}")
    assert found[0] == "arc_easy" and found[1]["task"] == "choice"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: x\ndoc_to_text: !function utils.text\n", "is no YAML file of a task"),
        ("- a\n", "holds no task"),
        ("group: x\n", "holds no task"),
    ],
)
def test_files_that_are_no_tasks_or_run_programs_are_refused(tmp_path, text, said):
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(BedstoneError, match=said):
        read_tasks(str(path))
    with pytest.raises(BedstoneError, match="--tasks: is missing"):
        read_tasks(" ")


def test_settings_of_generation_are_followed_or_refused():
    assert _generation({"do_sample": False, "temperature": 0.0}) == {"do_sample": False}
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert _generation(sampled) == sampled
    with pytest.raises(BedstoneError, match="'temperature' is meant"):
        _generation({"temperatur": 1.0})


def test_a_prompt_keeps_its_last_tokens(model):
    text = " ".join(SENTENCES)
    ids = model.tokenizer.encode(text)
    assert _cut(model.tokenizer, text, len(ids) + 2) == text
    assert _cut(model.tokenizer, text, 5).ids == ids[-5:]


def test_intervals_are_of_standard_errors():
    found = _figures({"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 0.2})
    assert found == pytest.approx(
        {"acc": 0.5, "acc_low": 0.304, "acc_high": 0.696, "f1 (strict)": 0.2}
    )


def test_options_that_do_not_belong_together_are_refused(folder, monkeypatch, capsys):
    for words, said in (
        ([], "data is missing"),
        (["rows.csv", "--tasks", "x"], "it serves --harness lm-eval"),
        (["rows.csv", "--harness", "lm-eval"], "--harness has tasks of its own"),
        (["--harness", "lmeval"], "lm-eval"),
    ):
        assert main(["evaluate", str(folder), *words]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    words = ["--harness", "lm-eval", "--tasks", "arc_easy"]
    assert main(["evaluate", str(folder), *words]) == 2
    assert "bedstone[harness]" in capsys.readouterr().err
