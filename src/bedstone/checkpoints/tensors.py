"""Tensors to safetensors files and back, with nothing believed that a file says of itself.

The layout is the published one: eight bytes of header length, a JSON header, the bytes of the
tensors; sharded, `model-00001-of-0000N.safetensors` beside `model.safetensors.index.json`. A file
is checked by hand before the safetensors library maps it: a hostile header is refused with a
reason, not with whatever a parser happens to raise. Pickle is never read.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.files import atomic_file, inside, write_json
from bedstone.reading import read_json

SHARD_BYTES = 5 * 2**30
HEADER_LIMIT = 100_000_000  # bytes, the format's own bound

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}

REFETCH = "Fetch or write the file again; don't use this copy."


def save_tensors(
    folder: str | Path,
    tensors: dict[str, Tensor],
    *,
    name: str = "model.safetensors",
    shard_bytes: int = SHARD_BYTES,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes tensors to `folder/name`, or to shards of at most `shard_bytes` with an index.

    Tensors that share memory are written once each: resolve ties before. Each file is written
    whole or not at all; a set of shards is whole together only inside `files.atomic_folder`.

    Raises:
        BedstoneError: a tensor has a dtype or layout that safetensors lacks; the disk refuses.
    """
    folder = Path(folder)
    metadata = {"format": "pt"} if metadata is None else metadata
    for key, tensor in tensors.items():
        plain = tensor.layout is torch.strided and not tensor.is_meta and tensor.dtype in _CODES
        if not plain or key == "__metadata__":
            raise BedstoneError(
                f"{folder / name}: tensor {key!r} can't be kept: {tensor.layout}, {tensor.dtype} "
                f"on {tensor.device}; expected dense values of a plain dtype. Convert it first."
            )
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += tensor.nbytes
    stem = name.removesuffix(".safetensors")
    index = folder / f"{name}.index.json"
    if len(shards) == 1:
        written = [name]
        _write_file(folder / name, tensors, metadata)
    else:
        count = len(shards)
        written = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        for file, shard in zip(written, shards, strict=True):
            _write_file(folder / file, shard, metadata)
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {key: file for file, s in zip(written, shards, strict=True) for key in s}
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
        written.append(index.name)
    # An earlier save may have left another number of shards: they would be read, or kept, in vain.
    for old in (folder / name, index, *folder.glob(f"{stem}-?????-of-?????.safetensors")):
        if old.name not in written:
            old.unlink(missing_ok=True)


def _write_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # By hand, since the library makes files only their owner may read, hides the error number of
    # a full disk, and wants every tensor on the CPU at once.
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    # Widest items first keeps each tensor aligned to its own item size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    end = 0
    for key, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with (
        atomic_file(path, needed=8 + len(text) + end) as temporary,
        temporary.open("wb") as file,
    ):
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in ordered:
            flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def load_tensors(folder: str | Path, *, name: str = "model.safetensors") -> dict[str, Tensor]:
    """The tensors of `folder/name` or of its shards, mapped from disk: read where touched.

    They may be changed in place; the files stay as they are.

    Raises:
        BedstoneError: no such file, only a pickled one, or a file that isn't what it says.
    """
    folder = Path(folder)
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return dict(_read(folder / name, list(read_header(folder / name))))
    if not index.is_file():
        raise BedstoneError(_absent(folder, name))
    tensors: dict[str, Tensor] = {}
    for file, keys in _shards(index).items():
        path = _contained(folder, file)
        if not path.is_file():
            raise BedstoneError(f"{path}: is missing, but {index.name} names it. {REFETCH}")
        if lacking := set(keys) - set(read_header(path)):
            raise BedstoneError(
                f"{path}: has no tensor {min(lacking)!r}, which {index.name} places there "
                f"({len(lacking)} such). {REFETCH}"
            )
        tensors.update(_read(path, keys))
    return tensors


def _read(path: Path, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for key in keys:
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise BedstoneError(f"{path}: can't be read as safetensors ({error}). {REFETCH}") from error


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


def read_header(path: str | Path) -> dict[str, dict[str, Any]]:
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
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"has dtype {str(dtype)[:40]!r}; expected one of {', '.join(DTYPES)}"
    for value in (shape, offsets):
        if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
            return f"has shape {str(shape)[:80]} and offsets {str(offsets)[:80]}; expected counts"
    if len(offsets) != 2 or len(shape) > 64:
        return f"has {len(shape)} dimensions and {len(offsets)} offsets; expected up to 64, and 2"
    if math.prod(n for n in shape if n) >= 2**63:
        return f"has shape {shape}, more than any memory"
    expected = math.prod(shape) * DTYPES[dtype].itemsize
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
