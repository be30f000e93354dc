"""A small embedder that needs no model: what colours a picture has, and the colours by name."""

from pathlib import Path

import numpy as np
from PIL import Image

from bedstone.data.images.decode import decode
from bedstone.errors import BedstoneError

WIDTH = 65  # 4 x 4 x 4 bins of colour, and a constant
NAMES = {"red": (220, 20, 20), "green": (20, 200, 30), "blue": (10, 30, 230)}


class Colours:
    """As `picture_engine.ImageEngine` is used. `seen` counts the pictures that were asked for."""

    name, width = "colours-1", WIDTH

    def __init__(self):
        self.seen = 0

    def images(self, pictures, *, faults=None):
        vectors = []
        for number, picture in enumerate(pictures):
            self.seen += 1
            try:
                vectors.append(histogram(decode(picture)))
            except BedstoneError as error:
                if faults is None:
                    raise
                faults(number, error)
        return np.array(vectors, dtype=np.float32).reshape(-1, WIDTH)

    def texts(self, texts):
        found = [NAMES[word] for text in texts for word in text.split() if word in NAMES]
        return np.stack([histogram(np.array([[colour]], dtype=np.uint8)) for colour in found])


def histogram(pixels):
    bins = (pixels.reshape(-1, 3) // 64).astype(int) @ [16, 4, 1]
    counts = np.append(np.bincount(bins, minlength=64), 0.01 * len(bins)).astype(np.float32)
    return counts / np.linalg.norm(counts)


def paint(path, colour, size=12, seed=None):
    """A picture of one colour, with a little of others where a seed is given."""
    pixels = np.full((size, size, 3), colour, dtype=np.uint8)
    if seed is not None:
        pixels[:2] = np.random.default_rng(seed).integers(0, 255, (2, size, 3))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
