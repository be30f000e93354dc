"""Seconds of training to 1.88 nats a character on tinyshakespeare: Bedstone beside nanoGPT.

    python bench/time_to_loss.py [--peer NANOGPT] [--rounds 5] [--compiled] [--write]

`NANOGPT` is a checkout of nanoGPT, whose `model.py` is then used as it is; without it, the same
configuration reimplemented. The peer is nanoGPT's CPU baseline with its README's settings: as it
comes (fp32), in bf16 autocast, and with --compiled in bf16 compiled. Bedstone trains
`recipes/tinyshakespeare.yaml` with its real parts.

Both read the first 90 % of the characters, on the same threads, and take turns, round by round, so
that what else the machine does meets all. Both clocks begin where the first batch is next to be
made, with network and optimizer at hand, and count the batches, the steps, and compilation where
there is any; not the cutting of text into characters, nor evaluation. The loss is the mean over the
whole of the last 10 %, cut into windows of the context that was trained, each character predicted
once, in the precision that was trained.

Bedstone's schedule is fixed, and its last weights are scored. The peer is scored every 50 steps
from 1,500 on, its clock stopped meanwhile, and its time is taken where it first reaches the
target; where it doesn't, its time at the end is taken, which flatters it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nanogpt_baseline as peer
from bedstone.checkpoints.store import CheckpointStore
from bedstone.data.text.causal_lm import PackedBatches, evaluation_batches
from bedstone.data.text.token_cache import TokenSplit
from bedstone.evaluate.runner import held_out_loss
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.objectives.tokens import next_token_loss
from bedstone.recipes.base import PretrainRecipe
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import from_mapping, read_recipe
from bedstone.train.loop import Trainer
from bedstone.train.optim import build_optimizer
from bedstone.train.schedule import build_schedule, parse_budget
from result import ROOT, SHARED, Side, add_write, write
from rounds import spread

TARGET = 1.88  # nats a character
FIRST_LOOK, LOOKS = 1500, 50  # the peer's steps before it is scored, and between scores


@dataclass
class Run:
    """One training: which side, its seed, seconds of training, steps and tokens, final loss."""

    side: str
    seed: int
    seconds: float
    steps: int
    tokens: int
    loss: float


def characters(path: Path) -> tuple[Tensor, Tensor, int]:
    """Training and validation ids, split by position as nanoGPT does, and the vocabulary's size."""
    text = path.read_text(encoding="utf-8")
    known = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[character] for character in text])
    edge = int(0.9 * len(ids))
    return ids[:edge], ids[edge:], len(known)


def bedstone(recipe: PretrainRecipe, train: Tensor, held: Tensor, vocabulary: int) -> Run:
    """The recipe by the training loop's own steps."""
    splits = [
        TokenSplit.from_documents([ids.numpy().astype(np.uint16)], name=name)
        for name, ids in (("train", train), ("validation", held))
    ]
    precision = pick_precision(recipe.precision, pick_device("cpu"))
    shape = {"vocab_size": vocabulary, "context": recipe.context, **recipe.model}
    network = build(from_mapping(GPTConfig, shape, "recipe", "model."), seed=recipe.seed)
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = Trainer(
            network=network,
            objective=next_token_loss,
            batches=PackedBatches(splits[0], recipe.context, recipe.batch_size, recipe.seed),
            optimizer=build_optimizer(network, recipe.optim),
            budget=parse_budget(recipe.budget),
            schedule=build_schedule(recipe.schedule),
            precision=precision,
            store=CheckpointStore(Path(nowhere), 1),
            write_model=lambda folder, metrics: None,
            accumulate=recipe.accumulate,
            clip=recipe.optim.clip,
        )
        network.train()
        began = time.perf_counter()
        while (share := trainer.share()) < 1.0:
            trainer.one_step(share)
        seconds = time.perf_counter() - began
    batches = evaluation_batches(splits[1], recipe.context, 64)
    loss, count = held_out_loss(network, next_token_loss, batches, precision)
    assert count == len(held) - 1
    return Run("bedstone", recipe.seed, seconds, trainer.step, trainer.tokens, loss)


@torch.no_grad()
def whole_loss(network: torch.nn.Module, held: Tensor, bf16: bool) -> float:
    """The peer's mean loss over every character of `held` but its first."""
    full = (len(held) - 1) // peer.CONTEXT * peer.CONTEXT
    ids, targets = held[:full].view(-1, peer.CONTEXT), held[1 : full + 1].view(-1, peer.CONTEXT)
    parts = list(zip(ids.split(64), targets.split(64), strict=True))
    parts.append((held[None, full:-1], held[None, full + 1 :]))
    total = 0.0
    network.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for inputs, wanted in parts:
            if wanted.numel():
                total += network(inputs, wanted)[1].item() * wanted.numel()
    network.train()
    return total / (len(held) - 1)


def nanogpt(
    side: str, checkout: Path | None, seed: int, train: Tensor, held: Tensor, vocabulary: int
) -> Run:
    """The baseline until it reaches the target, or to its end."""
    torch.manual_seed(seed)
    network, _ = peer.load_peer(checkout, vocabulary)
    bf16 = "bf16" in side
    training = peer.PeerTraining(network, train, seed, bf16, "compiled" in side)
    began = time.perf_counter()
    loss, evaluating = float("nan"), 0.0
    while training.step < peer.STEPS:
        training.one_step()
        if training.step >= FIRST_LOOK and training.step % LOOKS == 0:
            paused = time.perf_counter()
            loss = whole_loss(network, held, bf16)
            evaluating += time.perf_counter() - paused
            if loss <= TARGET:
                break
    seconds = time.perf_counter() - began - evaluating
    tokens = training.step * peer.BATCH * peer.CONTEXT
    return Run(side, seed, seconds, training.step, tokens, loss)


def show(runs: list[Run]) -> None:
    """Medians and ranges, and the ratios of each round."""
    sides = list(dict.fromkeys(run.side for run in runs))
    of = {side: [run for run in runs if run.side == side] for side in sides}
    print(f"\n{'':24}{'seconds':>20}{'steps':>12}{'tokens':>12}{'loss':>20}")
    for side, mine in of.items():
        seconds, loss = [run.seconds for run in mine], [run.loss for run in mine]
        steps = sorted({run.steps for run in mine})
        told = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}-{steps[-1]}"
        print(
            f"{side:24}{spread(seconds, 1):>20}{told:>12}"
            f"{statistics.median(run.tokens for run in mine):>12,.0f}{spread(loss, 4):>20}"
        )
    reached = sum(run.loss <= TARGET for run in of["bedstone"])
    print(f"\nbedstone: {reached} of {len(of['bedstone'])} runs score {TARGET} or less")
    for side in sides[1:]:
        ratios = [b.seconds / a.seconds for a, b in zip(of["bedstone"], of[side], strict=True)]
        print(f"{side}: bedstone is {spread(ratios, 2)} times as fast")


def keep(folder: Path, runs: list[Run], **settings: Any) -> None:
    """The raw result, with every run's steps and loss."""
    sides = {}
    for side in dict.fromkeys(run.side for run in runs):
        mine = [run for run in runs if run.side == side]
        each = {"steps": [run.steps for run in mine], "losses": [run.loss for run in mine]}
        quality = {"loss": statistics.median(each["losses"]), **each}
        sides[side] = Side([run.seconds for run in mine], quality=quality)
    write(folder, "time_to_loss", "trainings", sides, target=TARGET, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = SHARED / "text" / "tinyshakespeare.txt"
    parser.add_argument("--text", type=Path, default=default, help="tinyshakespeare as a file")
    parser.add_argument("--peer", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "tinyshakespeare.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiled", action="store_true", help="the peer compiled as well")
    parser.add_argument("--alone", action="store_true", help="bedstone without its peer")
    add_write(parser)
    parser.add_argument("overrides", nargs="*", help="of the recipe, as optim.lr=0.01")
    options = parser.parse_args()
    if not options.text.is_file():
        sys.exit(f"{options.text}: no such file; name tinyshakespeare with --text.")
    torch.set_num_threads(options.threads)
    data = characters(options.text)
    sides = [] if options.alone else ["nanogpt fp32", "nanogpt bf16"]
    if options.compiled:
        sides.append("nanogpt bf16 compiled")
    what = peer.load_peer(options.peer, data[2])[1]
    print(f"peer: {what}; {options.threads} threads")
    runs: list[Run] = []
    for seed in range(options.rounds):
        recipe = read_recipe(PretrainRecipe, options.recipe, [*options.overrides, f"seed={seed}"])
        contestants: list[Callable[[], Run]] = [lambda r=recipe: bedstone(r, *data)]
        contestants += [lambda s=side, n=seed: nanogpt(s, options.peer, n, *data) for side in sides]
        for contestant in contestants:
            runs.append(contestant())
            print(json.dumps(asdict(runs[-1])), flush=True)
    show(runs)
    if options.write:
        keep(options.write, runs, peer=what)


if __name__ == "__main__":
    main()
