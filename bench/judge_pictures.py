"""A set of pictures drawn elsewhere, judged as `bedstone evaluate` judges ours.

    python bench/judge_pictures.py SAMPLES.npz REAL.parquet JUDGE.safetensors

SAMPLES has `pictures` (N, H, W, C) uint8 and `classes` (N,), as bench/diffusion_peer.py draws them;
REAL has the columns `image` and `label`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from bedstone.data.signals.signals import Signals
from bedstone.evaluate.judges import open_judge
from bedstone.metrics.generative import beside_real
from diffusion_peer import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("samples", "real", "judge"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    held = np.load(options.samples, allow_pickle=False)
    drawn = torch.from_numpy(held["pictures"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    # The same rows as evaluate takes.
    held_out = Signals(read(options.real)[0].numpy(), kind="image", name=str(options.real))
    real = held_out.take(len(drawn)).read(np.arange(min(len(drawn), len(held_out))))
    classes = torch.from_numpy(held["classes"])
    figures = beside_real(drawn, real, open_judge(options.judge), classes=classes)
    print(json.dumps(figures.record(), indent=1))


if __name__ == "__main__":
    main()
