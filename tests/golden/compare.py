"""Compares what two checkouts give, and whether the new one opens and resumes what the old wrote.

    python tests/golden/compare.py OLD_CHECKOUT NEW_CHECKOUT
    python tests/golden/compare.py OLD_CHECKOUT NEW_CHECKOUT --old-results DIR --only text/gpt ...

DIR is what `record.py OLD_CHECKOUT DIR` wrote. Three things are compared with the old results: a
whole recording by the new code; what the new code says of the folders that the old code wrote; and
what the new code makes of the old code's half-done runs. Exits with 1 where anything differs that
changed.json doesn't name: there, a pattern of `mode case: output` has a reason.
"""

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import record

HERE = Path(__file__).resolve().parent
KINDS = {"whole": "recorded anew", "open": "opened", "resume": "resumed"}
SHOWN = 300  # characters of a value


@dataclass
class Found:
    """What comparing came to.

    Attributes:
        cases, outputs: how many were compared.
        differences: (case, output, old, new), all of them.
        expected: those that changed.json names.
    """

    cases: int = 0
    outputs: int = 0
    differences: list[tuple[str, str, Any, Any]] = field(default_factory=list)
    expected: list[tuple[str, str, str]] = field(default_factory=list)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value inside, with the way to it."""
    if isinstance(value, Mapping) and value:
        for key in value:
            yield from leaves(value[key], f"{path}/{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from leaves(each, f"{path}/{number}")
    else:
        yield path, value


ABSENT = "<absent>"


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    known: Mapping[str, str],
    *,
    mode: str = "whole",
    part: bool = False,
) -> Found:
    """Compares outputs of cases.

    Args:
        known: patterns of differences on purpose, with reasons.
        part: whether only the cases of `new` count.
    """
    found = Found()
    for case in sorted(new if part else {*old, *new}):
        one, other = dict(leaves(old.get(case, {}))), dict(leaves(new.get(case, {})))
        found.cases += 1
        found.outputs += len(one)
        for name in dict.fromkeys([*one, *other]):
            before, after = one.get(name, ABSENT), other.get(name, ABSENT)
            if same(before, after):
                continue
            what = f"{mode} {case}: {name}"
            reason = next((known[p] for p in known if fnmatch.fnmatch(what, p)), None)
            if reason is not None:
                found.expected.append((case, name, reason))
            else:
                found.differences.append((case, name, before, after))
    return found


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def report(what: str, found: Found, most: int) -> None:
    """Prints differences and counts."""
    for case, name, before, after in found.differences[:most]:
        print(f"\n{case}: {name}\n  old: {shown(before)}\n  new: {shown(after)}")
    if len(found.differences) > most:
        print(f"\n... and {len(found.differences) - most} more")
    for reason in sorted({reason for _, _, reason in found.expected}):
        count = sum(reason == each[2] for each in found.expected)
        print(f"on purpose, {count} outputs: {reason}")
    told = f"{found.cases} cases, {found.outputs:,} outputs, "
    print(f"{what}: {told}{len(found.differences)} differences, {len(found.expected)} on purpose")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--old-results", type=Path)
    parser.add_argument("--out", type=Path, help="where new recordings are kept")
    parser.add_argument("--only", nargs="*", default=(), help="cases, or patterns of them")
    parser.add_argument("--skip", nargs="*", choices=list(KINDS), default=())
    parser.add_argument("--most", type=int, default=40, help="differences to print of each kind")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="golden-"))
    out.mkdir(parents=True, exist_ok=True)
    kept = given.old_results
    if kept is None:
        kept = out / "old"
        record(given.old, kept)
    old = json.loads((kept / "results.json").read_text())
    known = json.loads((HERE / "changed.json").read_text())
    wrong = 0
    counts = {"runs": 0, "tasks and commands": 0, "outputs": 0}
    for mode, told in KINDS.items():
        if mode in given.skip:
            continue
        new = record(given.new, out / mode, mode, kept, given.only)
        wanted = set(matching(old, given.only))
        if given.only:
            new = {name: value for name, value in new.items() if name in wanted}
        found = compare(old, new, known, mode=mode, part=mode != "whole" or bool(given.only))
        report(told, found, given.most)
        runs = sum("log" in old.get(case, {}) for case in new)
        counts["runs"] += runs
        counts["tasks and commands"] += len(new) - runs
        counts["outputs"] += found.outputs
        wrong += len(found.differences) + (not new and not given.only)
    print(f"\ncompared: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")
    print(f"recordings: {out}")
    print(f"{wrong} unexpected differences" if wrong else "nothing differs")
    sys.exit(1 if wrong else 0)


def matching(names: Mapping[str, Any], patterns: list[str]) -> list[str]:
    """Cases that the patterns name; all where there are none."""
    if not patterns:
        return list(names)
    return [name for name in names if any(fnmatch.fnmatch(name, each) for each in patterns)]


if __name__ == "__main__":
    main()
