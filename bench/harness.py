"""Four tasks by prompting beside lm-evaluation-harness: accuracy, and predictions row by row.

    python bench/harness.py MODEL [--rows 200] [--shots 0 4] [--adaptor | --http] [--write]

With --adaptor, the harness runs each task twice, by its own model of transformers and by Bedstone's
adaptor (`bedstone evaluate --harness lm-eval`), on the same fp32 weights: log-likelihoods of each
row, of rolling ones and texts too, and seconds of the processor. With --http, the harness's
`local-completions` asks a server of the model (`bedstone serve`, in a process of its own), beside
Bedstone's adaptor in this one: log-likelihoods and greedy flags of each row, and texts.

Prompts are Bedstone's built-in templates; the harness writes its own from the same words by its
task's `doc_to_text`, so equal predictions also mean equal prompts. Its examples are given in the
order that Bedstone chose. Prompts that are longer than the context are counted apart: there the
harness cuts tokens off their start without a word, where Bedstone leaves whole examples out. Rows
are GLUE's SST-2, CoLA and MRPC (validation; examples from training)
and tweets with three labels. Needs lm-eval and transformers.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import bedstone
from bedstone.evaluate.harness import harness_model
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.text.prompted_tasks import PromptedClassification
from likelihood import harness_of
from result import SHARED, Side, add_write, write
from served_process import NAME, Running


class Known(NamedTuple):
    """A task: its rows, Bedstone's template, and the harness's words for the same."""

    rows: str
    examples: str
    template: str
    text: str
    choices: dict[str, str]  # a label's word


TASKS = {
    "sst2": Known(
        "glue/sst2-validation.jsonl",
        "glue/sst2-train.jsonl",
        "sentiment",
        "Review: {{text}}\nSentiment:",
        {"positive": "positive", "negative": "negative"},
    ),
    "cola": Known(
        "glue/cola-validation.jsonl",
        "glue/cola-train.jsonl",
        "acceptability",
        "Sentence: {{text}}\nIs the sentence grammatically acceptable?",
        {"acceptable": "yes", "unacceptable": "no"},
    ),
    "mrpc": Known(
        "glue/mrpc-validation.jsonl",
        "glue/mrpc-train.jsonl",
        "paraphrase",
        "First: {{sentence1}}\nSecond: {{sentence2}}\nDo both sentences mean the same?",
        {"equivalent": "yes", "different": "no"},
    ),
    "tweets": Known(
        "moderation/tweets.jsonl",
        "moderation/tweets.jsonl",
        "",
        "Classify each text as one of: hate, neither, offensive.\n\nText: {{text}}\nLabel:",
        {each: each for each in ("hate", "neither", "offensive")},
    ),
}


def lines(path: str, count: int, skip: int = 0) -> list[dict[str, Any]]:
    """Rows of a shared file."""
    text = (SHARED / path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in text[skip : skip + count]]


def save(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config_of(
    known: Known, rows: list[Any], examples: list[Any], name: str, folder: str
) -> dict[str, Any]:
    """A task as the harness's YAML has it; its rows are written into a folder."""
    files = {"test": save(rows, Path(folder) / "test.jsonl")}
    if examples:
        files["train"] = save(examples, Path(folder) / "train.jsonl")
    text, head = known.text, ""
    if examples and "\n\n" in text:  # an instruction stands once
        head, text = text.split("\n\n")
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_choice": list(known.choices.values()),
        "doc_to_target": f"{{{{{list(known.choices)}.index(label)}}}}",
        "description": f"{head}\n\n" if head else "",
        "metric_list": [{"metric": "acc"}],
    }
    if examples:
        config |= {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    return config


# What a task of another kind of request says instead of a choice.
KINDS: dict[str, dict[str, Any]] = {
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "written": {
        "output_type": "generate_until",
        "doc_to_text": "Review: {{text}}\nAnother review:",
        "doc_to_target": "{{label}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def run(side: Any, config: dict[str, Any], shots: int) -> tuple[list[Any], float]:
    """A task's answers by row, and seconds of the processor."""
    began = time.process_time()
    found = simple_evaluate(
        side,
        tasks=[dict(config)],
        num_fewshot=shots,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    samples = sorted(found["samples"][config["task"]], key=lambda each: each["doc_id"])
    return [each["filtered_resps"] for each in samples], time.process_time() - began


def compare_adaptor(model: bedstone.Model, peer: HFLM, count: int, shots: list[int]) -> None:
    """Prints the largest difference of each task's log-likelihoods, and seconds of both."""
    adaptor = harness_model(model, pick_precision("fp32", pick_device("cpu")))
    seconds = [0.0, 0.0]
    plans = [(name, known, given) for name, known in TASKS.items() for given in shots]
    plans += [(name, TASKS["sst2"], 0) for name in KINDS]
    for name, known, given in plans:
        rows, own = lines(known.rows, count), lines(known.examples, given, skip=count)
        with tempfile.TemporaryDirectory() as folder:
            config = config_of(known, rows, own, name, folder)
            if name in KINDS:
                config = {k: v for k, v in config.items() if "doc_to" not in k} | KINDS[name]
            ours, mine = run(adaptor, config, given)
            theirs, other = run(peer, config, given)
        seconds = [seconds[0] + mine, seconds[1] + other]
        if name == "written":
            same = sum(a == b for a, b in zip(ours, theirs, strict=True))
            said = f"{same} of {len(ours)} texts are equal"
        else:
            apart = np.abs(numbers(ours) - numbers(theirs))
            said = f"log-likelihoods differ by {apart.max():.1e} at most, of {apart.size}"
        print(f"{name:8} k={given}: {said}; {mine:.1f} s, lm-eval {other:.1f} s", flush=True)
    print(f"all: {seconds[0]:.1f} s, lm-eval's own model {seconds[1]:.1f} s")


def compare_http(model: bedstone.Model, count: int, shots: list[int]) -> bool:
    """Whether the harness is given the same over HTTP as in this process, to 1e-5 nats."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    plans = [(name, known, given) for name, known in TASKS.items() for given in shots]
    plans.append(("written", TASKS["sst2"], 0))
    good = True
    with tempfile.TemporaryDirectory() as folder:
        saved = bedstone.load(model.save(Path(folder) / "model"))  # with the weights as served
        adaptor = harness_model(saved, pick_precision("fp32", pick_device("cpu")))
        chosen = argparse.Namespace(
            model=f"{folder}/model", precision="fp32", threads=torch.get_num_threads(),
            requests=8, prompt=int(model.config.context) - 128, new=64,
        )  # fmt: skip
        with Running(chosen, endless=False) as running:
            peer = LocalCompletionsAPI(
                model=NAME, base_url=f"http://127.0.0.1:{running.port}/v1/completions",
                tokenizer=f"{folder}/model", tokenizer_backend="huggingface", num_concurrent=4,
                max_length=int(model.config.context), max_retries=1,
            )  # fmt: skip
            for name, known, given in plans:
                rows, own = lines(known.rows, count), lines(known.examples, given, skip=count)
                config = config_of(known, rows, own, name, folder)
                if name in KINDS:
                    config = {k: v for k, v in config.items() if "doc_to" not in k} | KINDS[name]
                ours, _ = run(adaptor, config, given)
                theirs, _ = run(peer, config, given)
                if name == "written":
                    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
                    said, fits = f"{same} of {len(ours)} texts are equal", same == len(ours)
                else:
                    apart = np.abs(numbers(ours) - numbers(theirs))
                    differ = sum(
                        bool(a[1]) != bool(b[1])
                        for mine, others in zip(ours, theirs, strict=True)
                        for a, b in zip(mine, others, strict=True)
                    )
                    said = f"log-likelihoods differ by {apart.max():.1e} at most, of {apart.size}"
                    said += f"; {differ} greedy flags differ"
                    fits = bool(apart.max() <= 1e-5) and not differ
                good = good and fits
                print(f"{name:8} k={given}: {said}", flush=True)
    print(f"the same over HTTP: {'yes' if good else 'no'}")
    return good


def numbers(answers: list[Any]) -> np.ndarray:
    """The log-likelihoods of answers, in one row."""
    flat = [one[0] if isinstance(one, tuple | list) else one for row in answers for one in row]
    return np.array(flat, dtype=float)


def theirs(
    peer: HFLM, known: Known, rows: list[Any], examples: list[Any], name: str
) -> tuple[list[int], list[list[float]], list[bool]]:
    """The harness's predicted choices, its scores, and which prompts it cut."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(known, rows, examples, name, folder)
        found = simple_evaluate(
            peer, tasks=[config], num_fewshot=len(examples), bootstrap_iters=0, verbosity="ERROR"
        )
    samples = sorted(found["samples"][name], key=lambda each: each["doc_id"])
    scores = [[float(one[0]) for one in each["filtered_resps"]] for each in samples]
    cut = [
        max(len(peer.tok_encode("".join(pair))) for pair in each["arguments"]) > peer.max_length + 1
        for each in samples
    ]
    return [int(np.argmax(each)) for each in scores], scores, cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--adaptor", action="store_true")
    parser.add_argument("--http", action="store_true")
    add_write(parser)
    args = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if args.http:
        whole = bedstone.load(args.model, dtype=torch.float32)  # codes of few bits made whole
        sys.exit(not compare_http(whole, args.rows, args.shots))
    model = bedstone.load(args.model)
    model.network.float()
    peer = harness_of(model)
    if args.adaptor:
        compare_adaptor(model, peer, args.rows, args.shots)
        return
    seconds: dict[str, list[float]] = {"bedstone": [], "lm-eval": []}
    quality: dict[str, Any] = {}
    for name, known in TASKS.items():
        rows = lines(known.rows, args.rows)
        pairs = "sentence1" in rows[0]
        read = [
            {"text": row["sentence1"], "text_pair": row["sentence2"]} if pairs else row["text"]
            for row in rows
        ]
        for shots in args.shots:
            own = lines(
                known.examples, shots, skip=args.rows if known.rows == known.examples else 0
            )
            given = {"examples": own, "shots": shots} if shots else {}
            chosen = known.template or "text-classification"
            task = PromptedClassification(
                model, precision="fp32", template=chosen, labels=known.choices, top_k=None, **given
            )
            began = time.perf_counter()
            scores = [{one["label"]: one["score"] for one in each} for each in task(read)]
            middle = time.perf_counter()
            if shots:
                demonstrations = task.setup(task.options).examples
                order = demonstrations.choose(shots, "random", seed=0, order=0, given="")
                own = [own[number] for number in order]
            predicted, logs, cut = theirs(peer, known, rows, own, name)
            seconds["bedstone"].append(middle - began)
            seconds["lm-eval"].append(time.perf_counter() - middle)
            labels = list(known.choices)
            ours = [labels.index(max(each, key=each.__getitem__)) for each in scores]
            shares = torch.tensor(logs).softmax(-1)
            differences = [
                abs(each[label] - float(shares[number, place]))
                for number, each in enumerate(scores)
                for place, label in enumerate(labels)
                if not cut[number]
            ]
            apart = max(differences, default=0.0)
            truth = [labels.index(row["label"]) for row in rows]
            accuracy, other = (
                float(np.mean(np.array(each) == truth)) for each in (ours, predicted)
            )
            unequal = [a != b for a, b in zip(ours, predicted, strict=True)]
            differ = sum(a and not b for a, b in zip(unequal, cut, strict=True))
            print(
                f"{name:7} k={shots}: accuracy {accuracy:.3f}, lm-eval {other:.3f}; {differ} of "
                f"{len(rows) - sum(cut)} rows differ, probabilities by {apart:.1e} at most; "
                f"{sum(cut)} were cut, of which {sum(unequal) - differ} differ",
                flush=True,
            )
            quality[f"{name} k={shots}"] = [accuracy, other, differ, apart, sum(cut)]
    print({name: f"{sum(each):.0f} s" for name, each in seconds.items()})
    if args.write:
        sides = {name: Side(each, args.rows) for name, each in seconds.items()}
        write(args.write, "harness", "rows", sides, tasks=quality)


if __name__ == "__main__":
    main()
