"""Products of quantised layers by the engine, in the place of linear layers of any network.

Inputs are rounded to 8 bits too, in groups of 32 with a scale each, finer where a few numbers stand
far above the others (native/engine.cpp): that is what makes prompts, encoders and diffusion faster
than bf16. Shapes: N rows, D inputs, E outputs.
"""

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bedstone.nn.fast import kernels
from bedstone.nn.fast.panels import DEPTH, joined, panels, up
from bedstone.nn.fast.program import ACTIVATIONS, COARSE, OUT, PRODUCT, Program, X
from bedstone.nn.quantize import QuantizedLinear

ROWS = 256  # made ready at a time: they stay in the processor's cache
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
        self.panels = joined([panels(layer.held, bias=layer.bias) for layer in layers])
        self._program = Program()
        code = ACTIVATIONS[activation] if activation else 0
        self._program.add(PRODUCT, X, OUT, self.panels, activation=code)

    def __deepcopy__(self, memo: dict[int, Any]) -> "EngineLinear":
        return self  # nothing of it changes

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features).float().contiguous()
        ins, outs = self.panels.ins, self.panels.outs
        if ins != self.in_features:
            rows = nn.functional.pad(rows, (0, ins - self.in_features))
        out = torch.empty(len(rows), outs)
        found = kernels.library()
        assert found is not None
        call = _call(self._program, ins)
        for start in range(0, len(rows), ROWS):
            call.rows = min(ROWS, len(rows) - start)
            call.buffers[X] = rows.data_ptr() + 4 * ins * start
            call.buffers[OUT] = out.data_ptr() + 4 * outs * start
            found.bedstone_run(ctypes.byref(call))
        return out[:, : self.out_features].to(self.dtype or x.dtype).unflatten(0, x.shape[:-1])


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
    call.ops, call.count, call.threads = program.array, 1, threads
    call.area, call.area_stride = area.data_ptr(), 4 * wide
    call.scores, call.scores_stride = scores.data_ptr(), scores.shape[1]
    call.strides[X], call.strides[OUT] = ins, program.weights[0].outs
    call.coarse = COARSE
    return call
