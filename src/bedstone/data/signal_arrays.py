"""Videos and volumes of one's own: arrays of NumPy in a `.npz` file, as `numpy.savez` writes it.

`signals` (N, C, *S) are uint8, of which 0 to 255 are -1 to 1, or float32 of about -1 to 1;
`classes` (N,) are numbers or names; `captions` (N,) are texts. Without the axis of channels there
is one.

Shapes: N signals, C channels, S sides.
"""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.data.signals import Signals, check_memory
from bedstone.errors import BedstoneError, nearest
from bedstone.recipes_diffusion import KINDS, SignalsConfig

PARTS = {"none": "", "class": "classes", "text": "captions"}


def array_signals(
    name: str,
    data: SignalsConfig,
    condition: str,
    *,
    kind: str,
    names: Sequence[str] = (),
    seed: int = 0,
    told: Callable[[float], None] | None = None,
) -> Signals:
    """The signals of a file, at most `data.most_rows`, drawn by the seed.

    Args:
        kind: video or volume.
        names: of the classes, where they are known.

    Raises:
        BedstoneError: there is no such file, or it holds something else.
    """
    arrays = _read(name, ("signals", *filter(None, [PARTS[condition]])))
    values, sides = arrays["signals"], KINDS[kind]
    if values.ndim == sides + 1:
        values = values[:, None]
    if values.ndim != sides + 2:
        raise BedstoneError(
            f"data {name!r}: signals of shape {values.shape}; a {kind} has {sides} sides, so "
            "expected (rows, channels, *sides)."
        )
    if values.shape[1] not in (1, 3):
        raise BedstoneError(
            f"data {name!r}: signals of {values.shape[1]} channels; expected 1 or 3, grey or "
            "colours, which can be shown. They stand before the sides: (rows, channels, *sides)."
        )
    if data.size and tuple(data.size) != values.shape[2:]:
        raise BedstoneError(
            f"data.size: {list(data.size)} was given; {name} has signals of "
            f"{list(values.shape[2:])}. Leave it out, or resize them."
        )
    check_memory(values.shape, values.itemsize, data.memory_mb, name)
    labels: dict[str, Any] = {}
    part = PARTS[condition]
    if part and arrays[part].ndim != 1:
        raise BedstoneError(
            f"data {name!r}: {part} of shape {arrays[part].shape}; expected one for each of "
            f"{len(values)} signals."
        )
    if condition == "text":
        labels["captions"] = [[str(text)] for text in arrays["captions"]]
    if condition == "class":
        said = [str(each) for each in arrays["classes"]]
        whole = all(each.isdecimal() for each in said)
        known = list(names) or sorted(set(said), key=int if whole else None)
        numbers = {each: number for number, each in enumerate(known)}
        for row, each in enumerate(said):
            if each not in numbers:
                raise BedstoneError(
                    f"{name} {row}: is of class {each!r}, which is none of the {len(known)} "
                    f"learnt{nearest(each, known)}."
                )
        labels = {"classes": [numbers[each] for each in said], "names": known}
    return Signals(values, kind=kind, name=name, **labels).take(data.most_rows, seed)


def _read(name: str, parts: Sequence[str]) -> dict[str, np.ndarray]:
    if not Path(name).is_file() or Path(name).suffix != ".npz":
        raise BedstoneError(
            f"data.source: {name!r} is no .npz file. Save signals (N, C, *S) and what they are "
            f"made from: numpy.savez(file, {', '.join(f'{part}=...' for part in parts)})."
        )
    try:
        with np.load(name, allow_pickle=False) as file:
            for part in parts:
                if part not in file:
                    raise BedstoneError(
                        f"data {name!r}: has no array {part!r}; it has {', '.join(file)}."
                    )
            return {part: file[part] for part in parts}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BedstoneError(f"data {name!r}: can't be read ({error}). Save it again.") from error
