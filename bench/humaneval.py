"""The sandbox on HumanEval: right programs pass, empty ones don't; time to start; hostile programs.

    python bench/humaneval.py [--rows FILE] [--workers 2] [--way landlock] [--attacks] [--write]

Every problem's canonical solution is run on its tests, and a body that is `pass`. The time to start
is that of an empty program, from the call to its outcome. With `--attacks` the hostile programs of
`bench/attacks.py` follow.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from attacks import LIMITS, campaign
from bedstone.data.open import open_dataset
from bedstone.evaluate.humaneval import Problem, read_problems
from bedstone.sandbox.run import Limits, Sandbox, score_all, working_way
from result import SHARED, Side, add_write, interval, summary, write

STARTS = 50  # times that the start is measured
EMPTY = "    pass\n"


def scored(
    problems: list[Problem], bodies: list[str], workers: int
) -> tuple[int, float, list[str]]:
    """How many pass, seconds, and what is said of those that don't."""
    began = time.perf_counter()
    cases = [(one.program(body), one.checks) for one, body in zip(problems, bodies, strict=True)]
    outcomes = list(score_all(cases, Limits(seconds=10), workers))
    seconds = time.perf_counter() - began
    failed = [
        f"{problem.task}: {each.verdict}: {each.reason}"
        for problem, each in zip(problems, outcomes, strict=True)
        if not each.passed
    ]
    return len(problems) - len(failed), seconds, failed


def starts(way: str) -> dict[str, Any]:
    """Seconds of the first program, with the start of the sandbox, and of each that follows."""
    with Sandbox(way=way) as sandbox:
        taken = []
        for _ in range(STARTS + 1):
            began = time.perf_counter()
            outcome = sandbox.run("")
            taken.append(time.perf_counter() - began)
            assert outcome.passed, outcome
        state = dict(sandbox.state)
    return {"first": taken[0], "next": summary(taken[1:]), "state": state}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=SHARED / "humaneval" / "test.jsonl")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--way", choices=("bubblewrap", "landlock"))
    parser.add_argument("--attacks", action="store_true")
    add_write(parser)
    args = parser.parse_args()
    way = args.way or working_way()
    problems = read_problems(open_dataset(args.rows, as_written=True))
    count = len(problems)
    quality: dict[str, Any] = {"way": way}
    seconds = []
    for name, bodies in (
        ("canonical", [each.solution for each in problems]),
        ("empty", [EMPTY] * count),
    ):
        right, took, failed = scored(problems, bodies, args.workers)
        seconds.append(took)
        low, high = interval(right, count)
        quality[name] = right
        print(
            f"{name}: {right} of {count} pass ({low:.3f} to {high:.3f}), {took:.1f} s", flush=True
        )
        for line in failed if name == "canonical" else ():
            print(f"  {line}")
    quality["start"] = found = starts(way)
    print(
        f"start, {way} {found['state']}: {1000 * found['next']['median']:.1f} ms (median of "
        f"{STARTS}, {1000 * found['next']['least']:.1f} to {1000 * found['next']['most']:.1f}); "
        f"the first {1000 * found['first']:.0f} ms"
    )
    if args.attacks:
        with Sandbox(LIMITS, way) as sandbox:
            number, wrong = campaign(sandbox)
        quality["attacks"] = [number, len(wrong)]
        print(f"{number} hostile programs, {len(wrong)} with an effect or a false pass")
    if args.write:
        side = Side(seconds, count, quality)
        write(
            args.write,
            "humaneval",
            "problems",
            {"bedstone": side},
            median=statistics.median(seconds),
        )


if __name__ == "__main__":
    main()
