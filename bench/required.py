"""Words that must occur, and diverse beams, on a trained translator: kept, and what they cost.

    python bench/required.py MODEL ROWS.jsonl [--source en --target de] [--rows 500] [--seed 0]

Words: for each sentence the model first translates freely; one or two words of five letters and
more are drawn from the reference, of those that the free translation lacks (where there are too
few, of all), and required by `force_words`. Printed: in how many outputs all occur, as whole words
and in any case, and BLEU with and without. Words of the reference help a translation, so as many
are also drawn from another sentence's reference, which harms: both costs are printed.

Diverse beams: four outputs a sentence by four beams, and by four beams in groups of one with a
diversity penalty (Vijayakumar et al., 2018): self-BLEU of the four (each against the other three,
of sacrebleu, mean over them; lower is more diverse), and BLEU of the first.
"""

import argparse
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sacrebleu

import bedstone

WORD = re.compile(r"\w{5,}")
GROUPS: dict[str, Any] = {"num_beam_groups": 4, "diversity_penalty": 1.0}


def bleu(found: Sequence[str], references: Sequence[str]) -> float:
    return sacrebleu.corpus_bleu(list(found), [list(references)], lowercase=True).score


def holds(text: str, words: Sequence[str]) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text.lower()) for word in words)


def drawn(text: str, free: str, draw: random.Random) -> list[str]:
    """One or two words of a text, of those that another lacks where there are enough."""
    words = sorted(set(WORD.findall(text.lower())))
    lacking = [word for word in words if not holds(free, [word])]
    count = draw.choice((1, 2))
    given = lacking if len(lacking) >= count else words
    return draw.sample(given, min(count, len(given)))


def with_words(task: Any, sources: list[str], words: list[list[str]]) -> list[str]:
    return [
        task(source, force_words=own)[0]["translation_text"]
        for source, own in zip(sources, words, strict=True)
    ]


def self_bleu(groups: list[list[str]]) -> float:
    each = len(groups[0])
    scores = []
    for number in range(each):
        others = [[group[other] for group in groups] for other in range(each) if other != number]
        own = [group[number] for group in groups]
        scores.append(sacrebleu.corpus_bleu(own, others, lowercase=True).score)
    return sum(scores) / each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--rows", dest="count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()][: args.count]
    rows = [row.get("translation", row) for row in rows]
    sources, references = ([row[side] for row in rows] for side in (args.source, args.target))
    task = bedstone.pipeline("translation", args.model, num_beams=5)
    free = [each["translation_text"] for each in task(sources)]
    print(f"{len(rows)} sentences, 5 beams; BLEU without words {bleu(free, references):.2f}")
    draw = random.Random(args.seed)
    others = references[1:] + references[:1]
    for name, texts in (("of the reference", references), ("of another sentence", others)):
        words = [drawn(*pair, draw) for pair in zip(texts, free, strict=True)]
        found = with_words(task, sources, words)
        kept = sum(holds(*pair) for pair in zip(found, words, strict=True))
        count = sum(map(len, words))
        print(
            f"{count} words {name}: all occur in {kept} of {len(rows)} outputs, "
            f"BLEU {bleu(found, references):.2f}"
        )
    for name, more in (("4 beams", {}), ("4 groups", GROUPS)):
        several = [
            [each["translation_text"] for each in outputs]
            for outputs in task(sources, num_beams=4, num_return_sequences=4, **more)
        ]
        first = [group[0] for group in several]
        print(f"{name}: self-BLEU {self_bleu(several):.2f}, BLEU {bleu(first, references):.2f}")


if __name__ == "__main__":
    main()
