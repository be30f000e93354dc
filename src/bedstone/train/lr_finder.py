"""The learning rate finder of `bedstone finetune --find-rate` (Smith, 2017).

The rate grows exponentially over a hundred steps, from far too low to far too high. The loss falls
where the rate is right and rises where it is too high; what is proposed is the rate at which the
smoothed loss falls fastest.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.report.plots import load_pyplot, plain, save_figure
from bedstone.train.logs import ProgressBar
from bedstone.train.optim import OptimConfig, build_optimizer, clip_gradients
from bedstone.train.run import RunPlan

LOWEST, HIGHEST = 1e-7, 1e-1
SMOOTHING = 0.9


def find_rate(
    plan: RunPlan,
    optim: OptimConfig,
    folder: Path,
    *,
    steps: int = 100,
    quiet: bool = False,
) -> float:
    """The proposed peak rate; `rates.json` and `rates.png` in the folder say how it came about.

    The network's weights are as they were afterwards.

    Raises:
        BedstoneError: the loss is never finite, or never falls.
    """
    network, precision = plan.model.network, plan.start.precision
    before = {name: weight.detach().clone() for name, weight in network.state_dict().items()}
    peak = optim.adamw_lr or LOWEST
    optimizer = build_optimizer(network, dataclasses.replace(optim, adamw_lr=peak))
    rates: list[float] = []
    losses: list[float] = []
    network.train()
    with ProgressBar("looking for a rate", quiet=quiet) as bar:
        for step in range(steps):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))
            batch = next(plan.batches).to(precision.device)
            with precision.autocast():
                total, count = plan.objective(network, batch)
            loss = total.item() / max(count, 1)
            if not math.isfinite(loss) or (losses and loss > 4 * min(losses)):
                break
            rates.append(rate)
            losses.append(loss)
            (total / max(count, 1)).backward()
            clip_gradients(network, optim.clip)
            optimizer.step(rate / peak)
            optimizer.zero_grad()
            bar.update((step + 1) / steps, rate=f"{rate:.1e}", loss=f"{loss:.3f}")
    with torch.no_grad():
        network.load_state_dict(before)
    found = proposed(rates, losses)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "rates.json", {"rates": rates, "losses": losses, "proposed": found})
    draw_rates(rates, smoothed(losses), found, folder / "rates.png")
    return found


def smoothed(losses: Sequence[float]) -> list[float]:
    """An exponential mean of the losses, without the pull of its start."""
    mean, result = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        result.append(mean / (1 - SMOOTHING**step))
    return result


def proposed(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls fastest, before its lowest point."""
    if len(losses) < 10:
        raise BedstoneError(
            f"find-rate: the loss was finite for {len(losses)} steps only; look at the data, or "
            "train in precision=fp32."
        )
    curve = smoothed(losses)
    lowest = min(range(len(curve)), key=curve.__getitem__)
    falls = {at: curve[at] - curve[at - 5] for at in range(10, lowest + 1)}
    if not falls or min(falls.values()) >= 0:
        raise BedstoneError(
            "find-rate: the loss never falls, at no rate; the rows may not fit their labels."
        )
    return rates[min(falls, key=falls.__getitem__)]


def draw_rates(
    rates: Sequence[float], losses: Sequence[float], found: float, path: Path
) -> Path | None:
    """Loss against rate as a PNG; None where matplotlib is absent."""
    if (pyplot := load_pyplot()) is None:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    axes.plot(rates, losses, color="#1f5fa6")
    axes.axvline(found, color="#c0392b", linestyle="--", label=f"proposed: {found:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed")
    plain(axes)
    axes.legend(frameon=False)
    return save_figure(figure, path)
