"""Weights of linear layers laid out as the engine reads them: panels of 16 outputs.

A matrix is planned first, of one layer or several, and settled in its place afterwards, some rows
at a time: a weight is brought to its precision, written and let go, so that memory holds little
besides what the engine reads.

Shapes: E outputs, D inputs, P panels, G inputs a group.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.nn.fast import kernels
from bedstone.nn.quantize import Codes

FP32, BF16, INT8, INT4 = range(4)
SIDE, DEPTH = 16, 32  # a panel's outputs, and what inputs are padded to a multiple of
BYTES = {FP32: 64, BF16: 32, INT8: 16, INT4: 8}  # of an input of a panel
MOVED = {FP32: torch.float32, BF16: torch.bfloat16}  # what stays as it is
AT_ONCE = 1 << 17  # numbers of a weight that are brought to a precision at a time
ALONE = 1 << 18  # bytes of panels below which one thread writes them


def up(count: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-count // to) * to


@dataclass(frozen=True)
class Later:
    """A weight (E, D) that is made when it is settled: merged, or quantised to so many bits.

    Attributes:
        source: what it is made of, (E, D).
        open: gives what makes some of its rows.
        group: inputs that share a scale in 4 bits.
    """

    source: Tensor
    open: Callable[[], Callable[[slice], Tensor | Codes]]
    bits: int | None = None
    group: int = 0

    @property
    def shape(self) -> torch.Size:
        return self.source.shape


@dataclass(frozen=True)
class _Part:
    """One layer's place among the panels of a matrix."""

    weight: Tensor | Codes | Later
    bias: Tensor | None
    factor: float
    rows: tuple[int, int]
    columns: tuple[int, int]
    place: slice

    def moved(self, by: int) -> "_Part":
        place = self.place
        return replace(self, place=slice(place.start + by, place.stop + by, place.step))


@dataclass(eq=False)
class Panels:
    """One matrix (E, D) for the engine, padded with zeros to whole panels.

    Attributes:
        kind: FP32, BF16, INT8 or INT4.
        outs, ins: E and D, padded.
        parts: the layers that it is made of; none once it is settled.
        group: G.
        biased: whether it has a bias.
        data: (P, bytes): fp32 (D, 16), bf16 (D / 2, 16, 2), 8 bits as code + 128 (D / 4, 16, 4), or
            two of 4 bits a byte (D / 8, 16, 4), the first four inputs low.
        scales: of 8 bits (P, 16) fp32, of 4 (P, D / G, 2, 16) fp16: steps and lowest values.
        bias: (P, 16) fp32.
    """

    kind: int
    outs: int
    ins: int
    parts: list[_Part]
    group: int = 0
    biased: bool = False
    data: Tensor | None = None
    scales: Tensor | None = None
    bias: Tensor | None = None
    struct: kernels.Weights = field(init=False)

    def __post_init__(self) -> None:
        self.struct = kernels.Weights(self.kind, self.outs, self.ins, self.group)

    @property
    def size(self) -> int:
        """Bytes of the panels alone."""
        return self.outs // SIDE * self.ins * BYTES[self.kind]

    @property
    def nbytes(self) -> int:
        """Of all that is read for a product."""
        scales = {INT8: 4 * self.outs, INT4: 4 * self.outs * self.ins // max(self.group, 1)}
        return self.size + scales.get(self.kind, 0) + 4 * self.outs * self.biased

    def settle(self, room: Tensor | None = None) -> "Panels":
        """Writes the weights, into `room` where bytes are given.

        Raises:
            BedstoneError: weights that no code stands for.
        """
        count = self.outs // SIDE
        room = torch.empty(self.size, dtype=torch.uint8) if room is None else room
        self.data = room.view(count, -1)
        if self.kind == INT8:
            self.scales = torch.zeros(count, SIDE)
        elif self.kind == INT4:
            self.scales = torch.zeros(count, self.ins // self.group, 2, SIDE, dtype=torch.half)
        if self.biased:
            self.bias = torch.zeros(count, SIDE)
        for part in self.parts:
            self._write(part)
        self.parts = []
        self.struct.data = self.data.data_ptr()
        self.struct.scales, self.struct.bias = _at(self.scales), _at(self.bias)
        return self

    @torch.no_grad()
    def _write(self, part: _Part) -> None:
        data, scales, bias = (
            None if whole is None else whole[part.place]
            for whole in (self.data, self.scales, self.bias)
        )
        assert data is not None
        if bias is not None and part.bias is not None:
            given = part.bias.detach().float()
            given = given if part.factor == 1 else given * part.factor
            bias.copy_(_columns(_spread(given, 0, part.rows), bias.numel()).view(-1, SIDE))
        weight = part.weight
        read = weight.open() if isinstance(weight, Later) else weight.__getitem__
        own, wide = part.rows if part.rows[0] != part.rows[1] else (SIDE, SIDE)
        if isinstance(weight, Codes):
            moved = part.factor == 1 and weight.bits == 8
        else:
            moved = part.factor == 1 and getattr(weight, "dtype", None) is MOVED.get(self.kind)
        some = max(1, (16 if moved else 1) * AT_ONCE // (own * self.ins))  # runs of outputs at once
        for run in range(0, -(-weight.shape[0] // own), some):
            rows = slice(run * own, (run + some) * own)
            piece = read(rows)
            to = slice(run * wide // SIDE, min((run + some) * wide // SIDE, len(data)))
            if part.factor != 1:
                if isinstance(piece, Codes):
                    piece = piece.times(part.factor)
                else:
                    piece = piece.float() * part.factor
            if isinstance(piece, Codes) and scales is not None:
                self._codes(piece, part, data[to], scales[to])
            else:
                numbers = piece.whole(torch.float32) if isinstance(piece, Codes) else piece
                self._numbers(numbers.detach(), part, data[to])

    def _numbers(self, rows: Tensor, part: _Part, room: Tensor) -> None:
        rows = rows.to(torch.float32 if self.kind == FP32 else torch.bfloat16)
        _panels(_spread(_spread(rows, 0, part.rows), 1, part.columns), room)

    def _codes(self, rows: Codes, part: _Part, room: Tensor, scales: Tensor) -> None:
        if rows.lowest is None:
            packed = _spread(_spread(rows.packed, 0, part.rows), 1, part.columns)
            _panels(packed, room, 0x80808080)  # code + 128
            steps = _spread(rows.scales.float(), 0, part.rows)[:, 0]
            scales.copy_(_columns(steps, scales.numel()).view(-1, SIDE))
            return
        codes = torch.cat((rows.packed & 15, rows.packed >> 4), 1)  # (E, D)
        fours = _spread(codes, 0, part.rows).view(torch.int32)  # four codes each, (E, D / 4)
        _panels(fours[:, ::2] | (fours[:, 1::2] << 4), room)
        steps = torch.stack((rows.scales, rows.lowest), -1).float()  # (E, D / G, 2)
        steps = _spread(steps, 0, part.rows)
        steps = F.pad(steps, (0, 0, 0, 0, 0, up(len(steps), SIDE) - len(steps)))
        scales.copy_(steps.unflatten(0, (-1, SIDE)).permute(0, 2, 3, 1))


def _panels(rows: Tensor, room: Tensor, flip: int = 0) -> None:
    """Writes rows (n, D), padded with zeros to whole panels, as these stand; `room` of theirs.

    Args:
        flip: what each 4 bytes are changed by.
    """
    bytes_of = rows.itemsize
    if rows.shape[1] * bytes_of % 4:
        rows = F.pad(rows, (0, 4 // bytes_of - rows.shape[1] % (4 // bytes_of)))
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    threads = kernels.threads() if room.numel() >= ALONE else 1
    found = kernels.library()
    assert found is not None
    found.bedstone_turn(
        rows.data_ptr(), rows.stride(0) * bytes_of, len(rows), rows.shape[1] * bytes_of // 4,
        room.data_ptr(), room.stride(0), room.shape[1] // 64, flip, threads,
    )  # fmt: skip


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor is, for a field of a structure."""
    return ctypes.c_void_p(_at(tensor))


def panels(
    weight: Tensor | Codes | Later,
    kind: int = BF16,
    *,
    bias: Tensor | None = None,
    factor: float = 1.0,
    row_spread: tuple[int, int] = (1, 1),
    column_spread: tuple[int, int] = (1, 1),
) -> Panels:
    """A weight, (E, D), in panels that are still to be settled.

    Args:
        weight: in any floating dtype, brought to `kind`, or codes, which stay as they are where
            the engine reads such groups.
        factor: of weight and bias.
        row_spread, column_spread: outputs, or inputs, come in runs of the first number and are
            padded with zeros to the second: heads whose width isn't a multiple of 16.
    """
    coded = isinstance(weight, Codes | Later) and weight.bits
    group = 0
    if coded == 8:
        kind, group = INT8, DEPTH
    elif coded == 4:
        widened = column_spread[0] != column_spread[1]
        if not widened and weight.group % DEPTH == 0:  # type: ignore[union-attr]
            kind, group = INT4, weight.group  # type: ignore[union-attr]
    rows, columns = weight.shape
    outs = up(rows // row_spread[0] * row_spread[1], SIDE)
    ins = up(columns // column_spread[0] * column_spread[1], DEPTH)
    place = slice(0, outs // SIDE, 1)
    part = _Part(weight, bias, factor, row_spread, column_spread, place)
    return Panels(kind, outs, ins, [part], group, bias is not None)


def joined(given: Sequence[Panels]) -> Panels:
    """The outputs of all, side by side; they are of one kind and read the same inputs."""
    parts: list[_Part] = []
    outs = 0
    for each in given:
        parts += [part.moved(outs // SIDE) for part in each.parts]
        outs += each.outs
    first, biased = given[0], any(each.biased for each in given)
    return Panels(first.kind, outs, first.ins, parts, first.group, biased)


def interleaved(gate: Panels, opened: Panels) -> Panels:
    """A panel of the gate, then the one that it opens, and so on: of a gated MLP."""
    both = joined((gate, opened))
    ((first,), (second,)) = gate.parts, opened.parts
    both.parts = [
        replace(part, place=slice(start, both.outs // SIDE, 2))
        for start, part in enumerate((first, second))
    ]
    return both


def _spread(weight: Tensor, dim: int, spread: tuple[int, int]) -> Tensor:
    """Runs of `spread[0]` along a dimension, each padded with zeros to `spread[1]`."""
    own, wanted = spread
    if own == wanted:
        return weight
    parts = weight.unflatten(dim, (-1, own))
    made = parts.new_zeros(*parts.shape[: dim + 1], wanted, *parts.shape[dim + 2 :])
    made.narrow(dim + 1, 0, own).copy_(parts)
    return made.flatten(dim, dim + 1)


def _columns(weight: Tensor, count: int) -> Tensor:
    """The last dimension padded with zeros to `count`."""
    more = count - weight.shape[-1]
    return F.pad(weight, (0, more)) if more else weight
