"""The quick part of the golden runs: what doesn't depend on the processor stays as it was.

The whole of it, weights and figures to the last bit, is `compare.py`; see README.md. It is one
test, so that several workers of pytest don't each run the cases.
"""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def test_what_no_processor_changes_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    from compare import compare, shown
    from expected import independent
    from record import record

    old = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    results = record(HERE.parents[1], tmp_path / "now", quick=True)
    new = {name: independent(name, found) for name, found in results.items()}
    assert sorted(new) == sorted(old)
    found = compare(old, new, {})
    assert found.outputs > 3000
    assert [
        f"{case}: {name}: {shown(before)} became {shown(after)}"
        for case, name, before, after in found.differences
    ] == []
