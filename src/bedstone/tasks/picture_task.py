"""What tasks on pictures share: which inputs they take, and reading them ahead of the network.

A picture is a path, bytes, an array (H, W, 3), Pillow's image, or a dictionary with one as `image`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bedstone.checks import at_least
from bedstone.errors import BedstoneError
from bedstone.tasks.picture_engine import Faults, PictureEngine, is_picture
from bedstone.tasks.task import Task, shown


@dataclass(frozen=True)
class PictureOptions:
    """Options of every task on pictures.

    Attributes:
        batch_size: pictures at a time; None takes 32. A generator is then read one picture at a
            time, so give one for speed.
        timeout, num_workers: taken and of no effect: nothing is fetched, and threads read ahead.
    """

    batch_size: int | None = None
    timeout: Any = None
    num_workers: Any = None

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", optional=True)


@dataclass(frozen=True)
class Asked:
    """A picture, and the labels that are asked of it alone."""

    picture: Any
    labels: tuple[str, ...] = ()


class PictureTask(Task):
    """A task that reads pictures: decoded by threads, some batches ahead of the network."""

    settings: ClassVar[type[Any]] = PictureOptions
    keys: ClassVar[tuple[str, ...]] = ("image",)  # of an input that is a dictionary
    reads = "pictures"

    def open(self, precision: str) -> None:
        self.pictures = PictureEngine(self.model, precision)

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        for name in ("images", "image"):  # as version 4 names them
            if inputs is None and name in options:
                inputs = options.pop(name)
        return super().__call__(inputs, **options)

    def is_one(self, inputs: Any) -> bool:
        return is_picture(inputs) or isinstance(inputs, dict)

    def prepare(self, value: Any, options: Any) -> Asked:
        if isinstance(value, dict):
            if not value.keys() <= set(self.keys) or "image" not in value:
                raise BedstoneError(
                    f"the keys are {', '.join(map(str, value)) or 'none'}; expected "
                    f"{' and maybe '.join(self.keys)}."
                )
            picture = value["image"]
        else:
            picture = value
        if not is_picture(picture):
            raise BedstoneError(
                f"{shown(picture)} was given; expected a picture: a path, bytes, an array (H, W, "
                "3) or Pillow's image."
            )
        return Asked(picture)

    def results(self, rows: Sequence[Asked], options: Any) -> Iterator[Any]:
        for row, (_, output) in zip(rows, self._run(rows, options, None), strict=True):
            yield self.finish(row, output, options)

    def stream(self, values: Iterable[Any], options: Any, ahead: int) -> Iterator[Any]:
        for _, result in self._numbered(values, options, ahead, None):
            yield result

    def each(
        self, values: Iterable[Any], faults: Faults, **options: Any
    ) -> Iterator[tuple[int, Any]]:
        """The number of each input and its result; `faults` is told of pictures that can't be
        read, which are left out."""
        chosen = self._options(self.options, options)
        return self._numbered(values, chosen, chosen.batch_size or self.pictures.batch_size, faults)

    def _numbered(
        self, values: Iterable[Any], options: Any, ahead: int, faults: Faults | None
    ) -> Iterator[tuple[int, Any]]:
        rows: dict[int, Asked] = {}  # those that are on their way through the network

        def prepared() -> Iterator[Asked]:
            for number, value in enumerate(values):
                with self._naming(number):
                    rows[number] = self.prepare(value, options)
                yield rows[number]

        def left_out(number: int, error: BedstoneError) -> None:
            assert faults is not None
            del rows[number]
            faults(number, error)

        found = self._run(prepared(), options, ahead, left_out if faults else None)
        for number, output in found:
            yield number, self.finish(rows.pop(number), output, options)

    def _run(
        self,
        rows: Iterable[Asked],
        options: Any,
        ahead: int | None,
        faults: Faults | None = None,
    ) -> Iterator[tuple[int, Any]]:
        def where(number: int) -> str:
            return self.name if ahead is None else f"{self.name}: inputs[{number}]"

        return self.pictures.run(
            (row.picture for row in rows),
            lambda network, pixels: self.look(network, pixels, options),
            options.batch_size or min(ahead or 1, self.pictures.batch_size),
            ahead=ahead != 1,
            faults=faults,
            where=where,
        )

    def look(self, network: Any, pixels: Tensor, options: Any) -> Sequence[Any]:
        """What the network says of each of (B, 3, H, W)."""
        raise NotImplementedError

    def finish(self, row: Asked, output: Any, options: Any) -> Any:
        """The result of a picture from what `look` gave for it."""
        raise NotImplementedError
