"""Encoders: pretrained by hidden words, fine-tuned on each task, and every task on texts."""

from pathlib import Path
from typing import Any

from kit import call, line, make, train

LANE = "encoders"
SHAPE = {"width": 32, "layers": 2, "heads": 2, "dropout": 0.0}
TOKENIZERS = {
    "bert": {"kind": "wordpiece", "vocab_size": 150},
    "roberta": {"kind": "bpe", "vocab_size": 300},
    "distilbert": {"kind": "wordpiece", "vocab_size": 150},
}
TEXT = "the film of Ada was a story and Bob is good"
FP32 = ("--precision", "fp32")


def recipe(layout: str = "bert", **changes: Any) -> dict[str, Any]:
    return {
        "budget": "10 steps",
        "model": {"layout": layout, **SHAPE},
        "data": {"source": "in/sentences", "validation_share": 0.2},
        "tokenizer": TOKENIZERS[layout],
        "context": 32,
        "batch_size": 8,
        "optim": {"lr": 1e-2, "adamw_lr": 1e-2},
        "evaluate_tokens": 0,
        "log_every": 1,
        "save_every": 5,
        "keep": 9,
        "evaluate_every": 5,
        "device": "cpu",
        "precision": "fp32",
        **changes,
    }


def tuned(task: str, rows: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "model": "runs/bert-words",
        "data": {"train": f"in/{rows}.jsonl", "validation": f"in/{rows}-held.jsonl"},
        "epochs": 2,
        "batch_size": 8,
        "dropout": 0.1,
        "optim": {"adamw_lr": 3e-3},
        "device": "cpu",
        "precision": "fp32",
        "log_every": 2,
        "save_every": 6,
        "keep": 9,
        **changes,
    }


LABELS, TAGS, ANSWERS = ("text-classification", "token-classification", "question-answering")


def add_cases() -> None:
    runs: dict[str, dict[str, Any]] = {
        "bert": {},
        "bert-whole-words": {"masking": {"whole_words": True, "pairs": False}, "accumulate": 2},
        "bert-bf16": {"precision": "bf16"},
        "bert-dropout": {"model": {"layout": "bert", **SHAPE, "dropout": 0.1}},
        "bert-init": {"init": "runs/bert/model", "model": {}, "seed": 2},
    }
    for name, changes in runs.items():
        train(LANE, name, recipe(**changes))
    for layout in ("roberta", "distilbert"):
        train(LANE, layout, recipe(layout))
    # It knows the words of the labelled rows.
    words = {"data": {"source": "in/rows.txt", "validation_share": 0.1}, "budget": "4 steps"}
    make(LANE, "row-words", write_words)
    train(LANE, "bert-words", recipe(**words, masking={"pairs": False}, save_every=2))
    train(LANE, "roberta-words", recipe("roberta", **words, save_every=2))
    tunes: dict[str, tuple[str, str, dict[str, Any]]] = {
        "labels": (LABELS, "sentences", {}),
        "several": (LABELS, "several", {"problem": "multi"}),
        "score": (LABELS, "scored", {"problem": "regression"}),
        "pairs": (LABELS, "paired", {"class_weights": "balanced"}),
        "tags": (TAGS, "tagged", {}),
        "answers": (ANSWERS, "asked", {"limit": 24, "stride": 6}),
        "labels-roberta": (LABELS, "sentences", {"model": "runs/roberta-words"}),
        "tags-roberta": (TAGS, "tagged", {"model": "runs/roberta-words", "epochs": 1}),
        "labels-lora": (LABELS, "sentences", {"lora": {"rank": 4, "alpha": 8}}),
        "labels-lora8": (LABELS, "sentences", {"lora": {"rank": 4}, "quantize": 8}),
        "tags-lora": (TAGS, "tagged", {"lora": {"rank": 4, "rslora": True}, "epochs": 1}),
        "labels-patience": (LABELS, "sentences", {"patience": 1, "epochs": 9, "best": "loss"}),
        "labels-augmented": (
            LABELS,
            "sentences",
            {
                "augment": {"copies": 1, "synonyms": 0.2, "deletion": 0.1, "swap": 0.1}
                | {"thesaurus": "in/thesaurus.txt"},
                "epochs": 1,
            },
        ),
        "labels-filled": (
            LABELS,
            "sentences",
            {"augment": {"copies": 1, "insertion": 0.2, "fill": "runs/bert-words"}, "epochs": 1},
        ),
        "labels-bf16": (LABELS, "sentences", {"precision": "bf16", "epochs": 1}),
    }
    for name, (task, rows, changes) in tunes.items():
        train(LANE, f"tuned-{name}", tuned(task, rows, **changes), "finetune")
    csv = {"train": "in/sentences.csv", "columns": {"text": "review", "label": "stars"}}
    csv |= {"test": "in/sentences.csv", "validation_share": 0.3, "most_rows": 20}
    train(LANE, "tuned-csv", {**tuned(LABELS, "sentences", epochs=1), "data": csv}, "finetune")
    line(LANE, "find-rate", "finetune", "recipes/tuned-labels.yaml", "out=runs/rate", "--find-rate",
         files=["runs/rate"])  # fmt: skip
    line(LANE, "augment-sample", "finetune", "recipes/tuned-labels-augmented.yaml", "--sample", "3")
    make(LANE, "published-encoders", publish)
    for name in (
        "bert",
        "bert-init",
        "roberta",
        "distilbert",
        "published-bert",
        "published-distilbert",
    ):
        model = f"made/{name}" if name.startswith("published") else f"runs/{name}"
        line(LANE, f"info-{name}", "info", model, "--json")
        mask = "<mask>" if name == "roberta" else "[MASK]"
        line(LANE, f"fill-{name}", "run", "fill-mask", model, f"the {mask} sees a {mask}", "--json",
             "--option", "top_k=3", *FP32)  # fmt: skip
        line(LANE, f"features-{name}", "run", "feature-extraction", model, "a red cat", "--json",
             *FP32)  # fmt: skip
    for name in ("bert", "roberta", "distilbert"):
        line(LANE, f"evaluate-{name}", "evaluate", f"runs/{name}", "in/sentences", "--json", *FP32)
    rows = {"labels": "sentences", "several": "several", "score": "scored", "pairs": "paired"}
    rows |= {"tags": "tagged", "answers": "asked", "labels-lora": "sentences"}
    for name, held in rows.items():
        words = ("evaluate", f"runs/tuned-{name}", f"in/{held}-held.jsonl", *FP32)
        line(LANE, f"evaluate-{name}", *words, "--json")
    line(LANE, "evaluate-confusion", "evaluate", "runs/tuned-labels", "in/sentences-held.jsonl",
         "--confusion", "confusion.png", *FP32, files=["confusion.png"])  # fmt: skip
    for name in ("labels", "several", "score", "labels-roberta", "labels-lora8"):
        line(LANE, f"classify-{name}", "run", LABELS, f"runs/tuned-{name}", TEXT, "a dull story",
             "--json", "--option", "top_k=2", *FP32)  # fmt: skip
    line(LANE, "classify-text", "run", "sentiment-analysis", "runs/tuned-labels", "-", *FP32,
         stdin="a fine film\n\nan awful one\n")  # fmt: skip
    line(LANE, "classify-file", "run", LABELS, "runs/tuned-labels", "--file", "in/sentences.csv",
         "--column", "review", "--json", *FP32)  # fmt: skip
    for how in ("none", "simple", "first", "average", "max"):
        line(LANE, f"entities-{how}", "run", "ner", "runs/tuned-tags", TEXT, "--json", "--option",
             f"aggregation_strategy={how}", *FP32)  # fmt: skip
    line(LANE, "entities-text", "run", "ner", "runs/tuned-tags-lora", TEXT, *FP32)
    asking = ("run", ANSWERS, "runs/tuned-answers", "who is it ?")
    for how in ("top_k=3", "handle_impossible_answer=true"):
        line(LANE, f"answers-{how}", *asking, "--context", "in/context.txt", "--json", "--option",
             how, *FP32)  # fmt: skip
    line(LANE, "answers-text", *asking, "--context", TEXT, *FP32)
    line(LANE, "answers-file", "run", ANSWERS, "runs/tuned-answers", "--file",
         "in/asked-held.jsonl", "--json", *FP32)  # fmt: skip
    extract = ("run", "information-extraction", "runs/tuned-answers", TEXT, "--field",
               "who=who is it ?", "--field", "what=what is it ?")  # fmt: skip
    line(LANE, "extraction", *extract, "--option", "threshold=0", "--json", *FP32)
    line(LANE, "extraction-text", *extract, *FP32)
    line(LANE, "zero-shot", "run", "zero-shot-classification", "made/published-nli", TEXT, "--json",
         "--option", "candidate_labels=film,boats", *FP32)  # fmt: skip
    for name in ("bert-words", "tuned-labels", "roberta-words"):
        line(LANE, f"similar-{name}", "run", "sentence-similarity", f"runs/{name}", "a good film",
             "a fine story", "red boats", "--json", *FP32)  # fmt: skip
    line(LANE, "zero-shot-embedded", "run", "zero-shot-classification", "runs/bert-words", TEXT,
         "--option", "candidate_labels=film,boats", *FP32)  # fmt: skip
    line(LANE, "moderation", "run", "moderation", "runs/tuned-labels", TEXT, "a dull film",
         "--policy", "in/policy-labels.yaml", "--json", *FP32)  # fmt: skip
    call(LANE, "pipelines", pipelines)
    call(LANE, "api-states", states)


def write_words() -> dict[str, Any]:
    """A text of the words of the labelled rows."""
    from inputs import BAD, FILLING, GOOD, NAMES

    words = [*FILLING, *GOOD, *BAD, *NAMES, "who", "say", ":", "?"]
    lines = [" ".join(words[n:] + words[:n]).capitalize() + "." for n in range(len(words))]
    Path("in/rows.txt").write_text("\n".join(lines * 3))
    return {"lines": len(lines)}


def publish() -> dict[str, Any]:
    """Tiny random encoders as transformers writes them, with the tokenizer of a run."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained("runs/bert-words/model")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "vocab_size": len(tokenizer)}
    config = transformers.BertConfig(**small, max_position_embeddings=64)
    labels = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
    labels["label2id"] = {name: number for number, name in labels["id2label"].items()}
    told = transformers.BertConfig(**small, max_position_embeddings=64, **labels)
    light = transformers.DistilBertConfig(
        dim=32, hidden_dim=48, n_layers=2, n_heads=4, vocab_size=len(tokenizer)
    )
    kinds = {
        "published-distilbert": (transformers.DistilBertForMaskedLM, light),
        "published-bert": (transformers.BertForMaskedLM, config),
        "published-nli": (transformers.BertForSequenceClassification, told),
        "published-states": (transformers.BertModel, config),
    }
    for name, (kind, shape) in kinds.items():
        torch.manual_seed(4)
        kind(shape).save_pretrained(f"made/{name}")
        tokenizer.save_pretrained(f"made/{name}")
    return {"made": sorted(kinds)}


def pipelines() -> Any:
    """Tasks called from Python, with lists, generators and options of a call."""
    import bedstone

    found: dict[str, Any] = {}
    on = {"device": "cpu"}
    task = bedstone.pipeline(LABELS, "runs/tuned-labels", **on)
    found["labels"] = [task(TEXT), task([TEXT, "dull"], top_k=None, batch_size=1)]
    found["labels"].append(list(task(iter([TEXT, "a good film"]))))
    found["mixed"] = bedstone.pipeline(LABELS, "runs/tuned-labels", precision="bf16", **on)(TEXT)
    task = bedstone.pipeline(LABELS, "runs/tuned-pairs", **on)
    found["pairs"] = task({"text": "a good film", "text_pair": "a fine story"})
    task = bedstone.pipeline("ner", "runs/tuned-tags", aggregation_strategy="simple", **on)
    found["tags"] = task([TEXT, "Ada and Bob " * 30])
    task = bedstone.pipeline(ANSWERS, "runs/tuned-answers", top_k=2, **on)
    found["answers"] = task(question="who is it ?", context=TEXT * 8)
    task = bedstone.pipeline("fill-mask", "runs/bert-words", **on)
    found["fill"] = task("the [MASK] is red", targets=["film", "story"])
    task = bedstone.pipeline("feature-extraction", "runs/bert-words", **on)
    found["features"] = task("a good film", return_tensors=True)
    task = bedstone.pipeline("zero-shot-classification", "made/published-nli", **on)
    found["zero-shot"] = task([TEXT], candidate_labels=["film", "boats"], multi_label=True)
    return found


def states() -> Any:
    """What networks say of ids, and what a saved copy holds."""
    import torch
    from kit import folder_of

    import bedstone

    found = {}
    names = ["bert", "roberta", "distilbert", "tuned-labels", "tuned-tags", "tuned-answers"]
    for path in [f"runs/{n}/model" for n in names] + [
        "made/published-bert",
        "made/published-states",
    ]:
        model = bedstone.load(path)
        ids = model.tokenizer.encode("the cat sees a film")
        with torch.no_grad():
            said = model.network(torch.tensor([ids]))
        copy = model.save(Path("copies") / path.replace("/", "-"))
        found[path] = {"ids": ids, "said": said, "copy": folder_of(copy)}
    return found
