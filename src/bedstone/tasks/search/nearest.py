"""Nearest-neighbour search of an index: exact, or approximate by partitions and product codes.

Approximate search reads the `probes` partitions whose centres are nearest to the query (IVF: Jégou
et al. 2011) and estimates cosines by codes of a bit a number (RaBitQ: Gao and Long 2024); of the
best, `refine` times as many as are asked for are compared again by their true vectors. What that
loses is measured: recall@10 beside the exact search on a sample of the rows, each taken as a query
for its neighbours. The least work that reaches the goal there is what searches do from then on.
"""

import math
import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bedstone.errors import nearest

TOP = 10  # of the recall that is told
SAMPLE = 100  # queries that measure it
GOAL = 0.97  # of recall on the sample: what is promised (0.95) and room for chance
PROBES = (10, 20, 40, 80, 160, 320)
REFINE = (10, 30, 100)
GAIN = 0.005  # of recall, below which more of the same is no use
FEWEST = 20_000  # rows below which reading all takes a few milliseconds


@dataclass(frozen=True)
class Approximate:
    """How the approximate index was built, and what it finds.

    Attributes:
        partitions: all of them; `probes` of them are read.
        refine: how many times the rows asked for are compared by their true vectors.
        recall: the share of the true 10 nearest that was found, over a sample of queries.
        milliseconds: of a query in the median of that sample.
        rows: in the index when it was built.
        queries: of the sample.
        seconds: that building took.
    """

    partitions: int
    probes: int
    refine: int
    recall: float
    milliseconds: float
    rows: int
    queries: int
    seconds: float

    def summary(self) -> str:
        """One line for people."""
        return (
            f"approximate search finds {self.recall:.1%} of the true {TOP} nearest "
            f"({self.queries} queries, {self.rows:,} rows), in {self.milliseconds:.1f} ms a query"
        )


def exact_query(table: Any, vector: np.ndarray, count: int, names: list[str], where: str) -> Any:
    """A query that reads every vector."""
    return _query(table, vector, count, names, where).bypass_vector_index()


def approximate_query(
    table: Any, vector: np.ndarray, count: int, names: list[str], where: str, how: Approximate
) -> Any:
    """A query by partitions; where a condition leaves too few there, it reads on."""
    # of fewer than TOP, as many are compared again as the measured recall had
    query = _query(table, vector, max(count, TOP), names, where)
    most = how.partitions if where else how.probes
    query = query.minimum_nprobes(how.probes).maximum_nprobes(most)
    return query.refine_factor(how.refine) if how.refine else query


def _query(table: Any, vector: np.ndarray, count: int, names: list[str], where: str) -> Any:
    query = table.search(vector, vector_column_name="vector").distance_type("l2")
    query = query.limit(count).select([*names, "_distance"])
    return query.where(where, prefilter=True) if where else query


def build(
    table: Any,
    width: int,
    *,
    partitions: int = 0,
    goal: float = GOAL,
    sample: int = SAMPLE,
    seed: int = 0,
) -> Approximate:
    """Builds the approximate index of a table, and takes the fewest probes that reach the goal.

    Args:
        partitions: 0 takes the square root of the rows.
        goal: the recall to reach on the sample; where nothing does, the best is taken.
        sample: queries.
    """
    from lancedb.index import IvfFlat, IvfRq

    rows = table.count_rows()
    partitions = min(partitions or max(round(math.sqrt(rows)), 1), rows)
    codes = width % 8 == 0  # the others have no short codes in LanceDB
    start = time.perf_counter()
    config = (IvfRq if codes else IvfFlat)(
        distance_type="l2", num_partitions=partitions, sample_rate=64, max_iterations=10
    )
    table.create_index("vector", config=config, replace=True)
    seconds = round(time.perf_counter() - start, 1)
    for each in table.list_indices():
        table.prewarm_index(each.name)
    drawn = np.random.default_rng(seed).choice(rows, size=min(sample, rows), replace=False)
    taken = table.take_offsets(sorted(drawn.tolist())).select(["key", "vector"]).to_arrow()
    queries = [np.asarray(one, "f4") for one in taken.column("vector").to_pylist()]
    truth = _truth(table, np.stack(queries), taken.column("key").to_pylist())
    best: Approximate | None = None
    for refine in REFINE if codes else (0,):
        before = 0.0
        for probes in sorted({min(each, partitions) for each in PROBES}):
            how = Approximate(partitions, probes, refine, 0, 0, rows, len(queries), seconds)
            how = _measured(table, how, queries, truth)
            if best is None or how.recall > best.recall:
                best = how
            if how.recall >= goal:
                return how
            if how.recall < before + GAIN:
                break
            before = how.recall
    assert best is not None
    return best


def _truth(table: Any, queries: np.ndarray, own: list[str]) -> list[list[str]]:
    """Keys of the nearest of each query, all read in one pass.

    A query is a row itself, `own`; finding it again would flatter, so it is left out.
    """
    best: list[list[tuple[float, str]]] = [[] for _ in queries]
    for part in table.search().select(["key", "vector"]).to_batches():
        keys = part.column("key").to_pylist()
        vectors = part.column("vector").flatten().to_numpy().reshape(len(keys), -1)
        scores = queries @ vectors.T
        likely = np.argpartition(-scores, min(TOP, len(keys) - 1), axis=1)[:, : TOP + 1]
        for number, places in enumerate(likely):
            more = [(float(scores[number, at]), keys[at]) for at in places]
            more = [one for one in more if one[1] != own[number]]
            best[number] = sorted(best[number] + more, reverse=True)[:TOP]
    return [[key for _, key in one] for one in best]


def _measured(
    table: Any, how: Approximate, queries: list[np.ndarray], truth: list[list[str]]
) -> Approximate:
    times, found, wanted = [], 0, 0
    for query, exact in zip(queries, truth, strict=True):
        start = time.perf_counter()
        near = _keys(approximate_query(table, query, TOP + 1, ["key"], "", how))
        times.append(time.perf_counter() - start)
        found += len(set(near) & set(exact))
        wanted += len(exact)
    recall = found / wanted if wanted else 1.0
    return Approximate(
        **{
            **vars(how),
            "recall": round(recall, 4),
            "milliseconds": round(1000 * statistics.median(times), 2),
        }
    )


def _keys(query: Any) -> list[str]:
    return query.to_arrow().column("key").to_pylist()


def refusal(where: str, error: str, columns: Mapping[str, str]) -> str:
    """The error message for a condition that LanceDB refused with `error`."""
    if unknown := re.search(r"No field named [`\"]?([^`\"]+?)[`\"]?\.(\s|$)", error):
        name = unknown[1]
        return f"where {where!r}: there is no column {name!r}{nearest(name, ['key', *columns])}"
    have = ", ".join(f"{name} ({kind})" for name, kind in {"key": "text", **columns}.items())
    return (
        f"where {where!r}: can't be understood ({short(error)}). Expected one as SQL has it, "
        f"such as \"price < 20 and colour = 'red'\", on the columns {have}."
    )


def short(error: object) -> str:
    """The first line of a library's error, without where in its source it was raised."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r",? */\S+\.rs:\S*|Invalid (user )?input[,:] ", "", line)[:200].strip()
