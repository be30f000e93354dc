"""Near-duplicates: of texts by MinHash of word 5-grams, of pictures by hashes of small copies.

MinHash (Broder, 1997): the share of equal minima of two texts estimates the Jaccard similarity of
their sets of 5-grams. Texts with equal minima in one of `BANDS` bands are compared (locality
sensitive hashing: Leskovec et al., Mining of Massive Datasets, section 3.4). Pictures with equal
bits in a band of a mean hash and a difference hash are compared by their small copies.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

GRAM = 5  # words
LEAST = 8  # 5-grams of a text that is compared; fewer say too little
MINIMA, BANDS = 64, 16
SIMILAR = 0.7  # Jaccard similarity from which texts are near-duplicates
TOGETHER = 1 << 18  # 5-grams hashed at a time
MOST = 100  # texts or pictures of one bucket that are compared with each other

_WORD = re.compile(r"\w+")
_DRAWN = np.random.default_rng(20)
_FACTORS = _DRAWN.integers(1, 2**63, MINIMA, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _DRAWN.integers(0, 2**63, MINIMA, dtype=np.uint64)
_POWERS = _DRAWN.integers(1, 2**63, GRAM, dtype=np.uint64) | np.uint64(1)
_UPPER = np.uint64(32)


class NearTexts:
    """The MinHash of texts, one after another; texts of under `LEAST` 5-grams are passed over."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, np.ndarray]] = []  # number, hashes of words
        self._size = 0
        self._numbers: list[int] = []
        self._minima: list[np.ndarray] = []

    def add(self, number: int, text: str) -> None:
        """Takes a text by a number of the caller's."""
        words = _WORD.findall(text.lower())
        if len(text) > 15 * (len(words) + 1):  # written without spaces
            words = [letter for letter in text if not letter.isspace()]
        if len(words) < LEAST + GRAM - 1:
            return
        hashes = np.array([hash(word) for word in words], dtype=np.int64).astype(np.uint64)
        self._waiting.append((number, hashes))
        self._size += len(words)
        if self._size >= TOGETHER:
            self._hash()

    def _hash(self) -> None:
        """The minima of the texts that wait."""
        if not self._waiting:
            return
        words = np.concatenate([hashes for _, hashes in self._waiting])
        lengths = np.array([len(hashes) for _, hashes in self._waiting])
        counts = lengths - GRAM + 1
        places = np.ones(len(words), dtype=bool)  # where a 5-gram of one text begins
        ends = np.cumsum(lengths)
        for back in range(1, GRAM):
            places[ends - back] = False
        begins = np.flatnonzero(places)
        grams = np.zeros(len(begins), dtype=np.uint64)
        for at, power in enumerate(_POWERS):
            grams += words[begins + at] * power
        grams ^= grams >> _UPPER
        starts = np.cumsum(counts) - counts
        minima = np.empty((len(lengths), MINIMA), dtype=np.uint32)
        for at in range(MINIMA):
            hashed = ((grams * _FACTORS[at] + _SHIFTS[at]) >> _UPPER).astype(np.uint32)
            minima[:, at] = np.minimum.reduceat(hashed, starts)
        self._minima.append(minima)
        self._numbers += [number for number, _ in self._waiting]
        self._waiting, self._size = [], 0

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Numbers of near-duplicates, each later text once with an earlier one."""
        self._hash()
        if not self._minima:
            return
        minima = np.concatenate(self._minima)
        rows = MINIMA // BANDS
        bands = [minima[:, at * rows : (at + 1) * rows] for at in range(BANDS)]
        for first, second in _similar(bands, lambda a, b: (minima[a] == minima[b]).mean(1)):
            yield self._numbers[first], self._numbers[second]


SIDE = 16  # pixels of a small copy
BLAND = 6.0  # standard deviation of levels below which a picture shows nothing
EQUAL = 5.0  # levels of 255 that small copies of near-duplicates differ by, in the mean
TIED = 0.995  # their correlation, at least


class NearImages:
    """Small copies of pictures, one after another."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._copies: list[np.ndarray] = []

    def add(self, number: int, pixels: np.ndarray) -> None:
        """Takes a picture (h, w, 3) uint8 by a number of the caller's; blank ones are not kept."""
        small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
        copy = np.asarray(small.convert("RGB"))
        if copy.std() >= BLAND:
            self._numbers.append(number)
            self._copies.append(copy)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Numbers of near-duplicates, each later picture once with an earlier one."""
        if not self._copies:
            return
        copies = np.stack(self._copies).astype(np.float32)
        tiles = copies.reshape(-1, 8, 2, 8, 2, 3).mean((2, 4, 5))
        bright = tiles > tiles.mean((1, 2), keepdims=True)
        rises = tiles > np.roll(tiles, 1, axis=2)
        bits = np.concatenate([bright.reshape(-1, 64), rises.reshape(-1, 64)], 1)
        # a band has every eighth bit, so that each sees the whole picture
        bands = [np.packbits(bits[:, at::8], axis=1) for at in range(8)]
        flat = copies.reshape(len(copies), -1)
        plain = flat - flat.mean(1, keepdims=True)
        plain /= np.linalg.norm(plain, axis=1, keepdims=True)

        def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            near = np.abs(flat[first] - flat[second]).mean(1) <= EQUAL
            tied = (plain[first] * plain[second]).sum(1) >= TIED
            return np.where(near & tied, 1.0, 0.0)

        for first, second in _similar(bands, similarity):
            yield self._numbers[first], self._numbers[second]


def _similar(bands: Iterable[np.ndarray], similarity: "object") -> Iterator[tuple[int, int]]:
    """Pairs of places that share a band and are similar; each second place comes once."""
    done: set[int] = set()
    for band in bands:
        keys = np.ascontiguousarray(band).view(f"V{band.shape[1] * band.itemsize}").ravel()
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(counts[inverse] > 1)
        buckets: dict[int, list[int]] = defaultdict(list)
        for place, key in zip(shared.tolist(), inverse[shared].tolist(), strict=True):
            buckets[key].append(place)
        for places in buckets.values():
            for at, second in enumerate(places):
                if at == 0 or second in done:
                    continue
                before = np.array(places[max(at - MOST, 0) : at])
                found = similarity(before, np.array([second]))  # type: ignore[operator]
                if found.max() >= SIMILAR:
                    done.add(second)
                    yield int(before[int(found.argmax())]), second
