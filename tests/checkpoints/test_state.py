"""Training state comes back bit for bit, or is refused by the place of what can't be kept."""

import collections
import contextlib
import enum
import json
import math
import random
import struct
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.checkpoints.state import load_state, save_state
from bedstone.errors import BedstoneError

TORCH = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.complex64]
TORCH += [torch.complex128, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint64]
NUMPY = ["<f4", ">f8", "<i8", "|u1", "<u4", "|b1", "<c16", "<f2", "<M8[ns]", "<U3", "|S2", "|V5"]


def same(one, other) -> bool:
    """Equal in type and bit, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(same(a, b) for a, b in pairs)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, torch.Tensor):
        flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)
    if isinstance(one, (np.ndarray, np.generic)):
        return (one.dtype, one.shape) == (
            other.dtype,
            other.shape,
        ) and one.tobytes() == other.tobytes()
    return one == other


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(TORCH))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    bits = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    tensor = bits.view(dtype).reshape(shape)
    return tensor.transpose(0, -1) if draw(st.booleans()) and len(shape) > 1 else tensor


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(NUMPY)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    data = bytearray(
        count if dtype.kind in "UbM" else draw(st.binary(min_size=count, max_size=count))
    )
    array = np.ndarray(shape, dtype, data)
    return array[()] if draw(st.booleans()) and not shape else array


floats = st.floats() | st.binary(min_size=8, max_size=8).map(lambda b: struct.unpack("<d", b)[0])
numbers = st.integers() | st.integers(-(2**200), 2**200)
texts = st.text(st.characters(), max_size=8)  # lone surrogates too
scalars = st.none() | st.booleans() | numbers | floats | texts
keys = st.none() | st.booleans() | numbers | texts | st.tuples(st.integers(), texts)
nests = st.recursive(
    scalars | tensors() | arrays(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=3000)
@given(st.dictionaries(keys, nests, max_size=4))
def test_any_nest_comes_back(state):
    with tempfile.TemporaryDirectory() as folder:
        save_state(f"{folder}/state", state)
        assert same(load_state(f"{folder}/state"), state)


def test_what_training_holds(tmp_path):
    network = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95))
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    generator = np.random.default_rng(3)
    state = {
        "optimizer": optimizer.state_dict(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "generator": generator.bit_generator.state,
        "torch": torch.get_rng_state(),
        "data": {"epoch": 2, "offsets": [1, 2**63, -(2**64), 2**20_000]},
        "parameter": network.weight,
        1: "one",
        "1": "text",
    }
    save_state(tmp_path / "state", state)
    loaded = load_state(tmp_path / "state")
    assert type(loaded.pop("parameter")) is torch.Tensor
    state.pop("parameter")
    assert same(loaded, state)

    expected = (random.random(), np.random.rand(), generator.random(), torch.rand(1))
    random.setstate(loaded["python"])
    np.random.set_state(loaded["numpy"])
    generator.bit_generator.state = loaded["generator"]
    torch.set_rng_state(loaded["torch"])
    assert (random.random(), np.random.rand(), generator.random(), torch.rand(1)) == expected
    optimizer.load_state_dict(loaded["optimizer"])
    optimizer.step()


def test_ordered_dicts_come_back_as_dicts(tmp_path):
    save_state(tmp_path / "s", {"a": collections.OrderedDict(b=1)})
    assert same(load_state(tmp_path / "s"), {"a": {"b": 1}})


class Colour(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        object(),
        Colour.RED,
        Pair(1, 2),
        b"bytes",
        1j,
        collections.defaultdict(int),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        np.array([object()]),
        np.zeros(2, dtype=[("a", "i4")]),
        {(1, torch.ones(1)): 2},
    ],
)
def test_what_cannot_be_kept_is_named_by_its_place(tmp_path, value):
    save_state(tmp_path / "s", {"old": 1})
    with pytest.raises(BedstoneError, match=r"^state\['a'\]\[0\]\['b'\].* can't be kept"):
        save_state(tmp_path / "s", {"a": [{"b": value}]})
    assert load_state(tmp_path / "s") == {"old": 1}


def test_a_state_that_holds_itself(tmp_path):
    state: dict = {}
    state["again"] = state
    with pytest.raises(BedstoneError, match="holds itself"):
        save_state(tmp_path / "s", state)


def test_newer_damaged_and_missing(tmp_path):
    save_state(tmp_path / "s", {"a": torch.ones(2), "b": (1, float("nan"))})
    path = tmp_path / "s" / "state.json"
    text = path.read_text()
    path.write_text(text.replace('"schema":1', '"schema":3'))
    with pytest.raises(BedstoneError, match="schema 3, expected 1"):
        load_state(tmp_path / "s")
    with pytest.raises(BedstoneError, match="can't be read"):
        load_state(tmp_path / "nowhere")
    (tmp_path / "s" / "state.safetensors").unlink()
    path.write_text(text)
    with pytest.raises(BedstoneError, match=r"state\.safetensors"):
        load_state(tmp_path / "s")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=3)
    | st.sampled_from(["0", "|O8", "load"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "map",
                    "tuple",
                    "int",
                    "float",
                    "text",
                    "tensor",
                    "bytes",
                    "torch",
                    "numpy",
                    "shape",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=3000)
@given(json_values.map(lambda value: {"map": [["a", value]]}) | json_values)
def test_damaged_structures_are_refused(value):
    with tempfile.TemporaryDirectory() as folder:
        save_state(f"{folder}/s", {"a": torch.ones(2)})
        with open(f"{folder}/s/state.json", "w") as file:  # noqa: PTH123
            json.dump({"schema": 1, "state": value}, file)
        with contextlib.suppress(BedstoneError):
            assert isinstance(load_state(f"{folder}/s"), dict)
