"""Tensors to safetensors files and back, with nothing believed that a file says of itself.

A file is checked by hand (`headers.py`) before the safetensors library maps it: a hostile header is
refused with a reason, not with whatever a parser happens to raise. Pickle is never read.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bedstone.checkpoints.headers import REFETCH, stored_tensors
from bedstone.checkpoints.writer import frozen, later
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file, write_json

SHARD_BYTES = 5 * 2**30

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
        later(partial(_write_file, folder / name, frozen(tensors), metadata))
    else:
        count = len(shards)
        written = [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
        for file, shard in zip(written, shards, strict=True):
            later(partial(_write_file, folder / file, frozen(shard), metadata))
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
    tensors: dict[str, Tensor] = {}
    for path, header in stored_tensors(Path(folder), name).items():
        tensors.update(_read(path, list(header)))
    return tensors


def _read(path: Path, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for key in keys:
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise BedstoneError(f"{path}: can't be read as safetensors ({error}). {REFETCH}") from error
