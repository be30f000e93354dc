"""Outputs: files, of which those that are there are kept, and figures in a terminal.

A name that the user gave is refused where a file has it (`new_file`, `new_folder`); a name that
Bedstone chose itself makes way for the next one that is free (`free_path`, `next_number`).
Figures by name are a table where that is narrow enough (`named_rows`).
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bedstone.errors import BedstoneError


def new_file(path: str | Path, option: str, *, overwrite: bool = False) -> Path:
    """The name of a file to write; devices and pipes may be there.

    Raises:
        BedstoneError: a file has that name and may not be overwritten, or a folder has.
    """
    path = Path(path)
    if path.is_dir():
        raise BedstoneError(f"{option}: {path} is a folder; expected the name of a file.")
    if path.is_file() and not overwrite:
        raise BedstoneError(
            f"{option}: {path} is there already. Choose another name, or replace it by --overwrite."
        )
    return path


def new_folder(path: str | Path, option: str, *, overwrite: bool = False) -> Path:
    """The name of a folder to write files into.

    Raises:
        BedstoneError: it holds files that may not be overwritten, or is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise BedstoneError(f"{option}: {path} is a file; expected the name of a folder.")
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise BedstoneError(
            f"{option}: {path} holds files already. Choose another folder, or replace those of the "
            "same names by --overwrite."
        )
    return path


def free_path(path: Path) -> Path:
    """The path, or with `-2`, `-3`, ... behind its name the first that nothing has."""
    number, chosen = 1, path
    while chosen.exists():
        number += 1
        chosen = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return chosen


def next_number(folder: Path) -> int:
    """The number after the greatest that a file's name in the folder begins with: `012-name`."""
    if not folder.is_dir():
        return 0
    found = (re.match(r"(\d{3,9})[-.]", each.name) for each in folder.iterdir())
    return max((int(each[1]) + 1 for each in found if each), default=0)


def named_rows(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    bold: Callable[[int], bool] = lambda row: False,
    width: int = 0,
) -> Table | Group:
    """Rows of named figures for a terminal: a table, or where that is too wide, blocks.

    A table whose names fold can't be read, nor copied. In a block a name has lines of its own, and
    its figures stand below it with their heads.

    Args:
        heads: of the columns, the first of which is of the names.
        rows: of cells, as many as heads.
        bold: whether the row of a number is to stand out.
        width: characters of the terminal; 0 takes its own.
    """
    sizes = [max(len(each) for each in column) for column in zip(heads, *rows, strict=True)]
    if sum(sizes) + 3 * len(sizes) + 1 <= (width or Console().width):
        shown = Table(title=Text(title) if title else None, title_justify="left")
        for head in heads:
            shown.add_column(Text(head))
        for number, row in enumerate(rows):
            shown.add_row(*map(Text, row), style="bold" if bold(number) else None)
        return shown
    lines: list[Text | Padding] = [Text(title, style="italic")] if title else []
    for number, (name, *cells) in enumerate(rows):
        lines.append(Text(name, style="bold" if bold(number) else ""))
        pairs = [f"{head} {cell}".strip() for head, cell in zip(heads[1:], cells, strict=True)]
        figures = "; ".join(each for each, cell in zip(pairs, cells, strict=True) if cell)
        lines.append(Padding(Text(figures, overflow="fold"), (0, 0, 0, 2)))
    return Group(*lines)
