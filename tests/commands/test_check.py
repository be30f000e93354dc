"""`bedstone check`: outputs computed again, what differs, exit codes, and files that it writes."""

import json

import pytest
import torch
import torch.nn.functional as F

import bedstone
from bedstone.checkpoints.golden import FILE
from bedstone.checkpoints.side_files import RECORD
from bedstone.checkpoints.store import CheckpointStore
from bedstone.cli import main
from bedstone.models.heads import HeadConfig
from bedstone.nn.layers import ACTIVATIONS
from drawings import drawing
from small_models import decoder


@pytest.fixture
def folder(tmp_path):
    return decoder(HeadConfig("language"), "llama").save(tmp_path / "model")


def bare(folder):
    """As another library would have written it."""
    (folder / FILE).unlink()
    (folder / "bedstone.json").unlink()
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_an_unbroken_model_passes(folder, precision, capsys):
    assert main(["check", str(folder), "--precision", precision, "--device", "cpu"]) == 0
    assert "all 10 outputs are those that were stored" in capsys.readouterr().out


def test_a_drawing_model_passes(tmp_path, capsys):
    folder = drawing().save(tmp_path / "model")
    assert main(["check", str(folder)]) == 0


def test_what_differs_is_printed_with_exit_code_1(folder, monkeypatch, capsys):
    monkeypatch.setitem(ACTIVATIONS, "silu", F.relu)
    assert main(["check", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "outputs that differ" in printed and "The cat sat on the mat." in printed
    assert "next differs by" in printed and "0.0001 allowed" in printed
    assert "    expected  " in printed and "    got       " in printed
    assert max(map(len, printed.splitlines()[1:])) < 110
    assert "differences in 10 outputs, computed in fp32" in printed
    assert main(["check", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["outputs"] == 10
    first = found["differences"][0]
    assert {"input", "output", "expected", "got", "size", "tolerance"} <= set(first)
    assert first["size"] > first["tolerance"] == 1e-4


def test_without_stored_outputs_the_error_says_how_to_add_them(folder, capsys):
    bare(folder)
    assert main(["check", str(folder)]) == 2
    assert f"bedstone check {folder} --write" in capsys.readouterr().err
    assert main(["check", str(folder), "--write"]) == 0
    assert not (folder / "bedstone.json").exists()  # it had none
    assert main(["check", str(folder)]) == 0


def test_stored_outputs_are_replaced_on_request_alone(folder, capsys):
    before = json.loads((folder / "bedstone.json").read_text())
    assert main(["check", str(folder), "--write"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    (folder / FILE).write_text("{}")  # damaged
    (folder / "bedstone.json").unlink()
    assert main(["check", str(folder)]) == 2
    assert "golden.json" in capsys.readouterr().err
    assert main(["check", str(folder), "--write", "--overwrite"]) == 0
    assert main(["check", str(folder)]) == 0
    assert before["files"][FILE]["size"] == (folder / FILE).stat().st_size


def test_the_record_has_what_was_added(folder):
    record = json.loads((folder / "bedstone.json").read_text())
    (folder / FILE).unlink()
    files = {name: entry for name, entry in record["files"].items() if name != FILE}
    (folder / "bedstone.json").write_text(json.dumps(record | {"files": files}))
    assert main(["check", str(folder), "--write"]) == 0
    again = json.loads((folder / "bedstone.json").read_text())
    assert again["files"].keys() == record["files"].keys() and RECORD not in again["files"]
    assert again["files"][FILE] == record["files"][FILE]
    bedstone.load(folder)


def test_only_folders_of_ones_own_are_written_to(folder, tmp_path, capsys):
    assert main(["check", "python-gpt", "--write", "--overwrite"]) == 2
    assert "is no folder of a model" in capsys.readouterr().err
    store = CheckpointStore(tmp_path / "checkpoints")
    made = bedstone.load(folder)
    saved = store.save(3, made.write_files)
    assert main(["check", str(saved.path), "--write"]) == 2
    assert "is a checkpoint" in capsys.readouterr().err
    saved.verify()


def test_a_model_in_bf16_passes_in_fp32(tmp_path):
    made = decoder(HeadConfig("language"), "qwen3")
    made.network.to(torch.bfloat16)
    folder = made.save(tmp_path / "model")
    assert main(["check", str(folder)]) == 0
    assert main(["check", str(folder), "--precision", "int8"]) == 0
