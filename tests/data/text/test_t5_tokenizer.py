"""T5's tokenizer: of its tokenizer.json, or made of its spiece.model."""

import io
import json

import pytest

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

TEXTS = [f"The cat no. {n} sat on mat {n * 7 % 13}, didn't it? Grüße ½ ﬁ" for n in range(300)]
ODD = ["  two   spaces ", "tabs\tand\nlines", "漢字 🙂", "", "a</s>b", "x" * 200, "Naïve — “q”"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bytes"])
def folder(request, tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece")
    place = tmp_path_factory.mktemp("t5")
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_writer=made,
        vocab_size=400 if request.param else 110,
        model_type="unigram",
        byte_fallback=request.param,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (place / "spiece.model").write_bytes(made.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 10, "eos_token": "</s>"}
    config |= {"pad_token": "<pad>", "unk_token": "<unk>"}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def test_ids_are_those_of_sentencepiece(folder):
    import sentencepiece

    mine = Tokenizer.load(folder)
    theirs = sentencepiece.SentencePieceProcessor()
    theirs.Load(str(folder / "spiece.model"))
    for text in [*TEXTS[:50], *ODD]:
        if "</s>" in text:
            continue
        assert mine.encode(text, special=True) == [*theirs.EncodeAsIds(text), 1], text
    assert mine.decode(theirs.EncodeAsIds(TEXTS[3])) == theirs.DecodeIds(
        theirs.EncodeAsIds(TEXTS[3])
    )
    size = theirs.GetPieceSize()
    assert (mine.pad_id, mine.eos_id, mine.vocab_size) == (0, 1, size + 10)
    assert mine.encode("<extra_id_0>") == [size + 9] and mine.encode("<extra_id_9>") == [size]


def test_it_is_saved_as_a_tokenizer_json(folder, tmp_path):
    import transformers

    mine = Tokenizer.load(folder)
    mine.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:20], *ODD]:
        assert again.encode(text, special=True) == mine.encode(text, special=True)
        if "</s>" not in text:
            assert theirs(text)["input_ids"] == mine.encode(text, special=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer_class": "PegasusTokenizer"}, "tokenizer_class = 'PegasusTokenizer'"),
        ({"extra_ids": -1}, "extra_ids = -1"),
        ({"extra_ids": "many"}, "extra_ids = 'many'"),
    ],
)
def test_settings_that_are_not_built_are_named(folder, change, words, tmp_path):
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(change))
    with pytest.raises(BedstoneError, match=words):
        Tokenizer.load(tmp_path)


def test_models_of_other_kinds_are_refused(folder, tmp_path):
    import sentencepiece

    (tmp_path / "spiece.model").write_bytes(b"no model")
    with pytest.raises(BedstoneError, match=r"spiece.model: can't be read"):
        Tokenizer.load(tmp_path)
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS), model_writer=made, vocab_size=110, model_type="bpe",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(made.getvalue())
    with pytest.raises(BedstoneError, match="expected unigrams, as in T5"):
        Tokenizer.load(tmp_path)


@pytest.mark.shared
def test_the_real_one_on_ten_thousand_sentences(shared_data):
    import transformers

    folder = shared_data / "tokenizers" / "t5-small"
    mine, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    rows = (shared_data / "multi30k-en-de" / "train.jsonl").read_text().splitlines()[:5000]
    texts = [text for row in rows for text in json.loads(row)["translation"].values()]
    assert len(texts) == 10_000
    for text in [*texts, *ODD]:
        if "</s>" not in text:
            assert mine.encode(text, special=True) == theirs(text)["input_ids"], text
    for text in texts[:500]:
        ids = mine.encode(text, special=True)
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert (mine.eos_id, mine.pad_id, mine.vocab_size) == (1, 0, 32100)
    assert mine.encode("<extra_id_0>") == [32099]
