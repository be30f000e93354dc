"""Filling an index, killed at random moments 20 times: what was acknowledged is there, once.

This file is also the process that is killed.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
KILLS = 20
NEW = 150  # pictures of a round


def fill_and_tell(folder, path):
    """The process: says `ready`, each key when it is stored, and `done`."""
    import bedstone.tasks.search.index
    from bedstone.tasks.search.fill import fill, open_source
    from bedstone.tasks.search.index import Index
    from colours import WIDTH, Colours

    def tell(keys):
        os.write(1, "".join(f"{key}\n" for key in keys).encode())

    bedstone.tasks.search.index.COMMITS = 6  # so that kills fall into rewrites too
    os.write(1, b"ready\n")
    with Index.create(path, WIDTH, Colours.name) as held:
        fill(held, Colours(), open_source(folder), batch=5, stored=tell)
        held.approximate(sample=5)
    os.write(1, b"done\n")


def start(folder, path):
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )


def check(path, told, pictures):
    """Every key that was told is there once and found by its vector; a key is never there twice."""
    from bedstone.tasks.search.index import Index
    from colours import Colours

    held = Index.open(path)
    table = held._table.search().select(["key"]).to_arrow() if held._table else None
    counts = Counter(table.column("key").to_pylist() if table else [])
    assert set(counts.values()) <= {1}
    assert not told - set(counts), f"{len(told - set(counts))} acknowledged are gone"
    for key in sorted(told & pictures.keys())[:: max(len(told) // 10, 1)]:
        vector = Colours().images([pictures[key]])[0]
        same = [one.key for one in held.search(vector, 30) if one.score > 0.99999]
        assert same.count(key) == 1
    return len(counts)


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_double_nothing(tmp_path):
    from colours import paint

    draw = random.Random(7)
    folder, path = tmp_path / "pictures", tmp_path / "index"
    pictures, told, kills, cut = {}, set(), 0, 0
    for turn in range(4 * KILLS):
        for number in range(NEW if len(pictures) < 2000 else 0):
            key = f"{turn:02}-{number:03}.png"
            pictures[key] = paint(folder / key, [draw.randrange(256) for _ in "rgb"], seed=number)
        for key in draw.sample(sorted(pictures), 10):  # changed
            paint(pictures[key], [draw.randrange(256) for _ in "rgb"], seed=turn)
            told.discard(key)  # its new picture isn't promised yet, so it isn't looked for
        for key in draw.sample(sorted(pictures), 3):
            pictures.pop(key).unlink()
            told.discard(key)
        process = start(folder, path)
        assert process.stdout.readline() == b"ready\n"
        lines = list(itertools.islice(process.stdout, draw.randrange(NEW)))
        time.sleep(draw.choice((0, 0.01, 0.1, 0.5)) * draw.random())
        process.kill()
        lines += process.stdout.readlines()
        kills += process.wait() == -signal.SIGKILL  # it may have been done
        whole = {line.decode().strip() for line in lines if line.endswith(b"\n")} - {"done"}
        cut += 0 < len(whole) < NEW
        told |= whole
        if (path / "index.json").exists():
            check(path, told, pictures)
        if kills == KILLS:
            break
    assert kills == KILLS and cut >= 5  # many of them fell between two batches
    done = start(folder, path)
    assert b"done" in done.communicate()[0]
    assert check(path, set(pictures), pictures) == len(pictures)


if __name__ == "__main__":
    fill_and_tell(*sys.argv[1:])
