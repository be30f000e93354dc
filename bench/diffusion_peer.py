"""The peer of our class-conditional pictures: diffusers' own training example, with classes.

    python bench/diffusion_peer.py learn TRAIN.parquet FOLDER --minutes 90 [--bf16] [--threads 2]
    python bench/diffusion_peer.py draw FOLDER SAMPLES.npz [--count 2000] [--steps 50]

What learns is what `examples/unconditional_image_generation/train_unconditional.py` of diffusers
trains by its defaults: the UNet2DModel it builds, linear betas over 1,000 steps, the loss of the
noise, AdamW with its rate and betas, batches of 16, a warm-up of 500 steps and then a cosine, its
moving average (`--use_ema`), gradients clipped to norm 1; the pictures' own size takes the place of
64. Two things differ: the network has class embeddings, so that classes can be judged, and the
cosine ends with the minutes, not with epochs. Pictures are decoded beforehand, which favours it.

A draw takes the moving average, DDIM (eta 0), and each class in turn; the file holds `pictures`
(N, H, W, C) uint8 and `classes` (N,).
"""

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor

DOWN = ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4
BATCH, RATE, WARMUP = 16, 1e-4, 500


def read(path: Path) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W) in [-1, 1] and classes (N,) of a Parquet file."""
    table = parquet.read_table(path, columns=["image", "label"])
    cells = table.column("image").to_pylist()
    arrays = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells]
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels[..., None] if pixels.dim() == 3 else pixels
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor(table["label"].to_pylist())


def network(size: int, channels: int, classes: int) -> UNet2DModel:
    """The example's, by its own words."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=DOWN,
        up_block_types=UP,
        num_class_embeds=classes,
    )


def rate(step: int, spent: float) -> float:
    """The example's factor on the rate: a warm-up in steps, a cosine over the rest of the time."""
    return min(step / WARMUP, 0.5 * (1 + math.cos(math.pi * min(spent, 1.0))))


def learn(options: argparse.Namespace) -> None:
    pictures, classes = read(options.source)
    model = network(pictures.shape[-1], pictures.shape[1], int(classes.max()) + 1).train()
    count = sum(weight.numel() for weight in model.parameters())
    average = EMAModel(
        model.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=3 / 4,
        model_cls=UNet2DModel,
        model_config=model.config,
    )
    noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    print(f"{count / 1e6:.1f}M parameters, {len(pictures):,} pictures", flush=True)
    began, seconds, step, losses = time.monotonic(), 60 * options.minutes, 0, []
    while (spent := (time.monotonic() - began) / seconds) < 1:
        rows = torch.randint(len(pictures), (BATCH,))
        clean, eps = pictures[rows], torch.randn(BATCH, *pictures.shape[1:])
        if options.flip and torch.rand(()) < 0.5:
            clean = clean.flip(-1)
        times = torch.randint(1000, (BATCH,))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            told = model(noise.add_noise(clean, eps, times), times, classes[rows]).sample
        loss = torch.nn.functional.mse_loss(told.float(), eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step + 1, spent)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        step, losses = step + 1, [*losses[-99:], loss.item()]
        if step % 20 == 0:
            pace = step * BATCH / (time.monotonic() - began)
            left = seconds * (1 - spent) / 60
            print(
                f"step {step}: loss {sum(losses) / len(losses):.4f}, {pace:.2f} pictures a second, "
                f"{left:.1f} minutes left",
                flush=True,
            )
    average.copy_to(model.parameters())
    model.save_pretrained(options.folder)


def draw(options: argparse.Namespace) -> None:
    model = UNet2DModel.from_pretrained(options.folder).eval()
    size, channels, classes = (
        model.config.sample_size,
        model.config.in_channels,
        model.config.num_class_embeds,
    )
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    generator, drawn, told = torch.Generator().manual_seed(0), [], []
    labels = torch.arange(options.count) % classes
    for rows in labels.split(100):
        x = torch.randn(len(rows), channels, size, size, generator=generator)
        scheduler.set_timesteps(options.steps)
        for t in scheduler.timesteps:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                eps = model(x, t, rows).sample.float()
            x = scheduler.step(eps, t, x).prev_sample
        drawn.append(((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1))
        told.append(rows)
        print(f"{sum(map(len, told)):,} of {options.count:,}", flush=True)
    np.savez(options.samples, pictures=torch.cat(drawn).numpy(), classes=torch.cat(told).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    learning, drawing = parts.add_parser("learn"), parts.add_parser("draw")
    learning.add_argument("source", type=Path)
    learning.add_argument("folder", type=Path)
    learning.add_argument("--minutes", type=float, default=90)
    learning.add_argument("--flip", action="store_true")
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("samples", type=Path)
    drawing.add_argument("--count", type=int, default=2000)
    drawing.add_argument("--steps", type=int, default=50)
    for each in (learning, drawing):
        each.add_argument("--bf16", action="store_true")
        each.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (learn if options.part == "learn" else draw)(options)


if __name__ == "__main__":
    main()
