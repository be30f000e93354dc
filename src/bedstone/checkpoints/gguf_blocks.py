"""Tensors of GGUF files: their numbers, plain or in blocks, read and written.

Blocks of quantised numbers are read and written by the library `gguf`; those in four bits can be
held as they stand, by quantised layers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.gguf_file import Stored
from bedstone.files import atomic_file
from bedstone.nn.quantize import Codes

# Four bits with a scale and a lowest value for each 32 numbers, which quantised layers hold.
HELD = ("Q4_0", "Q4_1", "Q4_K")
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ROWS = 1 << 20  # numbers that are made of blocks at once


def whole(stored: Stored, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers: of plain kinds as they are stored, of others in fp32, or in `dtype`."""
    if stored.kind in PLAIN:
        found = torch.from_numpy(stored.read())
        found = found.view(PLAIN[stored.kind]).view(stored.shape)
        return found if dtype is None else found.to(dtype)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[stored.kind]
    made = torch.empty(stored.shape, dtype=dtype or torch.float32)
    rows = made.view(-1, stored.shape[-1])
    stride, step = stored.size // len(rows), max(1, _ROWS // stored.shape[-1])
    for first in range(0, len(rows), step):
        count = min(step, len(rows) - first)
        blocks = stored.read(first * stride, count * stride).reshape(count, stride)
        rows[first : first + count] = torch.from_numpy(dequantize(blocks, kind))
    return made


def codes(stored: Stored) -> Codes:
    """The four-bit codes of a kind in `HELD`, with the file's own scales."""
    rows, groups = stored.shape[0], stored.shape[-1] // 32
    if stored.kind == "Q4_K":
        return _codes_of_k(stored.read().reshape(-1, 144), rows)
    head = 2 if stored.kind == "Q4_0" else 4  # bytes of a block before its 16 of codes
    blocks = stored.read().reshape(rows, groups, head + 16)
    halves = np.ascontiguousarray(blocks[..., :head]).view(np.float16)
    scales = torch.from_numpy(halves[..., 0].copy())
    lowest = -8 * scales if head == 2 else torch.from_numpy(halves[..., 1].copy())
    return Codes(_packed(blocks[..., head:]), scales, lowest)


def _packed(pairs: np.ndarray[Any, Any]) -> Tensor:
    """Codes as layers keep them, of (E, N, K): K bytes with codes i and i + K of 2 K numbers."""
    low = np.uint64(0x0F0F0F0F0F0F0F0F)  # of eight codes at a time: halves are whole eights
    eights = np.ascontiguousarray(pairs).view(np.uint64)
    both = (eights & low, (eights >> np.uint64(4)) & low)
    whole = np.concatenate(both, -1).reshape(len(pairs), -1)
    half = whole.shape[1] // 2
    packed = whole[:, :half] | (whole[:, half:] << np.uint64(4))
    return torch.from_numpy(packed.view(np.uint8))


def _codes_of_k(blocks: np.ndarray[Any, Any], rows: int) -> Codes:
    """Q4_K: blocks of 256 with scales and lowest values of 6 bits for each 32."""
    whole = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)  # (N, 2)
    first, second, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((first & 63, (high & 15) | (first >> 6 << 4)), 1)  # (N, 8)
    lowest = np.concatenate((second & 63, (high >> 4) | (second >> 6 << 4)), 1)
    return Codes(
        _packed(blocks[:, 16:].reshape(rows, -1, 32)),
        torch.from_numpy((whole[:, :1] * scales).reshape(rows, -1)),
        torch.from_numpy(-(whole[:, 1:] * lowest).reshape(rows, -1)),
    )


def write_gguf(
    path: Path, architecture: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor],
    kinds: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes a GGUF file whole or not at all.

    Args:
        architecture: `general.architecture`.
        values: metadata by full key: texts, bools, whole numbers (as u32), floats (as f32), and
            lists of texts, whole numbers or floats.
        tensors: by their names in GGUF.
        kinds: how each is stored; F32, F16, BF16, Q8_0, Q4_0 or Q4_1.

    Raises:
        BedstoneError: the disk refuses.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.constants import GGUFValueType

    needed = sum(tensor.numel() * 4 for tensor in tensors.values())
    with atomic_file(path, needed=needed) as temporary:
        writer = GGUFWriter(temporary, architecture)
        for key, value in values.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value:
                forms = {int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}
                writer.add_key_value(
                    key, value, GGUFValueType.ARRAY,
                    sub_type=forms.get(type(value[0]), GGUFValueType.STRING),
                )  # fmt: skip
        for name, data in _blocks(tensors, kinds):
            kind = GGMLQuantizationType[kinds[name]]
            writer.add_tensor(name, data, raw_dtype=None if data.dtype == np.float32 else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _blocks(
    tensors: Mapping[str, Tensor], kinds: Mapping[str, str]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The bytes of each tensor as its kind stores it."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        if (plain := PLAIN.get(kinds[name])) is not None:
            whole = whole.to(plain)
            if plain is torch.float32:
                yield name, whole.numpy()
            else:
                yield name, whole.view(torch.uint8).numpy()
            continue
        yield name, quantize(whole.float().numpy(), GGMLQuantizationType[kinds[name]])
