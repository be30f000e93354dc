"""Safetensors: published layout both ways, and hostile files refused with a reason."""

import json
import os
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bedstone.checkpoints.headers import HEADER_LIMIT, SIZES, read_header
from bedstone.checkpoints.tensors import DTYPES, load_tensors, save_tensors
from bedstone.errors import BedstoneError

FILE = "model.safetensors"


def some() -> dict[str, torch.Tensor]:
    return {
        "z.weight": torch.randn(4, 3),
        "half": torch.randn(5).bfloat16(),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "turned": torch.arange(6).reshape(2, 3).T,
        "grad": torch.nn.Parameter(torch.ones(2)),
        "é ü": torch.tensor([1 + 2j]).conj(),
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k].detach(), other[k]) for k in one
    )


def test_both_ways_with_the_library(tmp_path):
    tensors = some()
    save_tensors(tmp_path, tensors)
    assert same(tensors, load_tensors(tmp_path))
    assert same(tensors, load_file(tmp_path / FILE))
    plain = {k: v.detach().resolve_conj().contiguous() for k, v in tensors.items()}
    save_file(plain, tmp_path / FILE, metadata={"format": "pt"})
    assert same(tensors, load_tensors(tmp_path))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_bit_for_bit(tmp_path, dtype):
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (24,), dtype=torch.uint8)
    save_tensors(tmp_path, {"odd": torch.ones(1, dtype=torch.uint8), "x": bits.view(dtype)})
    loaded = load_tensors(tmp_path)["x"]
    assert loaded.dtype == dtype
    assert torch.equal(loaded.view(torch.uint8), bits)


def test_sizes_of_numbers_are_those_of_torch():
    assert {code: dtype.itemsize for code, dtype in DTYPES.items()} == SIZES


def test_shards_as_published(tmp_path):
    tensors = {f"layer.{n}": torch.randn(10, 10) for n in range(5)}
    save_tensors(tmp_path, tensors, shard_bytes=900)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert index["weight_map"]["layer.4"] == "model-00003-of-00003.safetensors"
    assert same(tensors, load_tensors(tmp_path))
    save_tensors(tmp_path, tensors)  # one file again: the shards go
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    save_tensors(tmp_path, tensors, shard_bytes=900)
    assert same(tensors, load_tensors(tmp_path))
    save_tensors(tmp_path, tensors, shard_bytes=1)
    assert len(list(tmp_path.iterdir())) == 6
    for size, shards in ((799, 5), (800, 3), (1199, 3), (1200, 2), (1999, 2), (2000, 0)):
        save_tensors(tmp_path, tensors, shard_bytes=size)  # a shard may be exactly that large
        assert len(list(tmp_path.glob("model-*-of-*"))) == shards
        assert same(tensors, load_tensors(tmp_path))


def test_each_tensor_begins_at_a_multiple_of_its_items(tmp_path):
    kinds = (torch.int8, torch.float64, torch.bfloat16, torch.bool, torch.float32, torch.int16)
    save_tensors(tmp_path, {f"{n}": torch.ones(3 + n).to(kind) for n, kind in enumerate(kinds)})
    size = int.from_bytes((tmp_path / FILE).read_bytes()[:8], "little")
    assert size % 8 == 0
    for name, entry in read_header(tmp_path / FILE).items():
        assert entry["data_offsets"][0] % kinds[int(name)].itemsize == 0


def test_transformers_reads_and_writes_the_same_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=8)
    model = transformers.GPT2Model(config)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    loaded = load_tensors(tmp_path / "theirs")
    assert same(dict(model.state_dict()), loaded)
    save_tensors(tmp_path / "ours", loaded, shard_bytes=40_000)
    config.save_pretrained(tmp_path / "ours")
    again = transformers.GPT2Model.from_pretrained(tmp_path / "ours")
    assert same(dict(model.state_dict()), dict(again.state_dict()))


def test_loaded_tensors_may_be_changed_and_the_file_stays(tmp_path):
    save_tensors(tmp_path, {"x": torch.zeros(3)})
    load_tensors(tmp_path)["x"].add_(1)
    assert torch.equal(load_tensors(tmp_path)["x"], torch.zeros(3))


def test_a_file_others_may_read(tmp_path):
    before = os.umask(0o022)
    try:
        save_tensors(tmp_path, {"x": torch.zeros(3)})
    finally:
        os.umask(before)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(1).cdouble()],
)
def test_what_the_format_lacks_is_refused(tmp_path, tensor):
    with pytest.raises(BedstoneError, match="'x' can't be kept"):
        save_tensors(tmp_path, {"x": tensor})
    assert not list(tmp_path.iterdir())


def test_pickle_is_never_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(BedstoneError, match=r"pytorch_model\.bin, a pickle.*safe_serialization"):
        load_tensors(tmp_path)


def test_missing(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BedstoneError, match=r"has no model\.safetensors.*found notes\.txt"):
        load_tensors(tmp_path)
    with pytest.raises(BedstoneError, match="no such folder"):
        load_tensors(tmp_path / "nowhere")
    (tmp_path / FILE).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BedstoneError, match="git lfs pull"):
        load_tensors(tmp_path)


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


HOSTILE = {
    "empty": (b"", "truncated"),
    "seven bytes": (b"\0" * 7, "truncated"),
    "header past the end": (struct.pack("<Q", 50) + b"{}", "truncated"),
    "header of 2^64": (b"\xff" * 8 + b"{}", "truncated"),
    "no header": (raw(b""), "not valid JSON"),
    "not JSON": (raw(b"{"), "not valid JSON"),
    "bad UTF-8": (raw(b'{"\xff":1}'), "not valid JSON"),
    "deep": (raw(b"[" * 100_000), "not valid JSON"),
    "long number": (raw(b'{"a":' + b"1" * 5000 + b"}"), "not valid JSON"),
    "a list": (raw([]), "not a JSON object"),
    "duplicate key": (
        raw(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "'a' is there twice",
    ),
    "duplicate field": (
        raw(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        "'dtype' is there twice",
    ),
    "metadata": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry": (raw({"a": 1}), "isn't described"),
    "more fields": (raw({"a": entry(more=1)}, bytes(4)), "isn't described"),
    "dtype": (raw({"a": entry("F33")}, bytes(4)), "dtype 'F33'"),
    "dtype a list": (raw({"a": entry([])}, bytes(4)), "dtype"),
    "negative shape": (raw({"a": entry(shape=(-1, -1))}, bytes(4)), "expected counts"),
    "bool shape": (raw({"a": entry(shape=(True,))}, bytes(4)), "expected counts"),
    "float offset": (raw({"a": entry(offsets=(0.0, 4.0))}, bytes(4)), "expected counts"),
    "negative offset": (raw({"a": entry(offsets=(-4, 0))}, bytes(4)), "expected counts"),
    "three offsets": (raw({"a": entry(offsets=(0, 4, 4))}, bytes(4)), "3 offsets"),
    "dimensions": (raw({"a": entry(shape=(1,) * 1000)}, bytes(4)), "1000 dimensions"),
    "huge": (raw({"a": entry(shape=(2**40, 2**40))}, bytes(4)), "any memory"),
    "huge and empty": (raw({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}), "any memory"),
    "backwards": (raw({"a": entry(offsets=(4, 0))}, bytes(4)), "4 bytes, but"),
    "wrong size": (raw({"a": entry(shape=(2,))}, bytes(4)), "8 bytes, but"),
    "past the end": (raw({"a": entry()}, bytes(3)), "need 4 bytes, 3"),
    "trailing bytes": (raw({"a": entry()}, bytes(5)), "need 4 bytes, 5"),
    "hole": (raw({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)), "follows a hole"),
    "hole before": (raw({"a": entry(offsets=(1, 5))}, bytes(5)), "follows a hole"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)), "overlaps"),
    "same place": (raw({"a": entry(), "b": entry()}, bytes(4)), "overlaps"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(tmp_path, case):
    data, reason = HOSTILE[case]
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(BedstoneError, match=reason) as caught:
        load_tensors(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)
    assert "Fetch or write the file again" in str(caught.value)


def test_a_header_over_the_limit(tmp_path):
    with (tmp_path / FILE).open("wb") as file:
        file.write(struct.pack("<Q", HEADER_LIMIT + 1))
        file.truncate(HEADER_LIMIT + 100)  # sparse: takes no room
    with pytest.raises(BedstoneError, match="header claims 100,000,001 bytes"):
        load_tensors(tmp_path)


def test_every_truncation_is_refused(tmp_path):
    save_tensors(tmp_path, some())
    data = (tmp_path / FILE).read_bytes()
    for length in range(len(data)):
        (tmp_path / FILE).write_bytes(data[:length])
        with pytest.raises(BedstoneError):
            load_tensors(tmp_path)


def sharded(folder, **changes):
    """A sound pair of shards, its index changed."""
    save_tensors(folder, {"a": torch.zeros(2), "b": torch.ones(2)}, shard_bytes=8)
    index = folder / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"].update(changes)
    index.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "file",
    [
        "../out.safetensors",
        "/etc/out.safetensors",
        "sub/../../out.safetensors",
        "..\\o.safetensors",
    ],
)
def test_an_index_that_climbs_out(tmp_path, file):
    folder = tmp_path / "model"
    sharded(folder, b=file)
    save_tensors(tmp_path, {"b": torch.zeros(1)}, name="out.safetensors")
    with pytest.raises(BedstoneError, match="leads out"):
        load_tensors(folder)


def test_an_index_through_links(tmp_path):
    folder = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    sharded(folder, b="link.safetensors")
    target = folder / "model-00002-of-00002.safetensors"
    (folder / "link.safetensors").symlink_to(target.name)
    assert load_tensors(folder).keys() == {"a", "b"}
    blob = tmp_path / "models--a--b" / "blobs" / "1234"  # as a hub cache has it
    blob.parent.mkdir()
    target.rename(blob)
    (folder / "link.safetensors").unlink()
    (folder / "link.safetensors").symlink_to("../../blobs/1234")
    assert load_tensors(folder).keys() == {"a", "b"}
    blob.rename(tmp_path / "outside.safetensors")
    (folder / "link.safetensors").unlink()
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(BedstoneError, match="leads out"):
        load_tensors(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"c": "model-00001-of-00002.safetensors"}, "has no tensor 'c'"),
        ({"c": "missing.safetensors"}, "is missing, but"),
        ({"c": "pytorch_model.bin"}, "expected a .safetensors file"),
        ({"c": "n/" * 3000 + ".safetensors"}, "leads out"),
        ({"c": "\ud800.safetensors"}, "is not valid JSON"),
        ({"c": "n" * 300 + ".safetensors"}, "leads out"),
        ({"c": 3}, "expected weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path, changes, reason):
    sharded(tmp_path, **changes)
    with pytest.raises(BedstoneError, match=reason):
        load_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', "[" * 100_000])
def test_a_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BedstoneError, match=r"index\.json"):
        load_tensors(tmp_path)


numbers = st.integers(-(2**70), 2**70) | st.integers(0, 24)
junk = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "F4", "F8_E8M0"]) | junk,
        "shape": st.lists(numbers, max_size=3) | junk,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | junk,
    }
)
names = st.text(st.characters(), max_size=3) | st.just("__metadata__")
headers = st.dictionaries(names, entries | junk, max_size=3).map(json.dumps).map(str.encode)
fuzz = settings(
    max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(header=headers | st.binary(max_size=60), data=st.binary(max_size=24), lie=st.integers(-3, 3))
def test_fuzzed_headers_load_or_are_refused(tmp_path, header, data, lie):
    length = max(0, len(header) + (lie if abs(lie) == 3 else 0))
    (tmp_path / FILE).write_bytes(struct.pack("<Q", length) + header + data)
    try:
        for tensor in load_tensors(tmp_path).values():
            tensor.clone()
    except BedstoneError as error:
        assert "\n" not in str(error).strip()


@fuzz
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_changed_bytes_load_or_are_refused(tmp_path, place, value):
    plain = {"a": torch.zeros(3), "b": torch.ones(2, 2).half()}
    save_tensors(tmp_path, plain)
    data = bytearray((tmp_path / FILE).read_bytes())
    place %= len(data)
    of_header = place < len(data) - sum(tensor.nbytes for tensor in plain.values())
    before, data[place] = data[place], value
    (tmp_path / FILE).write_bytes(data)
    try:
        read_header(tmp_path / FILE)
        found = load_tensors(tmp_path)
    except BedstoneError:
        assert of_header and value != before
    else:
        raw = [tensor.view(torch.uint8) for tensor in found.values()]
        assert sum(tensor.numel() for tensor in raw) == 20
        if not of_header:
            wanted = [tensor.view(torch.uint8) for tensor in plain.values()]
            differ = sum(int((a != b).sum()) for a, b in zip(raw, wanted, strict=True))
            assert differ == (value != before)
