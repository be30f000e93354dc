"""The built-in data `scenes`: how fast it is made, what guessing gets, its picture for the docs.

    OMP_NUM_THREADS=1 python bench/scenes.py             # pictures a second on one core
    OMP_NUM_THREADS=1 python bench/scenes.py --blind     # answers to test questions without looking
    python bench/scenes.py --sheet docs/scenes.png

Who answers blind has seen 10,000 training scenes' questions: the commonest answer to the same
words, or to the same kind of question where the words are new.
"""

import argparse
import textwrap
import time
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bedstone.data.scenes.captions import all_captions, negatives
from bedstone.data.scenes.datasets import scene_rows
from bedstone.data.scenes.questions import all_questions
from bedstone.data.scenes.render import draw
from bedstone.data.scenes.world import make_scene
from bedstone.files import atomic_file

WIDTH, EDGE, COLUMNS = 1200, 12, 4
SHOWN = (77, 51, 60, 75, 71, 50, 65, 22)  # seeds of large pictures


def pace(count: int = 1000) -> None:
    scenes = [make_scene(seed) for seed in range(count)]
    jobs = {
        "draw at 64": lambda scene: draw(scene),
        "draw at 224": lambda scene: draw(scene, 224),
        "captions": all_captions,
        "negatives": negatives,
        "questions": all_questions,
    }
    for name, job in jobs.items():
        start = time.process_time()
        for scene in scenes:
            job(scene)
        print(f"{name}: {count / (time.process_time() - start):,.0f} scenes a second")
    start = time.process_time()
    scene_rows(count, seed=1)
    print(f"whole rows: {count / (time.process_time() - start):,.0f} a second")


def blind(count: int = 10_000) -> None:
    by_words, by_kind = defaultdict(Counter), defaultdict(Counter)
    for seed in range(count):
        for asked in all_questions(make_scene(seed)):
            by_words[asked.text][asked.answer] += 1
            by_kind[asked.kind][asked.answer] += 1
    right, seen = Counter(), Counter()
    for seed in range(count // 2):
        for asked in all_questions(make_scene(seed, split="test")):
            known = by_words.get(asked.text) or by_kind[asked.kind]
            for kind in (asked.kind, "all"):
                right[kind] += known.most_common(1)[0][0] == asked.answer
                seen[kind] += 1
    for kind in sorted(seen):
        print(f"{kind}: {right[kind] / seen[kind]:.3f} of {seen[kind]} questions")
    print(f"{len({answer for known in by_kind.values() for answer in known})} different answers")


def sheet(path: Path) -> None:
    side = (WIDTH - EDGE * (COLUMNS + 1)) // COLUMNS
    text, small = ImageFont.load_default(15), 64
    row = side + 112
    strip = 16
    step = (WIDTH - 2 * EDGE - small) / (strip - 1)
    rows = -(-len(SHOWN) // COLUMNS)
    page = Image.new("RGB", (WIDTH, rows * row + 2 * (small + EDGE) + 2 * EDGE), "white")
    pen = ImageDraw.Draw(page)
    for number, seed in enumerate(SHOWN):
        scene = make_scene(seed, split="all")
        left = EDGE + number % COLUMNS * (side + EDGE)
        top = EDGE + number // COLUMNS * row
        page.paste(Image.fromarray(draw(scene, side)), (left, top))
        asked = all_questions(scene)[0]
        lines = textwrap.wrap(all_captions(scene)[-1], 40)
        pen.multiline_text((left, top + side + 6), "\n".join(lines), "#202020", text, spacing=3)
        under = top + side + 8 + 20 * len(lines)
        lines = textwrap.wrap(f"{asked.text} {asked.answer}", 40)
        pen.multiline_text((left, under), "\n".join(lines), "#2060b0", text, spacing=3)
    for number in range(2 * strip):
        left, top = number % strip, number // strip
        place = (EDGE + round(left * step), EDGE + rows * row + top * (small + EDGE))
        page.paste(Image.fromarray(draw(make_scene(1000 + number, split="all"))), place)
    with atomic_file(path) as temporary:
        page.save(temporary, "PNG", optimize=True)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--blind", action="store_true")
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    if given.blind:
        blind()
    elif given.sheet:
        sheet(given.sheet)
    else:
        pace()


if __name__ == "__main__":
    main()
