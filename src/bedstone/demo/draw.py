"""The demo's diffusion model: scenes generated from text, and the steps from noise."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.pipeline import DiffusionPipeline, MediaPipeline
from bedstone.data.signals.open import held_out_prompts
from bedstone.demo.run import Demo, Trained
from bedstone.diffusion.denoiser import clip
from bedstone.diffusion.sample import SampleControls, generators_of, sample
from bedstone.evaluate.generative import sample_prompts, samples_of
from bedstone.report.pages import Section
from bedstone.report.sheets import chosen_frames, samples_sheet, strip_sheet
from bedstone.runtime import Precision

RECIPE: dict[str, Any] = {
    "task": "text-to-image",
    "model": {"patch": 4, "width": 128, "layers": 6, "heads": 2, "conv_in": 2},
    "data": {
        "source": "scenes",
        "size": [32, 32],
        "most_rows": 10000,
        "objects": [1, 1],
        "sizes": ["large"],
        "textures": False,
    },
    "tokenizer": {"vocab_size": 256},
    "text": {"width": 128, "layers": 1, "heads": 4},
    "process": {"kind": "flow", "shift": 2.0},
    "times": "logit_normal",
    "batch_size": 32,
    "average": 0.99,
    "optim": {"lr": 5e-3, "adamw_lr": 4e-3},
    "samples": 0,
    "evaluate_rows": 256,
    "save_minutes": 5.0,
    "sampling": {"method": "dpm_solver_sde", "steps": 20, "guidance": 3.0},
}
PROMPTS = 24
STRIP = 4  # of them, shown as they come out of noise
PROMPT = "a red circle"
# Built-in models that draw the same prompts beside a built-in diffusion model, and how they do.
BESIDE = {
    "scenes-dalle": "DALL-E: codes of an image, written after the words",
    "scenes-unclip": "DALL-E 2: a CLIP's embedding made of the words, then an image of that",
}
SHARED = 12  # prompts that all of them draw


def show(trained: Trained) -> Section:
    """Samples of prompts that training never named, and how they come out of noise."""
    folder, model, how = trained.folder, trained.model, trained.precision
    assert isinstance(model, DiffusionPipeline)
    prompts = [prompt.text for prompt in held_out_prompts(PROMPTS, objects=(1, 1))]
    condition, null = model.prompts.condition(prompts), model.prompts.condition([""])
    drawn = samples_of(model, how, condition, null, len(prompts))
    sheet = samples_sheet(drawn, folder / "drawn.png", titles=prompts, columns=6, cell=128)
    frames = denoised(model, how, prompts[:STRIP])
    strip = strip_sheet(frames, folder / "strip.png", cell=96)
    others = beside(folder, how, prompts[:SHARED]) if trained.run is None else {}
    names = " ".join(f"--beside {name}" for name in BESIDE)
    compare = {f'bedstone imagine {trained.path} "{PROMPT}" {names} --page systems.html': (
        "compare the three ways to draw"
    )}  # fmt: skip
    metrics = trained.metrics
    quality = {"loss on held-out scenes": f"{metrics.get('validation_loss', float('nan')):.3f}"}
    if (right := metrics.get("drawn_as_described")) is not None:
        quality = {"pictures that the built-in CLIP names as their prompt does": f"{right:.0%}"}
    return Section(
        title="Diffusion: images from text",
        words=(
            "A diffusion transformer, trained to remove noise from rendered scenes given their "
            "captions. Sampling starts from noise and removes it step by step, guided by a prompt. "
            "The combinations of shape and colour in these prompts never occurred in training."
        ),
        figures={
            **quality,
            "sampler": f"{model.sampling.steps} steps, guidance {model.sampling.guidance:g}",
        },
        pictures={
            sheet: "Samples of prompts with held-out combinations",
            strip: "From noise to image, every few steps",
            **others,
        },
        commands={
            f'bedstone imagine {trained.path} "{PROMPT}" --out circle.png': "generate an image",
            **(compare if others else {}),
            "bedstone pretrain diffusion-scenes": "train longer, on two objects too",
            "bedstone pretrain diffusion-scenes data.source=YOUR_FOLDER "
            "out=runs/mine": "train on your own images and captions",
        },
    )


def beside(folder: Path, precision: Precision, prompts: list[str]) -> dict[Path, str]:
    """Sheets of the same prompts by `BESIDE`, and what each shows."""
    sheets = {}
    for name, how in BESIDE.items():
        model = open_model(name, dtype=torch.float32)
        assert isinstance(model, MediaPipeline)
        drawn = sample_prompts(model, precision, prompts, lambda share: None)
        sheet = samples_sheet(drawn, folder / f"{name}.png", titles=prompts, columns=6, cell=128)
        right = model.record["metrics"]["drawn_as_described"]
        sheets[sheet] = f"{how}; the built-in CLIP names {right:.0%} as their prompt does"
    return sheets


def denoised(model: DiffusionPipeline, precision: Precision, prompts: list[str]) -> list[Tensor]:
    """What is in x from the first step to the last: some moments, (B, C, H, W) each."""
    moments: list[Tensor] = []

    def keep(step: int, steps: int, x: Tensor, clean: Tensor) -> None:
        moments.append(x)

    shape, generators = model.sample_shape, generators_of(range(len(prompts)))
    start = torch.stack([torch.randn(shape, generator=each) for each in generators])
    sample(
        model.network,
        model.process,
        model.target,
        shape,
        model.sampling,
        generators,
        condition=model.prompts.condition(prompts),
        null=model.prompts.condition([""]),
        controls=SampleControls(noise=start, limit=clip(), callback=keep),
        autocast=precision.autocast,
    )
    frames = [start, *moments]
    return [frames[place].clamp(-1, 1) for place in chosen_frames(len(frames), 8)]


DEMO = Demo(
    "Diffusion from scratch: scenes from words",
    "diffusion",
    RECIPE,
    show,
    step=(RECIPE["batch_size"], "images"),
)
