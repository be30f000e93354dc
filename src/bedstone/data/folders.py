"""Folders of images or texts: their metadata files, and the classes that their sub-folders are.

A folder of images is read as the `imagefolder` builder of the `datasets` library reads it: the
nearest `metadata.jsonl`, `metadata.csv` or `metadata.parquet` above an image describes it, by the
path in its column `file_name` (or `image_file_name`). Without metadata the sub-folder of an image
or of a text file is its class.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bedstone.data.bytes import LARGEST, data_suffix, read_text
from bedstone.data.images.decode import find_images, find_unread
from bedstone.data.records import REPORTED, Reading, Record, file_rows, records
from bedstone.errors import BedstoneError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of a folder of images
FILE_NAME = "_file_name"  # how a column of file names may end
IMAGE_COLUMNS = ("image", "img", "picture")  # what may stand before it
PROSE = (".txt", ".md")


def find_metadata(folder: Path) -> list[tuple[Path, Path]]:
    """Metadata files of a folder and of those below it that hold images, each with its folder."""
    homes = sorted({folder, *(path.parent for path in find_images(folder))})
    homes = sorted({up for home in homes for up in _upwards(home, folder)})
    found = []
    for home in homes:
        file = next((home / name for name in METADATA if (home / name).is_file()), None)
        if file is not None:
            found.append((file, home))
    return found


def _upwards(folder: Path, top: Path) -> Iterator[Path]:
    """A folder and those above it, as far as `top`."""
    yield folder
    while folder != top and top in folder.parents:
        folder = folder.parent
        yield folder


def has_images(folder: Path) -> bool:
    """Whether a folder holds images with metadata or by class, not files of rows."""
    if any((folder / each).is_file() for each in METADATA):
        return True
    tables = any(data_suffix(each) in (".parquet", ".arrow") for each in folder.iterdir())
    return not tables and bool(find_images(folder) or find_unread(folder))


def image_records(folder: Path, top: Path, reading: Reading) -> Iterator[Record | BedstoneError]:
    """A folder's images: by their metadata, else with the folder that each is in as its class.

    Files of image formats that aren't read are broken rows, behind the others.

    Args:
        folder: of a split, or `top` itself.
        top: the folder that the user named; metadata in it may describe images of `folder`.
    """
    metadata = find_metadata(folder)
    if not metadata and top != folder:
        metadata = [pair for pair in find_metadata(top) if pair[1] == top]
    yield from _described(folder, metadata, reading) if metadata else _by_class(folder, reading)
    for path in find_unread(folder):
        yield BedstoneError(
            f"{path}: is a picture in a format that isn't read ({path.suffix}); convert it to JPEG "
            "or PNG, or move it away"
        )


def _by_class(folder: Path, reading: Reading) -> Iterator[Record]:
    images = find_images(folder)
    labels = class_names(images, folder, reading)
    for image, label in zip(images, labels, strict=True):
        values: dict[str, Any] = {"file_name": image.relative_to(folder).as_posix()}
        if label:
            values["label"] = label
        yield Record(str(image), values, folder, inside=True)


def _described(
    folder: Path, metadata: Sequence[tuple[Path, Path]], reading: Reading
) -> Iterator[Record | BedstoneError]:
    homes = {home for _, home in metadata}
    named: set[Path] = set()
    for file, home in metadata:
        rows = file_rows(file, reading)
        assert rows is not None
        for record in records(file, rows, home, inside=True):
            if isinstance(record, BedstoneError):
                yield record
                continue
            values = dict(record.values)
            name = file_name_of(values)
            values.setdefault("file_name", name)
            if isinstance(name, str) and name:
                path = home / name
                if home in folder.parents and folder not in path.parents:
                    continue  # of another split
                nearest = next((up for up in path.parents if up in homes), home)
                if nearest != home:
                    continue  # a file that is nearer describes it
                named.add(path)
            yield Record(record.place, values, home, inside=True)
    left = [path for path in find_images(folder) if path not in named]
    if left:
        first = ", ".join(str(path) for path in left[:REPORTED])
        reading.note(
            f"{len(left):,} pictures are left out, since no row of the metadata names them: {first}"
        )


def file_name_of(values: dict[str, Any]) -> Any:
    """The file that a row of metadata names; None where it has no such column."""
    if values.get("file_name"):
        return values["file_name"]
    columns = [str(name) for name in values if str(name).endswith(FILE_NAME)]
    usual = [name for name in columns if name.removesuffix(FILE_NAME) in IMAGE_COLUMNS]
    chosen = usual[:1] or (columns if len(columns) == 1 else [])
    return values[chosen[0]] if chosen else None


def class_names(files: Sequence[Path], folder: Path, reading: Reading) -> list[str]:
    """The class of each file: its first folder below the one that all share; "" of none.

    Where folders are nested, as `cat/2019`, that is `cat`; a note says so.
    """
    parts = [file.relative_to(folder).parts[:-1] for file in files]
    shared = 0
    while parts and all(len(each) > shared + 1 for each in parts):
        if len({each[shared] for each in parts}) > 1:
            break
        shared += 1
    names = [each[shared] if len(each) > shared else "" for each in parts]
    deeper = Counter("/".join(each[shared:]) for each in parts if len(each) > shared + 1)
    if deeper:
        example = next(iter(deeper))
        reading.doubt(
            f"{folder}: folders are nested ({example}); the class is the first, "
            f"{example.split('/')[0]!r}, and the others are passed over"
        )
    return names


# Folders of text files by class, as `pos/1.txt` and `neg/1.txt`.


def text_classes(folder: Path, files: Sequence[Path]) -> bool:
    """Whether all files are prose in two or more sub-folders, which are then their classes."""
    tops = {file.relative_to(folder).parts[0] for file in files if file.parent != folder}
    prose = all(data_suffix(file) in PROSE and file.parent != folder for file in files)
    return prose and len(tops) > 1


def text_record(path: Path, label: str = "") -> Record:
    """A text file as a row with the columns `text` and, where it has one, `label`.

    Raises:
        BedstoneError: it can't be read, or is longer than one text may be.
    """
    held, size = [], 0
    for piece in read_text(path):
        held.append(piece.text)
        size += len(piece.text)
        if size > LARGEST:
            raise BedstoneError(
                f"{path}: has more than {LARGEST:,} characters, which is the most that one row may "
                "have. Split it into several files."
            )
    values = {"text": "".join(held)}
    return Record(f"{path}: the file", values | ({"label": label} if label else {}), path.parent)
