"""What is told of bad input: exit codes and messages."""

from typing import Any

from kit import line, train

LANE = "faults"


def add_cases() -> None:
    train(LANE, "fault-gpt", gpt())
    for number, words in enumerate(FAULTS):
        line(LANE, f"fault-{number:02}-{words[0]}", *words)
    for command in ("", "pretrain", "finetune", "run", "generate", "imagine", "index", "search",
                    "evaluate", "calibrate", "info", "resume", "demo"):  # fmt: skip
        line(LANE, f"help-{command or 'all'}", *([command] if command else []), "--help")


def gpt() -> dict[str, Any]:
    return {
        "budget": "2 steps",
        "model": {"width": 16, "layers": 1, "heads": 2},
        "data": {"source": "in/text"},
        "tokenizer": {"vocab_size": 280},
        "context": 16,
        "batch_size": 2,
        "log_every": 1,
        "evaluate_tokens": 200,
        "precision": "fp32",
    }


MODEL = "runs/fault-gpt"
RECIPE = "recipes/fault-gpt.yaml"
FAULTS: list[tuple[str, ...]] = [
    ("pretrain", "nowhere/none.yaml"),
    ("pretrain", RECIPE),
    ("pretrain", RECIPE, "out=runs/x", "optim.lrr=1"),
    ("pretrain", RECIPE, "out=runs/x", "budget=soon"),
    ("pretrain", RECIPE, "out=runs/x", "model.layout=gptt"),
    ("pretrain", RECIPE, "out=runs/x", "model.heads=3"),
    ("pretrain", RECIPE, "out=runs/x", "data.source=in/nowhere"),
    ("pretrain", RECIPE, "out=runs/x", "task=image-to-txt"),
    ("pretrain", RECIPE, "out=runs/x", "precision=fp8"),
    ("pretrain", RECIPE, "out=runs/x", "masking.share=2"),
    ("pretrain", RECIPE, "out=runs/x", "optim.lr=1e38", "optim.adamw_lr=1e38", "budget=6 steps"),
    ("finetune", RECIPE),
    ("finetune", RECIPE, "model=runs/fault-gpt", "task=text-clasification"),
    ("resume", "nowhere/none"),
    ("info", "nowhere/none"),
    ("info", "in"),
    ("evaluate", MODEL, "in/none.txt"),
    ("evaluate", MODEL, "in/documents.jsonl"),
    ("generate", MODEL),
    ("generate", MODEL, "a", "--temperature", "-1"),
    ("generate", MODEL, "a", "--num-beams", "2", "--stop", "x"),
    ("generate", MODEL, "a", "--device", "cuda"),
    ("run", "fil-mask", MODEL, "a"),
    ("run", "fill-mask", MODEL, "a"),
    ("run", "text-generation", MODEL, "a", "--option", "temperature=hot"),
    ("run", "text-generation", MODEL, "a", "--option", "top_k"),
    ("run", "text-generation", MODEL, "a", "--option", "topk=1"),
    ("run", "text-generation", MODEL, "a", "--context", "b"),
    ("run", "image-classification", MODEL, "in/few"),
    ("run", "text-to-image", MODEL, "a"),
    ("imagine", MODEL, "ink"),
    ("index", "in/photos"),
    ("index", "in/none", "--model", MODEL),
    ("search", "in/photos", "red"),
    ("calibrate", "in/none.yaml", MODEL, "in/posts.jsonl"),
    ("calibrate", "in/policy.yaml", MODEL, "in/posts.jsonl", "--clean", "fine"),
    ("pretraining", "x"),
    ("generate", MODEL, "a", "--max-tokens", "many"),
]
