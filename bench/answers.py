"""Answers to held-out instructions: how many end by themselves, before and after tuning.

    python bench/answers.py --models smollm2-135m-instruct RUN --rows held.jsonl [--most 768]
        [--sample] [--show 10]

A row has Alpaca's columns (`instruction`, `input`, `output`). Answers are greedy, or sampled as the
model's own settings say. An answer ends where the model writes its end token within `--most`
tokens; intervals are Wilson's, of 95 %. `loss` is the mean cross-entropy of the rows' own answers,
end tokens included.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bedstone
from bedstone.data.dataset import Dataset
from bedstone.data.text.chat import render
from bedstone.data.text.supervised import make_examples
from bedstone.generation.settings import GenerationSettings
from bedstone.generation.text import write
from bedstone.nn.fast.inference import for_inference
from bedstone.objectives.supervised import completion_loss
from bedstone.runtime import seed_everything
from result import interval


def conversation(row: dict[str, Any]) -> list[dict[str, str]]:
    text = f"{row['instruction']}\n\n{row.get('input') or ''}".strip()
    return [{"role": "user", "content": text}]


@torch.no_grad()
def loss_of(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean cross-entropy of a token of the rows' answers."""
    talks = [[*conversation(row), {"role": "assistant", "content": row["output"]}] for row in rows]
    examples = make_examples(
        "text-generation",
        Dataset([{"messages": each} for each in talks]),
        model.tokenizer,
        limit=1024,
    )
    total = count = 0.0
    for start in range(0, len(examples), 8):
        part = np.arange(start, min(start + 8, len(examples)))
        loss, targets = completion_loss(model.network, examples.batch(part))
        total, count = total + float(loss), count + targets
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--most", type=int, default=768)
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--show", type=int, default=0)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    shown: dict[str, list[str]] = {}
    for name in args.models:
        model = bedstone.load(name, dtype=torch.float32)
        model.network.eval()
        loss = loss_of(model, rows)
        greedy = {} if args.sample else {"repetition_penalty": 1.0}
        settings = GenerationSettings(max_new_tokens=args.most, do_sample=args.sample, **greedy)
        seed_everything(0)
        network, found = for_inference(model.network, torch.float32), []
        prompts = [render(model.tokenizer, conversation(row)) for row in rows]
        way = settings.resolve(model.generation, 1, tokenizer=model.tokenizer)
        for start in range(0, len(prompts), 32):
            part = prompts[start : start + 32]
            found += write(network, model.tokenizer, part, way, eos=model.end_ids)
        ended = sum(each.finish == "stop" for each in found)
        low, high = interval(ended, len(found))
        lengths = sorted(len(each.ids) for each in found)
        print(
            f"{name}: {ended} of {len(found)} answers end ({low:.3f}-{high:.3f}), median "
            f"{lengths[len(lengths) // 2]} tokens, loss {loss:.4f}",
            flush=True,
        )
        shown[name] = [each.text for each in found]
    for number, row in enumerate(rows[: args.show]):
        print(f"\n## {conversation(row)[0]['content']}")
        for name in args.models:
            text = shown[name][number].strip()
            print(f"\n**{name}**: {text[:400]}{' ...' if len(text) > 400 else ''}")


if __name__ == "__main__":
    main()
