"""The demo's CLIP: trained on rendered scenes with captions; images found by text."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bedstone.data.scenes.captions import all_captions, check_caption
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import Scene, make_scene
from bedstone.demo.run import Demo, Trained
from bedstone.evaluate.contrastive import evaluate_contrastive
from bedstone.files import atomic_file, write_text
from bedstone.report.pages import Section
from bedstone.report.sheets import Query, search_sheet
from bedstone.tasks.images.engine import ImageEngine

RECIPE: dict[str, Any] = {
    "model": {
        "layout": "clip_resnet",
        "embed": 192,
        "image": {
            "image_size": 64,
            "width": 32,
            "blocks": [1, 1, 1],
            "block": "basic",
            "shrink": 4,
        },
        "text": {"width": 192, "layers": 2, "heads": 3, "context": 48},
    },
    "data": {"source": "scenes", "most_rows": 4000, "objects": [1, 3]},
    "tokenizer": {"vocab_size": 1024},
    "optim": {"kind": "muon", "lr": 3e-3, "adamw_lr": 3e-3},
    "batch_size": 128,
    "save_minutes": 2.0,
}
# Which of these a network has never seen together: a red circle, a yellow moon, a cyan heart, ...
QUERIES = (
    "a red circle",
    "a yellow moon",
    "a small cyan heart",
    "two purple squares",
    "a red circle on a meadow",
    "a red circle and a red cross",
    "a ring in the top left",
    "a circle above a square",
)
SEARCHED = 400  # held-out scenes that are searched
BEST = 4  # pictures shown of what is found
SIDE = 176  # pixels of a picture on the sheet
_FIRST = 10**6  # their seeds are none of those that the figures are measured on


def show(trained: Trained) -> Section:
    """Images found by sentences."""
    folder, model, how = trained.folder, trained.model, trained.precision
    measured = evaluate_contrastive(model, "scenes", how)
    scenes = [
        make_scene(_FIRST + number, split="test", objects=(1, 3)) for number in range(SEARCHED)
    ]
    pictures = _write_pictures(scenes, folder / "pictures")
    found = _found(ImageEngine(model, how.name), scenes, pictures)
    for query in found:
        trained.console.print(f"{query.words}: [dim]{query.note}[/dim]", highlight=False)
    sheet = search_sheet(found, folder / "found.png")
    right = sum(map(sum, (query.right for query in found)))  # type: ignore[arg-type]
    share = np.mean([sum(_right(scene, words) for scene in scenes) for words in QUERIES])
    shown = {sheet: f"The best matches of each text among {SEARCHED} unseen images, best first"}
    if trained.run is not None:
        shown[folder / "curve.png"] = "Loss against caption tokens"
    return Section(
        title="CLIP: images found by text",
        words=(
            "An image encoder and a text encoder, trained from random weights so that an image's "
            "vector is near its caption's and far from other captions'. Each image that it is "
            "evaluated on shows a combination of shape and colour that no training caption named."
        ),
        figures={
            "zero-shot accuracy over 80 shapes and colours": _with_interval(
                measured["zero-shot"], "accuracy"
            )
            + "; 1.25% by chance",
            "recall@1 of 100 images by their caption": _with_interval(
                measured["retrieval"], "text_to_image_recall@1"
            )
            + "; 1% by chance",
            f"right among the best {BEST}, below": f"{right} of {BEST * len(QUERIES)}; "
            f"{BEST * len(QUERIES) * share / SEARCHED:.1f} by chance",
        },
        pictures=shown,
        glance={f"{measured['zero-shot']['accuracy']:.0%}": "of unseen objects named, of 80 kinds"},
        commands=_next(trained.path, pictures),
    )


def _write_pictures(scenes: list[Scene], folder: Path) -> Path:
    """Scenes as PNG files with a metadata.jsonl, as anybody's pictures are."""
    folder.mkdir(parents=True)
    rows = []
    for number, scene in enumerate(scenes):
        name = f"scene-{number:03}.png"
        with atomic_file(folder / name) as temporary:
            Image.fromarray(draw(scene, SIDE)).save(temporary, format="PNG")
        facts = {"things": len(scene.objects), "background": scene.background}
        rows.append({"file_name": name, "caption": all_captions(scene)[0], **facts})
    write_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _found(engine: ImageEngine, scenes: list[Scene], folder: Path) -> list[Query]:
    """The best pictures of each query, and whether its words are true of them."""
    files = sorted(folder.glob("*.png"))
    near = engine.texts(QUERIES) @ engine.images(files).T  # (queries, pictures)
    queries = []
    for words, row in zip(QUERIES, near, strict=True):
        best = np.argsort(-row, kind="stable")[:BEST].tolist()
        right = [_right(scenes[number], words) for number in best]
        there = sum(_right(scene, words) for scene in scenes)
        note = f"{sum(right)} of {len(best)} right, {there} in all"
        queries.append(Query(words, [draw(scenes[n], SIDE) for n in best], right, note))
    return queries


def _right(scene: Scene, words: str) -> bool:
    stated, true = check_caption(scene, words)
    return stated == true


def _with_interval(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_low"], figures[f"{name}_high"]
    return f"{figures[name]:.1%} ({low:.1%} to {high:.1%})"


def _next(model: str, pictures: Path) -> dict[str, str]:
    """What to try; with the extra `search` the index and its page are there already."""
    place = f"{pictures}.index"
    page = pictures.with_name("found.html")
    commands = {}
    if importlib.util.find_spec("lancedb") is None:
        commands["pip install 'bedstone[search]'"] = "what an index of images needs"
        commands[f"bedstone index {pictures} --model {model}"] = "index images"
    else:
        from bedstone.commands.search import index, search

        index(str(pictures), model, place)
        search(place, [QUERIES[0]], count=12, page=str(page))
    commands[f'bedstone search {place} "{QUERIES[1]}" --page {page}'] = (
        "search images by text, on a page"
    )
    commands[
        f"bedstone run zero-shot-image-classification {model} {pictures / 'scene-000.png'} "
        '--option candidate_labels="a red circle,a yellow moon,a cyan heart"'
    ] = "classify an image, zero-shot"
    commands["bedstone pretrain clip-scenes"] = "train longer"
    commands["bedstone pretrain clip-scenes data.source=YOUR_FOLDER out=runs/mine"] = (
        "train on your own images and texts"
    )
    return commands


DEMO = Demo(
    "CLIP from scratch: drawn scenes and their captions",
    "contrastive",
    RECIPE,
    show,
    step=(RECIPE["batch_size"], "pairs"),
)
