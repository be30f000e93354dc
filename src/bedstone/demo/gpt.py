"""The demo's GPT: learns Python from the Python that runs, and completes its prose and code."""

import shutil
from pathlib import Path

from rich.console import Console

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.commands.train import pretrain
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import write
from bedstone.models.gpt.network import build
from bedstone.recipes.base import PretrainRecipe
from bedstone.report.pages import Sample, Section
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import from_mapping
from bedstone.train.logs import clock, read_log

SHARE = 1.0

RECIPE = {
    "data": {"source": "python-docs"},
    "tokenizer": {"vocab_size": 4096, "sample_mb": 8.0},
    "model": {"layout": "qwen3", "width": 256, "layers": 6, "heads": 4, "kv_heads": 2},
    "optim": {"lr": 5e-3, "adamw_lr": 1e-2, "momentum": 0.9},
    "schedule": {"decay": 0.5},
    "context": 256,
    "batch_size": 16,
    "evaluate_tokens": 30_000,
    "save_minutes": 2.0,
}
PROMPTS = (
    'The "for" statement',
    "    def __init__(self",
    "import os\nimport sys\n\n",
    "Return True if",
    "class Error(Exception):\n",
)
SAMPLING = Sampling(max_tokens=80, temperature=0.7, top_p=0.95, seed=0)


def demonstrate(folder: Path, minutes: float) -> Section:
    """Trains for `minutes` into `folder`; shows what the network writes before and after."""
    console = Console()
    console.print("\n[bold]GPT from scratch on the documentation and source of Python[/bold]\n")
    recipe = from_mapping(
        PretrainRecipe, {**RECIPE, "out": str(folder), "budget": f"{minutes * 60:.0f}s"}, "demo"
    )
    if (folder / "recipe.yaml").is_file():  # an earlier demo's run
        shutil.rmtree(folder)
    finished = pretrain(recipe)
    assert finished.model is not None
    model = open_model(finished.model)
    fresh = Model(build(model.config, seed=recipe.seed), model.tokenizer)
    before, after = _completions(fresh), _completions(model)
    samples = []
    for prompt, untrained, trained in zip(PROMPTS, before, after, strict=True):
        samples.append(Sample(prompt, {"untrained": untrained, "trained": trained}))
        console.rule(style="dim")
        console.print("[dim]untrained[/dim]")
        console.print(f"{prompt}{untrained}", markup=False, highlight=False)
        console.print("[dim]trained[/dim]")
        console.print(f"{prompt}{trained}", markup=False, highlight=False)
    log = read_log(folder / "log.jsonl")
    first = next(r["validation_loss"] for r in log if r.get("validation_loss") is not None)
    done, metrics = finished.done, finished.done.metrics
    count = sum(weight.numel() for weight in model.network.parameters())
    return Section(
        title="GPT: Python from Python",
        words=(
            "A language model trained from random weights on the documentation topics, docstrings "
            "and source of the Python standard library. Validation is on whole documents that it "
            "never saw."
        ),
        figures={
            "parameters": f"{count / 1e6:.1f} million",
            "trained for": f"{clock(done.seconds)}, {done.step:,} steps, {done.tokens:,} tokens",
            "speed": f"{done.tokens / done.seconds:,.0f} tokens a second",
            "validation loss": f"{first:.2f} at the first measure, "
            f"{metrics['validation_loss']:.3f} nats a token at the end",
            "perplexity": f"{metrics['validation_perplexity']:.1f}",
            "bits per byte": f"{metrics['validation_bits_per_byte']:.3f}",
            "opens in transformers as": str(model.layout.architecture(model.config)),
        },
        pictures={folder / "curve.png": "Loss against tokens read"},
        samples=samples,
        commands={
            f'bedstone generate {finished.model} "def read("': "complete a prompt",
            f"bedstone info {finished.model}": "what the model is",
            "bedstone pretrain recipes/python-docs.yaml budget=30m": "train longer",
            "bedstone pretrain recipes/python-docs.yaml data.source=YOUR_FOLDER out=runs/mine": (
                "train on your own text or code"
            ),
        },
    )


def _completions(model: Model) -> list[str]:
    precision = pick_precision("auto", pick_device("cpu"))
    written = write(
        model.network.eval(),
        tokenizer_of(model),
        PROMPTS,
        SAMPLING,
        eos=model.end_ids,
        precision=precision,
    )
    return [one.text for one in written]
