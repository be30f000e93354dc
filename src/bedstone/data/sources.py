"""Sources of data by name: built-in data, a file, a folder, a glob or a hub id.

What a name may be, tried in this order:

- `python-docs`: the documentation and source of the Python that runs (`data.python_docs`)
- `scenes`: captions, questions and answers of synthetic scenes as text (`data.scenes.datasets`)
- `few-shot-tasks`, `few-shot-tasks-held-out`: lists of examples of small tasks (`data.few_shot`)
- `small-talk`: facts and stories of a small world (`data.small_talk`)
- a file: `.jsonl`, `.json`, `.csv`, `.parquet`, `.arrow` hold a document a row; any other file is
  text and is one document, whatever its size; all but Parquet and Arrow may be `.gz`. A `.tar` is
  one of WebDataset (`data.tar`): files of one name are a row
- a folder: of data files (only the formats above, `.txt` and `.md`, beside a README or licence)
  they are read as files are; any other folder is a source tree, where every text file is one
  document, and what is not text is left out and counted. Hidden names and symlinks are not followed
- a glob such as `'logs/**/*.txt'`
- an address such as `'s3://bucket/part-*.parquet'`, read by the `fsspec` library (`data.shards`)
- a hub id such as `owner/name`, read by the `datasets` library

`open_source` gives documents; `read_records` gives rows. Rows with images may also be a folder of
images with a `metadata.jsonl` or `metadata.csv` (columns `file_name` and others), or with a folder
for each class.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from bedstone.data.bytes import BLOCK, Piece, data_suffix, looks_like_text, read_text
from bedstone.data.folders import (
    PROSE,
    class_names,
    has_images,
    image_records,
    text_classes,
    text_record,
)
from bedstone.data.records import (
    FORMATS,
    MOST_BROKEN,
    Faults,
    Reading,
    Record,
    file_pieces,
    file_rows,
    hub_pieces,
    records,
)
from bedstone.data.shards import Shards, is_address
from bedstone.data.tables import hub_rows, import_datasets
from bedstone.errors import BedstoneError, closest, nearest
from bedstone.reading import kind_of, to_path
from bedstone.settings import Settings, share

T = TypeVar("T")

# Built-in text: the module and function that make its documents, loaded when asked for.
BUILT_IN = {
    "python-docs": ("bedstone.data.python_docs", "python_pieces"),
    "scenes": ("bedstone.data.scenes.datasets", "scene_texts"),
    "few-shot-tasks": ("bedstone.data.few_shot", "task_pieces"),
    "few-shot-tasks-held-out": ("bedstone.data.few_shot", "held_out_pieces"),
    "small-talk": ("bedstone.data.small_talk", "talk_pieces"),
}
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

_NOT_DATA = re.compile(r"(readme|license|licence|copying|notice|dataset_infos?)\b", re.I)


class Source:
    """Documents in a fixed order, read anew at every call."""

    name: str
    most_broken: float | None = None  # the share of rows that may be broken; None raises the first
    faults: Faults | None = None  # broken rows of the last pass

    def reading(self) -> Reading:
        """How the rows of one pass are read."""
        faults = None if self.most_broken is None else Faults(self.name, self.most_broken)
        return Reading(faults)

    def finished(self, reading: Reading) -> None:
        """Keeps the faults of a whole pass. Raises BedstoneError where they are too many."""
        self.faults = reading.faults
        if reading.faults is not None:
            reading.faults.check()

    def pieces(self) -> Iterator[Piece]:
        """All documents as pieces of bounded size, for tokenization."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash of the content (hex): equal documents in equal order give an equal one."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """`name`, `files` and `bytes` (None: not known); of a tree also the files `skipped`."""
        return {"name": self.name, "files": 0, "bytes": None}

    def documents(self) -> Iterator[str]:
        """Each document as one string, however long; empty ones are left out."""
        held: list[str] = []
        for piece in self.pieces():
            held.append(piece.text)
            if piece.ends:
                text = "".join(held)
                held.clear()
                if text:
                    yield text


class Texts(Source):
    """Documents from memory, or from a function that yields them anew at every call."""

    def __init__(
        self, texts: Iterable[str | Piece] | Callable[[], Iterable[str | Piece]], name: str
    ):
        self.name = name
        if not callable(texts):
            kept = list(texts)
            self._texts: Callable[[], Iterable[str | Piece]] = lambda: kept
        else:
            self._texts = texts

    def pieces(self) -> Iterator[Piece]:
        for text in self._texts():
            yield Piece(text) if isinstance(text, str) else text

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for piece in self.pieces():
            data = piece.text.encode()
            digest.update(f"{len(data)} {piece.ends} {piece.key}\n".encode())
            digest.update(data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        size = sum(len(piece.text.encode()) for piece in self.pieces())
        return {"name": self.name, "files": 0, "bytes": size}


class Files(Source):
    """Documents from files, in the order of their names.

    `tree` reads every file as one text and leaves out what is not text, unless it is prose
    (`.txt`, `.md`) with a fault.
    """

    def __init__(
        self,
        name: str,
        paths: list[Path],
        column: str = "text",
        *,
        tree: bool = False,
        skipped: int = 0,
        folder: Path | None = None,
    ):
        self.name, self.paths, self.column = name, paths, column
        self.tree, self.skipped, self.folder = tree, skipped, folder

    def files(self) -> Iterator[Path]:
        """Each file, in order."""
        yield from self.paths

    def place(self, path: Path) -> str | Path:
        """What messages name a file by."""
        return path

    def placed(self, path: Path, found: Iterable[T]) -> Iterator[T]:
        """What is read of a file; errors among it name the file as `place` does."""
        name = str(self.place(path))

        def mended(error: BedstoneError) -> BedstoneError:
            return BedstoneError(str(error).replace(str(path), name))

        try:
            for each in found:
                yield mended(each) if isinstance(each, BedstoneError) else each  # type: ignore[misc]
        except BedstoneError as error:
            raise mended(error) from error

    def pieces(self) -> Iterator[Piece]:
        reading = self.reading()
        for path in self.files():
            if not self.tree:
                yield from self.placed(path, file_pieces(path, self.column, reading))
            elif data_suffix(path) in PROSE:
                yield from read_text(path)
            else:
                yield from self._maybe_text(path)
        self.finished(reading)

    def _maybe_text(self, path: Path) -> Iterator[Piece]:
        open_document = False
        try:
            for piece in read_text(path):
                yield piece
                open_document = not piece.ends
        except BedstoneError:
            if open_document:  # what was handed out can't be taken back: end it there
                yield Piece("")

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.column} {self.tree}\n".encode())
        for path in self.paths:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        size = sum(path.stat().st_size for path in self.paths)
        known = {"name": self.name, "files": len(self.paths), "bytes": size}
        return {**known, "skipped": self.skipped} if self.tree else known


class Elsewhere(Files):
    """Documents from files of a store elsewhere."""

    def __init__(self, shards: Shards, column: str):
        super().__init__(shards.address, [Path(each.name) for each in shards.shards], column)
        self.shards = shards
        self._places: dict[Path, str] = {}

    def files(self) -> Iterator[Path]:
        store = self.name.partition("://")[0]
        for shard, path in zip(self.shards.shards, self.shards.files(), strict=True):
            self._places[path] = f"{store}://{shard.path.lstrip('/')}"
            yield path

    def place(self, path: Path) -> str | Path:
        """The shard's address: its file here is one of a cache."""
        return self._places.get(path, path)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.column} {self.shards.fingerprint()}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "files": len(self.paths), "bytes": self.shards.size}


class Hub(Source):
    """Documents from a data set on the hub."""

    def __init__(self, name: str, split: str, column: str):
        self.name, self.split, self.column = name, split, column

    def pieces(self) -> Iterator[Piece]:
        reading = self.reading()
        yield from hub_pieces(self.name, self.split, self.column, reading)
        self.finished(reading)

    def fingerprint(self) -> str:
        # Its content can't be hashed without fetching all of it: the builder's hash names the
        # revision that is read.
        datasets = import_datasets()
        try:
            revision = datasets.load_dataset_builder(self.name).hash
        except Exception as error:
            raise BedstoneError(
                f"data {self.name!r}: the hub doesn't answer ({error}). Try again with a network, "
                "or download it and name the file."
            ) from error
        return hashlib.sha256(
            f"{self.name} {revision} {self.split} {self.column}".encode()
        ).hexdigest()


def open_source(
    name: str | Path,
    *,
    text_column: str = "text",
    split: str | None = None,
    most_broken: float | None = None,
) -> Source:
    """The documents that `name` stands for; the module's docstring says what it may be.

    `text_column` is the column of a row that holds the text. `split` (`train`, `validation`,
    `test`) picks the files so named of a folder of data files, or the hub's split; without it,
    the files named after `train` where there are such, else all. `most_broken` is the share of rows
    that may be broken, which are left out and counted in `Source.faults`; None raises the first.

    Raises:
        BedstoneError: there is no such data, or its first document can't be read: told now, not
            in the middle of a run. Later faults are told when they are met.
    """
    source = find(str(name), text_column, split)
    source.most_broken = most_broken
    if not any(piece.text.strip() for piece in source.pieces()):
        raise BedstoneError(
            f"data {source.name!r}: holds no text at all. Name data with at least one document."
        )
    return source


def find(name: str, column: str, split: str | None) -> Source:
    """As `open_source`, without reading anything."""
    if name in BUILT_IN:
        module, function = BUILT_IN[name]
        return Texts(getattr(importlib.import_module(module), function), name)
    if is_address(name):
        shards = Shards(name, (*FORMATS, *PROSE))
        if len(shards.shards) > 1:
            kept = {
                each.name for each in _of_split([Path(s.name) for s in shards.shards], name, split)
            }
            shards.take(kept.__contains__)
        return Elsewhere(shards, column)
    path = to_path(name, "data")
    if path.is_file():
        return Files(name, [_checked(path)], column)
    if path.is_dir():
        return _folder(name, path, column, split)
    if has_magic(name):
        found = sorted(Path(match) for match in glob(str(path), recursive=True))  # noqa: PTH207
        files = [_checked(file) for file in found if file.is_file()]
        if not files:
            raise BedstoneError(
                f"data {name!r}: no file matches. Check the pattern and the folder."
            )
        return Files(name, _of_split(files, name, split), column)
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)
    if hub_id and not _known_suffix(path) and not path.parent.is_dir():
        return Hub(name, split or "train", column)
    raise _missing(name, path)


def _known_suffix(path: Path) -> bool:
    return data_suffix(path) in {*FORMATS, *PROSE}


def _checked(path: Path) -> Path:
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise BedstoneError(f"{path}: can't be read ({error.strerror}).") from error
    if not size:
        raise BedstoneError(f"{path}: is empty (0 bytes). Name a file that holds text.")
    return path


def _folder(name: str, path: Path, column: str, split: str | None) -> Source:
    found = sorted(walk(path))
    data = [file for file in found if not _NOT_DATA.match(file.name)]
    for home in split_folders(path, split):  # texts by class: train/pos/1.txt
        inner = [file for file in data if home in file.parents]
        if inner and text_classes(home, inner):
            return Files(name, [_checked(file) for file in inner], column, folder=home)
    if data and all(_known_suffix(file) for file in data):
        by_class = split is None and text_classes(path, data)
        chosen = data if by_class else _of_split(data, name, split)
        return Files(name, [_checked(file) for file in chosen], column, folder=path)
    if split:
        raise BedstoneError(
            f"data {name!r}: is a source tree, which has no split {split!r}. Leave the split out."
        )
    texts = [file for file in found if file.stat().st_size and _is_document(file)]
    if not texts:
        raise BedstoneError(
            f"data {name!r}: the folder holds {len(found)} files and none is text. "
            "Name a folder of txt, md, source code, jsonl, csv, parquet or arrow files."
        )
    return Files(name, texts, column, tree=True, skipped=len(found) - len(texts))


def walk(folder: Path) -> Iterator[Path]:
    """The plain files below a folder, in order, but for hidden ones and symlinks.

    Raises:
        BedstoneError: a folder can't be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise BedstoneError(f"{folder}: can't be read ({error.strerror}).") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from walk(entry)
        elif entry.is_file():
            yield entry


def _is_document(path: Path) -> bool:
    return data_suffix(path) in PROSE or looks_like_text(path)


def _of_split(files: list[Path], name: str, split: str | None) -> list[Path]:
    """The files whose name has the split's as a word, such as `train-00001.parquet`."""
    if split is not None and split not in SPLITS:
        raise BedstoneError(f"split {split!r} of data {name!r} is unknown{nearest(split, SPLITS)}.")
    words = SPLITS[split or "train"]
    named = [file for file in files if set(re.split(r"[\W_]+", file.name.lower())) & set(words)]
    if named or split is None:
        return named or files
    raise BedstoneError(
        f"data {name!r}: no file is named after the split {split!r}; there are "
        f"{', '.join(file.name for file in files[:10])}. Leave the split out or name the file."
    )


def _missing(name: str, path: Path) -> BedstoneError:
    if kind := kind_of(path):
        return BedstoneError(
            f"data {name!r}: is {kind}; expected a plain file, since rows are read more than once. "
            "Write what it gives into a file."
        )
    folder = path.parent
    if folder.is_dir():
        place = "here" if folder == Path() else f"in {folder}"
        near = closest(path.name, [*(entry.name for entry in folder.iterdir()), *BUILT_IN])
        return BedstoneError(
            f"data {name!r}: no such file or folder {place}{near}. Expected a file, a folder, "
            f"a glob, a hub id (owner/name) or built-in data ({', '.join(BUILT_IN)})."
        )
    return BedstoneError(
        f"data {name!r}: the folder {folder} does not exist. Expected a file, a folder, a glob, "
        f"a hub id (owner/name) or built-in data ({', '.join(BUILT_IN)})."
    )


# Rows of a source.


def read_records(
    name: str | Path,
    split: str | None = None,
    *,
    images: bool = False,
    reading: Reading | None = None,
) -> Iterator[Record]:
    """All rows of a source, counted by `reading`; nothing of an image is decoded.

    Args:
        images: whether rows with images are asked for: a folder of images is read, and text
            refused. Without it, a document of text is a row with the column `text`; where all
            texts of a folder lie in two or more sub-folders, these are the column `label`.
        reading: how rows are read, and what is found beside them.

    Raises:
        BedstoneError: there is no such data, or a file can't be read.
    """
    reading = reading or Reading()
    return reading.sound(_records(str(name), split, images, reading))


def _records(
    name: str, split: str | None, images: bool, reading: Reading
) -> Iterator[Record | BedstoneError]:
    path = Path(name) if is_address(name) else to_path(name, "data")
    if images and path.is_dir() and (folders := image_folders(path, split)):
        for folder in folders:
            yield from image_records(folder, path, reading)
        return
    source = find(name, "text", split)
    if isinstance(source, Hub):
        built_in = "scenes" if images else "python-docs"
        yield from records(name, hub_rows(name, source.split, reading.names, built_in))
    elif images and (not isinstance(source, Files) or source.tree):
        raise BedstoneError(
            f"data {name!r}: holds no pictures that can be read; expected a Parquet, Arrow, JSONL "
            "or CSV file with a column of pictures or their paths, or a folder of pictures with a "
            "metadata.jsonl."
        )
    elif isinstance(source, Files):
        labels = [""] * len(source.paths)
        if not images and source.folder is not None and text_classes(source.folder, source.paths):
            labels = class_names(source.paths, source.folder, reading)
        for file, label in zip(source.files(), labels, strict=True):
            rows = file_rows(file, reading)
            if rows is None and images:
                raise BedstoneError(
                    f"{file}: holds no rows; expected a Parquet, Arrow, JSONL, JSON or CSV file."
                )
            if rows is None:
                try:
                    yield text_record(file, label)
                except BedstoneError as error:
                    if len(source.paths) == 1:
                        raise
                    yield error
            else:
                yield from records(source.place(file), source.placed(file, rows), file.parent)
    else:
        for number, piece in enumerate(source.pieces(), 1):
            yield Record(f"{name}: document {number:,}", {"text": piece.text})


def image_folders(path: Path, split: str | None) -> list[Path]:
    """The folder in `path` that holds images: that of a split, or itself; [] where none does.

    Raises:
        BedstoneError: it has pictures, and none of the split that is asked for.
    """
    named = split_folders(path, split)
    found = [folder for folder in [*named, path] if has_images(folder)][:1]
    if split is not None and found == [path]:
        have = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir())) or "none"
        raise BedstoneError(
            f"data {str(path)!r}: has no folder of pictures for the split {split!r}; its folders: "
            f"{have}. Leave the split out, or name the folder itself."
        )
    return found


def split_folders(path: Path, split: str | None) -> list[Path]:
    """The folders in `path` that are named after a split; without one, after `train`."""
    return [path / word for word in SPLITS.get(split or "train", ()) if (path / word).is_dir()]


@dataclass
class DataConfig(Settings):
    """The text that a language model is trained on.

    Attributes:
        source: a built-in name (python-docs), a file, a folder, a glob or a hub id.
        column: the column that holds the text, in formats that have columns.
        split: of a hub id or a folder with splits.
        validation: another source to validate on; empty holds out a share of `source`.
        validation_share: the share of documents held out; of a single document, its end.
        streaming: tokenise as it trains, for what doesn't fit on the disk twice.
        answers: the text that stands before an answer, such as " ->", or that its first token
            begins with, such as " ": what follows, to the end of its line, alone is learnt, by a
            decoder. Empty learns every token.
        most_broken: share of rows that may be broken; such rows are left out and named.
    """

    source: str = "python-docs"
    column: str = "text"
    split: str | None = None
    validation: str = ""
    validation_share: float = share(below_one=True, default=0.02)
    streaming: bool = False
    answers: str = ""
    most_broken: float = share(below_one=True, default=MOST_BROKEN)

    section: ClassVar[str] = "data."
