"""Settings beside a vocabulary have the effect that they have in transformers, or are refused."""

import json

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tokenizer_settings import CONFIG_KEYS, MAP_KEYS
from bedstone.errors import BedstoneError

transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "müsste", "musste", "MUSSTE", "Müsste", "東京", "東", "京"]
WORDS += ["hi", "Hi", ",", "!", "<", "new", ">", "a", "b", "A", "<pad>", "<cls>"]
LETTERS = sorted(ByteLevel.alphabet())
TEXTS = [
    "Müsste hi",
    "müsste Hi",
    "東京 hi!",
    "a<new>b A",
    " hi  hi",
    "[MASK]a [mask]",
    "<b> b <|endoftext|>a",
    "",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(folder, kind, settings, *, whole=False, **files):
    """A published folder of a small tokenizer: its vocabulary's files, or its tokenizer.json."""
    folder.mkdir(exist_ok=True)
    if kind == "bert":
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
        named = {"tokenizer_class": "BertTokenizer"}
    else:
        special = (
            ["<|endoftext|>"] if kind == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        )
        ids = {token: number for number, token in enumerate([*LETTERS, "Ġa", "hi", *special])}
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("#version: 0.2\nĠ a\nh i\n")
        named = {"tokenizer_class": {"gpt2": "GPT2", "roberta": "Roberta"}[kind] + "Tokenizer"}
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if whole:
        transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(
            str(folder / "tokenizer.json")
        )
        for name in ("vocab.txt", "vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({**named, **settings}))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def check_equal(folder):
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        for special in (False, True):
            wanted = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, special=special) == wanted, (text, special)
        ids = theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


SETTINGS = {
    "do_lower_case": (True, False),
    "strip_accents": (True, False),
    "tokenize_chinese_chars": (True, False),
    "add_prefix_space": (True, False),
    "add_bos_token": (True, False),
    "add_eos_token": (True, False),
    "split_special_tokens": (True,),
    "clean_up_tokenization_spaces": (True, False),
    "additional_special_tokens": (["<b>"],),
    "extra_special_tokens": ({"image_token": "<b>"}, ["<b>"]),
    "image_token": ("<b>",),
    "bos_token": ("a",),
    "eos_token": ("b",),
    "pad_token": ("hi",),
    "mask_token": ("hi",),
    "padding_side": ("left",),
}


@pytest.mark.parametrize("whole", [False, True], ids=["vocabulary", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_settings_count_as_in_transformers(tmp_path, kind, whole):
    for name, values in SETTINGS.items():
        for number, value in enumerate(values):
            folder = tmp_path / f"{name}{number}"
            check_equal(write(folder, kind, {name: value}, whole=whole))


@pytest.mark.parametrize("whole", [False, True], ids=["vocabulary", "tokenizer.json"])
def test_case_and_accents_are_two_settings(tmp_path, whole):
    for number, (case, accents) in enumerate([(False, True), (True, False)]):
        settings = {"do_lower_case": case, "strip_accents": accents}
        check_equal(write(tmp_path / str(number), "bert", settings, whole=whole))


def test_another_class_leaves_tokenizer_json_as_it_is(tmp_path):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}
    folder = write(tmp_path / "bert", "bert", settings, whole=True)
    check_equal(folder)
    assert Tokenizer.load(folder).encode("MUSSTE") == [WORDS.index("musste")]


def test_special_tokens_of_other_names(tmp_path):
    check_equal(write(tmp_path / "bert", "bert", {"pad_token": "<pad>", "cls_token": "<cls>"}))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_added_tokens_have_the_ids_that_the_file_gives(tmp_path, kind):
    first = len(WORDS) if kind == "bert" else len(LETTERS) + 3
    added = {"<new>": first, "<a>": first + 1, "<b>": first + 2}
    settings = {"additional_special_tokens": ["<b>"]}  # the last of them, not the first
    folder = write(tmp_path / kind, kind, settings, added_tokens=added)
    check_equal(folder)
    ours = Tokenizer.load(folder)
    assert {name: ours.id_of(name) for name in added} == added
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode("a<new>b") == ours.encode("a<new>b")


def test_an_added_token_with_the_id_of_another_is_refused(tmp_path):
    folder = write(tmp_path / "bert", "bert", {}, added_tokens={"<new>": 3})
    with pytest.raises(BedstoneError, match=r"added_tokens.json: the token '<new>' has id 3 there"):
        Tokenizer.load(folder)


def test_the_newer_list_of_tokens_makes_the_older_files_silent(tmp_path):
    token = {"content": "<new>", "special": False, "normalized": True}
    listed = {"added_tokens_decoder": {str(len(WORDS)): token}, "pad_token": "<pad>"}
    files = {"added_tokens": {"<a>": len(WORDS)}, "special_tokens_map": {"pad_token": "hi"}}
    folder = write(tmp_path / "both", "bert", listed, **files)
    check_equal(folder)
    assert Tokenizer.load(folder).settings["pad_token"] == "<pad>"
    older = write(tmp_path / "older", "bert", {"pad_token": "<pad>"}, **files)
    check_equal(older)
    assert Tokenizer.load(older).settings["pad_token"] == "hi"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_class_with_a_splitting_rule_of_its_own_is_refused_by_name(tmp_path, kind):
    name = {"bert": "BertJapaneseTokenizer", "gpt2": "PhobertTokenizer"}[kind]
    folder = write(tmp_path / kind, kind, {"tokenizer_class": name})
    with pytest.raises(BedstoneError, match=rf"tokenizer_config.json: tokenizer_class = '{name}'"):
        Tokenizer.load(folder)


def test_a_qwen2_without_tokenizer_json_splits_digits(tmp_path):
    folder = write(tmp_path / "qwen", "gpt2", {"tokenizer_class": "Qwen2Tokenizer"})
    ids = json.loads((folder / "vocab.json").read_text())
    ids |= {"12": len(ids), "Ġ1": len(ids) + 1}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\nh i\n1 2\nĠ 1\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("a 12 12", "12", "é\r\n\r\n  a", "it's"):
        assert ours.encode(text) == theirs.encode(text), text


def test_an_unknown_setting_is_reported_once_and_a_known_one_never(tmp_path, caplog):
    folder = write(tmp_path / "bert", "bert", {"frobnicate": 3, "padding_side": "left"})
    with caplog.at_level("WARNING", logger="bedstone.published"):
        Tokenizer.load(folder)
        Tokenizer.load(folder)
    assert [record.getMessage().count("frobnicate = 3") for record in caplog.records] == [1]
    assert str(folder / "tokenizer_config.json") in caplog.text


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_every_key_that_transformers_writes_is_known(tmp_path, kind):
    folder = write(tmp_path / kind, kind, {})
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert list(CONFIG_KEYS.unknown(written)) == []
    path = tmp_path / "saved" / "special_tokens_map.json"
    assert not path.exists() or list(MAP_KEYS.unknown(json.loads(path.read_text()))) == []


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("added_tokens", {"<new>": "x"}, r"added_tokens.json: '<new>' has the id 'x'"),
        ("added_tokens", {"<new>": -1}, "'<new>' has the id -1"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "a"}}}, "the id 'x'"),
    ],
)
def test_ids_that_are_none_are_named(tmp_path, name, values, words):
    folder = write(tmp_path / "bert", "bert", {})
    (folder / f"{name}.json").write_text(json.dumps(values))
    with pytest.raises(BedstoneError, match=words):
        Tokenizer.load(folder)
