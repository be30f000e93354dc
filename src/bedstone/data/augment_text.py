"""New rows of text from those there are, with the same labels.

Easy data augmentation (Wei and Zou, 2019): synonyms, random insertion, swap and deletion, one
operation a new row; and paraphrase by a model. What models do is handed in as callables.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bedstone.data.augmenter import MARK, AugmentConfig, Augmenter

__all__ = ["MARK", "AugmentConfig", "Augmenter", "augment", "sample"]

TOGETHER = 32  # rows whose paraphrases are asked for at one time


def augment(
    rows: Iterable[Mapping[str, Any]], config: AugmentConfig, *, start: int = 0, **parts: Any
) -> Iterator[dict[str, Any]]:
    """Each row as it is, and after it its new rows, marked in the column `augmented`.

    Args:
        rows: rows by column.
        config: what to do.
        start: the number of the first row, where others hold those before it.
        parts: `columns`, `tags`, `outside`, `propose`, `paraphrase` of `Augmenter`.

    Raises:
        BedstoneError: as `Augmenter` does, at once; a row that doesn't fit, when it is read.
    """
    maker = Augmenter(config, **parts)
    return (new for row, made in _all_copies(maker, rows, start) for new in ({**row}, *made))


def sample(
    rows: Iterable[Mapping[str, Any]], config: AugmentConfig, count: int = 5, **parts: Any
) -> str:
    """A table of the first `count` rows that are changed: before, after and how.

    Raises:
        BedstoneError: as `augment` does.
    """
    maker = Augmenter(config, **parts)
    table = Table(width=100)
    for name in ("row", "how", "text"):
        table.add_column(name, ratio=1 if name == "text" else None)
    changed = 0
    for number, (row, made) in enumerate(_all_copies(maker, rows)):
        if changed == count:
            break
        if made:
            changed += 1
            names = maker.names(row, number)
            table.add_row(str(number), "", Text(_shown(row, names)))
            for new in made:
                table.add_row("", new[MARK], Text(_shown(new, names)))
            table.add_section()
    console = Console(file=io.StringIO(), width=100)
    console.print(table if changed else "No row was changed.")
    return console.file.getvalue()  # type: ignore[attr-defined]


def _all_copies(
    maker: Augmenter, rows: Iterable[Mapping[str, Any]], start: int = 0
) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
    """Each row with its copies; paraphrases are asked for many rows at a time."""
    numbered = enumerate(rows, start)
    while batch := list(islice(numbered, TOGETHER)):
        texts = [text for number, row in batch for text in maker.asked(row, number)]
        said = maker.paraphrased(texts) if texts else {}
        for number, row in batch:
            yield row, maker.copies(row, number, said)


def _shown(row: Mapping[str, Any], names: Sequence[str]) -> str:
    values = [row[name] if isinstance(row[name], str) else " ".join(row[name]) for name in names]
    return "\n".join(value if len(value) <= 300 else value[:299] + "…" for value in values)
