"""The next-token cross-entropy, without a gradient of all logits in memory.

GPT, BERT, sequence to sequence, captions, DALL-E and fine-tuning differ in what they take as
targets, and so in their data alone. The loss is a *sum* beside a count of real targets, so that
whoever accumulates over micro-batches or ranks can average over tokens, not over batches.

Logits are computed only where there is a target. A large vocabulary goes through the head some
rows at a time, each chunk's gradient taken while its logits are at hand (Cut Your Losses,
Wijmans et al., 2024; Liger Kernel, Hsu et al., 2024): the (tokens x vocabulary) matrix never
stands whole, and no product is computed twice.

Label smoothing (Szegedy et al., 2016, section 7) asks for a share e of every token's probability:
the loss is (1 - e) -log p(target) + e / V sum -log p, as `torch` and `transformers` have it.

Shapes: B batch, T tokens, N tokens with a target, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from bedstone.data.stream import IGNORED
from bedstone.nn.fast import passes
from bedstone.nn.masks import Causal, Documents, Mask

# Logits that may stand at once, elements: up to here one chunk is the fastest (measured).
LARGEST = 2**22
# Rows that are few beside the vocabulary, as hidden words are, make few logits and a large gradient
# of the head: adding it up by chunks costs more than to keep this many times the logits.
KEPT, FEW = 8, 8


class TokenBatch(Protocol):
    """What `next_token_loss` reads of a batch; each field is (B, T)."""

    @property
    def ids(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def documents(self) -> Tensor: ...


class PairBatch(Protocol):
    """What `pair_loss` reads of a batch: as many sources as targets, laid end to end."""

    @property
    def sources(self) -> Any: ...
    @property
    def rows(self) -> Any: ...
    @property
    def targets(self) -> Tensor: ...


def token_loss(
    states: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    largest: int = LARGEST,
    smoothing: float = 0.0,
) -> tuple[Tensor, int]:
    """Cross-entropy of the head's prediction at every real target.

    Args:
        states: last hidden states, (B, T, D) or any (..., D).
        head: maps them to logits, (..., V); where it is a plain `nn.Linear`, tied or not,
            its large products are fused with the loss.
        targets: token ids, (B, T); -100 where nothing is to be predicted.
        largest: elements of the logits that may stand at once.
        smoothing: the share of a target that goes to all tokens.

    Returns:
        The sum of losses in nats, () in fp32, and the number of real targets.
    """
    states, targets = states.flatten(0, -2), targets.flatten()
    real = targets != IGNORED
    count = int(real.sum())
    if count < len(targets):
        rows = real.nonzero().squeeze(1)
        states, targets = states[rows], targets[rows]  # (N, D), (N,)
    if count == 0:
        return states.float().sum() * 0.0, 0  # no targets; still differentiable
    vocabulary: Any = getattr(head, "out_features", None)
    learns = torch.is_grad_enabled()
    # Subclasses and replaced heads (LoRA, quantised) compute more than x W^T + b.
    plain = learns and type(head) is nn.Linear
    if plain and count * FEW <= vocabulary and count * vocabulary <= largest * KEPT:
        found = _KeptLoss.apply(states, head.weight, head.bias, targets, smoothing)
        return found.sum(), count
    if vocabulary is None or count * vocabulary <= largest:
        return _direct(head, states, targets, smoothing).sum(), count
    chunk = _rows_at_once(head, largest)
    if plain:
        return _LinearLoss.apply(states, head.weight, head.bias, targets, smoothing, chunk), count
    parts = zip(states.split(chunk), targets.split(chunk), strict=True)
    if learns:
        losses = [
            checkpoint(_direct, head, *part, smoothing, use_reentrant=False).sum() for part in parts
        ]
    else:
        losses = [_direct(head, *part, smoothing).sum() for part in parts]
    return torch.stack(losses).sum(), count


def _rows_at_once(head: Any, largest: int) -> int:
    """Rows of a chunk: fewer than 64 make poor products; and since each chunk adds up a gradient
    of the head's size, its logits may take as much."""
    return max(largest // head.out_features, getattr(head, "in_features", 0), 64)


def token_losses(
    states: Tensor, head: nn.Module, targets: Tensor, *, largest: int = LARGEST
) -> Tensor:
    """Cross-entropy of each target by itself, (N,) in fp32: the negative of its log-probability.

    What is made of them may weigh each in another way, so the gradient of the head waits for the
    backward pass: the errors of all rows are kept where they are few, else chunks are computed
    again.

    Args:
        states: (N, D), one for each target.
        head, largest: as for `token_loss`.
        targets: token ids, (N,).
    """
    count, vocabulary = len(targets), getattr(head, "out_features", None)
    learns = torch.is_grad_enabled()

    def some(states: Tensor, targets: Tensor) -> Tensor:
        if learns and type(head) is nn.Linear:
            found: Tensor = _KeptLoss.apply(states, head.weight, head.bias, targets, 0.0)
            return found
        return _direct(head, states, targets, 0.0)

    if vocabulary is None or count * vocabulary <= largest * (KEPT if learns else 1):
        return some(states, targets)
    chunk = _rows_at_once(head, largest)
    parts = zip(states.split(chunk), targets.split(chunk), strict=True)
    if learns:
        return torch.cat([checkpoint(some, *part, use_reentrant=False) for part in parts])
    return torch.cat([some(*part) for part in parts])


def next_token_loss(network: Any, batch: TokenBatch) -> tuple[Tensor, int]:
    """The objective of a decoder: `token_loss` of its `states` through its `head`.

    Packed documents don't see each other; rows of one document take the plain causal mask.
    """
    mask: Mask = Causal()
    positions: Tensor | None = None
    if bool(batch.documents.any()):
        mask, positions = Documents(batch.documents), batch.positions
    states = network.states(batch.ids, mask=mask, positions=positions)
    return token_loss(states, network.head, batch.targets)


def pair_loss(network: Any, batch: PairBatch, smoothing: float = 0.0) -> tuple[Tensor, int]:
    """The objective of an encoder-decoder: `token_loss` of targets given their sources.

    Args:
        batch: `sources` and `rows`, what the decoder reads, of which (1, N) `targets` follow.
        smoothing: as for `token_loss`.
    """
    states = network.head.prepare(network.pair_states(batch.sources, batch.rows))
    return token_loss(states, network.head.out, batch.targets, smoothing=smoothing)


@dataclass(frozen=True)
class PairLoss:
    """(network, batch) to the sum of losses and the number of targets.

    Attributes:
        smoothing: the share of a target that goes to all tokens.
        r_drop: weight of the divergence between two passes with other dropout (Liang et al., 2021,
            equation 4, halved, so that cross-entropy counts once); 0 makes one pass.
        zero_padding: whether embeddings of padding are kept at zero, from which Marian's targets
            begin: a head that shares them would move them, and other programs take them as zero.
    """

    smoothing: float = 0.0
    r_drop: float = 0.0
    zero_padding: bool = False

    @torch.no_grad()
    def after_step(self, network: Any) -> None:
        """Keeps embeddings of padding at zero."""
        if self.zero_padding:
            for table in network.tables:
                table.weight[table.padding_idx] = 0.0

    def __call__(self, network: Any, batch: PairBatch) -> tuple[Tensor, int]:
        if not self.r_drop or not network.training:
            return pair_loss(network, batch, self.smoothing if network.training else 0.0)
        passes = [
            network.head.prepare(network.pair_states(batch.sources, batch.rows)) for _ in range(2)
        ]
        targets = batch.targets[0]
        rows = max(LARGEST // network.config.target_vocab_size, 64)
        parts = zip(passes[0].split(rows), passes[1].split(rows), targets.split(rows), strict=True)
        losses = [
            checkpoint(self._both, network.head.out, *part, use_reentrant=False) for part in parts
        ]
        return torch.stack(losses).sum(), len(targets)

    def _both(self, out: nn.Module, first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
        """The loss of some tokens, of their states in both passes, (n, D)."""
        one, two = (out(states).float().log_softmax(-1) for states in (first, second))
        error = sum(
            F.cross_entropy(logp, targets, reduction="sum", label_smoothing=self.smoothing)
            for logp in (one, two)
        )
        apart = (one.exp() - two.exp()).mul(one - two).sum()  # KL(one, two) + KL(two, one)
        return 0.5 * error + 0.25 * self.r_drop * apart


def _direct(head: nn.Module, states: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The plain form: all logits at once. (N, D), (N,) to (N,)."""
    logits = head(states).float()
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)


def _errors(
    some: Tensor, low: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Each loss (N,), and p - y (N, V) in the products' dtype, y the smoothed targets.

    Args:
        some, low: states (N, D) and the head's weights (V, D) in the products' dtype.
    """
    if passes.usable(some):
        error = some @ low.T
        return passes.softmax_errors(error, bias, targets, smoothing), error
    logits = F.linear(some, low, None if bias is None else bias.to(some.dtype))  # (N, V)
    logp = torch.log_softmax(logits, -1, dtype=torch.promote_types(low.dtype, torch.float32))
    wanted = targets[:, None]
    losses = -(1.0 - smoothing) * logp.gather(1, wanted)[:, 0]
    share = smoothing / logp.shape[1]
    if smoothing:
        losses = losses - share * logp.sum(1)
    # In low precision p - y of a confident target would be 0.
    error = logp.exp_()
    error.scatter_add_(1, wanted, error.new_full(wanted.shape, smoothing - 1.0))
    return losses, (error.sub_(share) if smoothing else error).to(some.dtype)


def _product_dtype(states: Tensor, weight: Tensor) -> torch.dtype:
    """Of the head's products: autocast's where it is on."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(states.dtype, weight.dtype)


class _KeptLoss(torch.autograd.Function):
    """Cross-entropies of a linear head, (N,), all rows at once; the error is kept for backward.

    With p = softmax(x W^T + b) and y the targets one-hot, the gradient of the sum is
    (p - y) W for x, (p - y)^T x for W and the sum of p - y for b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
    ) -> Tensor:
        dtype = _product_dtype(states, weight)
        with torch.autocast(states.device.type, enabled=False):
            some, low = states.to(dtype), weight.to(dtype)  # (N, D), (V, D)
            losses, error = _errors(some, low, bias, targets, smoothing)
            losses = losses.to(torch.promote_types(weight.dtype, torch.float32))
        ctx.save_for_backward(error, some, low)
        ctx.dtypes = states.dtype, weight.dtype, None if bias is None else bias.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        error, some, low = ctx.saved_tensors
        states_dtype, weight_dtype, bias_dtype = ctx.dtypes
        scale = outputs[0].to(error.dtype)[:, None]  # (N, 1)
        for_states = for_weight = for_bias = None
        with torch.autocast(error.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                for_states = ((error @ low) * scale).to(states_dtype)
            if ctx.needs_input_grad[1]:
                for_weight = (error.T @ (some * scale)).to(weight_dtype)
            if bias_dtype is not None and ctx.needs_input_grad[2]:
                for_bias = (scale.T @ error)[0].to(bias_dtype)
        return for_states, for_weight, for_bias, None, None


class _LinearLoss(torch.autograd.Function):
    """Sum of cross-entropies of a linear head, some rows at a time.

    With p = softmax(x W^T + b) and y the targets one-hot, the gradient of the sum is
    (p - y) W for x, (p - y)^T x for W and the sum of p - y for b: all are known in the forward
    pass, and the backward pass only scales them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        chunk: int,
    ) -> Tensor:
        dtype = _product_dtype(states, weight)
        full = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            low = weight.to(dtype)  # (V, D), cast once for all chunks
            ones = low.new_ones(1, chunk)
            total = torch.zeros((), dtype=full, device=states.device)
            needs = ctx.needs_input_grad
            for_states = torch.empty_like(states) if needs[0] else None
            for_weight = torch.zeros_like(weight, dtype=full) if needs[1] else None
            for_bias = torch.zeros_like(bias, dtype=full) if bias is not None and needs[2] else None
            for start in range(0, len(states), chunk):
                rows = slice(start, start + chunk)
                some = states[rows].to(dtype)  # (n, D)
                losses, error = _errors(some, low, bias, targets[rows], smoothing)  # (n, V)
                total += losses.sum()
                if for_bias is not None:
                    for_bias += (ones[:, : len(error)] @ error)[0]  # faster than a sum
                if for_states is not None:
                    for_states[rows] = error @ low
                if for_weight is not None:
                    for_weight += error.T @ some
        ctx.save_for_backward(for_states, for_weight, for_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outputs
        for_states, for_weight, for_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if for_states is None else for_states * scale.to(for_states.dtype),
            None if for_weight is None else (for_weight * scale).to(weight_dtype),
            None if for_bias is None else (for_bias * scale).to(bias_dtype),
            None,
            None,
            None,
        )
