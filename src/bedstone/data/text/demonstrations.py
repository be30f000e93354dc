"""Examples of a prompt: which rows stand before the one in question, and in which order.

Shapes: n examples, E width of embeddings.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np

from bedstone.errors import BedstoneError, nearest

SELECTIONS = ("random", "balanced", "similar")
Embed = Callable[[list[str]], np.ndarray]  # texts to embeddings of length 1, (n, E)


class Demonstrations:
    """Labelled examples to choose from.

    Args:
        inputs, outputs: as the template writes them.
        classes: the label of each; empty where a task has none.
        name: of their file, for messages.
        embed: embeds texts, to find similar ones.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        classes: Sequence[str] = (),
        name: str = "examples",
        embed: Embed | None = None,
    ) -> None:
        self.inputs, self.outputs, self.classes = list(inputs), list(outputs), list(classes)
        self.name, self._embed = name, embed
        self._vectors: np.ndarray | None = None  # (n, E)

    def __len__(self) -> int:
        return len(self.inputs)

    def choose(
        self, shots: int, select: str = "random", *, seed: int = 0, order: int = 0, given: str = ""
    ) -> list[int]:
        """Numbers of the examples, in the order of the prompt.

        With the same seed, more shots are the same examples and others. Similar examples stand
        with the most similar one last, next to the row in question; a row that is the question
        itself is left out.

        Args:
            shots: how many.
            select: random; balanced, as many of each class as of any other, up to one; similar,
                the nearest to `given` by the cosine of embeddings.
            seed: of the draw.
            order: 0 for the order as drawn, n for the n-th other one.
            given: the input of the row in question, for similar ones.

        Raises:
            BedstoneError: there are fewer examples than shots, or classes to balance aren't there.
        """
        if select not in SELECTIONS:
            raise BedstoneError(f"select: {select!r} is unknown{nearest(select, SELECTIONS)}.")
        if shots > len(self):
            raise BedstoneError(
                f"shots: {shots} were wanted, and {self.name} has {len(self)} rows. Lower shots, "
                "or give more examples."
            )
        if not shots:
            return []
        if select == "similar":
            chosen = self._similar(shots, given)
        elif select == "balanced":
            chosen = self._balanced(shots, random.Random(f"draw {seed}"))
        else:
            numbers = list(range(len(self)))
            random.Random(f"draw {seed}").shuffle(numbers)
            chosen = numbers[:shots]
        if order:
            random.Random(f"order {seed} {order}").shuffle(chosen)
        return chosen

    def _balanced(self, shots: int, draw: random.Random) -> list[int]:
        rows: dict[str, list[int]] = {}
        for number, label in enumerate(self.classes):
            rows.setdefault(label, []).append(number)
        if len(rows) < 2:
            have = f"all are {next(iter(rows))!r}" if rows else "they have no labels"
            raise BedstoneError(
                f"select: balanced examples need two classes or more; of {self.name}, {have}. "
                "Give examples of each, or select=random."
            )
        labels = sorted(rows)
        for label in labels:
            draw.shuffle(rows[label])
        each = -(-shots // len(labels))
        for label in labels:
            if len(rows[label]) < each:
                raise BedstoneError(
                    f"select: {shots} balanced examples need {each} of each class, and {self.name} "
                    f"has {len(rows[label])} of {label!r}. Lower shots, or give more of it."
                )
        chosen: list[int] = []
        for turn in range(each):
            draw.shuffle(labels)  # which class comes first says nothing
            chosen += [rows[label][turn] for label in labels]
        return chosen[:shots]

    def _similar(self, shots: int, given: str) -> list[int]:
        if self._embed is None:
            raise BedstoneError(
                "select: similar examples are found by embeddings; name a model of them by embed, "
                "such as minilm, or take select=random."
            )
        if self._vectors is None:
            self._vectors = self._embed(self.inputs)
        near = self._vectors @ self._embed([given])[0]
        found = [int(each) for each in np.argsort(-near, kind="stable")]
        found = [each for each in found if self.inputs[each] != given][:shots]
        if len(found) < shots:
            raise BedstoneError(
                f"shots: {shots} were wanted, and {self.name} has {len(found)} rows beside the one "
                "in question. Lower shots, or give more examples."
            )
        return found[::-1]
