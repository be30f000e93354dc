"""Headers of safetensors files: which tensors a folder stores, checked, with no weight read.

The layout is the published one: eight bytes of header length, a JSON header, the bytes of the
tensors; sharded, `model-00001-of-0000N.safetensors` beside `model.safetensors.index.json`. Nothing
is believed that a file says of itself, and no tensor library is loaded.
"""

import json
import math
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.files import inside
from bedstone.reading import is_plain, read_json

HEADER_LIMIT = 100_000_000  # bytes, the format's own bound
REFETCH = "Fetch or write the file again; don't use this copy."

# Bytes of a number, by the names of the format.
SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "C64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}

Header = dict[str, dict[str, Any]]


def stored_tensors(folder: Path, name: str) -> dict[Path, Header]:
    """The file `folder/name` or its shards, each with the header's entries of its tensors.

    Raises:
        BedstoneError: no such file, only a pickled one, or a file that isn't what it says.
    """
    index = folder / f"{name}.index.json"
    if is_plain(folder / name):
        return {folder / name: read_header(folder / name)}
    if not is_plain(index):
        raise BedstoneError(_absent(folder, name))
    found: dict[Path, Header] = {}
    for file, keys in _shards(index).items():
        path = _contained(folder, file)
        if not is_plain(path):
            raise BedstoneError(f"{path}: is missing, but {index.name} names it. {REFETCH}")
        header = read_header(path)
        if lacking := set(keys) - set(header):
            raise BedstoneError(
                f"{path}: has no tensor {min(lacking)!r}, which {index.name} places there "
                f"({len(lacking)} such). {REFETCH}"
            )
        found.setdefault(path, {}).update({key: header[key] for key in keys})
    return found


def _shards(index: Path) -> dict[str, list[str]]:
    """File name -> its tensors, as the index says."""
    value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise BedstoneError(f"{index}: expected weight_map, tensor name to file name. {REFETCH}")
    shards: dict[str, list[str]] = {}
    for key, file in weight_map.items():
        if not file.endswith(".safetensors"):
            raise BedstoneError(
                f"{index}: places {key!r} in {file!r}; expected a .safetensors file. {REFETCH}"
            )
        shards.setdefault(file, []).append(key)
    return shards


def _contained(folder: Path, file: str) -> Path:
    """A shard inside the folder, or linked to the blobs of the same hub cache entry."""
    homes = [folder.resolve()]
    homes += [p.parent / "blobs" for p in homes[0].parents if p.name == "snapshots"]
    return inside(folder, file, linked_to=homes)


def read_header(path: str | Path) -> Header:
    """The checked header: tensor name -> its `dtype`, `shape` and `data_offsets`.

    Raises:
        BedstoneError: anything in it that the format forbids or that the file's size belies.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == b"version ":
                raise BedstoneError(f"{path}: is a Git LFS pointer, not the file: git lfs pull.")
            if size < 8 or length > size - 8:
                raise _wrong(path, f"it is truncated: {size:,} bytes, too few for its header")
            if length > HEADER_LIMIT:
                raise _wrong(path, f"its header claims {length:,} bytes, over {HEADER_LIMIT:,}")
            text = file.read(length)
    except OSError as error:
        raise BedstoneError(f"{path}: can't be read ({error.strerror}).") from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _wrong(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _wrong(path, "its __metadata__ is not a table of strings")
    for key, entry in header.items():
        if reason := _entry_fault(entry):
            raise _wrong(path, f"tensor {key!r} {reason}")
    cursor = 0
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        if begin != cursor:
            fault = "overlaps the one before it" if begin < cursor else "follows a hole"
            raise _wrong(path, f"tensor {key!r} {fault} (byte {begin:,}, expected {cursor:,})")
        cursor = end
    if cursor != size - 8 - length:
        raise _wrong(path, f"its tensors need {cursor:,} bytes, {size - 8 - length:,} are there")
    return header


def _entry_fault(entry: Any) -> str | None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "isn't described by dtype, shape and data_offsets alone"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        return f"has dtype {str(dtype)[:40]!r}; expected one of {', '.join(SIZES)}"
    for value in (shape, offsets):
        if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
            return f"has shape {str(shape)[:80]} and offsets {str(offsets)[:80]}; expected counts"
    if len(offsets) != 2 or len(shape) > 64:
        return f"has {len(shape)} dimensions and {len(offsets)} offsets; expected up to 64, and 2"
    if math.prod(n for n in shape if n) >= 2**63:
        return f"has shape {shape}, more than any memory"
    expected = math.prod(shape) * SIZES[dtype]
    if offsets[1] - offsets[0] != expected:
        return f"is {dtype} {shape}, {expected:,} bytes, but its offsets are {offsets}"
    return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return value


def _wrong(path: Path, reason: str) -> BedstoneError:
    return BedstoneError(f"{path}: is not a sound safetensors file: {reason}. {REFETCH}")


def _absent(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"{folder}: there is no such folder; expected one with {name}."
    names = sorted(path.name for path in folder.iterdir())
    pickles = [n for n in names if Path(n).suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    if pickles:
        return (
            f"{folder}: has its weights only as {pickles[0]}, a pickle, which can run code when "
            "read and is never read here. If you trust it, convert it once: open it with "
            "transformers (AutoModel.from_pretrained) and save_pretrained(folder, "
            "safe_serialization=True), then use that folder."
        )
    found = ", ".join(names[:10]) or "nothing"
    return f"{folder}: has no {name} and no {name}.index.json; found {found}. Check the path."
