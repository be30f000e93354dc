"""`bedstone run` on pictures: files, and folders of them; broken ones are left out and named."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bedstone.data.images import find_images
from bedstone.errors import BedstoneError
from bedstone.tasks.pipeline import task_class

TOLD = 5  # broken pictures that are named


def reads_pictures(task: str) -> bool:
    """Whether a task's inputs are pictures."""
    return task_class(task).reads == "pictures"


def picture_files(given: Sequence[str]) -> list[str]:
    """The pictures of each name: itself, or all below a folder.

    Raises:
        BedstoneError: a folder holds none.
    """
    found: list[str] = []
    for name in given:
        if not Path(name).is_dir():
            found.append(name)
            continue
        inside = find_images(name)
        if not inside:
            raise BedstoneError(
                f"{name}: holds no picture; expected files that end in .jpg, .png, .webp and such."
            )
        found += map(str, inside)
    return found


def picture_results(
    task: Any,
    inputs: Sequence[Any],
    options: dict[str, Any],
    broken: list[BedstoneError] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Each picture and its result; how many were broken is told at the end.

    Args:
        broken: what is wrong with each picture that can't be read is added to it.

    Raises:
        BedstoneError: none can be read.
    """
    if len(inputs) == 1:
        yield inputs[0], task(inputs[0], **options)
        return
    broken = [] if broken is None else broken
    faulty: dict[str, BedstoneError] = {}  # once, however often something is asked of it

    def left_out(number: int, error: BedstoneError) -> None:
        faulty.setdefault(_name(inputs[number], number), error)

    for number, result in task.each(inputs, left_out, **options):
        yield inputs[number], result
    broken += faulty.values()
    if not broken:
        return
    named = "\n".join(f"  {error}" for error in broken[:TOLD])
    more = f"\n  and {len(broken) - TOLD:,} more" if len(broken) > TOLD else ""
    every = len({_name(value, number) for number, value in enumerate(inputs)})
    told = f"{len(broken):,} of {every:,} pictures were left out:\n{named}{more}"
    if len(broken) == every:
        raise BedstoneError(told)
    print(told, file=sys.stderr)


def _name(value: Any, number: int) -> str:
    """What tells an input's picture from others."""
    picture = value.get("image") if isinstance(value, dict) else value
    return str(picture) if isinstance(picture, str | Path) else str(number)
