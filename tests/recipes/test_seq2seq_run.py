"""Training on pairs: a run of each kind, its artefact, and what is refused."""

import json

import pytest
import torch

import bedstone
from bedstone.errors import BedstoneError
from bedstone.recipes.base import read, train
from methods import check_method

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MODEL = {"layout": "marian", "width": 32, "layers": 1, "heads": 2, "hidden": 48, "context": 40}


@pytest.fixture
def pairs(tmp_path):
    """Numbers and their digits in words."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"source": f"{n}", "target": " ".join(WORDS[int(d)] for d in str(n))}
        for n in range(100, 400)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(pairs, **changes):
    return {
        "task": "text2text-generation",
        "data": {"source": pairs, "validation_share": 0.05},
        "model": MODEL,
        "tokenizer": {"vocab_size": 300},
        "budget": "8 steps",
        "batch_size": 32,
        "evaluate_every": 4,
        "optim": {"lr": 3e-3, "adamw_lr": 3e-3},
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"r_drop": 2.0, "average": 0.5, "task": "translation"},
        {"model": {**MODEL, "layout": "t5"}, "task": "summarization"},
        {"model": {**MODEL, "layout": "bart"}, "accumulate": 2},
    ],
    ids=["plain", "r-drop-average", "t5", "bart"],
)
def test_a_run_of_pairs_is_a_training_method(pairs, tmp_path, changes):
    run = check_method("seq2seq", recipe(pairs, **changes), tmp_path)
    found = json.loads((run.run / "evaluation.json").read_text())["validation"]
    assert found.keys() == {changes.get("task", "text2text-generation")}
    assert (run.run / "validation.html").is_file()


@pytest.mark.slow
def test_digits_are_learnt_and_written_by_the_tasks(pairs, tmp_path):
    run = train(
        read(
            recipe(
                pairs,
                budget="260 steps",
                batch_size=64,
                evaluate_every=130,
                out=str(tmp_path / "run"),
            )
        ),
        quiet=True,
    )
    task = bedstone.pipeline("text2text-generation", str(run.model))
    assert task("271")[0]["generated_text"] == "two seven one"
    settings = json.loads((run.model / "generation_config.json").read_text())
    assert settings["num_beams"] == 5 and settings["bad_words_ids"] == [[0]]
    assert settings["max_length"] == MODEL["context"]  # `transformers` would cut at 20
    network = bedstone.load(run.model).network  # targets begin from zeros, as in other programs
    assert network.starts_from_zero() and network.head.out.weight is network.encoder.embed.weight
    # another run goes on from it, whole or by an adapter
    more = recipe(pairs, init=str(run.model), budget="2 steps", model={}, out=str(tmp_path / "a"))
    more |= {"dropout": 0.25, "no_repeat_ngram_size": 3, "length_penalty": 0.5}
    again = train(read(more), quiet=True)
    assert again.done.metrics["validation_loss"] < 0.5
    network = bedstone.load(again.model).network
    assert network.config.dropout == 0.25 and network.decoder.dropout.p == 0.25
    settings = json.loads((again.model / "generation_config.json").read_text())
    assert settings["no_repeat_ngram_size"] == 3 and settings["length_penalty"] == 0.5
    lora = {**more, "lora": {"rank": 4}, "out": str(tmp_path / "b")}
    assert (train(read(lora), quiet=True).run / "adapter").is_dir()


def test_a_start_that_isn_t_zero_is_trained_as_it_is(pairs, tmp_path):
    run = train(read(recipe(pairs, budget="1 steps", out=str(tmp_path / "run"))), quiet=True)
    model = bedstone.load(run.model)
    with torch.no_grad():
        model.network.encoder.embed.weight[model.config.pad_id] = 0.5
    folder = model.save(tmp_path / "other")
    more = recipe(pairs, init=str(folder), budget="2 steps", model={}, out=str(tmp_path / "more"))
    row = bedstone.load(train(read(more), quiet=True).model).network.decoder.embed.weight[0]
    assert bool((row != 0.0).all()) and not bool((row == 0.5).all())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": {}}, "data.source: isn't given"),
        ({"lora": {"rank": 4}}, "name it by init"),
        ({"lora": {"rank": 4}, "init": "m", "average": 0.9}, "0.9 was given.*Say average=0"),
        ({"model": {**MODEL, "layout": "gpt2"}}, "layout"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"tokenizer": {"vocab_size": 100}}, "tokenizer.vocab_size: 100 is too small"),
        ({"model": {**MODEL, "context": 3}}, "longer than the network reads"),
        ({"beams": 0}, "beams"),
    ],
)
def test_what_cannot_be_trained_is_refused(pairs, tmp_path, changes, message):
    with pytest.raises(BedstoneError, match=message):
        train(read(recipe(pairs, out=str(tmp_path / "run"), **changes)), quiet=True)


def test_a_model_of_two_languages_refuses_a_third(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"translation": {"en": f"{n} red", "de": f"{n} rot"}} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(path), "validation_share": 0.1, "source_lang": "en", "target_lang": "de"}
    run = train(
        read(recipe("", data=data, budget="1 steps", out=str(tmp_path / "run"))), quiet=True
    )
    task = bedstone.pipeline("translation_en_to_de", str(run.model))
    assert "translation_text" in task("1 red")[0]
    with pytest.raises(BedstoneError, match=r"tgt_lang: 'fr' was given.*is 'de'"):
        bedstone.pipeline("translation", str(run.model), tgt_lang="fr")
