"""The run's log: one JSON object a line, and TensorBoard's files where it is installed."""

import json
import math
from pathlib import Path
from typing import Any

from bedstone.files import write_text


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; a line cut short by a crash is passed over."""
    path = Path(path)
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class RunLog:
    """Appends records to `log.jsonl` and scalars to `tensorboard/` in the run's folder.

    Opening it at a step forgets what was logged after that step: a resumed run writes the
    same lines again.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self.path = folder / "log.jsonl"
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = self.path.open("a", encoding="utf-8")
        self.board = _board(folder / "tensorboard", step)

    def write(self, step: int, **figures: float) -> None:
        """One record; figures that aren't finite are written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes both."""
        self.file.close()
        if self.board is not None:
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
