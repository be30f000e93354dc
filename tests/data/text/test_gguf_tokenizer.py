"""Tokenizers in GGUF files: written and read again, and beside what the libraries give."""

import contextlib
import random
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from bedstone.data.text.gguf_tokenizer import (
    RULES,
    read_gguf_tokenizer,
    rule_of,
    splitter,
    write_gguf_tokenizer,
)
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe, train_characters
from bedstone.errors import BedstoneError

TEXTS = [
    "Hello, world! It's 1234567 o'clock -- isn't IT?",
    "  two  spaces\tand a tab\n\n\n lines \r\n end  ",
    "def f(x_1):\n        return x ** 2  # 3.14159e-10",
    "Grüße, 東京タワー и привет 🙂 \u200d naïve Ünïcode",
    "HelloWorld camelCaseWords I'LL DON'T we'Ve 12 345",
    " ",
    "",
]


def again(tokenizer: Tokenizer, size: int, architecture: str = "llama") -> Tokenizer:
    values = write_gguf_tokenizer(tokenizer, size)
    template = values.pop("tokenizer.chat_template", None)
    section = {key.removeprefix("tokenizer.ggml."): value for key, value in values.items()}
    found = read_gguf_tokenizer(section, template, Path("x.gguf"), architecture=architecture)
    assert found is not None
    return found


def letters(seed: int) -> str:
    """A text of letters, digits, signs and spaces as they come."""
    source = random.Random(seed)
    alphabet = "aAbZ019 .,'!?_-\n\t éü東д🙂" + "the cat sat "
    return "".join(source.choice(alphabet) for _ in range(60))


def test_a_trained_tokenizer_gives_the_same_ids():
    tokenizer = train_bpe([*TEXTS, "the cat sat on the mat. " * 50], 400)
    tokenizer.settings["chat_template"] = "{{ messages }}"
    found = again(tokenizer, 410)
    for text in [*TEXTS, *map(letters, range(40)), "a<|endoftext|>b"]:
        ids = tokenizer.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids) == tokenizer.decode(ids)
    assert found.settings == tokenizer.settings
    assert found.special_ids[0] == tokenizer.special_ids[0]


def test_a_sentencepiece_model_gives_the_same_ids(tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*TEXTS, *["the cat sat on the mat", "a dog ran"] * 40]))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus),
        model_prefix=str(tmp_path / "m"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.99,
        minloglevel=2,
    )
    tokenizer = Tokenizer.load(tmp_path / "m.model")
    found = again(tokenizer, tokenizer.vocab_size)
    for text in [*TEXTS, *map(letters, range(40))]:
        for special in (False, True):
            ids = tokenizer.encode(text, special=special)
            assert found.encode(text, special=special) == ids
        assert found.decode(ids) == tokenizer.decode(ids)
    assert found.bos_id == tokenizer.bos_id == found.encode("a", special=True)[0]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_loses_no_letter_and_is_known_again(name):
    split = splitter(name)
    for text in TEXTS:
        pieces = [text[start:end] for _, (start, end) in split.pre_tokenize_str(text)]
        assert "".join(pieces) == text
    found = []
    for whole in (False, True):  # whether words that are tokens are taken whole is part of it
        backend = tokenizers.Tokenizer(models.BPE(ignore_merges=whole))
        backend.pre_tokenizer = split
        with contextlib.suppress(BedstoneError):
            found.append(rule_of(Tokenizer(backend)))
    assert RULES[name] in [RULES[each] for each in found]


# As transformers has them, in tokenizer.json: single digits, then the rule of GPT-2.
PUBLISHED = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                "isolated",
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rules_split_as_the_published_ones(name):
    for text in [*TEXTS, *map(letters, range(200))]:
        ours = splitter(name).pre_tokenize_str(text)
        assert ours == PUBLISHED[name].pre_tokenize_str(text)


def test_kinds_of_tokens_say_what_a_text_may_hold():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "<|end|>", "<tool>", "spare"]
    values = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": tokens,
        "merges": [],
        "token_type": [1] * 256 + [3, 4, 5],
        "bos_token_id": 256,
    }
    found = read_gguf_tokenizer(values, None, Path("x.gguf"), architecture="llama")
    assert found is not None
    assert found.encode("a<|end|>") == [tokens.index("a"), 256]
    assert found.encode("<tool>") == [257]
    assert len(found.encode("spares")) == 6
    assert found.decode([256, 257]) == "<tool>"
    assert found.encode("a", special=True)[0] == 256  # this rule's texts begin with `bos`
    plain = read_gguf_tokenizer(
        {**values, "add_bos_token": False}, None, Path("x.gguf"), architecture="llama"
    )
    assert plain is not None
    assert plain.encode("a", special=True) == plain.encode("a")


def test_what_llama_cpp_lacks_is_refused():
    with pytest.raises(BedstoneError, match=r"by a rule that llama\.cpp doesn't have"):
        write_gguf_tokenizer(train_characters(["abc"]), 10)
    values = {"model": "bert", "tokens": ["a"]}
    with pytest.raises(BedstoneError, match=r"tokenizer\.ggml\.model = 'bert'"):
        read_gguf_tokenizer(values, None, Path("x.gguf"), architecture="llama")
    assert read_gguf_tokenizer({}, None, Path("x.gguf"), architecture="llama") is None


def test_a_vocabulary_that_would_take_long_is_refused_at_once():
    began = time.process_time()
    many = [f"t{number}" for number in range(200_000)]
    twice = {"model": "gpt2", "pre": "gpt-2", "tokens": [*many, "t199999"]}
    with pytest.raises(BedstoneError, match="has 't199999' twice"):
        read_gguf_tokenizer(twice, None, Path("x.gguf"), architecture="llama")
    long = {"model": "llama", "tokens": ["<unk>", "a" * 1_000_000]}
    with pytest.raises(BedstoneError, match=r"tokens\[1\] has 1,000,000 characters"):
        read_gguf_tokenizer(long, None, Path("x.gguf"), architecture="llama")
    assert time.process_time() - began < 1
