"""A run's checkpoints: saved whole, verified before use, the last few and the best kept.

A checkpoint is a folder `step-00000100` with a `manifest.json` that lists every file's size and
hash beside the step, the metrics and the time. A folder without a sound manifest does not exist.
There is no index beside the folders: what is there is all there is to know.
"""

import contextlib
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from bedstone.checkpoints.writer import Job, Writer, postponed
from bedstone.errors import BedstoneError
from bedstone.files import (
    atomic_folder,
    inside,
    manifest,
    recover_folder,
    remove_folder,
    sweep,
    verify_manifest,
    write_text,
)
from bedstone.files import (
    sha256 as sha256_of,
)
from bedstone.settings import check_whole

SCHEMA = 1
MANIFEST = "manifest.json"

_NAME = re.compile(r"step-(\d{8,})")


def score(metrics: dict[str, float], best_by: str) -> float | None:
    """The metric `best_by`, lower is better: of `-name`, the metric `name` with its sign turned.

    None where it is missing or not finite.
    """
    value = metrics.get(best_by.removeprefix("-"), math.nan)
    if not math.isfinite(value):
        return None
    return -value if best_by.startswith("-") else value


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its folder, its step, and the metrics it was saved with."""

    path: Path
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    best_by: str = "validation_loss"

    @property
    def score(self) -> float | None:
        """What chooses the best, lower is better; None if missing or not finite."""
        return score(self.metrics, self.best_by)

    @property
    def state(self) -> Path:
        """The folder of the training state."""
        return self.path / "state"

    def verify(self) -> None:
        """Reads every file and compares its hash.

        Raises:
            BedstoneError: naming the first file that is missing, cut or changed.
        """
        verify_manifest(self.path, _read_manifest(self.path)["files"])

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """The checkpoint in a folder, if its manifest is sound and its files have their sizes.

        Raises:
            BedstoneError: there is no manifest, or it is damaged, or a file is missing or cut.
        """
        path = Path(path)
        document = _read_manifest(path)
        for name, entry in document["files"].items():
            file = inside(path, name)
            found = file.stat().st_size if file.is_file() else None
            if found != entry["size"]:
                found_text = "it is missing" if found is None else f"{found:,} bytes found"
                raise BedstoneError(
                    f"{file}: {found_text}, {entry['size']:,} bytes expected. "
                    "Use an earlier checkpoint."
                )
        metrics = {k: math.nan if v is None else v for k, v in document["metrics"].items()}
        return cls(path, document["step"], metrics, document["best_by"])


class CheckpointStore:
    """The checkpoints of one run, in one folder.

    Args:
        folder: where they are; made at the first save.
        keep_last: how many of the newest stay; the best stays besides.

    Raises:
        BedstoneError: `keep_last` is less than one.
    """

    def __init__(self, folder: str | Path, keep_last: int = 2) -> None:
        check_whole("keep_last", keep_last, 1)
        self.folder = Path(folder)
        self.keep_last = keep_last

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        metrics: dict[str, float] | None = None,
        best_by: str = "validation_loss",
        writer: Writer | None = None,
    ) -> Checkpoint:
        """Calls `write` with an empty folder to fill, then makes it the checkpoint of `step`.

        Until all of it is on the disk, everything saved before stays as it is, the same step's
        earlier checkpoint too. Afterwards, all but the newest, the best and this one are removed.
        On several ranks each calls this: all write into one folder, of which rank 0 writes the
        manifest, with the hashes of what the others wrote, and renames it last.

        Args:
            writer: a thread that does what `write` puts off, and all that follows; it isn't on the
                disk before `writer.wait()` returns.

        Raises:
            BedstoneError: the disk is full or refuses; what `write` raises comes through. On
                several ranks all raise it, and nothing was changed.
        """
        if type(step) is not int or step < 0:
            raise BedstoneError(f"step: {step!r}; expected a whole number, 0 or more.")
        path = self.folder / f"step-{step:08d}"
        values = {key: float(value) for key, value in (metrics or {}).items()}

        def seal(folder: Path, files: dict[str, dict[str, Any]]) -> None:
            document = {
                "schema": SCHEMA,
                "step": step,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                # JSON has no NaN or infinity: null stands for both.
                "metrics": {k: v if math.isfinite(v) else None for k, v in values.items()},
                "best_by": best_by,
                "files": files,
            }
            write_text(folder / MANIFEST, _sealed(document))

        from bedstone import ranks  # here, as lists of models read stores without torch

        saved = Checkpoint(path, step, values, best_by)
        with contextlib.ExitStack() as stack:  # of rank 0 alone
            temporary = Path(ranks.first(lambda: str(stack.enter_context(atomic_folder(path)))))
            jobs: list[Job] = []
            if writer is None:
                ranks.together(lambda: write(temporary))
            else:
                jobs = ranks.together(lambda: _prepared(write, temporary))
            place = stack.pop_all()

        def finish() -> None:
            with place:

                def fill() -> dict[str, dict[str, Any]]:
                    while jobs:  # what is written is let go of
                        jobs.pop(0)()
                    return _own_files(temporary)

                known: dict[str, dict[str, Any]] = {}
                for files in ranks.gathered(ranks.together(fill)):
                    known |= files
                ranks.first(lambda: seal(temporary, manifest(temporary, known)))
                ranks.first(place.close)
            ranks.first(lambda: self._prune(saved))

        if writer is None:
            finish()
        else:
            writer.start(finish)
        return saved

    def list(self) -> Sequence[Checkpoint]:
        """The checkpoints with a sound manifest and files of the right size, by step."""
        found, faults = self._present()
        for fault in faults:
            warnings.warn(f"Ignored a damaged checkpoint: {fault}", stacklevel=2)
        return found

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint of which every byte is right; None if there never was one.

        A damaged one is reported as a warning and the one before it is used.

        Raises:
            BedstoneError: there are checkpoints and all are damaged; it says how.
        """
        faults = []
        for path in reversed(self._folders()):
            try:
                checkpoint = Checkpoint.open(path)
                checkpoint.verify()
            except BedstoneError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                warnings.warn(
                    f"Skipped a damaged checkpoint, using {path.name}: {fault}", stacklevel=2
                )
            return checkpoint
        if faults:
            raise BedstoneError(
                f"{self.folder}: none of its {len(faults)} checkpoints is sound. "
                f"{' '.join(faults)} Restore one from a copy, or start the run anew elsewhere."
            )
        return None

    def best(self) -> Checkpoint | None:
        """The sound checkpoint with the lowest metric; None if none was measured.

        Only those are compared that were saved by the same metric as the newest.
        """
        for checkpoint in _by_score(self.list()):
            try:
                checkpoint.verify()
            except BedstoneError as error:
                warnings.warn(f"Skipped a damaged best checkpoint: {error}", stacklevel=2)
            else:
                return checkpoint
        return None

    def _folders(self) -> Sequence[Path]:
        if not self.folder.is_dir():
            return []
        for leftover in self.folder.glob(".step-*.previous"):
            recover_folder(self.folder / leftover.name[1:].removesuffix(".previous"))
        folders = [p for p in self.folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(folders, key=lambda path: int(path.name[5:]))

    def _present(self) -> tuple[Sequence[Checkpoint], Sequence[str]]:
        """The sound checkpoints by step, and what is wrong with the others."""
        found, faults = [], []
        for path in self._folders():
            try:
                found.append(Checkpoint.open(path))
            except BedstoneError as error:
                faults.append(str(error))
        return found, faults

    def _prune(self, saved: Checkpoint) -> None:
        present, _ = self._present()  # damaged ones are the reader's concern
        keep = {saved.path, *(c.path for c in present[-self.keep_last :])}
        keep |= {c.path for c in _by_score(present)[:1]}
        sweep(self.folder, "step-*")
        for checkpoint in present:
            if checkpoint.path not in keep:
                try:
                    remove_folder(checkpoint.path)
                except OSError as error:
                    warnings.warn(
                        f"{checkpoint.path}: can't be removed ({error.strerror}).",
                        stacklevel=3,
                    )


def _prepared(write: Callable[[Path], None], folder: Path) -> list[Job]:
    """Writes what is small, and gives the jobs that write the rest."""
    with postponed() as jobs:
        write(folder)
    return jobs


def _own_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What this rank wrote of a checkpoint beside what rank 0 did: sizes and hashes by name."""
    from bedstone import ranks
    from bedstone.checkpoints.state import SHARDS, shard_name

    if ranks.count() == 1:
        return {}
    own = folder.glob(f"{SHARDS}/{shard_name(ranks.rank(), ranks.count())}*")
    return {
        file.relative_to(folder).as_posix(): {
            "size": file.stat().st_size,
            "sha256": sha256_of(file),
        }
        for file in own
    }


def _by_score(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Best first; the earlier of equals first."""
    if not checkpoints:
        return []
    scored = [
        (checkpoint.score, checkpoint.step, checkpoint)
        for checkpoint in checkpoints
        if checkpoint.best_by == checkpoints[-1].best_by and checkpoint.score is not None
    ]
    return [checkpoint for _, _, checkpoint in sorted(scored, key=lambda item: item[:2])]


def _sealed(document: dict[str, Any]) -> str:
    """The manifest as text, with a hash of itself as its last entry."""
    digest = sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps(document | {"sha256": digest}, indent=2) + "\n"


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    remedy = "Use another checkpoint, or another copy of this one."
    if not path.is_file():
        raise BedstoneError(f"{path}: is missing; without it no checkpoint is there. {remedy}")
    try:
        text = path.read_bytes().decode()
        document = json.loads(text)
        seal = {key: value for key, value in document.items() if key != "sha256"}
        # Written again, it must come out the same to the byte: no change escapes.
        sound = _sealed(seal) == text
        schema, step = seal.get("schema"), seal.get("step")
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise BedstoneError(f"{path}: is damaged ({error}). {remedy}") from error
    if not sound:
        raise BedstoneError(f"{path}: its content was changed: its own hash differs. {remedy}")
    if schema != SCHEMA:
        raise BedstoneError(
            f"{path}: has schema {schema!r}, expected {SCHEMA}; a newer Bedstone wrote it. "
            "Use that version."
        )
    named = _NAME.fullmatch(folder.name)
    if named and int(named[1]) != step:
        raise BedstoneError(f"{path}: is of step {step}, not of {folder.name}. {remedy}")
    return seal
