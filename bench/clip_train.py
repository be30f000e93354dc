"""CLIP learns from pairs: Bedstone beside `transformers`' CLIPModel in its own plain loop.

    python bench/clip_train.py [--size b32|small] [--batch 32] [--rounds 5] [--threads 2]
    python bench/clip_train.py --files FOLDER [--batch 32] [--steps 20]

Every contestant has the same shape and the same first weights, is handed the same pixels and token
ids, and takes the same steps: forward, CLIP's loss, backward, clipping to norm 1, AdamW. The peer
is `CLIPModel(..., return_loss=True)` over padded rows, as it comes (fp32) and under bf16 autocast
with fused AdamW; Bedstone packs its rows. They take turns; medians and ranges are over rounds,
ratios are taken within each. Seconds of the processor, which other programs on the machine hardly
change, are told beside those of the clock. Gate: losses beside those of the peer in fp32.

With `--files`, Bedstone trains end to end from a folder of JPEG files with a metadata.jsonl:
decoding, a random crop, a flip and colour for each picture at each step, nothing kept in memory;
told are pictures per second and the share of time that the network waits for them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import bedstone
from bedstone.data.fields import PAIRS
from bedstone.data.images.augment import FactAugment, ImageAugment
from bedstone.data.images.contrastive import ContrastiveBatch, ContrastiveTexts, contrastive_stream
from bedstone.data.images.pixels import ImageCache
from bedstone.data.images.processor import clip_processor
from bedstone.data.open import open_dataset
from bedstone.data.text.packing import lay
from bedstone.data.text.train_tokenizer import train_clip
from bedstone.models.clip.network import build, clip_config
from bedstone.objectives.contrastive import ContrastiveLoss
from bedstone.runtime import Precision, keep_memory
from bedstone.train.optim import OptimConfig, build_optimizer, clip_gradients
from rounds import spread

LR = 1e-4
# Shapes of both towers, by transformers' names.
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "b32": {"vision_config": {}, "text_config": {"eos_token_id": 49407}},
    "small": {
        "vision_config": {
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "image_size": 64,
            "patch_size": 8,
        },
        "text_config": {
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "intermediate_size": 768,
            "vocab_size": 8192,
            "eos_token_id": 8191,
        },
    },
}


@dataclass
class Data:
    """Steps of pixels (B, 3, H, W) and texts, the same for all."""

    pixels: list[Tensor]
    rows: list[list[np.ndarray]]
    end: int

    @classmethod
    def draw(cls, steps: int, batch: int, side: int, end: int) -> "Data":
        random = np.random.default_rng(0)
        torch.manual_seed(0)
        rows = []
        for _ in range(steps):
            lengths = random.integers(6, 22, batch)  # captions of photos: 8 to 24 tokens
            texts = [random.integers(0, end - 1, size) for size in lengths]
            rows.append([np.array([end - 1, *text, end]) for text in texts])
        return cls([torch.randn(batch, 3, side, side) for _ in range(steps)], rows, end)

    def ours(self, step: int) -> ContrastiveBatch:
        ids = np.concatenate(self.rows[step])
        lengths = np.array([len(row) for row in self.rows[step]])
        groups = torch.arange(len(lengths))
        packed = lay(ids, np.zeros_like(ids), lengths)
        return ContrastiveBatch(self.pixels[step], packed, groups, 0, [], step)

    def theirs(self, step: int) -> dict[str, Tensor]:
        longest = max(len(row) for row in self.rows[step])
        ids = torch.full((len(self.rows[step]), longest), self.end)
        keep = torch.zeros_like(ids)
        for number, row in enumerate(self.rows[step]):
            ids[number, : len(row)] = torch.from_numpy(row)
            keep[number, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": keep, "pixel_values": self.pixels[step]}


@dataclass
class Contestant:
    """One way to train, and what it took in each round."""

    name: str
    step: Callable[[int], float]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def turn(self, steps: int) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        self.losses += [self.step(number) for number in range(steps)]
        self.seconds.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)


def peer(folder: Path, data: Data, *, bf16: bool) -> Contestant:
    """transformers' model in a plain loop; in bf16 at its best: autocast and a fused AdamW."""
    model = transformers.CLIPModel.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, fused=bf16 or None
    )

    def step(number: int) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**data.theirs(number), return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Contestant(f"transformers {'bf16' if bf16 else 'fp32'}", step)


def ours(folder: Path, data: Data, *, bf16: bool, chunk: int = 0) -> Contestant:
    network: Any = bedstone.load(folder).network.float().train()
    for weight in network.parameters():
        weight.data = weight.data.clone()
    config = OptimConfig(
        kind="adamw", lr=LR, adamw_lr=LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1
    )
    optimizer, objective = build_optimizer(network, config), ContrastiveLoss(chunk=chunk)
    precision = Precision(torch.device("cpu"), torch.bfloat16 if bf16 else torch.float32)

    def step(number: int) -> float:
        with precision.autocast():
            loss, count = objective(network, data.ours(number))
        (loss / count).backward()
        clip_gradients(network, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item() / count

    name = f"bedstone {'bf16' if bf16 else 'fp32'}" + (f" chunks of {chunk}" if chunk else "")
    return Contestant(name, step)


def show(sides: list[Contestant], pictures: int) -> None:
    """A line a contestant, then the ratios of ours in bf16 to both peers."""
    print(f"\n{'':28}{'pictures/s':>22}{'a CPU second':>22}{'loss, first and last':>22}")
    for side in sides:
        rates = [pictures / seconds for seconds in side.seconds]
        busy = [pictures / seconds for seconds in side.processor]
        losses = f"{side.losses[0]:.4f} {side.losses[-1]:.4f}"
        print(f"{side.name:28}{spread(rates, 2):>22}{spread(busy, 2):>22}{losses:>22}")
    best = next(side for side in sides if side.name == "bedstone bf16")
    for side in sides:
        if side.name.startswith("transformers"):
            for told in ("seconds", "processor"):
                pairs = zip(getattr(side, told), getattr(best, told), strict=True)
                ratios = [theirs / mine for theirs, mine in pairs]
                print(f"bedstone bf16 beside {side.name}, {told}: {spread(ratios, 2)} x")


def compare(options: argparse.Namespace) -> None:
    """All contestants by turns over the same batches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        config = transformers.CLIPConfig(**SIZES[options.size])
        transformers.CLIPModel(config).save_pretrained(folder)
        side, end = config.vision_config.image_size, config.text_config.eos_token_id
        data = Data.draw(options.steps, options.batch, side, end)
        sides = [
            ours(folder, data, bf16=True),
            peer(folder, data, bf16=False),
            peer(folder, data, bf16=True),
            *([ours(folder, data, bf16=True, chunk=options.chunk)] if options.chunk else []),
            *([ours(folder, data, bf16=False)] if options.fp32 else []),
        ]
        for each in sides:
            each.step(0)  # what is made at a first call
        for number in range(options.rounds):
            start = number % len(sides)
            for each in sides[start:] + sides[:start]:
                each.turn(options.steps)
        show(sides, options.steps * options.batch)


def from_files(options: argparse.Namespace) -> None:
    """Training end to end from JPEG files, augmented; what the network waits for."""
    rows = open_dataset(options.files, PAIRS)
    processor = clip_processor(224)
    wide = clip_processor(round(224 * 1.15))
    tokenizer = train_clip(rows.all_texts(), 4096)
    changes = ImageAugment(
        crop=(0.6, 1.0), flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, size=224
    )
    pictures = ImageCache(rows, wide.fit, wide.size, memory_mb=0)
    texts = ContrastiveTexts(
        rows, lambda batch: [tokenizer.encode(t, special=True)[:77] for t in batch]
    )
    batches = contrastive_stream(
        pictures,
        texts,
        options.batch,
        processor.normalise,
        augment=FactAugment(changes),
        workers=options.workers,
    )
    text = {"vocab_size": 4160, "eos_id": tokenizer.eos_id}
    network = build(clip_config({"image": {"patch": 32}, "text": text, "embed": 512}), seed=0)
    network.train()
    optimizer = build_optimizer(network, OptimConfig(kind="adamw", adamw_lr=LR))
    precision, objective = Precision(torch.device("cpu"), torch.bfloat16), ContrastiveLoss()
    for number in range(options.steps + 2):
        if number == 2:  # the first steps make ready what all need
            batches.figures()
            clock = time.perf_counter()
        batch = next(batches)
        with precision.autocast():
            loss, count = objective(network, batch)
        (loss / count).backward()
        clip_gradients(network, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - clock
    waited = batches.figures()["waited"]
    alone = []
    for _ in range(3):
        began = time.process_time()
        batches.make(np.arange(options.batch), np.random.default_rng(0), 0)
        alone.append(time.process_time() - began)
    print(f"{options.files}: {len(rows):,} pictures, ViT-B/32 at 224, batch {options.batch}")
    print(f"{options.steps * options.batch / seconds:.2f} pictures/s end to end, augmented")
    print(f"waited for data: {waited:.2%} of the time")
    rate = options.batch / statistics.median(alone)
    print(f"a batch made ready alone: {rate:.0f} pictures a CPU second")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="b32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=0, help="also ours with gradient caching")
    parser.add_argument("--fp32", action="store_true", help="also ours in fp32")
    parser.add_argument("--files", help="a folder of JPEG files with a metadata.jsonl")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    from_files(options) if options.files else compare(options)


if __name__ == "__main__":
    main()
