"""Linear layers and tables whose weights are codes of 8 or 4 bits, put in a built network's place.

Only weights are quantised; products are computed in fp32 or bf16. Eight bits: symmetric, one
scale an output row (as in LLM.int8, Dettmers et al., 2022, without its outliers). Four bits: a
scale and a lowest value for each group of inputs (as in GPTQ and gpt-fast). Gradients reach the
input and never the weight, so that adapters can be trained over it (QLoRA, Dettmers et al., 2023).

Few rows without a gradient, in bf16, go through torch's own kernels, which read the small
weights directly. They are private to torch, and the eight-bit one reads past its tensors for
shapes it wasn't made for: they stand behind `_few_rows` alone, for shapes they hold for, tried
out once; everywhere else the weight is made whole for the time of one product.

Shapes: N rows, D inputs, E outputs, G inputs a group.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.errors import BedstoneError, nearest
from bedstone.nn.blocks import Stack
from bedstone.nn.fast.frozen import adapted, working_dtype

TARGETS = ("q", "k", "v", "out", "gate", "up", "down")
GROUPS = (32, 64, 128)
GROUP = 32  # of inference in four bits
LARGEST = 65504.0  # the greatest that a lowest value or a step in fp16 can be
ALIGNED = 16  # bytes: torch's eight-bit kernel reads from multiples of it alone
FEW = 8  # rows: beyond, making the weight whole costs less than the small kernels (measured)
_ROWS = 128  # of a weight made whole at once: what they need stays in the cache


@dataclass(frozen=True)
class Codes:
    """A weight (E, D) as it stands in few bits: code * scale, or in four code * scale + lowest.

    It passes through the tables of names like a tensor, and quantised layers take it as it is,
    where making it whole and quantising it again would round twice.

    Attributes:
        packed: (E, D) int8, or (E, D / 2) uint8 with the first half of a row in the low bits.
        scales: (E, 1), or (E, D / G) in four bits, in the precision that they are stored in.
        lowest: (E, D / G) likewise; None in eight bits.
    """

    packed: Tensor
    scales: Tensor
    lowest: Tensor | None = None

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, lowest: Tensor) -> "Codes":
        """Of codes (E, D) from 0 to 15."""
        first, second = codes.chunk(2, 1)
        return cls(first | (second << 4), scales, lowest)

    @property
    def bits(self) -> int:
        return 8 if self.lowest is None else 4

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.packed), self.packed.shape[1] * 8 // self.bits))

    def dim(self) -> int:
        return 2

    def __len__(self) -> int:
        return len(self.packed)

    def contiguous(self) -> "Codes":
        return self

    def __getitem__(self, rows: Any) -> "Codes":
        lowest = None if self.lowest is None else self.lowest[rows]
        return Codes(self.packed[rows], self.scales[rows], lowest)

    def times(self, factor: float) -> "Codes":
        """The codes of the weight times a factor."""
        lowest = None if self.lowest is None else self.lowest.float() * factor
        return Codes(self.packed, self.scales.float() * factor, lowest)

    def chunk(self, parts: int) -> list["Codes"]:
        """Equal parts of its rows, the last one smaller where there are none."""
        size = -(-len(self) // parts)
        return [self[start : start + size] for start in range(0, len(self), size)]

    def split(self, sizes: Sequence[int]) -> list["Codes"]:
        """So many rows each."""
        ends = list(itertools.accumulate(sizes))
        return [self[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    @property
    def group(self) -> int:
        """Inputs that share a scale, G."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def kind(self) -> tuple[int, int, int, torch.dtype]:
        """Bits, inputs a group and in all, and what the scales are in."""
        return self.bits, self.group, self.shape[1], self.scales.dtype

    @property
    def parts(self) -> dict[str, Tensor]:
        """What it is made of, by the names that files have for it."""
        found = {"codes": self.packed, "scales": self.scales, "lowest": self.lowest}
        return {name: part for name, part in found.items() if part is not None}

    @classmethod
    def join(cls, given: Sequence["Codes"]) -> "Codes":
        """The rows of several, of as many bits and inputs a group, one below another."""
        whole = {name: torch.cat([each.parts[name] for each in given]) for name in given[0].parts}
        return cls(whole["codes"], whole["scales"], whole.get("lowest"))

    def like(self, other: object) -> bool:
        """Whether the rows of another can stand below its own."""
        return isinstance(other, Codes) and self.kind == other.kind

    @torch.no_grad()
    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, (E, D), each number rounded once."""
        made = self.packed.new_empty(self.shape, dtype=dtype)
        half = self.packed.shape[1]
        size = _ROWS if made.device.type == "cpu" else max(len(self), 1)
        for start in range(0, len(self), size):
            part, out = self[start : start + size], made[start : start + size]
            if part.lowest is None:
                torch.mul(part.packed, part.scales.float(), out=out)
                continue
            wide = torch.empty(out.shape, device=out.device)
            wide[:, :half] = part.packed & 15
            wide[:, half:] = part.packed >> 4
            steps = wide.unflatten(1, (-1, self.group))  # (n, D / G, G)
            torch.addcmul(
                part.lowest.float()[..., None], steps, part.scales.float()[..., None], out=steps
            )
            out.copy_(wide)
        return made


@torch.no_grad()
def encode(weight: Tensor, bits: int, group: int = 64, name: str = "the weight") -> Codes:
    """A weight (E, D) in 8 bits a row, or in 4 bits a group of inputs.

    Args:
        name: of the weight, for errors.

    Raises:
        BedstoneError: as `check_codable`.
    """
    check_codable(weight, bits, name)
    wide = weight.detach().float()
    if bits == 8:
        scales = nonzero(wide.abs().amax(1, keepdim=True) / 127)
        return Codes((wide / scales).round_().clamp_(-127, 127).to(torch.int8), scales)
    grouped = wide.unflatten(1, (-1, group))  # (E, D / G, G)
    lowest = grouped.amin(-1).half()
    # The step is taken from the lowest value as kept, so that rounding it costs nothing above.
    scales = nonzero(((grouped.amax(-1) - lowest.float()) / 15).half())
    codes = (grouped - lowest.float()[..., None]) / scales.float()[..., None]
    return Codes.of(codes.round_().clamp_(0, 15).flatten(1).to(torch.uint8), scales, lowest)


def check_codable(weight: Tensor, bits: int, name: str) -> None:
    """Raises BedstoneError for a weight that has numbers which codes can't stand for."""
    if weight.is_meta or not weight.numel():
        return
    least, most = (float(each) for each in weight.detach().aminmax())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise BedstoneError(
            f"{name}: holds numbers that aren't finite (NaN or infinity), which no code stands "
            "for. Take another copy of the weights, or an earlier checkpoint."
        )
    largest = max(-least, most)
    if bits == 4 and largest > LARGEST:
        raise BedstoneError(
            f"{name}: holds {largest:.4g}; scales of 4 bits are fp16 and reach {LARGEST:,.0f}. "
            "Take 8 bits."
        )


class Quantized(nn.Module):
    """A layer whose weight (E, D) is held as codes.

    In a state dict it looks like the layer it replaced: `weight` is made whole again on
    saving and quantised again on loading. So whatever is saved opens everywhere and computes
    what was trained and tested, at the size of a plain model.
    """

    codes: Tensor  # (E, D) int8, or (E, D / 2) uint8: the first half of a row in the low bits
    scales: Tensor  # (E, 1) fp32 or (E, D / G) fp16, or as the codes of a file have them
    lowest: Tensor | None  # (E, D / G), likewise

    def __init__(self, kept: torch.dtype, codes: Codes) -> None:
        super().__init__()
        self.kept = kept  # what the weight is made whole in
        self.dtype: torch.dtype | None = None  # of inference, where one was chosen beforehand
        for name in ("codes", "scales", "lowest"):
            self.register_buffer(name, None, persistent=False)
        self.take(codes)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device

    @property
    def held(self) -> Codes:
        """The weight as it stands."""
        return Codes(self.codes, self.scales, self.lowest)

    @property
    def weight(self) -> Tensor:
        """The weight made whole, (E, D): a new tensor each time."""
        return self.whole(self.kept)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, (E, D)."""
        return self.held.whole(dtype)

    def take(self, given: Codes) -> None:
        """Takes codes as they are."""
        self.bits, self.group, self.shape = given.bits, given.group, given.shape
        self.codes, self.scales, self.lowest = given.packed, given.scales, given.lowest
        self._packed: tuple[Tensor, Tensor] | None = None  # as the kernels for few rows read them

    def _apply(self, fn: Any, recurse: bool = True) -> "Quantized":
        """Moves codes and scales; another dtype is what the weight is made whole in from now on."""
        before = self.held
        self.kept = fn(before.scales.new_empty(0, dtype=self.kept)).dtype
        super()._apply(fn, recurse)
        if self.scales.dtype is not before.scales.dtype:  # scales are as exact as they were made
            self.scales = before.scales.to(self.device)
            self.lowest = None if before.lowest is None else before.lowest.to(self.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = f"{prefix}weight"
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        weight = state_dict.get(key)
        if weight is None:
            missing_keys.append(key)
        elif weight.shape != self.shape:
            error_msgs.append(
                f"size mismatch for {key}: {tuple(weight.shape)} was given, expected "
                f"{tuple(self.shape)}."
            )
        elif isinstance(weight, Codes):
            self.take(weight)
        else:
            self.take(encode(weight.to(self.device), self.bits, self.group))


class QuantizedLinear(Quantized):
    """x W^T + b, (..., D) to (..., E), the weight in 8 bits a row or 4 bits a group.

    Args:
        linear: what it takes the place of.
        bits: 8 or 4.
        group: inputs that share a scale, for 4 bits; divides D.
        codes: to take in the place of the linear layer's weight.
    """

    def __init__(
        self, linear: nn.Linear, bits: int, group: int = 64, codes: Codes | None = None
    ) -> None:
        super().__init__(linear.weight.dtype, codes or encode(linear.weight, bits, group))
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # the layer is frozen whole; whose place it takes may stay as it is
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), False)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"

    def product(self, x: Tensor) -> Tensor:
        """x W^T + b for rows (N, D) in a floating dtype; no gradient."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        quick = x.dtype is torch.bfloat16 or self.dtype is not None  # exact where it may learn
        if len(x) <= FEW and quick and self._small_kernel_fits():
            # torch's kernels are quick in bf16 alone, on every processor; rounding the rows to it
            # costs less than rounding the weight to codes did
            y = self._few_rows(x.bfloat16().contiguous()).to(x.dtype)
            return y if bias is None else y.add_(bias)
        return F.linear(x, self.whole(x.dtype), bias)

    def back(self, gradient: Tensor) -> Tensor:
        """g W, (N, E) to (N, D)."""
        return gradient @ self.whole(gradient.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype or working_dtype(x))
        if torch.compiler.is_compiling():
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.whole(x.dtype), bias)
        return adapted(x, self)

    def _small_kernel_fits(self) -> bool:
        even = self.out_features % 16 == 0 and self.in_features % 64 == 0
        return even and self.codes.device.type == "cpu" and _kernel_works(self.bits)

    def _few_rows(self, x: Tensor) -> Tensor:
        if self.lowest is None:
            codes = self.codes
            if codes.data_ptr() % ALIGNED:  # as files hold them; the kernel would crash
                self._packed = self._packed or (codes.clone(), self.scales)
                codes, _ = self._packed
            return torch._weight_int8pack_mm(x, codes, self.scales.flatten().to(x.dtype))
        if self._packed is None:
            codes = torch.cat((self.codes & 15, self.codes >> 4), 1).int()
            packed = torch._convert_weight_to_int4pack_for_cpu(codes, 1)
            # The kernel computes (code - 8) scale + zero.
            zeros = (self.lowest.float() + 8 * self.scales.float()).bfloat16()
            constants = torch.stack((self.scales.bfloat16(), zeros), -1)  # (E, D / G, 2)
            self._packed = packed, constants.transpose(0, 1).contiguous()
        packed, constants = self._packed
        return torch._weight_int4pack_mm_for_cpu(x, packed, self.group, constants)


class QuantizedEmbedding(Quantized):
    """Rows of a table by their numbers, ids (...) to (..., D); where it is tied to a head, of the
    head's own codes.

    Args:
        embedding: what it takes the place of.
        codes: of its weight.
    """

    def __init__(self, embedding: nn.Embedding, codes: Codes) -> None:
        super().__init__(embedding.weight.dtype, codes)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, bits={self.bits}"

    def forward(self, ids: Tensor) -> Tensor:
        # in inference an embedding begins an fp32 residual stream
        dtype = self.kept if self.dtype is None else torch.float32
        return self.held[ids.flatten()].whole(dtype).unflatten(0, ids.shape)


def quantize(
    network: nn.Module,
    *,
    bits: int = 8,
    group: int = 64,
    targets: Iterable[str] = TARGETS,
) -> list[str]:
    """Puts quantised layers in the place of the linear layers inside a network's stacks.

    Embeddings, norms and heads stay as they are. Quantise first, then add adapters.

    Args:
        bits: 8 or 4.
        group: inputs that share a scale, for 4 bits: 32, 64 or 128.
        targets: which sublayers, by name.

    Returns:
        The names of the layers that were replaced.

    Raises:
        BedstoneError: sizes that can't be had, a target that is none; nothing was replaced.
    """
    if bits not in (8, 4):
        raise BedstoneError(f"quantize: bits={bits!r} was given; expected 8 or 4.")
    if bits == 4 and group not in GROUPS:
        raise BedstoneError(f"quantize: group={group!r} was given; expected 32, 64 or 128.")
    targets = tuple(targets)
    found = _linears(network, targets)
    for target in targets:
        if not any(name.rpartition(".")[2] == target for name in found) and target not in TARGETS:
            raise BedstoneError(
                f"quantize: {target!r} of targets is none{nearest(target, TARGETS)}."
            )
    for name, linear in found.items():
        if type(linear) is not nn.Linear:
            raise BedstoneError(
                f"quantize: {name} has adapters already. Quantise the base first, then add them."
            )
        if bits == 4 and linear.in_features % group:
            sizes = [each.in_features for each in found.values()]
            fitting = [size for size in GROUPS if not any(n % size for n in sizes)]
            advice = (
                f"Take group={fitting[-1]}, which divides the inputs of all layers."
                if fitting
                else f"None of {', '.join(map(str, GROUPS))} divides the inputs of all layers; "
                "take 8 bits (bits=8, or quantize=8 of a recipe), which need no groups."
            )
            raise BedstoneError(
                f"quantize: group={group} doesn't divide {linear.in_features}, the inputs of "
                f"{name}. {advice}"
            )
    codes = {
        name: encode(linear.weight, bits, group, f"{name}.weight") for name, linear in found.items()
    }
    for name, linear in found.items():
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, stand_in(linear, codes[name]))
    return list(found)


def stand_in(module: nn.Linear | nn.Embedding, codes: Codes) -> Quantized:
    """The quantised layer that takes a layer's place."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(module, codes)
    return QuantizedLinear(module, codes.bits, codes.group, codes)


def kinds_for_inference(network: nn.Module, bits: int, group: int = GROUP) -> dict[str, int]:
    """The layers of a network that inference in few bits quantises, and the group of each: 0 for
    8 bits a row.

    They are the linear layers of stacks, tables of words, and what predicts words or as much: a
    layer of the head that has no fewer outputs than inputs. Tables and heads take 8 bits, and
    where no group divides a layer's inputs, so does the layer.
    """
    inner, outer = _linears(network, TARGETS), dict[str, int]()
    for name, module in network.named_modules():
        leaf = name.rpartition(".")[2]
        head = ".head." in f".{name}." and isinstance(module, nn.Linear)
        words = leaf == "embed" and type(module) is nn.Embedding
        if words or (head and module.out_features >= module.in_features):
            outer[name] = 0
    sizes = [size for size in (group, *sorted(GROUPS, reverse=True)) if size <= group]
    return outer | {
        name: 0 if bits == 8 else next((n for n in sizes if not module.in_features % n), 0)
        for name, module in inner.items()
    }


def check_trainable(network: nn.Module, path: str) -> None:
    """Raises BedstoneError for a module that isn't there, or can't be trained whole."""
    module = dict(network.named_modules()).get(path)
    if module is None:
        raise BedstoneError(f"lora.train: the network has no module {path!r}.")
    if any(isinstance(part, Quantized) for part in module.modules()):
        raise BedstoneError(
            f"lora.train: {path} is quantised, and codes can't learn. Adapt it by lora.targets, or "
            "take the model that was quantised."
        )


def held_in(layer: Any) -> tuple[torch.dtype, torch.device]:
    """What a layer's weight is held in, or was chosen to be computed in, and where."""
    if isinstance(layer, Quantized):
        return layer.dtype or layer.kept, layer.device
    return layer.weight.dtype, layer.weight.device


def make_whole_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Sets what a network's quantised weights are made whole in, where nothing else is chosen."""
    for module in network.modules():
        if isinstance(module, Quantized):
            module.kept = dtype


def weights_of(network: nn.Module) -> tuple[int, int]:
    """How many weights a network has, and how many bytes they take, quantised ones too."""
    count = sum(weight.numel() for weight in network.parameters())
    size = sum(weight.nbytes for weight in network.parameters())
    held = {
        id(module.codes): module.held
        for module in network.modules()
        if isinstance(module, Quantized)
    }
    for codes in held.values():  # tied layers have the same
        count += codes.shape.numel()
        size += sum(part.nbytes for part in codes.parts.values())
    return count, size


def quantized_part(network: nn.Module) -> dict[str, str]:
    """How many weights are quantised to how many bits, in words, by `quantized`; {} for none."""
    counts: dict[int, int] = {}
    held = {id(m.codes): m for m in network.modules() if isinstance(m, Quantized)}
    for module in held.values():
        counts[module.bits] = counts.get(module.bits, 0) + module.shape.numel()
    parts = [f"{count:,} to {bits} bits" for bits, count in sorted(counts.items())]
    return {"quantized": ", ".join(parts)} if parts else {}


def held_state(network: nn.Module) -> dict[str, Any]:
    """A state dict with the codes of quantised layers as they stand, under the weights' names."""
    found: dict[str, Any] = {}
    for path, module in network.named_modules():
        start = f"{path}." if path else ""
        if isinstance(module, Quantized):
            found[f"{start}weight"] = module.held
        own = {**module._parameters, **module._buffers}
        passing = module._non_persistent_buffers_set
        found |= {
            start + name: each.detach()
            for name, each in own.items()
            if each is not None and name not in passing
        }
    return found


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a state dict, with nothing made whole for it."""
    return {name: each.shape for name, each in held_state(network).items()}


def hold(network: nn.Module, codes: Mapping[str, Codes]) -> None:
    """Puts layers that hold such codes in the place of plain ones.

    Args:
        codes: by the names of the weights, which `holds`.
    """
    for name, given in codes.items():
        parent, _, leaf = name.removesuffix(".weight").rpartition(".")
        module = network.get_submodule(parent)
        plain = getattr(module, leaf)
        if not isinstance(plain, Quantized):  # which takes them as it is loaded
            setattr(module, leaf, stand_in(plain, given))


def holds(network: nn.Module, name: str) -> bool:
    """Whether a parameter is the weight of a layer that a quantised one can stand for."""
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    plain = type(module) in (nn.Linear, nn.Embedding)
    return leaf == "weight" and (plain or isinstance(module, Quantized))


def _linears(network: nn.Module, targets: Iterable[str]) -> dict[str, nn.Linear]:
    """Linear layers inside a network's stacks, of such names."""
    return {
        f"{stack_name}.{name}".lstrip("."): module
        for stack_name, stack in network.named_modules()
        if isinstance(stack, Stack)
        for name, module in stack.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets
    }


def nonzero(scales: Tensor) -> Tensor:
    """Steps of constant rows, which need none, made divisible by."""
    return torch.where(scales == 0, torch.ones_like(scales), scales)


@cache
def _kernel_works(bits: int) -> bool:
    """Whether torch's kernel for few rows is there, and right: tried out once."""
    weight = (torch.arange(32 * 128).view(32, 128) % 15 - 7) / 8.0  # exact in either form
    x = (torch.arange(3 * 128).view(3, 128) % 5 - 2).bfloat16()
    linear = nn.Linear(128, 32, bias=False)
    linear.weight = nn.Parameter(weight, False)
    layer = QuantizedLinear(linear, bits, 32)
    try:
        found = layer._few_rows(x).float()
    except (AttributeError, RuntimeError, TypeError):
        return False
    expected = F.linear(x.float(), layer.whole(torch.float32))
    return bool((found - expected).abs().max() <= 0.02 * expected.abs().max())
