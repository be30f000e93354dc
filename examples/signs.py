"""Signs in pictures, read by a robot that stops where it isn't sure.

    python examples/signs.py --page signs.html

A robot asks a model what a sign says and acts on it. A wrong act costs more than a stop, so it acts
only on answers with a probability above a threshold, which is chosen on one set of pictures and
measured on another: how often it acts, and how often rightly.
"""

import argparse
from pathlib import Path

import bedstone
from bedstone.data.scenes.datasets import scene_rows
from bedstone.report.pages import Tile, write_image_page

QUESTION = "What does the sign say?"


def signs(count: int, split: str) -> list[tuple[object, str]]:
    """Pictures with a sign, and what it says."""
    found = []
    for row in scene_rows(8 * count, split, seed=5, objects=(1, 2)):
        said = [each.answer for each in row["questions"] if each.text == QUESTION]
        if said:
            found.append((row["image"], said[0]))
    return found[:count]


def threshold(read: list[tuple[float, bool]], wanted: float) -> float:
    """The lowest probability from which on the share of right answers is as wanted; above 1 where
    there is none."""
    read = sorted(read, reverse=True)
    best, right = 1.1, 0
    for count, (score, good) in enumerate(read, 1):
        right += good
        if right / count >= wanted:
            best = score
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes-vlm", help="a model that answers questions")
    parser.add_argument("--count", type=int, default=150, help="pictures of each set")
    parser.add_argument("--right", type=float, default=0.9, help="share of acts that must be right")
    parser.add_argument("--page", type=Path, default=Path("signs.html"))
    options = parser.parse_args()
    ask = bedstone.pipeline("visual-question-answering", options.model)
    sets = {}
    for split in ("validation", "test"):
        sets[split] = [
            (picture, truth, ask(picture, question=QUESTION)[0])
            for picture, truth in signs(options.count, split)
        ]
    chosen = [(best["score"], best["answer"] == truth) for _, truth, best in sets["validation"]]
    least = threshold(chosen, options.right)
    acts = [(truth, best) for _, truth, best in sets["test"] if best["score"] >= least]
    good = sum(best["answer"] == truth for truth, best in acts)
    every = sum(best["answer"] == truth for _, truth, best in sets["test"])
    total = len(sets["test"])
    print(f"read at all: {every} of {total} right")
    print(f"acts on answers of {least:.2f} and more: {len(acts)} of {total}, {good} of them right")
    tiles = []
    for picture, truth, best in sets["test"][:24]:
        act = f"acts on: {best['answer']}" if best["score"] >= least else "stops"
        tiles.append(Tile(picture, act, f"{best['score']:.2f}", {"the sign says": truth}))
    lead = f"Acts on answers of a probability of {least:.2f} and more."
    print(f"page: {write_image_page(options.page, 'Signs', lead, tiles)}")


if __name__ == "__main__":
    main()
