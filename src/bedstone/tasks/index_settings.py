"""What an index says of itself in `index.json`: whose vectors it has, of what, how searched."""

from dataclasses import asdict, dataclass
from pathlib import Path

from bedstone.errors import BedstoneError
from bedstone.files import read_json, write_json
from bedstone.tasks.index_nearest import Approximate

FORMAT = 1
NAME = "index.json"


@dataclass(frozen=True)
class Settings:
    """What `index.json` holds.

    Attributes:
        name: of the model that made the vectors, unlike any other's: a hash of its weights is in.
        width: numbers of a vector.
        model: where that model was, so that a query may open it.
        source: where the rows came from.
        approximate: how the approximate search is done, and what it was measured to find.
    """

    name: str
    width: int
    model: str = ""
    source: str = ""
    approximate: Approximate | None = None

    def write(self, folder: Path) -> None:
        """Writes them into an index's folder, whole or not at all."""
        write_json(folder / NAME, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """Those of an index's folder.

        Raises:
            BedstoneError: it is no index, its settings are damaged, or it is newer.
        """
        if not (folder / NAME).is_file():
            raise BedstoneError(
                f"{folder}: is no index ({NAME} is missing). Make one: bedstone index FOLDER "
                f"--model MODEL --out {folder}"
            )
        held = read_json(folder / NAME)
        try:
            if held.pop("format") > FORMAT:
                raise BedstoneError(
                    f"{folder}: was made by a newer Bedstone. Update Bedstone, or make it again."
                )
            how = held.pop("approximate")
            return cls(**held, approximate=Approximate(**how) if how else None)
        except (KeyError, TypeError, AttributeError) as error:
            raise BedstoneError(
                f"{folder / NAME}: doesn't hold what an index does ({error}). Make the index again."
            ) from error
