"""Vocabularies of their own for sources and targets, and several target languages."""

import json

import pytest
import torch

import bedstone
from bedstone.errors import BedstoneError
from bedstone.recipes.base import read, train
from bedstone.tasks.text.augment import back_translator, paraphraser
from methods import check_method

pytest.importorskip("sentencepiece")

EN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DE = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
MODEL = {"layout": "marian", "width": 32, "layers": 1, "heads": 2, "hidden": 48, "context": 48}
KINDS = {
    "joint": {"kind": "marian", "vocab_size": 31},
    "separate": {"kind": "marian", "vocab_size": 31, "separate": True},
    "bpe": {"vocab_size": 300},
}
SEVERAL = {"source_lang": "n", "target_lang": ["de", "en"]}


def said(number: int, words: list[str]) -> str:
    return " ".join(words[int(digit)] for digit in str(number))


@pytest.fixture
def data(tmp_path):
    """Numbers in English and, but for each fourth, in German."""
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for n in range(100, 180):
            texts = {"n": str(n), "en": said(n, EN), "de": said(n, DE) if n % 4 else None}
            file.write(json.dumps({"translation": texts}) + "\n")
    return {"source": str(path), "validation_share": 0.1}


def recipe(data, kind, **changes):
    return {
        "task": "translation",
        "data": {**data, "source_lang": "n", "target_lang": "de", "most_broken": 0.3},
        "model": MODEL,
        "tokenizer": KINDS[kind],
        "budget": "6 steps",
        "batch_size": 16,
        "evaluate_every": 3,
        "beams": 2,
        "optim": {"lr": 1e-2, "adamw_lr": 1e-2},
        **changes,
    }


@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_a_run_leaves_a_folder_that_transformers_opens(data, tmp_path, kind):
    import transformers

    data = {**data, "most_broken": 0.3}
    values = recipe(data, kind)
    if kind == "joint":
        values["data"] |= SEVERAL
    run = check_method("seq2seq", values, tmp_path)  # and goes on exactly
    separate = kind == "separate"
    assert (run.model / "target_vocab.json").is_file() is separate
    mine = bedstone.load(run.model)
    config, known = mine.config, mine.tokenizer
    assert config.shared is not separate and known.separate is separate
    assert (config.vocab_size, config.target_vocab_size) == (
        known.vocab_size,
        known.target.vocab_size,
    )
    network = transformers.MarianMTModel.from_pretrained(run.model).eval()
    theirs = transformers.MarianTokenizer.from_pretrained(run.model)
    code = ">>de<< " if kind == "joint" else ""
    for number in range(100, 190, 9):
        source, target = f"{code}{number}", said(number, DE)
        ids = known.encode(source, special=True)
        wanted = known.target.encode(target, special=True)
        assert theirs(source)["input_ids"] == ids
        assert theirs(text_target=target)["input_ids"] == wanted
        start = [config.start_id, *wanted[:-1]]
        with torch.no_grad():
            logits = network(torch.tensor([ids]), decoder_input_ids=torch.tensor([start])).logits
            own = mine.network(torch.tensor([ids]), torch.tensor([start]))
        assert (logits - own).abs().max() <= 1e-4
    written = network.generate(torch.tensor([ids]), max_new_tokens=12)[0]
    task = bedstone.pipeline("translation", str(run.model), max_new_tokens=12)
    text = theirs.decode(written, skip_special_tokens=True)
    assert task(source)[0]["translation_text"] == text


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_one_model_writes_the_language_that_it_is_given(data, tmp_path, kind):
    values = recipe(data, kind, budget="220 steps", batch_size=48, evaluate_every=220)
    values |= {"data": {**data, **SEVERAL}, "out": str(tmp_path / "run"), "smoothing": 0.0}
    if kind == "bpe":
        values["bpe_dropout"] = 0.1
    run = train(read(values), quiet=True)
    german = bedstone.pipeline("translation", str(run.model), tgt_lang="de")
    assert german.tokenizer.languages == ["de", "en"]
    assert german("157")[0]["translation_text"] == said(157, DE)
    assert german("157", tgt_lang="en")[0]["translation_text"] == said(157, EN)
    assert german(">>en<< 157")[0]["translation_text"] == said(157, EN)
    for make in (german, bedstone.pipeline):
        args = ("157",) if make is german else ("translation", str(run.model))
        with pytest.raises(BedstoneError, match="tgt_lang: 'fr' is no language of the model's"):
            make(*args, tgt_lang="fr")
    pages = (run.run / "validation.html").read_text()
    assert "fünf" in pages and "five" in pages and "&gt;&gt;de" not in pages
    # another run goes on with its languages, and with no other
    more = {"init": str(run.model), "model": {}, "budget": "2 steps", "bpe_dropout": 0.0}
    named = {**values, **more, "out": str(tmp_path / "more")}
    assert train(read(named), quiet=True).done.metrics["validation_loss"] < 0.5
    other = {**data, "source_lang": "n", "target_lang": ["de", "fr"]}
    path = tmp_path / "other.jsonl"
    path.write_text((tmp_path / "pairs.jsonl").read_text().replace('"en"', '"fr"'))
    named = {**named, "data": {**other, "source": str(path)}, "out": str(tmp_path / "other")}
    with pytest.raises(BedstoneError, match=r"data.target_lang: 'fr' has no token >>fr<<"):
        train(read(named), quiet=True)


def test_texts_are_rewritten_by_models_with_two_tokenizers(data, tmp_path):
    there = train(read(recipe(data, "separate", out=str(tmp_path / "there"))), quiet=True)
    back = recipe(data, "separate", out=str(tmp_path / "back"))
    back["data"] |= {"source_lang": "de", "target_lang": "n"}
    back = train(read(back), quiet=True)
    models = [bedstone.load(each.model) for each in (there, back)]
    found = back_translator(*models)(["112", "113"])
    assert found == back_translator(*models)(["112", "113"]) and len(found) == 2
    assert len(paraphraser(models[0])(["112", "113"])) == 2
    # a new network takes a folder's tokenizers as they are
    values = recipe(data, "bpe", out=str(tmp_path / "again"), tokenizer={"path": str(there.model)})
    again = bedstone.load(train(read(values), quiet=True).model)
    assert again.tokenizer.separate and not again.config.shared
    assert again.tokenizer.vocabulary == models[0].tokenizer.vocabulary


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokenizer": {"separate": True}}, "tokenizer.separate: true .* kind bpe has one"),
        ({"tokenizer": {"kind": "marians"}}, "tokenizer.kind: 'marians'.*'marian'"),
        ({"model": {**MODEL, "layout": "t5"}}, "model.layout: 't5' was given with tokenizer.kind"),
        ({"model": {**MODEL, "shared": True}}, "model.shared: True was given with .*: marian"),
        ({"bpe_dropout": 0.1}, "bpe_dropout: 0.1 was given with tokenizer.kind: marian"),
        ({"denoise": {"kind": "spans"}}, "denoise.kind: 'spans' was given with tokenizer.kind"),
        ({"tokenizer": {**KINDS["separate"], "vocab_size": 900}}, "vocab_size: 900 is too large"),
        ({"tokenizer": {**KINDS["separate"], "vocab_size": 9}}, "vocab_size: 9 is too small"),
    ],
)
def test_settings_that_do_not_go_together_are_named(data, tmp_path, changes, message):
    values = recipe(data, "separate", out=str(tmp_path / "run"), **changes)
    with pytest.raises(BedstoneError, match=message):
        train(read(values), quiet=True)


def test_a_tokenizer_with_one_vocabulary_is_none_with_two(data, tmp_path):
    joint = train(read(recipe(data, "joint", out=str(tmp_path / "joint"))), quiet=True)
    values = recipe(data, "separate", init=str(joint.model), model={}, out=str(tmp_path / "run"))
    with pytest.raises(BedstoneError, match=r"tokenizer.separate: true .* has one vocabulary"):
        train(read(values), quiet=True)
