"""The README's figures are those of the raw results; what benchmarks keep, and when clocks run."""

import json
import time
from pathlib import Path

import pytest
import torch

import lookup
import peer_pass
import result
import tables
from bedstone.generation.autoregress import generate
from bedstone.generation.sampling import Sampling
from bedstone.models.gpt.network import GPTConfig, build
from result import Side

KEPT = sorted(result.RESULTS.glob("*.json"))


def test_the_readme_s_figures_are_those_of_the_raw_results():
    present = tables.README.read_text(encoding="utf-8")
    assert tables.placed(present, tables.tables(tables.read(result.RESULTS))) == present


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_every_raw_result_names_its_processor(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["bench"] == path.stem
    assert found["processor"]["name"].strip()
    assert {"threads", *result.INSTRUCTIONS} <= set(found["processor"])
    assert found["versions"]["torch"]
    assert found["date"]
    assert "--small" not in found["command"]
    assert "/home/" not in path.read_text(encoding="utf-8")
    assert all(side["seconds"]["rounds"] for side in found["sides"].values())


def test_every_bench_of_the_tables_writes_its_result():
    sources = [path.read_text(encoding="utf-8") for path in Path(tables.__file__).parent.glob("*")
               if path.suffix == ".py"]  # fmt: skip
    for name in {row.name for row in tables.ROWS}:
        assert any(f'"{name}"' in text and "add_write(" in text for text in sources), name


def embedding(monkeypatch) -> dict:
    monkeypatch.setattr("sys.argv", ["/any/where/bench/embed.py", "--rounds", "3", "--write"])
    sides = {
        "sentence-transformers": Side([2.0, 4.0, 6.0], 10, {"cosine": 1.0}),
        "sentence-transformers bf16": Side([2.0, 2.0, 2.0], 10, {"cosine": 0.9999}),
        "bedstone mixed": Side([1.0, 2.0, 1.5], 10, {"cosine": 0.99999}),
    }
    return result.record("embed", "sentences", sides)


def test_a_result_keeps_timings_and_ratios_within_rounds(monkeypatch):
    found = embedding(monkeypatch)
    assert found["command"] == "bench/embed.py --rounds 3"
    assert found["sides"]["bedstone mixed"]["seconds"]["rounds"] == [1.0, 2.0, 1.5]
    ratio = found["ratios"]["bedstone mixed"]["sentence-transformers"]
    assert ratio == {"rounds": [2.0, 2.0, 4.0], "median": 2.0, "least": 2.0, "most": 4.0}
    assert found["processor"]["name"]


def test_a_result_is_written_whole(tmp_path, monkeypatch):
    sides = {"bedstone": Side([1.0])}
    path = result.write(tmp_path / "new", "lora", "tokens", sides, rows=4)
    assert json.loads(path.read_text())["settings"] == {"rows": 4}
    before = path.read_text()
    with pytest.raises(TypeError):
        result.write(tmp_path / "new", "lora", "tokens", sides, rows=object())
    assert path.read_text() == before
    assert [each.name for each in path.parent.iterdir()] == ["lora.json"]


def test_no_result_without_a_processor_s_name(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr("platform.processor", str)
    with pytest.raises(SystemExit, match="processor's name"):
        result.processor()


def test_a_command_has_no_folder_of_the_machine():
    shared, root = result.SHARED.resolve(), result.ROOT
    words = ["x/bench/denoise.py", "--real", f"{shared}/mnist/test.parquet", "--write", "/tmp/out"]
    words += ["--model", f"{root}/runs/equal", "--judge", "/elsewhere/judge.safetensors"]
    assert result.command(words) == (
        "bench/denoise.py --real $BEDSTONE_SHARED/mnist/test.parquet --model runs/equal "
        "--judge judge.safetensors"
    )


def test_a_table_is_made_of_what_was_measured_and_leaves_out_the_rest(monkeypatch):
    text = tables.tables({"embed": embedding(monkeypatch)})
    rows = [line for line in text.splitlines() if line.startswith("| embedding")]
    assert rows == [
        '| embedding sentences with MiniLM, sentences per second, `precision="mixed"` '
        "| 7 (5-10), cosine 0.999990 "
        "| sentence-transformers 2, cosine 1.000000: **2.00x** (2.00-4.00) "
        "| 5, cosine 0.999900: **1.33x** (1.00-2.00) |  | `bench/embed.py --rounds 3` |"
    ]
    assert "decoding" not in text
    assert result.processor()["name"] in text
    assert tables.tables({}) == ""


def test_the_fine_tuning_table(monkeypatch):
    paces = {"bedstone": Side([1.0]), "trainer": Side([4.0]), "trainer bf16": Side([2.0])}
    results = {"finetune-cola": result.record("finetune-cola", "steps", paces)}
    for seed, score in enumerate((0.25, 0.27, 0.29)):
        name = f"scores-cola-bedstone-{seed}"
        side = Side([9.0], quality={"validation": {"matthews": score}})
        results[name] = result.record(name, "trainings", {"bedstone": side})
    row = tables.tables(results).splitlines()[-1]
    assert row == (
        "| CoLA | Matthews | 0.270, 0.250-0.290 of 3 seeds |  |  | **4.0x** (4.0-4.0) "
        "| **2.0x** (2.0-2.0) |"
    )


def test_only_what_is_between_the_marks_changes():
    readme = f"a\n{tables.BEGIN}\nold\n{tables.END}\nb\n"
    assert tables.placed(readme, "new") == f"a\n{tables.BEGIN}\nnew\n{tables.END}\nb\n"
    assert tables.placed(readme, "") == f"a\n{tables.BEGIN}\n{tables.END}\nb\n"
    with pytest.raises(SystemExit, match="expected the lines"):
        tables.placed("no marks", "new")


@pytest.mark.slow
def test_the_trainer_s_clock_begins_with_the_first_batch(monkeypatch):
    """As Bedstone's does: making the optimizer isn't counted, making a batch is."""
    made = []

    def optimizer(trainer, model=None):
        made.append(time.perf_counter())
        time.sleep(1.5)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.1)
        return trainer.optimizer

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x).mean()}

    def collate(rows: list[dict[str, float]]) -> dict[str, torch.Tensor]:
        time.sleep(0.25)
        return {"x": torch.tensor([row["x"] for row in rows])}

    monkeypatch.setattr(peer_pass.Trainer, "create_optimizer", optimizer)
    rows = [{"x": 1.0}, {"x": 2.0}]
    seconds, steps = peer_pass.one_pass(
        Line(), rows, collate, rate=0.1, batch=1, seed=0, remove_unused_columns=False
    )
    assert made
    assert steps == 2
    assert 0.5 <= seconds < 1.5


@pytest.mark.parametrize("drafts", [0, 5])
def test_a_decoder_with_a_reference_says_it(drafts):
    network = build(GPTConfig(vocab_size=50, width=16, layers=1, heads=2), seed=0).eval()
    prompt, reference = [1, 2, 3, 4], [5, 6, 2, 3, 4, 5, 6, 2, 3, 4, 0]
    decoder = lookup.Counted(network, prompt, reference)
    how = Sampling(max_tokens=30, prompt_lookup_num_tokens=drafts)
    (found,) = generate(decoder, [prompt], how, eos=[0], prediction=reference)
    assert (found.ids, found.finish) == (reference, "stop")
    assert decoder.passes - 1 == 10 if not drafts else decoder.passes - 1 <= 4
    assert lookup.repeats(prompt, found.ids, []) == 6  # 4 5 6 2 3 4
    assert lookup.repeats(prompt, found.ids, reference) >= 9


@pytest.mark.shared
@pytest.mark.parametrize("kind", lookup.KINDS)
def test_prompts_of_the_lookup_bench(kind, shared_data):
    items = lookup.KINDS[kind](shared_data, 50)
    assert len(items) == 50
    for item in items if kind == "code" else ():
        assert item.reference != item.prediction
        assert item.reference.count("\n") == item.prediction.count("\n")
