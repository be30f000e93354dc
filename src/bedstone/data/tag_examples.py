"""Words with a tag each: entities, parts of speech."""

from collections.abc import Mapping, Sequence

import numpy as np

from bedstone.data import labels as labelling
from bedstone.data.example_rows import Examples, Ragged, Targets
from bedstone.data.inputs import Input, read_words, word_batch
from bedstone.data.labelled import LabelledRows
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError


class TagExamples(Examples):
    """A row's `tokens` (words) and their `tags`.

    A word's tag is learnt at its first sub-word alone, once, whatever the windows it stands in.
    Words without any token, such as empty ones, have no target.

    Args:
        labels: the tags; None takes those of the rows, `O` first.

    Raises:
        BedstoneError: naming the file, row and column of what can't be learnt.
    """

    kind = "tokens"

    def __init__(
        self,
        rows: LabelledRows,
        tokenizer: Tokenizer,
        *,
        labels: Sequence[str] | None = None,
        limit: int,
        stride: int = 0,
    ) -> None:
        tokens, column = rows.need("tokens"), rows.need("tags")
        self.actual = labelling.tags(rows, tokens, column, labels)
        self._words = [rows.value(i, tokens) for i in range(len(rows))]
        names = {name for each in self.actual for name in each}
        self.labels = tuple(labels) if labels else labelling.ordered(names)
        self._places = {name: place for place, name in enumerate(self.labels)}
        self._counts = np.zeros(len(self.labels), dtype=np.int64)
        self._reads = Ragged()
        super().__init__(rows, tokenizer, limit=limit, stride=stride)
        if len(self.labels) < 2:
            raise BedstoneError(
                f"data {rows.name!r}: column {column!r} holds {len(self.labels)} tags; expected "
                "two or more to tell apart. Name data with more rows."
            )

    def label_weights(self, weights: str | Mapping[str, float] | None) -> np.ndarray | None:
        if not weights:
            return None
        return labelling.label_weights(weights, self.labels, self._counts)

    def _inputs(self, numbers: Sequence[int]) -> list[list[Input]]:
        words = [self._words[i] for i in numbers]
        return word_batch(self.tokenizer, words, limit=self.limit, stride=self.stride)

    def _keep(self, row: int, windows: list[Input]) -> None:
        for window, places in zip(windows, read_words(windows), strict=True):
            words = [word for at in places if (word := window.words[at]) is not None]
            tags = [self._places[self.actual[row][word]] for word in words]
            np.add.at(self._counts, tags, 1)
            self._reads.add(places, tags, words)

    def _targets(
        self,
        windows: np.ndarray,
        starts: np.ndarray,
        reads: np.ndarray,
        weights: np.ndarray | None,
    ) -> Targets:
        (places, tags, words), owners = self._reads.take(windows)
        each = None if weights is None else weights[tags]
        return Targets(places + starts[owners], owners, tags, each, words)
