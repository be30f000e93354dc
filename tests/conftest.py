"""What several tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder: `$BEDSTONE_SHARED`, else `../shared/data` beside the checkout."""
    named = os.environ.get("BEDSTONE_SHARED")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data in {folder}; set BEDSTONE_SHARED")
    return folder
