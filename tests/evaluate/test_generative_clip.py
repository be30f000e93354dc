"""The CLIP score of what a model draws from words, through the command line."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.signals.open import held_out_prompts
from bedstone.evaluate import scene_judge as scene_grid
from bedstone.evaluate.generative import clip_figures, clip_report, samples_of
from bedstone.evaluate.scene_judge import SceneGridConfig, SceneJudge
from bedstone.report.sheets import as_pixels
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.images.engine import ImageEngine
from diffusion_runs import COLOURS, pictures
from drawings import drawing, reader
from image_models import clip_model, labelled_model

CPU = pick_precision("fp32", pick_device("cpu"))


@functools.cache
def telling() -> Model:
    """A CLIP without what is common to all drawings and to all texts, so that its vectors of
    different ones lie far apart."""
    model = clip_model()
    engine, texts = ImageEngine(model), [prompt.text for prompt in held_out_prompts(40)]
    found = {
        "image_projection": engine.images(as_pixels(drawn_from(texts[:20]))),
        "text_projection": engine.texts(texts),
    }
    for name, vectors in found.items():
        common = torch.from_numpy(vectors).mean(0)
        common /= common.norm()
        weight = getattr(model.network, name).weight
        with torch.no_grad():
            weight -= torch.outer(common, common @ weight)
    return model


def drawn_from(texts: list[str]) -> torch.Tensor:
    """Drawings of texts by seeds 0, 1, 2, ..."""
    model = drawing("text")
    asked, null = model.prompts.condition(texts), model.prompts.condition([""])
    return samples_of(model, CPU, asked, null, len(texts))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model that draws from words, a CLIP, and rows with captions."""
    folder = tmp_path_factory.mktemp("made")
    model, clip = drawing("text").save(folder / "draws"), telling().save(folder / "clip")
    return model, clip, pictures(folder / "rows.parquet", count=6)


def figures(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    done = main(["evaluate", *map(str, words), "--json", "--precision", "fp32"])
    shown = capsys.readouterr()
    assert done == 0, shown.err
    found: dict[str, Any] = json.loads(shown.out.splitlines()[-1])
    return found


def by_hand(texts: list[str]) -> dict[str, float]:
    """The three figures of drawings of `texts`."""
    clip, drawn = ImageEngine(telling()), drawn_from(texts)
    cosines = torch.from_numpy(clip.images(as_pixels(drawn)) @ clip.texts(texts).T)
    own = torch.tensor([[one == other for other in texts] for one in texts])
    best = cosines.masked_fill(~own, -1).amax(1) >= cosines.amax(1)
    scores = 2.5 * cosines.clip(0)
    # each text counts once among the others, however often it was asked for
    once = torch.tensor([texts.index(text) == number for number, text in enumerate(texts)])
    others = scores[~own & once].mean()
    return {
        "clip_score": float(scores.diagonal().mean()),
        "clip_score/other texts": float(others),
        "clip_first": float(best.double().mean()),
    }


def test_a_clip_alone_and_beside_a_judge_of_scenes(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clip, _ = made
    words = (model, "scenes", "--clip", clip, "--samples", "5")
    found = figures(capsys, *words)
    wanted = by_hand([prompt.text for prompt in held_out_prompts(5)])
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert found["main"] == "clip_score" and found["rows"] == 5
    assert found["clip"] == str(clip) and found["clip_name"].startswith("clip-")
    assert "judge" not in found and "right" not in found

    network = scene_grid.build(SceneGridConfig(size=32, width=8), seed=0)
    sees = SceneJudge(network).save(tmp_path / "judge")
    both = figures(capsys, *words, "--judge", sees)
    assert {name: both[name] for name in wanted} == {name: found[name] for name in wanted}
    assert both["main"] == "right" and both["judge"] == str(sees)
    assert "right/1 thing" in both or "right/2 things" in both


def test_captions_of_own_rows(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clip, rows = made
    words = (model, rows, "--clip", clip, "--samples", "8")  # more than there are rows
    found = figures(capsys, *words, "--out", tmp_path / "out")
    colours = [list(COLOURS)[row % 3] for row in (*range(6), 0, 1)]
    wanted = by_hand([f"a picture all in {name}" for name in colours])
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    assert found["clip_texts"] == 3
    assert (tmp_path / "out" / "drawn.png").is_file()
    sees = labelled_model().save(tmp_path / "judge")
    judged = figures(capsys, *words, "--judge", sees)
    assert "fid" in judged and judged["clip_score"] == found["clip_score"]

    assert main(["evaluate", *map(str, words), "--precision", "fp32"]) == 0
    told = "".join(capsys.readouterr().out.split())  # lines break anywhere
    assert found["clip_name"] in told and f"{found['clip_score']:.4f}" in told
    assert "2.5xthecosine" in told and "0.3333bychance" in told


def test_one_text_has_no_others() -> None:
    """And grey drawings are seen as grey ones."""
    grey = torch.rand(2, 1, 8, 8) * 2 - 1
    found = clip_figures("c", ImageEngine(clip_model()), grey, ["a red circle"] * 2)
    assert "clip_first" not in found and "clip_score/other texts" not in found
    json.dumps(found, allow_nan=False)
    assert len(clip_report(found).renderables) == 3


def test_what_cannot_be_compared(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clip, rows = made
    classes = drawing("class").save(tmp_path / "classes")
    sounds = drawing("text", "audio").save(tmp_path / "sounds")
    encoder, sees = reader().save(tmp_path / "reader"), labelled_model().save(tmp_path / "sees")
    blind, whole = tmp_path / "blind", clip_model()
    Model(whole.network, processor=whole.processor).save(blind)
    for words, said in (
        ((classes, rows, "--clip", clip), "one of 3 classes (cat,"),
        ((sounds, rows, "--clip", clip), "signals of the kind 'audio', from words"),
        ((model, rows, "--clip", encoder), "is of layout 'distilbert', which doesn't compare"),
        ((model, rows, "--clip", sees), "is of layout 'vit', which doesn't compare"),
        ((model, rows, "--clip", model), "is of layout 'bedstone_dit', which doesn't compare"),
        ((model, rows, "--clip", blind), "has no tokenizer"),
        ((model, rows, "--clip", tmp_path / "none"), "none"),
        ((model, rows, "--clip", clip, "--samples", "1"), "samples: 1"),
        ((model, rows), "or, of pictures from words, a CLIP"),
        ((clip, rows, "--clip", clip), f"{clip} draws nothing"),
        ((clip, rows, "--judge", sees), f"judge: {sees} was given"),
    ):
        assert main(["evaluate", *map(str, words)]) == 2, words
        told = capsys.readouterr().err
        assert said in " ".join(told.split()), told
