"""Conventions of fill-in-the-middle: ids and bytes as published, names in texts, overlaps, room."""

import io
import json

import pytest
from tokenizers import AddedToken

from bedstone.data.text.fim import (
    SETTING,
    STYLES,
    FimTokens,
    encode_behind,
    fim_tokens,
    prompt_room,
    style_of,
    without_overlap,
)
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe, train_wordpiece
from bedstone.errors import BedstoneError

TEXTS = ["def f(a, b):\r\n    return a + b\n\nprint(f(1, 2))  # ü 漢\n" * 5]
# As published; {P} and {S} are the two parts.
PROMPTS = {
    ("starcoder", "psm"): "<fim_prefix>{P}<fim_suffix>{S}<fim_middle>",
    ("starcoder", "spm"): "<fim_prefix><fim_suffix>{S}<fim_middle>{P}",
    ("santacoder", "psm"): "<fim-prefix>{P}<fim-suffix>{S}<fim-middle>",
    ("santacoder", "spm"): "<fim-prefix><fim-suffix>{S}<fim-middle>{P}",
    ("qwen2.5-coder", "psm"): "<|fim_prefix|>{P}<|fim_suffix|>{S}<|fim_middle|>",
    ("codegemma", "psm"): "<bos><|fim_prefix|>{P}<|fim_suffix|>{S}<|fim_middle|>",
    ("deepseek-coder", "psm"): (
        "<｜begin▁of▁sentence｜><｜fim▁begin｜>{P}<｜fim▁hole｜>{S}<｜fim▁end｜>"
    ),
    ("codestral", "spm"): "<s>[SUFFIX]{S}[PREFIX]{P}",
}
BEGIN = {"codegemma": "<bos>", "deepseek-coder": "<｜begin▁of▁sentence｜>", "codestral": "<s>"}
END = {
    "starcoder": "<|endoftext|>",
    "santacoder": "<|endoftext|>",
    "qwen2.5-coder": "<|endoftext|>",
    "codegemma": "<|file_separator|>",
    "deepseek-coder": "<｜end▁of▁sentence｜>",
    "codestral": "</s>",
}
# The tokens of each family's vocabulary, the one that ends a text first.
VOCABULARIES = {
    "starcoder": "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <repo_name> <file_sep>",
    "santacoder": "<|endoftext|> <fim-prefix> <fim-middle> <fim-suffix>",
    "qwen2.5-coder": "<|endoftext|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>",
    "codegemma": "<eos> <bos> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|file_separator|>",
    "deepseek-coder": "<｜end▁of▁sentence｜> <｜begin▁of▁sentence｜> <｜fim▁begin｜> "
    "<｜fim▁hole｜> <｜fim▁end｜>",
    "codestral": "</s> <s> [PREFIX] [SUFFIX] [MIDDLE]",
}
PARTS = [
    ("def f(", "):\n    return a\n"),
    ("a = 1\r\n", "\r\nb = 2\r\n"),
    (" x", " y"),
    ("ü 漢 🙂", "漢"),
    ("", "b\n"),
    ("a", ""),
    ("", ""),
]


def tokenizer_of(name: str, special: bool = True) -> Tokenizer:
    """A small tokenizer with a family's tokens; some families publish them as words."""
    first, *others = VOCABULARIES[name].split()
    tokenizer = train_bpe(TEXTS, 320, special_tokens=(first,))
    tokenizer.backend.add_tokens(
        [AddedToken(each, special=special, normalized=False) for each in others]
    )
    settings = {**tokenizer.settings, "bos_token": BEGIN[name]} if name in BEGIN else None
    return Tokenizer(tokenizer.backend, settings or tokenizer.settings)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(("name", "order"), PROMPTS)
@pytest.mark.parametrize(("prefix", "suffix"), PARTS)
def test_ids_and_bytes_are_those_of_the_published_form(name, order, special, prefix, suffix):
    tokenizer = tokenizer_of(name, special)
    published = PROMPTS[name, order].replace("{S}", suffix).replace("{P}", prefix)
    found = fim_tokens(tokenizer).prompt(prefix, suffix, order)
    assert style_of(tokenizer).name == name
    assert found.ids == tokenizer.encode(published)
    assert tokenizer.decode(found.ids, skip_special=False) == published
    assert found == prefix and found.warning == ""
    assert fim_tokens(tokenizer).end_id == tokenizer.id_of(END[name])


def test_orders_that_are_not_published_are_refused():
    published = {(name, order) for name, style in STYLES.items() for order in style.orders}
    assert published == {*PROMPTS, ("codellama", "psm"), ("codellama", "spm")}
    for name, style in STYLES.items():
        if len(style.orders) == 1 and name in VOCABULARIES:
            other = "spm" if style.orders == ("psm",) else "psm"
            with pytest.raises(BedstoneError, match=f"'{other}'.* expected {style.orders[0]}"):
                fim_tokens(tokenizer_of(name)).prompt("a", "b", other)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", VOCABULARIES)
def test_names_of_tokens_inside_a_text_stay_text(name, special):
    tokenizer = tokenizer_of(name, special)
    fim = fim_tokens(tokenizer)
    names = VOCABULARIES[name].replace(" ", "")
    prefix, suffix = f"x = '{names}'\n", f"{names}{END[name]}"
    ids = fim.prompt(prefix, suffix).ids
    control = [number for number in ids if number in {*fim.ids.values(), *tokenizer.special_ids}]
    assert len(control) == len(fim.prompt("", "").ids)
    texts = tokenizer.decode(ids, skip_special=False)
    assert texts == PROMPTS[name, fim.style.orders[0]].replace("{S}", suffix).replace("{P}", prefix)
    assert fim.tokenizer.decode(ids) in (prefix + suffix, suffix + prefix)  # none is shown


# SentencePiece: Code Llama and Codestral.


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small SentencePiece model with the tokens of Code Llama, and the library's own reader."""
    sentencepiece = pytest.importorskip("sentencepiece")
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=made,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("llama")
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    first = size.vocab_size()
    names = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "[PREFIX]", "[SUFFIX]"]
    listed = {
        str(first + number): {"content": name, "special": True, "normalized": False}
        for number, name in enumerate(names)
    }
    settings = {"tokenizer_class": "CodeLlamaTokenizer", "add_bos_token": True}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": listed}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.load(folder), size, dict(zip(names, range(first, first + 6), strict=True))


def infilling(library, text):
    """Code Llama's `encode_infilling`: a text without the space that begins one."""
    apart = library.EncodeAsIds("☺")
    return library.EncodeAsIds("☺" + text)[len(apart) :]


@pytest.mark.parametrize(("prefix", "suffix"), PARTS)
def test_code_llama_as_its_own_code_encodes(llama, prefix, suffix):
    tokenizer, library, ids = llama
    before, after = library.EncodeAsIds(prefix), infilling(library, suffix)
    fim = fim_tokens(tokenizer)
    assert fim.style.name == "codellama"
    pre, suf, mid, end = (ids[f"▁<{name}>"] for name in ("PRE", "SUF", "MID", "EOT"))
    assert fim.prompt(prefix, suffix).ids == [1, pre, *before, suf, *after, mid]
    assert fim.prompt(prefix, suffix, "spm").ids == [1, pre, suf, *after, mid, *before]
    assert fim.end_id == end and {end, tokenizer.eos_id} <= fim.stops


@pytest.mark.parametrize(("prefix", "suffix"), PARTS)
def test_codestral_as_mistral_encodes(llama, prefix, suffix):
    tokenizer, library, ids = llama
    found = FimTokens(tokenizer, STYLES["codestral"]).prompt(prefix, suffix).ids
    before, after = library.EncodeAsIds(prefix), infilling(library, suffix)
    assert found == [1, ids["[SUFFIX]"], *after, ids["[PREFIX]"], *before]


def test_code_llama_as_transformers_fills(llama, tmp_path):
    """Its class sets the space of SentencePiece before a suffix too, which Code Llama's own code
    leaves out: the ids are the same but for that space, and for the prefix to the last one."""
    import transformers

    rules = json.loads(llama[0].backend.to_str())["model"]
    merges = [tuple(pair) for pair in rules["merges"]]
    theirs = transformers.CodeLlamaTokenizer(vocab=rules["vocab"], merges=merges)
    theirs.save_pretrained(tmp_path)
    fim = fim_tokens(Tokenizer.load(tmp_path))
    space = theirs.convert_tokens_to_ids("▁")
    for prefix, suffix in PARTS:
        if not prefix or not suffix:
            continue
        for order, first in (("psm", False), ("spm", True)):
            wanted = theirs(prefix, suffix=suffix, suffix_first=first).input_ids
            at = wanted.index(theirs.suffix_id) + 1
            ours = fim.prompt(prefix, suffix, order).ids
            joined = theirs.convert_ids_to_tokens(wanted[at:])[0]
            if suffix.startswith(" "):
                assert ours == wanted
            elif wanted[at] == space:
                assert ours == wanted[:at] + wanted[at + 1 :]
            else:  # the space is part of the first token
                assert joined.startswith("▁") and ours[:at] == wanted[:at]
        filled = theirs(f"{prefix}<FILL_ME>{suffix}").input_ids
        assert filled == theirs(prefix, suffix=suffix).input_ids


@pytest.mark.shared
def test_the_vocabulary_of_llama_2(shared_data):
    """Texts in Llama 2's ids, as SentencePiece gives them behind others."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = shared_data / "tokenizers" / "llama2-tokenizer.model"
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = [part for parts in PARTS for part in parts] + ["  a\tb", "\n\n", "☺", "é" * 9]
    for text, found in zip(texts, encode_behind(Tokenizer.load(path), texts), strict=True):
        assert found.tolist() == infilling(library, text), text


def test_a_middle_that_begins_with_a_space_keeps_it(llama):
    fim = fim_tokens(llama[0])
    for prefix, order in (("a", "psm"), ("a", "spm"), ("", "psm")):
        before = fim.prompt(prefix, "b", order).ids
        (middle,) = encode_behind(fim.tokenizer, [" return\n"])
        assert fim.tokenizer.continuation(before, middle) == " return\n"


# Which convention a tokenizer has.


def test_what_an_artefact_says_wins(tmp_path):
    tokenizer = tokenizer_of("starcoder")
    tokenizer.backend.add_special_tokens(VOCABULARIES["santacoder"].split()[1:])
    assert style_of(tokenizer).name == "starcoder"
    tokenizer.settings[SETTING] = "santacoder"
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert style_of(again).name == "santacoder"
    assert style_of(again, "starcoder").name == "starcoder"  # named by a recipe
    again.settings[SETTING] = "santacoda"
    with pytest.raises(BedstoneError, match=r"fim_style = 'santacoda'.*expected one of starcoder"):
        style_of(again)


def test_the_setting_opens_in_transformers(tmp_path):
    import transformers

    tokenizer = tokenizer_of("starcoder")
    tokenizer.settings[SETTING] = "starcoder"
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = PROMPTS["starcoder", "psm"].replace("{P}", "def f(").replace("{S}", "\n")
    assert theirs(text).input_ids == fim_tokens(tokenizer).prompt("def f(", "\n").ids


def test_absent_tokens_are_named():
    plain = train_bpe(TEXTS, 300)
    assert style_of(plain) is None
    with pytest.raises(BedstoneError, match=r"suffix: .* no tokens") as error:
        fim_tokens(plain)
    for style in STYLES.values():
        assert style.prefix in str(error.value) and style.suffix in str(error.value)
    plain.backend.add_special_tokens(["<fim_prefix>"])
    with pytest.raises(BedstoneError, match="It has <fim_prefix>, which are not all of one"):
        fim_tokens(plain)


def test_tokens_that_are_several_are_refused():
    tokenizer = tokenizer_of("starcoder")
    count = len(tokenizer.encode("<fim-prefix>"))
    assert count > 1
    with pytest.raises(BedstoneError, match=f"<fim-prefix> of .*santacoder is {count} tokens"):
        FimTokens(tokenizer, STYLES["santacoder"])
    with pytest.raises(BedstoneError, match="fim: <fim_prefix>"):
        fim_tokens(train_wordpiece(TEXTS, 150), "starcoder", "fim")
    endless = Tokenizer(tokenizer_of("codestral").backend)
    bare = FimTokens(endless, STYLES["codestral"])
    assert bare.end_id == endless.id_of("</s>")
    names = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    no_end = train_bpe(TEXTS, 320, special_tokens=names)
    with pytest.raises(BedstoneError, match=r"no token ends a middle: .*<\|endoftext\|>"):
        FimTokens(Tokenizer(no_end.backend), STYLES["starcoder"])


# Repositories.

FILES = [("lib/a.py", "A = 1\n"), ("b.py", "B = 2\n")]
REPOSITORIES = {
    "starcoder": "<repo_name>kit<file_sep>b.py\nB = 2\n<file_sep>lib/a.py\nA = 1\n"
    "<file_sep><fim_prefix>c.py\ndef f(<fim_suffix>\n<fim_middle>",
    "qwen2.5-coder": "<|repo_name|>kit\n<|file_sep|>b.py\nB = 2\n\n<|file_sep|>lib/a.py\nA = 1\n\n"
    "<|file_sep|>c.py\n<|fim_prefix|>def f(<|fim_suffix|>\n<|fim_middle|>",
    "codegemma": "<bos>b.py\nB = 2\n<|file_separator|>lib/a.py\nA = 1\n<|file_separator|>"
    "c.py\n<|fim_prefix|>def f(<|fim_suffix|>\n<|fim_middle|>",
}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_files_of_a_repository_stand_before(name):
    tokenizer = tokenizer_of(name)
    found = fim_tokens(tokenizer).prompt("def f(", "\n", files=FILES, path="c.py", repo="kit")
    assert tokenizer.decode(found.ids, skip_special=False) == REPOSITORIES[name]
    assert found.warning == ""
    fits = fim_tokens(tokenizer).prompt(
        "def f(", "\n", files=FILES, path="c.py", repo="kit", room=len(found.ids)
    )
    assert fits.ids == found.ids and fits.warning == ""
    less = fim_tokens(tokenizer).prompt(
        "def f(", "\n", files=FILES, path="c.py", repo="kit", room=len(found.ids) - 1
    )
    text = tokenizer.decode(less.ids, skip_special=False)
    assert "A = 1" in text and "B = 2" not in text and text.endswith(found_end(name))
    assert "1 of 2 files of the repository are cut or left out" in less.warning


def test_a_file_that_is_too_long_is_cut():
    fim = fim_tokens(tokenizer_of("starcoder"))
    long = "".join(chr(97 + number % 23) for number in range(400))
    made = fim.prompt("def f(", "\n", files=[("a.py", long), *FILES], path="c.py", room=120)
    text = fim.tokenizer.decode(made.ids, skip_special=False)
    assert text.startswith("<repo_name><file_sep>a.py\nabcd") and len(made.ids) == 120
    assert text.endswith("<file_sep><fim_prefix>c.py\ndef f(<fim_suffix>\n<fim_middle>")
    assert made.warning.count("3 of 3 files of the repository are cut or left out") == 1


def found_end(name):
    return REPOSITORIES[name][REPOSITORIES[name].index("def f(") :]


def test_files_where_the_convention_has_none():
    with pytest.raises(BedstoneError, match="santacoder has no token between files"):
        fim_tokens(tokenizer_of("santacoder")).prompt("a", "b", files=FILES)
    old = train_bpe(TEXTS, 320, special_tokens=("<|endoftext|>", *STYLES["starcoder"].needed))
    with pytest.raises(BedstoneError, match="the tokenizer has no <file_sep>"):
        fim_tokens(old).prompt("a", "b", files=FILES)


# Room.


@pytest.mark.parametrize("room", [4, 7, 40, 60, 300])
@pytest.mark.parametrize(("before", "after"), [(100, 100), (100, 3), (3, 100), (0, 100), (100, 0)])
def test_a_prompt_is_cut_to_fit(room, before, after):
    fim = fim_tokens(tokenizer_of("starcoder"))
    prefix = "".join(chr(97 + number % 23) for number in range(before))
    suffix = "".join(chr(65 + number % 26) for number in range(after))
    whole, behind = fim.encode(prefix, suffix)
    made = fim.prompt(prefix, suffix, room=room)
    at = made.ids.index(fim.ids["<fim_suffix>"])
    left, right = made.ids[1:at], made.ids[at + 1 : -1]
    assert left == whole[len(whole) - len(left) :] and right == behind[: len(right)]
    assert len(made.ids) == min(room, len(whole) + len(behind) + 3)
    if len(behind) > len(right) and len(left) < len(whole):
        assert len(right) == (room - 3) // 4
    assert ("prefix is cut from its left" in made.warning) == (len(left) < len(whole))
    assert ("suffix is cut from its right" in made.warning) == (len(right) < len(behind))
    assert made == prefix  # the text is whole


def test_no_room_at_all():
    with pytest.raises(BedstoneError, match="the prompt needs 4 tokens and may have 3"):
        fim_tokens(tokenizer_of("starcoder")).prompt("a", "b", room=3)
    assert prompt_room(512, 64) == 448 and prompt_room(512, 10_000) == 384


# What repeats the suffix.


@pytest.mark.parametrize(
    ("prefix", "middle", "suffix", "kept"),
    [
        ("", "x = 1\nreturn x\n", "return x\n\ndef g", "x = 1\n"),
        ("", "x = 1\r\nreturn x\r\n", "return x\r\n", "x = 1\r\n"),
        ("", "x = 1\nreturn x", "return x\n", "x = 1\n"),  # the last line without its end
        ("", "x = 1\nreturn x", "return x", "x = 1\n"),
        ("", "x = 1\nreturn x", "return x + 1\n", "x = 1\nreturn x"),  # no whole line
        ("f(", "a)\n    return x\n", ")\n    return x\n", "a"),  # from inside a line on
        ("f(g(", "a)", ")\n", "a)"),  # a bracket may be meant
        ("f(g(", "a)\n", ")\n", "a)\n"),
        ("x\n", "y\n\n", "\n\nz", "y\n\n"),  # blank lines say nothing
        ("x\n", "y\ny\ny\n", "y\ny\nz", "y\n"),  # the longest end
        ("x\n", "y\n", "y\n", ""),
        ("x", "y\n", "y\n", "y\n"),  # goes on with a line
        ("x\n", "abc\n", "", "abc\n"),
        ("x\n", "", "abc\n", ""),
    ],
)
def test_whole_lines_that_repeat_the_suffix_are_left_out(prefix, middle, suffix, kept):
    assert without_overlap(prefix, middle, suffix) == kept
