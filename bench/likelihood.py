"""Likelihoods beside lm-evaluation-harness: the same requests, the same numbers, seconds of both.

    python bench/likelihood.py MODEL TEXTS.jsonl [--requests 1000] [--context 256] [--seed 0]

MODEL is a decoder; it is saved to a folder that transformers opens. Of five requests each, made of
the texts' column `text`: one is ordinary, in one the context ends in a space, in one it ends inside
a word (a token may go over the boundary), in one it is empty, and in one it is longer than the
context. Printed: the largest difference of the log-probabilities of each kind, in nats, how often
the two disagree on greedy, and seconds of the processor; then the same of few-shot prompts: eight
examples before each of 50 rows, two labels each. Needs lm-eval and transformers.
"""

import argparse
import logging
import random
import tempfile
import time
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import bedstone
from bedstone.data.open import open_dataset
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.generation.likelihood import Scorer
from bedstone.nn.fast.inference import for_inference

KINDS = ("ordinary", "ends in space", "inside a word", "empty", "too long")


def inside(tokenizer: Tokenizer, text: str, draw: random.Random) -> tuple[str, str]:
    """A text cut anywhere where its end has a token of its own; else in front of another word."""
    for _ in range(20):
        at = draw.randrange(1, max(2, len(text)))
        start, end = text[:at], text[at:]
        whole = len(tokenizer.encode(text))
        if end and start.strip() and len(tokenizer.encode(start.rstrip())) < whole:
            return start, end
    return text, " and so"


def requests(
    tokenizer: Tokenizer, texts: list[str], count: int, context: int, draw: random.Random
) -> list[tuple[str, str]]:
    """(context, continuation) of each kind in turn."""
    every, found = " ".join(texts), []
    for number in range(count):
        text = " ".join(draw.choice(texts).split()[:8])
        after = draw.choice(("positive", "negative", "not so bad"))
        start = draw.randrange(max(1, len(every) - 8 * context))
        found.append(
            (
                (f"Review: {text}\nSentiment:", f" {after}"),
                (f"Review: {text}\nSentiment: ", after),
                inside(tokenizer, text, draw),
                ("", text),
                (every[start : start + 8 * context], f" {after}"),
            )[number % 5]
        )
    return found


def few_shot(texts: list[str]) -> list[tuple[str, str]]:
    """Both labels of 50 rows after the same eight examples."""
    rows = [" ".join(text.split()[:8]) for text in texts[:58]]
    shots = "".join(f"Review: {text}\nSentiment: positive\n\n" for text in rows[:8])
    return [
        (f"{shots}Review: {text}\nSentiment:", label)
        for text in rows[8:]
        for label in (" positive", " negative")
    ]


def harness_of(model: bedstone.Model, longest: int | None = None) -> HFLM:
    """A model as lm-evaluation-harness reads it, by transformers."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        return HFLM(
            pretrained=f"{folder}/model",
            device="cpu",
            dtype="float32",
            batch_size=8,
            max_length=longest,
            logits_cache=False,  # it mixes up requests of one text that is cut at two places
        )


def compare(scorer: Scorer, peer: HFLM, pairs: list[tuple[str, str]]) -> list[float]:
    """Differences of the log-probabilities; prints seconds of both."""
    began = time.process_time()
    ours = scorer.score(pairs)
    middle = time.process_time()
    theirs = peer.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True
    )
    ended = time.process_time()
    print(f"{len(pairs):,} requests: ours {middle - began:.1f} s, lm-eval {ended - middle:.1f} s")
    differ = sum(one.greedy != other[1] for one, other in zip(ours, theirs, strict=True))
    print(f"greedy differs: {differ}; contexts cut: {sum(one.cut > 0 for one in ours)}", flush=True)
    return [abs(one.log_probability - other[0]) for one, other in zip(ours, theirs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = bedstone.load(given.model)
    model.network.float()
    tokenizer = model.tokenizer
    rows = open_dataset(given.texts)
    texts = [each.strip() for each in rows.texts(rows.need("text")) if len(each.split()) > 1]
    draw = random.Random(given.seed)
    context = min(given.context, model.config.context)
    pairs = requests(tokenizer, texts, given.requests, context, draw)
    scorer = Scorer(for_inference(model.network, torch.float32), tokenizer)
    scorer.context = context
    peer = harness_of(model, context)
    apart = compare(scorer, peer, pairs)
    for number, kind in enumerate(KINDS):
        print(f"{kind}: {max(apart[number::5]):.2e} nats at most, of {len(apart[number::5])}")
    print(f"few-shot: {max(compare(scorer, peer, few_shot(texts))):.2e} nats at most")


if __name__ == "__main__":
    main()
