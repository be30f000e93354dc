"""Image inference: images are decoded by threads and read by the network in batches, in order.

Images are read, resized and cropped by threads, some batches ahead of the network: Pillow lets go
of the interpreter while it decodes, so the network seldom waits. What a batch holds changes no
result. Shapes: B images of a batch, n in all, E width of the joint space.
"""

import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of, weights_hash
from bedstone.data.images.contrastive import text_rows, was_cut
from bedstone.data.images.decode import decode
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.text.packing import pack
from bedstone.errors import BedstoneError
from bedstone.nn.fast.pick import prepared, settled
from bedstone.nn.layers import normalise
from bedstone.runtime import check_finite, pick_precision
from bedstone.settings import Settings, optional, whole
from bedstone.tasks.task import Task, embeds_both, shown
from bedstone.tasks.text.engine import batches

log = logging.getLogger("bedstone.tasks")
BATCH = 32  # images the network reads at a time
AHEAD = 2  # batches that are decoded before they are asked for
MOST_THREADS = 8

Read = Callable[[Any, Tensor], Iterable[Any]]  # (network, pixels (B, 3, H, W)) to B outputs
Faults = Callable[[int, BedstoneError], None]  # told the number of an image, and what it has


def vectors_name(model: Model) -> str:
    """A model's layout and a hash of its weights: vectors of the same name are comparable."""
    return f"{model.config.layout}-{weights_hash(model)[:16]}"


class ImageEngine:
    """A model's network for inference, and the processor that makes its pixels.

    Args:
        precision: fp32, bf16, auto for bf16 where the hardware has it, or int8 or int4, which
            quantise weights.
        batch_size: images the network reads at a time.
        threads: that decode; 0 takes one for each processor, eight at most.

    Raises:
        BedstoneError: the model has no processor, so nothing says how its images are made.
    """

    def __init__(
        self,
        model: Model,
        precision: str = "fp32",
        *,
        batch_size: int = BATCH,
        threads: int = 0,
    ) -> None:
        self.model = model
        self.processor = processor_of(model)
        self.batch_size = batch_size
        self.threads = threads or min(os.cpu_count() or 1, MOST_THREADS)
        self.device = next(model.network.parameters()).device
        how = settled(model.network, pick_precision(precision, self.device))
        self.network: Any = prepared(model.network, how)
        self.precision = how.name

    @property
    def width(self) -> int:
        """Size of an embedding."""
        config = self.model.config
        return int(getattr(config, "embed", None) or config.width)

    @property
    def name(self) -> str:
        """The model's layout and a hash of its weights: vectors of the same name are comparable."""
        return vectors_name(self.model)

    def images(self, images: Iterable[Any], *, faults: Faults | None = None) -> np.ndarray:
        """Vectors of images, (n, E) fp32, of length 1, in their order.

        Args:
            images: paths, bytes, arrays (H, W, 3) or Pillow's images; read as they are needed.
            faults: is told of each image that can't be read, which is then left out.

        Raises:
            BedstoneError: one can't be read, and there is no `faults`.
        """
        found = [vector for _, vector in self.run(images, image_vectors, faults=faults)]
        return np.stack(found) if found else np.zeros((0, self.width), dtype=np.float32)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of texts in the same space, (n, E) fp32, of length 1, in their order.

        What is longer than the model reads is cut as in training.

        Raises:
            BedstoneError: the model reads no text, or a text can't be read.
        """
        if not embeds_both(self.model):
            raise BedstoneError(
                f"{self.model.path or 'this model'}: reads pictures alone, no words. Take a model "
                "of both, such as a CLIP."
            )
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        rows = text_rows(tokenizer_of(self.model), list(texts), self.model.config)
        cut = sum(was_cut(row, text) for row, text in zip(rows, texts, strict=True))
        if cut:
            log.warning(
                "%d of %d texts are longer than the %d tokens that the model reads; their ends "
                "are cut off.",
                cut,
                len(rows),
                self.model.config.context,
            )
        for part in batches([len(row) for row in rows], None):
            packed = pack([rows[number] for number in part]).to(self.device)
            vectors[part] = _unit(self.network.text_features(packed))
        check_finite(vectors, "the vectors of texts")
        return vectors

    def run(
        self,
        images: Iterable[Any],
        read: Read,
        batch_size: int | None = None,
        *,
        ahead: bool = True,
        faults: Faults | None = None,
        where: Callable[[int], str] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """The number of each image, from 0, and what `read` makes of it, in order.

        Args:
            ahead: whether images are taken from the iterable before they are asked for.
            faults: as `images` has it.
            where: the beginning of an error, by the image's number.
        """
        size = batch_size or self.batch_size
        for numbers, pixels in self.batches(images, size, ahead=ahead, faults=faults, where=where):
            with torch.inference_mode():
                outputs = read(self.network, self.processor.normalise(pixels.to(self.device)))
            for output in outputs:
                check_finite(output, "the network's outputs")
            yield from zip(numbers, outputs, strict=True)

    def batches(
        self,
        images: Iterable[Any],
        size: int,
        *,
        ahead: bool = True,
        faults: Faults | None = None,
        where: Callable[[int], str] | None = None,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of images, and their pixels (B, H, W, 3) uint8, resized and cropped."""
        numbered = enumerate(images)
        room = size * (1 + AHEAD) if ahead else size
        waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="picture-engine")

        def fill() -> None:
            for number, image in itertools.islice(numbered, room - len(waiting)):
                waiting.append((number, pool.submit(self.fitted, image)))

        try:
            fill()
            while waiting:
                numbers, pixels = [], []
                for number, future in (waiting.popleft() for _ in range(min(size, len(waiting)))):
                    try:
                        pixels.append(future.result())
                        numbers.append(number)
                    except BedstoneError as error:
                        if faults is None:
                            raise _placed(error, where, number) from error
                        faults(number, error)
                if ahead:
                    fill()  # so that threads decode while the network reads
                if numbers:
                    yield numbers, torch.from_numpy(np.stack(pixels))
                if not ahead:
                    fill()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def fitted(self, image: Any) -> np.ndarray:
        """An image's pixels (H, W, 3) uint8 at the size that the network reads.

        Raises:
            BedstoneError: it can't be read, or is an address on the web.
        """
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            raise BedstoneError(
                f"{image}: is an address on the web, and Bedstone fetches none. Download the "
                "picture, and give its file."
            )
        return self.processor.fit(decode(image))


def image_vectors(network: Any, pixels: Tensor) -> np.ndarray:
    """Image embeddings (B, E) of length 1; without a joint space, the features before the head."""
    seen = getattr(network, "image_features", None) or network.features
    return _unit(seen(pixels))


def processor_of(model: Model) -> ImageProcessor:
    """The model's processor.

    Raises:
        BedstoneError: it has none.
    """
    if model.processor is None:
        raise BedstoneError(
            f"{model.path or 'this model'}: has no preprocessor_config.json, so nothing says how "
            "its pictures are made. Put the one it was trained with beside the weights."
        )
    return model.processor


def _unit(vectors: Tensor) -> np.ndarray:
    return normalise(vectors.float()).cpu().numpy()


def _placed(error: BedstoneError, where: Callable[[int], str] | None, number: int) -> BedstoneError:
    return BedstoneError(f"{where(number)}: {error}") if where else error


def is_image(value: Any) -> bool:
    """Whether a value may stand for one image: a path, bytes, an array or Pillow's image."""
    if isinstance(value, str | Path | bytes):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3)
    if isinstance(value, Mapping):  # as `datasets` holds images
        return bool(value) and value.keys() <= {"bytes", "path"}
    return hasattr(value, "convert") and hasattr(value, "getbands")  # Pillow's, without its import


# What tasks on images share: which inputs they take, and reading them ahead of the network.
#
# An image is a path, bytes, an array (H, W, 3), Pillow's image, or a dictionary with one as
# `image`.


@dataclass(frozen=True)
class ImageOptions(Settings):
    """Options of every task on images.

    Attributes:
        batch_size: images at a time; None takes 32. A generator is then read one image at a
            time, so give one for speed.
        timeout, num_workers: taken and of no effect: nothing is fetched, and threads read ahead.
    """

    batch_size: int | None = optional(whole(1))
    timeout: Any = None
    num_workers: Any = None


@dataclass(frozen=True)
class LabelledQuery:
    """An image with its own candidate labels, if it has any."""

    image: Any
    labels: tuple[str, ...] = ()


class ImageTask(Task):
    """A task that reads images: decoded by threads, some batches ahead of the network."""

    settings: ClassVar[type[Any]] = ImageOptions
    keys: ClassVar[tuple[str, ...]] = ("image",)  # of an input that is a dictionary
    reads = "pictures"
    engine: ImageEngine

    def open(self, precision: str) -> None:
        self.engine = ImageEngine(self.model, precision)

    def __call__(self, inputs: Any = None, **options: Any) -> Any:
        for name in ("images", "image"):  # as version 4 names them
            if inputs is None and name in options:
                inputs = options.pop(name)
        return super().__call__(inputs, **options)

    def is_one(self, inputs: Any) -> bool:
        return is_image(inputs) or isinstance(inputs, dict)

    def prepare(self, value: Any, options: Any) -> LabelledQuery:
        if isinstance(value, dict):
            if not value.keys() <= set(self.keys) or "image" not in value:
                raise BedstoneError(
                    f"the keys are {', '.join(map(str, value)) or 'none'}; expected "
                    f"{' and maybe '.join(self.keys)}."
                )
            image = value["image"]
        else:
            image = value
        if not is_image(image):
            raise BedstoneError(
                f"{shown(image)} was given; expected a picture: a path, bytes, an array (H, W, "
                "3) or Pillow's image."
            )
        return LabelledQuery(image)

    def results(self, rows: Sequence[LabelledQuery], options: Any) -> Iterator[Any]:
        for row, (_, output) in zip(rows, self._run(rows, options, None), strict=True):
            yield self.finish(row, output, options)

    def stream(self, values: Iterable[Any], options: Any, ahead: int) -> Iterator[Any]:
        for _, result in self._numbered(values, options, ahead, None):
            yield result

    def each(
        self, values: Iterable[Any], faults: Faults, **options: Any
    ) -> Iterator[tuple[int, Any]]:
        """The number of each input and its result; `faults` is told of images that can't be
        read, which are left out."""
        chosen = self._options(self.options, options)
        return self._numbered(values, chosen, chosen.batch_size or self.engine.batch_size, faults)

    def _numbered(
        self, values: Iterable[Any], options: Any, ahead: int, faults: Faults | None
    ) -> Iterator[tuple[int, Any]]:
        rows: dict[int, LabelledQuery] = {}  # those that are on their way through the network

        def prepared() -> Iterator[LabelledQuery]:
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
        rows: Iterable[LabelledQuery],
        options: Any,
        ahead: int | None,
        faults: Faults | None = None,
    ) -> Iterator[tuple[int, Any]]:
        def where(number: int) -> str:
            return self.name if ahead is None else f"{self.name}: inputs[{number}]"

        return self.engine.run(
            (row.image for row in rows),
            lambda network, pixels: self.look(network, pixels, options),
            options.batch_size or min(ahead or 1, self.engine.batch_size),
            ahead=ahead != 1,
            faults=faults,
            where=where,
        )

    def look(self, network: Any, pixels: Tensor, options: Any) -> Sequence[Any]:
        """The network's outputs for pixels (B, 3, H, W)."""
        raise NotImplementedError

    def finish(self, row: LabelledQuery, output: Any, options: Any) -> Any:
        """The result of an image from what `look` gave for it."""
        raise NotImplementedError
