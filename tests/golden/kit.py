"""What cases are made of: steps that run the public surface and give named, comparable outputs.

Everything runs in the folder of the recording, and names its files by paths relative to it, so
that what is written is the same wherever the recording lies.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open

WHOLE, OPEN, RESUME = "whole", "open", "resume"  # what a recording does
# The shape of the state of torch's global generator, in the state of training. It isn't compared: a
# resumed run of an autoencoder of codes draws another number of times from it, to no effect.
GENERATOR = (5056,)
# Keys of JSON that say how long something took, where it lies, or by what it was made.
VOLATILE = re.compile(
    r"^(seconds|waited|date|created|created_at|time|times|took|elapsed|versions?|python|torch|host"
    r"|platform|machine|made|written|when|pace|.*_per_second|.*_seconds|bedstone|size_on_disk)$"
)
TIMES = [
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d)?(?:\.\d+)?Z?"), "<date>"),
    (re.compile(r"\b\d+(?:[.,]\d+)*\s?(?:ms|s|seconds?|minutes?|min|h|us)\b"), "<time>"),
    (re.compile(r"\b\d+:\d\d(?::\d\d)?\b"), "<time>"),
    (re.compile(r"[\d,.]+(?=(?: [a-z]+)? (?:a|per) second)"), "<pace>"),
    (re.compile(r"[\d,.]+(?=\s?/s\b)"), "<pace>"),
    (re.compile(r"\d+(?:\.\d+)?(?= [GM]B are free)"), "<free>"),
    (re.compile(r"/tmp/[\w./-]+"), "<temporary>"),
]


@dataclass(frozen=True)
class Case:
    """One thing to run.

    Attributes:
        name: of the case: its lane, and a name in it.
        lane: cases of a lane run one after the other in one process.
        run: gives named outputs.
        kind: make (writes models that no run made), train (a run), or use (reads models).
    """

    name: str
    lane: str
    run: Callable[[], dict[str, Any]]
    kind: str = "use"

    @property
    def folder(self) -> str:
        """The name of its run, without the lane."""
        return self.name.partition("/")[2]


CASES: dict[str, Case] = {}
MODE = WHOLE


def add(name: str, lane: str, run: Callable[[], dict[str, Any]], kind: str = "use") -> None:
    """Puts a case into the list, after those it needs."""
    whole = f"{lane}/{name}"
    assert whole not in CASES, whole
    CASES[whole] = Case(whole, lane, run, kind)


def train(lane: str, name: str, recipe: dict[str, Any], command: str = "pretrain") -> None:
    """A run `runs/NAME` by a recipe; where it saves half way, it can be resumed from there."""
    add(name, lane, lambda: run_training(name, recipe, command), "train")


def line(
    lane: str, name: str, *words: Any, stdin: str = "", files: Sequence[str] = (), kind: str = "use"
) -> None:
    """A command line, and the files that it writes, to be read too."""
    add(name, lane, lambda: command(*words, stdin=stdin, files=files), kind)


def call(lane: str, name: str, run: Callable[[], Any]) -> None:
    """A call of the Python surface; what it gives, as JSON."""
    add(name, lane, lambda: {"result": plain(run())})


def make(lane: str, name: str, run: Callable[[], Any]) -> None:
    """Writes a model `made/NAME` by the packages that publish such."""
    add(name, lane, lambda: {"result": plain(run())}, "make")


# Runs.


def run_training(name: str, recipe: dict[str, Any], kind: str) -> dict[str, Any]:
    run = Path("runs") / name
    half = Path("half") / name
    if MODE == RESUME:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(half, run)
        found = command("resume", run)
    else:
        path = Path("recipes") / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"out": str(run), **recipe}))
        found = command(kind, path)
    found = {} if found["code"] == 0 else {"failed": found}
    return {**found, **run_outputs(run)} if (run / "recipe.yaml").is_file() else found


def keep_half(name: str) -> None:
    """Lays beside a run what it was half way: the last checkpoints and what came of them gone."""
    run, half = Path("runs") / name, Path("half") / name
    steps = sorted((run / "checkpoints").glob("step-*"))
    whole = [step for step in steps if step.is_dir()]
    if len(whole) < 2:
        return
    middle = whole[(len(whole) - 1) // 2]
    shutil.copytree(run, half)
    for late in (half / "checkpoints").iterdir():
        digits = "".join(filter(str.isdigit, late.name))
        if digits and int(digits) > int("".join(filter(str.isdigit, middle.name))):
            shutil.rmtree(late) if late.is_dir() else late.unlink()
    for later in ("model", "adapter", "tensorboard"):
        shutil.rmtree(half / later, ignore_errors=True)
    for pattern in ("*.png", "evaluation*.json"):
        for late in half.glob(pattern):
            late.unlink()


def run_outputs(run: Path) -> dict[str, Any]:
    """All that a run's folder says, but when."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "log": plain(log),
        "recipe": yaml.safe_load((run / "recipe.yaml").read_text()),
        "files": file_list(run),
    }
    for path in sorted(run.glob("*.json")):
        found[path.name] = plain(json.loads(path.read_text()))
    for path in sorted(run.glob("*.png")):
        if path.name != "curve.png":  # its axis may be in seconds
            found[path.name] = pixels_of(path)
    for name in ("model", "adapter", "tokenizer"):
        if (run / name).is_dir():
            found[name] = folder_of(run / name)
    for state in sorted((run / "checkpoints").glob("step-*/state"))[-1:]:
        text = re.sub(r'\["seconds",[^\]]*\]', "", (state / "state.json").read_text())
        found["state"] = {"tensors": tensors_of(state / "state.safetensors")}
        found["state"]["rest"] = digest(text.encode())
    return found


def file_list(folder: Path) -> list[str]:
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return [re.sub(r"events\.out\.tfevents.*", "events", name) for name in names]


def folder_of(folder: Path) -> dict[str, Any]:
    """What a folder of a model holds: each file's content in a form that can be compared."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or "tensorboard" in path.parts:
            continue
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = tensors_of(path)
        elif path.name == "bedstone.json":
            found[name] = record_of(path)
        elif path.suffix == ".json" and path.stat().st_size < 20_000:
            found[name] = plain(json.loads(path.read_text()))
        elif path.suffix in (".md", ".yaml", ".txt", ".html"):
            found[name] = stripped(path.read_text())
        elif path.suffix == ".png":
            found[name] = pixels_of(path)
        else:
            found[name] = digest(path.read_bytes())
    return found


def record_of(path: Path) -> Any:
    """A model's record; hashes and sizes of files that hold times are left out."""
    record = plain(json.loads(path.read_text()))
    if isinstance(record, dict) and isinstance(record.get("files"), dict):
        record["files"] = sorted(record["files"])
    return record


def tensors_of(path: Path) -> dict[str, Any]:
    """A hash of all tensors of a file: names, kinds, shapes and bytes; and how many there are."""
    found = hashlib.sha256()
    with safe_open(path, "pt") as file:
        names = sorted(file.keys())
        for name in names:
            tensor = file.get_tensor(name)
            if tensor.dtype == torch.uint8 and tuple(tensor.shape) == GENERATOR:
                continue
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        notes = file.metadata() or {}
    names_hash = digest("\n".join(names).encode())
    return {"tensors": len(names), "names": names_hash, "hash": found.hexdigest(), "notes": notes}


def pixels_of(path: Path) -> dict[str, Any]:
    """A picture's frames, decoded, and its notes."""
    found = hashlib.sha256()
    with Image.open(path) as picture:
        frames = getattr(picture, "n_frames", 1)
        notes = {key: stripped(value) for key, value in picture.info.items() if str(value) == value}
        for number in range(frames):
            picture.seek(number)
            found.update(np.asarray(picture.convert("RGBA")).tobytes())
        size = picture.size
    return {"size": list(size), "frames": frames, "notes": notes, "pixels": found.hexdigest()}


# Commands.


def command(*words: Any, stdin: str = "", files: Sequence[str] = ()) -> dict[str, Any]:
    """`bedstone WORDS` in this process: its exit code, what it printed, the files it wrote."""
    from bedstone.cli import main

    for name in files:  # what an earlier recording left
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    out, err = io.StringIO(), io.StringIO()
    before = sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = main([str(word) for word in words])
            except SystemExit as left:
                code = left.code
            except Exception:  # a fault is an output too
                traceback.print_exc()
                code = "fault"
    finally:
        sys.stdin = before
    found: dict[str, Any] = {"code": code or 0, "out": printed(out.getvalue(), words)}
    if code:
        said = err.getvalue()
        place = said.find("bedstone: ")
        found["said"] = stripped(said[place:] if place >= 0 else said)
    for name in files:
        path = Path(name)
        found[name] = file_of(path) if path.exists() else None
    return found


def printed(text: str, words: Sequence[Any]) -> Any:
    """What was printed: JSON lines as JSON, all else as text without times."""
    if "--json" in words:
        try:
            return [plain(json.loads(each)) for each in text.splitlines() if each.strip()]
        except ValueError:
            pass
    return stripped(text)


def file_of(path: Path) -> Any:
    if path.is_dir():
        return folder_of(path)
    if path.suffix == ".png":
        return pixels_of(path)
    if path.suffix in (".html", ".md", ".yaml", ".txt", ".jsonl"):
        text = stripped(path.read_text())
        return text if len(text) < 3000 else {"length": len(text), "hash": digest(text.encode())}
    return digest(path.read_bytes())


# Values.


def plain(value: Any) -> Any:
    """A value as JSON has it, without what changes from run to run."""
    if isinstance(value, dict):
        return {
            str(key): plain(each) for key, each in value.items() if not VOLATILE.match(str(key))
        }
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str):
        return stripped(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, torch.Tensor):
        return plain(value.detach().cpu().float().numpy())
    if isinstance(value, np.ndarray):
        shown = [float(each) for each in value.flatten()[:4]]
        whole = np.ascontiguousarray(value)
        kind = {"shape": list(value.shape), "kind": str(value.dtype)}
        return {**kind, "first": shown, "hash": digest(whole.tobytes())}
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Image.Image):
        return {"picture": digest(np.asarray(value.convert("RGBA")).tobytes()), "size": value.size}
    if isinstance(value, Path):
        return stripped(str(value))
    if hasattr(value, "__dict__"):
        return plain(vars(value))
    return stripped(str(value))


def stripped(text: str) -> str:
    """Text without times, paces and places."""
    text = text.replace(str(Path.cwd()), "<here>").replace(str(Path(sys.prefix)), "<python>")
    for pattern, shown in TIMES:
        text = pattern.sub(shown, text)
    return re.sub(r" +(?=[\n│|])", "", re.sub(r"[─━]{3,}", "───", text)) if "─" in text else text


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def seeded() -> None:
    """The same chance for each case, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def run_cases(cases: Sequence[Case], say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Runs cases in their order; a fault is told as the case's output."""
    import time

    for case in cases:
        began = time.monotonic()
        seeded()
        try:
            found = case.run()
            if case.kind == "train" and MODE == WHOLE:
                keep_half(case.folder)
        except Exception:
            found = {"fault": stripped(traceback.format_exc()[-2000:])}
        say(f"{time.monotonic() - began:6.1f} s  {case.name}")
        yield case.name, json.loads(json.dumps(found))


def settle(mode: str) -> None:
    """Settings of a process that records."""
    global MODE
    MODE = mode
    os.environ["COLUMNS"] = "100"
    os.environ["BEDSTONE_CACHE"] = str(Path.cwd() / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
