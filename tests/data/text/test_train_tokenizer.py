"""The tokenizer of CLIP's kind that pairs train."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bedstone.data.images.contrastive import text_rows
from bedstone.data.text.train_tokenizer import CLIP_END, START, train_clip
from bedstone.errors import BedstoneError
from bedstone.models.clip.network import TextConfig


def test_texts_stand_between_start_and_end(tmp_path: Path) -> None:
    texts = ["a red circle", "a blue circle left of a red star"] * 20
    tokenizer = train_clip(texts, 300)
    ids = tokenizer.encode("A red Circle", special=True)
    assert ids[0] == tokenizer.id_of(START) and ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids).strip() == "a red circle"
    assert tokenizer.eos_id == tokenizer.vocab_size - 1 == tokenizer.id_of(CLIP_END)
    assert tokenizer.decode(tokenizer.encode("naïve 漢字!")).strip() == "naïve 漢字!"
    tokenizer.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("A red Circle")["input_ids"] == ids
    config = TextConfig("clip_text_model", vocab_size=300, context=6, width=8, layers=1, heads=1)
    row = text_rows(tokenizer, ["a red circle " * 9], config)[0]
    assert len(row) == 6 and row.ids[-1] == tokenizer.eos_id


def test_too_few_ids_are_reported() -> None:
    with pytest.raises(BedstoneError, match="258 or more"):
        train_clip(["a"], 200)
