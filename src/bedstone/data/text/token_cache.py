"""The token cache: a source tokenised once, kept on disk and mapped into memory.

A cache is a folder named by what it was made of: content, tokenizer and settings. So it is never
stale, only absent, and two processes that make the same one write the same bytes; the later one
takes the earlier one's place in a single step. In it: `train.tokens` and `validation.tokens`
(ids, flat, little-endian), `*.starts` and `*.pieces` (int64: where documents and their pieces
begin), and `meta.json` with the hash of each file, which is checked on opening: a changed token
would be learnt without a word.
"""

import array
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bedstone.data.bytes import Piece
from bedstone.data.sources import Source
from bedstone.data.text.fim_cuts import CutText, FimCounts, FimCutter
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import (
    atomic_folder,
    cache_folder,
    manifest,
    recover_folder,
    verify_manifest,
    write_json,
)
from bedstone.reading import read_object

GROUP = 2 << 20  # characters tokenised at once: enough for all processors, about 200 MB of memory


@dataclass(frozen=True)
class TokenSplit:
    """Documents laid end to end; each ends with the tokenizer's end token, if it has one.

    Attributes:
        name: for messages, such as `train`.
        tokens: (N,) uint16 or uint32 ids, in memory or mapped from a file.
        starts: (D,) int64, ascending: the index of each document's first token; starts[0] is 0.
        bytes: the UTF-8 bytes of the text, for bits per byte; end tokens don't count.
        eos_id: the id that ends a document, or None.
        pieces: (P,) int64, ascending: the index of the first token of each piece of the source,
            such as a sentence; None where that isn't known.
        targets: (N,) bool, the tokens that may be predicted; None is all.
    """

    name: str
    tokens: np.ndarray
    starts: np.ndarray
    bytes: int
    eos_id: int | None = None
    pieces: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> int:
        return len(self.starts)

    def lengths(self) -> np.ndarray:
        """(D,) int64 tokens of each document, end token included."""
        return np.diff(self.starts, append=len(self.tokens))

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Sequence[int] | np.ndarray],
        *,
        name: str = "memory",
        bytes: int = 0,
        eos_id: int | None = None,
    ) -> "TokenSplit":
        """A split in memory, of documents that bring their end tokens; empty ones are left out."""
        arrays = [np.asarray(each, dtype=np.uint32) for each in documents if len(each)]
        starts = np.cumsum([0, *(len(each) for each in arrays)], dtype=np.int64)[:-1]
        tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.uint32)
        return cls(name, tokens, starts, bytes, eos_id)


class Encoded(NamedTuple):
    """One tokenised piece of a document.

    `place` is in [0, 1), the same for all pieces of a document and for documents of equal content
    or key: those below a share are held out. Of one that was cut for fill-in-the-middle, further
    documents begin at `inner`, as indices of `ids`.
    """

    ids: np.ndarray  # (T,) uint32
    begins: bool
    ends: bool
    bytes: int
    place: float
    inner: Sequence[int] = ()
    counts: FimCounts = FimCounts()


class _Placed(NamedTuple):
    piece: Piece
    begins: bool
    place: float


def encode_source(
    source: Source,
    tokenizer: Tokenizer,
    skip: int = 0,
    *,
    fim: FimCutter | None = None,
    share: float = 0.0,
) -> Iterator[list[Encoded]]:
    """The pieces of `source` in order, tokenised in groups; memory is that of two groups.

    The first `skip` pieces are read but not tokenised. Reading, tokenising and what the caller does
    with a group overlap.

    Args:
        fim: cuts documents for fill-in-the-middle.
        share: those whose place is below it are held out, and never cut.
    """
    placed = itertools.islice(_placed(source.pieces()), skip, None)
    return _encode(placed, tokenizer, fim, share)


def _encode(
    placed: Iterable[_Placed], tokenizer: Tokenizer, fim: FimCutter | None, share: float
) -> Iterator[list[Encoded]]:
    eos = tokenizer.eos_id
    tail = np.array([] if eos is None else [eos], dtype=np.uint32)

    def encode(group: list[_Placed]) -> list[Encoded]:
        cut = iter(_cut([each for each in group if each.place >= share], fim) if fim else ())
        rest = [each for each in group if fim is None or each.place < share]
        plain = tokenizer.encode_batch(
            [each.piece.text for each in rest], continued=[not each.begins for each in rest]
        )
        whole = iter(CutText(ids, (), True, FimCounts()) for ids in plain)
        done = []
        for each in group:
            piece, begins, place = each
            found = next(whole if fim is None or place < share else cut)
            ends = piece.ends and found.open_ended
            ids = np.concatenate([found.ids, tail]) if ends else found.ids
            size = len(piece.text.encode())
            done.append(Encoded(ids, begins, piece.ends, size, place, found.starts, found.counts))
        return done

    pool = ThreadPoolExecutor(2)  # one group's ids become arrays while the other is tokenised
    waiting: list[Future[list[Encoded]]] = []
    try:
        for group in _groups(placed):
            waiting.append(pool.submit(encode, group))
            if len(waiting) > 2:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:  # the threads end with the pool, when nothing refers to it
            future.cancel()


def _cut(group: Sequence[_Placed], fim: FimCutter) -> list[CutText]:
    texts = [each.piece.text for each in group]
    return fim.encode(texts, [each.begins for each in group], [each.piece.ends for each in group])


def place_of(name: str) -> float:
    """Where a document falls in [0, 1), by its key or, where it has none, its first piece."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _placed(pieces: Iterable[Piece]) -> Iterator[_Placed]:
    begins, place = True, 0.0
    for piece in pieces:
        if begins:
            if piece.ends and not piece.text:
                continue  # an empty document
            place = place_of(piece.key or piece.text)
        yield _Placed(piece, begins, place)
        begins = piece.ends


def _groups(placed: Iterable[_Placed]) -> Iterator[list[_Placed]]:
    group: list[_Placed] = []
    size = 0
    for each in placed:
        group.append(each)
        size += len(each.piece.text) + 64  # what an empty text costs
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


FORMAT = 3  # part of a cache's name: raise it when the same input would give other files
_PLACES = ("starts", "pieces")

Progress = Callable[[int, int | None], None]
"""Called with the UTF-8 bytes done and, if known, those to do."""


class TokenCache:
    """The two splits of a tokenised source; `validation` is empty where none was asked for.

    `counts` says how much of `train` was cut for fill-in-the-middle.
    """

    def __init__(
        self,
        folder: Path,
        train: TokenSplit,
        validation: TokenSplit,
        counts: FimCounts = FimCounts(),  # noqa: B008
    ):
        self.folder, self.train, self.validation = folder, train, validation
        self.counts = counts


def token_cache(
    source: Source,
    tokenizer: Tokenizer,
    folder: str | Path | None = None,
    *,
    validation_share: float = 0.05,
    progress: Progress | None = None,
    fim: FimCutter | None = None,
) -> TokenCache:
    """The tokens of `source`, from the cache in `folder` or made now, in flat memory.

    A document is held out for validation by a hash of its content, so equal documents stay on one
    side and adding data moves none. Where that gives less than a quarter or more than four times
    the share asked (one document, few, or of very unequal length), the last `validation_share` of
    all tokens is held out instead, in which case one document may lie on both sides.

    Args:
        fim: cuts documents for fill-in-the-middle; those that are held out stay as they are, and
            are those that would be held out without it.

    Raises:
        BedstoneError: the share is not in [0, 1), the source is faulty or without text, or the
            folder can't be written.
    """
    if not 0 <= validation_share < 1:
        raise BedstoneError(
            f"validation_share: {validation_share} is out of range; expected 0 or more, below 1."
        )
    made_of = [FORMAT, source.fingerprint(), tokenizer.fingerprint(), validation_share]
    made_of += [] if fim is None else [fim.identity()]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    home = Path(folder) if folder is not None else cache_folder("tokens")
    target = recover_folder(home.expanduser() / key)
    found = _open(target, tokenizer.eos_id)
    if found is None:
        with atomic_folder(target) as temporary:
            _build(temporary, source, tokenizer, validation_share, progress, fim)
        found = _open(target, tokenizer.eos_id)
        if found is None:
            raise BedstoneError(
                f"{target}: what was just written can't be read back; the disk may be failing. "
                "Choose another folder with BEDSTONE_CACHE."
            )
    return found


def _open(target: Path, eos: int | None) -> TokenCache | None:
    """The cache in `target`; None if there is none or its files are not as they were written."""
    try:
        meta = read_object(target / "meta.json")
        verify_manifest(target, meta["files"])
        splits = [
            _open_split(target, name, meta["dtype"], meta[name]["bytes"], eos)
            for name in ("train", "validation")
        ]
        counts = FimCounts(**meta.get("fim", {}))
    except (BedstoneError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return TokenCache(target, splits[0], splits[1], counts)


def _open_split(target: Path, name: str, dtype: str, size: int, eos: int | None) -> TokenSplit:
    path = target / f"{name}.tokens"
    # a file of no bytes can't be mapped
    tokens = np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
    starts, pieces = (np.fromfile(target / f"{name}.{kind}", "<i8") for kind in _PLACES)
    return TokenSplit(name, tokens, starts, size, eos, pieces)


class _Writer:
    """Appends tokens to one split's file, and remembers where documents and pieces begin."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any]):
        self.folder, self.name, self.dtype = folder, name, dtype
        self.path = folder / f"{name}.tokens"
        self.file: BinaryIO = self.path.open("wb")
        self.clear()

    def clear(self) -> None:
        """Forgets all tokens."""
        self.file.seek(0)
        self.file.truncate()
        self.count, self.counts = 0, FimCounts()
        self.starts = array.array("q")
        self.piece_starts = array.array("q")
        self.piece_bytes = array.array("q")

    def add(self, piece: Encoded) -> None:
        if piece.begins:
            self.starts.append(self.count)
        self.starts.extend(self.count + start for start in piece.inner)
        self.counts = self.counts.plus(piece.counts)
        self.piece_starts.append(self.count)
        self.piece_bytes.append(piece.bytes)
        self.file.write(piece.ids.astype(self.dtype).tobytes())
        self.count += len(piece.ids)

    def map(self) -> np.ndarray:
        self.file.flush()
        return np.memmap(self.path, self.dtype, "r") if self.count else np.zeros(0, self.dtype)

    def close(self) -> dict[str, Any]:
        self.file.close()
        for kind, places in zip(_PLACES, (self.starts, self.piece_starts), strict=True):
            np.asarray(places, "<i8").tofile(self.folder / f"{self.name}.{kind}")
        return {
            "tokens": self.count,
            "documents": len(self.starts),
            "bytes": int(sum(self.piece_bytes)),
        }


def _build(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    share: float,
    progress: Progress | None,
    fim: FimCutter | None,
) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    train, validation = (_Writer(folder, name, dtype) for name in ("train", "validation"))
    total = source.describe()["bytes"] if progress else None

    def write(fim: FimCutter | None) -> int:
        """Writes both splits, by place; how many tokens they have."""
        done = 0
        for group in encode_source(source, tokenizer, fim=fim, share=share):
            for piece in group:
                (validation if piece.place < share else train).add(piece)
                done += piece.bytes
            if progress:
                progress(done, total)
        return train.count + validation.count

    count = write(fim)
    if not count:
        raise BedstoneError(
            f"data {source.name!r}: holds no text, so there is nothing to tokenise."
        )
    if not share / 4 <= validation.count / count <= min(4 * share, 1):
        if fim is not None:  # what is held out then was cut: all is written again as it is
            train.clear()
            validation.clear()
            count = write(None)
        _split_by_position(train, validation, tokenizer, round(count * (1 - share)))
        if fim is not None:
            _cut_again(train, source, tokenizer, share, fim)
    splits = {writer.name: writer.close() for writer in (train, validation)}
    meta = {"source": source.name, "dtype": dtype.str, **splits, "files": manifest(folder)}
    meta |= {} if fim is None else {"fim": train.counts._asdict()}
    write_json(folder / "meta.json", meta)


def _cut_again(
    train: _Writer, source: Source, tokenizer: Tokenizer, share: float, fim: FimCutter
) -> None:
    """Writes a split by position once more, its documents cut for fill-in-the-middle."""
    kept = len(train.piece_starts)
    last = train.piece_bytes[kept - 1] if kept else 0

    def pieces() -> Iterator[_Placed]:
        """Those of the split, in its order; of the last its part."""
        for held in (False, True):
            yield from (each for each in _placed(source.pieces()) if (each.place < share) == held)

    def trimmed() -> Iterator[_Placed]:
        for number, each in enumerate(itertools.islice(pieces(), kept)):
            text = each.piece.text.encode()
            if number == kept - 1 and last < len(text):
                part = Piece(text[:last].decode(errors="ignore"), ends=False, key=each.piece.key)
                each = each._replace(piece=part)
            yield each

    train.clear()
    for group in _encode(trimmed(), tokenizer, fim, 0.0):
        for piece in group:
            train.add(piece)


def _split_by_position(train: _Writer, validation: _Writer, tokenizer: Tokenizer, cut: int) -> None:
    """Joins two files of tokens and splits them after `cut` tokens, copying in pieces."""
    moved = train.count
    _copy(validation.map(), train)
    train.starts.extend(moved + start for start in validation.starts)
    train.piece_starts.extend(moved + start for start in validation.piece_starts)
    train.piece_bytes.extend(validation.piece_bytes)

    joined = train.map()
    for name in ("starts", "piece_starts", "piece_bytes"):
        setattr(validation, name, array.array("q"))
    validation.file.seek(0)
    validation.file.truncate()
    validation.count = 0
    _copy(joined[cut:], validation)
    starts = np.asarray(train.starts)
    pieces = np.asarray(train.piece_starts)
    for places, kept in ((starts, validation.starts), (pieces, validation.piece_starts)):
        kept.extend(int(place) - cut for place in places[places > cut])
        if validation.count:
            kept.insert(0, 0)  # mid-document unless one begins just there

    last = int(np.searchsorted(pieces, cut, side="right")) - 1  # the piece that the cut is in
    stop = int(pieces[last + 1]) if last + 1 < len(pieces) else train.count
    before = _bytes_before(tokenizer, joined[pieces[last] : stop], cut - int(pieces[last]))
    within = round(train.piece_bytes[last] * before)
    validation.piece_bytes.append(sum(train.piece_bytes[last:]) - within)
    train.piece_bytes = array.array("q", [*train.piece_bytes[:last], within])
    train.starts, train.piece_starts = (
        array.array("q", places[places < cut].tolist()) for places in (starts, pieces)
    )
    del joined
    train.file.seek(cut * train.dtype.itemsize)
    train.file.truncate()
    train.count = cut


def _bytes_before(tokenizer: Tokenizer, ids: np.ndarray, cut: int) -> float:
    """The share of a piece's bytes that its first `cut` tokens stand for."""
    if cut == 0 or not len(ids):
        return 0.0
    whole = len(tokenizer.decode(ids.tolist()).encode())
    return len(tokenizer.decode(ids[:cut].tolist()).encode()) / max(whole, 1)


def _copy(tokens: np.ndarray, writer: _Writer, block: int = 1 << 22) -> None:
    for start in range(0, len(tokens), block):
        writer.file.write(tokens[start : start + block].tobytes())
    writer.count += len(tokens)
