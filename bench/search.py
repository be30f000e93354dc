"""Search among a million vectors: recall, time of a query, time of building, bytes on the disk.

    python bench/search.py OUT [--rows 1000000] [--kinds clustered uniform] [--queries 500]

OUT is a folder for the index (about 3 GB for a million vectors of 512 dimensions); what is there is
made again unless `--keep`. Everything goes through `tasks.search.index`, as `bedstone index` and
`bedstone search --approximate` do. Truth is by the exact product of all vectors, in fp32. Queries
are drawn like the rows and are none of them; each is one call of `Index.search` with the index
open, after a few that warm it, one at a time.

`clustered` is meant to be like embeddings of pictures: 1,000 topics of uneven size, a common
direction (embeddings fill a cone), and within and between topics a spectrum that falls as 1/i. Two
figures say how hard it is: the mean cosine of two rows, and the local dimension (the maximum
likelihood estimate of Levina and Bickel, 2004, over 20 neighbours). `uniform` is the hardest case:
directions with no structure, where no partition and no short code tells much; it says what the
method gives when there is nothing to find.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TOP = 10
PART = 50_000  # rows made and stored at a time


class Uniform:
    """Directions drawn evenly."""

    def __init__(self, width: int, seed: int) -> None:
        self.width = width

    def draw(self, draw: np.random.Generator, count: int) -> np.ndarray:
        return unit(draw.standard_normal((count, self.width), dtype=np.float32))


class Clustered:
    """Topics around a common direction, with a spectrum that falls as 1/i."""

    def __init__(self, width: int, seed: int, topics: int = 1000) -> None:
        draw = np.random.default_rng(seed)
        self.width = width
        self.spectrum = np.arange(1, width + 1, dtype=np.float32) ** -0.5
        turn, _ = np.linalg.qr(draw.standard_normal((width, width)))
        self.turn = turn.astype(np.float32)
        self.topics = self._cloud(draw, topics)
        self.common = draw.standard_normal(width, dtype=np.float32) * np.float32(3 / width**0.5)
        share = np.arange(1, topics + 1) ** -0.7
        self.share = share / share.sum()

    def _cloud(self, draw: np.random.Generator, count: int) -> np.ndarray:
        plain = draw.standard_normal((count, self.width), dtype=np.float32)
        return (plain * self.spectrum) @ self.turn

    def draw(self, draw: np.random.Generator, count: int) -> np.ndarray:
        topic = draw.choice(len(self.topics), size=count, p=self.share)
        near = np.float32(0.7) * self._cloud(draw, count)
        return unit(self.common + self.topics[topic] + near)


KINDS = {"clustered": Clustered, "uniform": Uniform}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def parts(kind: Uniform | Clustered, rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """All rows in parts; the same ones each time."""
    for start in range(0, rows, PART):
        draw = np.random.default_rng([1, start])
        yield start, kind.draw(draw, min(PART, rows - start))


def truth(kind: Uniform | Clustered, rows: int, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """The places (q, 20) of the nearest rows by the exact product, and the local dimension."""
    scores = np.zeros((len(queries), 0), np.float32)
    places = np.zeros((len(queries), 0), np.int64)
    for start, vectors in parts(kind, rows):
        scores = np.concatenate([scores, queries @ vectors.T], axis=1)
        more = np.broadcast_to(np.arange(start, start + len(vectors)), (len(queries), len(vectors)))
        places = np.concatenate([places, more], axis=1)
        best = np.argpartition(-scores, 19, axis=1)[:, :20]
        scores = np.take_along_axis(scores, best, axis=1)
        places = np.take_along_axis(places, best, axis=1)
    order = np.argsort(-scores, axis=1)
    scores = np.take_along_axis(scores, order, axis=1)
    places = np.take_along_axis(places, order, axis=1)
    distances = np.sqrt(np.maximum(2 - 2 * scores, 1e-9))
    ratios = np.log(distances[:, -1:] / distances[:, :-1]).mean(axis=1)
    return places, float(np.median(1 / ratios))


def fill(path: Path, kind: Uniform | Clustered, rows: int) -> float:
    from bedstone.tasks.search.index import Index, Row

    start = time.perf_counter()
    with Index.create(path, kind.width, "bench") as held:
        for at, vectors in parts(kind, rows):
            held.add(Row(str(at + n), vector, {"n": at + n}) for n, vector in enumerate(vectors))
            print(f"\r{at + len(vectors):,} stored", end="", flush=True)
        held.tidy()
    print()
    return time.perf_counter() - start


def measure(path: Path, queries: np.ndarray, places: np.ndarray, exact: bool) -> dict[str, float]:
    from bedstone.tasks.search.index import Index

    held = Index.open(path)
    found, times = 0, []
    for query in queries[:20]:
        held.search(query, TOP, exact=exact)
    for query, nearest in zip(queries, places, strict=True):
        start = time.perf_counter()
        answer = held.search(query, TOP, exact=exact)
        times.append(1000 * (time.perf_counter() - start))
        found += len({int(one.key) for one in answer} & set(nearest[:TOP].tolist()))
    middle, late = np.quantile(times, [0.5, 0.95])
    recall = found / (TOP * len(queries))
    return {"recall": recall, "p50_ms": float(middle), "p95_ms": float(late)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("out", type=Path)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--queries", type=int, default=500)
    options.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options.add_argument("--keep", action="store_true", help="measure what is there again")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    os.environ["LANCE_CPU_THREADS"] = str(chosen.threads)
    from bedstone.tasks.search.index import Index

    for name in chosen.kinds:
        kind = KINDS[name](chosen.width, seed=0)
        path = chosen.out / name
        if not chosen.keep:
            shutil.rmtree(path, ignore_errors=True)
        told = {"kind": name, "rows": chosen.rows, "width": chosen.width}
        if not (path / "index.json").is_file():
            told["store_s"] = round(fill(path, kind, chosen.rows), 1)
        with Index.open(path) as held:
            if held.settings.approximate is None:
                held.approximate()
            told["built"] = vars(held.settings.approximate)
        queries = kind.draw(np.random.default_rng(2), chosen.queries)
        places, told["local_dimension"] = truth(kind, chosen.rows, queries)
        told["mean_cosine"] = float((queries @ queries.T)[np.triu_indices(len(queries), 1)].mean())
        told["approximate"] = measure(path, queries, places, exact=False)
        told["exact"] = measure(path, queries[:20], places[:20], exact=True)
        table = path / "rows.lance"
        told["mb"] = {
            part: round(sum(f.stat().st_size for f in (table / part).rglob("*")) / 2**20)
            for part in ("data", "_indices")
        }
        print(json.dumps(told, indent=1), flush=True)


if __name__ == "__main__":
    main()
