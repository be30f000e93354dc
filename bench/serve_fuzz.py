"""Requests of schemathesis, good and bad, on every operation that a server's OpenAPI describes.

    python bench/serve_fuzz.py [--examples 300] [--phases examples,coverage,fuzzing]
        [--operation PATH] [--seconds 600] [--seed 1] [--strict]

A server of small models of random weights (a decoder, a CLIP with an index, what draws) answers on
the loopback interface. Examples are made from `/openapi.json`: such as fit it and such as don't,
and its coverage phase. What counts as a fault: status 5xx, a status, content type or body that the
document doesn't describe, and, where `--strict` is given, an example that doesn't fit and is taken.
Half of the texts that stand for an image are made into one. Needs the extra `bench`.
"""

import argparse
import base64
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

HOOKS = "SCHEMATHESIS_HOOKS"  # the environment variable by which schemathesis loads this file
POLICY = {"categories": {"violence": {"sentences": ["a star"], "threshold": 0.5}}}


def server(folder: Path) -> Any:
    """A running server of small models."""
    from bedstone.tasks.images.engine import ImageEngine
    from bedstone.tasks.moderation.policy import read_policy
    from bedstone.tasks.search.index import Index, Row
    from drawings import drawing
    from image_models import clip_model, pictures
    from served import Running, saved_decoder

    clip = clip_model()
    clip.save(folder / "clip")
    drawing("text").save(folder / "draws")
    engine = ImageEngine(clip)
    with Index.create(folder / "shapes", engine.width, engine.name, model="clip") as index:
        vectors = engine.images([np.asarray(each) for each in pictures(6, seed=4)])
        index.add([Row(f"{n}.png", v, {"price": n}) for n, v in enumerate(vectors)])
    sources = {name: str(folder / name) for name in ("clip", "draws")}
    sources["small"] = str(saved_decoder(folder / "small", 128))
    # few may wait, so that no example asks for a hundred continuations
    limits = {"policy": read_policy(POLICY), "max_queue": 8}
    return Running(sources, indexes=(str(folder / "shapes"),), **limits)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--operation", default="")
    parser.add_argument("--phases", default="examples,coverage,fuzzing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        running = server(Path(folder))
        try:
            faults = fuzz(running.url, chosen)
            print("the server lives:", running.ask("/health")[0] == 200, flush=True)
            print("all work ended:", running.idle(60), flush=True)
        finally:
            running.stop()
    sys.exit(bool(faults))


class Counting(logging.Handler):
    """Counts answers by method, path and status, as the server's own log has them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        line = re.match(r"req-\w+ (\S+) '(\S*?)' (\d+) ", record.getMessage())
        if line:
            path = re.sub(r"(/v1/(?:tasks|models)/).+", r"\1...", line[2])
            self.counts[f"{line[1]} {path}", line[3]] += 1


def fuzz(url: str, chosen: argparse.Namespace) -> int:
    """Sends examples to each operation; the number of answers with a status of 5xx, or 1 where
    something else is wrong."""
    counting = Counting()
    log = logging.getLogger("bedstone.serve")
    log.addHandler(counting)
    log.setLevel(logging.INFO)
    checks = ["not_a_server_error", "status_code_conformance", "content_type_conformance"]
    checks += ["response_schema_conformance", "response_headers_conformance"]
    checks += ["negative_data_rejection"] if chosen.strict else []
    words = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json",
        "--checks", ",".join(checks), "--mode", "all", "--phases", chosen.phases,
        "--max-examples", str(chosen.examples), "--seed", str(chosen.seed),
        "--continue-on-failure", "--request-timeout", "60", "--generation-database", "none",
        "--suppress-health-check", "all", "--no-color",
    ]  # fmt: skip
    words += ["--include-path", chosen.operation] if chosen.operation else []
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'bench'}:{ROOT / 'src'}"}
    environment[HOOKS] = Path(__file__).stem
    # in the background a shell lets SIGINT be ignored, and so would what is started here
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (
        tempfile.TemporaryDirectory() as folder,  # where schemathesis keeps what it found
        subprocess.Popen(words, env=environment, cwd=folder) as process,
    ):
        try:
            process.wait(chosen.seconds)
        except subprocess.TimeoutExpired:
            print(f"stopped after {chosen.seconds:g} s; figures are of what was sent till then")
            process.send_signal(signal.SIGINT)  # it says then what it has found
    wrong = process.returncode != 0
    operations = sorted({name for name, _ in counting.counts})
    for name in operations:
        found = {s: n for (each, s), n in sorted(counting.counts.items()) if each == name}
        print(f"{name:36} {sum(found.values()):6}  {found}")
    bad = sum(count for (_, status), count in counting.counts.items() if status.startswith("5"))
    print(f"{sum(counting.counts.values()):,} requests, {bad:,} with a status of 5xx")
    return bad or int(wrong)


if HOOKS in os.environ:
    import schemathesis

    from bedstone.serve.openapi import PIXEL

    @schemathesis.hook
    def map_body(context: Any, body: Any) -> Any:
        """Puts a picture where a text or bytes stand for one, in every second body."""
        for name in ("image", "mask") if isinstance(body, dict) and len(str(body)) % 2 else ():
            given = body.get(name)
            if isinstance(given, str):
                body[name] = PIXEL
            elif isinstance(given, bytes):  # a file of a form
                body[name] = base64.b64decode(PIXEL.partition(",")[2])
        return body


if __name__ == "__main__":
    main()
