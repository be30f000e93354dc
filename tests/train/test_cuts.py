"""Runs whose process dies at a write, a sync or a rename: they go on as if nothing had happened."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bedstone import ranks
from bedstone.checkpoints.store import CheckpointStore
from bedstone.recipes.base import go_on, read, train
from bedstone.train.run import RunResult
from faults import DEATH, MODES, needs_fork, steps
from method_recipes import RECIPES
from rank_worker import forked, stop_after
from runs import weights_hash

pytestmark = [needs_fork, pytest.mark.usefixtures("cache")]
LAST = 5  # steps of a run: one before it is stopped, saves at each of the others


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was stopped after step 1, and the hash of the weights that it ends with."""
    folder = tmp_path_factory.mktemp("begun")
    recipe = {
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "log": [],
        **RECIPES["causal_lm"](folder),
        "budget": f"{LAST} steps",
        "evaluate_every": 0,
        "save_every": 1,
        "keep": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDSTONE_CACHE", str(folder / "cache"))
        whole = train(read(_written(recipe, folder / "whole"), usual="causal_lm"), quiet=True)
        assert whole.done.step == LAST
        path, run = _written(recipe, folder / "run"), folder / "run"

        def one_step() -> None:
            stop_after(1)
            train(read(path, usual="causal_lm"), quiet=True)

        assert forked([one_step]) == [0]
    assert CheckpointStore(run / "checkpoints").latest().step == 1
    return run, (weights_hash(whole.run / "model"), whole.done.ledger)


def _written(recipe: dict[str, Any], out: Path) -> Path:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**recipe, "out": str(out)}))
    return path


class _Counted:
    """Work that dies at a step of its files, and writes down how many there were."""

    def __init__(self, run: Path, at: int, mode: str, note: Path | None) -> None:
        self.run, self.at, self.mode, self.note = run, at, mode, note

    def __call__(self) -> RunResult:
        with steps(self.at, self.mode, lambda: os._exit(DEATH), True) as log:
            found = go_on(self.run, quiet=True)
        if self.note is not None:
            self.note.write_text(str(len(log)))
        return found


def cut(begun: Any, folder: Path, count: int, rank: int, at: int, mode: str) -> bool:
    """Cuts a run of so many ranks there and goes on; False where it came to its end before."""
    source, whole = begun
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run)
    works = [_Counted(run, at if each == rank else 0, mode, None) for each in range(count)]
    codes = forked(works)
    if not any(codes):
        return False
    assert codes[rank] == DEATH, codes
    store = CheckpointStore(run / "checkpoints")
    latest = store.latest()
    assert latest is not None and latest.step in range(1, LAST + 1), (rank, at, mode)
    note = folder / "ledger"

    def finish() -> None:
        done = go_on(run, quiet=True).done
        if ranks.rank() == 0:
            note.write_text(done.ledger)

    assert forked([finish] * count) == [0] * count, (rank, at, mode)
    assert note.read_text() == whole[1], (rank, at, mode)
    left = [path.name for path in store.folder.iterdir()]
    assert left == [f"step-{LAST:08d}"], (rank, at, mode, left)
    return weights_hash(run / "model") == expected(begun, count)


_by_count: dict[int, str] = {}


def expected(begun: Any, count: int) -> str:
    """The hash of the weights of a run that so many ranks went on with and nothing cut."""
    source, whole = begun
    if count == 1:
        return whole[0]
    if count not in _by_count:
        run = source.with_name(f"uncut{count}")
        shutil.copytree(source, run)
        assert forked([lambda: go_on(run, quiet=True)] * count) == [0] * count
        _by_count[count] = weights_hash(run / "model")
    return _by_count[count]


def operations(begun: Any, folder: Path, count: int) -> list[int]:
    """How many operations on files each rank of a run does from its step 2 to its end."""
    run = folder / "counted"
    shutil.copytree(begun[0], run)
    notes = [folder / f"count{rank}" for rank in range(count)]
    forked([_Counted(run, 0, "after", note) for note in notes])
    return [int(note.read_text()) for note in notes]


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_dies_at_some_operation_goes_on(begun, tmp_path, count):
    for rank, total in enumerate(operations(begun, tmp_path, count)):
        assert total > (20 if rank else 200)
        share = 4 if count == 1 else 2
        for number in range(share):
            at = 1 + (2 * number + 1) * total // (2 * share)
            assert cut(begun, tmp_path, count, rank, at, MODES[(number + rank) % len(MODES)])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count, rank", [(1, 0), (2, 0), (2, 1)])
def test_a_run_that_dies_at_any_operation_goes_on(begun, tmp_path, count, rank, mode):
    total, cuts = operations(begun, tmp_path, count)[rank], 0
    for at in range(1, total + 1):
        cuts += cut(begun, tmp_path, count, rank, at, mode)
        print(f"{cuts} cuts, {mode} each of {total} operations of rank {rank} of {count}",
              file=sys.stderr)  # fmt: skip
    assert cuts == total
