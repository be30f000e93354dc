import json
import shutil
import sys
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bedstone.data.bytes import LONGEST, PIECE, cuts
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import END, UNKNOWN, train_bpe, train_characters
from bedstone.errors import BedstoneError

CODE = "def f(x, *, y=10):\n\t# größer, 東京, 🙂👩‍👩‍👧\n        return x ** 2 <= y  # don't\r\n\n\n"
HARD = [
    "",
    " ",
    "    \n\t \n   x",
    CODE,
    CODE * 2_000,  # longer than a piece
    "naïve café ﷺ \u0301\u200d\ufeff\U0010ffff",
    "1234567890 3.14 1,000",
    "a" * 100_000,
    "漢字" * 20_000,
    "word " * 30_000,
]
TEXTS = st.one_of(st.text(), st.text("ab \n\t'漢é🙂.1", max_size=60))


@pytest.fixture(scope="module")
def trained():
    return train_bpe([CODE * 5, "the cat sat on the mat, and the dog didn't. " * 20], 400)


@pytest.fixture(scope="module")
def opened(trained, tmp_path_factory):
    """What transformers makes of the folder that was saved."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("trained")
    trained.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def gpt2(shared_data, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gpt2")
    shutil.copy(shared_data / "tokenizers" / "gpt2-vocab.json", folder / "vocab.json")
    shutil.copy(shared_data / "tokenizers" / "gpt2-merges.txt", folder / "merges.txt")
    return Tokenizer.load(folder), transformers.GPT2Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def llama(shared_data):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = shared_data / "tokenizers" / "llama2-tokenizer.model"
    original = sentencepiece.SentencePieceProcessor()
    original.LoadFromSerializedProto(path.read_bytes())
    return Tokenizer.load(path), original


def check_same(ours, ids_of, text):
    ids = ids_of(text)
    assert ours.encode_batch([text])[0].tolist() == ids
    assert ours.encode(text) == ids


@settings(deadline=None)
@given(TEXTS)
def test_byte_level_text_comes_back(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids, skip_special=False) == text
    if END not in text:
        assert trained.encode_batch([text, text])[1].tolist() == ids


@settings(deadline=None)
@given(TEXTS)
def test_transformers_reads_what_was_saved(trained, opened, text):
    ids = trained.encode(text)
    assert opened.encode(text) == ids == trained.encode(text, special=True)
    assert opened.decode(ids) == trained.decode(ids, skip_special=False)


def test_a_decoders_tokenizer_names_no_segments(opened):
    """transformers would hand them to GPT-2, which adds the embedding of token 0 to every word."""
    assert set(opened("the cat")) == {"input_ids", "attention_mask"}


@settings(deadline=None)
@given(st.lists(st.integers(0, 399), max_size=30))
def test_streamed_text_joins_to_the_decoded(trained, ids):
    stream = trained.streamer()
    pieces = [stream.push(number) for number in ids]
    assert "".join(pieces) + stream.flush() == trained.decode(ids)


def test_a_stream_never_shows_half_a_character(trained):
    text = "🙂 größer 漢字"
    stream = trained.streamer()
    pieces = [stream.push(number) for number in trained.encode(text)]
    assert len([piece for piece in pieces if piece]) > 3
    assert "�" not in "".join(pieces)
    assert "".join(pieces) == text
    stream.push(trained.encode("漢")[0])
    assert stream.flush() == "�"


def test_what_training_promises(trained):
    assert trained.vocab_size <= 400
    assert trained.eos_id == trained.pad_id == trained.id_of(END)
    assert trained.bos_id is None
    assert trained.encode(END) == [trained.eos_id]
    assert trained.eos_id not in trained.encode_batch([f"a{END}b"])[0]
    assert trained.decode([trained.eos_id]) == ""
    again = train_bpe([CODE * 5, "the cat sat on the mat, and the dog didn't. " * 20], 400)
    assert again.fingerprint() == trained.fingerprint()
    assert train_bpe(["other words"], 300).fingerprint() != trained.fingerprint()
    with pytest.raises(BedstoneError, match="expected 257 or more"):
        train_bpe(["x"], 256)


def test_saving_keeps_everything(trained, tmp_path):
    trained.settings["chat_template"] = "{{ messages }}"
    (tmp_path / "chat_template.jinja").write_text("old")
    trained.save(tmp_path)
    del trained.settings["chat_template"]
    loaded = Tokenizer.load(tmp_path)
    assert loaded.chat_template == "{{ messages }}"
    assert loaded.fingerprint() == trained.fingerprint()
    assert (loaded.eos_id, loaded.pad_id) == (trained.eos_id, trained.pad_id)
    assert Tokenizer.load(tmp_path / "tokenizer.json").eos_id == trained.eos_id


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_transformers_reads_it_beside_a_model(trained, tmp_path, model_type):
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (CODE, "the cat 123", "don't\n\n  stop"):
        assert opened.encode(text) == trained.encode(text)


def test_characters(tmp_path):
    text = "to be,\nor not to be 漢\t"
    ours = train_characters([text, "xyz"])
    assert ours.encode("ab")[1] == ours.encode("b")[0]
    assert ours.decode(ours.encode(text)) == text
    assert len(ours.encode(text)) == len(text)
    assert ours.vocab_size == len(set(text + "xyz")) + 2
    assert ours.encode("Q") == [ours.id_of(UNKNOWN)]
    assert ours.eos_id == ours.id_of(END)
    transformers = pytest.importorskip("transformers")
    ours.save(tmp_path)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for sample in (text, "be Q be", "  \n\n to"):
        ids = ours.encode(sample)
        assert opened.encode(sample) == ids
        assert opened.decode(ids) == ours.decode(ids, skip_special=False)
    assert Tokenizer.load(tmp_path).encode(text) == ours.encode(text)
    with pytest.raises(BedstoneError, match="empty"):
        train_characters([""])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.sampled_from(["word ", "a", "\n", " ", "漢字", "x" * 9000, "the cat "]), max_size=90
    )
)
def test_cuts_join_and_are_bounded(parts):
    text = "".join(part * 50 for part in parts)
    pieces = list(cuts(text))
    assert "".join(pieces) == text
    assert all(PIECE <= len(piece) <= LONGEST for piece in pieces[:-1])
    assert len(pieces[-1]) <= LONGEST


@pytest.mark.parametrize("unit", ["a", " ", "\n", "1", ";", "漢", "\t \n", "ab"])
def test_time_grows_no_faster_than_the_text(trained, unit):
    def seconds(length):
        began = time.process_time()
        trained.encode_batch([unit * (length // len(unit))])
        return time.process_time() - began

    seconds(100_000)
    assert seconds(1_600_000) < 50 * max(min(seconds(100_000) for _ in range(3)), 0.01)


def test_folders_without_a_whole_tokenizer(tmp_path, trained):
    with pytest.raises(BedstoneError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(BedstoneError, match="no such file"):
        Tokenizer.load(tmp_path / "missing")
    trained.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": 3}')
    with pytest.raises(BedstoneError, match="eos_token is 3"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BedstoneError, match="not valid JSON"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BedstoneError, match="can't be read as a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_configuration_adds_tokens_and_a_generation_config_names_the_end(trained, tmp_path):
    trained.save(tmp_path)
    token = {"content": "<|im_start|>", "special": True}
    config = {"added_tokens_decoder": {str(trained.vocab_size): token}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [trained.eos_id]}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eos_id == trained.eos_id
    assert loaded.encode("<|im_start|>") == [trained.vocab_size]
    assert loaded.bos_id == trained.vocab_size + 1
    assert loaded.vocab_size == trained.vocab_size + 2
    config = {"added_tokens_decoder": {"5000": token}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(BedstoneError, match=r"tokenizer_config.json: .*im_start.* id 5,000"):
        Tokenizer.load(tmp_path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(BedstoneError, match=r"pip install 'bedstone\[sentencepiece\]'"):
        Tokenizer.load(tmp_path)


def test_a_damaged_sentencepiece_model(tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff nonsense")
    with pytest.raises(BedstoneError, match="can't be read as a SentencePiece model"):
        Tokenizer.load(tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_gpt2_gives_the_published_ids(gpt2, text):
    ours, published = gpt2
    ids = published.encode(text)
    if max(map(len, text.split(" ")), default=0) < PIECE:  # a cut inside a word may show
        check_same(ours, lambda _: ids, text)
    else:
        assert ours.encode(text[:LONGEST]) == published.encode(text[:LONGEST])
    assert ours.decode(ids) == text


@pytest.mark.shared
@settings(deadline=None)
@given(TEXTS)
def test_gpt2_random(gpt2, text):
    assume(END not in text)  # a batch reads a special token's name as text
    check_same(gpt2[0], gpt2[1].encode, text)


@pytest.mark.shared
def test_gpt2_on_a_long_text(gpt2, shared_data):
    text = (shared_data / "text" / "wikitext2-valid.txt").read_text()
    check_same(gpt2[0], gpt2[1].encode, text)
    assert gpt2[0].eos_id == 50256
    assert gpt2[0].vocab_size == 50257


@pytest.mark.shared
@pytest.mark.parametrize("text", [*HARD[:-3], HARD[-1]], ids=range(len(HARD) - 2))
def test_llama2_gives_the_published_ids(llama, text):
    check_same(llama[0], llama[1].EncodeAsIds, text)
    assert llama[0].decode(llama[1].EncodeAsIds(text)) == llama[1].DecodeIds(
        llama[1].EncodeAsIds(text)
    )


@pytest.mark.shared
@settings(deadline=None)
@given(TEXTS.filter(lambda text: "\0" not in text))
def test_llama2_random(llama, text):
    check_same(llama[0], llama[1].EncodeAsIds, text)


@pytest.mark.shared
def test_llama2_on_a_long_text_and_through_transformers(llama, shared_data, tmp_path):
    ours, original = llama
    text = (shared_data / "text" / "wikitext2-valid.txt").read_text()
    assert np.array_equal(ours.encode_batch([text])[0], original.EncodeAsIds(text))
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, 32000)
    assert ours.encode("hi", special=True) == [1, *ours.encode("hi")]
    ours.save(tmp_path)
    transformers = pytest.importorskip("transformers")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert opened.encode(text) == ours.encode(text, special=True)
    ids = ours.encode(CODE)
    assert opened.decode(ids) == ours.decode(ids) == CODE
    stream = ours.streamer()
    assert "".join(stream.push(number) for number in ids) + stream.flush() == CODE


@pytest.mark.shared
@pytest.mark.parametrize("name", ["clip", "roberta-base", "t5-small"])
def test_published_folders_open_and_are_saved_whole(shared_data, tmp_path, name):
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.load(shared_data / "tokenizers" / name)
    published = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(shared_data / "tokenizers" / name / "tokenizer.json")
    )
    ours.save(tmp_path)
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello world, it's a test.", CODE, "word " * 30_000):
        ids = published.encode(text)
        assert ours.encode(text, special=True) == ids
        assert opened.encode(text) == ids


# Tokenizer files that blow a text up, or that the library gives up on.


def changed(folder, **parts):
    train_bpe(["the cat sees a dog"] * 20, 300).save(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    return path


def replaced(content, pattern="a"):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [replaced("a" * 1000)] * 4}),
        ("normalizer", {"type": "Sequence", "normalizers": [replaced("aaa")] * 4}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 65}),
        ("decoder", {"type": "Sequence", "decoders": [replaced("a" * 100)] * 2}),
    ],
)
def test_rules_that_make_very_many_letters_of_one_are_refused(tmp_path, key, rule):
    changed(tmp_path, **{key: rule})
    with pytest.raises(BedstoneError, match=rf"tokenizer\.json: {key} may make"):
        Tokenizer.load(tmp_path)


def test_rules_of_published_tokenizers_are_read(tmp_path):
    rules = [replaced("\u2581", " "), {"type": "Prepend", "prepend": "\u2581"}, {"type": "NFKC"}]
    changed(tmp_path, normalizer={"type": "Sequence", "normalizers": rules})
    assert Tokenizer.load(tmp_path).encode("the cat")


def test_a_pattern_that_is_given_up_names_the_tokenizers_file(tmp_path, capfd):
    split = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    changed(tmp_path, pre_tokenizer=split)
    tokenizer = Tokenizer.load(tmp_path)
    for read in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(BedstoneError, match=r"tokenizer\.json: .* can't make tokens of 'aaa"):
            read("a" * 60 + "!")
    assert tokenizer.encode("the cat")


@pytest.mark.parametrize("text", ["", "[]", "5", '{"version": "1.0"}', "{" * 9999])
def test_files_that_are_no_tokenizer_are_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BedstoneError, match=r"tokenizer\.json: can't be read as a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "vocabulary", ["[]", '{"a": "x"}', '{"a": -1}', '{"a": 1e9}', '{"a": true}']
)
def test_vocabularies_that_are_no_table_of_ids_are_named(tmp_path, vocabulary):
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(BedstoneError, match=r"vocab\.json"):
        Tokenizer.load(tmp_path)


def test_a_full_disk_is_an_error_of_ours(tmp_path, monkeypatch):
    from bedstone import files

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    tokenizer = train_bpe(["the cat sees a dog"] * 20, 300)
    tokenizer.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    monkeypatch.setattr(files, "_write", full)
    with pytest.raises(BedstoneError, match="No space left on device"):
        tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
