"""Names of outputs: what stands there already is kept unless it may be overwritten.

A name that the user gave is refused where a file has it (`new_file`, `new_folder`); a name that
Bedstone chose itself makes way for the next one that is free (`free_path`, `next_number`).
"""

import re
from pathlib import Path

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
