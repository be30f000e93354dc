"""A judge of signals, trained on real ones: says what a drawn sound, video or volume is.

Shapes: B signals, C channels, S sides; F features, L labels.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.signals import Signals
from bedstone.errors import BedstoneError
from bedstone.files import atomic_folder, read_json, write_json
from bedstone.mapping import from_mapping
from bedstone.models.signal_classifier import SignalClassifier, SignalClassifierConfig

KIND = "signal_classifier"
SHIFT = 0.06  # of a side, at most, that a training signal is moved by
NOISE = 0.08  # deviation, at most, of what is added to it
Made = Callable[[Tensor], Tensor]


class SignalJudge:
    """A trained network, and what it says of signals.

    Attributes:
        name: stands beside each figure.
        made: what is done to signals before they are judged, such as making them heard.
    """

    def __init__(
        self, network: SignalClassifier, record: dict[str, Any] | None = None, name: str = "judge"
    ) -> None:
        self.network, self.record, self.name = network.eval(), record or {}, name
        self.made: Made | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.network.config.labels

    @torch.inference_mode()
    def read(self, signals: Tensor, batch: int = 128) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, L).

        Raises:
            BedstoneError: signals of another shape, or none.
        """
        wanted = self.network.config.shape
        if tuple(signals.shape[1:]) != wanted or not len(signals):
            raise BedstoneError(
                f"judge {self.name!r}: signals of {tuple(signals.shape)} were given; it reads "
                f"{wanted} each. Train one on signals of that shape."
            )
        signals = self.made(signals) if self.made is not None else signals
        features = [self.network.features(part.clamp(-1, 1)) for part in signals.split(batch)]
        found = torch.cat(features)
        return found, self.network.out(found)

    def save(self, folder: str | Path) -> Path:
        """Writes `config.json`, `model.safetensors` and `bedstone.json`, whole or not at all."""
        with atomic_folder(Path(folder)) as made:
            write_json(made / "config.json", {"model_type": KIND, **asdict(self.network.config)})
            save_tensors(made, self.network.state_dict())
            write_json(made / "bedstone.json", self.record)
        return Path(folder)


def open_signal_judge(folder: str | Path) -> SignalJudge:
    """The judge that `SignalJudge.save` wrote.

    Raises:
        BedstoneError: there is none, or its files don't fit each other.
    """
    folder = Path(folder)
    path = folder / "config.json"
    values = read_json(path) if path.is_file() else {}
    if values.pop("model_type", None) != KIND:
        raise BedstoneError(
            f"{folder}: holds no judge of signals. Train one: python bench/signal_judge.py RECIPE "
            f"{folder}"
        )
    network = SignalClassifier(from_mapping(SignalClassifierConfig, values, str(path)))
    try:
        network.load_state_dict(load_tensors(folder))
    except RuntimeError as error:
        raise BedstoneError(f"{folder}: its weights are not of its config.json.") from error
    record = folder / "bedstone.json"
    return SignalJudge(network, read_json(record) if record.is_file() else {}, folder.name)


def train_signal_judge(
    learnt: Signals,
    held: Signals,
    *,
    steps: int = 600,
    batch: int = 32,
    rate: float = 2e-3,
    width: int = 32,
    seed: int = 0,
    told: Callable[[int, float], None] | None = None,
) -> SignalJudge:
    """A judge of the classes of `learnt`, with its accuracy on `held` in its record.

    Each signal is moved a little and gets a little noise, so that grain says nothing.

    Args:
        told: is handed the step and the loss, every 25 steps.

    Raises:
        BedstoneError: the signals have no classes, or those held out have others.
    """
    if learnt.classes is None or held.classes is None:
        raise BedstoneError("judge: the signals have no classes to tell apart.")
    if learnt.names != held.names:
        raise BedstoneError(
            f"judge: it learns {', '.join(learnt.names)}; those held out are of "
            f"{', '.join(held.names)}. Number both alike, by the names that are learnt."
        )
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = SignalClassifier(SignalClassifierConfig(learnt.shape, learnt.names, width)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for step in range(1, steps + 1):
        rows = random.integers(0, len(learnt), batch)
        signals = _varied(learnt.read(rows), random)
        loss = F.cross_entropy(
            network(signals), torch.from_numpy(learnt.classes[rows]), label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if told is not None and step % 25 == 0:
            told(step, loss.item())
    judge = SignalJudge(network)
    _, said = judge.read(held.read(np.arange(len(held))))
    right = (said.argmax(1).numpy() == held.classes).mean()
    judge.record = {"accuracy": float(right), "held_out": len(held), "steps": steps, "batch": batch}
    return judge


def _varied(signals: Tensor, random: np.random.Generator) -> Tensor:
    """Signals moved along their sides, what leaves on one end being repeated, and with noise."""
    for side in range(2, signals.dim()):
        most = int(SHIFT * signals.shape[side])
        move = int(random.integers(-most, most + 1))
        if move:
            places = torch.arange(signals.shape[side]).sub(move).clamp(0, signals.shape[side] - 1)
            signals = signals.index_select(side, places)
    return signals + float(random.uniform(0, NOISE)) * torch.randn_like(signals)
