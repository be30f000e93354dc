"""Self- and cross-attention with grouped heads.

Shapes: B batch, T queries, K keys, S memory, D width, H query heads, G key/value heads
(G divides H), W head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.nn.blocks import Context
from bedstone.nn.cache import LayerCache
from bedstone.nn.fast.fused import attention, attention_pays
from bedstone.nn.fast.ragged import LONGEST, ragged_attention
from bedstone.nn.masks import Causal, Documents, Full, Mask, Padding, Sources, with_window
from bedstone.nn.positions import rotate

# Packed documents that are too long for grids of similar lengths (nn/fast/ragged.py) are attended
# one by one when they are at least this long on average: below, one dense call costs less than
# many small ones (measured on a CPU, context 256).
SEGMENT_TOKENS = 48
LONG_ALONE = 128  # the same without a gradient to keep, whether they fit grids or not


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    *,
    slots: Tensor | None = None,
    bias: Tensor | None = None,
    relative: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k^T * scale + bias) v (Vaswani et al., 2017, equation 1), where `mask` allows.

    Args:
        q: queries, (B, H, T, W).
        k, v: keys and values, (B, G, K, W).
        mask: symbolic; made dense only if no fused path fits.
        slots: slots of the queries, (B or 1, T); None says that they start at 0.
        bias: added to the scores, (1 or B, H, T, K).
        relative: of packed documents, added to the scores by the places of query and key in each,
            (H, L, L), L the `widest` of the mask's layout; not where a graph is compiled.

    Returns:
        (B, H, T, W).
    """
    length, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    fused = partial(
        F.scaled_dot_product_attention, dropout_p=dropout, scale=scale, enable_gqa=grouped
    )
    from_start = slots is None and length == keys
    biased = bias is not None or relative is not None
    full, plain = isinstance(mask, Full), not biased and dropout == 0.0
    if full and plain and attention_pays(q, k, v, causal=False):
        return attention(q, k, v, scale, causal=False)
    if length == 1 and dropout == 0.0 and relative is None:
        return _attend_one(q, k, v, mask, slots, bias, scale)
    if not biased:
        wide = isinstance(mask, Causal) and (mask.window is None or mask.window >= keys)
        if full or (wide and from_start):
            if plain and not full and attention_pays(q, k, v):
                return attention(q, k, v, scale, causal=True)
            return fused(q, k, v, is_causal=not full)
        if isinstance(mask, Padding) and dropout == 0.0 and attention_pays(q, k, v):
            return attention(q, k, v, scale, causal=False, keep=mask.keep)
    # A compiled graph can't depend on where documents end.
    if bias is None and not torch.compiler.is_compiling():
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
        if isinstance(mask, Sources):
            way = _attend_grids if mask.layout.longest <= LONGEST else _attend_documents
            return way(q, k, v, mask, scale, dropout)
        if isinstance(mask, Documents) and from_start:
            if _in_grids(mask, learns):
                return _attend_grids(q, k, v, mask, scale, dropout, relative)
            few = len(mask.segments) * SEGMENT_TOKENS <= mask.numbers.numel()
            if few or relative is not None:
                return _attend_documents(q, k, v, mask, scale, dropout, relative)
    if slots is None:
        slots = torch.arange(length, device=q.device)[None]
    dense = mask.dense(slots, torch.arange(keys, device=q.device))
    if dense is not None:
        dense = dense[:, None]  # one for all heads
    if bias is not None:
        dense = _masked(bias, dense)
        dense = dense.to(q.dtype)
    return fused(q, k, v, attn_mask=dense)


def _attend_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    slots: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """One query a row: decoding. Heads that share keys stand as rows of one product."""
    dense = None
    if isinstance(mask, Causal) and slots is not None and len(slots) == 1:
        if mask.window is not None:  # the last token sees the window before it, and all of it
            k, v = k[:, :, -mask.window :], v[:, :, -mask.window :]
            bias = None if bias is None else bias[..., -mask.window :]
    elif not isinstance(mask, Full):
        if slots is None:
            slots = torch.zeros(1, 1, dtype=torch.long, device=q.device)
        dense = mask.dense(slots, torch.arange(k.shape[2], device=q.device))
    if dense is not None:
        dense = dense[:, None]  # (B or 1, 1, 1, K), one for all heads
    if bias is not None:
        bias = bias.to(q.dtype).reshape(len(bias), k.shape[1], -1, k.shape[2])
        dense = _masked(bias, dense)
    folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # (B, G, H / G, W)
    mixed = F.scaled_dot_product_attention(folded, k, v, attn_mask=dense, scale=scale)
    return mixed.reshape(q.shape)


def _masked(bias: Tensor, seen: Tensor | None) -> Tensor:
    """A bias with minus infinity where a key isn't seen."""
    return bias if seen is None else bias.masked_fill(~seen, float("-inf"))


def _in_grids(mask: Documents, learns: bool) -> bool:
    """Whether documents may stand in grids: none is too long, or longer than the window.

    Without a gradient to keep, torch's fused kernel is the faster for long ones.
    """
    longest = mask.layout.longest
    if mask.window is not None and mask.window < longest:
        return False
    short = len(mask.segments) * LONG_ALONE >= mask.numbers.numel()
    return longest <= LONGEST and (learns or short)


def _attend_grids(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Documents | Sources,
    scale: float | None,
    dropout: float,
    relative: Tensor | None = None,
) -> Tensor:
    """Packed documents in grids of similar lengths."""
    batch, _, length, width = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B T, H or G, W)
    causal = isinstance(mask, Documents) and (mask.causal or mask.window is not None)
    mixed = ragged_attention(
        q, k, v, mask.layout, causal=causal, scale=scale, dropout=dropout, relative=relative
    )
    return mixed.view(batch, length, -1, width).transpose(1, 2)


def _attend_documents(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Documents | Sources,
    scale: float | None,
    dropout: float,
    relative: Tensor | None = None,
) -> Tensor:
    """Each packed document by itself: no T x T matrix, and no work between documents."""
    batch, _, length, width = q.shape
    one: Mask = Full()
    if isinstance(mask, Documents):
        one = Causal(mask.window) if mask.causal else with_window(one, mask.window)
    own, read = (
        [end - start for start, end in segments]
        for segments in (mask.layout.segments, mask.layout.sources)
    )
    parts = [
        x.transpose(1, 2).flatten(0, 1).split(sizes)  # (n, H, W) each
        for x, sizes in ((q, own), (k, read), (v, read))
    ]
    out = []
    for one_q, one_k, one_v in zip(*parts, strict=True):
        one_q, one_k, one_v = (x.transpose(0, 1)[None] for x in (one_q, one_k, one_v))
        size = one_q.shape[2]
        bias = None if relative is None else relative[None, :, :size, :size]
        mixed = attend(one_q, one_k, one_v, one, bias=bias, scale=scale, dropout=dropout)
        out.append(mixed[0].transpose(0, 1))
    return torch.cat(out).view(batch, length, -1, width).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens over themselves, (B, T, D) to (B, T, D).

    Grouped key/value heads (Ainslie et al., 2023), an optional norm on each head's queries
    and keys (Henry et al., 2020), an optional sliding window (Beltagy et al., 2020). Reads
    `mask`, `rotation`, `bias`, `relative` and `cache` of the context.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = False,
        out_bias: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        window: int | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        self.head_width = head_width or width // heads
        self.q = nn.Linear(width, heads * self.head_width, bias=bias)
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.out = nn.Linear(heads * self.head_width, width, bias=out_bias)
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.window = window
        self.scale = scale
        self.dropout = dropout

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, W), keys and values (B, G, T, W), in their positions."""
        q = self.q_norm(_heads(self.q(x), self.head_width))  # (B, T, H, W)
        k = self.k_norm(_heads(self.k(x), self.head_width))  # (B, T, G, W)
        v = _heads(self.v(x), self.head_width).transpose(1, 2)  # (B, G, T, W)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        if context.rotation is not None:
            q, k = rotate(q, context.rotation), rotate(k, context.rotation)
        return q, k, v

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return self.out(self.mix(x, context))

    def mix(self, x: Tensor, context: Context) -> Tensor:
        """What each token takes from all, (B, T, H * W): all but the last product."""
        q, k, v = self.project(x, context)
        slots = None
        if isinstance(context.cache, LayerCache):
            if context.cache.owner.length > 0:
                slots = context.cache.owner.slots(x.shape[1])
            k, v = context.cache.append(k, v)
        mixed = attend(
            q,
            k.to(q.dtype),
            v.to(q.dtype),
            with_window(context.mask, self.window),
            slots=slots,
            bias=context.bias,
            relative=context.relative,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return mixed.transpose(1, 2).flatten(2)

    def weights(self, x: Tensor, context: Context) -> Tensor:
        """softmax(q k^T * scale + bias) where the mask allows, without a cache, fp32 (B, H, T, T).

        A bias of packed documents, `context.relative`, is left out.
        """
        q, k, _ = self.project(x, context)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q.float() @ k.float().transpose(-1, -2) * (self.scale or self.head_width**-0.5)
        if context.bias is not None:
            scores = scores + context.bias
        slots = torch.arange(x.shape[1], device=x.device)
        mask = with_window(context.mask, self.window).dense(slots[None], slots)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1)


def check_memory(memories: int, rows: int) -> None:
    """Raises BedstoneError unless as many neighbouring rows read each memory."""
    if not memories or rows % memories:
        raise BedstoneError(
            f"memory: {memories} were given for {rows} rows of text; expected as many, or "
            "a number that divides it: neighbouring rows share one."
        )


class CrossAttention(nn.Module):
    """Attention of tokens (B, T, D) over the context's memory (B, S, memory width).

    With a cache the memory is projected to keys and values once a request, not once a step. Rows
    may share a memory: of B = m P rows over P memories (P, S, memory width), row i reads memory
    i // m. Their queries then stand side by side, and the memory is neither projected nor read
    more than once: several questions on a picture, the beams of a caption.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        memory_width: int | None = None,
        kv_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = False,
        out_bias: bool = False,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        memory_width = memory_width or width
        self.head_width = head_width or width // heads
        self.q = nn.Linear(width, heads * self.head_width, bias=bias)
        self.k = nn.Linear(memory_width, kv_heads * self.head_width, bias=bias)
        self.v = nn.Linear(memory_width, kv_heads * self.head_width, bias=bias)
        self.out = nn.Linear(heads * self.head_width, width, bias=out_bias)
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor, context: Context) -> Tensor:
        k, v = self._memory(context)
        q = _heads(self.q(x), self.head_width)  # (B, T, H, W)
        q = q.reshape(len(k), -1, *q.shape[2:]).transpose(1, 2)  # (P, H, m * T, W)
        mixed = attend(
            q,
            k,
            v,
            context.memory_mask,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        mixed = mixed.transpose(1, 2).flatten(2)  # (P, m * T, H * W)
        return self.out(mixed.view(*x.shape[:2], -1))

    def weights(self, x: Tensor, context: Context) -> Tensor:
        """softmax(q k^T * scale) where the memory's mask allows, fp32 (B, H, T, S)."""
        k, _ = self._memory(context)
        q = _heads(self.q(x), self.head_width).transpose(1, 2).float()  # (B, H, T, W)
        each = len(q) // len(k)  # rows that share a memory
        k = k.float().repeat_interleave(each, 0).repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q @ k.transpose(-1, -2) * (self.scale or self.head_width**-0.5)
        slots = torch.arange(k.shape[2], device=k.device)
        mask = context.memory_mask.dense(torch.arange(q.shape[2], device=k.device)[None], slots)
        if mask is not None:  # (1 or P, 1 or T, S), which rows share
            mask = mask.repeat_interleave(each, 0) if len(mask) > 1 else mask
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        return scores.softmax(-1)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory (P, S, memory width), each (P, S, G, W)."""
        return _heads(self.k(memory), self.head_width), _heads(self.v(memory), self.head_width)

    def _memory(self, context: Context) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, each (P, G, S, W)."""
        cache = context.cache if isinstance(context.cache, LayerCache) else None
        if cache is not None and cache.memory is not None:
            return cache.memory
        if context.memory is None:
            raise ValueError("cross-attention needs context.memory, (B, S, D): states to read")
        k, v = (x.transpose(1, 2) for x in self.project(context.memory))
        if cache is not None:  # read at every step from here on
            k, v = k.contiguous(), v.contiguous()
            cache.memory = (k, v)
        return k, v


def cross_attention(network: nn.Module, read: Callable[[], Any]) -> Tensor:
    """Weights of all cross-attention in a pass, (L, B, H, T, S), in the order of the layers.

    They are made a second time, beside the pass; the network runs as it always does.

    Args:
        network: where cross-attention is looked for.
        read: a pass in which each is used once.

    Raises:
        BedstoneError: no cross-attention was used.
    """
    found = _weights(network, read, CrossAttention)
    if not found:
        raise BedstoneError(
            "attention: nothing was attended across in this pass, so there are no weights. Take a "
            "network that reads pictures or sources by cross-attention."
        )
    return torch.stack(found)


def self_attention(network: nn.Module, read: Callable[[], Any]) -> Tensor:
    """Weights of all self-attention in a pass, (L, B, H, T, T), likewise.

    Raises:
        BedstoneError: no self-attention was used.
    """
    found = _weights(network, read, SelfAttention)
    if not found:
        raise BedstoneError("attention: this network has no self-attention; take a transformer.")
    return torch.stack(found)


def _weights(network: nn.Module, read: Callable[[], Any], kind: type[nn.Module]) -> list[Tensor]:
    """What each attention of a kind gave its tokens in a pass."""
    found: list[Tensor] = []

    def keep(module: Any, given: tuple[Any, ...], _: Any) -> None:
        found.append(module.weights(*given))

    parts = [part for part in network.modules() if isinstance(part, kind)]
    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        with torch.no_grad():
            read()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _heads(x: Tensor, width: int) -> Tensor:
    """(B, T, H * W) to (B, T, H, W)."""
    return x.unflatten(-1, (-1, width))
