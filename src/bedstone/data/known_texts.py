"""Texts by their numbers, each distinct one tokenised once, and what facts each states."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from bedstone.data.fact_augment import facts_of

TOGETHER = 4096  # texts tokenised at a time
Encode = Callable[[Sequence[str]], Sequence[Sequence[int] | np.ndarray]]


class KnownTexts:
    """Distinct texts: all are added, then tokenised together.

    Attributes:
        ids: (N,) int32, the tokens of all texts, laid end to end.
        facts: what facts each states, as `facts_of` tells.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.ids = np.zeros(0, np.int32)
        self.facts = np.zeros(0, np.int64)
        self._starts = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> np.ndarray:
        """A text's tokens."""
        return self.ids[self._starts[number] : self._starts[number + 1]]

    def add(self, texts: Iterable[str]) -> list[int]:
        """The numbers of texts, new ones included."""
        return [self.numbers.setdefault(text, len(self.numbers)) for text in texts]

    def finish(self, encode: Encode, room: int | None = None) -> int:
        """Tokenises all; how many were longer than `room` tokens, and are cut."""
        texts, parts, cut = list(self.numbers), [self.ids], 0
        for at in range(0, len(texts), TOGETHER):
            for row in encode(texts[at : at + TOGETHER]):
                cut += room is not None and len(row) > room
                parts.append(np.asarray(row, np.int32)[:room])
        self.ids = np.concatenate(parts)
        self._starts = np.cumsum([len(part) for part in parts])
        self.facts = np.fromiter(map(facts_of, texts), np.int64, len(texts))
        return cut
