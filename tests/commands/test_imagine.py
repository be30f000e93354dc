"""`bedstone imagine`: files of every kind with their recipes, sheets, strips; bad input named."""

import json
import re
import wave

import numpy as np
import pytest
from PIL import Image

import bedstone
from bedstone.cli import main
from bedstone.data.images.png import read_recipe
from bedstone.tasks.media.files import pixels
from bedstone.tasks.media.generator import MediaGenerator
from drawings import drawing


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    made = {}
    for condition, kind in (
        ("text", "image"),
        ("class", "image"),
        ("none", "audio"),
        ("class", "video"),
        ("class", "volume"),
    ):
        made[kind if condition != "class" or kind != "image" else "class"] = drawing(
            condition, kind
        ).save(folder / f"{condition}-{kind}")
    return made


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def told(capsys, *words) -> str:
    capsys.readouterr()
    assert main(["imagine", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error[error.index("bedstone: ") :]
    assert last.strip().count("\n") == 0
    return last


def test_a_single_picture_at_its_own_size_with_its_recipe(models, tmp_path):
    words = ["imagine", str(models["image"]), "a red circle", "--count", "1", "--seed", "4"]
    words += ["--precision", "fp32"]
    assert main([*words, "--steps", "3", "--out", "one.png"]) == 0
    shown = np.asarray(Image.open("one.png"))
    assert shown.shape == (8, 8, 3)
    recipe = read_recipe("one.png")
    assert (recipe["prompt"], recipe["seed"], recipe["sampling"]["steps"]) == ("a red circle", 4, 3)
    # What the recipe says, drawn again.
    drawer = MediaGenerator(bedstone.load(recipe["model"]))
    again = drawer.draw([recipe["prompt"]], [recipe["seed"]], **recipe["sampling"]).signals[0]
    assert np.abs(pixels(again).astype(int) - shown).max() <= 1
    assert main([*words, "--out", "large.png", "--enlarge", "3"]) == 0
    large = np.asarray(Image.open("large.png"))
    assert large.shape == (24, 24, 3)
    assert (large[::3, ::3] == large[1::3, 2::3]).all()
    assert main(words) == 0
    assert (tmp_path / "imagined.png").is_file()


def test_several_are_a_sheet_and_single_files(models, capsys):
    words = ["imagine", str(models["class"]), "dog", "cat", "--count", "2", "--json"]
    assert main([*words, "--out", "sheet.png"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == [
        "sheet/000-dog.png",
        "sheet/001-dog.png",
        "sheet/002-cat.png",
        "sheet/003-cat.png",
        "sheet.png",
    ]
    assert [(row["prompt"], row["seed"]) for row in rows[:4]] == [
        ("dog", 0),
        ("dog", 1),
        ("cat", 0),
        ("cat", 1),
    ]
    assert len(read_recipe("sheet.png")["drawn"]) == 4
    assert read_recipe("sheet/002-cat.png")["prompt"] == "cat"


def test_a_folder_and_the_way_there_step_by_step(models, tmp_path, capsys):
    words = ["imagine", str(models["image"]), "ink", "--count", "2", "--steps", "5"]
    assert main([*words, "--out", "made", "--show-steps"]) == 0
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == ["000-ink.png", "001-ink.png", "sheet.png", "steps.png"]
    assert "2 drawn in" in capsys.readouterr().out
    assert main([*words, "--out", "again", "--strip", "strip.png"]) == 0
    strip = Image.open("strip.png")
    assert strip.width > 5 * 96  # five steps,
    assert strip.height > 4 * 96  # two rows of each picture
    assert read_recipe("strip.png")["drawn"][0]["prompt"] == "ink"


def test_sounds_videos_and_volumes(models):
    assert main(["imagine", str(models["audio"]), "--count", "1", "--out", "a.wav"]) == 0
    with wave.open("a.wav") as sound:
        assert (sound.getframerate(), sound.getnframes()) == (1000, 11 * 16)
    assert read_recipe("a-shown.png")["drawn"][0]["seed"] == 0
    assert main(["imagine", str(models["video"]), "cat", "--count", "1", "--out", "v.png"]) == 0
    with Image.open("v.png") as video:
        assert (video.n_frames, video.size) == (4, (8, 8))
    assert read_recipe("v.png")["prompt"] == "cat"
    assert read_recipe("v-shown.png")["drawn"][0]["prompt"] == "cat"
    assert main(["imagine", str(models["volume"]), "1", "--count", "2", "--out", "solids"]) == 0
    assert np.load("solids/001-1.npy").shape == (8, 8, 8)
    assert read_recipe("solids/sheet.png")["drawn"][1]["prompt"] == "1"


def test_several_drawn_of_nothing_are_several_files(tmp_path):
    model = str(drawing("none").save(tmp_path / "model"))
    assert main(["imagine", model, "--count", "3", "--out", "s.png"]) == 0
    assert [read_recipe(f"s/00{number}.png")["seed"] for number in range(3)] == [0, 1, 2]
    assert len(read_recipe("s.png")["drawn"]) == 3
    assert main(["imagine", model]) == 0
    assert len(list((tmp_path / "imagined").glob("0*.png"))) == 4


def test_pictures_to_begin_from(models):
    model = str(models["image"])
    Image.fromarray(np.full((20, 24, 3), 90, np.uint8)).save("photo.png")
    mask = np.zeros((20, 24), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save("mask.png")
    begin = ["imagine", model, "ink", "--count", "1", "--image", "photo.png"]
    assert main([*begin, "--mask", "mask.png", "--out", "painted.png"]) == 0
    painted = np.asarray(Image.open("painted.png"))
    assert (painted[5:] == 90).all()
    assert not (painted[:3] == 90).all()
    recipe = read_recipe("painted.png")
    assert (recipe["image"], recipe["mask"]) == ("photo.png", "mask.png")
    assert main([*begin, "--strength", "0.5", "--out", "near.png"]) == 0
    assert read_recipe("near.png")["strength"] == 0.5
    like = ["imagine", model, "--variations", "photo.png", "--count", "2", "--strength", "0.2"]
    assert main([*like, "--out", "like"]) == 0
    assert read_recipe("like/001.png")["change"] == 0.2


def test_between_and_stories(models, tmp_path):
    model = str(models["image"])
    assert main(["imagine", model, "ink", "--between", "two stars", "--out", "way"]) == 0
    assert len(list((tmp_path / "way").glob("0*.png"))) == 7
    assert read_recipe("way/003-ink.png")["share"] == 0.5
    alone = ["imagine", str(models["audio"]), "--between", "9", "--count", "3", "--out", "alone"]
    assert main(alone) == 0
    assert read_recipe("alone/sheet.png")["drawn"][2]["seeds"] == [0, 9]
    (tmp_path / "story.txt").write_text("a red circle\n\ntwo stars\n")
    assert main(["imagine", model, "--story", "story.txt", "--out", "s.png"]) == 0
    drawn = read_recipe("s.png")["drawn"]
    assert [(each["prompt"], each["seed"]) for each in drawn] == [
        ("a red circle", 0),
        ("two stars", 0),
    ]
    assert main(["imagine", model, "ink", "stars", "--style", "blue", "--out", "t"]) == 0
    assert read_recipe("t/001-stars-blue.png")["prompt"] == "stars, blue"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "prompt: none was given; the model draws from words"),
        (["ink", "--steps", "0"], "steps: 0"),
        (["ink", "--method", "dimm"], "perhaps 'ddim'"),
        (["ink", "--count", "0"], "count: 0"),
        (["ink", "--seed", "-1"], "seed: -1"),
        (["ink", "--seed", str(2**64 - 1)], "expected less than 2^64"),
        (["ink", "--spacing", "karras"], "Choose trailing, linspace or even"),
        (["ink", "--guidance", "1e38"], "guidance 1e+38 isn't finite"),
        (["ink", "--size", "8by8"], "--size: '8by8'"),
        (["ink", "--size", "9x8"], "isn't divided by the patches"),
        (["ink", "--interval", "soon"], "--interval"),
        (["ink", "--enlarge", "0"], "enlarge: 0"),
        (["ink", "--strip", "steps.gif"], "--strip"),
        (["ink", "--out", "one.jpg"], "image is written as .png"),
        (["ink", "--image", "none.png"], "none.png"),
        (["ink", "--mask", "mask.png"], "mask: was given without an image"),
        (["ink", "--between", "a", "--variations", "b.png"], "--variations and --between"),
        (["ink", "--variations", "b.png", "--mask", "m.png"], "--mask: --variations takes none"),
        (["--between", "ink"], "--between: expected one prompt"),
        (["--story", "none.txt"], "none.txt"),
        (["ink", "--story", "none.txt"], "--story"),
        (["a", "b", "--style", "ink", "--count", "3"], "--count: 3"),
    ],
)
def test_bad_input_is_named(models, capsys, words, said):
    assert said in told(capsys, models["image"], *words)


def test_bad_classes_and_models_are_named(models, capsys, tmp_path):
    assert "perhaps 'cat'" in told(capsys, models["class"], "cta")
    assert "class: 7 is out of range" in told(capsys, models["class"], "7")
    assert "draws nothing" in told(capsys, models["image"] / "text_encoder", "ink")
    assert "no such folder" in told(capsys, tmp_path / "none", "ink")
    assert "prompt: 'a'" in told(capsys, models["audio"], "a")
    assert "a seed to end with" in told(capsys, models["audio"], "--between", "ink")


def test_places_that_cannot_be_written_are_named_before_drawing(
    models, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr("bedstone.commands.imagine._drawn", None)
    (tmp_path / "taken").write_text("x")
    for words in (
        ["--out", "taken.png", "--count", "2"],
        ["--out", "taken/in.png"],
        ["--out", "taken/in/it"],
        ["--out", "a.png", "--strip", "taken/strip.png"],
    ):
        found = told(capsys, models["class"], "cat", "--count", "1", *words)
        assert "taken is a file, where a folder was to be" in found


def test_info_of_what_draws(models, capsys):
    assert main(["info", str(models["class"]), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["draws"] == "image of 3 by 8 by 8"
    assert "cat, dog" in facts["from"]
    network = bedstone.load(models["class"]).network
    assert facts["parameters_of_transformer"] == sum(p.numel() for p in network.parameters())
    assert main(["info", str(models["image"])]) == 0
    assert re.search(r"from +│ words", capsys.readouterr().out)


def test_run_writes_files(models, capsys, tmp_path):
    words = ["run", "text-to-image", str(models["image"]), "ink", "a red circle", "--json"]
    assert main([*words, "--option", "seed=3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["result"]["file"] for row in rows] == [
        "drawn/000-ink.png",
        "drawn/001-a-red-circle.png",
    ]
    assert read_recipe(rows[1]["result"]["file"])["task"] == "text-to-image"
    taken = ["run", "text-to-image", str(models["image"]), "ink", "--option"]
    assert main([*taken, "out=drawn/000-ink.png"]) == 2
    assert "can't be written" in capsys.readouterr().err
    assert main([*taken, "size=8"]) == 2
    assert "size: 8 was given; expected 2 whole numbers" in capsys.readouterr().err
    alone = ["run", "unconditional-audio-generation", str(models["audio"])]
    assert main([*alone, "--option", f"out={tmp_path}/sounds"]) == 0
    assert (tmp_path / "sounds" / "000.wav").is_file()


def test_other_commands_say_that_it_writes_no_text(models, capsys):
    assert main(["generate", str(models["image"]), "ink"]) == 2
    assert "bedstone imagine" in capsys.readouterr().err
