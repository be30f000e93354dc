"""Records what a checkout's code gives, case by case.

    python tests/golden/record.py CHECKOUT OUT
    python tests/golden/record.py CHECKOUT OUT --mode open --from OLD    # reads what OLD wrote
    python tests/golden/record.py CHECKOUT OUT --mode resume --from OLD  # goes on with OLD's runs
    python tests/golden/record.py CHECKOUT OUT --expected                # and writes expected.json

OUT gets results.json, times.txt and the folders that the cases wrote.
"""

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
AT_ONCE = 2
QUICK = "quick"  # a lane of the quick cases of all others
INPUTS = "-"
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "100",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


def record(
    checkout: Path,
    out: Path,
    mode: str = "whole",
    old: Path | None = None,
    only: Sequence[str] = (),
    *,
    quick: bool = False,
) -> dict[str, Any]:
    """Runs the cases by the code of a checkout; returns and writes their outputs."""
    checkout, out = checkout.resolve(), out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    folders = out / "folders"
    if mode == "whole":
        folders.mkdir()
        _worker(checkout, folders, out, INPUTS, mode, only).wait()
    else:
        assert old is not None
        shutil.copytree(old / "folders", folders)
        for made in ("copies", "drawn"):  # is to be written again
            shutil.rmtree(folders / made, ignore_errors=True)
    waiting = [QUICK] if quick else _lanes(checkout)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            lane = waiting.pop(0)
            running[lane] = _worker(checkout, folders, out, lane, mode, only)
        time.sleep(0.2)
        for lane in [name for name, process in running.items() if process.poll() is not None]:
            if running.pop(lane).returncode:
                failed.append(lane)
    results: dict[str, Any] = {}
    for path in sorted(out.glob("lane-*.jsonl")):
        results |= dict(json.loads(line) for line in path.read_text().splitlines())
        path.unlink()
    (out / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True))
    if failed:
        print(f"lanes that broke off: {', '.join(failed)}; see {out}/lane-*.log", file=sys.stderr)
    return results


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, **SETTINGS, "PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{HERE}"}


def _lanes(checkout: Path) -> list[str]:
    words = "import json, cases; print(json.dumps(cases.LANES))"
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, env=_environment(checkout), check=True, stdout=subprocess.PIPE)
    return list(json.loads(done.stdout))


def _worker(
    checkout: Path, folders: Path, out: Path, lane: str, mode: str, only: Sequence[str]
) -> "subprocess.Popen[bytes]":
    words = [sys.executable, str(HERE / "record.py"), str(checkout), str(out), "--lane", lane]
    words += ["--mode", mode, *(["--only", *only] if only else [])]
    with (out / f"lane-{lane}.log").open("wb") as log:
        return subprocess.Popen(
            words, cwd=folders, env=_environment(checkout), stdout=log, stderr=log
        )


def _chosen(lane: str, mode: str, only: Sequence[str]) -> list[Any]:
    """The cases to run of a lane; before those asked for, the runs that they may need."""
    from cases import CASES
    from expected import quick

    kinds = {"whole": ("make", "train", "use"), "open": ("use",), "resume": ("train",)}[mode]
    if lane == QUICK:
        return [CASES[name] for name in quick(CASES)]
    cases = [case for case in CASES.values() if case.lane == lane and case.kind in kinds]
    if mode == "resume":
        cases = [case for case in cases if (Path("half") / case.folder).is_dir()]
    if not only:
        return cases
    asked = [any(fnmatch.fnmatch(case.name, each) for each in only) for case in cases]
    last = max((number for number, wanted in enumerate(asked) if wanted), default=-1)
    return [
        case
        for number, (case, wanted) in enumerate(zip(cases, asked, strict=True))
        if wanted or (mode == "whole" and case.kind != "use" and number < last)
    ]


def _run_lane(checkout: Path, out: Path, lane: str, mode: str, only: Sequence[str]) -> None:
    """In a process of its own: a lane's cases; `-` makes what all of them read."""
    import bedstone

    assert Path(str(bedstone.__file__)).is_relative_to(checkout), bedstone.__file__
    import kit
    from inputs import make_inputs

    kit.settle(mode)
    if lane == INPUTS:
        make_inputs()
        return
    with (out / f"lane-{lane}.jsonl").open("w") as file, (out / "times.txt").open("a") as times:

        def say(text: str) -> None:
            times.write(f"{text}\n")
            times.flush()

        for found in kit.run_cases(_chosen(lane, mode, only), say):
            file.write(json.dumps(found) + "\n")
            file.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of other packages are not waited for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mode", choices=("whole", "open", "resume"), default="whole")
    parser.add_argument("--from", dest="old", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--expected", action="store_true")
    parser.add_argument("--lane")
    given = parser.parse_args()
    if given.lane:
        _run_lane(given.checkout, given.out, given.lane, given.mode, given.only)
        return
    began = time.monotonic()
    results = record(
        given.checkout, given.out, given.mode, given.old, given.only, quick=given.quick
    )
    print(f"{len(results)} cases in {time.monotonic() - began:.0f} s: {given.out}/results.json")
    if given.expected:
        from expected import write_expected

        write_expected(results)


if __name__ == "__main__":
    main()
