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
_ROWS = 1 << 22  # numbers that are made of blocks at once


def whole(stored: Stored, dtype: torch.dtype | None = None) -> Tensor:
    """The numbers: of plain kinds as they are stored, of others in fp32, or in `dtype`."""
    if stored.kind in PLAIN:
        found = torch.from_numpy(np.frombuffer(stored.data, np.uint8).copy())
        found = found.view(PLAIN[stored.kind]).view(stored.shape)
        return found if dtype is None else found.to(dtype)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[stored.kind]
    made = torch.empty(stored.shape, dtype=dtype or torch.float32)
    rows = made.view(-1, stored.shape[-1])
    blocks = stored.data.reshape(len(rows), -1)
    step = max(1, _ROWS // stored.shape[-1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        rows[part] = torch.from_numpy(dequantize(blocks[part], kind))
    return made


def codes(stored: Stored) -> Codes:
    """The four-bit codes of a kind in `HELD`, with the file's own scales."""
    columns = stored.shape[-1]
    blocks = torch.from_numpy(np.frombuffer(stored.data, np.uint8).copy())
    if stored.kind == "Q4_K":
        return _codes_of_k(blocks.view(-1, 144), columns)
    size = 18 if stored.kind == "Q4_0" else 20
    blocks = blocks.view(-1, size)
    head = blocks[:, : size - 16].contiguous().view(torch.float16)
    scales = head[:, 0].view(-1, columns // 32)
    lowest = -8 * scales if stored.kind == "Q4_0" else head[:, 1].view(-1, columns // 32)
    packed = blocks[:, size - 16 :]
    numbers = torch.cat((packed & 15, packed >> 4), 1).view(-1, columns)
    return Codes(numbers, scales.contiguous(), lowest.contiguous())


def _codes_of_k(blocks: Tensor, columns: int) -> Codes:
    """Q4_K: blocks of 256 with scales and lowest values of 6 bits for each 32."""
    whole = blocks[:, :4].contiguous().view(torch.float16).float()  # (N, 2)
    packed = blocks[:, 4:16].int()
    first, second, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, (high & 15) | (first >> 6 << 4)), 1)  # (N, 8)
    lowest = torch.cat((second & 63, (high >> 4) | (second >> 6 << 4)), 1)
    pairs = blocks[:, 16:].view(-1, 4, 1, 32)
    numbers = torch.cat((pairs & 15, pairs >> 4), 2).view(-1, columns)
    groups = columns // 32
    return Codes(
        numbers,
        (whole[:, :1] * scales).view(-1, groups),
        -(whole[:, 1:] * lowest).view(-1, groups),
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
