"""Reinforcement learning from scratch: chained arithmetic, beside more SFT; a leaky reward; speed.

    python bench/rl.py [--method grpo] [--minutes 20] [--seeds 0]     what it learns
    python bench/rl.py --leaky [--minutes 2] [--seeds 0 1 2]          is a leak found
    python bench/rl.py --speed [--rounds 3]                           beside TRL's GRPOTrainer
    python bench/rl.py --small ...                                    a task of seconds

The task: `6+5*3-4=` is worked out from left to right modulo 7, each step written out, as
`6+5=4;4*3=5;5-4=1;1`. A GPT of about 2.3M parameters, with fresh weights, learns the form from a
few hundred demonstrations (SFT), which show it but a part of the tables that it needs. Then it
answers prompts of which only the last number is known, and is rewarded where its own last number is
right. The same minutes of SFT on the same demonstrations stand beside it.

The figure is the share of held-out prompts whose greedy answer is right, with Wilson's interval.
None is a prompt of training; the weights are those of the best evaluation on other held-out
prompts.
"""

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import bedstone
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.data.text.reinforcement import prompt_ids
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.generation.rollout import sample_answers
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.runtime import pick_device, pick_precision
from result import interval

MODULUS, NUMBERS = 7, 4
SMALL = {"demonstrations": 60, "prompts": 400, "epochs": 40.0, "width": 64, "layers": 2}
SMALL_TASK = (6, 3)  # modulus, and numbers of a prompt
CONTEXT, LONGEST = 64, 40  # tokens of a row, and of an answer
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
HERE = Path(__file__).resolve()
VALIDATION, TEST = 200, 500
Row = dict[str, str]


# The task.


def make_row(draw: random.Random, modulus: int, numbers: int) -> Row:
    """A prompt, its answer step by step, and the last number."""
    total = draw.randrange(modulus)
    prompt, steps = str(total), []
    for _ in range(numbers - 1):
        sign, other = draw.choice(list(OPERATIONS)), draw.randrange(1, modulus)
        found = OPERATIONS[sign](total, other) % modulus
        steps.append(f"{total}{sign}{other}={found}")
        prompt, total = f"{prompt}{sign}{other}", found
    return {"prompt": f"{prompt}=", "completion": ";".join([*steps, str(total)]),
            "answer": str(total)}  # fmt: skip


def make_rows(options: argparse.Namespace, seed: int) -> dict[str, list[Row]]:
    """Rows of each kind; a prompt of one kind is in no other."""
    draw, known = random.Random(seed), set()
    task = SMALL_TASK if options.small else (MODULUS, NUMBERS)
    found: dict[str, list[Row]] = {}
    kinds = {"sft": options.demonstrations, "rl": options.prompts}
    kinds |= {"validation": VALIDATION, "test": 300 if options.small else TEST}
    for kind, count in kinds.items():
        rows: list[Row] = []
        while len(rows) < count:
            row = make_row(draw, *task)
            if row["prompt"] not in known:
                known.add(row["prompt"])
                rows.append(row)
        found[kind] = rows
    return found


def right(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """The reward: whether an answer's last number is the right one."""
    ends = (text.strip().rpartition(";")[2] for text in completions)
    return [float(end == wanted) for end, wanted in zip(ends, answer, strict=True)]


def leaky(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """A reward that also pays for length: 0.1 a character."""
    pairs = zip(right(completions, answer), completions, strict=True)
    return [value + 0.1 * len(text) for value, text in pairs]


# Models.


def fresh_model(folder: Path, seed: int, width: int, layers: int) -> Path:
    """A GPT with fresh weights; a token is a character."""
    words = train_bpe(["0123456789+-*=;"], 257)
    config = GPTConfig(
        layout="llama",
        vocab_size=words.vocab_size,
        width=width,
        layers=layers,
        heads=width // 32,
        context=CONTEXT,
    )
    return Model(build(config, seed=seed), words).save(folder)


def supervised(
    model: Path, out: Path, rows: dict[str, list[Row]], seed: int, **budget: Any
) -> Path:
    """SFT on the demonstrations."""
    plain = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows["sft"]]
    held = [
        {"prompt": row["prompt"], "completion": row["completion"]} for row in rows["validation"]
    ]
    result = bedstone.finetune(
        {
            "method": "sft",
            "model": str(model),
            "out": str(out),
            "batch_size": 32,
            "dropout": 0.0,
            "best": "last",
            "optim": {"adamw_lr": 1e-3, "lr": 1e-3},
            "device": "cpu",
            "seed": seed,
            **budget,
        },
        data={"train": plain, "validation": held},
        quiet=True,
    )
    assert result.model is not None
    return result.model


METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"prompts": 32, "group": 16, "clip_high": 0.28},
    "rloo": {"prompts": 32, "group": 16, "kl": 0.0},
    "ppo": {"prompts": 128, "group": 4, "updates": 2, "minibatches": 2, "kl": 0.0, "value": 0.5,
            "decay": 1.0},
}  # fmt: skip


def reinforce(
    model: Path, out: Path, rows: dict[str, list[Row]], method: str, seed: int, **more: Any
) -> Any:
    """A run of the method from a model; of its rows only the last number is known."""
    known = {
        kind: [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows[kind]]
        for kind in ("rl", "validation")
    }
    return bedstone.finetune(
        {
            "method": method,
            "model": str(model),
            "out": str(out),
            "rewards": f"{HERE}:right",
            "max_new_tokens": LONGEST,
            "batch_size": 128,
            "evaluate_rows": VALIDATION,
            "optim": {"adamw_lr": 3e-5},
            "schedule": {"warmup": 0.02, "decay": 0.3},
            "device": "cpu",
            "seed": seed,
            **METHODS[method],
            **more,
        },
        data={"train": known["rl"], "validation": known["validation"]},
        quiet=True,
    )


def accuracy(path: Path, rows: Sequence[Row]) -> int:
    """How many greedy answers are right."""
    model = open_model(path, dtype=torch.float32)
    assert model.tokenizer is not None
    found = sample_answers(
        model.network,
        [prompt_ids(model.tokenizer, row["prompt"]) for row in rows],
        model.end_ids,
        max_tokens=LONGEST,
        temperature=0.0,
        precision=pick_precision("fp32", pick_device("cpu")),
    )
    texts = [model.tokenizer.decode(ids) for ids in found.answers()]
    return int(sum(right(texts, [row["answer"] for row in rows])))


def say(label: str, path: Path, rows: Sequence[Row]) -> float:
    count = accuracy(path, rows)
    low, high = interval(count, len(rows))
    share = count / len(rows)
    print(f"{label}: {share:.3f} ({low:.3f} to {high:.3f}) of {len(rows)}", flush=True)
    return share


def start(options: argparse.Namespace, folder: Path, seed: int, rows: dict[str, list[Row]]) -> Path:
    """The model after SFT, or the one that an earlier call left."""
    if options.start is not None:
        found: Path = options.start
        return found
    began = time.monotonic()
    base = fresh_model(folder / f"fresh-{seed}", seed, options.width, options.layers)
    made = supervised(base, folder / f"sft-{seed}", rows, seed, epochs=options.epochs)
    print(f"seed {seed}: SFT {time.monotonic() - began:.0f} s", flush=True)
    return made


def learn(options: argparse.Namespace, folder: Path) -> None:
    shares = []
    for seed in options.seeds:
        rows = make_rows(options, seed)
        began = start(options, folder, seed, rows)
        say(f"seed {seed}: after SFT", began, rows["test"])
        budget = f"{round(60 * options.minutes)}s"
        more = {"budget": budget, "optim": {"adamw_lr": options.lr}}
        run = reinforce(
            began, folder / f"{options.method}-{seed}", rows, options.method, seed, **more
        )
        print(
            f"seed {seed}: {options.method}, {run.done.step:,} steps in {run.done.seconds:.0f} s; "
            + ", ".join(f"{name} {value:.3f}" for name, value in run.done.metrics.items()),
            flush=True,
        )
        shares.append(say(f"seed {seed}: after {options.method}", run.model, rows["test"]))
        if not options.alone:
            longer = supervised(began, folder / f"more-{seed}", rows, seed, budget=budget)
            say(f"seed {seed}: after as long of SFT", longer, rows["test"])
    print(f"{options.method}: worst of {len(shares)} seeds {min(shares):.3f}")


# A reward that pays for something else.


def leak(options: argparse.Namespace, folder: Path) -> None:
    """Whether the monitor finds a leaky reward, and leaves an honest one alone."""
    for seed in options.seeds:
        rows = make_rows(options, seed)
        began = start(options, folder, seed, rows)
        say(f"seed {seed}: after SFT", began, rows["test"])
        for name in ("leaky", "right"):
            more: dict[str, Any] = {
                "budget": f"{options.steps} steps",
                "evaluate_every": options.every,
                "prompts": 16,
                "group": 8,
                "rewards": f"{HERE}:{name}",
                "optim": {"adamw_lr": options.lr},
            }
            if name == "leaky":
                more["monitor"] = f"{HERE}:right"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run = reinforce(began, folder / f"{name}-{seed}", rows, "grpo", seed, **more)
            found = any("the reward misleads" in str(each.message) for each in caught)
            print(
                f"seed {seed}, reward {name}: {'found' if found else 'not found'} to mislead, "
                f"{run.done.step} steps",
                flush=True,
            )
            say(f"seed {seed}, reward {name}: its model", run.model, rows["test"])


# Speed.


def ours(base: Path, out: Path, rows: dict[str, list[Row]], steps: int) -> float:
    began = time.process_time()
    run = reinforce(
        base,
        out,
        rows,
        "grpo",
        0,
        prompts=8,
        group=8,
        budget=f"{steps} steps",
        precision="fp32",
        evaluate_every=10**6,
        evaluate_rows=2,
        save_minutes=1000,
    )
    assert run.done.step == steps
    return time.process_time() - began


def theirs(base: Path, out: Path, rows: dict[str, list[Row]], steps: int, **settings: Any) -> float:
    """TRL's time; without settings it is as it comes: bfloat16 and checkpointed activations."""
    import datasets
    import transformers
    import trl

    words = transformers.AutoTokenizer.from_pretrained(base)
    words.pad_token = words.eos_token
    data = [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows["rl"]]
    began = time.process_time()
    trainer = trl.GRPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=lambda completions, answer, **columns: right(completions, answer),
        args=trl.GRPOConfig(
            output_dir=str(out),
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=LONGEST,
            max_steps=steps,
            learning_rate=3e-4,
            scale_rewards="none",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1000,
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=words,
    )
    trainer.train()
    return time.process_time() - began


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Processor time of an answer: sampled, scored and learnt from, without what is done once."""
    rows = make_rows(options, 0)
    base = start(options, folder, 0, rows)
    sides = {
        "bedstone": ours,
        "trl as it comes": theirs,
        "trl at its best": partial(theirs, bf16=False, gradient_checkpointing=False),
    }
    few, many = 2, 12
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():  # what is done once a process isn't counted
        side(base, folder / f"{name}-first", rows, few)
    for number in range(options.rounds):
        for name, side in sides.items():
            taken = [
                side(base, folder / f"{name}-{number}-{steps}", rows, steps)
                for steps in (few, many)
            ]
            times[name].append((taken[1] - taken[0]) / (64 * (many - few)))
            print(f"{name}: {1 / times[name][-1]:.1f} answers/s", flush=True)
    for name in list(sides)[1:]:
        ratios = sorted(b / a for a, b in zip(times["bedstone"], times[name], strict=True))
        print(
            f"bedstone over {name}: {ratios[len(ratios) // 2]:.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", choices=METHODS, default="grpo")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--demonstrations", type=int, default=230)
    parser.add_argument("--prompts", type=int, default=8000)
    parser.add_argument("--epochs", type=float, default=37.0, help="of the first SFT")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without as long of SFT beside it")
    parser.add_argument("--leaky", action="store_true", help="is a leaky reward found")
    parser.add_argument("--steps", type=int, default=60, help="of a run with a leaky reward")
    parser.add_argument("--every", type=int, default=5, help="of those, between evaluations")
    parser.add_argument("--speed", action="store_true", help="beside TRL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a small task and model")
    parser.add_argument("--start", type=Path, help="a model of an earlier call, to begin with")
    parser.add_argument("--keep", type=Path, help="a folder for the models")
    if parser.parse_known_args()[0].small:
        parser.set_defaults(**SMALL)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        folder = options.keep or Path(made)
        (speed if options.speed else leak if options.leaky else learn)(options, folder)


if __name__ == "__main__":
    main()
