"""Landmarks labelled in a view: where they are and what they are, found by words alone.

    python examples/landmarks.py --out landmarks.png
    python examples/landmarks.py --image view.jpg --model CLIP --label "a church" --label "a bridge"

Windows of several sizes slide over the picture, and a CLIP says which label fits each: no landmark
was learnt, any words do. Overlapping windows of one label are joined and drawn. On synthetic
images, whose truth is known, it counts how many things are found at their place.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import bedstone
from bedstone.data.scenes.captions import articles
from bedstone.data.scenes.datasets import scene_rows
from bedstone.data.scenes.world import Thing

SIZES = (0.34, 0.5)  # of a window, of the shorter side
STEP = 0.25  # of a window
NOTHING = (  # what windows without a landmark show
    "a plain background",
    "a shaded background",
    "a striped background",
    "a dotted background",
    "a checked background",
    "a meadow",
    "lined paper",
    "the night sky",
)


@dataclass(frozen=True)
class Found:
    """A window and its label."""

    box: tuple[int, int, int, int]
    label: str
    score: float


def touch(one: Found, other: Found) -> bool:
    """Whether windows overlap."""
    left, top = max(one.box[0], other.box[0]), max(one.box[1], other.box[1])
    return min(one.box[2], other.box[2]) > left and min(one.box[3], other.box[3]) > top


def joined(windows: list[Found]) -> list[Found]:
    """Overlapping windows of one label as one: the mean of their boxes, and their best score."""
    groups: list[list[Found]] = []
    for each in windows:
        near = [g for g in groups if g[0].label == each.label and any(touch(each, o) for o in g)]
        groups = [g for g in groups if g not in near]
        groups.append([each, *(one for group in near for one in group)])
    made = []
    for group in groups:
        box = np.mean([each.box for each in group], 0).round().astype(int)
        best = max(each.score for each in group)
        made.append(Found((box[0], box[1], box[2], box[3]), group[0].label, best))
    return made


def find(classify: object, picture: Image.Image, labels: list[str], least: float) -> list[Found]:
    """The labels of a picture, each with its place."""
    boxes = []
    for size in SIZES:
        side = round(size * min(picture.size))
        step = max(1, round(STEP * side))
        for top in range(0, picture.height - side + 1, step):
            for left in range(0, picture.width - side + 1, step):
                boxes.append((left, top, left + side, top + side))
    parts = [picture.crop(box) for box in boxes]
    results = classify(parts, candidate_labels=[*labels, *NOTHING])  # type: ignore[operator]
    return joined(
        [
            Found(box, one[0]["label"], one[0]["score"])
            for box, one in zip(boxes, results, strict=True)
            if one[0]["score"] >= least and one[0]["label"] not in NOTHING
        ]
    )


def draw(picture: Image.Image, found: list[Found], path: Path) -> None:
    """The picture, enlarged, with boxes and labels."""
    scale = max(1, 512 // min(picture.size))
    large = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(large)
    for each in found:
        box = [scale * edge for edge in each.box]
        pen.rectangle(box, outline="white", width=3)
        words = f"{each.label} {each.score:.2f}"
        area = pen.textbbox((box[0] + 5, box[1] + 4), words)
        pen.rectangle((area[0] - 3, area[1] - 2, area[2] + 3, area[3] + 2), fill="black")
        pen.text((box[0] + 5, box[1] + 4), words, fill="white")
    large.save(path)


def named(thing: Thing) -> str:
    """A thing in words."""
    return articles(f"a {thing.colour} {thing.shape}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path)
    parser.add_argument("--model", default="scenes-clip", help="a CLIP")
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--least", type=float, default=0.8, help="the least score of a landmark")
    parser.add_argument("--scenes", type=int, default=20, help="synthetic images to count on")
    parser.add_argument("--out", type=Path, default=Path("landmarks.png"))
    options = parser.parse_args()
    classify = bedstone.pipeline("zero-shot-image-classification", options.model)
    if options.image is not None:
        if len(options.label) < 2:
            parser.error("--label: name at least two things that may be there")
        picture = Image.open(options.image).convert("RGB")
        found = find(classify, picture, options.label, options.least)
        draw(picture, found, options.out)
        print("\n".join(f"{each.label} at {each.box}, {each.score:.2f}" for each in found))
        return
    there = right = marked = 0
    for number, row in enumerate(scene_rows(options.scenes, "test", seed=3, objects=(2, 3))):
        picture = Image.fromarray(np.array(row["image"]))
        things = row["scene"].objects
        names = {named(each) for each in things}
        others = ["a green cross", "a yellow moon", "a pink star", "a blue square"]
        found = find(classify, picture, sorted(names | set(others)), options.least)
        there, marked = there + len(things), marked + len(found)
        for thing in things:
            x, y = thing.x * picture.width, thing.y * picture.height
            right += any(
                each.label == named(thing)
                and each.box[0] <= x <= each.box[2] and each.box[1] <= y <= each.box[3]
                for each in found
            )  # fmt: skip
        if not number:
            draw(picture, found, options.out)
    print(f"{right} of {there} things labelled at their place; {marked} labels were drawn")
    print(f"the first image: {options.out}")


if __name__ == "__main__":
    main()
