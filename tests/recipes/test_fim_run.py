"""Runs with fill-in-the-middle: tokens, notes, the artefact, resuming, and what is refused."""

import json

import pytest

import bedstone
from bedstone.commands.train import pretrain, resume
from bedstone.data.text.fim import SETTING, STYLES, fim_tokens
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.recipes.base import PretrainRecipe, load_method
from bedstone.settings import from_mapping
from bedstone.train.run import prepare
from runs import losses, make_text, recipe_values, stop_after, weights_hash

pytestmark = pytest.mark.usefixtures("cache")


def make(folder, text=None, **changes):
    data = {} if text is None else {"data": {"source": str(text), "validation_share": 0.1}}
    return from_mapping(PretrainRecipe, recipe_values(folder, **{**data, **changes}), "test")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text") / "text", documents=60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, text):
    """A run with fill-in-the-middle that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert pretrain(make(folder, text, fim={}), quiet=True).done.reason == "finished"
    return folder / "run"


def test_the_run_says_how_many_were_cut_and_the_artefact_keeps_the_style(whole, text):
    recipe = make(whole.parent, text, fim={})
    plan = prepare(load_method("causal_lm"), recipe, None, quiet=True)
    counts = json.loads((whole / "data.json").read_text())["fim"]
    assert 0.35 < counts["cut"] / counts["passages"] < 0.65
    assert 0.35 < counts["spm"] / counts["cut"] < 0.65
    note = f"{counts['cut']:,} of {counts['passages']:,} documents or passages cut"
    assert any(note in line for line in plan.splits.notes)
    train = plan.splits.train
    middle = plan.model.tokenizer.id_of("<fim_middle>")
    assert int((train.tokens == middle).sum()) == counts["cut"]
    assert not (plan.splits.validation.tokens == middle).any()
    for folder in (whole / "tokenizer", whole / "model"):
        tokenizer = Tokenizer.load(folder)
        assert tokenizer.settings[SETTING] == "starcoder"
        assert fim_tokens(tokenizer).end_id == tokenizer.eos_id
        assert {*STYLES["starcoder"].tokens} <= {
            tokenizer.backend.id_to_token(number) for number in tokenizer.special_ids
        }
    assert tokenizer.vocab_size <= 300  # the tokens are among those of the recipe
    assert losses(whole)[40] < losses(whole)[1]


def test_streaming_cuts_too(text, tmp_path):
    data = {"source": str(text), "validation_share": 0.1, "streaming": True}
    recipe = make(tmp_path, data=data, fim={"rate": 0.9})
    plan = prepare(load_method("causal_lm"), recipe, None, quiet=True)
    assert "in the first block" in plan.splits.notes[-1]
    middle = plan.model.tokenizer.id_of("<fim_middle>")
    assert sum(int((next(plan.batches).ids == middle).sum()) for _ in range(20)) > 5
    assert not (plan.splits.validation.tokens == middle).any()


def test_rate_0_is_a_run_without_it_to_the_bit(text, tmp_path):
    plain = pretrain(make(tmp_path / "a", text), quiet=True)
    none = pretrain(make(tmp_path / "b", text, fim={"rate": 0.0}), quiet=True)
    assert weights_hash(none.model) == weights_hash(plain.model)
    assert losses(none.run) == losses(plain.run)
    assert style_setting(none.model) is None


def style_setting(model):
    return Tokenizer.load(model).settings.get(SETTING)


def test_a_stopped_run_ends_as_if_never_stopped(whole, text, tmp_path, monkeypatch):
    recipe = make(tmp_path, text, fim={})
    stop_after(monkeypatch, 17)
    assert pretrain(recipe, quiet=True).done.reason == "SIGTERM"
    monkeypatch.undo()
    done = resume(tmp_path / "run", quiet=True)
    assert weights_hash(done.model) == weights_hash(whole / "model")


def test_going_on_from_a_model(whole, text, tmp_path):
    init = str(whole / "model")
    more = make(tmp_path / "a", text, init=init, model={}, budget="2 steps", fim={"rate": 0.7})
    done = pretrain(more, quiet=True)
    assert style_setting(done.model) == "starcoder"
    assert json.loads((done.run / "data.json").read_text())["fim"]["cut"] > 0
    named = make(tmp_path / "b", text, init=init, model={}, fim={"style": "santacoder"})
    with pytest.raises(BedstoneError, match="fim: <fim-prefix> of the convention santacoder is"):
        pretrain(named, quiet=True)


def test_a_tokenizer_without_the_tokens_is_refused(text, tmp_path):
    train_bpe(["the cat sees"], 280).save(tmp_path / "t")
    lacking = make(tmp_path, text, fim={}, tokenizer={"path": str(tmp_path / "t")})
    with pytest.raises(BedstoneError, match=r"fim: .* no tokens .* <fim_prefix><fim_suffix>"):
        pretrain(lacking, quiet=True)
    pieces = make(tmp_path / "p", text, fim={}, tokenizer={"kind": "wordpiece", "vocab_size": 100})
    with pytest.raises(BedstoneError, match=r"tokenizer\.kind: 'wordpiece'"):
        pretrain(pieces, quiet=True)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
@pytest.mark.parametrize("style", STYLES)
def test_every_convention_can_be_learnt(kind, style, text, tmp_path):
    recipe = make(tmp_path, text, fim={"style": style}, tokenizer={"kind": kind, "vocab_size": 300})
    plan = prepare(load_method("causal_lm"), recipe, None, quiet=True)
    tokenizer, train = plan.model.tokenizer, plan.splits.train
    fim = fim_tokens(tokenizer)
    assert fim.style.name == style
    first = tokenizer.id_of(fim.style.prefix)
    cut = int((train.tokens == first).sum())
    assert cut == plan.splits.record["fim"]["cut"] > 0
    assert int((train.tokens == fim.end_id).sum()) >= cut


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fim": {"rate": 2}}, r"fim\.rate"),
        ({"fim": {"style": "star"}}, r"fim\.style: 'star' is unknown.*starcoder"),
        ({"fim": {"spm": 0.5, "style": "qwen2.5-coder"}}, "has psm alone"),
        ({"fim": {"rat": 0.5}}, "perhaps 'fim.rate' is meant"),
        ({"fim": {}, "model": {"layout": "bert"}}, "only a decoder learns to write a middle"),
        ({"fim": {"rate": 1e-9}}, r"none was cut. Raise fim\.rate"),
    ],
)
def test_bad_settings_are_named(changes, message, text, tmp_path):
    with pytest.raises(BedstoneError, match=message):
        pretrain(recipe_values(tmp_path, data={"source": str(text)}, **changes), quiet=True)


def test_answers_and_middles_don_t_go_together(text, tmp_path):
    data = {"source": str(text), "answers": " "}
    with pytest.raises(BedstoneError, match=r"fim: moves the middle .* data\.answers"):
        pretrain(make(tmp_path, data=data, fim={}), quiet=True)


def test_what_it_learnt_is_used(whole):
    """The artefact fills in: with a suffix it writes a middle, in the form that it learnt."""
    task = bedstone.pipeline("text-generation", str(whole), max_new_tokens=20)
    prompt = task.prepare("the cat", task.chosen(suffix=" tree."))
    assert task.tokenizer.decode(prompt.text.ids, skip_special=False) == (
        "<fim_prefix>the cat<fim_suffix> tree.<fim_middle>"
    )
    (found,) = task("the cat", suffix=" tree.")
    assert found["generated_text"].startswith("the cat")
    assert found["generated_text"].endswith(" tree.")
