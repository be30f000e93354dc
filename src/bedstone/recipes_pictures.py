"""What recipes of pictures with texts have in common: where rows come from, how they are read."""

from dataclasses import dataclass, field
from typing import Any

from bedstone.checks import at_least, check_shares
from bedstone.config import OptimConfig, ScheduleConfig
from bedstone.errors import BedstoneError


@dataclass
class PicturesConfig:
    """Rows with pictures.

    Attributes:
        source: scenes (built in), a Parquet, Arrow, JSONL or CSV file, a folder of pictures with a
            metadata.jsonl, a glob or a hub id.
        validation: another source to validate on; empty holds out a share of `source`.
        split: of a hub id or a folder with splits.
        validation_share: share of the pictures held out.
        columns: which column holds what, where the usual names aren't used, as `{text: title}`. A
            text may be a sentence made of columns, `"{title}, a {colour} {kind}"`, and there may
            be a list of them.
        most_rows: take this many rows at most, drawn by the seed; 0 takes all. Of scenes, how many
            are drawn; 0 is 20,000.
        most_broken: share of rows that may be broken; such rows are left out and named.
        objects: things in a picture of scenes, the fewest and the most.
        enlarge: how many times larger than the network's pictures they are kept, for crops to
            choose from; 1.25 suits photos that are cropped.
        memory_mb: megabytes of decoded pictures to keep; larger sets are decoded as they are read.
        workers: threads that make batches ready.
    """

    source: str = "scenes"
    validation: str = ""
    split: str | None = None
    validation_share: float = 0.05
    columns: dict[str, Any] = field(default_factory=dict)
    most_rows: int = 0
    most_broken: float = 0.05
    objects: tuple[int, ...] = (1, 5)
    enlarge: float = 1.0
    memory_mb: float = 2048.0
    workers: int = 1

    def __post_init__(self) -> None:
        at_least(self, 0, "most_rows", "workers", prefix="data.")
        for name in ("most_broken", "validation_share"):
            check_shares({f"data.{name}": getattr(self, name)})
        if not 1 <= self.enlarge <= 4:
            raise BedstoneError(f"data.enlarge: {self.enlarge} was given; expected 1 to 4.")
        if len(self.objects) != 2:
            raise BedstoneError(
                f"data.objects: {list(self.objects)} was given; expected two numbers, the fewest "
                "and the most things in a picture."
            )

    @property
    def things(self) -> tuple[int, int]:
        """The fewest and the most things in a scene."""
        return self.objects[0], self.objects[1]


@dataclass
class PicturesOptim(OptimConfig):
    """`OptimConfig` with CLIP's second beta and decay for small networks."""

    kind: str = "adamw"
    lr: float = 1e-3
    adamw_lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6


@dataclass
class PicturesSchedule(ScheduleConfig):
    """`ScheduleConfig` that falls by a cosine from the warm-up on."""

    warmup: float = 0.03
    decay: float = 0.97
    shape: str = "cosine"
