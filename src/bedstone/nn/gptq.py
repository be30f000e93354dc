"""Four-bit weights that fit what they are multiplied with: groups of least error, and GPTQ.

A group's scale and lowest value are searched for: of several ranges, each mended once by least
squares, the one with the least squared error is taken. Inputs that are large weigh more, by the
mean of their squares (as in AWQ, Lin et al., 2023). Which are large depends little on the text:
random words say it nearly as well, and no data is needed for it.

GPTQ (Frantar et al., 2022) needs texts: it rounds one input after another and spreads each rounding
error over the inputs that are still to come, by the second moments of all. Blocks are calibrated in
order, each on what the quantised ones before it give, so the moments of one block stand in memory.

Shapes: N rows, D inputs, E outputs, G inputs a group.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.nn.blocks import Context, Stack
from bedstone.nn.lora import LoRALinear
from bedstone.nn.quantize import (
    GROUP,
    Codes,
    check_codable,
    encode,
    kinds_for_inference,
    nonzero,
    stand_in,
)

Feed = Callable[[], object]  # runs the network on some of its inputs
RANGES = (1.0, 0.925, 0.85, 0.775, 0.7)  # shares of a group's own that are tried
ROWS, TOKENS = 8, 64  # of random words, by which inputs are weighed where no texts are given
DAMPING = 0.05  # of the mean second moment, added to each: few rows say little of rare inputs
FLOOR = 0.1  # of the median importance, added to each: another text may have what these lack
_STRIDE = 128  # inputs that are rounded before what their errors change is brought up to date


@torch.no_grad()
def fit(
    weight: Tensor, group: int, importance: Tensor | None = None, ranges: Sequence[float] = RANGES
) -> tuple[Tensor, Tensor]:
    """Scales and lowest values of least squared error, each (E, D / G) fp16.

    Args:
        weight: (E, D).
        importance: of each input, (D,).
        ranges: shares of each group's own range that are tried.
    """
    grouped = weight.detach().float().unflatten(1, (-1, group))  # (E, D / G, G)
    weights = None
    if importance is not None:
        wide = importance.float()
        weights = (wide + FLOOR * wide.median()).view(1, -1, group)
    least, most = grouped.amin(-1), grouped.amax(-1)
    best = torch.full_like(least, torch.inf), least.half(), least.half()
    for part in ranges:
        lowest = (least * part).half()
        scales = nonzero(((most * part - lowest.float()) / 15).half())
        for last in (False, True):
            codes = _rounded(grouped, scales, lowest)
            wide = codes * scales.float()[..., None]
            error = wide.add_(lowest.float()[..., None]).sub_(grouped).square_()
            total = (error if weights is None else error.mul_(weights)).sum(-1)
            pairs = zip((total, scales, lowest), best, strict=True)
            better = total < best[0]
            best = tuple(torch.where(better, *pair) for pair in pairs)  # type: ignore[assignment]
            if not last:
                scales, lowest = _mended(grouped, codes, scales, lowest, weights)
    return best[1], best[2]


def _rounded(grouped: Tensor, scales: Tensor, lowest: Tensor) -> Tensor:
    """The nearest codes, fp32 (E, D / G, G)."""
    offset = grouped - lowest.float()[..., None]
    return offset.div_(scales.float()[..., None]).round_().clamp_(0, 15)


def _mended(
    grouped: Tensor, codes: Tensor, scales: Tensor, lowest: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The line through codes and weights of least squared error, where there is one."""
    w = torch.ones_like(grouped[:1]) if weights is None else weights + 1e-12 * weights.amax()
    total = w.sum(-1).clamp_min(1e-30)
    at, of = (codes * w).sum(-1) / total, (grouped * w).sum(-1) / total  # means
    centred = codes - at[..., None]
    spread = (centred.square() * w).sum(-1)
    slope = (centred * (grouped - of[..., None]) * w).sum(-1) / spread
    step, base = slope.half(), (of - slope * at).half()
    sound = (step > 0) & step.isfinite() & base.isfinite()
    return torch.where(sound, step, scales), torch.where(sound, base, lowest)


@torch.no_grad()
def gptq(weight: Tensor, moments: Tensor, group: int, damping: float = DAMPING) -> Codes:
    """A weight (E, D) in four bits, rounding errors spread over inputs that go together.

    Args:
        moments: second moments of its inputs, (D, D), their sum over rows.
        damping: of the mean moment, added to each input's own.
    """
    scales, lowest = fit(weight, group, moments.diagonal())
    order = moments.diagonal().argsort(descending=True)  # the errors of the largest go furthest
    root = _root(moments.float()[order][:, order], damping)
    rest = weight.detach().float().t()[order].contiguous()  # (D, E)
    steps = scales.float().t().repeat_interleave(group, 0)[order]
    bases = lowest.float().t().repeat_interleave(group, 0)[order]
    codes = torch.empty_like(rest, dtype=torch.uint8)
    for start in range(0, len(rest), _STRIDE):
        part = slice(start, start + _STRIDE)
        near, inner = rest[part], root[part, part]
        errors = torch.empty_like(near)
        for index, (row, step, base) in enumerate(zip(near, steps[part], bases[part], strict=True)):
            code = ((row - base) / step).round_().clamp_(0, 15)
            codes[start + index] = code
            errors[index] = (row - torch.addcmul(base, code, step)) / inner[index, index]
            near[index + 1 :].addr_(inner[index, index + 1 :], errors[index], alpha=-1)
        rest[start + _STRIDE :].addmm_(root[part, start + _STRIDE :].t(), errors, alpha=-1)
    placed = torch.empty_like(codes)
    placed[order] = codes
    return Codes.of(placed.t().contiguous(), scales, lowest)


def _root(moments: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse, damped as far as there is one."""
    mean = moments.diagonal().mean() + torch.finfo(torch.float32).tiny
    while True:
        damped = moments + damping * mean * torch.eye(len(moments), device=moments.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return root
        damping *= 10


class _Moments:
    """Second moments of what some linear layers read; those that read one input share theirs."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.sums: dict[str, Tensor] = {}
        self.readers: dict[str, list[str]] = {}  # of the input of the first of them
        self._last: tuple[Tensor | None, str] = (None, "")
        self._hooks = [
            layer.register_forward_pre_hook(self._hook(name)) for name, layer in layers.items()
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, Any], None]:
        def add(layer: nn.Module, given: Any) -> None:
            x, (last, first) = given[0], self._last
            if x is last:
                if name not in self.readers[first]:
                    self.readers[first].append(name)
                return
            self._last = x, name
            self.readers.setdefault(name, [name])
            rows = x.detach().flatten(0, -2).float()
            self.sums[name] = self.sums.get(name, 0) + rows.t() @ rows

        return add

    def close(self) -> None:
        """Counts no more."""
        self._last = None, ""
        for hook in self._hooks:
            hook.remove()


class _Reached(Exception):
    """The first block was reached: what comes after is not needed."""


def _captured(stack: Stack, feeds: Iterable[Feed]) -> list[tuple[Tensor, Context]]:
    """What the first block of a stack reads; nothing of feeds that don't come to it."""
    found = []

    def keep(block: nn.Module, given: Any) -> None:
        found.append(given)
        raise _Reached

    hook = stack[0].register_forward_pre_hook(keep)
    try:
        for feed in feeds:
            with contextlib.suppress(_Reached):
                feed()
    finally:
        hook.remove()
    return found


class Coder:
    """Makes the codes of layers that `kinds_for_inference` names, without calibration by texts.

    Args:
        group: inputs that share a scale in four bits; smaller where it doesn't divide a layer's.

    Attributes:
        kinds: the layers, and the group of each: 0 for 8 bits.
    """

    def __init__(self, network: nn.Module, bits: int, group: int = GROUP) -> None:
        self.kinds = kinds_for_inference(network, bits, group)
        self._network = network
        self._importance: dict[str, Tensor] | None = None

    @torch.no_grad()
    def open(self, name: str) -> Callable[[slice], Codes]:
        """What makes the codes of some rows of a layer, which don't depend on the others.

        Raises:
            BedstoneError: as it is called, for weights that no code stands for.
        """
        size, weight = self.kinds[name], _weight(self._network.get_submodule(name))
        where = f"{name}.weight"
        if not size:
            return lambda rows: encode(weight[rows], 8, name=where)
        if self._importance is None:
            four = [each for each, group in self.kinds.items() if group]
            self._importance = _importance(self._network, four)
        importance = self._importance.get(name)
        return lambda rows: _fitted(weight[rows], size, importance, where)


def codes_for_inference(network: nn.Module, bits: int, group: int = GROUP) -> dict[str, Codes]:
    """The codes of all layers that `kinds_for_inference` names: as `Coder` makes them.

    Raises:
        BedstoneError: weights that no code stands for.
    """
    coder = Coder(network, bits, group)
    held: dict[tuple[int, int], Codes] = {}  # by weight and group: tied layers share theirs
    found = {}
    for name, size in coder.kinds.items():
        layer: Any = network.get_submodule(name)
        key = id(layer if _is_adapted(layer) else layer.weight), size
        if key not in held:
            held[key] = coder.open(name)(slice(None))
        found[name] = held[key]
    return found


def _weight(layer: Any) -> Tensor:
    """The weight of a linear layer or a table, with an adapter in use."""
    weight: Tensor = layer.merged() if _is_adapted(layer) else layer.weight
    return weight


def _is_adapted(layer: nn.Module) -> bool:
    return isinstance(layer, LoRALinear) and layer.adapter() is not None


def _fitted(weight: Tensor, group: int, importance: Tensor | None, name: str) -> Codes:
    check_codable(weight, 4, name)
    scales, lowest = fit(weight, group, importance, ranges=(1.0,))
    grouped = weight.detach().float().unflatten(1, (-1, group))
    codes = _rounded(grouped, scales, lowest).flatten(1).to(torch.uint8)
    return Codes.of(codes, scales, lowest)


def _importance(network: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean squares of what layers read where a network reads random words, (D,) each; empty
    where it reads other things."""
    table = getattr(network, "embed", None)
    if not names or not isinstance(table, nn.Embedding) or table.weight.is_meta:
        return {}
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        def keep(layer: nn.Module, given: Any) -> None:
            found[name] = given[0].float().square().flatten(0, -2).mean(0)

        return keep

    hooks = [network.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    shape = ROWS, min(TOKENS, network.config.context)
    words = torch.randint(table.num_embeddings, shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):  # what drops out in training draws numbers
        network.states(words.to(table.weight.device))
    for each in hooks:
        each.remove()
    return {name: each for name, each in found.items() if each.isfinite().all()}


@torch.no_grad()
def quantize_for_inference(
    network: nn.Module,
    bits: int,
    group: int = GROUP,
    feeds: Sequence[Feed] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> list[str]:
    """Puts quantised layers in the place of all that `kinds_for_inference` names.

    Args:
        network: in evaluation mode; the stacks that feeds come to hand on from block to block
            what a block gives, and nothing else.
        group: as for `codes_for_inference`.
        feeds: each runs the network on some inputs, by which four bits are calibrated.
        progress: called with the share of a stack's blocks that are calibrated.

    Returns:
        The names of the layers that were calibrated.

    Raises:
        BedstoneError: weights that no code stands for, or inputs that nothing follows from.
    """
    kinds = {name: n for name, n in kinds_for_inference(network, bits, group).items() if n}
    for name in kinds:
        check_codable(_weight(network.get_submodule(name)), 4, f"{name}.weight")
    names = {id(module): name for name, module in network.named_modules()}
    done: list[str] = []
    for stack in list(network.modules()) if kinds else ():
        if isinstance(stack, Stack) and len(stack):
            inputs = _captured(stack, feeds)
            for index, block in enumerate(stack if inputs else ()):
                done += _calibrate(network, block, index, inputs, kinds, names)
                progress((index + 1) / len(stack))
    for name, codes in codes_for_inference(network, bits, group).items():
        _replace(network, name, codes)
    return done


def _calibrate(
    network: nn.Module,
    block: nn.Module,
    index: int,
    inputs: list[tuple[Tensor, Context]],
    kinds: dict[str, int],
    names: dict[int, str],
) -> list[str]:
    """Quantises one block by the inputs that it has, which become those of the next."""
    layers = {
        name: module
        for module in block.modules()
        if kinds.get(name := names.get(id(module), "")) and type(module) is nn.Linear
    }
    moments = _Moments(layers)
    for x, context in inputs:
        block(x, context.for_layer(index))
    moments.close()
    for first, readers in moments.readers.items():
        if not moments.sums[first].isfinite().all():
            raise BedstoneError(
                f"{first}: what it reads of the calibration's inputs is not finite, so nothing "
                "follows from it. Check the weights, or quantise without texts."
            )
        weights = [layers[name].weight for name in readers]
        joined = gptq(torch.cat(weights), moments.sums[first], kinds[first])
        parts = joined.split([len(weight) for weight in weights])
        for name, codes in zip(readers, parts, strict=True):
            _replace(network, name, codes)
    for number, (x, context) in enumerate(inputs):
        inputs[number] = block(x, context.for_layer(index)), context
    return [name for readers in moments.readers.values() for name in readers]


def _replace(network: nn.Module, name: str, codes: Codes) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, stand_in(network.get_submodule(name), codes))  # type: ignore[arg-type]
