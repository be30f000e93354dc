"""A recipe of a small run for each training method; its data and models are made beside it."""

import json
from pathlib import Path
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.data.images.processor import clip_processor
from bedstone.data.scenes.datasets import scene_texts
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.models.clip import network as clip
from bedstone.models.gpt import network as gpt
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.heads import HeadConfig
from image_models import clip_model
from runs import make_text
from small_models import SENTENCES, decoder, saved

SIZE = {"width": 16, "layers": 1, "heads": 2}
VIT = {"image_size": 16, "patch": 8, **SIZE}
CNN = {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 1}
AUGMENT = {"crop": [0.5, 1.0], "flip": 0.5, "brightness": 0.2}
FAST = {"kind": "adamw", "lr": 1e-2, "adamw_lr": 1e-2}


def causal_lm(folder: Path) -> dict[str, Any]:
    return {
        "model": {**SIZE, "kv_heads": 1, "hidden": 32},
        "data": {"source": str(make_text(folder / "text")), "validation_share": 0.1},
        "tokenizer": {"vocab_size": 300},
        "context": 32,
        "batch_size": 4,
        "accumulate": 2,
        "budget": "20 steps",
        "evaluate_every": 5,
    }


def masked_lm(folder: Path) -> dict[str, Any]:
    return {
        **causal_lm(folder),
        "model": {"layout": "bert", **SIZE},
        "tokenizer": {"kind": "wordpiece", "vocab_size": 150},
        "optim": FAST,
        "evaluate_tokens": 0,
    }


def contrastive(folder: Path) -> dict[str, Any]:
    return {
        "model": {
            "layout": "clip",
            "embed": 8,
            "image": VIT,
            "text": {**SIZE, "context": 24},
        },
        "data": {"most_rows": 24, "workers": 1},
        "tokenizer": {"vocab_size": 300},
        "batch_size": 8,
        "evaluate_pairs": 60,
        "augment": AUGMENT,
        "patch_dropout": 0.5,
        "chunk": 3,
        "hard_negatives": 1,
        "optim": FAST,
        "budget": "16 steps",
        "evaluate_every": 8,
    }


def image_text(folder: Path) -> dict[str, Any]:
    return {
        "task": "joint",
        "model": {
            "layout": "blip_resnet",
            "image": CNN,
            "text": {**SIZE, "context": 40},
            "embed": 8,
        },
        "data": {"most_rows": 24, "enlarge": 1.25},
        "tokenizer": {"vocab_size": 160},
        "texts": 2,
        "batch_size": 8,
        "evaluate_rows": 8,
        "augment": AUGMENT,
        "smoothing": 0.1,
        "budget": "6 steps",
        "evaluate_every": 3,
    }


def flamingo(folder: Path) -> dict[str, Any]:
    words = train_bpe([piece.text for piece in scene_texts(20)], 400)
    config = GPTConfig(vocab_size=400, width=32, layers=2, heads=2, context=64)
    Model(gpt.build(config, seed=0), words).save(folder / "gpt")
    image = {**CNN, "shrink": 2}
    shape = {"layout": "clip_resnet", "image": image, "text": {"vocab_size": 400, "width": 16}}
    towers = clip.build(clip.clip_config({**shape, "embed": 16}), seed=0)
    Model(towers, processor=clip_processor(16)).save(folder / "clip")
    return {
        "task": "joint",
        "init": str(folder / "gpt"),
        "image_init": str(folder / "clip"),
        "model": {"layout": "flamingo", "every": 2},
        "data": {"most_rows": 12},
        "texts": 2,
        "batch_size": 4,
        "evaluate_rows": 3,
        "optim": FAST,
        "budget": "8 steps",
        "evaluate_every": 4,
    }


def autoencoder(folder: Path) -> dict[str, Any]:
    return {
        "task": "autoencoding",
        "model": {
            "layout": "autoencoder_kl",
            "image_size": 16,
            "widths": [8, 8],
            "groups": 4,
            "attention": False,
        },
        "data": {"most_rows": 24, "workers": 1},
        "batch_size": 8,
        "evaluate_pictures": 10,
        "augment": {"flip": 0.5, "brightness": 0.2},
        "adversarial": {"weight": 0.02, "after": 5, "width": 8, "layers": 2},
        "optim": {"kind": "adamw", "adamw_lr": 5e-3},
        "budget": "12 steps",
        "evaluate_every": 6,
    }


def diffusion(folder: Path) -> dict[str, Any]:
    return {
        "task": "text-to-image",
        "data": {"source": "scenes", "size": [16, 16], "most_rows": 12, "objects": [1, 1]},
        "model": {"patch": 4, **SIZE},
        "text": SIZE,
        "tokenizer": {"vocab_size": 120},
        "batch_size": 4,
        "evaluate_rows": 4,
        "samples": 2,
        "sampling": {"steps": 2},
        "optim": {"lr": 1e-2, "adamw_lr": 1e-2},
        "budget": "16 steps",
        "evaluate_every": 8,
    }


def supervised(folder: Path) -> dict[str, Any]:
    rows = "".join(
        f'{{"text": "{text.split()[number % 3 % len(text.split())]}", "label": "{kind}"}}\n'
        for number in range(6)
        for kind, text in (("film", SENTENCES[2]), ("walk", SENTENCES[1]))
    )
    (folder / "rows.jsonl").write_text(rows)
    return {
        "task": "text-classification",
        "model": str(saved(folder, HeadConfig("pooled"))),
        "data": {"train": str(folder / "rows.jsonl"), "validation_share": 0.3},
        "optim": {"adamw_lr": 1e-2},
        "batch_size": 4,
        "epochs": 5,
        "dropout": 0.0,
        "best": "last",
    }


def sft(folder: Path) -> dict[str, Any]:
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a in SENTENCES[:4]
        for b in SENTENCES[:3]
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "method": "sft",
        "model": str(decoder(HeadConfig("language"), "qwen3").save(folder / "model")),
        "data": {"train": str(path), "validation_share": 0.3},
        "optim": {"adamw_lr": 1e-2},
        "batch_size": 4,
        "epochs": 4,
        "dropout": 0.0,
        "best": "last",
    }


def seq2seq(folder: Path) -> dict[str, Any]:
    rows = [{"source": f"{a} and {b}", "target": f"{a + b}"} for a in range(9) for b in range(9)]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": "text2text-generation",
        "model": {"layout": "t5", **SIZE, "context": 32},
        "data": {"source": str(path), "validation_share": 0.1},
        "tokenizer": {"vocab_size": 270},
        "batch_size": 8,
        "budget": "8 steps",
        "optim": FAST,
    }


def answers(folder: Path, **columns: Any) -> Path:
    """Rows of preferences: an answer in upper case is the better one."""
    rows = []
    for number in range(24):
        words = SENTENCES[number % 3].split()
        one, two = words[number % len(words)].lower(), words[(number + 1) % len(words)].lower()
        row = {"prompt": f"say {one} {number}", "chosen": f" {two.upper()}", "rejected": f" {two}"}
        if columns:
            good = number % 2 == 0
            row = {"prompt": row["prompt"], "completion": row["chosen" if good else "rejected"]}
            row["label"] = good
        rows.append(row)
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def preference_recipe(folder: Path, method: str, **columns: Any) -> dict[str, Any]:
    decoder(HeadConfig(), "qwen3").save(folder / "model")
    return {
        "method": method,
        "model": str(folder / "model"),
        "data": {"train": str(answers(folder, **columns)), "validation_share": 0.3},
        "optim": {"adamw_lr": 1e-3},
        "batch_size": 4,
        "epochs": 4,
        "evaluate_every": 4,
    }


def reward(folder: Path) -> dict[str, Any]:
    return preference_recipe(folder, "reward")


def dpo(folder: Path) -> dict[str, Any]:
    return {**preference_recipe(folder, "dpo"), "sft": 0.1}


def kto(folder: Path) -> dict[str, Any]:
    return preference_recipe(folder, "kto", judged=True)


def policy_recipe(folder: Path, method: str) -> dict[str, Any]:
    """Prompts whose answers are rewarded for vowels."""
    decoder(HeadConfig(), "qwen3").save(folder / "model")
    words = " ".join(SENTENCES).split()
    rows = [{"prompt": f"say {words[n % len(words)]} {n}"} for n in range(30)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(
        "def vowels(completions):\n"
        "    return [0.1 + sum(map(text.count, 'aeiou')) for text in completions]\n"
    )
    return {
        "method": method,
        "model": str(folder / "model"),
        "data": {"train": str(folder / "prompts.jsonl"), "validation_share": 0.3},
        "rewards": f"{folder / 'rewards.py'}:vowels",
        "prompts": 8,
        "group": 6,
        "max_new_tokens": 8,
        "optim": {"adamw_lr": 1e-2},
        "budget": "10 steps",
        "evaluate_every": 5,
    }


def grpo(folder: Path) -> dict[str, Any]:
    return {**policy_recipe(folder, "grpo"), "updates": 2, "kl": 0.01}


def rloo(folder: Path) -> dict[str, Any]:
    return policy_recipe(folder, "rloo")


def ppo(folder: Path) -> dict[str, Any]:
    return {**policy_recipe(folder, "ppo"), "updates": 2}


def dalle(folder: Path) -> dict[str, Any]:
    return {
        "model": {"layout": "dalle", **SIZE},
        "data": {"source": "scenes", "size": [16, 16], "most_rows": 24, "objects": [1, 1]},
        "autoencoder": {
            "model": {"widths": [8, 8], "groups": 4, "levels": [5, 4]},
            "batch_size": 8,
            "evaluate_pictures": 4,
        },
        "shares": {"autoencoder": 0.2},
        "text": {"tokens": 40},
        "tokenizer": {"vocab_size": 120},
        "batch_size": 8,
        "evaluate_rows": 8,
        "samples": 2,
        "optim": {"lr": 1e-2, "adamw_lr": 1e-2},
        "budget": "20 steps",
        "evaluate_every": 8,
    }


def prior(folder: Path) -> dict[str, Any]:
    clip_model().save(folder / "clip")
    return {
        "clip": str(folder / "clip"),
        "model": {"layout": "prior_transformer", **SIZE},
        "data": {"source": "scenes", "size": [16, 16], "most_rows": 24, "objects": [1, 1]},
        "batch_size": 8,
        "evaluate_rows": 8,
        "optim": {"lr": 1e-2, "adamw_lr": 1e-2},
        "budget": "16 steps",
        "evaluate_every": 8,
    }


def unclip(folder: Path) -> dict[str, Any]:
    made = prior(folder)
    shared = ("data", "batch_size", "evaluate_rows", "optim", "evaluate_every")
    return {
        "method": "unclip",
        "parts": {"clip": made["clip"]},
        "prior": {"model": made["model"], "batch_size": 8, "evaluate_rows": 8},
        "shares": {"prior": 0.3},
        "model": {"patch": 4, **SIZE},
        "text": {**SIZE, "context": 40},
        "sampling": {"steps": 2, "prior_steps": 2},
        "samples": 2,
        "budget": "24 steps",
        **{name: made[name] for name in shared},
    }


def upsample(folder: Path) -> dict[str, Any]:
    return {
        "method": "upsample",
        "data": {"source": "scenes", "size": [16, 16], "most_rows": 24, "objects": [1, 1]},
        "model": {"patch": 4, **SIZE},
        "batch_size": 8,
        "evaluate_rows": 8,
        "samples": 2,
        "sampling": {"steps": 2, "guidance": 1.0},
        "optim": {"lr": 1e-2, "adamw_lr": 1e-2},
        "budget": "16 steps",
        "evaluate_every": 8,
    }


RECIPES = {
    each.__name__: each
    for each in (
        causal_lm,
        masked_lm,
        contrastive,
        image_text,
        flamingo,
        autoencoder,
        diffusion,
        supervised,
        sft,
        seq2seq,
        reward,
        dpo,
        kto,
        grpo,
        rloo,
        ppo,
        dalle,
        prior,
        unclip,
        upsample,
    )
}
