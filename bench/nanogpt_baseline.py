"""nanoGPT's CPU baseline: what its README trains on a CPU, in a file of its own.

The configuration is `config/train_shakespeare_char.py` with the flags its README gives for a CPU:
4 layers, 4 heads, width 128, context 64, batch 12, no dropout, 2,000 steps. Used where no checkout
of nanoGPT is at hand; `load_peer` takes its own `model.py` where one is. Written anew from that
description: same initial weights' distribution, optimizer groups, learning rates and batches.
"""

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP, PEAK, LEAST = 2000, 100, 1e-3, 1e-4
BETAS, DECAY, CLIP = (0.9, 0.99), 0.1, 1.0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.attn = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attn_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.attn(self.ln_1(x)).split(WIDTH, dim=2)
        q, k, v = (y.view(batch, length, HEADS, -1).transpose(1, 2) for y in heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_out(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Baseline(nn.Module):
    """Called as nanoGPT's `GPT`: (ids, targets) to (logits, mean loss)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        self.head.weight = self.wte.weight
        for name, weight in self.named_parameters():
            if weight.dim() >= 2:
                out = name.endswith(("attn_out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if out else 0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(
        self, decay: float, rate: float, betas: tuple[float, float], device: str
    ) -> torch.optim.Optimizer:
        weights = list(self.parameters())
        groups = [
            {"params": [w for w in weights if w.dim() >= 2], "weight_decay": decay},
            {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=betas)


def load_peer(checkout: Path | None, vocabulary: int) -> tuple[Any, str]:
    """The peer's network and what it is; from a checkout of nanoGPT if one is given."""
    if checkout is None:
        return Baseline(vocabulary), "nanoGPT's configuration, reimplemented"
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=CONTEXT,
        vocab_size=vocabulary,
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        dropout=0.0,
        bias=False,
    )
    return module.GPT(config), "nanoGPT's own model.py"


def rate(step: int) -> float:
    """Linear warm-up, then a cosine from the peak to the least, as nanoGPT's `get_lr`."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    done = min((step - WARMUP) / (STEPS - WARMUP), 1.0)
    return LEAST + 0.5 * (1.0 + math.cos(math.pi * done)) * (PEAK - LEAST)


@dataclass
class PeerTraining:
    """nanoGPT's loop, a step at a time."""

    network: Any
    data: Tensor
    seed: int
    bf16: bool = False
    compiled: bool = False
    step: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.optimizer = self.network.configure_optimizers(DECAY, PEAK, BETAS, "cpu")
        self.forward = torch.compile(self.network) if self.compiled else self.network

    def batch(self) -> tuple[Tensor, Tensor]:
        """Windows at random places, (batch, context) inputs and targets."""
        places = torch.randint(len(self.data) - CONTEXT, (BATCH,)).tolist()
        ids = torch.stack([self.data[i : i + CONTEXT] for i in places])
        return ids, torch.stack([self.data[i + 1 : i + 1 + CONTEXT] for i in places])

    def one_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step)
        ids, targets = self.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            _, loss = self.forward(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
