import json
import multiprocessing
import random

import numpy as np
import pytest

from bedstone.data.bytes import Piece
from bedstone.data.sources import Texts, open_source
from bedstone.data.text import token_cache as tokens_module
from bedstone.data.text.token_cache import TokenSplit, token_cache
from bedstone.data.text.train_tokenizer import train_bpe, train_characters
from bedstone.errors import BedstoneError
from bedstone.files import cache_folder

TOKENIZER = train_bpe(["the cat sat on the mat and the dog did not ü 漢 " * 20], 320)


def words(count, seed=0):
    choose = random.Random(seed)
    return " ".join(choose.choice(["the", "cat", "dog ", "ü", "漢", "mat."]) for _ in range(count))


def documents(split: TokenSplit) -> list[str]:
    parts = np.split(split.tokens, split.starts[1:]) if len(split) else []
    return [TOKENIZER.decode(part) for part in parts]


@pytest.fixture
def many():
    return Texts([words(n % 60 + 1, n) for n in range(1000)], "many")


def test_every_document_is_in_one_split_in_order_with_its_end(many, tmp_path):
    cache = token_cache(many, TOKENIZER, tmp_path, validation_share=0.1)
    texts = list(many.documents())
    held = set(documents(cache.validation))
    assert documents(cache.train) == [text for text in texts if text not in held]
    assert documents(cache.validation) == [text for text in texts if text in held]
    assert 0.05 < len(held) / len(set(texts)) < 0.2
    for split in (cache.train, cache.validation):
        assert isinstance(split.tokens, np.memmap)
        assert split.tokens.dtype == np.uint16
        assert split.starts[0] == 0
        ends = np.r_[split.starts[1:], len(split)] - 1
        assert (split.tokens[ends] == TOKENIZER.eos_id).all()
        assert split.bytes == sum(len(text.encode()) for text in documents(split))
        assert split.lengths().sum() == len(split)


def test_more_data_moves_no_document(many, tmp_path):
    more = Texts([*many.documents(), *(words(20, n) for n in range(2000, 2500))], "more")
    first = token_cache(many, TOKENIZER, tmp_path).validation
    second = token_cache(more, TOKENIZER, tmp_path).validation
    assert set(documents(first)) <= set(documents(second))
    assert not set(documents(second)) & set(documents(token_cache(more, TOKENIZER, tmp_path).train))


def test_pieces_of_a_key_stay_together(tmp_path):
    pieces = [Piece(f"{n} {words(5, n)}", key=f"group {n % 100}") for n in range(1000)]
    cache = token_cache(Texts(pieces, "keyed"), TOKENIZER, tmp_path, validation_share=0.1)
    train, held = ({*documents(split)} for split in (cache.train, cache.validation))
    sides: dict[str, set[bool]] = {}
    for piece in pieces:
        sides.setdefault(piece.key, set()).add(piece.text in held and piece.text not in train)
    assert held
    assert sum(len(side) > 1 for side in sides.values()) == 0


def test_one_document_is_split_by_position_exactly(tmp_path):
    text = words(40_000)
    cache = token_cache(Texts([text], "one"), TOKENIZER, tmp_path, validation_share=0.1)
    whole = [*TOKENIZER.encode_batch([text])[0], TOKENIZER.eos_id]
    assert [*cache.train.tokens, *cache.validation.tokens] == whole
    assert len(cache.train) == round(0.9 * len(whole))
    assert cache.train.starts.tolist() == cache.validation.starts.tolist() == [0]
    assert cache.train.bytes + cache.validation.bytes == len(text.encode())
    part = TOKENIZER.decode(cache.train.tokens)
    assert abs(cache.train.bytes - len(part.encode())) < 4


@pytest.mark.parametrize("lengths", [[500, 500, 500], [10, 5000, 20], [3000] * 7])
def test_few_documents_are_split_by_position(tmp_path, lengths):
    source = Texts([words(n, i) for i, n in enumerate(lengths)], "few")
    cache = token_cache(source, TOKENIZER, tmp_path, validation_share=0.1)
    total = len(cache.train) + len(cache.validation)
    assert 0.02 < len(cache.validation) / total < 0.45
    size = sum(len(text.encode()) for text in source.documents())
    assert cache.train.bytes + cache.validation.bytes == size
    for split in (cache.train, cache.validation):
        joined = sum(len(text.encode()) for text in documents(split))
        assert abs(split.bytes - joined) < 4


def test_a_long_document_in_pieces_is_one_document(tmp_path, monkeypatch):
    text = words(600_000)
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(tokens_module, "GROUP", 1 << 19)
    cache = token_cache(open_source(tmp_path / "a.txt"), TOKENIZER, tmp_path, validation_share=0)
    assert cache.train.documents == 1
    assert len(cache.validation) == 0
    assert np.array_equal(cache.train.tokens[:-1], TOKENIZER.encode_batch([text])[0])
    assert cache.train.tokens[-1] == TOKENIZER.eos_id
    assert (cache.train.tokens[:-1] != TOKENIZER.eos_id).all()


def test_characters_of_a_text_share(tmp_path):
    text = words(5000)
    characters = train_characters([text])
    cache = token_cache(Texts([text], "c"), characters, tmp_path, validation_share=0.1)
    cut = len(cache.train)
    assert characters.decode(cache.train.tokens) == text[:cut]
    assert cache.train.bytes == len(text[:cut].encode())
    assert cache.validation.bytes == len(text[cut:].encode())


def test_a_cache_is_used_again_and_made_again_when_damaged(many, tmp_path):
    cache = token_cache(many, TOKENIZER, tmp_path)
    stamp = (cache.folder / "meta.json").stat().st_ino
    assert (
        token_cache(many, TOKENIZER, tmp_path).folder.joinpath("meta.json").stat().st_ino == stamp
    )
    expected = np.array(cache.train.tokens)
    del cache
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    with (folder / "train.tokens").open("r+b") as file:
        file.truncate(10)
    assert np.array_equal(token_cache(many, TOKENIZER, tmp_path).train.tokens, expected)
    (folder / "meta.json").write_text("{")
    assert np.array_equal(token_cache(many, TOKENIZER, tmp_path).train.tokens, expected)
    json.loads((folder / "meta.json").read_text())


def test_content_tokenizer_and_share_make_another_cache(many, tmp_path):
    other = train_bpe(["something else entirely"], 300)
    folders = {
        token_cache(many, TOKENIZER, tmp_path).folder,
        token_cache(many, other, tmp_path).folder,
        token_cache(many, TOKENIZER, tmp_path, validation_share=0.2).folder,
        token_cache(Texts(["x y " * 50], "x"), TOKENIZER, tmp_path).folder,
    }
    assert len(folders) == 4


def test_a_fault_in_the_middle_leaves_nothing(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n' * 1000 + '{"text": 3}\n')
    source = open_source(tmp_path / "rows.jsonl")
    with pytest.raises(BedstoneError, match="line 1,001"):
        token_cache(source, TOKENIZER, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_bad_arguments_and_the_default_folder(many, tmp_path, monkeypatch):
    with pytest.raises(BedstoneError, match="validation_share: 1"):
        token_cache(many, TOKENIZER, tmp_path, validation_share=1)
    with pytest.raises(BedstoneError, match="no text"):
        token_cache(Texts([""], "none"), TOKENIZER, tmp_path)
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / "tokens"
    assert token_cache(many, TOKENIZER).folder.parent == tmp_path / "tokens"


def test_progress_counts_the_bytes(many, tmp_path):
    seen = []
    token_cache(many, TOKENIZER, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == many.describe()["bytes"]


def build(folder, barrier):
    barrier.wait()
    source = Texts([words(n % 60 + 1, n) for n in range(1000)], "many")
    cache = token_cache(source, TOKENIZER, folder)
    assert int(cache.train.tokens.astype(np.int64).sum()) > 0


def test_two_processes_may_build_at_once(many, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=build, args=(tmp_path, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    fresh = token_cache(many, TOKENIZER, tmp_path / "other")
    assert np.array_equal(token_cache(many, TOKENIZER, tmp_path).train.tokens, fresh.train.tokens)
    assert len([path for path in tmp_path.iterdir() if path.name != "other"]) == 1


@pytest.mark.parametrize("value", [65, 0xFFFF])
def test_a_cache_whose_tokens_were_changed_is_made_anew(many, tmp_path, value):
    cache = token_cache(many, TOKENIZER, tmp_path, validation_share=0.1)
    whole = np.array(cache.train.tokens)
    path = cache.folder / "train.tokens"
    tokens = np.fromfile(path, "<u2")
    tokens[7] = value  # of the same size
    del cache
    tokens.tofile(path)
    again = token_cache(many, TOKENIZER, tmp_path, validation_share=0.1)
    assert np.array_equal(again.train.tokens, whole)
    (again.folder / "meta.json").write_text("[]")
    again = token_cache(many, TOKENIZER, tmp_path, validation_share=0.1)
    assert np.array_equal(again.train.tokens, whole)
