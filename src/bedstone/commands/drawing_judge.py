"""Who judges drawings: a judge of pictures, who sees any signal as one, or one of signals.

Shapes: B signals, C channels; *S the sizes of a signal, F features, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bedstone.checkpoints.drawing import DrawingModel
from bedstone.data.sounds import Spectrogram
from bedstone.errors import BedstoneError
from bedstone.files import read_json
from bedstone.inspect.judges import Judge, open_judge
from bedstone.inspect.shown import as_pictures
from bedstone.inspect.signal_judge import KIND, SignalJudge, open_signal_judge
from bedstone.tasks.draw_results import sound_form


@dataclass(frozen=True)
class Shown:
    """A judge of pictures that sees other signals as pictures of them.

    Attributes:
        judge: of pictures.
        kind: of the signals.
    """

    judge: Judge
    kind: str

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def labels(self) -> tuple[str, ...]:
        return self.judge.labels

    def read(self, signals: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) and logits (B, L) of signals (B, C, *S)."""
        return self.judge.read(as_pictures(signals, self.kind))


def judge_of(path: str, model: DrawingModel) -> Shown | SignalJudge:
    """A judge of pictures; or one of signals, who hears sounds as they are made of signals."""
    config, form = Path(path) / "config.json", model.signal
    if not config.is_file() or read_json(config).get("model_type") != KIND:
        return Shown(open_judge(path), form.kind)
    judge = open_signal_judge(path)
    if form.kind == "audio":
        judge.made = partial(heard, sound_form(form))
    return judge


def heard(form: Spectrogram, signals: Tensor) -> Tensor:
    """Signals (B, C, S) of the sounds that are made of signals; a quite silent one says nothing."""
    silent = torch.full(signals.shape[1:], -1.0)
    sounds = form.sound(signals).numpy()
    return torch.stack([form.of(one) if abs(one).max() > 1e-5 else silent for one in sounds])


def judge_labels(
    classes: Tensor, names: Sequence[str], judge: Judge | Shown | SignalJudge
) -> Tensor | None:
    """The judge's numbers of the model's classes: by their names, else as they are counted; None
    of a judge that tells no classes."""
    labels = judge.labels
    if not labels:
        return None
    if set(names) <= set(labels):
        return torch.tensor([labels.index(name) for name in names])[classes]
    if len(names) != len(labels):
        raise BedstoneError(
            f"judge: {judge.name} knows {len(labels)} classes ({', '.join(labels[:6])}, ...); the "
            f"model draws {len(names)} ({', '.join(names[:6])}, ...). Take a judge of the same."
        )
    return classes
