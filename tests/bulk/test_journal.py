"""A file of results goes on where it was stopped, is written whole, and holds each row once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bedstone.bulk.journal import Journal, work_on
from bedstone.bulk.places import Aside, Job, Spread
from bedstone.bulk.results import results_of
from bedstone.errors import BedstoneError

JOB = Job("bulk_work:open_doubling")
TESTS = Path(__file__).parents[1]


def write(path, rows, spread=None, job=JOB, **more):
    return work_on(
        path,
        job,
        rows,
        spread or Spread(),
        work=more.pop("work", "w"),
        as_line=lambda row, result: f'{{"result": {result}}}',
        block=4,
        **more,
    )


def lines(rows):
    return "".join(f'{{"result": {2 * row}}}\n' for row in rows)


def test_lines_are_those_of_all_rows(tmp_path):
    done = write(tmp_path / "out", list(range(10)))
    assert (tmp_path / "out").read_text() == lines(range(10))
    assert (done.rows, done.code, done.summary()) == (10, 0, f"{tmp_path}/out: 10 rows")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rows_that_raise_stand_in_a_file_of_their_own(tmp_path):
    done = write(tmp_path / "out.jsonl", [0, "raise", 2, 3, 4])
    assert (tmp_path / "out.jsonl").read_text() == lines([0, 2, 3, 4])
    assert done.code == 3 and "1 set aside" in done.summary()
    held = [json.loads(line) for line in (tmp_path / "out.aside.jsonl").read_text().splitlines()]
    assert held == [{"row": 1, "reason": "ValueError: no number"}]
    write(tmp_path / "out.jsonl", [0, 1], overwrite=True)
    assert not (tmp_path / "out.aside.jsonl").exists()


def test_nothing_is_written_where_every_row_has_a_fault(tmp_path):
    with pytest.raises(BedstoneError, match="each of the first 2 rows had a fault: ValueError"):
        write(tmp_path / "out", ["raise", "raise"])
    assert not (tmp_path / "out").exists()


def test_what_is_done_is_not_done_again(tmp_path):
    journal = Journal(tmp_path / "out", {"of": "w", "inputs": 12, "block": 4, "shard": "1/1"})
    journal.keep_choices({"q": {"a": 1.0}})
    journal.add(2, ['"kept"'] * 4)
    journal.add(0, ['"kept"'] * 3 + [Aside("broken")])
    journal.close()
    with (tmp_path / "out.part" / "blocks.jsonl").open("ab") as file:
        file.write(b'0123456789abcdef {"block": 1, "rows": ["cut')
    done = write(tmp_path / "out", list(range(12)))
    assert done.aside == {3: "broken"}
    found = [json.loads(line)["result"] for line in (tmp_path / "out").read_text().splitlines()]
    assert found == ["kept"] * 3 + [8, 10, 12, 14] + ["kept"] * 4


@pytest.mark.parametrize("cut", [1, 5, 20, 40])
def test_a_block_that_is_cut_or_changed_is_done_again(tmp_path, cut):
    work = {"of": "w", "inputs": 8, "block": 4, "shard": "1/1"}
    journal = Journal(tmp_path / "out", work)
    for block in (0, 1):
        journal.add(block, ['"kept"'] * 4)
    journal.close()
    path = tmp_path / "out.part" / "blocks.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    write(tmp_path / "out", list(range(8)))
    found = [json.loads(line)["result"] for line in (tmp_path / "out").read_text().splitlines()]
    assert found == ["kept"] * 4 + [8, 10, 12, 14]


def test_a_journal_of_other_work_is_refused_or_thrown_away(tmp_path):
    work = {"of": "other", "inputs": 4, "block": 4, "shard": "1/1"}
    journal = Journal(tmp_path / "out", work)
    journal.add(0, ['"kept"'] * 4)
    with pytest.raises(BedstoneError, match="another process works on it"):
        write(tmp_path / "out", list(range(4)), work="other")
    journal.close()
    with pytest.raises(BedstoneError, match="is of other rows, another model or other options"):
        write(tmp_path / "out", list(range(4)))
    write(tmp_path / "out", list(range(4)), overwrite=True)
    assert (tmp_path / "out").read_text() == lines(range(4))
    with pytest.raises(BedstoneError, match="is there already"):
        write(tmp_path / "out", list(range(4)))


CUT = """
import sys
from bulk.test_journal import write
from bedstone.bulk.places import Job
write(sys.argv[1], [*range(9), "once", *range(10, 40)], job=Job("bulk_work:open_doubling",
      {"folder": sys.argv[2]}))
"""


def test_a_process_that_ended_goes_on(tmp_path):
    words = [sys.executable, "-c", CUT, str(tmp_path / "out"), str(tmp_path)]
    paths = os.pathsep.join([str(TESTS), *sys.path])
    env = {**os.environ, "PYTHONPATH": paths}
    assert subprocess.run(words, env=env).returncode == 1
    assert (tmp_path / "out.part").is_dir() and not (tmp_path / "out").exists()
    assert subprocess.run(words, env=env).returncode == 0
    found = [json.loads(line)["result"] for line in (tmp_path / "out").read_text().splitlines()]
    assert found == [*range(0, 18, 2), "once", *range(20, 80, 2)]
    assert len(list(tmp_path.glob("opened-*"))) == 2


def results(path, rows, spread=None, **more):
    return results_of(JOB, rows, spread or Spread(), work=more.pop("work", "w"), path=path, **more)


def test_results_are_kept_and_read_again(tmp_path):
    rows = list(range(200))
    wanted = [str(2 * row) for row in rows]
    assert results(None, rows) == wanted
    assert results(tmp_path / "all", rows) == wanted
    before = (tmp_path / "all").read_bytes()
    assert results(tmp_path / "all", rows) == wanted and (tmp_path / "all").read_bytes() == before
    with pytest.raises(BedstoneError, match="results of other rows, another model"):
        results(tmp_path / "all", rows, work="other")
    assert results(tmp_path / "one", rows, Spread(shard="1/2")) is None
    with pytest.raises(BedstoneError, match="is share 1/2 of the results"):
        results(tmp_path / "one", rows)
    with pytest.raises(BedstoneError, match="row 1 has no result: ValueError: no number"):
        results(None, [0, "raise", 2])
    with pytest.raises(BedstoneError, match="row 1 has no result: ValueError: no number"):
        results(tmp_path / "faulty", [0, "raise", 2])
    with pytest.raises(BedstoneError, match="row 1 has no result, so nothing can be made of all"):
        results(tmp_path / "faulty", [0, "raise", 2])
