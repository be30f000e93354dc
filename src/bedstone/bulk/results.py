"""Results that something more is made of, such as figures or a sheet of images.

They are kept in memory, or in a file that bears the number of each row: it is written once, in one
go, in several, or as the joined files of all shares, and read where it is there.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bedstone.bulk.journal import work_on
from bedstone.bulk.on_ray import place_of
from bedstone.bulk.places import Aside, Job, Spread, in_order
from bedstone.bulk.shares import BLOCK, WHOLE, read_share
from bedstone.errors import BedstoneError

OPTION = "--results"
Progress = Callable[[float], object] | None  # given the share that is done, 0 to 1
_KEY = '{"result": '


def results_of(
    job: Job,
    rows: Sequence[Any],
    spread: Spread,
    *,
    work: str,
    path: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> list[str] | None:
    """The result of each row, as JSON; None of a share, whose file is written.

    Args:
        job: opens the work; its results are JSON.
        work: the fingerprint of the work.
        path: the file of the results.
        overwrite: whether a file that is there is written anew.

    Raises:
        BedstoneError: a row has no result, the file is of other work or isn't whole, or the place
            can't be.
    """
    if path is None:
        return _in_memory(job, rows, spread, progress)
    path = Path(path)
    if spread.shard is not None or overwrite or not path.exists():
        done = work_on(
            path,
            job,
            rows,
            spread,
            work=work,
            as_line=lambda row, result: f"{_KEY}{result}}}",
            option=OPTION,
            kind="results",
            overwrite=overwrite,
            progress=progress or (lambda share: None),
        )
        print(done.summary(), file=sys.stderr)
        if done.aside:
            row, reason = next(iter(sorted(done.aside.items())))
            raise BedstoneError(f"{path}: row {row} has no result: {reason}")
        if spread.shard is not None:
            return None
    return _read(path, work, len(rows))


def _in_memory(job: Job, rows: Sequence[Any], spread: Spread, progress: Progress) -> list[str]:
    parts = (list(rows[at : at + BLOCK]) for at in range(0, len(rows), BLOCK))
    found: list[str] = []
    with place_of(spread) as place:
        for results in in_order(place.run(job, enumerate(parts))):
            for each in results:
                if isinstance(each, Aside):
                    raise BedstoneError(f"row {len(found)} has no result: {each.reason}")
                found.append(each)
            if progress is not None:
                progress(len(found) / len(rows))
    return found


def _read(path: Path, work: str, count: int) -> list[str]:
    """The results in a file, which has to be of this work."""
    held = read_share(path)
    if held.shard != WHOLE:
        raise BedstoneError(
            f"{path}: is share {held.shard.text()} of the results. Join all of them by `bedstone "
            "join`, and give what it writes."
        )
    if held.kind != "results" or (held.of, held.inputs) != (work, count):
        raise BedstoneError(
            f"{path}: holds the results of other rows, another model, task or options. Name "
            "another file, or replace it by --overwrite."
        )
    if len(held.lines) != count:
        missing = next(row for row in range(count) if row not in held.lines)
        raise BedstoneError(
            f"{path}: row {missing} has no result, so nothing can be made of all. Mend that row, "
            "and give --overwrite."
        )
    return [held.lines[row].removeprefix(_KEY).removesuffix("}\n") for row in range(count)]
