"""`bedstone chat-life`: a small chat model from nothing: pretraining, SFT, DPO, GRPO, chat.

Each stage is a run of its own, begun with the model of the one before. What it changed is measured
on rows that it didn't learn from, and by probes, the same for all stages. A stage that is finished
is kept; one that was stopped goes on from its last checkpoint.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import tokenizer_of
from bedstone.checkpoints.store import CheckpointStore
from bedstone.commands.conversation import ChatSettings, LocalConversation
from bedstone.commands.train import leave
from bedstone.data.dataset import Dataset
from bedstone.data.open import open_dataset
from bedstone.data.sources import open_source
from bedstone.data.text.chat import render
from bedstone.data.text.reinforcement import Prompts
from bedstone.data.text.train_tokenizer import END, TokenizerConfig, train_bpe
from bedstone.errors import BedstoneError
from bedstone.evaluate.reinforcement import Scorer
from bedstone.evaluate.rewards import RewardSum
from bedstone.files import write_json
from bedstone.generation.rollout import sample_answers
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import write
from bedstone.reading import is_plain, read_object
from bedstone.recipes.base import go_on, load_method, train
from bedstone.recipes.causal_lm import sampled_texts
from bedstone.recipes.reinforcement import PromptConfig
from bedstone.report.pages import Sample, Section, write_report
from bedstone.runtime import Precision, pick_device, pick_precision
from bedstone.settings import Settings, from_mapping
from bedstone.train.logs import clock, counted
from bedstone.train.run import RunResult, held_folder, prepare

LIFE, PAGE, TRANSCRIPT = "life.json", "report.html", "transcript.json"
TALK = "small-talk"  # names of the built-in data begin so
REWARD = "bedstone.data.small_talk:right_total"
TRAINED = 0.9  # share of the minutes that stages train; measuring and chatting have the rest
SHOWN = 6  # own prompts that each stage's model answers
LONGEST = 64  # tokens of an answer
CONTROL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class LifeParts(Settings):
    """Parts of your own, instead of the built-in ones.

    Attributes:
        model: a decoder, instead of pretraining one.
        text: documents to pretrain on.
        chats: conversations, as of the recipe sft-own.
        preferences: prompts with a chosen and a rejected answer, as of dpo-own.
        prompts: prompts to answer, as of grpo-own.
        rewards: of answers to these: a function as rewards.py:exact, regex:PATTERN or another.
    """

    model: str = ""
    text: str = TALK
    chats: str = f"{TALK}-chats"
    preferences: str = f"{TALK}-preferences"
    prompts: str = f"{TALK}-problems"
    rewards: str = REWARD

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.prompts == f"{TALK}-problems") != (self.rewards == REWARD):
            raise BedstoneError(
                "prompts, rewards: one was given without the other; a reward is of the columns of "
                "its prompts. Give both."
            )

    @property
    def built_in(self) -> bool:
        """Whether what is talked of is the built-in world."""
        return all(each.startswith(TALK) for each in (self.chats, self.preferences))


@dataclass(frozen=True)
class Stage:
    """A stage of a life.

    Attributes:
        name: of its folder.
        method: the training method.
        title: as it is printed.
        share: of the minutes, relative to the other stages.
        figures: that say what it learnt: a name, and what it is called in the run's log.
    """

    name: str
    method: str
    title: str
    share: float
    figures: Mapping[str, str]


STAGES = (
    Stage(
        "pretrain", "causal_lm", "Pretraining: the language, from text", 0.45,
        {"loss": "validation_loss", "bits per byte": "validation_bits_per_byte"},
    ),
    Stage(
        "sft", "sft", "Supervised fine-tuning: to answer, from conversations", 0.2,
        {"loss": "validation_loss"},
    ),
    Stage(
        "dpo", "dpo", "Preferences: which answer is better, by DPO", 0.1,
        {"loss": "validation_loss", "pairs told apart": "validation_accuracy"},
    ),
    Stage(
        "grpo", "grpo", "Reinforcement: to be right, by GRPO", 0.25,
        {"reward": "validation_reward", "cut answers": "validation_truncated"},
    ),
)  # fmt: skip
# What each recipe has but for its model, data, folder and budget; a budget of its own is kept.
RECIPES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "model": {"layout": "qwen3", "width": 192, "layers": 5, "heads": 6, "kv_heads": 2},
        "context": 256,
        "batch_size": 8,
        "optim": {"lr": 5e-3, "adamw_lr": 5e-3},
        "schedule": {"decay": 0.5},
        "evaluate_tokens": 30_000,
    },
    "sft": {
        "batch_size": 16,
        "dropout": 0.0,
        "best": "last",
        "evaluate_every": 1_000_000,
        "optim": {"adamw_lr": 1e-3},
    },
    "dpo": {
        "batch_size": 16,
        "sft": 0.1,
        "evaluate_every": 1_000_000,
        "optim": {"adamw_lr": 1e-4},
    },
    "grpo": {
        "prompts": 32,
        "group": 8,
        "resample": 1,
        "max_new_tokens": LONGEST,
        "batch_size": 128,
        "clip_high": 0.28,
        "evaluate_rows": 200,
        "optim": {"adamw_lr": 3e-4},
        "schedule": {"warmup": 0.02, "decay": 0.3},
    },
}
VOCABULARY = {TALK: 1024}  # tokens by the text; 4,096 for any other


@dataclass(frozen=True)
class Probe:
    """A figure of answers to held-out prompts: the mean of a reward.

    Attributes:
        name: of the figure.
        data: the section `data` of prompts, of which the held-out rows are answered.
        rewards: as of a recipe.
        temperature: 0 takes the likeliest answer.
    """

    name: str
    data: Mapping[str, str]
    rewards: str
    temperature: float = 0.0


def probes(parts: LifeParts) -> list[Probe]:
    """Those that fit the parts; the last is the reward of the last stage."""
    found = []
    if parts.built_in:
        data, home = data_of(parts.preferences), REWARD.partition(":")[0]
        found = [
            Probe("facts right", data, f"{home}:right_fact"),
            Probe("answer first", data, f"{home}:answer_first", 1.0),
        ]
    name = "totals right" if parts.rewards == REWARD else "reward"
    return [*found, Probe(name, data_of(parts.prompts), parts.rewards)]


def data_of(source: str) -> dict[str, str]:
    """The section `data` of rows; built-in ones have others that are held out."""
    if source.startswith(TALK):
        return {"train": source, "validation": f"{source}-held-out"}
    return {"train": source}


def chat_life(parts: LifeParts, *, out: str = "runs/chat-life", minutes: float = 50.0) -> Path:
    """Make a small chat model from nothing: pretrain, SFT, DPO, GRPO, chat, on one page.

    The built-in world has facts and stories with numbers; parts of your own take its place. Run it
    again to go on where it was stopped: a finished stage isn't repeated.

    Args:
        out: the folder for the stages, their models, life.json, transcript.json and report.html.
        minutes: minutes in all, which the stages share.

    Example:
        bedstone chat-life
        bedstone chat-life --minutes 15 --out runs/short-life
        bedstone chat-life --text notes/ --chats chats.jsonl --preferences pairs.jsonl

    Raises:
        BedstoneError: a part can't be used, or the folder holds a life of other parts.
    """
    if not minutes > 0:
        raise BedstoneError(f"--minutes: {minutes} was given; expected more than 0.")
    console = Console()
    with held_folder(out) as folder:
        life = open_life(folder, parts)
        stages = [stage for stage in STAGES if stage.name != "pretrain" or not parts.model]
        whole = sum(stage.share for stage in stages)
        for number, stage in enumerate(stages):
            console.print(f"\n[bold]{stage.title}[/bold]\n")
            record = life["stages"].setdefault(stage.name, {})
            if "after" not in record:
                seconds = 60 * minutes * TRAINED * stage.share / whole
                reason = run_stage(stage, folder, parts, life, seconds)
                if reason != "finished":
                    console.print(f"Go on with the whole life: bedstone chat-life --out {out}")
                    leave(reason)
            _print_stage(stage, record, console)
            page = _write_page(folder, stages[: number + 1], life, parts)
        finished = folder / stages[-1].name / "model"
        talk = converse(finished, parts, console)
        write_json(folder / TRANSCRIPT, talk)
        page = _write_page(folder, stages, life, parts, talk)
    console.print(f"\nReport: [bold]{page}[/bold]\nTalk to it: bedstone chat {finished}")
    return page


def open_life(folder: Path, parts: LifeParts) -> dict[str, Any]:
    """What `life.json` holds: the parts, and of each stage figures before and after.

    Raises:
        BedstoneError: it is of other parts.
    """
    path, given = folder / LIFE, dataclasses.asdict(parts)
    life = read_object(path) if is_plain(path) else {"parts": given, "stages": {}}
    for name, value in given.items():
        if (began := life["parts"].get(name)) != value:
            raise BedstoneError(
                f"{folder}: holds a life with {name}: {began}, and {value} was given. Choose "
                f"another --out, or leave --{name} as it was."
            )
    return life


def run_stage(
    stage: Stage, folder: Path, parts: LifeParts, life: dict[str, Any], seconds: float
) -> str:
    """Runs or resumes a stage and measures it; why it ended: `finished`, or a signal's name."""
    home = folder / stage.name
    record = life["stages"][stage.name]
    if "before" in record and CheckpointStore(home / "checkpoints").latest() is not None:
        finished = go_on(home)
    else:
        shutil.rmtree(home, ignore_errors=True)
        recipe = _recipe(stage, folder, parts, seconds)
        record["before"] = _before(stage, recipe)
        write_json(folder / LIFE, life)
        finished = train(recipe)
    if finished.model is None:
        return finished.done.reason
    record["after"] = _named(stage, finished.done.metrics)
    record["probes"] = {each.name: measure(each, finished.model) for each in probes(parts)}
    record["answers"] = _answers(finished.model, questions(parts))
    record |= {"seconds": finished.done.seconds, "spent": _spent(finished)}
    write_json(folder / LIFE, life)
    return finished.done.reason


def _recipe(stage: Stage, folder: Path, parts: LifeParts, seconds: float) -> Any:
    """The recipe of a stage, which begins with the model of the one before."""
    values: dict[str, Any] = {
        "budget": f"{max(seconds, 1):.0f}s",
        "save_minutes": 2.0,
        **RECIPES[stage.name],
        "method": stage.method,
        "out": str(folder / stage.name),
    }
    if stage.name == "pretrain":
        values["data"] = {"source": parts.text, "validation_share": 0.02}
        values["tokenizer"] = {"path": str(make_tokenizer(folder / "tokenizer", parts))}
        return from_mapping(load_method(stage.method).Recipe, values, stage.name)
    names = [each.name for each in STAGES]
    before = names[names.index(stage.name) - 1]
    first = parts.model and before == "pretrain"
    values["model"] = parts.model if first else str(folder / before / "model")
    source = {"sft": parts.chats, "dpo": parts.preferences, "grpo": parts.prompts}[stage.name]
    values["data"] = data_of(source)
    if stage.name == "grpo":
        values["rewards"] = parts.rewards
    return from_mapping(load_method(stage.method).Recipe, values, stage.name)


def make_tokenizer(folder: Path, parts: LifeParts) -> Path:
    """A tokenizer of the text and the conversations, with the control tokens of the template."""
    if is_plain(folder / "tokenizer.json"):
        return folder
    size = VOCABULARY.get(parts.text, 4096)
    texts = sampled_texts(open_source(parts.text), TokenizerConfig(sample_mb=8.0), quiet=False)
    made = train_bpe(
        [*texts, *_strings(open_dataset(parts.chats).rows)], size, special_tokens=(END, *CONTROL)
    )
    made.settings["chat_template"] = TEMPLATE
    made.save(folder)
    return folder


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


def _before(stage: Stage, recipe: Any) -> dict[str, float]:
    """The stage's figures of the model that it begins with."""
    method = load_method(stage.method)
    plan = prepare(method, recipe, None, quiet=True)
    return _named(stage, method.evaluations(recipe, plan)[0].log(plan.model.network))


def _named(stage: Stage, metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(metrics[key]) for name, key in stage.figures.items()}


def _spent(finished: RunResult) -> str:
    done = finished.done
    return f"{counted(done.step, 'step')}, {done.tokens:,} {done.unit}"


# Probes.


def measure(probe: Probe, path: Path) -> dict[str, float]:
    """The mean reward of answers to held-out prompts, and the share of them that end."""
    model = open_model(path, dtype=torch.float32)
    prompts = Prompts(_held_out(probe), tokenizer_of(model), room=model.config.context - LONGEST)
    rewards = RewardSum(probe.rewards, _fp32())
    sampled = sample_answers(
        model.network,
        prompts.ids,
        sorted(model.end_ids),
        max_tokens=LONGEST,
        temperature=probe.temperature,
        random=np.random.default_rng(0),
        precision=_fp32(),
    )
    scored = Scorer(prompts, rewards)(range(len(prompts)), sampled.answers())
    return {
        "mean": float(scored.totals.mean()),
        "ended": float(sampled.ended.double().mean()),
        "rows": len(prompts),
    }


def _held_out(probe: Probe) -> Dataset:
    found: Dataset = from_mapping(PromptConfig, dict(probe.data), probe.name).open(0)["validation"]
    return found


def _fp32() -> Precision:
    return pick_precision("fp32", pick_device("cpu"))


# Chat.

QUESTIONS = (
    "Hello!",
    "My name is Ada.",
    "What is the capital of France?",
    "Mia has 12 nuts. Mia finds 5 more. Mia gives 3 to Tom. How many nuts does Mia have?",
    "Do you know the opposite of hot?",
    "What is my name?",
    "Thank you.",
)


def questions(parts: LifeParts) -> list[str]:
    """What the model is asked: of the built-in world, or what users say in own prompts."""
    if parts.built_in:
        return list(QUESTIONS)
    found = []
    for row in _held_out(probes(parts)[-1]).rows[:SHOWN]:
        prompt = row.get("prompt") or row.get("messages")
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        found.append(str(text))
    return found


def converse(path: Path, parts: LifeParts, console: Console) -> list[dict[str, Any]]:
    """A conversation with a model, printed; its messages."""
    console.print("\n[bold]Chat[/bold]\n")
    talk = LocalConversation(
        open_model(path, dtype=torch.float32),
        ChatSettings(temperature=0.0, max_new_tokens=LONGEST),
        _fp32(),
    )
    for text in questions(parts):
        console.print(f"[bold]> {text}[/bold]", highlight=False)
        answer = talk.answer(text, lambda piece: None)
        console.print(answer.text.strip(), markup=False, highlight=False)
    return talk.messages


def _answers(path: Path, asks: Sequence[str]) -> list[str]:
    """The likeliest answer to each question, as the first of a conversation."""
    model = open_model(path, dtype=torch.float32)
    known = tokenizer_of(model)
    prompts = [render(known, [{"role": "user", "content": each}]) for each in asks]
    sampling = Sampling(max_tokens=LONGEST, temperature=0.0)
    rows = write(model.network, known, prompts, sampling, eos=model.end_ids, precision=_fp32())
    return [each.text.strip() for each in rows]


# What is shown.


def _print_stage(stage: Stage, record: Mapping[str, Any], console: Console) -> None:
    table = Table(show_header=False)
    for name in stage.figures:
        table.add_row(name, f"{record['before'][name]:.3f} before, {record['after'][name]:.3f}")
    for name, found in record["probes"].items():
        table.add_row(name, f"{found['mean']:.3f}")
    table.add_row("trained for", _trained(record))
    console.print(table)


def _write_page(
    folder: Path,
    stages: Sequence[Stage],
    life: Mapping[str, Any],
    parts: LifeParts,
    talk: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """The page of the stages that are finished."""
    records = {stage.name: life["stages"][stage.name] for stage in stages}
    spent = sum(record["seconds"] for record in records.values())
    sections = [_overview(stages, records)]
    for stage in stages:
        curve, home = folder / stage.name / "curve.png", folder / stage.name
        sections.append(
            Section(
                stage.title,
                figures={"trained": _trained(records[stage.name])},
                pictures={curve: "Loss"} if curve.is_file() else {},
                commands={f"bedstone report {home}": "the run on one page"},
            )
        )
    samples = [
        Sample(
            f"{ask}\n\n", {f"after {name}": each["answers"][n] for name, each in records.items()}
        )
        for n, ask in enumerate(questions(parts))
    ]
    turns = "\n".join(f"{each['role']}: {str(each['content']).strip()}" for each in talk)
    whole = [Sample("", {"the finished model": turns})] if talk else []
    last = folder / stages[-1].name / "model"
    sections.append(
        Section(
            "Chat", samples=[*whole, *samples], commands={f"bedstone chat {last}": "talk to it"}
        )
    )
    return write_report(
        folder / PAGE,
        "The life of a small chat model",
        f"Made on this machine from nothing, without a network, in {clock(spent)} of training. All "
        "figures are of rows that nothing was learnt from.",
        sections,
    )


def _trained(record: Mapping[str, Any]) -> str:
    return f"{clock(record['seconds'])}, {record['spent']}"


def _overview(stages: Sequence[Stage], records: Mapping[str, Any]) -> Section:
    """All stages in two tables: their own figures, and the probes."""
    lines = [["stage", "minutes", "figure", "before", "after"]]
    for stage in stages:
        record = records[stage.name]
        for name in stage.figures:
            figures = [f"{record[when][name]:.3f}" for when in ("before", "after")]
            lines.append([stage.name, f"{record['seconds'] / 60:.1f}", name, *figures])
    first, last = (records[stages[n].name]["probes"] for n in (0, -1))
    names = list(last)
    probed = [["after", *names, "answers end"]]
    for stage in stages:
        found = records[stage.name]["probes"]
        means = [f"{found[name]['mean']:.3f}" for name in names]
        probed.append([stage.name, *means, f"{found[names[-1]]['ended']:.3f}"])
    return Section(
        "All stages",
        "What each stage learns is measured before and after it; the probes are the same for all, "
        "so that they show what a stage changed of what others taught.",
        tables={
            "Each stage by its own figures": lines,
            "All stages by the same probes": probed,
        },
        glance={f"{first[name]['mean']:.2f} → {last[name]['mean']:.2f}": name for name in names},
    )
