"""In which precision, and by the engine or by torch, a network is fastest on this machine.

`auto` is fp32 or bf16, whichever is faster: quantising is for the user to choose. Of a decoder,
some of its blocks read a prompt and write some tokens in each way; of any other network, its
largest linear layer is multiplied with 256 rows. What was measured is kept (`measured.py`), so only
the first use of a shape takes time: less than a second.
"""

import copy
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bedstone.measured import fastest
from bedstone.nn.blocks import Stack
from bedstone.nn.fast import kernels
from bedstone.nn.fast.decoder import decoder_of
from bedstone.nn.fast.inference import for_inference, inference_bits, inference_dtype
from bedstone.nn.gptq import quantize_for_inference
from bedstone.nn.quantize import Quantized
from bedstone.runtime import Precision, products

SMALL = 1 << 20  # weights of blocks below which nothing is measured: all takes little time
PART = 8 << 20  # weights of the blocks that are tried, at least one block: no cache holds them
LARGE = 4 * PART  # weights of a block beyond which making it ready would take too long
WIDEST = 4096  # inputs and outputs of a layer that stands for a network's
WORDS = 2048  # of tables of words, where a part of a network stands for it
TOKENS = 16  # of the prompt, and then written
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Pick:
    """What a network is to compute in.

    Attributes:
        precision: with a dtype that is settled.
        backend: engine or torch.
        seconds: of each way, by its name; {} where nothing was measured.
        kept: whether they were measured before.
        what: that was measured, in words, or why nothing was.
    """

    precision: Precision
    backend: str
    seconds: dict[str, float]
    kept: bool
    what: str


def settled(network: Any, how: Precision) -> Precision:
    """`how` with the dtype in which torch computes a network fastest, where that was left open."""
    return pick(network, how, writes=False).precision if how.auto else how


def prepared(network: Any, how: Precision) -> Any:
    """`for_inference` in a precision whose dtype may be left open."""
    how = settled(network, how)
    return for_inference(network, how.dtype, how.bits)


def pick(network: Any, how: Precision, *, writes: bool = True) -> Pick:
    """The precision and backend for a network, measured unless they are known.

    Args:
        writes: whether it is to write tokens, where it can.
    """
    usual = "torch" if kernels.library() is None else "engine"
    if not how.auto:
        return _unmeasured(how, usual, "the precision was given")
    if how.device.type != "cpu":
        return _unmeasured(how, "torch", f"nothing is measured on {how.device.type}")
    held = inference_dtype(network)
    if held is not None and inference_bits(network) == how.bits:
        return _unmeasured(replace(how, dtype=held), "torch", "the network was made ready before")
    blocks = max((list(each) for each in _stacks(network)), key=len, default=[])
    sizes = [_weights(block) for block in blocks]
    writes = writes and hasattr(network, "decoder_parts") and not hasattr(network, "writer")
    if writes and sum(sizes) >= SMALL and max(sizes) <= LARGE:
        count = 1 + sum(total < PART for total in itertools.accumulate(sizes[:-1]))
        return _of_decoder(network, how, usual, count, len(blocks))
    return _of_products(network, how, usual)


def _unmeasured(how: Precision, backend: str, why: str) -> Pick:
    return Pick(replace(how, auto=False), backend, {}, False, why)


def _of_products(network: nn.Module, how: Precision, backend: str) -> Pick:
    """By the linear layer that has the most weights."""
    shapes = [_shape(each) for each in network.modules() if isinstance(each, nn.Linear | Quantized)]
    outs, ins = max(shapes, key=lambda shape: shape[0] * shape[1], default=(0, 0))
    if outs * ins < SMALL // 8:
        return _unmeasured(how, backend, "its layers are too small to measure")
    outs, ins = min(outs, WIDEST), min(ins, WIDEST)
    found = products(ins, outs)
    what = f"products of 256 rows, {ins} inputs to {outs}"
    precision = replace(how, dtype=DTYPES[found.best], auto=False)
    return Pick(precision, backend, found.seconds, found.kept, what)


def _of_decoder(network: Any, how: Precision, usual: str, count: int, blocks: int) -> Pick:
    """By a prompt and some tokens in each way, of its first `count` blocks."""
    dtypes = [how.dtype]
    if how.bits is None:
        dtypes += [each for each in DTYPES.values() if each is not how.dtype]
    backends = ["engine", "torch"] if usual == "engine" else ["torch"]
    made: list[Any] = []

    def part() -> Any:
        if not made:
            made.append(_part(network, count))
            if how.bits is not None:
                quantize_for_inference(made[0], how.bits)
        return made[0]

    ways = {
        f"{backend} {replace(how, dtype=dtype).name}": _Way(part, backend, dtype, how.bits)
        for backend in backends
        for dtype in dtypes
    }
    what = f"{TOKENS} tokens read and {TOKENS} written by {count} of {blocks} blocks"
    if len(ways) == 1:
        return _unmeasured(how, usual, "there is one way")
    given = f"{' '.join(kernels.instructions())}, {_digest(network)}, {' or '.join(ways)}"
    with torch.inference_mode():
        found = fastest(f"{what}: {given}", ways)
    way = ways[found.best]
    precision = replace(how, dtype=way.dtype, auto=False)
    return Pick(precision, way.backend, found.seconds, found.kept, what)


class _Way:
    """A decoder made ready in one way at its first call; each call reads and writes some tokens."""

    def __init__(
        self, part: Callable[[], Any], backend: str, dtype: torch.dtype, bits: int | None
    ) -> None:
        self.backend, self.dtype, self._part, self._bits = backend, dtype, part, bits
        self._ready: Any = None

    def __call__(self) -> None:
        if self._ready is None:
            network = self._part()
            given = network, self.dtype, self._bits
            by_engine = decoder_of(*given) if self.backend == "engine" else None
            self._ready = by_engine or for_inference(*given)
        decoder = self._ready
        tokens = max(1, min(TOKENS, decoder.config.context // 2))
        cache = decoder.new_cache(1, 2 * tokens)
        states = decoder.states(torch.ones(1, tokens, dtype=torch.long), cache=cache)
        decoder.head(states[:, -1])
        for _ in range(tokens):
            decoder.head(decoder.states(torch.ones(1, 1, dtype=torch.long), cache=cache))


def _part(network: Any, count: int) -> Any:
    """A network's first blocks over the same weights, with few words."""
    held: dict[int, Any] = {}  # what the copy shares
    for each in itertools.chain(network.parameters(), network.buffers()):
        held[id(each)] = each
    part = copy.deepcopy(network, held)
    for stack in _stacks(part):
        del stack[count:]
    inner = {id(each) for stack in _stacks(part) for each in stack.modules()}
    shorter: dict[int, nn.Parameter] = {}  # by what they were: ties stay
    for module in [each for each in part.modules() if id(each) not in inner]:
        coded = isinstance(module, Quantized)
        if not coded and type(module) not in (nn.Linear, nn.Embedding):
            continue
        layer: Any = module
        if len(layer.held if coded else layer.weight) != part.config.vocab_size:
            continue
        if coded:
            layer.take(layer.held[:WORDS])
        else:
            few = nn.Parameter(layer.weight.detach()[:WORDS], False)
            layer.weight = shorter.setdefault(id(layer.weight), few)
        if (bias := getattr(layer, "bias", None)) is not None:
            layer.bias = nn.Parameter(bias.detach()[:WORDS], False)
        for name in ("num_embeddings", "out_features"):
            if hasattr(layer, name):
                setattr(layer, name, min(WORDS, part.config.vocab_size))
    return part


def _stacks(network: nn.Module) -> list[Stack]:
    return [each for each in network.modules() if isinstance(each, Stack)]


def _weights(block: nn.Module) -> int:
    coded = [each.held.shape.numel() for each in block.modules() if isinstance(each, Quantized)]
    return sum(coded) + sum(each.numel() for each in block.parameters())


def _shape(layer: Any) -> tuple[int, int]:
    outs, ins = layer.held.shape if isinstance(layer, Quantized) else layer.weight.shape
    return int(outs), int(ins)


def _digest(network: nn.Module) -> str:
    """Of all shapes and kinds of layers: networks that have the same take the same time."""
    counts: Counter[str] = Counter()
    for module in network.modules():
        shapes = [f"{tuple(each.shape)}" for each in module.parameters(recurse=False)]
        if isinstance(module, Quantized):
            shapes.append(str(module.held.kind[:3]) + str(_shape(module)))
        counts[f"{type(module).__name__} {' '.join(shapes)}"] += 1
    text = "\n".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return f"{type(network).__name__} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
