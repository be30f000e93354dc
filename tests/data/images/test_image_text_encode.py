"""Text as vision-language networks read and write it."""

from pathlib import Path

import pytest
import torch

from bedstone.data.images import image_text as message_text
from bedstone.data.images.image_text import (
    BlipWords,
    as_image_text,
    padded,
    targets_of,
    train_image_text,
)
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError

TEXTS = ["a red dog on the left", "is there a dog?", "yes", "no", "two dogs and a cat"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_image_text(TEXTS * 5, 200)


def test_the_decoders_tokens_come_after_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id == tokenizer.id_of("[DEC]") == tokenizer.vocab_size - 2
    assert tokenizer.id_of("[ENC]") == tokenizer.vocab_size - 1 < 200
    assert tokenizer.pad_id == 0


def test_a_vocabulary_has_room_for_letters() -> None:
    with pytest.raises(BedstoneError, match="vocab_size: 101 is too small; expected 102"):
        train_image_text(TEXTS, 101)
    assert train_image_text(TEXTS, 102).vocab_size <= 102


def test_of_many_texts_some_are_enough_and_no_letter_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(message_text, "ENOUGH", 60)
    texts = ["is there a lighthouse?", "certainly"] * 100
    trained = train_image_text([*texts, "ß"], 300)
    assert [len(row) for row in BlipWords.of(trained, 9).plain(["lighthouse", "certainly"])] == [
        1,
        1,
    ]
    assert trained.id_of("[UNK]") not in BlipWords.of(trained, 9).read(["ß"])[0]
    assert train_image_text([*texts, "ß"], 300).fingerprint() == trained.fingerprint()


def test_what_is_read_and_what_is_written(tokenizer: Tokenizer) -> None:
    words = BlipWords.of(tokenizer, 32)
    (read,), (written,) = words.read(["A RED dog"]), words.write(["a red dog"])
    assert read[0] == tokenizer.cls_id and read[-1] == tokenizer.sep_id
    assert words.begin == (tokenizer.bos_id,)
    assert written == read[1:]
    assert tokenizer.decode(written) == "a red dog"


def test_transformers_reads_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    words = BlipWords.of(Tokenizer.load(tmp_path), 32)
    for kind in (transformers.BertTokenizer, transformers.AutoTokenizer):
        theirs = kind.from_pretrained(tmp_path)
        assert theirs(TEXTS)["input_ids"] == words.read(TEXTS)
        assert (theirs.bos_token_id, theirs.sep_token_id) == (words.begin[0], words.end)
    theirs.save_pretrained(tmp_path / "theirs")
    back = BlipWords.of(Tokenizer.load(tmp_path / "theirs"), 32)
    assert back.read(TEXTS) == words.read(TEXTS) and back.begin == words.begin


@pytest.mark.shared
def test_the_published_vocabulary_gets_blips_numbers(shared_data: Path) -> None:
    bert = Tokenizer.load(shared_data / "tokenizers" / "bert-base-uncased-vocab.txt")
    made = as_image_text(bert)
    assert (made.bos_id, made.id_of("[ENC]"), made.vocab_size) == (30522, 30523, 30524)
    assert bert.id_of("[DEC]") is None  # the one that was given stays as it was
    assert BlipWords.of(bert, 20).read(["a dog"]) == [[101, 1037, 3899, 102]]


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(BedstoneError, match=r"no cls_token, sep_token.*BERT"):
        as_image_text(train_bpe(TEXTS, 300))


def test_a_special_tokens_name_is_only_text(tokenizer: Tokenizer) -> None:
    (ids,) = BlipWords.of(tokenizer, 64).read(["a [SEP] dog"])
    assert ids.count(tokenizer.sep_id) == 1  # type: ignore[arg-type]


def test_what_does_not_fit_is_named(tokenizer: Tokenizer) -> None:
    words = BlipWords.of(tokenizer, 16)
    assert words.room == 14
    with pytest.raises(BedstoneError, match=r"^question: 'dog dog .*10,000 words.*14 at most"):
        words.read(["dog " * 10_000], what="question")
    with pytest.raises(BedstoneError, match=r"^candidate 2: is empty"):
        words.write(["yes", " "], what="candidate")
    with pytest.raises(BedstoneError, match=r"^candidate 2: .*15 words"):
        words.write(["yes", "a " * 15], what="candidate")
    with pytest.raises(BedstoneError, match="prompt"):
        BlipWords.of(tokenizer, 4, prompt="a red dog and a cat")


def test_padding() -> None:
    ids, keep = padded([[5], [6, 7, 8]], 0)
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert keep.tolist() == [[True, False, False], [True, True, True]]


def test_targets_are_shifted_and_a_prompt_is_none() -> None:
    ids, targets = targets_of(
        [[1, 20, 21], [1, 20, 21], [1, 20, 21]], [[30, 31, 2], [30, 2], []], 0
    )
    assert ids.tolist() == [[1, 20, 21, 30, 31], [1, 20, 21, 30, 0], [1, 20, 21, 0, 0]]
    nothing = -100
    assert targets.tolist() == [
        [nothing, nothing, 30, 31, 2],
        [nothing, nothing, 30, 2, nothing],
        [nothing] * 5,
    ]
    assert ids.dtype == targets.dtype == torch.int64
