"""The quick part of the golden runs: what doesn't depend on the processor stays as it was.

The whole of it, weights and figures to the last bit, is `compare.py`; see README.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outputs of the quick cases by this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        import expected
        import record

        out = tmp_path_factory.mktemp("golden") / "now"
        results = record.record(HERE.parents[1], out, quick=True)
        told = {name: expected.independent(name, results[name]) for name in results}
        for name in ("record", "expected"):
            sys.modules.pop(name, None)
    return told


EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))


def test_every_quick_case_ran(found: dict[str, Any]) -> None:
    assert sorted(found) == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_no_processor_changes_is_as_it_was(name: str, found: dict[str, Any]) -> None:
    assert found[name] == EXPECTED[name]
