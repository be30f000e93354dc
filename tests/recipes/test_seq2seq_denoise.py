"""Denoising plain text, then learning pairs with the same network; pairs cut by BPE-dropout."""

import json

import pytest

from bedstone.checkpoints.load import open_model
from bedstone.errors import BedstoneError
from bedstone.recipes.base import read, train
from methods import check_method

NAMES = "zero one two three four five six seven eight nine"
WORDS = NAMES.split()
MODEL = {"layout": "marian", "width": 32, "layers": 1, "heads": 2, "hidden": 48, "context": 40}


def said(number):
    return " ".join(WORDS[int(digit)] for digit in str(number))


@pytest.fixture
def texts(tmp_path):
    """Sentences that count."""
    path = tmp_path / "texts.jsonl"
    rows = [
        {"body": " ".join(f"It was {said(m)} then." for m in range(n, n + 5))}
        for n in range(100, 400, 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"source": str(n), "target": said(n)} for n in range(100, 400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(source, **changes):
    return {
        "task": "text2text-generation",
        "data": {"source": source, "validation_share": 0.05, "columns": {"text": "body"}},
        "model": MODEL,
        "tokenizer": {"vocab_size": 420},
        "budget": "8 steps",
        "batch_size": 16,
        "evaluate_every": 4,
        "optim": {"lr": 3e-3, "adamw_lr": 3e-3},
        **changes,
    }


@pytest.mark.parametrize(
    "denoise, layout",
    [
        ({"kind": "spans"}, "t5"),
        ({"kind": "infilling", "permute": True}, "bart"),
        ({"kind": "gap_sentences"}, "marian"),
    ],
)
def test_denoising_is_a_kind_of_the_method(texts, tmp_path, denoise, layout):
    values = recipe(texts, denoise=denoise, model={**MODEL, "layout": layout})
    run = check_method("seq2seq", values, tmp_path)
    assert run.done.metrics["validation_loss"] > 0
    tokenizer = open_model(run.model).tokenizer
    if denoise["kind"] == "spans":
        assert tokenizer.id_of("<extra_id_0>") == tokenizer.vocab_size - 1
    else:
        assert tokenizer.mask_id is not None
    assert tokenizer.vocab_size <= 420


def test_a_denoiser_learns_pairs_then(texts, pairs, tmp_path):
    values = recipe(
        texts, denoise={"kind": "infilling"}, budget="60 steps", out=str(tmp_path / "a")
    )
    first = train(read(values), quiet=True)
    assert first.done.metrics["validation_loss"] < 5.0
    more = recipe(pairs, init=str(first.model), model={}, out=str(tmp_path / "b"))
    del more["data"]["columns"]
    found = train(read(more), quiet=True)
    known = [open_model(run.model).tokenizer for run in (first, found)]
    assert known[0].fingerprint() == known[1].fingerprint()


def test_pairs_are_learnt_with_bpe_dropout(pairs, tmp_path):
    values = recipe(pairs, bpe_dropout=0.1)
    del values["data"]["columns"]
    check_method("seq2seq", values, tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bpe_dropout": 0.1}, r"bpe_dropout: 0\.1 was given; it serves pairs"),
        ({"bpe_dropout": 1.0, "denoise": {}}, r"bpe_dropout: 1"),
        ({"denoise": {"kind": "masks"}}, r"denoise\.kind: 'masks'"),
        ({"denoise": {"kin": "spans"}}, r"unknown key 'denoise\.kin'.*denoise\.kind"),
        ({"tokenizer": {"vocab_size": 300}}, r"vocab_size: 200 is too small"),
        ({"model": {**MODEL, "context": 2}}, r"context: leaves 1 tokens"),
    ],
)
def test_what_cannot_be_denoised_is_refused(texts, tmp_path, changes, message):
    values = {"denoise": {"kind": "spans"}, **changes}
    with pytest.raises(BedstoneError, match=message):
        train(read(recipe(texts, out=str(tmp_path / "run"), **values)), quiet=True)


def test_columns_of_pairs_are_refused_for_plain_text(texts, tmp_path):
    values = recipe(texts, denoise={"kind": "spans"}, out=str(tmp_path / "run"))
    values["data"] = {**values["data"], "columns": {"source": "body"}}
    with pytest.raises(BedstoneError, match=r"data\.columns: 'source' was given, and denoise"):
        train(read(values), quiet=True)
