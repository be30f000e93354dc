"""Whole runs of encoders: from a recipe to an artefact that opens as published, and back again."""

from pathlib import Path

import pytest
import torch
import transformers

import bedstone
from bedstone.cli import main
from bedstone.commands.train import pretrain
from bedstone.errors import BedstoneError
from bedstone.recipes.base import PretrainRecipe
from bedstone.settings import from_mapping
from bedstone.train.logs import read_log
from runs import WORDS, losses, recipe_values, write_recipe

pytestmark = pytest.mark.usefixtures("cache")

SHAPES = {
    "bert": {"kind": "wordpiece", "vocab_size": 150},
    "roberta": {"kind": "bpe", "vocab_size": 300},
    "distilbert": {"kind": "wordpiece", "vocab_size": 150},
}
CLASSES = {
    "bert": "BertForPreTraining",
    "roberta": "RobertaForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
}


def make_sentences(path: Path) -> Path:
    """Documents of sentences, each document of words of its own: what follows can be told."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(30):
        words = WORDS[number % 3 :: 3]
        lines = [
            " ".join(words[(i * j + number) % len(words)] for j in range(1, 8)).capitalize() + "."
            for i in range(14)
        ]
        (path / f"{number:02}.txt").write_text("\n".join(lines))
    return path


def values(folder: Path, layout: str = "bert", **changes):
    return {
        "model": {"layout": layout, "width": 32, "layers": 2, "heads": 2, "dropout": 0.0},
        "data": {"source": str(make_sentences(folder / "text")), "validation_share": 0.2},
        "tokenizer": SHAPES[layout],
        "batch_size": 8,
        "optim": {"lr": 1e-2, "adamw_lr": 1e-2},
        "evaluate_tokens": 0,
        **changes,
    }


def make(folder: Path, layout: str = "bert", **changes) -> PretrainRecipe:
    return from_mapping(
        PretrainRecipe, recipe_values(folder, **values(folder, layout, **changes)), "test"
    )


@pytest.fixture(scope="module", params=list(SHAPES))
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    assert pretrain(make(folder, request.param), quiet=True).done.reason == "finished"
    return request.param, folder


def test_a_run_learns_and_opens_in_transformers(whole):
    layout, folder = whole
    path = folder / "run" / "model"
    curve = losses(folder / "run")
    assert curve[40] < 0.8 * curve[1]
    metrics = bedstone.load(path).record["metrics"]
    assert 0 < metrics["validation_word_accuracy"] <= 1
    if layout == "bert":
        assert 0 <= metrics["validation_pair_accuracy"] <= 1
        both = metrics["validation_word_loss"] + metrics["validation_pair_loss"]
        assert metrics["validation_loss"] == pytest.approx(both)
    else:
        assert "validation_pair_accuracy" not in metrics
    model = bedstone.load(path)
    theirs = getattr(transformers, CLASSES[layout]).from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    row = tokenizer("the cat sees", "A dog hears.", return_tensors="pt")
    assert (
        row.input_ids[0].tolist()
        == model.tokenizer.backend.encode("the cat sees", "A dog hears.").ids
    )
    types = {"types": row.token_type_ids} if layout == "bert" else {}
    with torch.no_grad():
        ours = model.network(row.input_ids, **types)
        if layout == "distilbert":
            row.pop("token_type_ids", None)
        out = theirs(**row)
    if layout == "bert":
        assert (out.seq_relationship_logits - ours[1]).abs().max() < 1e-4
        assert (out.prediction_logits - ours[0]).abs().max() < 1e-4
    else:
        assert (out.logits - ours).abs().max() < 1e-4


def test_the_command_line_does_it(tmp_path, capsys):
    shape = values(tmp_path, budget="3 steps", masking={"whole_words": True, "share": 0.3})
    recipe = write_recipe(tmp_path, **shape)
    assert main(["pretrain", str(recipe), "masking.pairs=false", "batch_size=4"]) == 0
    assert "bert: " in capsys.readouterr().err
    head = bedstone.load(tmp_path / "run" / "model").config.head
    assert head.kind == "language"


def test_going_on_from_an_encoder(whole, tmp_path):
    layout, folder = whole
    first = losses(folder / "run")
    data = {"source": str(folder / "text"), "validation_share": 0.2}
    recipe = make(tmp_path, layout, data=data, budget="3 steps", model={}, tokenizer={})
    recipe.init = str(folder / "run" / "model")
    recipe.optim.lr = recipe.optim.adamw_lr = 1e-5
    done = pretrain(recipe, quiet=True)
    assert losses(done.run)[1] < 0.8 * first[1]
    assert "validation_word_accuracy" in read_log(done.run / "log.jsonl")[-1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"masking": {"pairs": True}}, "no head for pairs"),
        ({"tokenizer": {"kind": "characters"}}, "no mask token"),
        ({"context": 4}, "context: 4"),
        ({"masking": {"share": 1.5}}, "masking.share: 1.5"),
        ({"masking": {"mask": 0.8, "other": 0.5}}, "at most 1 together"),
        ({"data": {"source": "{text}", "streaming": True}}, "data.streaming"),
        ({"data": {"source": "{text}", "answers": ":"}}, "data.answers"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, changes, told):
    if "data" in changes:
        changes["data"]["source"] = str(make_sentences(tmp_path / "text"))
    with pytest.raises(BedstoneError, match=told):
        pretrain(make(tmp_path, "roberta", **changes), quiet=True)


def test_pairs_of_a_single_document_are_refused(tmp_path):
    (tmp_path / "one.txt").write_text("The cat sees. The dog hears.\n" * 40)
    data = {"source": str(tmp_path / "one.txt"), "validation_share": 0.1}
    with pytest.raises(BedstoneError, match=r"masking.pairs: .* single document"):
        pretrain(make(tmp_path, data=data), quiet=True)
    run = make(tmp_path / "b", data=data, masking={"pairs": False}, budget="2 steps")
    assert pretrain(run, quiet=True).done.reason == "finished"
