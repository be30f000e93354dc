"""The demo's vision-language model: questions about scenes, and attention maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from bedstone.checkpoints.model import Model
from bedstone.data.scenes.questions import all_questions
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import COLOURS, SHAPES, Scene, make_scene
from bedstone.demo.run import Demo, Trained
from bedstone.evaluate.image_text import evaluate_image_text
from bedstone.files import atomic_file
from bedstone.inspect.attention import AttentionMap, attention_map, attention_sheet
from bedstone.metrics.vqa import right_answer
from bedstone.report.pages import Captioned, Line, Sample, Section, write_caption_page
from bedstone.report.plots import draw_learning_curve
from bedstone.report.sheets import answer_sheet
from bedstone.tasks.pipeline import pipeline
from bedstone.train.logs import read_log

CLIP = "clip"  # the part of the demo, run before, whose tower for pictures this one begins with

RECIPE: dict[str, Any] = {
    "task": "visual-question-answering",
    "model": {
        "layout": "blip_resnet",
        "text": {"width": 128, "layers": 2, "heads": 4, "context": 40},
        "decoder_layers": 1,
    },
    "data": {"source": "scenes", "most_rows": 4000, "captions": "none"},
    "tokenizer": {"vocab_size": 256},
    "texts": 6,
    "batch_size": 32,
    "evaluate_rows": 100,
    "optim": {"kind": "muon", "lr": 5e-3, "adamw_lr": 2e-3, "momentum": 0.9},
    "save_minutes": 2.0,
}
SCENES = 6  # held-out scenes whose questions are shown
EACH = 4  # questions of each
ATTENDED = 3  # of them, with what the network looks at
_FIRST = 10**6  # their seeds are none of those that the figures are measured on


def show(trained: Trained) -> Section:
    """Answers about scenes, and attention maps."""
    folder, model, how = trained.folder, trained.model, trained.precision
    measured = trained.metrics
    if trained.run is not None:
        measured = evaluate_image_text(model, "scenes", how)["answers"]
    scenes = [make_scene(_FIRST + number, split="test", objects=(2, 4)) for number in range(SCENES)]
    answered = _answered(model, scenes, _write_pictures(scenes, folder / "pictures"))
    for each in answered:
        for line in each.lines:
            said = f"{line.text} ({'right' if line.right else f'wrong: {line.expected}'})"
            trained.console.print(f"{line.question} [dim]{said}[/dim]", highlight=False)
    page = write_caption_page(
        folder / "answers.html",
        "Questions about scenes",
        "Answers of a model trained for minutes.",
        answered,
    )
    pictures = {
        answer_sheet(answered, folder / "answers.png"): (
            f"Answers about held-out scenes; the page is {page}"
        ),
        attention_sheet(_attended(model, scenes), folder / "attention.png"): (
            "Attention over the image while a word is read: lighter is more"
        ),
    }
    baselines = ("majority", "blind")
    beside: dict[str, float] = {name: measured[name] for name in baselines if name in measured}
    if (alone := measured.get("accuracy_by_the_question_alone")) is not None:
        beside["blind"] = alone
    if trained.run is not None:
        curve, log = folder / "minutes.png", read_log(folder / "log.jsonl")
        if drawn := draw_learning_curve(log, curve, "Answers, by kind", beside=beside):
            pictures[drawn] = "Accuracy on held-out images against minutes of training"
    shown = next(iter(sorted((folder / "pictures").glob("*.png"))))
    return Section(
        title="Vision-language model: questions about images",
        words=(
            "An image encoder and a text network that attends to it in every block, trained to "
            "answer questions about rendered scenes: what there is, how many, which colour, where. "
            "It begins with the CLIP's image encoder. Each image that it is evaluated on shows a "
            "combination of shape and colour that never occurred in training."
        ),
        figures={
            "accuracy of answers": _with_interval(measured),
            "without the image": ", ".join(
                f"{beside[name]:.1%} {words}"
                for name, words in (
                    ("blind", "by the question alone"),
                    ("majority", "by the commonest answer"),
                )
                if name in beside
            ),
            **{
                f"of {name.partition('/')[2]}": f"{value:.1%}"
                for name, value in sorted(measured.items())
                if name.startswith("accuracy/") and not name.endswith(("_low", "_high"))
            },
        },
        pictures=pictures,
        samples=_captions(model, scenes, folder) if model.config.head.kind == "joint" else [],
        glance={f"{measured['accuracy']:.0%}": "of questions about unseen images answered right"},
        commands={
            f"bedstone run visual-question-answering {trained.path} {shown} "
            '--option question="How many objects are there?"': "ask a question about an image",
            f"bedstone evaluate {trained.path} scenes": "evaluate it, by kind of question",
            "bedstone pretrain vlm-scenes-answers": "train longer",
            "bedstone pretrain vlm-scenes-answers data.source=YOUR_FOLDER "
            "out=runs/mine": "train on your own images, questions and answers",
        },
    )


def _with_interval(measured: Mapping[str, float]) -> str:
    if "accuracy_low" not in measured:
        return f"{measured['accuracy']:.1%}"
    low, high = measured["accuracy_low"], measured["accuracy_high"]
    return f"{measured['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def _captions(model: Model, scenes: list[Scene], folder: Path) -> list[Sample]:
    """A caption of each scene, in the model's words."""
    say = pipeline("image-to-text", model)
    said = [each[0]["generated_text"] for each in say([draw(scene) for scene in scenes])]
    names = [path.name for path in sorted((folder / "pictures").glob("*.png"))]
    return [Sample("", {"captions": "\n".join(map(": ".join, zip(names, said, strict=True)))})]


def _write_pictures(scenes: list[Scene], folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"scene-{number}.png" for number in range(len(scenes))]
    for scene, path in zip(scenes, paths, strict=True):
        with atomic_file(path) as temporary:
            Image.fromarray(draw(scene, 224)).save(temporary, format="PNG")
    return paths


def _answered(model: Model, scenes: list[Scene], paths: list[Path]) -> list[Captioned]:
    """What the model answers to some questions about each scene, and whether it is right."""
    ask = pipeline("visual-question-answering", model)
    found = []
    for scene, path in zip(scenes, paths, strict=True):
        chosen = all_questions(scene)[:EACH]
        rows = [{"image": draw(scene), "question": one.text} for one in chosen]
        said = [best[0]["answer"] for best in ask(rows, top_k=1)]
        lines = [
            Line(answer, one.text, right_answer(answer, one.answer), one.answer)
            for answer, one in zip(said, chosen, strict=True)
        ]
        found.append(Captioned(path, path.name, lines))
    return found


def _attended(model: Model, scenes: list[Scene]) -> list[tuple[AttentionMap, list[str]]]:
    """For each of a few scenes, what is looked at for two words that name what is to be seen."""
    found = []
    for scene in scenes:
        for one in all_questions(scene):
            words = one.text.rstrip("?").split()
            named = [word for word in dict.fromkeys(words) if word in SHAPES or word in COLOURS]
            if len(named) > 1:
                found.append((attention_map(model, draw(scene), one.text), named[:2]))
                break
    return found[:ATTENDED]


DEMO = Demo(
    "Vision-language model from scratch: questions about drawn scenes",
    "image_text",
    RECIPE,
    show,
    begins_with={"image_init": CLIP},
    step=(RECIPE["batch_size"] * RECIPE["texts"], "questions"),
)
