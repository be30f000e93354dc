"""What would be many passes over memory by the engine (native/passes.cpp), each as one.

Of training, dropout and the loss; of beam search, the best tokens and moves of what is cached; of
sampling, log-probabilities and the draw of a token.
Shapes: N rows, V vocabulary; S searches of b beams each.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from bedstone.nn.fast import kernels

TYPES = (torch.float32, torch.bfloat16)
SHARES = 1 << 16  # of a share of values that are kept
ALONE = 1 << 15  # values below which one thread is faster
MOST_WANTED, MOST_BANNED = 64, 64  # best tokens of a search, and tokens that are none


def usable(x: Tensor) -> bool:
    """Whether the functions here can take `x`."""
    return (
        x.device.type == "cpu"
        and x.dtype in TYPES
        and not torch.compiler.is_compiling()
        and kernels.library() is not None
    )


def draw_seed() -> int:
    """A seed of torch's own generator, 63 bits."""
    return int(torch.empty((), dtype=torch.int64).random_())


def dropped(x: Tensor, seed: int, share: int, scale: float) -> Tensor:
    """`x * scale` where it is kept, else zero: the same places for the same seed.

    Args:
        share: how many of 65,536 values are kept, below 65,536.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    found = kernels.library()
    assert found is not None
    found.bedstone_dropout(
        x.data_ptr(), out.data_ptr(), x.numel(), x.itemsize, seed, share, scale,
        kernels.threads() if x.numel() >= ALONE else 1,
    )  # fmt: skip
    return out


def softmax_errors(
    logits: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float
) -> Tensor:
    """Turns logits (N, V) in place into softmax(logits + bias) - wanted, the loss's gradient.

    Args:
        bias: (V,).
        targets: (N,) int64; wanted is 1 - smoothing there, and smoothing / V everywhere.

    Returns:
        The cross-entropy of each row, (N,) in fp32.

    Raises:
        IndexError: a target isn't in the vocabulary.
    """
    rows, count = logits.shape
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < count:
        raise IndexError(f"targets reach {int(targets.max())}, and the vocabulary has {count}")
    assert logits.is_contiguous()
    targets = targets.contiguous()
    wide_bias = None if bias is None else bias.float().contiguous()
    threads = kernels.threads() if logits.numel() >= ALONE else 1
    losses = torch.empty(rows, dtype=torch.float32)
    area = torch.empty(threads, count + 16, dtype=torch.float32)
    found = kernels.library()
    assert found is not None
    found.bedstone_errors(
        logits.data_ptr(), logits.itemsize, None if wide_bias is None else wide_bias.data_ptr(),
        targets.data_ptr(), losses.data_ptr(), rows, count, smoothing, area.data_ptr(), threads,
    )  # fmt: skip
    return losses


def best_tokens(
    logits: Tensor, totals: Tensor, count: int, banned: Sequence[int] = ()
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `count` best continuations of each search's beams, best first, of equals the earlier one.

    Args:
        logits: fp32, (S b, V).
        totals: log-probability of each beam so far, fp32, (S, b).
        count: at most `MOST_WANTED`; where fewer can be, the rest have values of minus infinity.
        banned: tokens, at most `MOST_BANNED`, that never are among them.

    Returns:
        Totals, beams, tokens, and the tokens' own log-probabilities, (S, count) each.
    """
    assert logits.dtype is torch.float32 and 0 < count <= MOST_WANTED
    logits, totals = logits.contiguous(), totals.contiguous()
    bans = torch.tensor(list(banned), dtype=torch.int64)
    values, own = torch.empty(2, len(totals), count)
    beams, tokens = torch.empty(2, len(totals), count, dtype=torch.int64)
    found = kernels.library()
    assert found is not None
    found.bedstone_best(
        logits.data_ptr(), totals.data_ptr(), *totals.shape, logits.shape[1], bans.data_ptr(),
        len(bans), count, values.data_ptr(), own.data_ptr(), beams.data_ptr(), tokens.data_ptr(),
        kernels.threads() if logits.numel() >= ALONE else 1,
    )  # fmt: skip
    return values, beams, tokens, own


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of K tokens of each row, (N, K) in fp32, under softmax of logits (N, V) in fp32.

    Args:
        tokens: their ids, (N, K) int64.

    Raises:
        IndexError: an id isn't in the vocabulary.
    """
    assert logits.dtype is torch.float32
    logits, tokens = _by_rows(logits), tokens.contiguous()
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < logits.shape[1]:
        raise IndexError(f"ids reach {int(tokens.max())}, and the vocabulary has {logits.shape[1]}")
    out = torch.empty(tokens.shape)
    found = kernels.library()
    assert found is not None
    found.bedstone_known(
        logits.data_ptr(), logits.stride(0), *logits.shape, tokens.data_ptr(), tokens.shape[1],
        out.data_ptr(), kernels.threads() if logits.numel() >= ALONE else 1,
    )  # fmt: skip
    return out


def drawn(logits: Tensor, numbers: Tensor, how: kernels.Drawing) -> Tensor:
    """A token of each row of logits (N, V) in fp32, (N,), as `generation.sampling` has it.

    Temperature, top-k, top-p and min-p, then inversion of the cumulative distribution; what is cut
    is never sorted. The token is that of torch's operations but for a number within rounding
    (1e-7) of the border of two tokens. -1 where the logits give no distribution.

    Args:
        numbers: a uniform number a row, (N,) in fp64.
    """
    assert logits.dtype is torch.float32 and numbers.dtype is torch.float64
    logits, numbers = _by_rows(logits), numbers.contiguous()
    threads = kernels.threads() if logits.numel() >= ALONE else 1
    area = torch.empty(threads, logits.shape[1] + 16)
    tokens = torch.empty(len(logits), dtype=torch.int64)
    found = kernels.library()
    assert found is not None
    found.bedstone_draw(
        logits.data_ptr(), logits.stride(0), *logits.shape, ctypes.byref(how), numbers.data_ptr(),
        tokens.data_ptr(), area.data_ptr(), threads,
    )  # fmt: skip
    return tokens


def _by_rows(logits: Tensor) -> Tensor:
    """Rows (N, V) whose numbers stand side by side."""
    return logits if logits.stride(-1) == 1 else logits.contiguous()


def move_blocks(held: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Rows of `held` (N, ...), which is contiguous, become copies of others, all at a time.

    Args:
        sources, targets: numbers of rows, (M,) int64; no target stands twice.
    """
    assert held.is_contiguous()
    size = held[0].numel() * held.itemsize
    area = torch.empty(len(sources) * size, dtype=torch.uint8)
    sources, targets = sources.contiguous(), targets.contiguous()
    found = kernels.library()
    assert found is not None
    found.bedstone_move(
        held.data_ptr(), size, sources.data_ptr(), targets.data_ptr(), len(sources),
        area.data_ptr(), kernels.threads() if len(area) >= 1 << 20 else 1,
    )  # fmt: skip
