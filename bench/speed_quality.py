"""What each precision costs in quality: the same windows of text read by every contestant.

Perplexity beside that of fp32, the share of equal likeliest tokens, and the mean Kullback-Leibler
divergence from fp32. Bedstone reads through the decoder and the cache that generation uses.
As `llama-perplexity` does, only the second half of each window is scored; llama.cpp's figures are
its own, of its F32 file, by `--kl-divergence`. Shapes: T tokens of a window, V vocabulary.
"""

import math
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.generation.autoregress import Decoder
from speed_sides import KINDS, run

# What `llama-perplexity --kl-divergence` says in the end.
FIGURES = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
    "perplexity ratio": r"Mean PPL\(Q\)/PPL\(base\)\s*:\s*([\d.]+)",
    "kl": r"Mean\s+KLD:\s*(-?[\d.]+)",
    "equal likeliest": r"Same top p:\s*([\d.]+)",
}
REPORT = r"(?s)(={6} Perplexity statistics.*Same top p:.*)"


@dataclass
class Quality:
    """Sums over scored tokens, beside the exact network's."""

    tokens: int = 0
    loss: float = 0.0  # nats
    exact: float = 0.0  # nats of the exact network
    equal: int = 0
    kl: float = 0.0
    seconds: float = 0.0
    read: int = 0  # tokens
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, logits: Tensor, exact: Tensor, wanted: Tensor) -> None:
        """Logits (T, V) of this network and of the exact one, and the tokens that followed."""
        own, base = logits.log_softmax(-1), exact.log_softmax(-1)
        self.tokens += len(wanted)
        self.loss += float(F.nll_loss(own, wanted, reduction="sum"))
        self.exact += float(F.nll_loss(base, wanted, reduction="sum"))
        self.equal += int((own.argmax(-1) == base.argmax(-1)).sum())
        self.kl += float(F.kl_div(own, base, reduction="sum", log_target=True))

    def close(self) -> None:
        """Makes figures of the sums."""
        self.figures = {
            "perplexity": math.exp(self.loss / self.tokens),
            "perplexity ratio": math.exp((self.loss - self.exact) / self.tokens),
            "equal likeliest": self.equal / self.tokens,
            "kl": self.kl / self.tokens,
        }


def windows(model: Any, text: Path, length: int, count: int) -> Tensor:
    """The first `count` windows of a text that don't overlap, (N, T)."""
    ids = torch.tensor(model.tokenizer.encode(text.read_text(encoding="utf-8")))
    return ids[: len(ids) // length * length].view(-1, length)[:count]


@torch.inference_mode()
def scores(decoder: Decoder, row: Tensor, at_once: int) -> Tensor:
    """Logits of the second half of a window but for its last token, (T / 2 - 1, V), in fp32."""
    cache = decoder.new_cache(1, len(row))
    states = torch.cat(
        [decoder.states(part[None], cache=cache)[0] for part in row.split(at_once)]
    )  # (T, D)
    return decoder.head(states[len(row) // 2 : -1]).float()


def ours(
    exact: Decoder, others: dict[str, Decoder], rows: Tensor, at_once: int
) -> dict[str, Quality]:
    """Each network beside the exact one.

    Args:
        rows: windows, (N, T).
        at_once: tokens that a pass reads: T as a prompt, 1 as decoding does.
    """
    found = {name: Quality() for name in others}
    for row in rows:
        wanted, base = row[len(row) // 2 + 1 :], scores(exact, row, len(row))
        for name, decoder in others.items():
            began = time.perf_counter()
            logits = scores(decoder, row, at_once)
            found[name].seconds += time.perf_counter() - began
            found[name].read += len(row)
            found[name].add(logits, base, wanted)
    for each in found.values():
        each.close()
    return found


def llama_cpp(tools: Path, files: dict[str, Path], text: Path, rows: Tensor) -> dict[str, Quality]:
    """llama.cpp's own figures on the same windows, each file beside F32."""
    tool = tools / "llama-perplexity"
    whole = files[KINDS["fp32"]]
    count, length = rows.shape
    how = ["-f", text, "-c", length, "--chunks", count, "-t", torch.get_num_threads()]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = ["--kl-divergence-base", Path(folder, "base")]
        run([tool, "-m", whole, *how, *base])
        for kind, path in files.items():
            began = time.perf_counter()
            said = run([tool, "-m", path, *how, *base, "--kl-divergence"], wanted=REPORT)
            taken = time.perf_counter() - began
            quality = Quality(seconds=taken, read=rows.numel(), figures=read(said))
            found[f"llama.cpp {kind.upper()}"] = quality
    return found


def read(said: str) -> dict[str, float]:
    """The figures of the end of a report of `llama-perplexity --kl-divergence`."""
    found = {}
    for name, pattern in FIGURES.items():
        match = re.search(pattern, said)
        assert match is not None, f"llama-perplexity: no {name} in\n{said}"
        found[name] = float(match[1]) / (100 if name == "equal likeliest" else 1)
    return found


def table(found: dict[str, Quality]) -> list[str]:
    """A line for each contestant."""
    lines = [f"{'':28}{'perplexity':>12}{'ratio':>10}{'equal':>9}{'KL':>11}"]
    for name, each in found.items():
        figures = each.figures
        lines.append(
            f"{name:28}{figures['perplexity']:12.4f}{figures['perplexity ratio']:10.5f}"
            f"{figures['equal likeliest']:9.4f}{figures['kl']:11.6f}"
        )
    return lines
