"""Fill-in-the-middle: single lines of held-out sources, beside the same model left to right.

    python bench/fim.py [--model RUN] [--twin RUN] [--lines 1000] [--order psm|spm] [--seed 0]
        [--recipe key=value ...] [--write]

Without runs, one is trained by the recipe code-fim, then its twin without fill-in-the-middle, with
the same tokenizer, settings and budget. A line of a held-out source of Python's library is right
where all of it is, but for white space at its end. Filled in, it stands between `--before` and
`--after` characters; left to right, the model reads as much of what stands before as fits, and its
first line counts. Intervals are Wilson's, of 95 %. `stopped` is how often the model ended the
middle by itself, within `--tokens`. The loss left to right is of all held-out tokens, those of both
runs being the same.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import bedstone
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.python_docs import python_documents
from bedstone.data.sources import open_source
from bedstone.data.text.causal_lm import evaluation_batches
from bedstone.data.text.chat import Rendered
from bedstone.data.text.fim import fim_tokens, prompt_room, without_overlap
from bedstone.data.text.token_cache import place_of, token_cache
from bedstone.evaluate.runner import held_out_loss
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import write as continuations
from bedstone.objectives.tokens import next_token_loss
from bedstone.recipes.base import read, train
from bedstone.runtime import pick_device, pick_precision
from result import ROOT, Side, add_write, interval, write

RECIPE = ROOT / "recipes" / "code-fim.yaml"
SHORTEST, LONGEST = 8, 100  # characters of a line that is asked for
BATCH = 32


class Gap(NamedTuple):
    """A line of a source, and what stands around it."""

    prefix: str
    line: str
    suffix: str


def gaps(share: float, count: int, seed: int) -> list[Gap]:
    """Lines of code of sources that were held out, drawn by a seed; comments are none."""
    found = []
    for document in python_documents():
        if document.kind != "source" or place_of(f"python {document.name}") >= share:
            continue
        at = 0
        for line in document.text.splitlines(keepends=True):
            text, start = line.rstrip("\r\n"), at
            at += len(line)
            if SHORTEST <= len(text.strip()) <= LONGEST and not text.lstrip().startswith("#"):
                end = start + len(text)
                found.append(Gap(document.text[:start], text, document.text[end:]))
    random.Random(seed).shuffle(found)
    return found[:count]


def filled(
    model: Model, items: Sequence[Gap], order: str, before: int, after: int, tokens: int
) -> tuple[list[str], int]:
    """The middle of each gap, and how many of them the model ended by itself."""
    fim = fim_tokens(tokenizer_of(model))
    room = prompt_room(model.config.context, tokens)
    prompts = [
        fim.prompt(each.prefix[-before:], each.suffix[:after], order, room=room) for each in items
    ]
    sampling, ends = Sampling(max_tokens=tokens), model.end_ids | fim.stops
    texts, stopped = [], 0
    for start in range(0, len(items), BATCH):
        part = prompts[start : start + BATCH]
        rows = continuations(model.network, fim.tokenizer, part, sampling, eos=ends)
        stopped += sum(row.finish == "stop" for row in rows)
        for gap, row in zip(items[start : start + BATCH], rows, strict=True):
            texts.append(without_overlap(gap.prefix, row.text, gap.suffix))
    return texts, stopped


def continued(model: Model, items: Sequence[Gap], tokens: int) -> list[str]:
    """The first line that the model writes behind each prefix."""
    tokenizer, room = tokenizer_of(model), prompt_room(model.config.context, tokens)
    sampling = Sampling(max_tokens=tokens, stop=("\n",))
    prompts = []
    for each in items:
        prompts.append(Rendered(each.prefix))
        (ids,) = tokenizer.encode_batch([each.prefix[-8 * room :] or "\n"])
        prompts[-1].ids = ids[-room:].tolist()
    texts = []
    for start in range(0, len(items), BATCH):
        part = prompts[start : start + BATCH]
        rows = continuations(model.network, tokenizer, part, sampling, eos=model.end_ids)
        texts += [row.text for row in rows]
    return texts


def rights(items: Sequence[Gap], texts: Sequence[str]) -> int:
    """How many of the lines are right."""
    pairs = zip(items, texts, strict=True)
    return sum(each.line.rstrip() == text.rstrip() for each, text in pairs)


def left_to_right_loss(model: Model) -> float:
    """Nats a token of the held-out documents, none of which is cut."""
    recipe = model.record["recipe"]
    source = open_source(recipe["data"]["source"])
    share = recipe["data"]["validation_share"]
    split = token_cache(source, tokenizer_of(model), validation_share=share).validation
    batches = evaluation_batches(split, model.config.context, 8)
    precision = pick_precision("fp32", pick_device("cpu"))
    loss, _ = held_out_loss(model.network, next_token_loss, batches, precision)
    return float(loss)


def trained(folder: Path, more: Sequence[str]) -> Path:
    """A run of the recipe; prints what it took."""
    clock, processor = time.perf_counter(), time.process_time()
    train(read(RECIPE, [*more, f"out={folder}"]))
    taken = time.perf_counter() - clock, time.process_time() - processor
    print(f"trained in {taken[0]:.0f} s of the clock, {taken[1]:.0f} s of the processor")
    return folder


def opened(run: Path) -> Model:
    model = bedstone.load(run)
    model.network.eval().float()
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="a run with fill-in-the-middle")
    parser.add_argument("--twin", type=Path, help="a run without it")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--order", default="", help="of the prompt: psm (usual) or spm")
    parser.add_argument("--before", type=int, default=640, help="characters before the line")
    parser.add_argument("--after", type=int, default=320, help="characters behind the line")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", nargs="*", default=[])
    add_write(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.model or trained(Path(folder) / "fim", options.recipe)
        model = opened(run)
        twin = None
        if options.twin or not options.model:
            tokens = f"tokenizer.path={run / 'tokenizer'}"
            more = [*options.recipe, tokens, "fim="]
            twin = opened(options.twin or trained(Path(folder) / "twin", more))
    print(f"{sum(each.numel() for each in model.network.parameters()):,} weights")
    share = model.record["recipe"]["data"]["validation_share"]
    items = gaps(share, options.lines, options.seed)
    if not items:
        sys.exit("No source is held out; train with a larger data.validation_share.")
    began = time.perf_counter()
    how = (options.order, options.before, options.after, options.tokens)
    middles, stopped = filled(model, items, *how)
    seconds, began = time.perf_counter() - began, time.perf_counter()
    alone = continued(model, items, options.tokens)
    seconds_alone = time.perf_counter() - began
    quality = {}
    for name, right in (
        ("filled in", rights(items, middles)),
        ("left to right", rights(items, alone)),
        ("stopped", stopped),
    ):
        low, high = interval(right, len(items))
        quality[name] = right / len(items)
        print(f"{name:14}{right / len(items):8.3f}  {low:.3f}-{high:.3f}  of {len(items):,} lines")
    ratio = quality["filled in"] / max(quality["left to right"], 1 / len(items))
    print(f"filled in over left to right: {ratio:.2f}")
    losses = {"bedstone": left_to_right_loss(model)}
    if twin is not None:
        losses["twin"] = left_to_right_loss(twin)
        over = losses["bedstone"] / losses["twin"] - 1
        print(f"loss left to right: {losses['bedstone']:.4f}, without FIM {losses['twin']:.4f} "
              f"({over:+.2%})")  # fmt: skip
    else:
        print(f"loss left to right: {losses['bedstone']:.4f}")
    if options.write:
        sides = {
            "bedstone filled in": Side([seconds], len(items), quality),
            "left to right": Side([seconds_alone], len(items)),
        }
        write(options.write, "fim", "lines", sides, lines=len(items), losses=losses)


if __name__ == "__main__":
    main()
