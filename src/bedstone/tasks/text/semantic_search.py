"""semantic-search: the texts of a file whose embeddings are nearest to the query's.

A file's texts are embedded once; the embeddings are kept in the user's cache, named by the texts,
the model's weights and how it embeds, so they are never stale. The search is exact.
Shapes: n texts, D numbers of an embedding.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.checkpoints.model import Model, weights_hash
from bedstone.data.bytes import data_suffix, read_text
from bedstone.data.open import open_dataset
from bedstone.data.records import FORMATS
from bedstone.errors import BedstoneError
from bedstone.files import atomic_file, cache_folder
from bedstone.nn.fast.inference import inference_bits, inference_dtype
from bedstone.reading import is_plain, to_path
from bedstone.settings import one_of, whole
from bedstone.tasks.task import shown, text_of
from bedstone.tasks.text.feature_extraction import LONG, Embedder, EmbedOptions, unit

FORMAT = 1  # part of a cache's name: raise it when the same input would give other numbers
BLOCK = 1 << 16  # texts compared at a time
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # as sentence-transformers looks for them


@dataclass(frozen=True)
class SearchOptions(EmbedOptions):
    """Options of semantic-search.

    Attributes:
        file: a text file, whose lines are searched, or rows (JSON, JSONL, CSV, Parquet, Arrow).
        texts: a list to search, instead of a file.
        column: of rows, the column that is searched; found by its usual names where None.
        top_k: how many are found.
        cache: the folder of kept embeddings; None is `embeddings` in the user's cache.
        long: a long text is embedded whole, unless this is "cut".
    """

    file: str | Path | None = None
    texts: Sequence[str] | None = None
    column: str | None = None
    top_k: int = whole(1, default=5)
    cache: str | Path | None = None
    long: str = one_of(*LONG, default="windows")


@dataclass(frozen=True)
class Corpus:
    """The searched texts with their embeddings.

    Attributes:
        texts: n of them.
        origins: of each, {"line": number} or {"row": its columns}, or {}.
        vectors: (n, D) fp32, each at length 1.
    """

    texts: Sequence[str]
    origins: Sequence[dict[str, Any]]
    vectors: np.ndarray


class SemanticSearch(Embedder):
    """A query -> the nearest texts, each {"corpus_id", "score", "text"} and its line or row."""

    name = "semantic-search"
    settings = SearchOptions

    def __init__(self, model: Model, *, precision: str = "fp32", **options: Any) -> None:
        super().__init__(model, precision=precision, **options)
        self._weights = weights_hash(model)
        self._opened: tuple[Any, Corpus] | None = None

    def prepare(self, value: Any, options: SearchOptions) -> str:
        return text_of(value, "the query")

    def results(self, rows: Sequence[str], options: SearchOptions) -> Iterator[list[Any]]:
        corpus = self.corpus(options)
        prompts = self.pooling.prompts
        named = options.prompt_name or ("query" if "query" in prompts else None)
        queries = unit(self.vectors(rows, replace(options, prompt_name=named)))
        for query in queries:
            scores, places = nearest_vectors(corpus.vectors, query, options.top_k)
            yield [
                {"corpus_id": place, "score": score, "text": corpus.texts[place]}
                | corpus.origins[place]
                for score, place in zip(scores, places, strict=True)
            ]

    def corpus(self, options: SearchOptions) -> Corpus:
        """The texts to search, with their embeddings.

        Raises:
            BedstoneError: there are none, or both a file and a list were given.
        """
        if (options.file is None) == (options.texts is None):
            raise BedstoneError(
                f"{self.name}: expected either file= (a text file, or rows) or texts= (a list)."
            )
        key: tuple[Any, ...] | None = None
        if options.file is not None and Path(options.file).is_file():
            state = Path(options.file).stat()
            key = (str(options.file), state.st_mtime_ns, state.st_size, options.column)
            key += (options.long, options.max_length, options.cache)
        if key is not None and self._opened is not None and self._opened[0] == key:
            return self._opened[1]
        texts, origins = self._read(options)
        corpus = Corpus(texts, origins, self._vectors(texts, options))
        self._opened = (key, corpus)
        return corpus

    def _read(self, options: SearchOptions) -> tuple[list[str], list[dict[str, Any]]]:
        if options.texts is not None:
            if isinstance(options.texts, str) or not options.texts:
                raise BedstoneError(
                    f"{self.name}: texts: {shown(options.texts)}; expected a list of texts."
                )
            texts = [text_of(text, f"texts[{i}]") for i, text in enumerate(options.texts)]
            return texts, [{} for _ in texts]
        return read_corpus(str(options.file), options.column)

    def _vectors(self, texts: Sequence[str], options: SearchOptions) -> np.ndarray:
        named = next((name for name in DOCUMENT_PROMPTS if name in self.pooling.prompts), None)
        # a prompt that was asked for is the query's
        how = replace(options, prompt_name=named, prompt=None)
        made_of: list[Any] = [
            FORMAT,
            self._weights,
            self.tokenizer.fingerprint(),
            asdict(self.pooling),
        ]
        made_of += [asdict(self.pooling), self.prompt(how), how.long, self.limit(how)]
        ready = self.engine.network
        made_of += [self.engine.device.type, str(inference_dtype(ready)), inference_bits(ready)]
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
        for text in texts:
            digest.update(f"\n{len(text)}\n{text}".encode())
        home = cache_folder("embeddings") if how.cache is None else Path(how.cache)
        path = home.expanduser() / f"{digest.hexdigest()[:32]}.npy"
        found = _open(path, (len(texts), self.width))
        if found is None:
            found = unit(self.vectors(texts, how))
            with atomic_file(path, needed=found.nbytes) as temporary, temporary.open("wb") as file:
                np.save(file, found, allow_pickle=False)
        return found


def read_corpus(name: str, column: str | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    """The texts of a file, and of each where it is from: {"line": number} or {"row": its columns}.

    Args:
        name: a text file, whose lines with text are taken; or rows, as `open_rows` reads them.
        column: of rows, the column that holds the text.

    Raises:
        BedstoneError: it can't be read, or has no text.
    """
    path = to_path(name, "data")
    if is_plain(path) and data_suffix(path) not in FORMATS:
        whole = "".join(piece.text for piece in read_text(path))
        lines = [(line.strip(), number) for number, line in enumerate(whole.split("\n"), 1)]
        kept = [(line, number) for line, number in lines if line]
        if not kept:
            raise BedstoneError(f"{path}: holds no text. Name a file that does.")
        if column is not None:
            raise BedstoneError(f"{path}: is no file of rows, so it has no column {column!r}.")
        return [line for line, _ in kept], [{"line": number} for _, number in kept]
    rows = open_dataset(name, columns={"text": column} if column else None)
    return rows.texts(rows.need("text")), [{"row": row} for row in rows.rows]


def nearest_vectors(
    vectors: np.ndarray, query: np.ndarray, count: int
) -> tuple[list[float], list[int]]:
    """The cosines and places of the `count` nearest, nearest first; of equals the earlier.

    Args:
        vectors: (n, D) of length 1.
        query: (D,) of length 1.
    """
    scores = np.concatenate(
        [vectors[start : start + BLOCK] @ query for start in range(0, len(vectors), BLOCK)]
    )
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    likely = np.flatnonzero(scores >= least)  # more than asked for where scores are equal
    places = likely[np.argsort(-scores[likely], kind="stable")][:count]
    return scores[places].tolist(), places.tolist()


def _open(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Kept embeddings, mapped into memory; None where there are none, or others."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32
    return found if good else None
