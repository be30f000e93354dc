"""`bedstone finetune` from end to end, on small models and rows made here."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.commands.train import finetune, resume
from bedstone.data.dataset import Dataset
from bedstone.data.text.convert_tokenizer import train_wordpiece
from bedstone.data.text.instructions import alpaca_prompt
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.gpt.network import build as build_gpt
from bedstone.models.heads import HeadConfig
from bedstone.recipes.base import method_of
from bedstone.recipes.supervised import FinetuneRecipe, open_start, open_texts
from bedstone.settings import from_mapping, to_yaml
from bedstone.train.data import VERSION, version_of
from bedstone.train.logs import read_log
from bedstone.train.run import prepare
from runs import stop_after

GOOD, BAD = ["good", "fine", "great", "lovely"], ["bad", "poor", "awful", "dull"]
FILLING = ["the", "film", "is", "a", "story", "of", "red", "boats", "and", "it", "was"]
NAMES = ["Ada", "Bob", "Eve", "Zoe"]


def sentences(count: int, seed: int = 0) -> list[dict]:
    """Sentences whose label is a word of theirs."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(["praise", "blame"])
        words = draw.choices(FILLING, k=draw.randint(2, 8))
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if label == "praise" else BAD))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def tagged(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices([*FILLING, *NAMES], k=draw.randint(3, 9))
        tags = ["B-PER" if word in NAMES else "O" for word in words]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def asked(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = draw.choices(FILLING, k=draw.randint(3, 30))
        name = draw.choice(NAMES)
        words.insert(draw.randrange(len(words)), name)
        context = " ".join(words)
        answers = {"text": [name], "answer_start": [context.index(name)]}
        rows.append({"question": "who is it ?", "context": context, "answers": answers})
    return rows


def told(count: int, seed: int = 0) -> list[dict]:
    draw = random.Random(seed)
    words = [draw.choice(FILLING) for _ in range(count)]
    return [{"prompt": f"say {word} :", "completion": f" {word} {word}"} for word in words]


ROWS = {
    "text-classification": sentences,
    "token-classification": tagged,
    "question-answering": asked,
    "text-generation": told,
}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """A small BERT and a small GPT, with tokenizers that know the words."""
    folder = tmp_path_factory.mktemp("bases")
    texts = [" ".join([*FILLING, *GOOD, *BAD, *NAMES, "who say : ?"])] * 20
    pieces = Tokenizer(*train_wordpiece(texts, 150))
    shape = {"width": 32, "layers": 2, "heads": 4, "context": 48}
    bert = BertConfig(vocab_size=pieces.vocab_size, head=HeadConfig("pooled"), **shape)
    Model(build_bert(bert, seed=1).eval(), pieces).save(folder / "bert")
    bpe = train_bpe(texts, 320)
    gpt = GPTConfig(layout="gpt2", vocab_size=bpe.vocab_size, **shape)
    Model(build_gpt(gpt, seed=1).eval(), bpe).save(folder / "gpt")
    return {"bert": folder / "bert", "gpt": folder / "gpt"}


def recipe_for(folder: Path, base: Path, task: str, **changes) -> FinetuneRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    make = ROWS[task]
    values = {
        "model": str(base),
        "task": task,
        "out": str(folder / "run"),
        "data": {
            "train": str(write_rows(folder / "train.jsonl", make(160))),
            "validation": str(write_rows(folder / "validation.jsonl", make(40, seed=1))),
        },
        "epochs": 5,
        "batch_size": 8,
        "dropout": 0.0,
        "optim": {"adamw_lr": 3e-3},
        "device": "cpu",
        "precision": "fp32",
        "log_every": 5,
    }
    for key, value in changes.items():
        known = values.get(key)
        values[key] = {**known, **value} if isinstance(known, dict) else value
    return from_mapping(FinetuneRecipe, values, "test")


LEARNT = {
    "text-classification": ("accuracy", 0.9),
    "token-classification": ("f1", 0.9),
    "question-answering": ("exact_match", 0.5),
}


@pytest.mark.parametrize(
    "adapted",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["full", "lora"],
)
@pytest.mark.parametrize("task", LEARNT)
def test_an_encoder_learns_each_task(task, adapted, bases, tmp_path, capsys):
    lora = {"lora": {"rank": 8, "alpha": 16}, "epochs": 10} if adapted else {}
    if task == "question-answering":
        lora["epochs"] = 14
    done = finetune(recipe_for(tmp_path, bases["bert"], task, **lora), quiet=True)
    name, least = LEARNT[task]
    assert done.done.metrics[f"validation_{name}"] >= least
    model = bedstone.load(done.model)
    assert model.config.head.kind in ("sequence", "tokens", "spans")
    assert (done.run / "evaluation.json").is_file()
    assert (done.run / "adapter" / "adapter_config.json").is_file() == adapted
    card = (done.model / "README.md").read_text()
    assert f"pipeline_tag: {task}" in card
    assert f"{model.layout.architecture(model.config)}.from_pretrained" in card
    assert main(["info", str(done.model)]) == 0
    if task == "text-classification":
        assert (done.run / "confusion-validation.png").stat().st_size > 5000
        assert "blame, praise" in capsys.readouterr().out


def test_a_decoder_learns_labels_and_completions(bases, tmp_path):
    labelled = recipe_for(tmp_path / "a", bases["gpt"], "text-classification")
    assert finetune(labelled, quiet=True).done.metrics["validation_accuracy"] >= 0.9
    spoken = recipe_for(tmp_path / "b", bases["gpt"], "text-generation", epochs=8)
    done = finetune(spoken, quiet=True)
    assert done.done.metrics["validation_loss"] < 0.5
    from bedstone.generation.sampling import Sampling
    from bedstone.generation.text import write

    model = bedstone.load(done.model)
    how = Sampling(temperature=0.0, max_tokens=12)
    found = write(model.network, model.tokenizer, ["say boats :"], how, eos=model.end_ids)[0]
    assert found.text == " boats boats"  # and no more: the end token was trained
    assert found.finish == "stop"


@pytest.mark.parametrize("bits", [8, 4])
def test_an_adapter_over_quantised_weights(bits, bases, tmp_path):
    recipe = recipe_for(
        tmp_path,
        bases["bert"],
        "text-classification",
        lora={"rank": 8, "alpha": 16},
        quantize=bits,
        epochs=10,
    )
    done = finetune(recipe, quiet=True)
    assert done.done.metrics["validation_accuracy"] >= 0.85
    assert bedstone.load(done.model).config.head.labels == ("blame", "praise")


def test_the_best_checkpoint_is_kept_and_patience_ends(bases, tmp_path):
    recipe = recipe_for(
        tmp_path,
        bases["bert"],
        "text-classification",
        epochs=40,
        patience=2,
        optim={"adamw_lr": 2e-2},
        best="loss",
    )
    done = finetune(recipe, quiet=True)
    log = [r for r in read_log(done.run / "log.jsonl") if r.get("validation_loss") is not None]
    assert done.done.step < 40 * 20
    best = min(r["validation_loss"] for r in log)
    assert done.done.metrics["validation_loss"] == best
    assert len(log) - 3 == [r["validation_loss"] for r in log].index(best)


def test_class_weights_pull_the_rare_label_up(bases, tmp_path):
    draw = random.Random(3)
    rows = [  # nothing in the words tells the label: only how often it occurs
        {
            "text": " ".join(draw.choices(FILLING, k=5)),
            "label": "blame" if n % 16 == 0 else "praise",
        }
        for n in range(320)
    ]

    def share_of_rare(weights) -> float:
        folder = tmp_path / str(bool(weights))
        recipe = recipe_for(
            folder,
            bases["bert"],
            "text-classification",
            epochs=2,
            batch_size=32,
            best="last",
            optim={"clip": 0.0},
            class_weights=weights,
        )
        write_rows(folder / "train.jsonl", rows)
        done = finetune(recipe, quiet=True)
        record = json.loads((done.run / "evaluation.json").read_text())["validation"]
        return sum(row[0] for row in record["confusion"])  # how often "blame" was said

    assert share_of_rare("") == 0
    assert share_of_rare({"blame": 60.0, "praise": 1.0}) == 40


@pytest.mark.parametrize("rate", [5e-3, 0.0])
def test_a_rate_is_proposed(rate, bases, tmp_path, capsys):
    recipe = recipe_for(tmp_path, bases["bert"], "text-classification", optim={"adamw_lr": rate})
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe))
    assert main(["finetune", str(path), "--find-rate"]) == 0
    found = json.loads((tmp_path / "run" / "find-rate" / "rates.json").read_text())
    assert 1e-6 < found["proposed"] < 5e-2
    assert (tmp_path / "run" / "find-rate" / "rates.png").is_file()
    assert "is proposed" in capsys.readouterr().out
    assert not (tmp_path / "run" / "model").exists()


def test_augmented_rows_are_learnt_and_shown(bases, tmp_path, capsys):
    recipe = recipe_for(
        tmp_path, bases["bert"], "text-classification", augment={"copies": 1, "swap": 0.2}, epochs=1
    )
    done = finetune(recipe, quiet=True)
    assert json.loads((done.run / "data.json").read_text())["rows"] > 250

    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert main(["finetune", str(tmp_path / "r.yaml"), "--sample", "3"]) == 0
    assert "swap" in capsys.readouterr().out


BROKEN = {
    "empty text": ("text-classification", {"text": "", "label": "praise"}, "line 161"),
    "half a character": ("text-classification", {"text": "a \ud800", "label": "praise"}, "161"),
    "label missing": ("text-classification", {"text": "a film"}, "label"),
    "label null": ("text-classification", {"text": "a film", "label": None}, "label"),
    "mixed types": ("text-classification", {"text": "a film", "label": 3.5}, "161"),
    "tags too few": (
        "token-classification",
        {"tokens": ["a", "film"], "ner_tags": ["O"]},
        "161",
    ),
    "answer past the end": (
        "question-answering",
        {
            "question": "who?",
            "context": "it is Ada",
            "answers": {"text": ["Ada"], "answer_start": [60]},
        },
        "past the end",
    ),
    "answer elsewhere": (
        "question-answering",
        {
            "question": "who?",
            "context": "it is Ada",
            "answers": {"text": ["Ada"], "answer_start": [1]},
        },
        "it is at 6",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_rows_are_told_before_training(name, bases, tmp_path):
    task, row, told_of = BROKEN[name]
    recipe = recipe_for(tmp_path, bases["bert"], task)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    recipe.data.most_broken = 0.0
    with pytest.raises(BedstoneError, match=told_of):
        finetune(recipe, quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_few_broken_rows_are_left_out_and_counted(bases, tmp_path):
    recipe = recipe_for(tmp_path, bases["bert"], "text-classification")
    rows = [*sentences(160), {"text": "", "label": "praise"}, {"text": "a film", "label": None}]
    write_rows(tmp_path / "train.jsonl", [*rows, {"text": "a film", "label": -100}])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"text": "cut\n')
    plan = prepare(method_of(recipe), recipe, None, quiet=True)
    assert len(plan.splits.train.rows) == 160
    (note,) = [each for each in plan.splits.notes if "train.jsonl" in each]
    assert "4 rows left out" in note
    for place in ("line 161", "line 162", "line 163", "line 164"):
        assert place in note
    write_rows(tmp_path / "train.jsonl", [*rows, *[{"text": "", "label": "praise"}] * 20])
    with pytest.raises(BedstoneError, match=r"22 of 182 rows are broken, more than data.most_brok"):
        prepare(method_of(recipe), recipe, None, quiet=True)


def test_rows_are_checked_once(bases, tmp_path, monkeypatch):
    checked = []
    real = Dataset.usable
    monkeypatch.setattr(
        Dataset, "usable", lambda rows, check: checked.append(rows.name) or real(rows, check)
    )
    recipe = recipe_for(tmp_path, bases["bert"], "token-classification")
    prepare(method_of(recipe), recipe, None, quiet=True)
    assert sorted(map(Path, checked)) == [tmp_path / "train.jsonl", tmp_path / "validation.jsonl"]


@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (2, 4), (2, 8), (5, 3)])
def test_epochs_learn_each_row_as_often_whatever_the_accumulation(
    bases, tmp_path, batch, accumulate
):
    recipe = recipe_for(tmp_path, bases["bert"], "text-classification", epochs=2, best="last")
    write_rows(tmp_path / "train.jsonl", sentences(26))
    recipe.batch_size, recipe.accumulate, recipe.log_every = batch, accumulate, 1
    plan = prepare(method_of(recipe), recipe, None, quiet=True)
    run = finetune(recipe, quiet=True)
    assert run.done.tokens == 2 * plan.splits.train.token_count
    assert run.done.step == 2 * math.ceil(26 / (batch * accumulate))
    last = max(each["tokens"] for each in read_log(tmp_path / "run" / "log.jsonl"))
    assert last == run.done.tokens


def test_a_run_s_columns_are_those_of_its_evaluation(bases, tmp_path, capsys):
    recipe = recipe_for(tmp_path, bases["bert"], "text-classification", epochs=1)
    for name in ("train", "validation"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        named = [{"body": row["text"], "kind": row["label"]} for row in rows]
        write_rows(tmp_path / f"{name}.jsonl", named)
    recipe.data.columns = {"text": "body", "label": "kind"}
    finetune(recipe, quiet=True)
    capsys.readouterr()

    def figures(*words: str) -> dict:
        assert main(["evaluate", str(tmp_path / "run"), *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    own = figures(str(tmp_path / "validation.jsonl"))
    usual = [{"text": row["body"], "label": row["kind"]} for row in named]
    assert figures(str(write_rows(tmp_path / "usual.jsonl", usual))) == own
    other = [{"words": row["body"], "is": row["kind"], "body": "no"} for row in named]
    path = str(write_rows(tmp_path / "other.jsonl", other))
    assert figures(path, "--column", "words", "--label-column", "is") == own


def test_strict_refuses_data_with_doubts(bases, tmp_path, capsys):
    recipe = recipe_for(tmp_path, bases["bert"], "text-classification", epochs=1)
    rows = sentences(40)
    write_rows(tmp_path / "train.jsonl", [*rows, {"text": "a film", "label": "praise "}])
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    assert main(["finetune", str(tmp_path / "r.yaml"), "--strict"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "strict: what is doubtful in the data" in error and "'praise '" in error
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert main(["finetune", str(tmp_path / "r.yaml")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "doubtful: labels 'praise'" in said
    assert "classes, rows of train / validation" in said


def test_a_run_that_began_before_classes_were_held_out_alike_goes_on(bases, tmp_path, monkeypatch):
    recipe = recipe_for(tmp_path, bases["bert"], "text-classification", epochs=2)
    recipe.data.validation, recipe.data.validation_share = "", 0.2
    with monkeypatch.context() as older:
        older.setattr("bedstone.recipes.supervised.version_of", lambda folder: 1)
        stop_after(older, 3)
        assert finetune(recipe, quiet=True).done.reason == "SIGTERM"
    assert "split" not in json.loads((tmp_path / "run" / "data.json").read_text())
    assert resume(tmp_path / "run", quiet=True).done.reason == "finished"
    fresh = recipe_for(tmp_path / "new", bases["bert"], "text-classification", epochs=1)
    fresh.data.validation, fresh.data.validation_share = "", 0.2
    splits = prepare(method_of(fresh), fresh, None, quiet=True).splits
    counts = Counter(splits.validation.actual)
    assert splits.record["split"] == VERSION
    whole = counts["praise"] + Counter(splits.train.actual)["praise"]
    assert counts["praise"] == round(0.2 * whole)


def test_how_rows_are_held_out_does_not_say_how_prompts_are_cut(bases, tmp_path, monkeypatch):
    recipe = recipe_for(tmp_path, bases["gpt"], "text-generation")
    folder = tmp_path / "begun"
    folder.mkdir()
    assert version_of(None) == version_of(folder) == VERSION
    for split in (1, 2):
        record = {"split": 2} if split == 2 else {}
        (folder / "data.json").write_text(json.dumps(record))
        assert version_of(folder) == split
        train, held, _ = open_texts(recipe, open_start(recipe, None), True, version=split)
        assert train._keep_ends == held._keep_ends == (split == 2)
    monkeypatch.setattr("bedstone.recipes.supervised.HELD_BY_CLASS", 3)
    assert open_texts(recipe, open_start(recipe, None), True)[0]._keep_ends


def test_unseen_labels_and_ten_megabytes_of_a_letter(bases, tmp_path):
    recipe = recipe_for(tmp_path / "a", bases["bert"], "text-classification")
    write_rows(tmp_path / "a" / "validation.jsonl", [{"text": "a film", "label": "prase"}])
    with pytest.raises(BedstoneError, match="perhaps 'praise'"):
        finetune(recipe, quiet=True)
    recipe = recipe_for(tmp_path / "b", bases["bert"], "text-classification")
    rows = [*sentences(160), {"text": "a" * 10_000_000, "label": "praise"}]
    write_rows(tmp_path / "b" / "train.jsonl", rows)
    recipe.data.most_broken = 0.0
    with pytest.raises(BedstoneError, match=r"line 161: column 'text': has 10,000,000 characters"):
        finetune(recipe, quiet=True)


def test_a_task_the_model_cannot_have(bases, tmp_path):
    recipe = recipe_for(tmp_path, bases["bert"], "text-generation")
    with pytest.raises(BedstoneError, match="needs a decoder"):
        finetune(recipe, quiet=True)


def test_the_form_of_instructions_is_kept_as_the_chat_template(bases, tmp_path, capsys):
    bpe = Tokenizer.load(bases["gpt"])
    config = GPTConfig(
        layout="gpt2", vocab_size=bpe.vocab_size, width=32, layers=1, heads=4, context=256
    )
    Model(build_gpt(config, seed=1).eval(), bpe).save(tmp_path / "base")
    recipe = recipe_for(tmp_path, tmp_path / "base", "text-generation", epochs=1)
    rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in GOOD] * 4
    for name in ("train", "validation"):
        write_rows(tmp_path / f"{name}.jsonl", rows)
    finetune(recipe, quiet=True)
    task = bedstone.pipeline("text-generation", str(tmp_path / "run"), max_new_tokens=4)
    messages = [{"role": "user", "content": "say so"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    shown = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == alpaca_prompt("say so")
    (found,) = task(messages)
    (plain,) = task(alpaca_prompt("say so"), return_full_text=False)
    reply = {"role": "assistant", "content": plain["generated_text"]}
    assert found["generated_text"] == [*messages, reply]
    assert task(messages, return_full_text=False) == [plain]
    capsys.readouterr()
    words = ["generate", str(tmp_path / "run"), "say so", "--max-new-tokens", "4", "--json"]
    assert main([*words, "--chat"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["generated_text"] == plain["generated_text"]
    assert main(words) == 0
    assert "--chat" in capsys.readouterr().err
    assert main(["generate", str(bases["gpt"]), "say so", "--chat"]) == 2
    assert "no chat_template" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(BedstoneError, match="only messages of user"):
        task([{"role": "system", "content": "be kind"}])
    with pytest.raises(BedstoneError, match=r"messages\[0\]"):
        task([{"role": "user", "content": 3}])
