"""What several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a failure is a change's, not chance's. Time is no property here.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder: `$BEDSTONE_SHARED`, else `../shared/data` beside the checkout."""
    named = os.environ.get("BEDSTONE_SHARED")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}; set BEDSTONE_SHARED")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """A cache of the module's own; the patch that sets it, for what else a module sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDSTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch
