"""Attention over packed documents of many lengths, as a few grids of similar ones.

Documents lie end to end. Attending them one by one is many small calls; all together is a
matrix between tokens that never see each other. Here documents of similar length stand as rows
of a grid, (n, T), and each grid takes one product. Moving tokens to their cells and back is one
to one, so both ways, and both gradients, are plain row copies.

The arithmetic is written out, gradient and all, as in `nn/fast/fused.py`: torch's fused kernel
costs more than twice as much at these lengths on a CPU (measured, AVX-512). Short rows are
widened to what vector instructions hold, and their softmax goes through fp32, which is faster too.

Documents may read other rows than their own: of translations, each its source. A grid then holds
documents of which both lengths are similar.

Shapes: N tokens, M keys (N where documents read themselves), H heads, G key/value heads (G divides
H, R = H / G), W head width; n documents of a grid, T its length, S that of its keys.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bedstone.nn.dropout import apply_bits, keep_bits

LONGEST = 1024  # tokens: a grid keeps its (T x T) weights for the backward pass
_LEAST, _STEP = 16, 8  # lengths of grids: below or between these, vectors are half empty
_OVERHEAD = 2500  # what a grid more costs, in cells of T x T a document
_MOST = 1 << 16  # such cells of a grid: more fall out of the processor's cache


@dataclass(frozen=True)
class Grid:
    """Documents (by number), each a row of `length` cells, the first of which is `start`.

    Their keys stand in rows of `reach` cells, the first of which is `origin`.
    """

    start: int
    length: int
    documents: tuple[int, ...]
    origin: int
    reach: int

    def cut(self, x: Tensor, heads: int, groups: int) -> Tensor:
        """This grid's part of all cells (C * heads, W), as (n * groups, heads/groups * T, W)."""
        size = len(self.documents) * self.length
        part = x[self.start * heads : (self.start + size) * heads]
        return part.view(len(self.documents) * groups, -1, x.shape[-1])

    def cut_keys(self, x: Tensor, groups: int) -> Tensor:
        """This grid's part of all cells of keys (C * groups, W), as (n * groups, S, W)."""
        size = len(self.documents) * self.reach
        part = x[self.origin * groups : (self.origin + size) * groups]
        return part.view(len(self.documents) * groups, -1, x.shape[-1])


@dataclass(frozen=True)
class Rows:
    """Where rows of (N * heads, W) stand in the grids, whose rows run (grid, n, heads, T).

    Attributes:
        places: for each row of the grids the row it takes; padding takes its document's last.
        homes: for each of (N * heads) its row in the grids.
        pads: the rows of the grids that are padding.
    """

    places: Tensor
    homes: Tensor
    pads: Tensor


class Layout:
    """How the documents of a batch stand in grids; made once a batch, read by every layer.

    Args:
        segments: (start, end) of each document, in order, without gaps.
        device: where the tokens are.
        sources: (start, end) of what each document reads; None is itself.
    """

    def __init__(
        self,
        segments: list[tuple[int, int]],
        device: torch.device,
        sources: list[tuple[int, int]] | None = None,
    ) -> None:
        self.segments = segments
        self.sources = segments if sources is None else sources
        self.device = device
        self._rows: dict[tuple[int, bool], Rows] = {}
        self._bias: dict[tuple[Any, ...], Tensor] = {}

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document, or of the longest that is read."""
        return max(end - start for start, end in (*self.segments, *self.sources))

    @property
    def widest(self) -> int:
        """The length of the longest grid."""
        return max(max(grid.length, grid.reach) for grid in self.grids)

    @cached_property
    def grids(self) -> list[Grid]:
        """Documents sorted into grids so that padding and number of grids cost least."""
        sizes = [end - start for start, end in self.segments]
        reaches = [end - start for start, end in self.sources]
        cells = [
            (_rounded(reach), _rounded(size)) for reach, size in zip(reaches, sizes, strict=True)
        ]
        order = sorted(range(len(sizes)), key=lambda i: (*cells[i], reaches[i], sizes[i]))
        grids: list[Grid] = []
        start = origin = 0
        shapes = [cells[i] for i in order]
        for first, last in pairwise(_divided(_cuts(shapes), shapes)):
            reach, length = shapes[last - 1][0], max(size for _, size in shapes[first:last])
            grids.append(Grid(start, length, tuple(sorted(order[first:last])), origin, reach))
            start += (last - first) * length
            origin += (last - first) * reach
        return grids

    def rows(self, heads: int) -> Rows:
        """Where each token's heads stand."""
        return self._found(heads, False)

    def key_rows(self, groups: int) -> Rows:
        """Where the heads of each key stand."""
        return self._found(groups, self.sources is not self.segments)

    def _found(self, heads: int, keys: bool) -> Rows:
        if (heads, keys) not in self._rows:
            self._rows[heads, keys] = self._place(heads, keys)
        return self._rows[heads, keys]

    def _place(self, heads: int, keys: bool) -> Rows:
        head = torch.arange(heads)[:, None]  # (H, 1)
        segments = self.sources if keys else self.segments
        places, real = [], []
        for grid in self.grids:
            starts = torch.tensor([segments[i][0] for i in grid.documents])[:, None]
            lengths = _lengths(segments, grid)[:, None]
            cell = torch.arange(grid.reach if keys else grid.length)  # (T,) or (S,)
            tokens = starts + torch.minimum(cell, lengths - 1)  # (n, T)
            places.append((tokens[:, None] * heads + head).flatten())
            real.append((cell < lengths)[:, None].expand(-1, heads, -1).flatten())
        place, is_real = torch.cat(places), torch.cat(real)
        here = is_real.nonzero().flatten()
        homes = torch.empty_like(here)
        homes[place[here]] = here
        pads = (~is_real).nonzero().flatten()
        return Rows(place.to(self.device), homes.to(self.device), pads.to(self.device))

    def bias(self, grid: Grid, heads: int, groups: int, causal: bool, dtype: torch.dtype) -> Tensor:
        """Zero or minus infinity for a grid's scores, (n * G or 1, R * T or 1, S)."""
        key = (grid.start, heads, groups, causal, dtype)
        if key not in self._bias:
            length = grid.length
            if causal:  # padding comes last: no real token sees it
                hidden = torch.ones(length, length, dtype=torch.bool).triu_(1)
                hidden = hidden.repeat(heads // groups, 1)[None]
            else:
                hidden = torch.arange(grid.reach) >= _lengths(self.sources, grid)[:, None]
                hidden = hidden.repeat_interleave(groups, 0)[:, None]  # (n * G, 1, S)
            bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self._bias[key] = bias.to(self.device)
        return self._bias[key]


def _lengths(segments: list[tuple[int, int]], grid: Grid) -> Tensor:
    """Tokens of each of the grid's documents, (n,) on the CPU."""
    return torch.tensor([segments[i][1] - segments[i][0] for i in grid.documents])


def _rounded(length: int) -> int:
    return max(_LEAST, -(-length // _STEP) * _STEP)


def _cuts(shapes: list[tuple[int, int]]) -> list[int]:
    """Where to cut documents sorted by (rounded) S and T: ends of grids, from 0 to the count.

    The cheapest cut, by dynamic programming over the shapes that occur: a grid costs `_OVERHEAD`
    and S T a document.
    """
    count = len(shapes)
    ends = [0, *(i for i in range(1, count + 1) if i == count or shapes[i - 1] != shapes[i])]
    best, came = [0], [0]
    for number, end in enumerate(ends[1:], 1):
        reach, length, least = shapes[end - 1][0], 0, (0, 0)
        for start in range(number - 1, -1, -1):
            length = max(length, shapes[ends[start + 1] - 1][1])
            cost = best[start] + _OVERHEAD + (end - ends[start]) * reach * length
            if start == number - 1 or cost <= least[0]:
                least = cost, start
        best.append(least[0])
        came.append(least[1])
    cuts = [len(ends) - 1]
    while cuts[-1] > 0:
        cuts.append(came[cuts[-1]])
    return [ends[number] for number in cuts[::-1]]


def _divided(cuts: list[int], shapes: list[tuple[int, int]]) -> list[int]:
    """The cuts, and more where a grid would be larger than `_MOST`."""
    more: list[int] = []
    for first, last in pairwise(cuts):
        cells = shapes[last - 1][0] * max(length for _, length in shapes[first:last])
        more += range(first, last, max(1, _MOST // cells))
    return [*more, cuts[-1]]


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    causal: bool,
    scale: float | None = None,
    dropout: float = 0.0,
    relative: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T * scale + relative) v within each document.

    Args:
        q: queries, (N, H, W).
        k, v: keys and values, (M, G, W).
        layout: of the N tokens' documents, none longer than `LONGEST`.
        dropout: the share of attention weights to drop.
        relative: what is added to the scores by the places of query and key in their document,
            (H, L, L), L at least the layout's `widest`.

    Returns:
        (N, H, W).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    with torch.autocast(kind, enabled=False):
        return _Ragged.apply(q, k, v, layout, causal, scale, dropout, relative)


def _with_relative(bias: Tensor, relative: Tensor, grid: Grid, groups: int) -> Tensor:
    """A grid's bias with that of relative places, (n * G, R * T, S)."""
    count = len(grid.documents)
    own = relative[:, : grid.length, : grid.reach].to(bias.dtype)
    own = own.reshape(1, groups, -1, grid.reach)  # (1, G, R T, S)
    bias = bias[None] if len(bias) == 1 else bias.view(count, groups, *bias.shape[1:])
    return (bias + own).expand(count, -1, -1, -1).reshape(count * groups, -1, grid.reach)


def _through_fp32(x: Tensor) -> bool:
    """Whether softmax over x's last dimension is faster in fp32: 16 bits fill no vector."""
    return x.element_size() == 2 and x.shape[-1] % 32 != 0


def _softmax(scores: Tensor) -> Tensor:
    if _through_fp32(scores):
        return torch.softmax(scores.float(), -1).to(scores.dtype)
    return torch.softmax(scores, -1)


def _softmax_backward(gradient: Tensor, weights: Tensor) -> Tensor:
    if _through_fp32(weights):
        wide = torch._softmax_backward_data(gradient.float(), weights.float(), -1, torch.float32)
        return wide.to(weights.dtype)
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)


class _Ragged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        causal: bool,
        scale: float,
        dropout: float,
        relative: Tensor | None,
    ) -> Tensor:
        heads, groups, width = q.shape[1], k.shape[1], q.shape[2]
        many, few = layout.rows(heads), layout.key_rows(groups)
        q = q.reshape(-1, width).index_select(0, many.places)
        k, v = (x.reshape(-1, width).index_select(0, few.places) for x in (k, v))
        mixed = torch.empty_like(q)
        saved: list[Tensor] = []
        rescale = 1.0
        for grid in layout.grids:
            one_q = grid.cut(q, heads, groups)  # (n G, R T, W)
            one_k, one_v = (grid.cut_keys(x, groups) for x in (k, v))  # (n G, S, W)
            bias = layout.bias(grid, heads, groups, causal, q.dtype)
            if relative is not None:
                bias = _with_relative(bias, relative, grid, groups)
            weights = _softmax(torch.baddbmm(bias, one_q, one_k.mT, alpha=scale))  # (n G, R T, S)
            saved.append(weights)
            if dropout > 0.0:
                bits, rescale = keep_bits(weights, dropout)
                saved.append(bits)
                weights = apply_bits(weights, bits)
            torch.bmm(weights, one_v, out=grid.cut(mixed, heads, groups))
        ctx.save_for_backward(q, k, v, *saved)
        ctx.layout, ctx.scale, ctx.rescale = layout, scale, rescale
        ctx.heads, ctx.groups, ctx.drops = heads, groups, dropout > 0.0
        ctx.relative = relative.shape if relative is not None and relative.requires_grad else None
        ctx.wide = q.dtype if relative is None else relative.dtype
        out = mixed.index_select(0, many.homes).view(-1, heads, width)
        return out.mul_(rescale) if ctx.drops else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        layout, heads, groups, width = ctx.layout, ctx.heads, ctx.groups, q.shape[1]
        many, few = layout.rows(heads), layout.key_rows(groups)
        gradient = outputs[0].reshape(-1, width).index_select(0, many.places)
        gradient.index_fill_(0, many.pads, 0.0)  # padding is nobody's: its rows count nothing
        if ctx.drops:
            gradient.mul_(ctx.rescale)
        for_q, for_k, for_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        relative = None if ctx.relative is None else q.new_zeros(ctx.relative, dtype=ctx.wide)
        rest = iter(saved)
        for grid in layout.grids:
            one_q, incoming = (grid.cut(x, heads, groups) for x in (q, gradient))
            one_k, one_v = (grid.cut_keys(x, groups) for x in (k, v))
            weights = used = next(rest)
            for_weights = torch.bmm(incoming, one_v.mT)
            if ctx.drops:
                bits = next(rest)
                used, for_weights = apply_bits(weights, bits), apply_bits(for_weights, bits)
            torch.bmm(used.mT, incoming, out=grid.cut_keys(for_v, groups))
            for_scores = _softmax_backward(for_weights, weights)
            if relative is not None:
                own = for_scores.view(-1, heads, grid.length, grid.reach).sum(0, dtype=ctx.wide)
                relative[:, : grid.length, : grid.reach] += own
            torch.bmm(for_scores, one_k, out=grid.cut(for_q, heads, groups))
            torch.bmm(for_scores.mT, one_q, out=grid.cut_keys(for_k, groups))
        home_q = for_q.index_select(0, many.homes).mul_(ctx.scale).view(-1, heads, width)
        home_k = for_k.index_select(0, few.homes).mul_(ctx.scale).view(-1, groups, width)
        home_v = for_v.index_select(0, few.homes).view(-1, groups, width)
        return home_q, home_k, home_v, None, None, None, None, relative
