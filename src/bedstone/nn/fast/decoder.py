"""A causal network ready to generate: every step is one call of the engine.

It takes the place of `for_inference` where the engine runs: weights are laid out once, in fp32,
bf16, 8 or 4 bits, with the head and the embedding; keys and values stand as attention reads them.
A token's result is the same to the last bit whether it is read alone, with others of its row (a
prompt, drafts to be checked), or beside other rows.

Shapes: B rows, T tokens, M tokens of all rows, D width, V vocabulary, G key/value heads, W their
width, padded to 16, C capacity, padded to 16.
"""

import ctypes
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bedstone.nn.cache import Cache, LayerCache
from bedstone.nn.fast import kernels
from bedstone.nn.fast.panels import BF16, FP32, INT8, SIDE, address, up
from bedstone.nn.fast.program import (
    COARSE,
    EMBED,
    LOGITS,
    NORM,
    OUT,
    PRODUCT,
    Layers,
    NotPossible,
    Program,
    X,
)  # fmt: skip
from bedstone.nn.positions import LearnedPositions

TOKENS = 256  # read in one call at most: what they need stays in the processor's cache
TILE = 8  # rows of scores that a thread holds
CACHE_DTYPES = {FP32: torch.float32, BF16: torch.bfloat16, INT8: torch.int8}


class EngineCache(Cache):
    """Keys and values of all layers as the engine reads them, one tensor of each.

    Its one layer has keys and values (B, layers * G, C, W); within them, keys of 16 slots stand
    side by side. With 8 bits a second layer holds the scales, (B, layers * G, C).
    """

    block = SIDE

    def __init__(self, layers: int, batch: int, groups: int, capacity: int, width: int, kind: int):
        padded, dtype = up(capacity, SIDE), CACHE_DTYPES[kind]
        shape = (batch, layers * groups, padded)
        super().__init__(
            1, batch, layers * groups, padded, width, dtype=dtype, device=torch.device("cpu")
        )
        self.capacity, self.kind, self.depth = capacity, kind, layers
        self.step: _Step | None = None  # what one more token of each row takes, kept ready
        if kind == INT8:
            self.layers.append(LayerCache(self, torch.zeros(shape), torch.zeros(shape)))

    def used(self) -> int:
        return up(self.length, SIDE)  # slots of a block stand interleaved

    def _settle(self, rows: Tensor, writers: Tensor) -> None:
        self.step = None  # rows may be elsewhere, or fewer
        super()._settle(rows, writers)

    def struct(self) -> kernels.Slots:
        """Where it is now: rows that leave move it."""
        main, scales = self.layers[0], self.layers[1] if self.kind == INT8 else None
        return kernels.Slots(
            main.keys.data_ptr(), main.values.data_ptr(),
            scales.keys.data_ptr() if scales else None,
            scales.values.data_ptr() if scales else None,
            self.depth, main.keys.shape[2],
        )  # fmt: skip


class Decoder:
    """A network over the engine, with all that `generation.autoregress` asks of one.

    Args:
        network: a GPT, in evaluation mode, on the CPU.
        dtype: of matrix products, fp32 or bf16; what is quantised keeps its codes.
        bits: 8 or 4 quantises weights, as `for_inference` does.
        cache_bits: 8 keeps keys and values in 8 bits.

    Raises:
        NotPossible: the engine doesn't run here, or has no form of a part of the network.
    """

    exact = True  # a token's logits don't depend on what is read with it

    def __init__(
        self,
        network: Any,
        dtype: torch.dtype,
        bits: int | None = None,
        *,
        cache_bits: int | None = None,
    ) -> None:
        found = kernels.library()
        if found is None:
            raise NotPossible(kernels.why_not())
        self._library = found
        if network.rotary is not None and network.rotary.frequencies.varies:
            raise NotPossible("rotary frequencies that vary with the length")
        self.config = network.config
        kind = FP32 if dtype is torch.float32 and not bits else BF16
        self.cache_kind = INT8 if cache_bits == 8 else kind
        self._rotary = network.rotary
        self._steps, self._head = Program(), Program()
        layers = Layers(network, kind, bits)
        head = layers.panels(network.head)
        tied = network.ties.get("head.weight") == "embed.weight"
        self._embed = head if tied else layers.panels(network.embed)
        self._steps.add(EMBED, X, X, self._embed)
        self._steps.blocks(network.stack, layers)
        self._steps.add(NORM, X, OUT, norm=network.norm)
        self._steps.widths[OUT] = self._steps.widths[X]
        self._steps.settle()
        self._head.add(PRODUCT, X, LOGITS, head)
        self._whole = self._steps.then(PRODUCT, OUT, LOGITS, head)
        self._learnt = self._positions(network.positions)
        self._turns: tuple[Tensor, Tensor] | None = None
        coarse = COARSE if bits or dtype is torch.bfloat16 else 0.0
        self._memory = _Memory(coarse, self._steps, self._head, self._whole)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Of the weights that are read for one token."""
        return self._steps.nbytes + self._head.nbytes - self._embed.nbytes

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache for `batch` rows of up to `capacity` tokens."""
        shape = self.config
        return EngineCache(
            shape.layers, batch, shape.kv_heads, capacity, up(shape.head_width, SIDE),
            self.cache_kind,
        )  # fmt: skip

    def states(self, ids: Tensor, *, cache: Cache | None = None) -> Tensor:
        """The last hidden states, (B, T, D), before the head; padding of prompts is zeros."""
        batch, length = ids.shape
        cache = self.new_cache(batch, length) if cache is None else cache
        assert isinstance(cache, EngineCache)
        cache.require(length)
        lengths = np.full(batch, cache.length) if cache.lengths is None else cache.lengths.numpy()
        real = np.full(batch, length)
        if cache.coming is not None:
            real = np.clip(cache.coming.amax(1).numpy() - lengths, 0, length)
        owners = np.repeat(np.arange(batch, dtype=np.int32), real)
        steps = np.arange(len(owners)) - np.repeat(real.cumsum() - real, real)
        slots = (lengths[owners] + steps).astype(np.int32)
        tokens = ids.numpy()[owners, steps].astype(np.int32)
        found = torch.empty(len(owners), self.config.width)
        with self._lock:
            for start in range(0, len(owners), TOKENS):
                part = slice(start, start + TOKENS)
                found[part] = self._read(tokens[part], owners[part], slots[part], cache)
        cache.advance(length)
        if len(owners) == batch * length:
            return found.view(batch, length, -1)
        whole = found.new_zeros(batch, length, found.shape[1])
        whole[torch.from_numpy(owners).long(), torch.from_numpy(steps)] = found
        return whole

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """`states` and `head` of one more token a row, (B,), in one call: logits (B, V).

        Python's own work is what slows a step down, as the weights have passed through the
        processor's cache since the last one: so the call is kept with the cache.
        """
        assert isinstance(cache, EngineCache)
        cache.require(1)
        logits = torch.empty(len(tokens), self._memory.widths[LOGITS])
        with self._lock:
            held = cache.step
            if held is None or not held.fits(len(tokens), self._memory):
                held = cache.step = _Step(self, cache, len(tokens))
            held.ids[:] = tokens.numpy()
            held.slots[:] = cache.length if cache.lengths is None else cache.lengths.numpy()
            held.call.buffers[LOGITS] = logits.data_ptr()
            self._library.bedstone_run(held.pointer)
        cache.advance(1)
        return logits[:, : self.config.vocab_size]

    def head(self, states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D)."""
        rows = states.reshape(-1, states.shape[-1])
        logits = torch.empty(len(rows), self._memory.widths[LOGITS])
        with self._lock:
            for start in range(0, len(rows), TOKENS):
                part = rows[start : start + TOKENS]
                call = self._memory.call(self._head, len(part), 0)
                self._memory.buffer(X)[: len(part), : part.shape[1]] = part
                call.buffers[LOGITS] = logits[start:].data_ptr()
                self._run(call)
        return logits[:, : self.config.vocab_size].unflatten(0, states.shape[:-1])

    def seconds(self, rounds: int = 9) -> dict[str, float]:
        """What the products of one token take, in its layers and in the head: medians."""
        found = {}
        for name, program in (("products", self._steps.products()), ("head", self._head)):
            logits, each = torch.empty(1, self._memory.widths[LOGITS]), []
            with self._lock:
                for _ in range(rounds):
                    call = self._memory.call(program, 1, 0)
                    call.buffers[LOGITS] = logits.data_ptr()
                    began = time.perf_counter()
                    self._run(call)
                    each.append(time.perf_counter() - began)
            found[name] = sorted(each)[rounds // 2]
        return found

    def _read(
        self, tokens: np.ndarray, owners: np.ndarray, slots: np.ndarray, cache: EngineCache
    ) -> Tensor:
        self._run(self._call(self._steps, tokens, owners, slots, cache))
        return self._memory.buffer(OUT)[: len(tokens), : self.config.width]

    def _call(
        self,
        program: Program,
        tokens: np.ndarray,
        owners: np.ndarray,
        slots: np.ndarray,
        cache: EngineCache,
    ) -> kernels.Call:
        call = self._memory.call(program, len(tokens), cache.layers[0].keys.shape[2])
        call.cache, call.cache_kind = cache.struct(), cache.kind
        call.ids, call.owners = tokens.ctypes.data, owners.ctypes.data
        call.slots = slots.ctypes.data
        cosines, sines = self._rotation(cache.capacity)
        call.cosines, call.sines = address(cosines), address(sines)
        call.learnt = address(self._learnt)
        return call

    def _run(self, call: kernels.Call) -> None:
        self._library.bedstone_run(ctypes.byref(call))

    def _rotation(self, capacity: int) -> tuple[Tensor | None, Tensor | None]:
        """Cosines and sines of positions, each (positions, W / 2)."""
        if self._rotary is None:
            return None, None
        if self._turns is None or len(self._turns[0]) < capacity:
            with torch.inference_mode():
                turns = self._rotary(torch.arange(up(capacity, TOKENS))[None])
            half = turns[0].shape[-1] // 2
            cosines, sines = (part[0, 0, :, :half].float().contiguous() for part in turns)
            self._turns = cosines, sines
        return self._turns

    def _positions(self, module: nn.Module | None) -> Tensor | None:
        """Learnt positions, each as wide as a row of X."""
        if module is None:
            return None
        if type(module) is not LearnedPositions:
            raise NotPossible(f"positions of {type(module).__name__}")
        weight = module.weight.detach().float()
        return nn.functional.pad(weight, (0, self._steps.widths[X] - weight.shape[1])).contiguous()


def decoder_of(network: Any, dtype: torch.dtype, bits: int | None = None) -> Decoder | None:
    """The network over the engine; None where that isn't possible."""
    parts = ("embed", "positions", "rotary", "stack", "norm", "head")
    if not getattr(network, "causal", False) or not all(hasattr(network, each) for each in parts):
        return None
    if next(network.parameters()).device.type != "cpu":
        return None
    try:
        return Decoder(network, dtype, bits)
    except NotPossible:
        return None


class _Step:
    """A call of the whole network for one more token of each row of a cache."""

    def __init__(self, decoder: Decoder, cache: EngineCache, rows: int) -> None:
        self.ids, self.slots = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        self._owners = np.arange(rows, dtype=np.int32)
        self.call = decoder._call(decoder._whole, self.ids, self._owners, self.slots, cache)
        self.pointer = ctypes.byref(self.call)
        self._made_for = rows, kernels.threads(), decoder._memory.version
        self._turns = decoder._turns  # the call points into them

    def fits(self, rows: int, memory: "_Memory") -> bool:
        return self._made_for == (rows, kernels.threads(), memory.version)


class _Memory:
    """Buffers of calls, grown to what is asked for; `coarse` goes into each call."""

    def __init__(self, coarse: float, *programs: Program) -> None:
        self.coarse = coarse
        self.widths = [max(program.widths[n] for program in programs) for n in range(6)]
        self.deepest = max(program.deepest for program in programs)
        self._rows = self._scores_width = self._threads = 0
        self._buffers: list[Tensor] = []
        self.version = 0  # of the places of buffers

    def buffer(self, number: int) -> Tensor:
        return self._buffers[number]

    def call(self, program: Program, rows: int, capacity: int) -> kernels.Call:
        """A call of a program over so many rows, with the buffers' places."""
        threads = kernels.threads()
        width = max(up(self.deepest, 64), TILE * capacity)
        if rows > self._rows or threads > self._threads or width > self._scores_width:
            self.version += 1
        if rows > self._rows or threads > self._threads:
            self._rows = max(rows, self._rows)
            # zeros: what pads a row is read as inputs
            self._buffers = [
                torch.zeros(self._rows if n != LOGITS else 0, width)
                for n, width in enumerate(self.widths)
            ]
            self._area = torch.zeros(max(self._rows, 2 * threads), 4 * self.deepest).byte()
        if width > self._scores_width or threads > self._threads:
            self._scores = torch.zeros(threads, width)
            self._scores_width = width
        self._threads = max(threads, self._threads)
        call = kernels.Call()
        call.ops, call.count, call.rows = program.array, len(program.ops), rows
        call.threads, call.coarse = threads, self.coarse
        call.area_stride, call.scores_stride = self._area.shape[1], self._scores_width
        for number, buffer in enumerate(self._buffers):
            call.buffers[number] = buffer.data_ptr()
            call.strides[number] = self.widths[number]
        call.area, call.scores = self._area.data_ptr(), self._scores.data_ptr()
        return call
