"""Marian's two tokenizers: ids, decoding and files are those of the published class."""

import io
import json
import shutil
import sys

import pytest

import bedstone
from bedstone.data.text.marian_tokenizer import load_tokenizer, train_marian
from bedstone.errors import BedstoneError
from encoder_decoders import saved

pytest.importorskip("sentencepiece")
SOURCES = [f"The cat no. {n} sat on mat {n * 7 % 13}, didn't it?" for n in range(400)]
TARGETS = [f"Die Katze Nr. {n} saß auf Matte {n * 7 % 13}, nicht wahr?" for n in range(400)]
TEXTS = [*SOURCES[:5], "  odd   spaces ", "漢字 and ½ ﬁ", ">>de<< The cat", "", "a</s>b", "x" * 300]


def sentencepiece_model(texts: list[str], size: int, kind: str = "unigram") -> bytes:
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=made,
        vocab_size=size,
        model_type=kind,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return made.getvalue()


def pieces(model: bytes) -> list[str]:
    import sentencepiece

    made = sentencepiece.SentencePieceProcessor()
    made.LoadFromSerializedProto(model)
    return [made.IdToPiece(number) for number in range(made.GetPieceSize())]


@pytest.fixture(scope="module", params=["joint", "separate", "bpe"])
def folder(request, tmp_path_factory):
    """As OPUS-MT has it: pieces that no text had are missing, languages stand among the rest."""
    place = tmp_path_factory.mktemp(request.param)
    kind = "bpe" if request.param == "bpe" else "unigram"
    source, target = (sentencepiece_model(t, 120, kind) for t in (SOURCES, TARGETS))
    (place / "source.spm").write_bytes(source)
    (place / "target.spm").write_bytes(target)
    special = ["</s>", "<unk>", ">>de<<", ">>fr<<"]
    sides = [list(dict.fromkeys([*special, *own])) for own in (pieces(source), pieces(target))]
    joint = list(dict.fromkeys(sides[0] + sides[1]))
    separate = request.param == "separate"
    lists = {"vocab.json": sides[0] if separate else joint}
    if separate:
        lists["target_vocab.json"] = sides[1]
    for name, words in lists.items():
        words = [word for word in words if word != "5"] + ["<pad>"]
        (place / name).write_text(json.dumps({word: n for n, word in enumerate(words)}))
    config = {"source_lang": "en", "target_lang": "de", "separate_vocabs": separate}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def theirs(folder):
    import transformers

    return transformers.MarianTokenizer.from_pretrained(folder)


def test_ids_and_texts_are_the_published_ones(folder, theirs):
    mine = load_tokenizer(folder)
    for text in TEXTS:
        if "</s>" in text:  # in a text the name of a special token is only text
            assert mine.eos_id not in mine.encode(text)
            continue
        assert mine.encode(text, special=True) == theirs(text)["input_ids"], text
    for text in TARGETS[:20]:
        ids = theirs(text_target=text)["input_ids"]
        assert mine.target.encode(text, special=True) == ids
        said = theirs.decode(ids, skip_special_tokens=True)
        assert mine.target.decode(ids) == said
        whole = theirs.decode(ids, skip_special_tokens=False)
        assert mine.target.decode(ids, skip_special=False) == whole.strip()
    assert mine.target.decode(mine.target.encode("Die Katze saß")) == "Die Katze saß"
    assert [row.tolist() for row in mine.encode_batch(SOURCES[:3])] == [
        mine.encode(text) for text in SOURCES[:3]
    ]


def test_saved_files_open_in_both(folder, theirs, tmp_path):
    import transformers

    mine = load_tokenizer(folder)
    mine.save(tmp_path / "o")
    again = load_tokenizer(tmp_path / "o")
    assert again.fingerprint() == mine.fingerprint() != mine.target.fingerprint()
    back = transformers.MarianTokenizer.from_pretrained(tmp_path / "o")
    for text in SOURCES[:10]:
        assert back(text)["input_ids"] == theirs(text)["input_ids"]
        assert again.encode(text) == mine.encode(text)
    assert back(text_target=TARGETS[1])["input_ids"] == mine.target.encode(TARGETS[1], special=True)


def test_an_unknown_language_is_named(folder):
    mine = load_tokenizer(folder)
    assert mine.languages == ["de", "fr"]
    with pytest.raises(BedstoneError, match=r"language code 'dee' is unknown.*'de'"):
        mine.encode(">>dee<< a cat")


def changed(folder, tmp_path):
    place = tmp_path / "changed"
    shutil.copytree(folder, place)
    return place


def test_files_of_different_models_are_refused(folder, tmp_path):
    place = changed(folder, tmp_path)
    far = sentencepiece_model(["αβγδ εζηθ ικλμ νξοπ ρστυ φχψω"] * 50, 60)
    (place / "source.spm").write_bytes(far)
    with pytest.raises(BedstoneError, match=r"source.spm: .* pieces, .* of different models"):
        load_tokenizer(place)


@pytest.mark.parametrize("name", ["target.spm", "vocab.json"])
def test_a_missing_file_is_named(folder, name, tmp_path):
    place = changed(folder, tmp_path)
    (place / name).unlink()
    with pytest.raises(BedstoneError, match=f"holds no {name}"):
        load_tokenizer(place)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("source.spm", "no model", "source.spm: can't be read"),
        ("vocab.json", '{"</s>": 0, "<unk>": 0, "<pad>": 1}', "0 to 2, each once"),
        ("vocab.json", '{"</s>": 0, "<unk>": 1}', "lacks '<pad>', the pad_token"),
        ("tokenizer_config.json", '{"separate_vocabs": 3}', "separate_vocabs = 3"),
        ("tokenizer_config.json", '{"sp_model_kwargs": {"nbest_size": 3}}', "sp_model_kwargs"),
    ],
)
def test_damaged_files_are_named(folder, name, content, words, tmp_path):
    place = changed(folder, tmp_path)
    (place / name).write_text(content)
    with pytest.raises(BedstoneError, match=words):
        load_tokenizer(place)


def test_a_whole_folder_opens_and_saves(folder, tmp_path):
    mine = load_tokenizer(folder)
    sizes = mine.vocab_size, mine.target.vocab_size
    separate = sizes[0] != sizes[1]
    case = "marian-separate" if separate else "marian"
    pad = mine.pad_id
    ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "bad_words_ids": [[pad]]}
    ids |= {"vocab_size": sizes[0], "decoder_vocab_size": sizes[1]}
    place = tmp_path / "m"
    if separate and sizes[1] <= pad:
        pytest.skip("the padding of sources is none of targets")
    saved(case, place, **ids)
    for file in folder.iterdir():
        shutil.copy(file, place)
    model = bedstone.load(place)
    assert model.tokenizer.encode(SOURCES[0]) == mine.encode(SOURCES[0])
    model.save(tmp_path / "o")
    again = bedstone.load(tmp_path / "o")
    assert again.tokenizer.fingerprint() == mine.fingerprint()
    assert again.generation["bad_words_ids"] == [[pad]]
    small = tmp_path / "small"
    saved(case, small, **{**ids, "vocab_size": pad + 1, "decoder_vocab_size": pad + 1})
    for file in folder.iterdir():
        shutil.copy(file, small)
    (small / "vocab.json").write_text(
        json.dumps({**json.loads((small / "vocab.json").read_text()), "more": sizes[0]})
    )
    with pytest.raises(BedstoneError, match="the vocabulary doesn't match the weights"):
        bedstone.load(small)


# Trained ones.

LANGUAGES = ["de", "fr"]


@pytest.mark.parametrize("separate", [False, True])
def test_trained_ones_are_those_of_the_published_class(separate, tmp_path):
    import transformers

    made = train_marian(SOURCES, TARGETS, 60, separate=separate, languages=LANGUAGES)
    assert made.separate is separate and made.languages == LANGUAGES
    sides = made, made.target
    if separate:
        assert [side.vocab_size for side in sides] == [60, 60] and made.pad_id == 2
        assert made.target.languages == []
    else:
        assert 60 < made.vocab_size == made.target.vocab_size < 120
        assert made.pad_id == made.vocab_size - 1
    assert all((side.eos_id, side.pad_id) == (0, made.pad_id) for side in sides)
    made.save(tmp_path / "o")
    again = load_tokenizer(tmp_path / "o")
    assert again.fingerprint() == made.fingerprint() and again.separate is separate
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path / "o")
    assert theirs.separate_vocabs is separate and theirs.pad_token_id == made.pad_id
    for text in (*SOURCES[:30], ">>fr<< The cat", ">>de<<The cat", "漢字", ""):
        assert made.encode(text, special=True) == theirs(text)["input_ids"], text
    for text in TARGETS[:30]:
        ids = made.target.encode(text, special=True)
        assert theirs(text_target=text)["input_ids"] == ids
        assert made.target.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
    assert made.encode(">>de<< The cat") == [made.id_of(">>de<<"), *made.encode("The cat")]


def test_training_is_the_same_each_time_and_knows_every_character():
    one, two = (train_marian(SOURCES, TARGETS, 60) for _ in range(2))
    assert one.fingerprint() == two.fingerprint()
    long = [*SOURCES[:20], f"{'a cat ' * 2000}Ω"]  # a character that stands in a long text alone
    known = train_marian(long, TARGETS, 42)
    assert known.id_of("Ω") in known.encode("a Ω")


def test_letter_case_is_folded():
    made = train_marian(SOURCES, TARGETS, 50, lowercase=True)
    assert made.encode("THE CAT") == made.encode("the cat")
    assert made.target.decode(made.target.encode("SASS, Saß")) == "sass, saß"


@pytest.mark.parametrize(
    "sources, size, message",
    [
        (SOURCES, 500, "vocab_size: 500 is too large: .* have 76 tokens a side. Set it to 76 or"),
        (SOURCES, 20, "vocab_size: 20 is too small for the characters of the sources; expected 32"),
        (SOURCES, 1, "vocab_size: 1 is too small for the characters of the sources"),
        ([], 60, "tokenizer.kind: SentencePiece can't be trained on the sources"),
    ],
)
def test_sizes_that_do_not_fit_the_texts_are_named(sources, size, message):
    with pytest.raises(BedstoneError, match=message):
        train_marian(sources, TARGETS, size, languages=LANGUAGES)


def test_the_sizes_that_messages_name_do():
    made = train_marian(SOURCES, TARGETS, 76, separate=True, languages=LANGUAGES)
    assert (made.vocab_size, made.target.vocab_size) == (72, 76)  # sources have no more pieces
    assert train_marian(SOURCES, SOURCES, 32, languages=LANGUAGES).vocab_size == 34


def test_a_folder_counts_when_all_of_it_is_there(tmp_path, monkeypatch):
    from bedstone.data.text import marian_tokenizer

    def full(path, value):
        raise OSError(28, "no space left")

    made = train_marian(SOURCES, TARGETS, 60)
    monkeypatch.setattr(marian_tokenizer, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        made.save(tmp_path)  # as where a run was killed: it goes on with a new one
    assert (tmp_path / "target.spm").is_file() and not marian_tokenizer.is_marian(tmp_path)


def test_training_without_the_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(BedstoneError, match=r"kind: marian needs the extra 'sentencepiece'"):
        train_marian(SOURCES, TARGETS, 60)
