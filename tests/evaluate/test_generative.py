"""What a model draws, judged through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.images.processor import plain_processor
from bedstone.data.signals.audio import Spectrogram
from bedstone.errors import BedstoneError
from bedstone.evaluate import scene_judge as scene_grid
from bedstone.evaluate.generative import heard, judge_labels
from bedstone.evaluate.judges import Judge, SignalClassifier, SignalClassifierConfig, SignalJudge
from bedstone.evaluate.scene_judge import SceneGridConfig, SceneJudge
from bedstone.models.heads import HeadConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig
from diffusion_runs import pictures, run, sounds
from drawings import drawing
from networks import randomise


def judge(folder: Path, labels: tuple[str, ...] = ("0", "1", "2")) -> Path:
    head = HeadConfig("sequence", labels=labels)
    shape = {"layout": "vit", "image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}
    network = vit.build(ViTConfig(**shape, head=head), seed=1)
    randomise(network, seed=3)
    return Model(network.eval(), processor=plain_processor(16)).save(folder)


def figures(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model of three colours, the rows it learnt from, and a judge."""
    folder = tmp_path_factory.mktemp("made")
    rows = pictures(folder / "rows.parquet")
    data = {"source": str(rows), "size": [8, 8], "validation_share": 0.3}
    done = run(folder / "run", data=data, budget="1 steps", samples=0)
    assert done.model is not None
    return done.model, rows, judge(folder / "judge")


def test_pictures_of_classes_beside_real_ones(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows, sees = made
    words = (model, rows, "--judge", sees, "--samples", "9")
    found = figures(capsys, *words, "--out", tmp_path / "out")
    for name in ("fid", "kid", "precision", "recall", "accuracy", "nearest", "nearest_held_out"):
        assert name in found
    assert found["rows"] == 9
    assert found["judge"] == str(sees)
    assert found["sampling"]["steps"] == 2
    for name in ("drawn.png", "neighbours.png"):
        with Image.open(tmp_path / "out" / name) as sheet:
            assert sheet.size[0] > 100
    again = figures(capsys, *words)  # seeds 0, 1, 2, ...: always the same
    assert again["fid"] == found["fid"]
    assert main(["evaluate", *map(str, words)]) == 0
    assert "fid" in capsys.readouterr().out


def test_without_training_data_neighbours_are_left_out(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows, sees = made
    kept = tmp_path / "kept.parquet"
    kept.write_bytes(rows.read_bytes())
    rows.rename(tmp_path / "gone")
    try:
        found = figures(capsys, model, kept, "--judge", sees, "--samples", "6")
    finally:
        (tmp_path / "gone").rename(rows)
    assert "fid" in found
    assert "nearest" not in found


def test_what_was_made_elsewhere_is_judged_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model without a recipe the signals say how real ones are read."""
    model = drawing().save(tmp_path / "model")
    rows = pictures(tmp_path / "rows.parquet")
    sees = judge(tmp_path / "judge")
    found = figures(capsys, model, rows, "--judge", sees, "--samples", "6")
    assert "accuracy" in found
    assert "nearest" not in found
    model, rows = drawing("class", "audio").save(tmp_path / "sings"), sounds(tmp_path / "sounds")
    assert "accuracy" in figures(capsys, model, rows, "--judge", sees, "--samples", "6")


def test_words_of_real_rows_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pictures(tmp_path / "rows.parquet")
    data = {"source": str(rows), "size": [8, 8], "validation_share": 0.3}
    done = run(
        tmp_path / "run",
        task="text-to-image",
        data=data,
        text={"width": 16, "layers": 1, "heads": 2},
        tokenizer={"vocab_size": 120},
        budget="1 steps",
        samples=0,
    )
    assert done.model is not None
    words = (done.model, rows, "--judge", judge(tmp_path / "judge"), "--samples", "6")
    found = figures(capsys, *words, "--out", tmp_path / "out")
    assert "fid" in found
    assert "accuracy" not in found


def test_sounds_are_judged_as_pictures_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sounds(tmp_path / "s", count=16)
    sound = {"rate": 2000, "window": 32, "hop": 16}
    data = {"source": str(rows), "size": [8], "sound": sound, "validation_share": 0.3}
    done = run(tmp_path / "run", task="class-to-audio", data=data, budget="1 steps", samples=0)
    assert done.model is not None
    sees = judge(tmp_path / "judge", ("high", "low"))
    found = figures(capsys, done.model, rows, "--judge", sees, "--samples", "6")
    assert "accuracy" in found
    # One of signals hears what becomes of them.
    shape = SignalClassifierConfig((16, 8), ("low", "high"), width=8)
    heard = SignalJudge(SignalClassifier(shape)).save(tmp_path / "hears")
    found = figures(
        capsys, done.model, rows, "--judge", heard, "--samples", "6", "--out", tmp_path / "out"
    )
    assert "accuracy" in found
    assert (tmp_path / "out" / "neighbours.png").is_file()


def test_scenes_are_judged_by_what_prompts_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"width": 16, "layers": 1, "heads": 2}
    done = run(
        tmp_path / "run",
        task="text-to-image",
        data={"source": "scenes", "size": [16, 16], "most_rows": 12},
        text=text,
        tokenizer={"vocab_size": 200},
        budget="1 steps",
        samples=0,
    )
    assert done.model is not None
    network = scene_grid.build(SceneGridConfig(size=32, width=8), seed=0)
    sees = SceneJudge(network).save(tmp_path / "judge")
    found = figures(
        capsys, done.model, "scenes", "--judge", sees, "--samples", "5", "--out", tmp_path / "o"
    )
    assert {"right", "things", "shapes", "colours", "exact"} <= found.keys()
    assert {"right/1 thing", "right/2 things"} & found.keys()
    assert (tmp_path / "o" / "drawn.png").is_file()
    assert not (tmp_path / "o" / "neighbours.png").exists()


def test_classes_are_those_of_the_judge_by_their_names() -> None:
    def knows(*labels: str) -> Judge:
        return Judge("j", labels, lambda x: x, lambda x: (x, None))

    classes, names = torch.tensor([0, 1, 2, 0]), ("cat", "dog", "fox")
    found = judge_labels(classes, names, knows("fox", "cow", "cat", "dog"))
    assert found is not None
    assert found.tolist() == [2, 3, 0, 2]
    counted = judge_labels(classes, names, knows("0", "1", "2"))
    assert counted is not None
    assert counted.tolist() == [0, 1, 2, 0]
    assert judge_labels(classes, names, knows()) is None
    with pytest.raises(BedstoneError, match="knows 2 classes"):
        judge_labels(classes, names, knows("0", "1"))


def test_what_cannot_be_judged(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows, sees = made
    for words, said in (
        ((model, rows), "judge: nothing can be said"),
        ((model, rows, "--judge", tmp_path / "none"), "no such file or folder"),
        ((model, rows, "--judge", model), "no model that tells pictures apart"),
        ((model, tmp_path / "none.parquet", "--judge", sees), "none.parquet"),
        ((model, rows, "--judge", judge(tmp_path / "two", ("a", "b"))), "knows 2 classes"),
        ((model, rows, "--judge", sees, "--samples", "0"), "samples: 0"),
        ((model, rows, "--judge", sees, "--label-column", "x"), "label-column: 'x' was given"),
        ((model, rows, "--judge", sees, "--samples", "2"), "pictures"),
    ):
        assert main(["evaluate", *map(str, words)]) == 2, words
        assert said in capsys.readouterr().err


def test_a_silent_sound_is_judged_as_silence():
    form = Spectrogram(window=16, hop=8, frames=12, rounds=1)
    signals = torch.full((2, form.bins, form.frames), -1.0)
    signals[0, 3] = 1.0
    found = heard(form, signals)
    assert found.shape == signals.shape
    assert found[0].max() > 0.5 and torch.equal(found[1], signals[1])
