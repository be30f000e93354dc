"""The command line: it parses and calls, and holds no logic.

Each command is a function whose signature is its options and whose docstring is its help.
Nothing heavy is imported before a command runs.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence

from bedstone.commands.arguments import options_last, parser_of
from bedstone.commands.generate_lines import generate_
from bedstone.commands.imagine_lines import imagine_
from bedstone.commands.moderation_lines import calibrate_
from bedstone.commands.picture_lines import index_, search_
from bedstone.errors import BedstoneError


def pretrain_(recipe: str, overrides: list[str], sample: str | None = None) -> None:
    """Train a model from scratch, as a recipe says: on text, or on pictures with their texts.

    Any field of the recipe can be set after it: `budget=5m optim.lr=1e-3 model.layers=6`.

    Args:
        recipe: a YAML file; recipes/ has one for each use.
        overrides: fields of the recipe to set, as key=value.
        sample: only draw pictures as the network would see them, augmented, into this PNG.
    """
    from bedstone.commands.train import pretrain, read_pretraining, show_sample

    read = read_pretraining(recipe, overrides)
    if sample is not None:
        show_sample(read, sample)
    else:
        _leave(pretrain(read).done.reason)


def finetune_(recipe: str, overrides: list[str], find_rate: bool = False, sample: int = 0) -> None:
    """Fine-tune a model on labelled rows, whole or by an adapter (LoRA), as a recipe says.

    Any field of the recipe can be set after it: `epochs=2 lora.rank=16 data.train=rows.jsonl`.

    Args:
        recipe: a YAML file; recipes/ has one for each use.
        overrides: fields of the recipe to set, as key=value.
        find_rate: only try rates out, and propose one with its curve.
        sample: only show so many augmented rows beside what they were made from.
    """
    from bedstone.recipes.supervised import finetune, propose_rate, read_finetuning

    read = read_finetuning(recipe, overrides)
    if sample:
        from bedstone.recipes.supervised import preview_augmented as show_augmented

        show_augmented(read, sample)
    elif find_rate:
        propose_rate(read)
    else:
        _leave(finetune(read).done.reason)


def resume_(run: str) -> None:
    """Go on with a stopped run, exactly where its last checkpoint stands.

    Args:
        run: the run's folder.
    """
    from bedstone.commands.train import resume

    _leave(resume(run).done.reason)


def run_(
    task: str,
    model: str,
    text: list[str],
    file: str | None = None,
    column: str | None = None,
    context: str | None = None,
    field: list[str] = [],  # noqa: B006, a signature is the command line
    option: list[str] = [],  # noqa: B006
    policy: str | None = None,
    question: list[str] = [],  # noqa: B006
    page: str | None = None,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Do a task with a model: fill-mask, question-answering, semantic-search and others.

    docs/tasks.md has one line for each task.

    Args:
        task: its name, as in version 4 of transformers.
        model: a folder or a hub id.
        text: what to read; of question-answering the questions, of semantic-search the queries, of
            sentence-similarity the source and what is compared with it; of pictures, their files
            or folders. `-` reads lines from standard input.
        file: read the lines of a text file, or rows (JSON, JSONL, CSV, Parquet, Arrow), instead;
            for semantic-search, what is searched.
        column: of rows, the column that holds the text.
        context: for question-answering, the text that holds the answers, or its file.
        field: for information-extraction, name=question; may be given several times.
        option: an option of the task, key=value; may be given several times.
        policy: for moderation, the policy's file.
        question: about each picture; may be given several times.
        page: an HTML file of the pictures with what was said of them.
        json: print one JSON object an input.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
    """
    from bedstone.commands.run import Inputs as Given
    from bedstone.commands.run import run

    given = Given(text, file, column, context, field, policy, question)
    run(task, model, given, option, as_json=json, page=page, precision=precision, device=device)


def evaluate_(
    model: str,
    data: str,
    column: str = "text",
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 8,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
    confusion: str | None = None,
    judge: str = "",
    clip: str = "",
    samples: int = 1000,
    out: str = "",
) -> None:
    """A model's figures on data: of its task on labelled rows, else how well it predicts text.

    With 95 % intervals by the bootstrap, for a model with labels, tags or answers; loss,
    perplexity and bits per byte for one that predicts text; what judges and a CLIP see in drawings,
    for a model that draws.

    Args:
        model: a folder or a hub id.
        data: a built-in name, a path, a glob or a hub id.
        column: the column that holds the text, in formats that have columns; of pictures with
            labels, that of the labels.
        split: of a hub id or a folder with splits.
        context: tokens a window; the model's own context where not given.
        batch_size: windows at a time.
        json: print one JSON object.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
        confusion: a PNG to draw the confusion matrix into, for a model with labels.
        judge: of a model that draws: the network that judges, a folder or a file of weights.
        clip: of a model that draws from words: a CLIP (a run, a folder or a hub id) that scores how
            well each drawing shows its text; with a judge or without.
        samples: of a model that draws: how many drawings are judged.
        out: of a model that draws: a folder for sheets of what was drawn.
    """
    from bedstone.commands.evaluate import evaluate

    evaluate(
        model,
        data,
        column=column,
        split=split,
        context=context,
        batch_size=batch_size,
        as_json=json,
        precision=precision,
        device=device,
        picture=confusion,
        judge=judge,
        clip=clip,
        samples=samples,
        out=out,
    )


def info_(model: str, json: bool = False) -> None:
    """What a model or a run's folder is: layout, shape, size, tokenizer, where it came from.

    Args:
        model: a folder or a hub id.
        json: print one JSON object.
    """
    from bedstone.commands.info import info

    info(model, as_json=json)


def demo_(out: str = "runs/demo", minutes: float = 10.0) -> None:
    """Train on what every machine has, without a network, and write a report.

    Args:
        out: the folder for the run, the model and report.html.
        minutes: of training, shared by all parts of the demo.
    """
    from bedstone.demo.run import run_demo

    run_demo(out, minutes)


# Named with an underscore: the parser looks for a function's own name in the package, and would
# load the lazy public name that is there.
COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.rstrip("_"): command
    for command in (
        pretrain_,
        finetune_,
        resume_,
        generate_,
        imagine_,
        run_,
        index_,
        search_,
        evaluate_,
        calibrate_,
        info_,
        demo_,
    )
}


# The recipe that a command's overrides set, loaded where its help is asked for.
RECIPES = {
    "pretrain": ("bedstone.recipes.base", "PretrainRecipe"),
    "finetune": ("bedstone.recipes.supervised", "FinetuneRecipe"),
}


def _leave(reason: str) -> None:
    """The exit code that shells expect of a process that a signal stopped."""
    if reason != "finished":
        sys.exit({"SIGINT": 130, "SIGTERM": 143}.get(reason, 1))


def _run(argv: Sequence[str]) -> None:
    recipes = {}
    if argv and argv[0] in RECIPES and {"-h", "--help"} & set(argv):
        home, kind = RECIPES[argv[0]]
        recipes[argv[0]] = getattr(importlib.import_module(home), kind)
    parser = parser_of(COMMANDS, recipes)
    words = [
        re.sub(r"^--[\w-]+", lambda found: found[0][:2] + found[0][2:].replace("-", "_"), word)
        for word in argv
    ]
    if words and (command := COMMANDS.get(words[0])):
        words[1:] = options_last(command, words[1:])
    arguments = parser.parse_args(words).as_dict()
    name = arguments.get("command")
    if name is None:
        parser.print_help()
        return
    COMMANDS[name](**arguments[name])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 for what the user can mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        _run([word for word in argv if word != "--debug"])
    except BedstoneError as error:
        if debug:
            raise
        print(f"bedstone: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output left: `bedstone ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
