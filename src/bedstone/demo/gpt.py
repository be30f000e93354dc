"""The demo's GPT: learns Python from the Python that runs, and completes its prose and code."""

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.demo.run import Demo, Trained
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import write
from bedstone.models.gpt.network import build
from bedstone.report.pages import Sample, Section
from bedstone.runtime import pick_device, pick_precision
from bedstone.train.logs import read_log

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


def show(trained: Trained) -> Section:
    """Completions before and after training."""
    console, model, folder = trained.console, trained.model, trained.folder
    fresh = Model(build(model.config, seed=0), model.tokenizer)
    before, after = _completions(fresh), _completions(model)
    samples = []
    for prompt, first, last in zip(PROMPTS, before, after, strict=True):
        samples.append(Sample(prompt, {"untrained": first, "trained": last}))
        console.rule(style="dim")
        console.print("[dim]untrained[/dim]")
        console.print(f"{prompt}{first}", markup=False, highlight=False)
        console.print("[dim]trained[/dim]")
        console.print(f"{prompt}{last}", markup=False, highlight=False)
    log = read_log(folder / "log.jsonl")
    began = next(r["validation_loss"] for r in log if r.get("validation_loss") is not None)
    assert trained.run is not None
    done, metrics = trained.run.done, trained.metrics
    return Section(
        title="GPT: Python from Python",
        words=(
            "A language model trained from random weights on the documentation topics, docstrings "
            "and source of the Python standard library. It is validated on documents that it was "
            "not trained on."
        ),
        figures={
            "speed": f"{done.tokens / done.seconds:,.0f} tokens a second",
            "validation loss": f"{began:.2f} at the first evaluation, "
            f"{metrics['validation_loss']:.3f} nats a token at the end",
            "perplexity": f"{metrics['validation_perplexity']:.1f}",
            "bits per byte": f"{metrics['validation_bits_per_byte']:.3f}",
            "opens in transformers as": str(model.layout.architecture(model.config)),
        },
        pictures={folder / "curve.png": "Loss against tokens read"},
        samples=samples,
        glance={f"{done.tokens / done.seconds:,.0f}": "tokens a second learnt from nothing"},
        commands={
            f'bedstone generate {trained.path} "def read("': "complete a prompt",
            f"bedstone info {trained.path}": "describe the model",
            "bedstone pretrain python-docs budget=30m": "train longer",
            "bedstone pretrain python-docs data.source=YOUR_FOLDER out=runs/mine": (
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


DEMO = Demo(
    "GPT from scratch on the documentation and source of Python",
    "causal_lm",
    RECIPE,
    show,
    share=1.0,
)
