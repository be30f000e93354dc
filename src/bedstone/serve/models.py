"""The models of a server: opened, checked by their golden outputs, and closed where room is needed.

A model is known by a name that its owner gave; no request can name a folder. All models share a
bound on memory: the one that was used least lately is closed for another, while nobody uses it.
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bedstone.checkpoints.golden import differences, read_golden
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.names import known_names
from bedstone.data.text.fim import style_of
from bedstone.errors import BedstoneError, nearest
from bedstone.generation.autoregress import ready
from bedstone.generation.rows import Rows
from bedstone.models.interfaces import DualEncoder, ImageEncoder, ImageTextModel
from bedstone.nn.fast.decoder import Decoder
from bedstone.runtime import pick_device, pick_precision
from bedstone.serve.metrics import ModelMetrics
from bedstone.serve.prefix import PrefixCache
from bedstone.serve.rows import Room, open_rows, row_bytes
from bedstone.serve.scheduler import Scheduler, Turn
from bedstone.serve.work import ENDING, Leaving
from bedstone.settings import Settings, number, optional, whole
from bedstone.tasks.pipeline import (
    PROMPTED,
    TASKS,
    check_head,
    is_decoder,
    natural_task,
    pipeline,
    task_class,
)
from bedstone.tasks.task import Task, reads_image_and_text
from bedstone.tasks.text.feature_extraction import can_embed

log = logging.getLogger("bedstone.serve")
GIB = 1 << 30
DRAIN = 30.0  # seconds that work may take to end when a server stops


@dataclass(frozen=True)
class ServeSettings(Settings):
    """Limits of a server.

    Attributes:
        max_num_seqs: continuations that a model generates side by side, at most.
        max_model_len: tokens of a prompt with its continuation; by default the model's context, up
            to 8192.
        kv_memory: GiB of keys and values of a model's continuations.
        prefix_memory: GiB of keys and values of prompts that are kept for the next; 0 keeps none.
        memory: GiB of all models together; the one used least lately is closed for another.
        max_queue: requests of a model that wait, at most; others are refused with status 429.
        max_queue_tokens: tokens of these.
        max_body: MiB of a request.
        max_pixels: megapixels of all images of a request.
        max_inputs: texts, images or prompts of a request.
        body_seconds: that a client may take to send a request.
        drain_seconds: that requests may take to end after SIGTERM.
        playground: show a page to try the models with, at /playground.
    """

    max_num_seqs: int = whole(1, 256, default=16)
    max_model_len: int | None = optional(whole(16))
    kv_memory: float = number(0, open_least=True, default=2.0)
    prefix_memory: float = number(0, default=0.5)
    memory: float | None = optional(number(0, open_least=True))
    max_queue: int = whole(1, default=256)
    max_queue_tokens: int = whole(1, default=1 << 20)
    max_body: float = number(0, open_least=True, default=16.0)
    max_pixels: float = number(0, open_least=True, default=32.0)
    max_inputs: int = whole(1, default=2048)
    body_seconds: float = number(0, open_least=True, default=30.0)
    drain_seconds: float = number(0, default=DRAIN)
    playground: bool = False


LONGEST = 8192  # tokens of a row, where nothing else is said


@dataclass(eq=False)
class Served:
    """One model that is open.

    Attributes:
        name: by which requests name it.
        model: with its weights.
        scheduler: does its work.
        capacity: tokens of a prompt with its continuation; 0 of a model that writes no text.
        nbytes: of its weights, and of the memory that its work may take.
        unequal: golden outputs that it doesn't give, in words.
    """

    name: str
    model: Model
    scheduler: Scheduler
    capacity: int
    nbytes: int
    unequal: list[str]
    users: int = 0


@dataclass(eq=False)
class Entry:
    """One name of a server.

    Attributes:
        source: what `bedstone.load` opens.
        known: what the model can do; kept while it is closed.
        failed: why it isn't ready; "" where it is.
        used: the number of its latest use.
    """

    name: str
    source: str
    metrics: ModelMetrics = field(default_factory=ModelMetrics)
    served: Served | None = None
    known: dict[str, Any] = field(default_factory=dict)
    nbytes: int = 0
    failed: str = "has not been opened yet"
    used: int = 0


class Models:
    """All models of a server, by their names.

    Args:
        sources: what `bedstone.load` opens, by name.

    Attributes:
        entries: by name.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        settings: ServeSettings,
        precision: str = "auto",
        device: str = "auto",
    ) -> None:
        self.settings, self.precision = settings, precision
        self.device = pick_device(device)
        pick_precision(precision, self.device)
        self.entries = {name: Entry(name, source) for name, source in sources.items()}
        self.closing = False
        self._limit = None if settings.memory is None else int(settings.memory * GIB)
        self._turn, self._lock = Turn(), threading.RLock()
        self._uses = itertools.count(1)
        self._counts = threading.Lock()  # of users: opening a model holds the other lock for long

    def open_all(self) -> None:
        """Opens each model once, so that what is wrong with one is known before requests come.

        Raises:
            BedstoneError: one can't be opened, or doesn't fit by itself.
        """
        for name in list(self.entries):
            with self.use(name):
                pass

    @property
    def ready(self) -> bool:
        """Whether each model gave its golden outputs, and no thread has died."""
        lives = all(
            each.served is None or each.served.scheduler.lives for each in self.entries.values()
        )
        return lives and not self.closing and not any(e.failed for e in self.entries.values())

    def check_room(self) -> None:
        """Raises Busy where no model takes more, so that a request needn't even be read."""
        open_ = [each.served for each in self.entries.values() if each.served]
        if len(open_) == len(self.entries) and all(each.scheduler.full for each in open_):
            open_[0].scheduler.check_room()

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Served]:
        """A model, open as long as the context lasts; it may have to be opened first.

        Raises:
            Leaving: there is no room for it now, as all others are in use.
            BedstoneError: it can't be opened.
        """
        with self._lock:
            if self.closing:
                raise Leaving(ENDING)
            entry = self.entries[name]
            entry.used = next(self._uses)
            served = entry.served or self._open(entry)
            with self._counts:
                served.users += 1
        try:
            yield served
        finally:
            with self._counts:
                served.users -= 1

    def close(self) -> None:
        """Lets what is at work end within the time of the settings, and closes all models."""
        self.closing = True
        threads = [
            threading.Thread(
                target=entry.served.scheduler.close, args=(self.settings.drain_seconds,)
            )
            for entry in self.entries.values()
            if entry.served is not None
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()

    def _open(self, entry: Entry) -> Served:
        self._make_room(entry, entry.nbytes or _size_of(entry.source))
        model = open_model(entry.source, device=self.device)
        how = pick_precision(self.precision, self.device)
        unequal = _unequal(model, how)
        served = _serve(entry, model, self.precision, self.settings, self._turn)
        served.unequal = unequal
        entry.nbytes = served.nbytes
        try:
            self._make_room(entry, served.nbytes)
        except BedstoneError:
            served.scheduler.close()
            raise
        entry.served = served
        entry.known = abilities(model)
        entry.failed = ""
        if unequal:
            entry.failed = f"differs from its golden outputs: {unequal[0]}"
            log.error(
                "%s: doesn't give the outputs that were stored when it was saved (%s of them "
                "differ, the first is %s); the server isn't ready. See bedstone check.",
                entry.name, len(unequal), unequal[0],
            )  # fmt: skip
        return served

    def _make_room(self, entry: Entry, needed: int) -> None:
        """Closes models that nobody uses until so many bytes are free."""
        if self._limit is None:
            return
        if needed > self._limit:
            raise BedstoneError(
                f"{entry.name}: takes {needed / GIB:.2f} GiB, and --memory lets all models have "
                f"{self._limit / GIB:.2f}. Raise it, or lower --kv-memory or the precision."
            )
        others = [each for each in self.entries.values() if each is not entry and each.served]
        held = sum(each.served.nbytes for each in others if each.served)
        for each in sorted(others, key=lambda other: other.used):
            if held + needed <= self._limit:
                return
            served = each.served
            if served is not None and not served.users and served.scheduler.idle:
                served.scheduler.close()
                held -= served.nbytes
                each.served = None
                log.info("%s: closed to make room", each.name)
        if held + needed > self._limit:
            raise Leaving("All memory is in use by other models; try again later.", 5.0)


def _size_of(source: str) -> int:
    """Bytes of a model's weights on disk; 0 where that can't be known beforehand."""
    path = Path(source)
    if not path.is_dir():
        return 0
    return sum(each.stat().st_size for each in path.rglob("*.safetensors") if each.is_file())


def _unequal(model: Model, how: Any) -> list[str]:
    """Golden outputs that a model doesn't give; none where it has no such file."""
    folder = model.path
    golden = read_golden(folder) if folder is not None and folder.is_dir() else None
    if golden is None:
        return []
    return [f"{each.output} of {each.capability}" for each in differences(model, golden, how)]


def _serve(
    entry: Entry, model: Model, precision: str, settings: ServeSettings, turn: Turn
) -> Served:
    """A model with its thread."""
    tasks = _Tasks(model, precision)
    nbytes = _bytes_of(model)
    rows: Rows | None = None
    capacity = 0
    prefixes = PrefixCache(int(settings.prefix_memory * GIB))
    if writes_alone(model):
        rows, room = open_decoder(model, precision, settings)
        capacity, nbytes = room.capacity, room.nbytes
    elif not can_embed_texts(model):
        tasks.get(natural_task(model))  # what is wrong is known before requests come
    scheduler = Scheduler(
        entry.name, rows, model.tokenizer, tasks, turn, entry.metrics,
        prefixes=prefixes, waiting=settings.max_queue, waiting_tokens=settings.max_queue_tokens,
    )  # fmt: skip
    return Served(entry.name, model, scheduler, capacity, nbytes, [])


def open_decoder(model: Model, precision: str, settings: ServeSettings) -> tuple[Rows, Room]:
    """The rows of a decoder within the settings, and the memory that it takes with them.

    Raises:
        BedstoneError: not even one row fits.
    """
    network: Any = ready(model.network, pick_precision(precision, model.device))
    capacity = min(int(model.config.context), settings.max_model_len or LONGEST)
    rows = open_rows(network, capacity, settings.max_num_seqs, int(settings.kv_memory * GIB))
    weights = network.nbytes if isinstance(network, Decoder) else _weights(network)
    prefixes = int(settings.prefix_memory * GIB)
    each = row_bytes(network, capacity)
    return rows, Room(_bytes_of(model) + weights, prefixes, each, capacity, rows.count)


def writes_alone(model: Model) -> bool:
    """Whether a model continues texts, a token at a time."""
    return model.writes_text and model.tokenizer is not None


def _weights(network: Any) -> int:
    held = [*network.parameters(), *network.buffers()]
    return sum({id(each): each.nbytes for each in held}.values())


def _bytes_of(model: Model) -> int:
    """Bytes of all networks that a model holds."""
    networks = [each for each in vars(model).values() if isinstance(each, nn.Module)]
    networks += [
        each.network for each in vars(model).values() if isinstance(each, Model)
    ]  # of a pipeline
    return sum(map(_weights, networks))


class _Tasks:
    """The tasks of a model, made when first used, on the thread that does its work."""

    def __init__(self, model: Model, precision: str) -> None:
        self._model, self._precision = model, precision
        self._made: dict[str, Task] = {}

    def get(self, name: str) -> Task:
        if name not in self._made:
            self._made[name] = pipeline(name, self._model, precision=self._precision)
        return self._made[name]

    @torch.inference_mode()
    def __call__(self, task: str, inputs: Sequence[Any], options: dict[str, Any]) -> list[Any]:
        if task == EMBED:
            return _embedded(self._model, self._precision, self._made, inputs, options)
        does = self.get(task)
        if not options.get(SINGLE):
            return list(does(list(inputs), **options))
        options = {name: value for name, value in options.items() if name != SINGLE}
        if type(does).__call__ is Task.__call__:  # then the result of one is that in a list
            return list(does(list(inputs), **options))
        return [does(one, **options) for one in inputs]


SINGLE = "_single"  # an option of ours: inputs of several requests, each of which is one
PICTURES = "_images"  # likewise: the inputs of `EMBED` are images
EMBED = "embeddings"  # not a task of `pipeline`: what `/v1/embeddings` asks for


def _embedded(
    model: Model, precision: str, made: dict[str, Any], inputs: Sequence[Any], options: Any
) -> list[Any]:
    """Vectors of texts or images, as numpy arrays of fp32; those of a CLIP have length 1."""
    from bedstone.tasks.images.engine import ImageEngine
    from bedstone.tasks.text.feature_extraction import SentenceEmbedding

    if options.get(PICTURES) or isinstance(model.network, DualEncoder):
        engine = made.setdefault(EMBED, None) or ImageEngine(model, precision)
        made[EMBED] = engine
        return list((engine.images if options.get(PICTURES) else engine.texts)(list(inputs)))
    embed = made.setdefault(EMBED, None) or SentenceEmbedding(model, precision=precision)
    made[EMBED] = embed
    return list(embed(list(inputs), **options))


def abilities(model: Model) -> dict[str, Any]:
    """What a model reads and gives, as `/v1/models` says it."""
    tasks = []
    for name in TASKS:
        try:
            check_head(task_class(name), model)
            tasks.append(name)
        except BedstoneError:
            continue
    network = model.network
    sees = isinstance(network, ImageEncoder | DualEncoder) or reads_image_and_text(model)
    drawn = [name.split("-to-")[-1] for name in tasks if "-to-" in name and name != "text-to-text"]
    gives = ["image"] if any(each in ("image", "image-generation") for each in drawn) else []
    gives += ["embeddings"] if can_embed_texts(model) else []
    gives += ["text"] if model.tokenizer is not None and not gives else []
    reads = ["text"] if model.tokenizer is not None else []
    return {
        "tasks": tasks,
        "prompted_tasks": list(PROMPTED) if is_decoder(model) else [],
        "capabilities": _capabilities(model),
        "architecture": {
            "input_modalities": reads + (["image"] if sees else []),
            "output_modalities": gives or ["text"],
        },
    }


def _capabilities(model: Model) -> list[str]:
    """What its writing routes take: texts, conversations, a gap between two texts."""
    if not writes_alone(model):
        return []
    assert model.tokenizer is not None
    found = ["completion", *(["chat"] if model.tokenizer.chat_template else [])]
    with contextlib.suppress(BedstoneError):  # a convention that is unknown: none can be asked for
        found += ["insert"] if style_of(model.tokenizer) else []
    return found


def can_embed_texts(model: Model) -> bool:
    """Whether `/v1/embeddings` can be answered."""
    if isinstance(model.network, ImageTextModel) or not hasattr(model.config, "head"):
        return isinstance(model.network, DualEncoder)
    return can_embed(model)


def named_sources(given: Sequence[str]) -> dict[str, str]:
    """Models of the command line, `NAME=MODEL` or `MODEL`, by the names that requests use.

    Raises:
        BedstoneError: two have the same name, or one is none.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, source = each.partition("=")
        if not equals or "/" in name:
            source = each
            name = each if each in known_names() else Path(each).name
        if not name or not source or len(name) > 200 or not name.isprintable():
            raise BedstoneError(f"{each!r}: expected MODEL, or NAME=MODEL with a name to ask for.")
        if name in found:
            raise BedstoneError(
                f"{each!r}: a model is called {name!r} already. Give it another: NAME={source}"
            )
        found[name] = source
    return found


def unknown_model(name: Any, known: Sequence[str]) -> str:
    """What is said of a name that no model has; names that nobody may see aren't in it."""
    return f"The model {name!r} does not exist{nearest(str(name), known)}."
