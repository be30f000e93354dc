"""A storyboard from a script: a picture for each line, and a check that it shows the line.

    python examples/storyboard.py --out storyboard.html
    python examples/storyboard.py script.txt --model MODEL --check CLIP

Each line is drawn several times, and the picture that a CLIP finds nearest to the line is kept.
Beside it stands what a captioner sees in it, so that a shot that went wrong is seen before anyone
works with it.
"""

import argparse
from pathlib import Path

import bedstone
from bedstone.report.pages import Tile, write_image_page

SCRIPT = (
    "a red heart on a plain background",
    "a red heart left of a blue circle",
    "a blue circle above a yellow star",
    "a green triangle at night",
    "two stars on a meadow",
    "a purple moon",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", nargs="?", type=Path, help="a text file, a shot a line")
    parser.add_argument("--model", default="scenes-diffusion", help="a model that draws")
    parser.add_argument("--check", default="scenes-clip", help="a CLIP that chooses")
    parser.add_argument("--captioner", default="scenes-vlm")
    parser.add_argument("--tries", type=int, default=4, help="pictures of each line")
    parser.add_argument("--out", type=Path, default=Path("storyboard.html"))
    options = parser.parse_args()
    lines = SCRIPT if options.script is None else options.script.read_text().splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    draw = bedstone.pipeline("text-to-image", options.model)
    check = bedstone.pipeline("zero-shot-image-classification", options.check)
    caption = bedstone.pipeline("image-to-text", options.captioner)
    tiles = []
    for number, line in enumerate(lines, 1):
        pictures = [draw(line, seed=seed)["image"] for seed in range(options.tries)]
        # how well each fits this line, beside the other lines of the script
        fits = [
            next(one["score"] for one in found if one["label"] == line)
            for found in check(pictures, candidate_labels=lines)
        ]
        best = max(range(len(pictures)), key=fits.__getitem__)
        seen = caption(pictures[best])[0]["generated_text"]
        tiles.append(Tile(pictures[best], f"{number}. {line}", f"{fits[best]:.2f}", {"seen": seen}))
        print(f"{number}. {line}: fits {fits[best]:.2f}; seen: {seen}")
    lead = f"Best of {options.tries} pictures a line."
    print(f"page: {write_image_page(options.out, 'Storyboard', lead, tiles)}")


if __name__ == "__main__":
    main()
