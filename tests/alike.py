"""Results of two libraries side by side."""

from typing import Any

import pytest


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
