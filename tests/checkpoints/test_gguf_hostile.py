"""GGUF files that lie: each is refused at once, in one paragraph, before memory is taken."""

import struct
import time
import tracemalloc

import pytest
from test_gguf import model_of

import bedstone
from bedstone.checkpoints.gguf import save_gguf
from bedstone.checkpoints.gguf_file import LONGEST_NAME, read_gguf
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError

U8, U32, F32, BOOL, TEXT, LIST, U64 = 0, 4, 6, 7, 8, 9, 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    save_gguf(model_of("llama", train_bpe(["the cat sat " * 40], 300)), path)
    return path.read_bytes()


def text(value) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(key, kind: int, data: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def entry(name="w", shape=(4,), kind=0, offset=0) -> bytes:
    sides = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sides + struct.pack("<IQ", kind, offset)


def file(values=(), tensors=(), *, counts=None, version=3, data=b"\0" * 64) -> bytes:
    tensor_count, value_count = counts or (len(tensors), len(values))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, value_count)
    head += b"".join(values) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


ARCHITECTURE = value("general.architecture", TEXT, text("llama"))
HUGE = 2**62
LIES = {
    "empty": (b"", "is cut off, or no GGUF file"),
    "another file": (b"PK\3\4" + b"\0" * 40, "is no GGUF file"),
    "version 1": (file(version=1), "version 1, which isn't read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + b"\0" * 9, "of another byte order"),
    "many keys": (file(counts=(0, HUGE)), "claims 4,611,686,018,427,387,904 metadata keys"),
    "many tensors": (file(counts=(HUGE, 0)), "tensors"),
    "a key without end": (file([struct.pack("<Q", HUGE)]), "a key claims"),
    "a text without end": (
        file([text("a") + struct.pack("<IQ", TEXT, 2**40)]), "a claims 1,099,511,627,776 bytes"),
    "a list without end": (
        file([value("a", LIST, struct.pack("<IQ", U32, HUGE))]), "a claims"),
    "texts without end": (
        file([value("a", LIST, struct.pack("<IQ", TEXT, 2**40))]), "a claims"),
    "a list of lists": (
        file([value("a", LIST, struct.pack("<IQ", LIST, 1) + struct.pack("<IQ", U8, 0))]),
        "lists of lists"),
    "an unknown kind": (file([value("a", 77, b"\0" * 8)]), "a is of kind 77"),
    "no UTF-8": (file([value("a", TEXT, text(b"\xff\xfe"))]), "a is not UTF-8"),
    "a key twice": (file([ARCHITECTURE, ARCHITECTURE]), "is there twice"),
    "not finite": (
        file([value("a", F32, struct.pack("<f", float("nan")))]), "a = nan; expected a finite"),
    "an alignment": (
        file([value("general.alignment", U32, struct.pack("<I", 3))]), "general.alignment = 3"),
    "no dimensions": (file([ARCHITECTURE], [entry(shape=())]), "0 dimensions"),
    "many dimensions": (file([ARCHITECTURE], [entry(shape=(1,) * 9)]), "9 dimensions"),
    "a side of nothing": (file([ARCHITECTURE], [entry(shape=(0, 4))]), r"shape \(4, 0\)"),
    "a huge side": (file([ARCHITECTURE], [entry(shape=(2**33, 2**33))]), "shape"),
    "a huge product": (file([ARCHITECTURE], [entry(shape=(2**31 - 1,) * 4)]), "is cut off"),
    "an unknown type": (file([ARCHITECTURE], [entry(kind=999)]), "unknown type 999"),
    "a type that isn't read": (
        file([ARCHITECTURE], [entry(shape=(256,), kind=16)]), "type IQ2_XXS, which isn't read"),
    "no whole blocks": (file([ARCHITECTURE], [entry(shape=(33,), kind=2)]), "blocks of 32"),
    "an offset between": (file([ARCHITECTURE], [entry(offset=7)]), "no multiple of 32"),
    "an offset past the end": (file([ARCHITECTURE], [entry(offset=2**40)]), "is cut off"),
    "an offset that wraps": (file([ARCHITECTURE], [entry(offset=2**64 - 32)]), "is cut off"),
    "one over another": (
        file([ARCHITECTURE], [entry("a", (16,)), entry("b", (16,), offset=32)]), "overlap"),
    "a tensor twice": (
        file([ARCHITECTURE], [entry("a", (8,)), entry("a", (8,), offset=32)]), "is there twice"),
    "a long name": (
        file([ARCHITECTURE], [entry("n" * (LONGEST_NAME + 1))]), "expected at most 64"),
    "no architecture": (file(), "general.architecture = None; expected one of"),
    "an unknown architecture": (
        file([value("general.architecture", TEXT, text("lama"))]), "perhaps 'llama'"),
    "an architecture of another kind": (
        file([value("general.architecture", U32, b"\1\0\0\0")]), "general.architecture = 1"),
    "no sizes": (file([ARCHITECTURE], [entry()]), "'attention.head_count' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused(name, tmp_path):
    data, fault = LIES[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(BedstoneError, match=fault) as error:
        measured(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def measured(path):
    tracemalloc.start()
    began = time.process_time()
    try:
        bedstone.load(path)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 200e6
        assert time.process_time() - began < 1


def test_a_file_cut_anywhere_is_refused(whole, tmp_path):
    path = tmp_path / "x.gguf"
    for size in [*range(0, 200, 7), *range(200, len(whole), len(whole) // 60), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(BedstoneError, match=r"cut off|claims|begins with"):
            bedstone.load(path)


# (key, what stands there, what is put there): numbers of the same size, in a file that is whole.
CHANGED = {
    "layers": ("block_count", 2, 10**9, "block_count = 1000000000, but the weights hold"),
    "fewer layers": ("block_count", 2, 1, "hold 'blk.1"),
    "no heads": ("attention.head_count", 4, 0, "attention.head_count|heads"),
    "heads": ("attention.head_count", 4, 7, "heads|head_count"),
    "width": ("embedding_length", 64, 2**31 - 1, "embedding_length = 2147483647"),
    "words": ("vocab_size", 331, 2**30, "vocab_size: 1073741824 was given; the weights' largest"),
    "fewer words": ("vocab_size", 331, 17, "tokens, its weights|vocab"),
    "rotation": ("rope.dimension_count", 16, 8, "rope.dimension_count = 8"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_sizes_that_the_weights_belie_are_refused(name, whole, tmp_path):
    key, before, after, fault = CHANGED[name]
    stored = value(f"llama.{key}", U32, struct.pack("<I", before))
    assert whole.count(stored) == 1
    path = tmp_path / "x.gguf"
    path.write_bytes(whole.replace(stored, value(f"llama.{key}", U32, struct.pack("<I", after))))
    with pytest.raises(BedstoneError, match=fault) as error:
        measured(path)
    assert str(path) in str(error.value)


def test_a_vocabulary_that_lies_is_refused(whole, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole)
    known = read_gguf(path).section("tokenizer.ggml")
    end = struct.pack("<I", known["eos_token_id"])
    merge = known["merges"][0]
    for before, after, fault in [
        (
            value("tokenizer.ggml.eos_token_id", U32, end),
            value("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 9999)),
            "eos_token_id = 9,999; expected an id below",
        ),
        (text("qwen2"), text("klngo"), "pre = 'klngo' splits text by a rule"),
        (text(merge), text(merge.replace(" ", "_")), r"merges\[0\] = "),
        (text(merge), text(f"{merge[:-1]}\x01"), "its merges don't fit each other"),
        (text(known["tokens"][1]), text(known["tokens"][2]), "twice"),
        (value("tokenizer.ggml.model", TEXT, text("gpt2")),
         value("tokenizer.ggml.model", TEXT, text("t5t5")), "model = 't5t5'"),
    ]:  # fmt: skip
        assert before in whole
        path.write_bytes(whole.replace(before, after, 1))
        with pytest.raises(BedstoneError, match=fault):
            measured(path)
