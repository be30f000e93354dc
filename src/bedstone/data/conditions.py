"""What a signal is to be made from: a class, or words; nothing, where that is left out.

Shapes: B rows, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.errors import BedstoneError


@dataclass(frozen=True)
class Condition:
    """What each row of a batch is to be made from: classes, or texts.

    Attributes:
        classes: (B,) int64; the number of classes is no class.
        ids: (B, T) int64 tokens of texts.
        keep: (B, T) bool, which of them are words and no filling.
    """

    classes: Tensor | None = None
    ids: Tensor | None = None
    keep: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arguments().values()), ()))

    def arguments(self) -> dict[str, Tensor]:
        """What a network is called with, by the names of its arguments."""
        fields = {"classes": self.classes, "ids": self.ids, "keep": self.keep}
        return {name: value for name, value in fields.items() if value is not None}

    def to(self, device: torch.device | str) -> "Condition":
        """The same with its tensors there."""
        found = {k: v.to(device, non_blocking=True) for k, v in self.arguments().items()}
        return Condition(**found)

    def pick(self, rows: Tensor | Sequence[int] | slice) -> "Condition":
        """Some of the rows, by their numbers or a mask."""
        chosen = rows if isinstance(rows, slice | Tensor) else torch.tensor(rows)
        return Condition(**{name: value[chosen] for name, value in self.arguments().items()})

    def spread(self, rows: int) -> "Condition":
        """A condition of one row as one of many equal ones."""
        found = {k: v.expand(rows, *v.shape[1:]) for k, v in self.arguments().items()}
        return Condition(**found)

    def but(self, drop: Tensor, null: "Condition") -> "Condition":
        """The same with `null`, of one row, in the rows (B,) where `drop` is true."""
        both = joined((self, null.spread(len(self))))
        here = torch.arange(len(self), device=drop.device)
        return both.pick(torch.where(drop, here + len(self), here))


def joined(conditions: Sequence[Condition]) -> Condition:
    """The rows of several conditions of one kind, texts filled up to the longest."""
    found: dict[str, Tensor] = {}
    for name in conditions[0].arguments():
        parts = [each.arguments()[name] for each in conditions]
        if name != "classes":
            longest = max(part.shape[1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts]
        found[name] = torch.cat(parts)
    return Condition(**found)


def class_condition(classes: Sequence[int] | Tensor, count: int) -> Condition:
    """Classes by their numbers, of `count` there are; `count` itself is no class.

    Raises:
        BedstoneError: a class is out of range.
    """
    numbers = torch.as_tensor(classes, dtype=torch.int64).flatten()
    for number in numbers.tolist():
        if not 0 <= number <= count:
            raise BedstoneError(
                f"class {number} is out of range; the model knows {count} classes, 0 to "
                f"{count - 1}."
            )
    return Condition(classes=numbers)


def text_condition(rows: Sequence[Sequence[int]], length: int = 0, pad: int = 0) -> Condition:
    """Texts by their tokens, filled with `pad` up to the longest, or to `length`.

    Raises:
        BedstoneError: a text has no token, which a network couldn't attend to.
    """
    if not all(len(row) for row in rows):
        raise BedstoneError("a text has no tokens; the tokenizer must set one around each text.")
    length = max(length, max(map(len, rows)))
    ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    keep = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        keep[number, : len(row)] = True
    return Condition(ids=ids, keep=keep)
