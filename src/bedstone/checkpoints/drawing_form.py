"""What a folder that draws says of its signals: `drawing.json`, or as published ones have it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bedstone.checkpoints.artefact import Model
from bedstone.errors import BedstoneError
from bedstone.files import read_json
from bedstone.mapping import from_mapping
from bedstone.recipes_diffusion import KINDS, TASKS, SamplingConfig

FORM = "drawing.json"


@dataclass
class SignalForm:
    """What is drawn, and from what.

    Attributes:
        kind: image, audio, video or volume.
        shape: (C, *S) of a signal, before an autoencoder.
        condition: none, class or text.
        names: of the classes.
        context: tokens of a text at most.
        sound: how sounds become signals, and signals sounds.
        frozen: whether the reader of words is another's, and keeps its weights.
    """

    kind: str = "image"
    shape: tuple[int, ...] = (3, 32, 32)
    condition: str = "none"
    names: tuple[str, ...] = ()
    context: int = 0
    sound: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False

    def __post_init__(self) -> None:
        if (self.condition, self.kind) not in TASKS.values():
            raise BedstoneError(
                f"signal: draws {self.kind!r} from {self.condition!r}; expected image, audio, "
                "video or volume, from none, class or text."
            )
        if len(self.shape) != KINDS[self.kind] + 1:
            raise BedstoneError(
                f"signal.shape: {list(self.shape)} was given; expected the channels and "
                f"{KINDS[self.kind]} more of {self.kind}."
            )


def read_form(
    folder: Path, index: Mapping[str, Any], parts: Mapping[str, Model], method: str
) -> tuple[SignalForm, SamplingConfig, bool]:
    """What is drawn and how: said by our own file, or as published pipelines are used; and whether
    that, and not the scheduler, says how it is drawn.

    Args:
        folder: of the whole model.
        index: its `model_index.json`.
        parts: its networks.
        method: of sampling, that the scheduler names.

    Raises:
        BedstoneError: our file is damaged, or says what can't be.
    """
    if (folder / FORM).is_file():
        form = read_json(folder / FORM)
        whole = isinstance(form, dict) and {"signal", "sampling"} <= form.keys()
        if not whole or not all(isinstance(form[name], dict) for name in ("signal", "sampling")):
            raise BedstoneError(
                f"{folder / FORM}: expected an object with signal and sampling; it is damaged. "
                "Fetch or save the model again."
            )
        return (
            from_mapping(SignalForm, form["signal"], FORM, "signal."),
            from_mapping(SamplingConfig, form["sampling"], FORM, "sampling."),
            not form.get("published"),
        )
    config = parts["transformer"].config
    size, channels = tuple(config.size), config.channels
    if "vae" in parts:
        coder = parts["vae"].config
        size, channels = tuple(side * coder.shrink for side in size), coder.channels
    said = index.get("id2label")
    labels = said if isinstance(said, dict) else {}
    names = tuple(str(labels.get(str(n), n)) for n in range(config.classes))  # by their numbers
    form = SignalForm("image", (channels, *size), "class" if config.classes else "none", names)
    guidance = 4.0 if config.classes else 1.0
    return form, SamplingConfig(method=method, steps=50, guidance=guidance), False
