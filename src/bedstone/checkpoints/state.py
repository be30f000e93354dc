"""Training state to disk and back, exactly and without pickle.

Any nest of dict, list, tuple, int, float, bool, str, None, torch tensors and NumPy arrays: that is
what optimizers, random generators and data positions are made of. The tensors go to
`state.safetensors`, the nest to `state.json`, where numbers, texts, lists and null stand for
themselves and everything else is an object with one key that says its kind:

    {"map": [[key, value], ...]}   {"tuple": [...]}   {"int": "0x..."}   {"float": "bits"}
    {"text": "bytes"}   {"tensor": n}   {"bytes": n, "torch" | "numpy" | "scalar": dtype, "shape"}
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone import ranks
from bedstone.checkpoints.tensors import DTYPES, load_tensors, save_tensors
from bedstone.checkpoints.writer import frozen, later
from bedstone.errors import BedstoneError
from bedstone.files import atomic_folder, recover_folder, write_text
from bedstone.reading import read_json

SCHEMA = 1
SHARDED = 2  # of a state of which every rank wrote a part

_TENSORS = "state.safetensors"
_STRUCTURE = "state.json"
_U8 = torch.uint8
_PLAIN = set(DTYPES.values())  # dtypes that safetensors has a name for; others go as bytes


@dataclass(frozen=True)
class Sharded:
    """Stands in a state for a tensor of which each rank writes its rows, under this name."""

    key: str


def save_state(
    folder: str | Path, state: dict[Any, Any], shard: Mapping[str, Tensor] | None = None
) -> None:
    """Writes `state` as `folder`, whole or not at all; what the folder held before is gone.

    On several ranks rank 0 writes the state, and each its own rows of what is `Sharded` in it, into
    a folder beside it. All ranks call this.

    `load_state` gives it back bit for bit: dtypes, NaN payloads, the type of every key, tuples
    as tuples. Tensors come back on the CPU, dense and without gradient history, NumPy arrays in
    C order, an OrderedDict as a dict.

    Args:
        shard: this rank's rows, by the names that `Sharded` bears in the state.

    Raises:
        BedstoneError: a value of another type is inside, named by its place; the disk refuses.
    """
    if shard:
        name = shard_name(ranks.rank(), ranks.count())
        save_tensors(Path(folder).with_name(SHARDS), dict(shard), name=name)
    if ranks.rank():
        return
    tensors: dict[str, Tensor] = {}
    document: dict[str, Any] = {"schema": SHARDED if shard else SCHEMA}
    if shard:
        document["shards"] = ranks.count()
    try:
        nest = _encode(state, "state", tensors)
        text = json.dumps({**document, "state": nest}, separators=(",", ":"))
    except RecursionError as error:
        raise BedstoneError(
            f"{folder}: the training state holds itself or is nested too deeply to be written; "
            "keep plain, shallow values in it."
        ) from error
    tensors = frozen(tensors)

    def write() -> None:
        with atomic_folder(folder) as temporary:
            save_tensors(temporary, tensors, name=_TENSORS)
            write_text(temporary / _STRUCTURE, text)

    later(write)


def load_state(folder: str | Path) -> dict[Any, Any]:
    """The state that `save_state` wrote.

    Raises:
        BedstoneError: the folder lacks it, is damaged, or was written by a newer Bedstone.
    """
    folder = recover_folder(folder)
    path = folder / _STRUCTURE
    document = read_json(path)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema not in (SCHEMA, SHARDED):
        raise BedstoneError(
            f"{path}: has schema {schema!r}, expected {SCHEMA} or {SHARDED}. It is damaged or from "
            "a newer Bedstone: resume with the version that wrote it, or from another checkpoint."
        )
    tensors = load_tensors(folder, name=_TENSORS)
    if schema == SHARDED:
        tensors |= _joined(folder.with_name(SHARDS), document.get("shards"))
    try:
        state = _decode(document["state"], tensors)
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__} where a dict was expected")
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        # RecursionError is a RuntimeError; struct.error comes as ValueError from _decode.
        raise BedstoneError(
            f"{path}: the training state in it is damaged ({type(error).__name__}: {error}). "
            "Resume from another checkpoint."
        ) from error
    return state


SHARDS = "shards"  # the folder of the ranks' parts, beside that of the state


def shard_name(rank: int, count: int) -> str:
    """The file of a rank's part."""
    return f"shard-{rank + 1:05d}-of-{count:05d}.safetensors"


def _joined(folder: Path, count: Any) -> dict[str, Tensor]:
    """The tensors of all ranks' parts, their rows one after the other."""
    if type(count) is not int or not 0 < count < 100_000:
        raise BedstoneError(
            f"{folder}: the state says that it has {count!r} parts. It is damaged: resume from "
            "another checkpoint."
        )
    parts = [load_tensors(folder, name=shard_name(rank, count)) for rank in range(count)]
    return {key: torch.cat([part[key] for part in parts if key in part]) for key in parts[0]}


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    # Exact types: a subclass would come back as its base, which is another value.
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        # Beyond 64 bits in hexadecimal: Python bounds the length of decimal numbers it reads.
        return value if -(2**63) <= value < 2**64 else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": struct.pack("<d", value).hex()}
    if kind is str:
        return {"text": _bytes(value).hex()} if _has_surrogates(value) else value
    if kind is list:
        return [_encode(v, f"{place}[{n}]", tensors) for n, v in enumerate(value)]
    if kind is tuple:
        return {"tuple": [_encode(v, f"{place}[{n}]", tensors) for n, v in enumerate(value)]}
    if isinstance(value, dict) and kind.__name__ in {"dict", "OrderedDict"}:
        pairs = []
        for key, item in value.items():
            if not _is_key(key):
                raise _unfit(f"{place}, the key {key!r}", key)
            inner = f"{place}[{key!r}]"
            pairs.append([_encode(key, inner, tensors), _encode(item, inner, tensors)])
        return {"map": pairs}
    if isinstance(value, Sharded):
        return {"tensor": value.key}
    if isinstance(value, Tensor):
        return _encode_tensor(value, place, tensors)
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.hasobject or value.dtype.fields:
            raise _unfit(place, value)
        key = str(len(tensors))
        tensors[key] = torch.frombuffer(bytearray(value.tobytes()) or bytearray(1), dtype=_U8)
        kept = "numpy" if isinstance(value, np.ndarray) else "scalar"
        return {"bytes": key, kept: value.dtype.str, "shape": list(value.shape)}
    raise _unfit(place, value)


def _encode_tensor(value: Tensor, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise _unfit(place, value)
    key = str(len(tensors))
    if value.dtype in _PLAIN:
        tensors[key] = value
        return {"tensor": key}
    tensors[key] = value.detach().cpu().resolve_conj().contiguous().reshape(-1).view(_U8)
    name = str(value.dtype).removeprefix("torch.")
    return {"bytes": key, "torch": name, "shape": list(value.shape)}


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    kind = next(iter(node), None)
    content = node[kind]
    if kind == "map":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "int":
        return int(content, 16)
    if kind == "float":
        return _unpack(bytes.fromhex(content))
    if kind == "text":
        return bytes.fromhex(content).decode("utf-8", "surrogatepass")
    if kind == "tensor":
        return tensors[content]
    if kind == "bytes":
        return _decode_bytes(node, tensors[content])
    raise ValueError(f"unknown kind {kind!r}")


def _decode_bytes(node: dict[str, Any], data: Tensor) -> Any:
    shape = tuple(node["shape"])
    if "torch" in node:
        dtype = getattr(torch, node["torch"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown dtype {node['torch']!r}")
        return data.clone().view(dtype).reshape(shape)
    name = node.get("numpy") or node["scalar"]
    if not re.fullmatch(r"[<>|][a-zA-Z]\d+(\[\w+\])?", name):
        raise ValueError(f"unknown dtype {name!r}")
    array = np.ndarray(shape, np.dtype(name), data.numpy().copy())
    return array if "numpy" in node else array[()]


def _is_key(key: object) -> bool:
    if type(key) is tuple:
        return all(map(_is_key, key))
    return key is None or type(key) in {str, int, float, bool}


def _unpack(data: bytes) -> float:
    if len(data) != 8:
        raise ValueError(f"{len(data)} bytes for a number of 8")
    return struct.unpack("<d", data)[0]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _has_surrogates(text: str) -> bool:
    # A file name that isn't UTF-8 holds some, and JSON would join two into another character.
    return any("\ud800" <= c <= "\udfff" for c in text)


def _unfit(place: str, value: object) -> BedstoneError:
    return BedstoneError(
        f"{place}: a {type(value).__module__}.{type(value).__qualname__} can't be kept in a "
        "training state; expected dict, list, tuple, int, float, bool, str, None, a dense tensor "
        "or an array of plain numbers. Turn it into those first."
    )
