"""Weights of linear layers laid out as the engine reads them: panels of 16 outputs.

Shapes: E outputs, D inputs, P panels, G inputs a group.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.nn.fast import kernels
from bedstone.nn.quantize import Codes

FP32, BF16, INT8, INT4 = range(4)
SIDE, DEPTH = 16, 32  # a panel's outputs, and what inputs are padded to a multiple of


def up(count: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-count // to) * to


@dataclass(eq=False)
class Panels:
    """One matrix (E, D) for the engine, padded with zeros to whole panels.

    Attributes:
        kind: FP32, BF16, INT8 or INT4.
        outs, ins: E and D, padded.
        data: fp32 (P, D, 16), bf16 (P, D / 2, 16, 2), 8 bits as code + 128 (P, D / 4, 16, 4), or
            two of 4 bits a byte (P, D / 8, 16, 4), the first four inputs low.
        scales: of 8 bits (E,) fp32, of 4 (P, D / G, 2, 16) fp16: steps and lowest values.
        group: G.
    """

    kind: int
    outs: int
    ins: int
    data: Tensor
    scales: Tensor | None = None
    group: int = 0
    bias: Tensor | None = None
    struct: kernels.Weights = field(init=False)

    def __post_init__(self) -> None:
        self.struct = kernels.Weights(
            self.kind, self.outs, self.ins, self.group, self.data.data_ptr(), _at(self.scales),
            _at(self.bias),
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.data, self.scales, self.bias) if part is not None)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor is, for a field of a structure."""
    return ctypes.c_void_p(_at(tensor))


def panels(
    weight: Tensor | Codes,
    kind: int = BF16,
    *,
    bias: Tensor | None = None,
    row_spread: tuple[int, int] = (1, 1),
    column_spread: tuple[int, int] = (1, 1),
) -> Panels:
    """A weight, (E, D), in panels.

    Args:
        weight: in any floating dtype, brought to `kind`, or codes, which stay as they are where
            the engine reads such groups.
        row_spread, column_spread: outputs, or inputs, come in runs of the first number and are
            padded with zeros to the second: heads whose width isn't a multiple of 16.
    """
    if isinstance(weight, Codes) and weight.bits == 4:
        widened = column_spread[0] != column_spread[1]
        if widened or weight.group % DEPTH:
            weight = weight.whole(torch.float32)
    if isinstance(weight, Codes):
        if weight.bits == 4:
            return _pairs(weight, bias, row_spread)
        return _bytes(weight, bias, row_spread, column_spread)
    dtype = torch.float32 if kind == FP32 else torch.bfloat16
    spread = _spread(_spread(weight.detach().to(dtype), 0, row_spread), 1, column_spread)
    whole = _padded(spread)
    each = 1 if kind == FP32 else 2
    data = whole.view(-1, SIDE, whole.shape[1] // each, each).transpose(1, 2).contiguous()
    outs, ins = whole.shape
    return Panels(kind, outs, ins, data, bias=_bias(bias, row_spread, outs))


def _bytes(
    given: Codes,
    bias: Tensor | None,
    row_spread: tuple[int, int],
    column_spread: tuple[int, int],
) -> Panels:
    codes = _padded(_spread(_spread(given.packed, 0, row_spread), 1, column_spread))
    data = codes.view(torch.uint8).bitwise_xor(128)  # code + 128
    data = data.view(-1, SIDE, codes.shape[1] // 4, 4).transpose(1, 2).contiguous()
    scales = _spread(given.scales.float(), 0, row_spread)[:, 0]
    scales = F.pad(scales, (0, len(codes) - len(scales))).contiguous()
    outs, ins = codes.shape
    return Panels(INT8, outs, ins, data, scales, DEPTH, _bias(bias, row_spread, outs))


def _pairs(given: Codes, bias: Tensor | None, row_spread: tuple[int, int]) -> Panels:
    assert given.lowest is not None
    codes = torch.cat((given.packed & 15, given.packed >> 4), 1)  # (E, D)
    steps = torch.stack((given.scales, given.lowest), -1).float()  # (E, D / G, 2)
    codes, steps = (_spread(part, 0, row_spread) for part in (codes, steps))
    more = up(len(codes), SIDE) - len(codes)
    codes, steps = F.pad(codes, (0, 0, 0, more)), F.pad(steps, (0, 0, 0, 0, 0, more))
    pairs = codes.view(-1, SIDE, codes.shape[1] // 8, 2, 4).transpose(1, 2)  # (P, D / 8, 16, 2, 4)
    data = (pairs[..., 0, :] | (pairs[..., 1, :] << 4)).contiguous()
    halves = steps.view(-1, SIDE, *steps.shape[1:]).permute(0, 2, 3, 1).half().contiguous()
    outs, ins = codes.shape
    return Panels(INT4, outs, ins, data, halves, given.group, _bias(bias, row_spread, outs))


def joined(parts: Sequence[Panels]) -> Panels:
    """The outputs of all, side by side; they are of one kind and read the same inputs."""
    first = parts[0]
    scales = [part.scales for part in parts if part.scales is not None]
    biases = (
        [torch.zeros(part.outs) if part.bias is None else part.bias for part in parts]
        if any(part.bias is not None for part in parts)
        else []
    )
    return Panels(
        first.kind,
        sum(part.outs for part in parts),
        first.ins,
        torch.cat([part.data for part in parts]),
        torch.cat(scales) if scales else None,
        first.group,
        torch.cat(biases) if biases else None,
    )


def interleaved(gate: Panels, opened: Panels) -> Panels:
    """A panel of the gate, then the one that it opens, and so on: of a gated MLP."""
    both = joined((gate, opened))
    order = torch.arange(2 * gate.outs // SIDE).view(2, -1).T.flatten()

    def mixed(part: Tensor | None, rows: int) -> Tensor | None:
        if part is None:
            return None
        return part.unflatten(0, (-1, rows))[order].flatten(0, 1)

    scales = mixed(both.scales, SIDE if both.kind == INT8 else 1)
    data = mixed(both.data, 1)
    assert data is not None
    return Panels(both.kind, both.outs, both.ins, data, scales, both.group, mixed(both.bias, SIDE))


def _spread(weight: Tensor, dim: int, spread: tuple[int, int]) -> Tensor:
    """Runs of `spread[0]` along a dimension, each padded with zeros to `spread[1]`."""
    own, wanted = spread
    if own == wanted:
        return weight
    parts = weight.unflatten(dim, (-1, own))
    made = parts.new_zeros(*parts.shape[: dim + 1], wanted, *parts.shape[dim + 2 :])
    made.narrow(dim + 1, 0, own).copy_(parts)
    return made.flatten(dim, dim + 1)


def _padded(weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    to = (0, up(columns, DEPTH) - columns, 0, up(rows, SIDE) - rows)
    return F.pad(weight, to) if any(to) else weight.contiguous()


def _bias(bias: Tensor | None, spread: tuple[int, int], outs: int) -> Tensor | None:
    if bias is None:
        return None
    wide = _spread(bias.detach().float(), 0, spread)
    return F.pad(wide, (0, outs - len(wide))).contiguous()
