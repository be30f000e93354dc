"""WordPiece and RoBERTa's BPE: trained, read and written with the ids that transformers gives."""

import shutil

import pytest
import transformers

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_roberta, train_wordpiece
from bedstone.errors import BedstoneError

TEXTS = ["The cats sat; the dogs, unfriendly, barked at Zoë's unfriendliest cat! " * 20] * 3
PAIRS = [("The cat's dogs", None), ("Zoë [MASK] sat", "unfriendly 漢字 \t dogs!"), ("", None)]
TRAINED = {
    "wordpiece": lambda: train_wordpiece(TEXTS, 150),
    "cased": lambda: train_wordpiece(TEXTS, 150, lowercase=False),
    "roberta": lambda: train_roberta(TEXTS, 300),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_saved_folders_open_in_transformers_with_the_same_ids(kind, tmp_path):
    tokenizer = TRAINED[kind]()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = Tokenizer.load(tmp_path)
    for text, pair in PAIRS:
        ours = tokenizer.backend.encode(text, pair)
        found = theirs(text, pair)
        assert found["input_ids"] == ours.ids == again.backend.encode(text, pair).ids
        if kind != "roberta":
            assert found["token_type_ids"] == ours.type_ids
    for role in ("pad", "cls", "sep", "mask"):
        here = getattr(tokenizer, f"{role}_id")
        assert here is not None
        assert here == getattr(theirs, f"{role}_token_id") == getattr(again, f"{role}_id")
    assert tokenizer.special_ids == [0, 1, 2, 3, 4]


def test_what_stands_around_texts():
    bert, roberta = TRAINED["wordpiece"](), TRAINED["roberta"]()
    assert bert.backend.encode("a", "the").type_ids == [0, 0, 0, 1, 1]
    assert bert.encode("the", special=True)[0] == bert.cls_id == 2
    ids = roberta.backend.encode("a", "the").ids
    assert [number for number in ids if number < 5] == [0, 2, 2, 2]
    assert roberta.pad_id == 1  # positions count on from it
    assert roberta.decode(roberta.encode("Zoë 漢字")) == "Zoë 漢字"


@pytest.mark.parametrize("kind", TRAINED)
def test_equal_texts_give_equal_vocabularies(kind):
    prints = {TRAINED[kind]().fingerprint() for _ in range(4)}
    assert len(prints) == 1


def test_case_is_kept_where_wanted():
    assert TRAINED["cased"]().encode("The") != TRAINED["cased"]().encode("the")
    assert TRAINED["wordpiece"]().encode("THE") == TRAINED["wordpiece"]().encode("the")


@pytest.mark.parametrize("train", [train_wordpiece, train_roberta])
def test_a_vocabulary_too_small_is_refused(train):
    with pytest.raises(BedstoneError, match="too small"):
        train(TEXTS, 50)


def test_a_vocabulary_file_opens(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    for path in (tmp_path, tmp_path / "vocab.txt"):
        assert Tokenizer.load(path).encode("The CATS", special=True) == [2, 5, 6, 7, 3]
    (tmp_path / "vocab.txt").write_text("the\ncat\n")
    with pytest.raises(BedstoneError, match=r"lacks \[PAD\]"):
        Tokenizer.load(tmp_path)


@pytest.mark.shared
def test_published_vocabularies(shared_data):
    bert = Tokenizer.load(shared_data / "tokenizers" / "bert-base-uncased-vocab.txt")
    assert bert.encode("Hello, playground!", special=True) == [101, 7592, 1010, 14705, 999, 102]
    roberta = Tokenizer.load(shared_data / "tokenizers" / "roberta-base")
    assert (roberta.cls_id, roberta.pad_id, roberta.mask_id, roberta.eos_id) == (0, 1, 50264, 2)


@pytest.mark.shared
def test_published_files_without_tokenizer_json(shared_data, tmp_path):
    """RoBERTa's vocab.json and merges.txt, BERT's vocab.txt: the published ids."""
    published = shared_data / "tokenizers"
    roberta, bert = tmp_path / "roberta", tmp_path / "bert"
    for folder in (roberta, bert):
        folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(published / "roberta-base" / name, roberta)
    shutil.copy(published / "bert-base-uncased-vocab.txt", bert / "vocab.txt")
    pairs = [
        (
            Tokenizer.load(roberta),
            transformers.AutoTokenizer.from_pretrained(published / "roberta-base"),
        ),
        (Tokenizer.load(bert), transformers.BertTokenizer.from_pretrained(bert)),
    ]
    texts = ["Naïve café, ÀÉÎ! don't\t漢字 🙂 \x00\x07", "x" * 300, "a <mask> or [MASK] </s>"]
    for number, (ours, theirs) in enumerate(pairs):
        saved = tmp_path / f"saved{number}"
        ours.save(saved)
        again = transformers.AutoTokenizer.from_pretrained(saved)
        for text in texts:
            found = ours.backend.encode(text, "another é")
            for other in (theirs, again):
                assert other(text, "another é")["input_ids"] == found.ids
            if number:
                assert again(text, "another é")["token_type_ids"] == found.type_ids
        for role in ("cls", "sep", "mask", "pad"):
            assert getattr(ours, f"{role}_id") == getattr(again, f"{role}_token_id") is not None
