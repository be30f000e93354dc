"""text-generation with a suffix: ends, overlaps, what is cut, and what is refused."""

import logging

import pytest

from bedstone.checkpoints.model import Model
from bedstone.data.text.fim import STYLES, fim_tokens
from bedstone.data.text.train_tokenizer import END, train_bpe
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import Written, write
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.tasks.pipeline import pipeline
from bedstone.tasks.text import text_generation
from bedstone.tasks.text.text_generation import TextGeneration
from networks import randomise

TEXTS = ["def f(a, b):\n    return a + b\n\nprint(f(1, 2))\n"] * 3


def made(*names: str, context: int = 96) -> Model:
    tokenizer = train_bpe(TEXTS, 300, special_tokens=(END, *names))
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, context=context
    )
    network = build(config, seed=0).eval()
    randomise(network)
    return Model(network, tokenizer)


@pytest.fixture(scope="module")
def model():
    return made(*STYLES["starcoder"].tokens)


def test_a_middle_stands_between(model):
    fim = fim_tokens(model.tokenizer)
    prompt = fim.prompt("def f(", "\n")
    (one,) = write(model.network, fim.tokenizer, [prompt], Sampling(max_tokens=8), eos=fim.stops)
    task = pipeline("text-generation", model, max_new_tokens=8)
    assert task("def f(", suffix="\n") == [{"generated_text": f"def f({one.text}\n"}]
    middle = task("def f(", suffix="\n", return_full_text=False)
    assert middle == [{"generated_text": one.text}]
    assert task(["def f(", "a"], suffix="\n")[0] == task("def f(", suffix="\n")
    assert task("def f(")[0]["generated_text"] != task("def f(", suffix="")[0]["generated_text"]
    beams = task("def f(", suffix="\n", num_beams=3, num_return_sequences=2)
    assert len({one["generated_text"] for one in beams}) == 2
    assert all(one["generated_text"].endswith("\n") for one in beams)


def test_it_ends_where_the_model_ends_a_middle(model):
    task = TextGeneration(model, max_new_tokens=8, return_full_text=False, do_sample=True, seed=3)
    fim = task.fim
    prompt = fim.prompt("def f(", "\n")
    chance = Sampling(max_tokens=8, temperature=1.0, top_k=50, seed=3)
    (one,) = write(model.network, fim.tokenizer, [prompt], chance, eos=fim.stops)
    whole = task("def f(", suffix="\n")[0]["generated_text"]
    assert whole == one.text and len(one.ids) == 8
    third = next(number for number in one.ids[2:] if number not in one.ids[:2])
    fim.stops = frozenset({third})  # as if that token ended a middle
    got = task("def f(", suffix="\n")[0]["generated_text"]
    at = one.ids.index(third)
    assert got == fim.tokenizer.continuation(prompt.ids, one.ids[: at + 1]) != whole


def test_all_control_tokens_end_a_middle_and_repeated_lines_are_left_out(model, monkeypatch):
    seen = {}

    def written(network, tokenizer, prompts, way, *, eos, seeds):
        seen.update(eos=set(eos), prompts=prompts)
        return [Written(text="x = 1\n    return x\n") for _ in prompts]

    monkeypatch.setattr(text_generation, "write", written)
    task = TextGeneration(model)
    (got,) = task("def f():\n", suffix="    return x\n\nf()\n")
    assert got["generated_text"] == "def f():\nx = 1\n    return x\n\nf()\n"
    named = {model.tokenizer.id_of(token) for token in (END, *STYLES["starcoder"].tokens)}
    assert seen["eos"] == named
    (got,) = task("def f():\n", suffix="    return y\n", return_full_text=False)
    assert got["generated_text"] == "x = 1\n    return x\n"


def test_a_model_says_its_own_convention():
    """DeepSeek's end token is no <|endoftext|>; both end a middle."""
    model = made(*STYLES["deepseek-coder"].tokens, "<｜end▁of▁sentence｜>")
    fim = TextGeneration(model).fim
    assert fim.end_id == model.tokenizer.id_of("<｜end▁of▁sentence｜>")
    assert {fim.end_id, model.tokenizer.eos_id} <= fim.stops


def test_what_does_not_fit_is_cut_with_a_warning(model, caplog):
    task = TextGeneration(model, max_new_tokens=16)
    prefix, suffix = "a = 1\n" * 60, "b = 2\n" * 60
    with caplog.at_level(logging.WARNING):
        (got,) = task(prefix, suffix=suffix)
    assert "the prefix is cut from its left" in caplog.text
    assert "the suffix is cut from its right" in caplog.text
    assert got["generated_text"].startswith(prefix)
    assert got["generated_text"].endswith(suffix)
    prompt = task.prepare(prefix, task.chosen(suffix=suffix))
    assert len(prompt.text.ids) == 96 - 16
    caplog.clear()
    task("a", suffix="b")
    assert not caplog.text


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([3], {"suffix": "a"}, "suffix: stands behind a text; the prompt is 3"),
        ([{"role": "user", "content": "a"}], {"suffix": "a"}, "suffix: stands behind a text"),
        ("a", {"suffix": 3}, r"suffix: 3 \(int\) was given; expected a text"),
        ("a", {"suffix": "\ud800"}, "suffix: holds half a character"),
        ("a\ud800", {"suffix": "a"}, "the prompt: holds half a character"),
    ],
)
def test_bad_input_is_named(model, given, options, message):
    with pytest.raises(BedstoneError, match=message):
        TextGeneration(model)(given, **options)


def test_a_model_without_the_tokens_says_what_was_sought():
    with pytest.raises(BedstoneError, match=r"suffix: .* no tokens .* <fim_prefix><fim_suffix>"):
        TextGeneration(made())("a", suffix="b")
    tiny = made(*STYLES["starcoder"].tokens, context=4)
    with pytest.raises(BedstoneError, match="the prompt needs 4 tokens and may have 3"):
        TextGeneration(tiny)("a", suffix="b")
