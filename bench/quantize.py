"""What few bits cost in quality: perplexity, divergence and agreement beside fp32, and bytes.

    python bench/quantize.py [MODEL] [--windows 20] [--length 512] [--texts FILE] [--scattered]

Every way quantises the same fp32 weights and is measured in fp32 on the same windows of WikiText-2,
test. `Q8_0`, `Q4_0` and `Q4_1` are llama.cpp's, by the package gguf, with the table of words and
the output layer in Q8_0. Calibration is by 32 texts of WikiText-2, validation, unless --texts names
others. Seconds are of quantising, the processor's.

The SmolLM2 that is a package (the default) stands in Q4_1 there: its weights lie on a grid for each
32 inputs, which groups of 32 would find again. `--scattered` computes the same function with
channels in another order, each scaled by a factor of its own, so that no weight lies on a grid.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bedstone
from bedstone.data.sources import open_source
from bedstone.evaluate.quantization import feeds, text_pieces
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.gptq import quantize_for_inference
from bedstone.nn.quantize import kinds_for_inference, quantize, weights_of
from result import SHARED

BITS = {"Q8_0": 8.5, "Q4_0": 4.5, "Q4_1": 5.0}  # a weight, with its scales


def scatter(network: Any, seed: int = 0) -> None:
    """Another order and scale of a Llama's channels, and the same function."""
    generator = torch.Generator().manual_seed(seed)
    shape = network.config
    heads, group = shape.kv_heads, shape.heads // shape.kv_heads

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)

    def scale(count: int) -> Tensor:
        return torch.exp(0.1 * torch.randn(count, generator=generator))

    def change(layer: nn.Module, rows: Any = slice(None), columns: Any = slice(None)) -> None:
        layer.weight.data = layer.weight.data[rows][:, columns].contiguous()

    stream = order(shape.width)
    change(network.embed, columns=stream)
    network.tie()
    network.norm.weight.data = network.norm.weight.data[stream]
    for block in network.stack:
        for part in block.values():
            by = scale(shape.width)
            part.norm.weight.data = part.norm.weight.data[stream] / by
            for name in ("q", "k", "v", "gate", "up"):
                if (layer := getattr(part.sublayer, name, None)) is not None:
                    change(layer, columns=stream)
                    layer.weight.data *= by
        attention, mlp = block["attn"].sublayer, block["mlp"].sublayer
        values, by = torch.stack([order(shape.head_width) for _ in range(heads)]), scale(heads)
        starts = torch.arange(heads)[:, None] * shape.head_width
        change(attention.v, rows=(values + starts).flatten())
        attention.v.weight.data *= by.repeat_interleave(shape.head_width)[:, None]
        starts = torch.arange(shape.heads)[:, None] * shape.head_width
        read = (values.repeat_interleave(group, 0) + starts).flatten()
        change(attention.out, rows=stream, columns=read)
        attention.out.weight.data /= by.repeat_interleave(group * shape.head_width)
        hidden, by = order(shape.hidden), scale(shape.hidden)
        change(mlp.gate, rows=hidden)
        change(mlp.up, rows=hidden)
        mlp.up.weight.data *= by[:, None]
        change(mlp.down, rows=stream, columns=hidden)
        mlp.down.weight.data /= by


def by_gguf(network: nn.Module, kind: str) -> float:
    """Rounds weights as llama.cpp does, in place; their bytes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
    from gguf.quants import quantize as rounded

    size, seen = 0.0, set()
    for name in kinds_for_inference(network, 4):
        layer: Any = network.get_submodule(name)
        own = "Q8_0" if name in ("head", "embed") else kind
        if id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            form = GGMLQuantizationType[own]
            whole = dequantize(rounded(layer.weight.data.numpy(), form), form)
            layer.weight.data.copy_(torch.from_numpy(whole))
            size += layer.weight.numel() * BITS[own] / 8
    return size


def ways(pieces: list[Any]) -> dict[str, Callable[[Any], float | None]]:
    """What quantises a network in place, by its name; gives the bytes where they are its own."""

    def whole(bits: int, group: int, calibrated: bool = False) -> Callable[[Any], None]:
        def act(network: Any) -> None:
            given = feeds(network, pieces) if calibrated else ()
            quantize_for_inference(network, bits, group, given)

        return act

    def plain(bits: int, group: int) -> Callable[[Any], None]:
        return lambda network: void(quantize(network, bits=bits, group=group))

    found: dict[str, Callable[[Any], float | None]] = {
        "bf16": lambda network: void(network.bfloat16().float()),
        "int8": whole(8, 32),
        **{kind: lambda network, kind=kind: by_gguf(network, kind) for kind in BITS},  # type: ignore[misc]
        "int4, range of each 64, head fp32": plain(4, 64),
    }
    for group in (32, 64):
        found[f"int4, groups of {group}"] = whole(4, group)
        found[f"int4, groups of {group}, calibrated"] = whole(4, group, True)
    return found


def void(given: object) -> None:
    """Nothing, whatever is given."""


@torch.inference_mode()
def log_probabilities(network: Any, row: Tensor) -> Tensor:
    """Of the words that follow each token of a window, (T, V)."""
    found: Tensor = network(row[None])[0].float().log_softmax(-1)
    return found


def compared(exact: Any, made: Any, rows: Tensor) -> dict[str, float]:
    """Figures of a network beside those of the one that it was made of."""
    own = other = divergence = same = 0.0
    for row in rows:
        p, q = log_probabilities(exact, row), log_probabilities(made, row)
        other += float(F.nll_loss(p[:-1], row[1:], reduction="sum"))
        own += float(F.nll_loss(q[:-1], row[1:], reduction="sum"))
        divergence += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    count = rows.numel()
    scored = count - len(rows)
    return {
        "perplexity": math.exp(own / scored),
        "ratio": math.exp((own - other) / scored),
        "divergence": divergence / count,
        "agreement": same / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--texts", type=Path, default=SHARED / "text" / "wikitext2-valid.txt")
    parser.add_argument("--scattered", action="store_true")
    parser.add_argument("--only", default="", help="ways whose names contain this")
    options = parser.parse_args()
    model = bedstone.load(options.model, dtype=torch.float32)
    exact = model.network
    if options.scattered:
        scatter(exact)
    size = options.windows * options.length
    text = (SHARED / "text" / "wikitext2-test.txt").read_text(encoding="utf-8")
    ids = torch.tensor(model.tokenizer.encode(text[: 8 * size]))
    rows = ids[:size].view(-1, options.length)
    pieces, _ = text_pieces(model, open_source(options.texts))
    reads = for_inference(exact, torch.float32)
    for name, act in ways(pieces).items():
        if options.only not in name:
            continue
        network = copy.deepcopy(exact)
        began = time.process_time()
        own = act(network)
        seconds = time.process_time() - began
        found = compared(reads, for_inference(network, torch.float32), rows)
        held = own or weights_of(network)[1] / (2 if name == "bf16" else 1)
        print(json.dumps({"way": name, **found, "MB": held / 1e6, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
