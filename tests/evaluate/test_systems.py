"""The same prompts through several systems: figures that are those of each alone, the page."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.evaluate.generative import at_size
from bedstone.evaluate.scene_judge import SceneGridConfig, SceneJudge, judge_scenes, stated
from bedstone.evaluate.scene_judge import build as build_judge
from bedstone.evaluate.systems import Systems
from bedstone.metrics.generative import SCALE
from bedstone.report.sheets import as_pixels
from bedstone.tasks.media.unclip import open_generator
from dalles import dalle
from drawings import drawing
from image_models import clip_model
from networks import randomise
from unclips import unclip

PROMPTS = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion model, a DALL-E and an unCLIP, with a judge that sees something."""
    made = tmp_path_factory.mktemp("systems")
    drawing("text").save(made / "diffusion")
    dalle(clip=True).save(made / "dalle")
    unclip().save(made / "unclip")
    clip = copy.deepcopy(clip_model())
    with torch.no_grad():
        clip.network.text_projection.weight.neg_()  # or all cosines were below 0
    clip.save(made / "clip")
    network = build_judge(SceneGridConfig(size=16, width=8), seed=0)
    randomise(network)
    SceneJudge(network).save(made / "judge")
    return made


def names(folder: Path) -> list[str]:
    return [str(folder / name) for name in ("diffusion", "dalle", "unclip")]


def test_figures_are_those_of_each_alone(folder: Path) -> None:
    judge = str(folder / "judge")
    given, clip = {"steps": 2, "candidates": 2}, str(folder / "clip")
    systems = Systems(names(folder), PROMPTS, given, judge=judge, clip=clip, precision="fp32")
    found = systems.draw(2, seed=3)
    assert systems.given == [{"steps": 2}, {"steps": 2, "candidates": 2}, {"steps": 2}]
    assert systems.clip is not None and systems.judge is not None
    rows = [prompt for prompt in PROMPTS for _ in range(2)]
    for drawn, made, own in zip(found, systems.drawers, systems.given, strict=True):
        alone: Any = open_generator(made.model)
        signals = alone.draw(rows, [3, 4, 3, 4], **own).signals
        pixels, shots = as_pixels(signals), [shot for row in drawn.shots for shot in row]
        assert [len(row) for row in drawn.shots] == [2, 2] and drawn.count == 4
        seen = systems.judge.things(at_size(signals, 16))
        cosines = systems.clip.images(pixels) @ systems.clip.texts(PROMPTS).T
        for row, shot in enumerate(shots):
            assert torch.equal(torch.from_numpy(shot.pixels), torch.from_numpy(pixels[row]))
            right = judge_scenes([seen[row]], [stated(rows[row])]).right == 1
            assert shot.right is right
            assert shot.score == pytest.approx(SCALE * max(cosines[row, row // 2], 0), abs=1e-4)
        assert drawn.right == sum(bool(shot.right) for shot in shots) / 4
        assert drawn.score == pytest.approx(sum(shot.score or 0 for shot in shots) / 4, abs=1e-4)
        assert 0 < drawn.seconds < 60
    assert any(shot.score for each in found for row in each.shots for shot in row)


def test_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, *others = names(folder)
    page = tmp_path / "page.html"
    given = ["imagine", one, "a red circle", "<b>, a blue square", "--count", "2", "--steps", "2"]
    given += [word for other in others for word in ("--beside", other)]
    given += ["--judge", str(folder / "judge"), "--page", str(page)]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("diffusion", "dalle", "unclip", "CLIP score", "right"))
    text = page.read_text()
    assert len(re.findall(r'<img src="data:image/png;base64,', text)) == 12
    assert "&lt;b&gt;, a blue square" in text and "<b>" not in text
    assert len(re.findall(r">(?:right|wrong)</span>", text)) == 12
    assert main(given) == 2  # it is there
    assert "--page: " in capsys.readouterr().err
    assert main([*given, "--overwrite", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["images"] for row in rows] == [4, 4, 4]
    assert all(row["right_low"] <= row["right"] <= row["right_high"] for row in rows)


def test_without_judge_and_clip(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = names(folder)[0]
    given = ["imagine", one, "sky", "--beside", one, "--count", "1", "--steps", "1", "--json"]
    assert main(given) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(row) for row in rows] == [["how", "images", "model", "seconds"]] * 2


def test_what_can_not_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = names(folder)
    judge = str(folder / "judge")
    with pytest.raises(BedstoneError, match="states no thing"):
        Systems([one], ["the sky"], {}, judge=judge)
    with pytest.raises(BedstoneError, match=r"temperatur: none of the systems .*temperature"):
        Systems([one, two], PROMPTS, {"temperatur": 1.0})
    drawing("none").save(folder / "plain")
    with pytest.raises(BedstoneError, match=r"beside: .*plain draws no images from words"):
        Systems([three, str(folder / "plain")], PROMPTS, {})
    with pytest.raises(BedstoneError, match="text: no prompt"):
        Systems([one], [], {})
    words = ["a red circle", "--beside", two]
    for more, said in (
        (["--out", "x"], "--out, --strip"),
        (["--image", "x.png"], "--image: isn't there with --beside"),
        (["--page", "no/such/page.html"], "--page: "),
        (["--clip", one], "clip: "),
    ):
        assert main(["imagine", one, *words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["imagine", one, "a red circle", "--judge", judge]) == 2
    assert "give --beside or --page too" in capsys.readouterr().err
