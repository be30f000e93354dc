"""Batches of pictures with texts: endless, shuffled by a seed, exactly resumable, made ahead.

Pictures are decoded, augmented and normalised on threads of their own, some batches ahead of the
network. What a batch holds is decided by the seed and its place in the stream alone: which of a
picture's captions, which hard negatives, how it is augmented; so a run that is resumed sees what
it would have seen.

Shapes: B pictures, n texts (the pictures' own and hard negatives), N tokens, H x W pixels.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.batches import check_identity
from bedstone.data.packing import Packed, lay
from bedstone.data.pairs import PairRows
from bedstone.data.pictures import Pictures
from bedstone.errors import BedstoneError

TOGETHER = 1024  # texts tokenised at a time
Encode = Callable[[Sequence[str]], Sequence[Sequence[int]]]
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class PairBatch:
    """What one training step sees of pairs.

    Attributes:
        pixels: (B, 3, H, W) fp32, normalised.
        rows: n texts laid end to end, N tokens; the first B are the pictures' own.
        groups: (n,) int64, which text each is: equal numbers are equal texts, or captions made
            from one label.
        extra: how many hard negatives stand after the B.
        places: where each picture is from.
        number: which batch of the stream this is, from 0.
    """

    pixels: Tensor
    rows: Packed
    groups: Tensor
    extra: int
    places: list[str]
    number: int

    @property
    def ids(self) -> Tensor:
        """(1, N) token ids."""
        return self.rows.ids

    @property
    def target_count(self) -> int:
        """Pictures that are to find their text."""
        return len(self.pixels)

    def to(self, device: torch.device | str) -> "PairBatch":
        """The same batch with its tensors there."""
        names = ("ids", "types", "positions", "documents")
        rows = {name: getattr(self.rows, name).to(device, non_blocking=True) for name in names}
        return replace(
            self,
            pixels=self.pixels.to(device, non_blocking=True),
            rows=replace(self.rows, **rows),
            groups=self.groups.to(device, non_blocking=True),
        )

    def describe(self) -> str:
        """Which pictures are in it."""
        places = ", ".join(self.places)
        return (
            f"batch {self.number}: {len(self.pixels)} pictures, {self.extra} more texts: {places}"
        )


class PairTexts:
    """The texts of pairs, tokenised once, each distinct one once.

    Args:
        encode: texts to token ids, as the network reads them.
    """

    def __init__(self, rows: PairRows, encode: Encode) -> None:
        known: dict[str, int] = {}
        for text in rows.texts():
            known.setdefault(text, len(known))
        texts, parts = list(known), []
        for at in range(0, len(texts), TOGETHER):
            parts += [np.asarray(ids, np.int32) for ids in encode(texts[at : at + TOGETHER])]
        self.ids = np.concatenate(parts)
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
        self.captions = [[known[text] for text in pair.captions] for pair in rows]
        self.negatives = [[known[text] for text in pair.negatives] for pair in rows]
        self.group = np.arange(len(texts))
        for pair, own in zip(rows, self.captions, strict=True):
            if pair.made:  # "a photo of a cat" is no wrong answer to "a picture of a cat"
                self.group[own] = self.group[own[0]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def pack(self, chosen: Sequence[int] | np.ndarray) -> Packed:
        """Texts by their numbers, laid end to end."""
        spans = [(self.starts[i], self.starts[i + 1]) for i in chosen]
        ids = np.concatenate([self.ids[start:end] for start, end in spans]).astype(np.int64)
        return lay(ids, np.zeros_like(ids), np.array([end - start for start, end in spans]))

    def draw(
        self, rows: np.ndarray, random: np.random.Generator, negatives: int
    ) -> tuple[Packed, Tensor, int]:
        """A caption of each row, and up to `negatives` hard ones of each after them.

        Returns:
            The texts, their groups (n,), and how many hard negatives there are.
        """
        own = [self.captions[i][random.integers(len(self.captions[i]))] for i in rows]
        hard: list[int] = []
        if negatives:
            for i in rows:
                wrong = self.negatives[i]
                hard += random.permutation(wrong)[:negatives].tolist() if wrong else []
        chosen = np.array([*own, *hard])
        return self.pack(chosen), torch.from_numpy(self.group[chosen]), len(hard)


class PairBatches:
    """An endless stream of `PairBatch`: each picture at most once an epoch, in an order drawn anew.

    Pictures that don't fill a batch at an epoch's end are left to the next one's order, for how
    hard a batch is depends on its size. The state is a position, so resuming costs nothing.

    Args:
        pictures: of the rows.
        texts: of the same rows.
        normalise: (B, H, W, 3) uint8 to (B, 3, H, W) fp32.
        augment: (pixels, generator) to pixels, both (B, H, W, 3) uint8.
        negatives: hard negatives drawn a picture, at most.
        workers: threads that make batches; 0 makes each when it is asked for.
        ahead: batches that are made before they are asked for.
    """

    def __init__(
        self,
        pictures: Pictures,
        texts: PairTexts,
        batch_size: int,
        normalise: Callable[[Tensor], Tensor],
        *,
        augment: Augment | None = None,
        negatives: int = 0,
        seed: int = 0,
        workers: int = 1,
        ahead: int = 4,
    ) -> None:
        if batch_size < 1:
            raise BedstoneError(f"batch_size: {batch_size} is out of range; expected 1 or more.")
        self.pictures, self.texts, self.normalise = pictures, texts, normalise
        self.augment, self.negatives, self.seed = augment, negatives, seed
        self.batch_size = min(batch_size, len(pictures.readable))
        self.workers, self.ahead = workers, max(ahead, 1)
        self._at = (0, 0, 0)  # of the next batch: epoch, rows of it before, number
        self._next = self._at  # of the next to be made
        self._made: deque[Future[PairBatch]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._order: tuple[int, np.ndarray] | None = None
        self._waited, self._since = 0.0, time.monotonic()

    @property
    def epoch(self) -> float:
        """Passes over the pictures so far, such as 1.25."""
        return self._at[0] + self._at[1] / len(self.pictures.readable)

    def __iter__(self) -> Iterator[PairBatch]:
        return self

    def __next__(self) -> PairBatch:
        began = time.monotonic()
        if self.workers:
            self._fill()
            batch = self._made.popleft().result()
        else:
            batch = self._make(*self._place(self._at))
        self._at = self._after(self._at)
        self._waited += time.monotonic() - began
        if self.workers:
            self._fill()
        return batch

    def figures(self) -> dict[str, float]:
        """Since the last call: the share of time that was spent waiting for a batch."""
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return {"waited": share, "epoch": self.epoch}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; plain numbers, for JSON."""
        epoch, window, number = self._at
        position = {"epoch": epoch, "window": window, "batch": number}
        return {**position, "identity": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where `state` was taken: the next batch is the one that would have come then.

        Raises:
            BedstoneError: it was taken with other data or another seed.
        """
        check_identity(state, self._identity())
        for future in self._made:
            future.cancel()
        self._made.clear()
        self._at = self._next = (state["epoch"], state["window"], state["batch"])

    def _identity(self) -> dict[str, Any]:
        rows, tokens = len(self.pictures.readable), len(self.texts.ids)
        return {"seed": self.seed, "rows": rows, "texts": len(self.texts), "tokens": tokens}

    def _after(self, at: tuple[int, int, int]) -> tuple[int, int, int]:
        epoch, window, number = at
        window += self.batch_size
        if window + self.batch_size > len(self.pictures.readable):
            epoch, window = epoch + 1, 0
        return epoch, window, number + 1

    def _fill(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="pictures")
        while len(self._made) < self.ahead:
            self._made.append(self._pool.submit(self._make, *self._place(self._next)))
            self._next = self._after(self._next)

    def _place(self, at: tuple[int, int, int]) -> tuple[np.ndarray, int, int, int]:
        """The rows of a batch, and what its chance is seeded by."""
        epoch, window, number = at
        if self._order is None or self._order[0] != epoch:
            drawn = np.random.default_rng((self.seed, epoch)).permutation(self.pictures.readable)
            self._order = (epoch, drawn)
        return self._order[1][window : window + self.batch_size], epoch, window, number

    def _make(self, rows: np.ndarray, epoch: int, window: int, number: int) -> PairBatch:
        random = np.random.default_rng((self.seed, epoch, window, 1))
        rows, pixels = self.pictures.read(rows)
        packed, groups, extra = self.texts.draw(rows, random, self.negatives)
        shown = torch.from_numpy(pixels)
        if self.augment is not None:
            generator = torch.Generator().manual_seed(int(random.integers(2**62)))
            shown = self.augment(shown, generator)
        places = [self.pictures.rows[int(i)].place for i in rows]
        return PairBatch(self.normalise(shown), packed, groups, extra, places, number)
