"""CLIP embeds pictures: Bedstone beside `transformers`, as it comes and in bf16, in one process.

    python bench/clip_embed.py [--pictures FOLDER] [--batch 32] [--rounds 7] [--threads 2]

The shape is ViT-B/32 at 224 pixels; random weights, saved by `transformers` and opened by both.
Every contestant is handed the same pixels (B, 3, 224, 224) in fp32 and gives (B, 512). They take
turns; medians and ranges are over rounds, ratios are taken within each. Seconds of the processor,
which other programs on the machine hardly change, are told beside those of the clock. Gate: the
least cosine over all pictures with the peer's fp32 embedding. With `--pictures`, decoding and
resizing the JPEG files of a folder is timed apart, beside Pillow and the peer's processor, on one
thread each; the pixels are then those of the files, else noise.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

import bedstone
from bedstone.data.images.decode import decode, find_images
from bedstone.data.images.processor import clip_processor
from bedstone.nn.fast.inference import for_inference
from rounds import orders, spread

SAME = 0.999  # the cosine above which two embeddings count as the same


@dataclass
class Contestant:
    """One way to embed pixels, and what it took in each round."""

    name: str
    embed: Callable[[Tensor], Tensor]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0))

    def turn(self, batches: list[Tensor]) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        found = [self.embed(pixels) for pixels in batches]
        self.seconds.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)
        self.vectors = torch.cat(found).float()


def contestants(folder: Path) -> list[Contestant]:
    """The same weights in each."""
    torch.manual_seed(0)
    transformers.CLIPModel(transformers.CLIPConfig()).save_pretrained(folder)  # ViT-B/32
    peer = transformers.CLIPModel.from_pretrained(folder).eval()
    halved = transformers.CLIPModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    network = bedstone.load(folder).network

    def theirs(pixels: Tensor) -> Tensor:
        return peer.get_image_features(pixel_values=pixels).pooler_output

    def theirs_bf16(pixels: Tensor) -> Tensor:
        return halved.get_image_features(pixel_values=pixels.bfloat16()).pooler_output

    return [
        Contestant("transformers", theirs),
        Contestant("transformers bf16", theirs_bf16),
        Contestant("bedstone", for_inference(network, torch.float32).image_features),
        Contestant("bedstone bf16", for_inference(network, torch.bfloat16).image_features),
        Contestant("bedstone int8", for_inference(network, torch.bfloat16, 8).image_features),
    ]


def decoding(folder: Path, count: int) -> Tensor:
    """Pixels of a folder's pictures (n, 3, 224, 224), and what it took to read them, told."""
    files = list(itertools.islice(find_images(folder), count))
    ours, peer = clip_processor(224), transformers.CLIPImageProcessor()
    torch.set_num_threads(1)

    def fit(path: Path) -> np.ndarray:
        return ours.fit(decode(path, size=224))

    def theirs(path: Path) -> Tensor:
        return peer(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]

    clock = time.perf_counter()
    pixels = ours.normalise(torch.from_numpy(np.stack([fit(path) for path in files])))
    mine = time.perf_counter() - clock
    clock = time.perf_counter()
    for path in files:
        theirs(path)
    other = time.perf_counter() - clock
    print(
        f"decoding {len(files)} files on one thread: bedstone {len(files) / mine:,.0f} a second, "
        f"Pillow and CLIPImageProcessor {len(files) / other:,.0f}"
    )
    return pixels


def report(sides: list[Contestant], count: int) -> None:
    truth = sides[0].vectors
    print(f"\n{'':24}{'pictures/s':>24}{'processor s / 1000':>26}{'least cosine':>14}")
    cosines = {}
    for each in sides:
        rates = [count / seconds for seconds in each.seconds]
        work = [1000 * seconds / count for seconds in each.processor]
        cosines[each.name] = torch.cosine_similarity(each.vectors, truth).min().item()
        print(f"{each.name:24}{spread(rates, 1):>24}{spread(work, 1):>26}", end="")
        print(f"{cosines[each.name]:14.6f}")
    print()
    for mine, peer in itertools.product(sides[2:], sides[:2]):
        ratios = [b / a for a, b in zip(mine.seconds, peer.seconds, strict=True)]
        work = [b / a for a, b in zip(mine.processor, peer.processor, strict=True)]
        verdict = "the same" if cosines[mine.name] > SAME else f"NOT within {SAME}"
        print(
            f"{mine.name} / {peer.name}: {spread(ratios, 2)} times the pictures a second, "
            f"{statistics.median(work):.2f} by the processor's time; {verdict}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--pictures", type=Path, help="a folder of JPEG files")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--batches", type=int, default=2, help="a round")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    count = chosen.batch * chosen.batches
    if chosen.pictures:
        pixels = decoding(chosen.pictures, count)
    else:
        pixels = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(chosen.threads)
    batches = list(pixels.split(chosen.batch))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        sides = contestants(Path(folder))
        for each in sides:
            each.embed(batches[0])  # warms up
        for number, order in enumerate(orders(sides, chosen.rounds)):
            for each in order:
                each.turn(batches)
            told = (f"{each.name} {len(pixels) / each.seconds[-1]:,.1f}" for each in sides)
            print(f"round {number + 1}: {', '.join(told)} pictures/s", flush=True)
    report(sides, len(pixels))


if __name__ == "__main__":
    main()
