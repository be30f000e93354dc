"""The base of all tasks: inputs, options of a call, batches, and errors that name the row.

A task is called as in version 4 of transformers: with one input, which gives one result; with a
list, which gives a list; with a generator, which gives a generator that is read as its results are
taken. Options given when the task was made are the defaults of its calls.
"""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import Input, text_windows
from bedstone.errors import BedstoneError, nearest
from bedstone.models.interfaces import DualEncoder, ImageEncoder, ImageTextModel
from bedstone.settings import Settings, optional, whole
from bedstone.tasks.text.engine import Engine, Places

log = logging.getLogger("bedstone.tasks")
WRITTEN = ("generated_text", "translation_text", "summary_text")  # keys of texts in results
METHOD_TASKS = {"reward": "text-classification"}  # of methods whose recipes name no task
BUFFER = 256  # rows of a list that are sorted by length together


@dataclass(frozen=True)
class Options(Settings):
    """Options of every task.

    Attributes:
        batch_size: rows at a time, at most; None is as many as pay. A generator is then read one
            row at a time, so give one for speed.
        truncation: cut what is longer than a row instead of reading it in windows; each cut
            is logged. True, or a name of a way to cut as tokenizers have them.
        max_length: tokens of a row, at most; None is the model's own limit.
        stride: tokens that two windows share.
        padding, num_workers: taken and of no effect: nothing is padded here.
    """

    batch_size: int | None = optional(whole(1))
    truncation: bool | str | None = None
    max_length: int | None = optional(whole(1))
    stride: int | None = optional(whole(0))
    padding: Any = None
    num_workers: Any = None

    @property
    def cuts(self) -> bool:
        return self.truncation not in (None, False, "do_not_truncate")


@dataclass(frozen=True)
class Prepared:
    """A row that was checked, and its windows."""

    row: Any
    windows: list[Input]


class Task:
    """A task over a model.

    Attributes:
        name: as users know it.
        asks: what the model has to have, for the error message.
        settings: the class of its options.
        engine: what reads inputs with the network.
        reads: what its inputs are.
        fields: of a labelled row, by which its results are scored (`data.fields.FIELDS`).
        metric: that scores them, by its name in `evaluate.tasks`; tasks without one have "".
    """

    name: ClassVar[str]
    asks: ClassVar[str]
    settings: ClassVar[type[Any]] = Options
    engine: Any
    fields: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[str] = ""
    reads: ClassVar[str] = "text"  # or "images", or "both"

    def __init__(self, model: Model, *, precision: str = "fp32", **options: Any) -> None:
        self.model = model
        self.options = self._options(self.settings(), options)
        self.open(precision)
        self.given = frozenset(options)
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        changed = [
            f"{each.name}={_short(getattr(self.options, each.name))}"
            for each in dataclasses.fields(self.options)
            if each.name in self.given
        ]
        where = "" if self.model.path is None else f" of {self.model.path}"
        return f"<{self.name}{where}: {', '.join([repr(self.model), *changed])}>"

    def open(self, precision: str) -> None:
        """Makes the model ready to read."""
        self.engine = Engine(self.model, precision)
        self.tokenizer = self.engine.tokenizer

    @classmethod
    def fits(cls, model: Model) -> bool:
        """Whether the model has what the task asks for."""
        raise NotImplementedError

    def prepare(self, value: Any, options: Any) -> Any:
        """An input, checked and made into tokens."""
        raise NotImplementedError

    def results(self, rows: Sequence[Any], options: Any) -> Iterable[Any]:
        """The result of each prepared row, in order."""
        raise NotImplementedError

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The result of one input, the list of a list's, the generator of a generator's."""
        chosen = self._options(self.options, options)
        if self.is_one(inputs):
            with self._naming(None):
                prepared = self.prepare(inputs, chosen)
            return next(iter(self.results([prepared], chosen)))
        if isinstance(inputs, list | tuple):
            return list(self.stream(inputs, chosen, chosen.batch_size or BUFFER))
        if isinstance(inputs, Iterable):
            return self.stream(inputs, chosen, chosen.batch_size or 1)
        if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # as torch's datasets
            fetched = map(inputs.__getitem__, range(len(inputs)))
            return self.stream(fetched, chosen, chosen.batch_size or 1)
        kind = "a picture" if self.reads == "pictures" else "text"
        raise BedstoneError(f"{self.name}: {shown(inputs)} was given; expected {kind}, or a list.")

    def is_one(self, inputs: Any) -> bool:
        """Whether it is one input, not several."""
        return isinstance(inputs, str | dict)

    def stream(self, values: Iterable[Any], options: Any, ahead: int) -> Iterator[Any]:
        """Results one after another; `ahead` inputs are read before the first is there."""
        numbered = enumerate(values)
        while group := list(itertools.islice(numbered, ahead)):
            rows = []
            for number, value in group:
                with self._naming(number):
                    rows.append(self.prepare(value, options))
            yield from self.results(rows, options)

    def chosen(self, **options: Any) -> Any:
        """The options of a call: those of the task, with some set.

        Raises:
            BedstoneError: one is unknown or out of range.
        """
        return self._options(self.options, options)

    def tell(self, message: str, once: str | None = None) -> None:
        """Logs a warning; of those with the same `once`, the first alone."""
        if once not in self._warned:
            log.warning("%s: %s", self.name, message)
        if once is not None:
            self._warned.add(once)

    def limit(self, options: Options) -> int:
        """Tokens of a row, at most: as many as rows had when the model learnt the task."""
        most = self.engine.limit
        if self._learnt is not None:
            most = self.model.config.context
            most = min(self._learnt.get("limit") or most, most)
        return min(most, options.max_length or most)

    def stride(self, options: Options, usual: int = 0) -> int:
        """Tokens that two windows share: as asked for, as learnt, or as many as is usual."""
        if options.stride is not None:
            return options.stride
        return usual if self._learnt is None else int(self._learnt.get("stride") or 0)

    @property
    def _learnt(self) -> dict[str, Any] | None:
        """The recipe by which the model was fine-tuned for this task, where it is known."""
        recipe = self.model.record.get("recipe")
        if not isinstance(recipe, dict):
            return None
        task = recipe.get("task") or METHOD_TASKS.get(str(recipe.get("method")))
        return recipe if task == self.name else None

    def text_windows(
        self,
        text: str,
        pair: str | None,
        options: Options,
        stride: int = 0,
        *,
        special_names: bool = False,
    ) -> list[Input]:
        """The rows that a text is read in; `stride` holds where nothing else is known."""
        limit = self.limit(options)
        windows = text_windows(
            self.tokenizer,
            text,
            pair,
            limit=limit,
            stride=self.stride(options, stride),
            special_names=special_names,
            from_end=options.cuts and self.tokenizer.keeps_end,
        )
        return self.fitted(windows, options, limit)

    def fitted(self, windows: list[Input], options: Options, limit: int) -> list[Input]:
        """All windows, or with truncation the first alone, with a warning."""
        if len(windows) > 1 and options.cuts:
            self.tell(
                f"a text was cut {self.cut_to(limit)}, as truncation asks; the rest of it "
                f"({len(windows) - 1} more windows) was not read."
            )
            return windows[:1]
        return windows

    def cut_to(self, limit: int) -> str:
        """How a text is cut to `limit` tokens, for a message."""
        if self.tokenizer.keeps_end:
            return f"to its last {limit:,} tokens"
        return f"after {limit:,} tokens"

    @contextlib.contextmanager
    def _naming(self, number: int | None) -> Iterator[None]:
        try:
            yield
        except BedstoneError as error:
            where = "" if number is None else f"inputs[{number}]: "
            raise BedstoneError(f"{self.name}: {where}{error}") from error

    def _options(self, base: Any, given: dict[str, Any]) -> Any:
        names = {field.name for field in dataclasses.fields(base)}
        for nested in ("tokenizer_kwargs", "tokenize_kwargs"):
            if isinstance(given.get(nested), dict) and nested not in names:
                given = {**given, **given[nested]}
                del given[nested]
        if "generation_config" in given and "generation_config" not in names:
            given = {**_generation_config(given["generation_config"]), **given}
            del given["generation_config"]
        for name in given:
            if name not in names:
                raise BedstoneError(
                    f"{self.name}: option {name!r} is unknown{nearest(name, names)}."
                )
        with self._naming(None):
            return dataclasses.replace(base, **given)


class Reader(Task):
    """A task that reads its rows in windows with the model's head."""

    read: Callable[..., Sequence[Any]]
    places: Places | None = None  # which states `read` is handed; all of them where it is None

    def finish(self, row: Any, windows: list[Input], outputs: list[Any], options: Any) -> Any:
        """The result of a row from what `read` gave for its windows."""
        raise NotImplementedError

    def results(self, rows: Sequence[Prepared], options: Any) -> Iterator[Any]:
        def read(*batch: Any) -> Sequence[Any]:
            return self.read(*batch, options)

        windows = [row.windows for row in rows]
        outputs = self.engine.run(windows, read, options.batch_size, self.places)
        for row, output in zip(rows, outputs, strict=True):
            yield self.finish(row.row, row.windows, output, options)


def _generation_config(value: Any) -> dict[str, Any]:
    """The settings of a generation_config: a dictionary, or an object of transformers."""
    settings = value.to_diff_dict() if hasattr(value, "to_diff_dict") else value
    if not isinstance(settings, dict):
        raise BedstoneError(
            f"generation_config: {shown(value)} was given; expected a dictionary of settings."
        )
    own = ("transformers_version", "_from_model_config")
    return {key: each for key, each in settings.items() if key not in own and each is not None}


def embeds_images(model: Model) -> bool:
    """Whether the model embeds images."""
    return isinstance(model.network, ImageEncoder | DualEncoder)


def reads_image_and_text(model: Model) -> bool:
    """Whether the model generates or judges text given an image."""
    return isinstance(model.network, ImageTextModel)


def embeds_both(model: Model) -> bool:
    """Whether the model embeds images and texts into one space."""
    return isinstance(model.network, DualEncoder)


def text_of(value: Any, what: str = "the text") -> str:
    """`value`, checked to be a text.

    Raises:
        BedstoneError: it is none, is empty, or holds half a character.
    """
    if not isinstance(value, str):
        raise BedstoneError(f"{what} is {shown(value)}; expected a string.")
    if not value.strip():
        raise BedstoneError(f"{what} is empty; give it some words, or leave it out.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BedstoneError(
            f"{what} holds half a character (the lone surrogate {value[error.start]!r} at "
            f"{error.start:,}), which no tokenizer can read. Decode the text again from its bytes."
        ) from error
    return value


def _short(value: Any) -> str:
    """A value for a task's own text; long lists, such as rows of examples, by their size."""
    long = isinstance(value, list | tuple) and len(repr(value)) > 300
    return f"{len(value):,} values" if long else repr(value)


def shown(value: Any) -> str:
    """A value for an error message, short."""
    if value is None:
        return "None"
    text = repr(value)
    return f"{text if len(text) < 60 else text[:57] + '...'} ({type(value).__name__})"
