"""A small model that learns in context: accuracy by the number of examples, on unseen tasks.

    python bench/in_context.py [--model RUN] [--tasks 500] [--seed 0] [--plot PNG] [--write]
        [--recipe key=value ...]

Without a model, one is trained by the recipe few-shot-tasks, and its seconds of clock and
processor are printed. Each family's tasks are held out (`bedstone.data.few_shot`): a document of a
task has 17 examples, and the model answers each after those before it, greedily; an answer is right
where all of it is, its line end included. Intervals are Wilson's, of 95 %. `ceiling` is of `lookup`
alone: how often the examples hold the input, without which its value can't be known.

The order of examples is measured on tasks of two labels: of ORDERS orders of the same examples, the
best and the worst by accuracy on queries of the task. Calibration divides each label's probability
by its mean after inputs that belong to no class of the task (Zhao et al., 2021, with such inputs in
place of `N/A`, which the model has no word for).
"""

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import bedstone
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.few_shot import (
    LETTERS,
    NOUNS,
    NUMBERS,
    TASK_FAMILIES,
    Example,
    FewShotTask,
    document,
    draw_task,
)
from bedstone.recipes.base import read, train
from bedstone.report.plots import load_pyplot, plain, save_figure
from result import ROOT, Side, add_write, interval, write

RECIPE = ROOT / "recipes" / "few-shot-tasks.yaml"
COUNTS = (0, 1, 2, 4, 8, 16)
ORDERS, QUERIES, EXAMPLES = 24, 50, 4
Drawn = tuple[FewShotTask, list[Example]]


def drawn(family: str, count: int, seed: int) -> list[Drawn]:
    """Held-out tasks of a family, each with examples."""
    source = random.Random(f"{family} {seed}")
    tasks = [draw_task(source, family, held_out=True) for _ in range(count)]
    return [(task, [task.draw(source) for _ in range(COUNTS[-1] + 1)]) for task in tasks]


@torch.no_grad()
def rights(model: Model, examples: Sequence[Example]) -> list[bool]:
    """Whether the greedy answer to each example is right, after those before it."""
    tokenizer, found = tokenizer_of(model), []
    ids, spans = [], []
    for each in examples:
        ids += tokenizer.encode(each.input)
        answer = tokenizer.encode(f" {each.output}\n")
        spans.append((len(ids), len(ids) + len(answer)))
        ids += answer
    best = model.network(torch.tensor([ids]))[0].argmax(-1).tolist()
    for start, stop in spans:  # a token is predicted by the one before
        found.append(best[start - 1 : stop - 1] == ids[start:stop])
    return found


def by_count(model: Model, tasks: Sequence[Drawn]) -> dict[int, int]:
    """Right answers by the number of examples before."""
    found = [rights(model, examples) for _, examples in tasks]
    return {count: sum(each[count] for each in found) for count in COUNTS}


def ceiling(tasks: Sequence[Drawn], count: int) -> float:
    """The share of tasks whose query is among the examples before it."""
    seen = [each[count].input in {before.input for before in each[:count]} for _, each in tasks]
    return sum(seen) / len(seen)


@torch.no_grad()
def label_scores(model: Model, text: str, queries: Sequence[str], labels: Sequence[str]) -> Any:
    """Probabilities of the labels after each query, (Q, L), each row's sum being 1."""
    tokenizer = tokenizer_of(model)
    one = [tokenizer.encode(f" {label}")[0] for label in labels]
    prompts = [tokenizer.encode(text + query) for query in queries]
    logits = model.network(torch.tensor(prompts))[:, -1]  # all words are one token
    return logits[:, one].float().softmax(-1)


def order_gap(model: Model, count: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Accuracy of the worst, the mean and the best order of examples, plain and calibrated."""
    source = random.Random(f"orders {seed}")
    totals: dict[str, list[tuple[float, float, float]]] = {"plain": [], "calibrated": []}
    while len(totals["plain"]) < count:
        task = draw_task(source, "labels", held_out=True)
        examples = [task.draw(source) for _ in range(EXAMPLES)]
        labels = sorted({each.output for each in examples})
        queries = [task.draw(source) for _ in range(QUERIES)]
        if len(labels) != 2 or len({each.output for each in queries}) != 2:
            continue
        known = {each.input for each in [*examples, *queries]}
        pools = (LETTERS, NUMBERS, *NOUNS.values())
        outside = [word for pool in pools if not known & set(pool) for word in pool[:4]]
        answers = torch.tensor([labels.index(each.output) for each in queries])
        inputs = [each.input for each in queries]
        found: dict[str, list[float]] = {"plain": [], "calibrated": []}
        for _ in range(ORDERS):
            text = document(source.sample(examples, len(examples)))
            scores = label_scores(model, text, inputs, labels)
            neutral = label_scores(model, text, outside, labels).mean(0)
            for name, each in (("plain", scores), ("calibrated", scores / neutral)):
                found[name].append(float((each.argmax(-1) == answers).float().mean()))
        for name, accuracies in found.items():
            mean = sum(accuracies) / len(accuracies)
            totals[name].append((min(accuracies), mean, max(accuracies)))
    return {
        name: tuple(sum(each) / count for each in zip(*found, strict=True))  # type: ignore[misc]
        for name, found in totals.items()
    }


def plot(found: dict[str, dict[int, int]], tasks: int, path: Path) -> None:
    """Accuracy against the number of examples, a line a family."""
    if (pyplot := load_pyplot()) is None:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    for family, right in found.items():
        share = [right[count] / tasks for count in COUNTS]
        low, high = zip(*(interval(right[count], tasks) for count in COUNTS), strict=True)
        axes.plot(range(len(COUNTS)), share, marker="o", markersize=4, label=family)
        axes.fill_between(range(len(COUNTS)), low, high, alpha=0.15)
    axes.set_xticks(range(len(COUNTS)), [str(count) for count in COUNTS])
    axes.set(xlabel="examples in the prompt", ylabel="accuracy on unseen tasks", ylim=(0, 1))
    plain(axes)
    axes.legend(frameon=False)
    print(save_figure(figure, path))


def trained(folder: Path, more: Sequence[str]) -> Path:
    """A run of the recipe; prints what it took."""
    clock, processor = time.perf_counter(), time.process_time()
    train(read(RECIPE, [f"out={folder}", *more]))
    taken = time.perf_counter() - clock, time.process_time() - processor
    print(f"trained in {taken[0]:.0f} s of the clock, {taken[1]:.0f} s of the processor")
    return folder / "model"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tasks", type=int, default=500, help="of each family")
    parser.add_argument("--orders", type=int, default=40, help="tasks whose orders are compared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--recipe", nargs="*", default=[])
    add_write(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or trained(Path(folder) / "run", options.recipe)
        model = bedstone.load(str(path))
    model.network.eval().float()
    print(f"{sum(each.numel() for each in model.network.parameters()):,} weights")
    heads = "".join(f"{f'k={count}':>19}" for count in COUNTS)
    print(f"{'':11}{'chance':>7}{heads}")
    found, seconds, ceilings = {}, [], {}
    for family in TASK_FAMILIES:
        tasks = drawn(family, options.tasks, options.seed)
        began = time.perf_counter()
        found[family] = by_count(model, tasks)
        seconds.append(time.perf_counter() - began)
        print(f"{family:11}{tasks[0][0].chance:7.3f}", end="")
        for right in found[family].values():
            low, high = interval(right, len(tasks))
            print(f"{right / len(tasks):8.3f} {low:.3f}-{high:.3f}".rjust(19), end="")
        print()
        if family == "lookup":
            ceilings = {count: ceiling(tasks, count) for count in COUNTS}
            print(
                f"{'  ceiling':18}" + "".join(f"{each:8.3f}{'':11}" for each in ceilings.values())
            )
    gaps = order_gap(model, options.orders, options.seed) if options.orders else {}
    for name, (worst, mean, best) in gaps.items():
        print(f"orders, {name}: worst {worst:.3f}, mean {mean:.3f}, best {best:.3f}, "
              f"gap {best - worst:.3f}")  # fmt: skip
    if options.plot:
        plot(found, options.tasks, options.plot)
    if options.write:
        quality = {
            family: {str(count): right / options.tasks for count, right in each.items()}
            for family, each in found.items()
        }
        sides = {"bedstone": Side(seconds, options.tasks, quality)}
        write(options.write, "in_context", "tasks", sides, tasks=options.tasks, orders=gaps)


if __name__ == "__main__":
    main()
