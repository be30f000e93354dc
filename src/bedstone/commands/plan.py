"""`bedstone plan`: what a run will meet and take before it is begun, and what a server takes."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bedstone.errors import BedstoneError
from bedstone.recipes import library

if TYPE_CHECKING:
    from bedstone.inspect.plan import Plan


def plan(
    recipe: str,
    overrides: list[str],
    strict: bool = False,
    seconds: float = 20.0,
    watts: float = 0.0,
    price_hour: float = 0.0,
    memory_gb: float = 0.0,
    gpus: int = 0,
    gpu: str = "h100",
    serve: bool = False,
    as_json: bool = False,
) -> int:
    """Look through a recipe's rows, and say what its run takes: memory, time, energy, cost.

    Rows are searched for duplicates, leaks between splits, labels that conflict or shift, targets
    that are empty or cut, broken pictures, wrong encodings and personal data. Parameters and work
    are counted, the peak of memory is predicted, and some steps are timed on the recipe's own
    batches. Nothing is kept of it. The exit code is 1 where a finding is an error. With --gpus
    nothing is read or timed: what a GPT takes on so many GPUs is computed on paper. With --serve a
    decoder is planned as `bedstone serve` would open it: the continuations that fit side by side,
    and tokens a second, timed on the server's engine.

    Args:
        recipe: the name of one of `bedstone recipes`, or a YAML file; with --serve a model.
        overrides: fields of the recipe to set, as key=value; with --serve the server's options,
            as max_model_len=2048 or precision=int8.
        strict: exit with 1 for warnings, too.
        seconds: for timing steps; 0 times none.
        watts: of the machine at work, where its energy can't be measured; 0 takes 10 a thread.
        price_hour: of the machine, for the cost; with --gpus of one GPU.
        memory_gb: that the run may take: whether it fits, and the largest batch that does; with
            --serve how many continuations do. The exit code is 1 where it doesn't.
        gpus: how many GPUs to plan for, on paper; 0 plans for this machine.
        gpu: of which kind: a100, h100, h200 or b200.
        serve: plan the serving of a model.
        as_json: print one JSON object.

    Example:
        bedstone plan tinyshakespeare budget=2h --price-hour 0.40
        bedstone plan finetune-own data.train=rows.jsonl --strict --seconds 0
        bedstone plan gpt.yaml --gpus 1024 --gpu h100 --price-hour 2.5
        bedstone plan smollm2-135m-instruct --serve precision=int8 --memory-gb 4

    Raises:
        BedstoneError: the recipe, its data or a model can't be read.
    """
    given = {"seconds": seconds, "watts": watts, "price-hour": price_hour, "memory-gb": memory_gb}
    for name, value in given.items():
        if not 0 <= value < float("inf"):
            raise BedstoneError(f"--{name}: {value} was given; expected a number from 0 on.")
    if serve:
        for name, value in (("gpus", gpus), ("watts", watts), ("strict", strict)):
            if value:
                raise BedstoneError(f"--{name}: is of a run. Leave it out with --serve.")
        return _serving(recipe, overrides, seconds, price_hour, memory_gb, as_json=as_json)
    if gpus:
        for name, value in (("memory-gb", memory_gb), ("watts", watts), ("strict", strict)):
            if value:
                raise BedstoneError(f"--{name}: is of this machine. Leave it out with --gpus.")
    if memory_gb and not seconds:
        raise BedstoneError("--memory-gb: needs a step, and --seconds is 0. Leave one of them out.")
    path = library.find(recipe)
    from bedstone.recipes.given import read_any

    method, read = read_any(path, overrides)
    if gpus:
        paper = _on_paper(method, read, gpus, gpu.lower(), price_hour)
        print(json.dumps(paper.record()) if as_json else "\n".join(paper.lines()))
        return 0
    from bedstone.inspect.plan import make_plan

    made = make_plan(
        method,
        read,
        seconds=seconds,
        watts=watts,
        price_hour=price_hour,
        memory_gb=memory_gb,
        quiet=as_json,
    )
    _print(made, as_json=as_json)
    return int(made.failed(strict=strict))


def _serving(
    model: str,
    overrides: list[str],
    seconds: float,
    price_hour: float,
    memory_gb: float,
    *,
    as_json: bool,
) -> int:
    """Prints the plan of serving a model."""
    from bedstone.inspect.serving import plan_serving

    made = plan_serving(
        model,
        overrides,
        seconds=seconds,
        price_hour=price_hour,
        memory_gb=memory_gb,
        quiet=as_json,
    )
    print(json.dumps(made.record()) if as_json else "\n".join(made.lines()))
    return int(bool(memory_gb) and not made.slots)


def _print(made: "Plan", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(made.record()))
    else:
        print("\n".join(made.lines(datetime.now())))


def _on_paper(method: Any, recipe: Any, gpus: int, gpu: str, price: float) -> Any:
    """The plan of a GPT's training on many GPUs."""
    from bedstone.inspect.cluster import plan_cluster
    from bedstone.models.gpt.network import GPTConfig
    from bedstone.settings import from_mapping
    from bedstone.train.schedule import parse_budget

    if method.name != "causal_lm" or recipe.init:
        raise BedstoneError(
            f"--gpus: a plan on paper is of a GPT from fresh weights; this is of {method.name}"
            f"{' and goes on from init' if recipe.init else ''}. Leave --gpus out to time it here."
        )
    budget = parse_budget(recipe.budget)
    if budget.unit == "seconds":
        raise BedstoneError(
            f"budget: {recipe.budget} is a time, which says nothing of another machine. Give it in "
            "steps or tokens with --gpus, as budget='2T tokens' or '1000 steps'."
        )
    each = 1 if budget.unit == "tokens" else recipe.batch_size * recipe.accumulate * recipe.context
    shape = {"vocab_size": recipe.tokenizer.vocab_size, "context": recipe.context, **recipe.model}
    config = from_mapping(GPTConfig, shape, "recipe", "model.")
    return plan_cluster(
        config,
        gpus=gpus,
        gpu=gpu,
        rows=recipe.batch_size,
        length=recipe.context,
        tokens=budget.amount * each,
        batches=recipe.accumulate,
        price=price,
    )
