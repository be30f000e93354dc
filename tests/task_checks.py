"""Checks that every task passes, and results compared with those of another library."""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError


def check_task(
    name: str,
    model: Model,
    inputs: Sequence[Any],
    bad: Any,
    said: str,
    within: float = 2e-4,
    **options: Any,
) -> Any:
    """What holds for a task whatever it does, checked on a small model.

    One input gives what it gives in a list; a list keeps its order; a generator gives a generator
    that is read as results are taken; the batch size changes nothing; precision is taken; an
    unknown option is named with the nearest; a bad input is named with its row; outputs that aren't
    finite are an error.

    Args:
        inputs: three or more that differ, or are all the same object.
        bad: an input that can't be read.
        said: what its error says.
        within: how far numbers may differ that are summed in another order.
        options: of the task.

    Returns: the task.
    """
    task = bedstone.pipeline(name, model, **options)
    assert task.name == name
    given = list(inputs)
    expected = task(given)
    assert len(expected) == len(given) >= 3
    check_same_inputs(task, given, expected, within)
    check_generator(task, given, expected, within)
    check_options(name, model, given, options)
    check_faults(task, given, bad, said)
    check_not_finite(name, model, given, options)
    declared = getattr(task, "fields", ())
    assert all(isinstance(field, str) for field in declared)
    assert not declared or getattr(task, "metric", None)
    return task


def check_same_inputs(task: Any, given: list[Any], expected: list[Any], within: float) -> None:
    """The same results of one input, of lists in any order, and in batches of any size."""
    if any(each is not given[0] for each in given):
        assert not all(near(each, expected[0], within) for each in expected[1:])
    assert near(task(given[0]), expected[0], within)
    for size in (1, 2, 100):
        assert near(task(given, batch_size=size), expected, within), f"batch_size={size}"
    assert near(task(given[::-1], batch_size=2), expected[::-1], within)
    assert near(task(tuple(given)), expected, within)
    assert task([]) == []


def check_generator(task: Any, given: list[Any], expected: list[Any], within: float) -> None:
    """A generator is read as results are taken: one input a result, or a batch where it is said."""
    for ahead in (None, 2):
        taken: list[Any] = []

        def read(taken: list[Any] = taken) -> Any:
            for value in given:
                taken.append(value)
                yield value

        results = task(read()) if ahead is None else task(read(), batch_size=ahead)
        assert not taken
        found = [next(results)]
        assert len(taken) < len(given) or ahead
        found += results
        assert near(found, expected, within)


def check_options(name: str, model: Model, given: list[Any], options: Mapping[str, Any]) -> None:
    """Unknown options and precisions are named, with the nearest; known ones are taken."""
    with pytest.raises(BedstoneError, match=rf"{name}: option 'batch_siz' .*'batch_size'"):
        bedstone.pipeline(name, model, **{**options, "batch_siz": 2})
    with pytest.raises(BedstoneError, match="batch_size: 0"):
        bedstone.pipeline(name, model, **{**options, "batch_size": 0})
    with pytest.raises(BedstoneError, match="'fp61' is unknown"):
        bedstone.pipeline(name, model, **{**options, "precision": "fp61"})(given)
    for precision in ("bf16", "int8", "int4"):
        task = bedstone.pipeline(name, model, **{**options, "precision": precision})
        assert len(task(given)) == len(given)


def check_faults(task: Any, given: list[Any], bad: Any, said: str) -> None:
    """A bad input is named with its row, in a list and from a generator."""
    where = rf"(?s){re.escape(task.name)}: inputs\[2\]: .*{said}"
    with pytest.raises(BedstoneError, match=where):
        task([*given[:2], bad, *given[2:]])
    with pytest.raises(BedstoneError, match=where):
        list(task(iter([*given[:2], bad])))


def check_not_finite(name: str, model: Model, given: list[Any], options: Mapping[str, Any]) -> None:
    """A network that computes nan or infinity gives an error, not a result."""
    for value in (math.nan, math.inf):
        hurt = copy.deepcopy(model)
        with torch.no_grad():
            for weight in hurt.network.parameters():
                weight.fill_(value)
        with pytest.raises(BedstoneError, match=r"(aren't|not|isn't) finite"):
            found = bedstone.pipeline(name, hurt, **options)(given)
            raise AssertionError(str(found)[:300])


def near(one: Any, other: Any, within: float = 2e-4) -> bool:
    """Whether results are equal, numbers nearly so."""
    first, second = leaves(one), leaves(other)
    return len(first) == len(second) and all(
        abs(a - b) < within if isinstance(a, float) and isinstance(b, float) else a == b
        for a, b in zip(first, second, strict=True)
    )


def leaves(result: Any) -> list[Any]:
    """All that is in a result, flat; floats rounded no finer than sums in another order are."""
    if isinstance(result, Mapping):
        return [leaf for key in result for leaf in [key, *leaves(result[key])]]
    if isinstance(result, list | tuple):
        return [leaf for each in result for leaf in leaves(each)]
    if hasattr(result, "getbands"):  # Pillow's
        return leaves(np.asarray(result).astype(float) / 255)
    if isinstance(result, np.ndarray):
        return [float(value) for value in result.ravel()]
    return [float(result) if isinstance(result, np.floating) else result]


def same(ours: Any, theirs: Any, near: float = 1e-5) -> None:
    """Equal in shape, names and text; numbers nearly so. Theirs may be numbers of numpy."""
    theirs = theirs.item() if hasattr(theirs, "dtype") else theirs
    assert type(ours) is type(theirs), (ours, theirs)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other, near)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            same(ours[key], theirs[key], near)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=near)
    else:
        assert ours == theirs
