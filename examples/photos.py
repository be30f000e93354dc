"""A folder of photos, described for someone who can't see them.

    python examples/photos.py PHOTOS --page photos.html
    python examples/photos.py                                (eight synthetic images)

Each photo gets a description and answers to fixed questions, as a page with alternative texts that
a screen reader speaks, and as plain text. Answers that the model gives little probability are
marked: a wrong one is worse than none.
"""

import argparse
from pathlib import Path

import bedstone
from bedstone.data.scenes.datasets import scene_rows
from bedstone.report.pages import Tile, write_image_page

QUESTIONS = ("How many objects are there?", "What does the sign say?")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SURE = 0.6  # the probability of an answer that is given without a mark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", default="scenes-vlm", help="a model that captions and answers")
    parser.add_argument("--question", action="append", help="in place of the usual ones")
    parser.add_argument("--page", type=Path, default=Path("photos.html"))
    options = parser.parse_args()
    if options.folder is None:
        pictures = {f"scene {n}": row["image"] for n, row in enumerate(scene_rows(8, "test"), 1)}
    else:
        files = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in ENDINGS)
        pictures = {path.name: path for path in files}
    describe = bedstone.pipeline("image-to-text", options.model)
    ask = bedstone.pipeline("visual-question-answering", options.model)
    tiles = []
    for name, picture in pictures.items():
        text = describe(picture)[0]["generated_text"]
        answers = {}
        for question in options.question or QUESTIONS:
            best = ask(picture, question=question)[0]
            doubt = "" if best["score"] >= SURE else " (not sure)"
            answers[question] = best["answer"] + doubt
        tiles.append(Tile(picture, text, name, answers))
        print(f"{name}: {text}. " + " ".join(f"{q} {a}." for q, a in answers.items()))
    lead = "Described by a model, which can be wrong. Ask somebody where it matters."
    write_image_page(options.page, "Photos in words", lead, tiles)
    print(f"page: {options.page}")


if __name__ == "__main__":
    main()
