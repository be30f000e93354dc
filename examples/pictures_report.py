"""A report over clinical pictures, with the limits of the model said before its findings.

    python examples/pictures_report.py --page report.html

The pictures here are synthetic and stand for smears: how many objects a picture shows is counted by
a model. On pictures with known counts the report first measures how often the model is right, and
how well its probabilities say so; findings below a threshold are passed to a person. Only then come
the findings. For pictures of your own: a model that was tuned on them, and a file of true counts.
This is an example of a way of working, and no medical device.
"""

import argparse
from pathlib import Path

import numpy as np

import bedstone
from bedstone.data.scenes.datasets import scene_rows
from bedstone.report.pages import Tile, write_image_page

QUESTION = "how many objects are there?"


def counted(ask: object, split: str, count: int) -> list[tuple[object, int, int, float]]:
    """Pictures with their true count, the model's, and its probability."""
    found = []
    for row in scene_rows(count, split, seed=11):
        best = ask(row["image"], question=QUESTION)[0]  # type: ignore[operator]
        said = int(best["answer"]) if best["answer"].isdigit() else -1
        found.append((row["image"], len(row["scene"].objects), said, best["score"]))
    return found


def calibration_error(right: np.ndarray, score: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al., 2017): by how much probabilities miss the shares."""
    place = np.minimum((score * bins).astype(int), bins - 1)
    gaps = [
        abs(right[place == each].mean() - score[place == each].mean()) * (place == each).mean()
        for each in range(bins)
        if (place == each).any()
    ]
    return float(sum(gaps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes-vlm", help="a model that answers questions")
    parser.add_argument("--known", type=int, default=200, help="pictures with known counts")
    parser.add_argument("--new", type=int, default=24, help="pictures to report on")
    parser.add_argument("--least", type=float, default=0.8, help="probability of a finding")
    parser.add_argument("--page", type=Path, default=Path("report.html"))
    options = parser.parse_args()
    ask = bedstone.pipeline("visual-question-answering", options.model)
    known = counted(ask, "validation", options.known)
    right = np.array([truth == said for _, truth, said, _ in known], float)
    score = np.array([each[3] for each in known])
    sure = score >= options.least
    drawn = np.random.default_rng(0).integers(len(known), size=(1000, len(known)))
    low, high = np.quantile(right[drawn].mean(1), [0.025, 0.975])
    limits = [
        f"On {len(known)} pictures with known counts the model was right in {right.mean():.0%} "
        f"({low:.0%} to {high:.0%}).",
        f"Probabilities miss the shares of right answers by {calibration_error(right, score):.2f}.",
        f"Findings of {options.least:.2f} and more are {sure.mean():.0%} of all, and right in "
        f"{right[sure].mean():.0%}; the others go to a person.",
        "It learnt from synthetic images alone, and counts up to five objects.",
    ]
    print("\n".join(limits))
    tiles = []
    for number, (picture, truth, said, p) in enumerate(counted(ask, "test", options.new), 1):
        finding = f"{said} objects" if p >= options.least else "for a person to count"
        tiles.append(Tile(picture, finding, f"{p:.2f}", {"truth": str(truth)}))
        print(f"picture {number}: {finding} ({p:.2f})")
    lead = " ".join(limits)
    print(f"page: {write_image_page(options.page, 'Counts in pictures', lead, tiles)}")


if __name__ == "__main__":
    main()
