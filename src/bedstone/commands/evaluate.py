"""`bedstone evaluate`: metrics of a model on data, for its own training task or a named task."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bedstone.bulk.places import Spread
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.pipeline import MediaPipeline
from bedstone.checkpoints.unclip import UnclipPipeline
from bedstone.commands.remote import Asking, open_remote, refuse_for_remote
from bedstone.data.scenes.datasets import NAME as SCENES
from bedstone.errors import BedstoneError
from bedstone.evaluate.autoencoder import evaluate_autoencoder
from bedstone.evaluate.contrastive import evaluate_contrastive
from bedstone.evaluate.dalle import evaluate_reranking
from bedstone.evaluate.generative import evaluate_generative
from bedstone.evaluate.harness import UNUSED, HarnessSettings, evaluate_harness
from bedstone.evaluate.humaneval import HUMANEVAL, USUAL, CodeSettings, evaluate_humaneval
from bedstone.evaluate.image_text import IMAGE_TEXT_TASKS, evaluate_image_text
from bedstone.evaluate.language import evaluate_causal, evaluate_masked
from bedstone.evaluate.pairs import learnt_task
from bedstone.evaluate.preferences import evaluate_rewards, holds_pairs
from bedstone.evaluate.spread import SpreadResults
from bedstone.evaluate.supervised import (
    TASKS,
    evaluate_answers,
    evaluate_labels,
    holds_answers,
)
from bedstone.evaluate.tasks import OWN, TaskEvaluation, evaluate_task, metric_of
from bedstone.evaluate.unclip import evaluate_unclip
from bedstone.models.flamingo.network import FLAMINGO
from bedstone.models.interfaces import Autoencoder, EncoderDecoderModel
from bedstone.nn.fast.pick import prepared, settled
from bedstone.outputs import new_file, new_folder
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.pipeline import check_head, task_class

NOTHING = Asking()
HERE = Spread()
NO_ROWS = (
    "--results, --shard and --on: need a --task whose rows are independent of each other; a "
    "model's own loss, humaneval and harnesses are measured by one process. Leave them out."
)


def evaluate(
    model: str,
    data: str = "",
    code: CodeSettings = USUAL,
    asking: Asking = NOTHING,
    harness: HarnessSettings = UNUSED,
    spread: Spread = HERE,
    *,
    task: str = "",
    column: str = "",
    label_column: str = "",
    source_lang: str = "",
    target_lang: str = "",
    split: str | None = None,
    context: int | None = None,
    batch_size: int = 8,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
    confusion: str | None = None,
    page: str | None = None,
    judge: str = "",
    clip: str = "",
    samples: int = 1000,
    candidates: int = 0,
    out: str = "",
    results: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on data by the metrics of its task.

    Prints metrics with 95 % bootstrap intervals for a model with labels, tags or answers; loss,
    perplexity and bits per byte for a language model, and of conversations, instructions or
    completions the loss of their answers; for a model that generates media, the scores
    that a judge network or a CLIP gives to its samples; and with --task humaneval, pass@k of the
    programs that a model writes, which are run in a sandbox; of an autoencoder, how well images
    come back, and whether a judge still sees in them what it saw.

    Args:
        model: a folder, a name that `bedstone models` lists, or a hub id; of humaneval also one
            behind an endpoint, openai:NAME or http://host/v1#NAME.
        data: a built-in name, a path, a glob or a hub id; none with --harness.
        task: the task to run on labelled rows and score by its metric, such as
            zero-shot-classification, or humaneval: functions to complete, with their tests; by
            default what the model was trained for, with its loss.
        column: the column of the text, in formats that have columns; by default the one that the
            model learnt from, or a usual name. Of translation and summarization, the column of
            the sources.
        label_column: the column of the labels, or of the references; likewise.
        source_lang: for translation, the language of the sources, by its name in the rows, such as
            en; by default the model's own.
        target_lang: the language of the references; likewise.
        split: the split of a hub id or a folder with splits.
        context: tokens per window; by default the model's own context.
        batch_size: windows per batch.
        as_json: print one JSON object.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.
        confusion: a PNG file to draw the confusion matrix into, for a model with labels.
        page: for translation and summarization: an HTML file of sources, outputs and references,
            the most suspicious first, with the share of each source that was read.
        judge: for a model that generates media, or an autoencoder: the judge network, a folder or a
            file of weights.
        clip: for a model that generates from text: a CLIP (a run, a folder or a hub id) that scores
            how well each sample matches its text; with or without a judge.
        samples: for a model that generates media: number of samples to judge.
        candidates: for a DALL-E and scenes: of so many images a prompt, how often the one that its
            CLIP keeps is right, beside any of them and the best of them.
        out: for a model that generates media: a folder for sheets of samples; for humaneval: a
            folder for the completions with their verdicts.
        results: with --task: a file of its results on all rows. It is written, and a run that is
            stopped goes on from it; where it is there, its results are scored and nothing is
            computed. Needed for --shard, whose files are joined first.
        overwrite: replace files of the same names.

    Example:
        bedstone evaluate runs/finetune-own rows.csv
        bedstone evaluate runs/en-de test.jsonl --task translation --page test.html
        bedstone evaluate MODEL HumanEval.jsonl --task humaneval --completions 20 --k 1 --k 10
        bedstone evaluate MODEL --harness lm-eval --tasks task.yaml --shots 4

    Raises:
        BedstoneError: the model or the data can't be opened, the task has no metric or the model
            can't do it, the context is too long, or an option is of another kind of model.
    """
    spread.check()
    elsewhere = results is not None or not spread.is_usual
    if elsewhere and (harness.harness or task == HUMANEVAL):
        raise BedstoneError(NO_ROWS)
    if spread.shard is not None and (results is None or page is not None):
        raise BedstoneError(
            "--shard: needs --results, the file that its results are written to, and no --page, "
            "which is of all."
        )
    if harness.harness:
        check_unused({"data": data, "task": task}, "--harness has tasks of its own. Leave it out")
        how = pick_precision(precision, pick_device(device))
        opened = open_model(model, dtype=how.weights, device=how.device)
        how = settled(opened.network, how)
        return evaluate_harness(opened, harness, how, as_json=as_json)
    check_unused({"tasks": harness.tasks, "limit": harness.limit}, "it serves --harness lm-eval")
    if not data:
        raise BedstoneError(
            "evaluate: data is missing. Name it behind the model, or tasks by --harness lm-eval "
            "--tasks NAME."
        )
    if task == HUMANEVAL:
        others = {
            "column": column,
            "label_column": label_column,
            "source_lang": source_lang,
            "target_lang": target_lang,
            "context": context,
            "confusion": confusion,
            "page": page,
            "judge": judge,
            "clip": clip,
        }
        check_unused(others, f"{HUMANEVAL} has no use for it. Leave it out")
    else:
        changed = {
            each.name: getattr(code, each.name)
            for each in fields(code)
            if getattr(code, each.name) != getattr(USUAL, each.name)
        }
        check_unused(changed, f"it serves --task {HUMANEVAL}. Leave it out, or name that task")
    metric = metric_of(task) if task and task != HUMANEVAL else ""
    if page is not None:
        new_file(page, "--page", overwrite=overwrite)
    if confusion is not None:
        new_file(confusion, "--confusion", overwrite=overwrite)
    if out:
        new_folder(out, "--out", overwrite=overwrite)
    if (remote := open_remote(model, asking)) is not None:
        if task != HUMANEVAL:
            raise BedstoneError(
                f"{model}: is behind an endpoint, which --task {HUMANEVAL} alone asks here. Take "
                "`bedstone prompt --data` for tasks by examples."
            )
        refuse_for_remote(model, precision=precision, device=device)
        how = pick_precision("fp32", pick_device("cpu"))
        return evaluate_humaneval(remote, data, how, code, split=split, out=out, as_json=as_json)
    how = pick_precision(precision, pick_device(device))
    opened = open_model(model, dtype=how.weights, device=how.device)
    if task == HUMANEVAL:
        return evaluate_humaneval(opened, data, how, code, split=split, out=out, as_json=as_json)
    if not task and isinstance(getattr(opened, "network", None), EncoderDecoderModel):
        task = learnt_task(opened)
        metric = metric_of(task)
    if metric:
        check_head(task_class(task), opened)
    pairs = bool(metric) and "source" in task_class(task).fields
    parts = ("source", "target") if pairs else ("text", "label")
    named = zip(parts, (column, label_column), strict=True)
    columns = {part: name for part, name in named if name}
    if metric and metric not in OWN:
        if confusion is not None:
            raise BedstoneError("confusion: is drawn of a model's own evaluation; leave task out.")
        by = SpreadResults(task, spread, how.name, results, device, overwrite)
        return evaluate_task(
            task,
            opened,
            data,
            how,
            columns=columns,
            split=split,
            languages=(source_lang, target_lang),
            page=page,
            as_json=as_json,
            predict=by if elsewhere else TaskEvaluation.predict,
        )
    if elsewhere:
        raise BedstoneError(NO_ROWS)
    for option, value in (("--page", page), ("--source-lang", source_lang or target_lang)):
        if value:
            raise BedstoneError(
                f"{option}: {value} was given; it serves --task translation"
                f"{' and summarization' if option == '--page' else ''}. Leave it out, or name the "
                "task."
            )
    how = settled(opened.network, how)
    if candidates:
        check_no_labels(model, label_column)
        return evaluate_reranking(
            opened, data, how, judge=judge, candidates=candidates, samples=samples, as_json=as_json
        )
    if isinstance(opened, UnclipPipeline) and data == SCENES and judge:
        check_no_labels(model, label_column)
        return evaluate_unclip(
            opened, data, how, judge=judge, samples=samples, out=out, as_json=as_json
        )
    if isinstance(opened, MediaPipeline):
        check_no_labels(model, label_column)
        return evaluate_generative(
            opened, data, how, judge=judge, clip=clip, samples=samples, out=out, as_json=as_json
        )
    if isinstance(opened.network, Autoencoder) and not clip:
        check_no_labels(model, label_column)
        return evaluate_autoencoder(opened, data, how, judge=judge, split=split, as_json=as_json)
    if how.bits is not None:
        opened.network = prepared(opened.network, how)
    if judge or clip:
        raise BedstoneError(
            f"{'judge' if judge else 'clip'}: {judge or clip} was given, and {model} draws nothing "
            "that it could see. Leave it out, or give a model that draws."
        )
    if not hasattr(opened.config, "head"):
        raise BedstoneError(
            f"{model}: is a {opened.config.layout}, which says nothing of texts or pictures to "
            "measure; its run's evaluation.json has its figures."
        )
    kind = opened.config.head.kind
    scores = kind == "sequence" and len(opened.config.head.labels) == 1
    if scores and not columns and confusion is None and holds_pairs(data, split):
        return evaluate_rewards(
            opened, data, how, split=split, context=context, batch_size=batch_size, as_json=as_json
        )
    if kind in TASKS:
        return evaluate_labels(
            opened,
            data,
            how,
            columns=columns,
            split=split,
            context=context,
            batch_size=batch_size,
            as_json=as_json,
            confusion=confusion,
        )
    if kind == "towers":
        return evaluate_contrastive(
            opened, data, how, columns=columns, split=split, as_json=as_json, confusion=confusion
        )
    check_no_labels(model, label_column)
    if confusion is not None:
        raise BedstoneError("confusion: only a model with labels has such a matrix.")
    sees = opened.config.layout == FLAMINGO and not is_text(data)
    if kind in IMAGE_TEXT_TASKS.values() or sees:
        return evaluate_image_text(opened, data, how, column=column, split=split, as_json=as_json)
    if kind != "language" or not opened.network.causal:
        return evaluate_masked(
            opened, data, how, column=column, split=split, context=context, as_json=as_json
        )
    if not column and holds_answers(opened, data, split):
        return evaluate_answers(
            opened,
            data,
            how,
            split=split,
            context=context,
            batch_size=batch_size,
            as_json=as_json,
        )
    return evaluate_causal(
        opened,
        data,
        how,
        column=column,
        split=split,
        context=context,
        batch_size=batch_size,
        as_json=as_json,
    )


def check_unused(options: Mapping[str, Any], reason: str) -> None:
    """Raises BedstoneError where one of the options is given."""
    for name, value in options.items():
        if value:
            raise BedstoneError(f"--{name.replace('_', '-')}: {value} was given; {reason}.")


def check_no_labels(model: str, label_column: str) -> None:
    """Raises BedstoneError where labels are named of a model that isn't measured by them."""
    if label_column:
        raise BedstoneError(
            f"--label-column: {label_column!r} was given, and {model} is not measured by labels. "
            "Leave it out, or name the column of texts or captions by --column, or a task that has "
            "labels by --task."
        )


def is_text(data: str) -> bool:
    """Whether the data is text alone, so that a Flamingo is evaluated as a language model."""
    return data == "python-docs" or Path(data).suffix in (".txt", ".md", ".gz")
