"""A causal network ready to generate: every step is one call of the engine.

It takes the place of `for_inference` where the engine runs: weights are laid out once, in fp32,
bf16, 8 or 4 bits, with the head and the embedding; keys and values stand as attention reads them.
A token's result is the same to the last bit whether it is read alone, with others of its row (a
prompt, drafts to be checked), or beside other rows.

Where blocks attend to a memory (captions, translation), its keys and values are computed once.

Shapes: B rows, T tokens, M tokens of all rows, D width, V vocabulary, G key/value heads, W their
width, padded to 16, C capacity, padded to 16, P memories, S states of a memory.
"""

import ctypes
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.measured import best_count
from bedstone.nn.attention import check_memory
from bedstone.nn.cache import Cache, LayerCache
from bedstone.nn.fast import kernels
from bedstone.nn.fast.panels import BF16, FP32, INT8, SIDE, Panels, address, up
from bedstone.nn.fast.program import (
    COARSE,
    EMBED,
    HIDDEN,
    LOGITS,
    NORM,
    OUT,
    PRODUCT,
    DecoderParts,
    Layers,
    NotPossible,
    Program,
    X,
    activation_of,
)  # fmt: skip
from bedstone.nn.lora import LoRALinear
from bedstone.nn.positions import LearnedPositions, RelativeBias, SinusoidalPositions

TOKENS = 256  # read in one call at most: what they need stays in the processor's cache
TILE = 8  # rows of scores that a thread holds
SMALL = 4 << 20  # bytes of weights below which threads aren't tried out
CACHE_DTYPES = {FP32: torch.float32, BF16: torch.bfloat16, INT8: torch.int8}
NEVER = 2**31 - 1  # the slot from which a state of a memory is seen that is padding


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
        self.memory: _Memories | None = None  # what cross-attention reads
        self.reads = np.zeros(batch, np.int32)  # of each row: its memory
        if kind == INT8:
            self.layers.append(LayerCache(self, torch.zeros(shape), torch.zeros(shape)))

    def used(self) -> int:
        return up(self.length, SIDE)  # slots of a block stand interleaved

    def _take(self, rows: Tensor) -> None:
        self.step = None  # keys and values are elsewhere from now on
        super()._take(rows)

    def _settle(self, rows: Tensor, writers: Tensor) -> None:
        reads = self.reads[rows.numpy()]
        if not np.array_equal(reads, self.reads):
            self.step = None
        self.reads = reads
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


@dataclass
class _Memories:
    """Keys and values of memories, and the slot of the first token that sees each state.

    Attributes:
        first: (P, S), in rising order; None where all tokens see the same.
        lengths: states that are seen, (P,).
    """

    cache: EngineCache
    first: np.ndarray | None
    lengths: np.ndarray

    def seen(self, memories: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """How many states each token sees, (M,), of its memory and slot."""
        if self.first is None:
            return self.lengths[memories]
        return (self.first[memories] <= slots[:, None]).sum(1, dtype=np.int32)


class Decoder:
    """A network over the engine, with all that `generation.autoregress` asks of one.

    Args:
        network: with `decoder_parts`, in evaluation mode, on the CPU.
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
        parts: DecoderParts = network.decoder_parts()
        if parts.rotary is not None and parts.rotary.frequencies.varies:
            raise NotPossible("rotary frequencies that vary with the length")
        self.config = parts.config
        self.width = int(parts.config.width)
        kind = FP32 if dtype is torch.float32 and not bits else BF16
        self.cache_kind = INT8 if cache_bits == 8 else kind
        self._parts = parts
        self._steps, self._head = Program(), Program()
        layers = Layers(network, kind, bits)
        out = getattr(parts.head, "out", parts.head)
        head = layers.panels(out)
        self._embed = head if parts.tied else layers.panels(parts.embed)
        self._steps.add(EMBED, X, X, self._embed, factor=parts.factor)
        if parts.embed_norm is not None:
            self._steps.add(NORM, X, X, norm=parts.embed_norm)
        self._steps.blocks(parts.stack, layers)
        self._last = X if parts.norm is None else OUT  # the buffer of last states
        if parts.norm is not None:
            self._steps.add(NORM, X, OUT, norm=parts.norm)
        self._steps.widths[OUT] = self._steps.widths[X]
        if len(self._steps.heads) != 1:
            raise NotPossible("heads that differ between blocks")
        self._words(self._head, parts.head, head, layers)
        self._whole = self._steps.then(self._head)
        self._keeping = self._steps.memory(layers)
        if len({(each.groups, each.padded) for _, each in self._steps.crosses}) > 1:
            raise NotPossible("heads of cross-attention that differ between blocks")
        self._learnt = self._positions(parts.positions)
        self._whole.settle()
        self._keeping.settle()
        self._turns: tuple[Tensor, Tensor] | None = None
        self._bias: tuple[Tensor, int] | None = None
        coarse = COARSE if bits or dtype is torch.bfloat16 else 0.0
        self._memory = _Memory(coarse, self._whole, self._keeping)
        self._lock = threading.Lock()
        shape = f"{kind} {bits} {self.nbytes} {len(self._steps.ops)} {kernels.instructions()}"
        products = self._steps.products()

        def one_token(threads: int) -> None:
            call = self._memory.call(products, 1, 0)
            call.active = threads
            self._run(call)

        most = kernels.threads()
        measures = most > 1 and self.nbytes >= SMALL
        self._memory.few = most, best_count(shape, most, one_token) if measures else most

    def _words(self, program: Program, head: Any, out: Panels, layers: Layers) -> None:
        """The head's operations on last states."""
        dense, norm = (getattr(head, name, None) for name in ("dense", "norm"))
        if dense is None:
            program.add(PRODUCT, self._last, LOGITS, out, norm=norm)
            return
        program.add(
            PRODUCT, self._last, HIDDEN, layers.panels(dense),
            activation=activation_of(head.activation),
        )  # fmt: skip
        program.add(PRODUCT, HIDDEN, LOGITS, out, norm=norm)

    @property
    def nbytes(self) -> int:
        """Of the weights that are read for one token."""
        return self._steps.nbytes + self._head.nbytes - self._embed.nbytes

    @property
    def few_threads(self) -> int:
        """How many threads work on few rows."""
        return self._memory.few[1]

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache for `batch` rows of up to `capacity` tokens."""
        cache = self.own_cache(batch, capacity)
        if self._steps.crosses:  # of a text alone: there is a memory, and no token sees it
            wide = self._steps.crosses[0][0].k.in_features
            cache.memory = self._memories(torch.zeros(1, 1, wide), torch.full((1, 1), NEVER))
        return cache

    def own_cache(self, batch: int, capacity: int) -> EngineCache:
        """An empty cache without memories."""
        ((_, groups, width),) = self._steps.heads
        layers = len(list(self._parts.stack.children()))
        return EngineCache(layers, batch, groups, capacity, width, self.cache_kind)

    def over(self, memory: Tensor, first: Tensor | None = None) -> "MemoryDecoder":
        """The decoder over memories (P, S, their width); neighbouring rows may share one.

        Args:
            first: the slot of the first token that sees each state, (P, S), `NEVER` for padding;
                None shows all to all.
        """
        return MemoryDecoder(self, self._memories(memory, first))

    @torch.inference_mode()
    def _memories(self, memory: Tensor, first: Tensor | None) -> _Memories:
        count, states, _ = memory.shape
        lengths = np.full(count, states, np.int32)
        sorted_first = None
        if first is not None:
            first, order = first.sort(dim=1, stable=True)  # states that are seen stand first
            memory = memory.gather(1, order[..., None].expand_as(memory))
            lengths = (first < NEVER).sum(1).numpy().astype(np.int32)
            if bool(((first > 0) & (first < NEVER)).any()):
                sorted_first = first.numpy()
        crosses = self._steps.crosses
        (source, shape), wide = crosses[0], memory.shape[-1]
        if wide != source.k.in_features:
            raise BedstoneError(
                f"memory: its states are {wide} wide; the network's cross-attention reads "
                f"{source.k.in_features}. Take states of the network's own."
            )
        cache = EngineCache(
            len(crosses), count, shape.groups, states, shape.padded, self.cache_kind
        )
        owners = np.repeat(np.arange(count, dtype=np.int32), states)
        slots = np.tile(np.arange(states, dtype=np.int32), count)
        rows = memory.reshape(-1, memory.shape[-1])
        with self._lock:
            for start in range(0, len(rows), TOKENS):
                part = slice(start, start + TOKENS)
                call = self._call(self._keeping, slots[part], owners[part], slots[part], cache)
                call.memory = cache.struct()
                buffer = self._memory.buffer(X)[: len(rows[part])]
                buffer.zero_()
                buffer[:, : rows.shape[1]] = rows[part]
                self._run(call)
        return _Memories(cache, sorted_first, lengths)

    def states(self, ids: Tensor, *, cache: Cache | None = None) -> Tensor:
        """The last hidden states, (B, T, D), before the head; padding of prompts is zeros."""
        batch, length = ids.shape
        cache = self.new_cache(batch, length) if cache is None else cache
        assert isinstance(cache, EngineCache)
        self._require(cache, length)
        lengths = np.full(batch, cache.length) if cache.lengths is None else cache.lengths.numpy()
        real = np.full(batch, length)
        if cache.coming is not None:
            real = np.clip(cache.coming.amax(1).numpy() - lengths, 0, length)
        owners = np.repeat(np.arange(batch, dtype=np.int32), real)
        steps = np.arange(len(owners)) - np.repeat(real.cumsum() - real, real)
        slots = (lengths[owners] + steps).astype(np.int32)
        tokens = ids.numpy()[owners, steps].astype(np.int32)
        found = torch.empty(len(owners), self.width)
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
        self._require(cache, 1)
        logits = torch.empty(len(tokens), self._memory.widths[LOGITS])
        with self._lock:
            held = cache.step
            if held is None or not held.fits(len(tokens), self._memory):
                held = cache.step = _Step(self, cache, len(tokens))
            held.ids[:] = tokens.numpy()
            held.slots[:] = cache.length if cache.lengths is None else cache.lengths.numpy()
            if cache.memory is not None and cache.memory.first is not None:
                held.seen[:] = cache.memory.seen(cache.reads, held.slots)
            held.call.buffers[LOGITS] = logits.data_ptr()
            self._library.bedstone_run(held.pointer)
        cache.advance(1)
        return logits[:, : self.config.vocab_size]

    @torch.inference_mode()
    def read(
        self,
        tokens: np.ndarray,
        owners: np.ndarray,
        slots: np.ndarray,
        wanted: np.ndarray,
        cache: Cache,
    ) -> Tensor:
        """Reads tokens of any rows of a cache in one pass; logits (n, V) after some of them.

        The cache counts no lengths: whoever calls this knows how long each row is.

        Args:
            tokens: ids, (M,), at most `TOKENS`; those of a row side by side and in order.
            owners: the row of each, (M,).
            slots: the place in its row of each, (M,).
            wanted: the places, among the M, of tokens whose logits are asked for, (n,).
        """
        assert isinstance(cache, EngineCache)
        tokens, owners, slots = (part.astype(np.int32) for part in (tokens, owners, slots))
        with self._lock:
            states = self._read(tokens, owners, slots, cache)
            chosen = states[torch.from_numpy(wanted)]  # a copy
        return self.head(chosen) if len(wanted) else chosen.new_empty(0, self.config.vocab_size)

    def _require(self, cache: EngineCache, new: int) -> None:
        """Raises where the cache, or what is learnt of positions, has no place for more tokens."""
        cache.require(new)
        if self._learnt is not None and cache.length + new > len(self._learnt):
            raise BedstoneError(
                f"text: has {cache.length + new} tokens; the network's context is "
                f"{len(self._learnt)}. Shorten it."
            )

    def head(self, states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D)."""
        rows = states.reshape(-1, states.shape[-1])
        logits = torch.empty(len(rows), self._memory.widths[LOGITS])
        with self._lock:
            for start in range(0, len(rows), TOKENS):
                part = rows[start : start + TOKENS]
                call = self._memory.call(self._head, len(part), 0)
                self._memory.buffer(self._last)[: len(part), : part.shape[1]] = part
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
        call = self._call(self._steps, tokens, owners, slots, cache)
        if cache.memory is not None:
            memories = cache.reads[owners]
            seen = cache.memory.seen(memories, slots)
            call.memories, call.seen = memories.ctypes.data, seen.ctypes.data
        self._run(call)
        return self._memory.buffer(self._last)[: len(tokens), : self.width]

    def _call(
        self,
        program: Program,
        tokens: np.ndarray,
        owners: np.ndarray,
        slots: np.ndarray,
        cache: EngineCache,
    ) -> kernels.Call:
        capacity = cache.layers[0].keys.shape[2]
        if cache.memory is not None:
            call_memory = cache.memory.cache
            capacity = max(capacity, call_memory.layers[0].keys.shape[2])
        call = self._memory.call(program, len(tokens), capacity)
        if cache.memory is not None:
            call.memory = call_memory.struct()
        call.cache, call.cache_kind = cache.struct(), cache.kind
        call.ids, call.owners = tokens.ctypes.data, owners.ctypes.data
        call.slots = slots.ctypes.data
        cosines, sines = self._rotation(cache.capacity)
        call.cosines, call.sines = address(cosines), address(sines)
        call.learnt = address(self._learnt)
        if self._parts.bias is not None:
            distances, call.reach = self._distances(self._parts.bias, cache.capacity)
            call.distances = distances.data_ptr()
        return call

    def _run(self, call: kernels.Call) -> None:
        self._library.bedstone_run(ctypes.byref(call))

    def _rotation(self, capacity: int) -> tuple[Tensor | None, Tensor | None]:
        """Cosines and sines of positions, each (positions, W / 2)."""
        if self._parts.rotary is None:
            return None, None
        if self._turns is None or len(self._turns[0]) < capacity:
            with torch.inference_mode():
                turns = self._parts.rotary(torch.arange(up(capacity, TOKENS))[None])
            half = turns[0].shape[-1] // 2
            cosines, sines = (part[0, 0, :, :half].float().contiguous() for part in turns)
            self._turns = cosines, sines
        return self._turns

    def _distances(self, bias: RelativeBias, capacity: int) -> tuple[Tensor, int]:
        """What is added to scores, (H, reach + 16): of distances from reach - 1 to 0, then 0."""
        if self._bias is None or self._bias[1] < capacity:
            reach = up(capacity, TOKENS)
            with torch.inference_mode():
                values = bias(torch.tensor([reach - 1]), torch.arange(reach))[0, :, 0]
            self._bias = nn.functional.pad(values.float(), (0, SIDE)).contiguous(), reach
        return self._bias

    def _positions(self, module: nn.Module | None) -> Tensor | None:
        """What is added to words, of each position as wide as what is embedded."""
        if module is None:
            return None
        if type(module) not in (LearnedPositions, SinusoidalPositions):
            raise NotPossible(f"positions of {type(module).__name__}")
        with torch.inference_mode():
            weight = module(torch.arange(self.config.context)[None])[0].float()
        return nn.functional.pad(weight, (0, self._embed.ins - weight.shape[1])).contiguous()


class MemoryDecoder:
    """A `Decoder` over memories, with all that `generation.autoregress` asks of a network."""

    exact = True

    def __init__(self, decoder: Decoder, memories: _Memories) -> None:
        self.config = decoder.config
        self.states, self.step, self.head = decoder.states, decoder.step, decoder.head
        self._decoder, self._memories = decoder, memories

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty key/value cache, whose rows share the memories: as many of each, in order."""
        count = len(self._memories.lengths)
        check_memory(count, batch)
        cache = self._decoder.own_cache(batch, capacity)
        cache.memory = self._memories
        cache.reads = np.arange(count, dtype=np.int32).repeat(batch // count)
        return cache


def decoder_of(network: Any, dtype: torch.dtype, bits: int | None = None) -> Decoder | None:
    """The network over the engine; None where that isn't possible."""
    if not hasattr(network, "decoder_parts"):
        return None
    if next(network.parameters()).device.type != "cpu":
        return None
    try:
        return Decoder(network, dtype, bits)
    except NotPossible:
        return None


class LazyDecoder:
    """A network's `Decoder`, made at its first use: a network that is ready may only be read.

    It is of the weights that the network had when this was made: where they have changed since,
    there is none.
    """

    def __init__(self, network: Any, dtype: torch.dtype, bits: int | None) -> None:
        self._source: tuple[Any, torch.dtype, int | None] | None = (network, dtype, bits)
        self._was = _state(network)
        self._made: Decoder | None = None
        self._lock = threading.Lock()

    def over(self, memory: Tensor, first: Tensor | None = None) -> MemoryDecoder | None:
        """`Decoder.over`; None where the engine can't be used."""
        with self._lock:
            if self._source is not None:
                if _state(self._source[0]) == self._was:
                    self._made = decoder_of(*self._source)
                self._source = None
        return None if self._made is None else self._made.over(memory, first)


def _state(network: nn.Module) -> list[Any]:
    """What differs once a weight has been changed, or another adapter is used."""
    weights = [
        (id(each), -1 if each.is_inference() else each._version) for each in network.parameters()
    ]
    used = [each.adapter() for each in network.modules() if isinstance(each, LoRALinear)]
    return [*weights, *map(id, used)]


class _Step:
    """A call of the whole network for one more token of each row of a cache."""

    def __init__(self, decoder: Decoder, cache: EngineCache, rows: int) -> None:
        self.ids, self.slots = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        self._owners = np.arange(rows, dtype=np.int32)
        self.call = decoder._call(decoder._whole, self.ids, self._owners, self.slots, cache)
        if cache.memory is not None:
            self._memories = cache.reads
            self.seen = cache.memory.seen(cache.reads, self.slots)
            self.call.memories = self._memories.ctypes.data
            self.call.seen = self.seen.ctypes.data
        self.pointer = ctypes.byref(self.call)
        self._made_for = rows, kernels.threads(), decoder._memory.version
        self._kept = decoder._turns, decoder._bias  # the call points into them

    def fits(self, rows: int, memory: "_Memory") -> bool:
        return self._made_for == (rows, kernels.threads(), memory.version)


class _Memory:
    """Buffers of calls, grown to what is asked for; `coarse` goes into each call."""

    def __init__(self, coarse: float, *programs: Program) -> None:
        self.coarse = coarse
        self.few = 1, 1  # threads that work on few rows, where there are so many
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
        there, few = self.few
        call.active = few if rows <= TILE and there == threads else threads
        call.area_stride, call.scores_stride = self._area.shape[1], self._scores_width
        for number, buffer in enumerate(self._buffers):
            call.buffers[number] = buffer.data_ptr()
            call.strides[number] = self.widths[number]
        call.area, call.scores = self._area.data_ptr(), self._scores.data_ptr()
        return call
