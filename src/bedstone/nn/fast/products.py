"""Products of quantised layers by the engine, in the place of linear layers of any network.

Inputs are rounded to 8 bits too, with a scale for each row, finer where a few numbers stand far
above the others (native/engine.cpp): that is what makes encoders and diffusion faster than bf16.
Shapes: N rows, D inputs, E outputs.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.nn.fast import kernels
from bedstone.nn.fast.panels import DEPTH, joined, panels, up
from bedstone.nn.fast.program import ACTIVATIONS, OUT, PRODUCT, Program, X
from bedstone.nn.quantize import QuantizedLinear

ROWS = 256  # made ready at a time: they stay in the processor's cache
TYPES = (torch.float32, torch.bfloat16)
# As `program.COARSE`: rows are many and have no wide groups in common, each of which costs all of
# a tile's rows; an embedding or an image takes a coarser rounding than a language model's logits.
COARSE = 2.0
_own = threading.local()  # each thread's memory for rows made ready


class EngineLinear(nn.Module):
    """activation(x W^T + b), (..., D) to (..., E), for inference alone.

    It gives `dtype`, or that of x where it is None.

    Args:
        layers: quantised in one way; their outputs stand side by side.
        activation: one of `program.ACTIVATIONS`, or None.
    """

    def __init__(
        self, *layers: QuantizedLinear, activation: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.in_features = layers[0].in_features
        self.out_features = sum(layer.out_features for layer in layers)
        self.dtype: torch.dtype | None = None
        self.panels = joined([panels(layer.held, bias=layer.bias) for layer in layers]).settle()
        self._activation = ACTIVATIONS[activation] if activation else 0
        self._programs: dict[tuple[bool, bool], Program] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineLinear":
        return self  # nothing of it changes

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in TYPES:
            x = x.float()
        rows = x.reshape(-1, self.in_features).contiguous()
        ins, outs = self.panels.ins, self.panels.outs
        if ins != self.in_features:
            rows = nn.functional.pad(rows, (0, ins - self.in_features))
        dtype = self.dtype or x.dtype
        out = torch.empty(len(rows), outs, dtype=dtype)
        found = kernels.library()
        assert found is not None
        call = _call(self._program(x.dtype, dtype), ins)
        for start in range(0, len(rows), ROWS):
            call.rows = min(ROWS, len(rows) - start)
            call.buffers[X] = rows.data_ptr() + rows.itemsize * ins * start
            call.buffers[OUT] = out.data_ptr() + out.itemsize * outs * start
            found.bedstone_run(ctypes.byref(call))
        return out[:, : self.out_features].unflatten(0, x.shape[:-1])

    def _program(self, source: torch.dtype, target: torch.dtype) -> Program:
        """The product of rows of one dtype into those of another."""
        rough = source is torch.bfloat16, target is torch.bfloat16
        if rough not in self._programs:
            program = Program()
            program.add(PRODUCT, X, OUT, self.panels, activation=self._activation)
            program.ops[0].reads_bf16, program.ops[0].gives_bf16 = rough
            self._programs[rough] = program
        return self._programs[rough]


def fits(*layers: nn.Module) -> bool:
    """Whether an `EngineLinear` can take the place of these, side by side."""
    first = layers[0]
    if not isinstance(first, QuantizedLinear) or first.device.type != "cpu":
        return False
    same = all(
        isinstance(each, QuantizedLinear)
        and (each.bits, each.group) == (first.bits, first.group)
        and (each.bits == 8 or each.group % DEPTH == 0)
        and (len(layers) == 1 or each.out_features % 16 == 0)
        for each in layers
    )
    return same and kernels.library() is not None


def _call(program: Program, ins: int) -> kernels.Call:
    """A call with this thread's memory, wide enough for rows of so many inputs."""
    threads = kernels.threads()
    held: tuple[int, int, Tensor, Tensor] | None = getattr(_own, "held", None)
    if held is None or held[0] < ins or held[1] < threads:
        wide = max(ins, held[0] if held else 0)
        area = torch.empty(max(ROWS, 2 * threads) * 4 * wide, dtype=torch.uint8)
        held = wide, threads, area, torch.empty(threads, up(wide, 64))
        _own.held = held
    wide, _, area, scores = held
    call = kernels.Call()
    call.ops, call.count, call.threads, call.active = program.array, 1, threads, threads
    call.area, call.area_stride = area.data_ptr(), 4 * wide
    call.scores, call.scores_stride = scores.data_ptr(), scores.shape[1]
    call.strides[X], call.strides[OUT] = ins, program.weights[0].outs
    call.coarse = COARSE
    return call
