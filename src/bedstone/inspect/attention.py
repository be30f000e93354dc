"""Where in a picture a network looks for a word: weights of cross-attention, drawn over it.

The weights are made a second time, beside the pass, from what each cross-attention was given; the
network runs as it always does, and nothing of it is changed. What attention is paid to is a hint at
what a word is read from, not a proof (Jain and Wallace, 2019).

Shapes: L layers with cross-attention, P pictures, n = m P rows of text (row i of picture i // m),
H heads, T tokens, S states of a picture, the first of which stands for the whole, W head width.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.images.decode import decode
from bedstone.data.images.image_text import BlipWords
from bedstone.errors import BedstoneError
from bedstone.nn.attention import cross_attention
from bedstone.report.sheets import contact_sheet

CELL = 192  # pixels of a picture on the sheet
# From nothing to the most: dark violet, red, orange, light yellow, ever lighter.
_HEAT = np.array([[24, 12, 60], [122, 28, 109], [214, 66, 60], [250, 150, 30], [252, 245, 160]])


@dataclass(frozen=True)
class AttentionMap:
    """Where a network looked while it read or wrote a text.

    Attributes:
        picture: (h, w, 3) uint8, as much of it as the network sees.
        text: what was read or written.
        words: those of the text, in order.
        maps: (words, rows, columns) shares of attention over places, each map 1 in all.
        whole: (words,) the share that went to the whole instead of any place.
    """

    picture: np.ndarray
    text: str
    words: tuple[str, ...]
    maps: np.ndarray
    whole: np.ndarray

    def of(self, word: str) -> np.ndarray:
        """(rows, columns) of a word; of several times the same, the last.

        Raises:
            BedstoneError: the text has no such word.
        """
        known = [each.lower() for each in self.words]
        if word.lower() not in known:
            raise BedstoneError(
                f"word {word!r}: isn't in {self.text!r}; its words are {', '.join(self.words)}."
            )
        return self.maps[len(known) - 1 - known[::-1].index(word.lower())]


def over_places(weights: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of places (n, T, rows, columns), 1 in all, and of the whole (n, T).

    The mean over heads and layers.

    Args:
        weights: (L, n, H, T, S) of `nn.attention.cross_attention`.
        size: (height, width) of the pictures, whose shape tells rows from columns.
    """
    mean = weights.float().mean((0, 2)).cpu().numpy()  # (n, T, S)
    rows, columns = grid(mean.shape[-1], size)
    places = mean[..., 1:]
    shares = places / np.maximum(places.sum(-1, keepdims=True), 1e-12)
    return shares.reshape(*mean.shape[:2], rows, columns), mean[..., 0]


def grid(states: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a picture's states, all but the first: those nearest to its own shape.

    Raises:
        BedstoneError: there are no places.
    """
    places = states - 1
    if places < 1:
        raise BedstoneError(f"attention: {states} states of a picture have no places to draw.")
    ratio = size[0] / size[1]
    shapes = [(rows, places // rows) for rows in range(1, places + 1) if places % rows == 0]
    return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1] / ratio)))


@torch.no_grad()
def attention_map(model: Model, picture: Any, text: str) -> AttentionMap:
    """Where a model looks for each word of a text about a picture.

    A model with an encoder reads the text, as it reads questions. One that only writes captions is
    led through it: a word's map is that of the moment when the word is about to be written.

    Args:
        model: in BLIP's form, with its processor.
        picture: as `data.images.decode.decode` takes it.

    Raises:
        BedstoneError: the picture can't be read, the text is empty or too long, or the model
            doesn't read pictures by cross-attention.
    """
    network, processor = model.network, model.processor
    if processor is None or not hasattr(network, "caption_states"):
        raise BedstoneError(
            f"{model.path or 'the model'}: is no network for captions or answers; attention is "
            "drawn for those."
        )
    shown = processor.fit(decode(picture))  # (h, w, 3)
    tokenizer, known = tokenizer_of(model), model.config.text
    words = BlipWords.of(tokenizer, known.context)
    rows = words.read([text])
    device = next(network.parameters()).device
    pixels = processor.normalise(torch.from_numpy(shown.copy())[None]).to(device)
    training = network.training
    network.eval()
    try:
        memory = network.memory(pixels)
        if network.encoder is not None:
            ids, first = torch.tensor(rows, device=device), len(words.before)
            weights = cross_attention(network.encoder, lambda: network.read(ids, None, memory))
        else:
            written = [known.bos_id, *words.plain([text])[0].tolist()]
            ids, first = torch.tensor([written], device=device), 0
            weights = cross_attention(
                network.decoder, lambda: network.caption_states(ids, None, memory)
            )
    finally:
        network.train(training)
    shares, whole = over_places(weights, shown.shape[:2])
    names, parts = _words(tokenizer.plain, text)
    places = [[first + place for place in part] for part in parts]
    return AttentionMap(
        picture=shown,
        text=text,
        words=tuple(names),
        maps=np.stack([shares[0, part].mean(0) for part in places]),
        whole=np.array([whole[0, part].mean() for part in places]),
    )


def heat(picture: np.ndarray, shares: np.ndarray, side: int = CELL) -> np.ndarray:
    """A picture (h, w, 3) in grey under its map (rows, columns): (H, W, 3), its longer side `side`.

    The lightest place is the one most looked at; an even map is as dark as can be all over.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    below = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L").resize(sides))
    even = 1 / shares.size
    strength = np.maximum(shares - even, 0) / max(float(shares.max()) - even, even)
    wide = Image.fromarray(strength.astype(np.float32)).resize(sides, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(wide), 0, 1)[..., None]  # (H, W, 1)
    steps = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(share[..., 0], steps, channel) for channel in _HEAT.T], -1)
    mixed = 0.55 * colour + 0.45 * below[..., None] * (0.35 + 0.65 * share)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def attention_sheet(
    found: Sequence[tuple[AttentionMap, Sequence[str]]], path: str | Path, *, cell: int = CELL
) -> Path:
    """Writes a PNG: a row for each text, the picture and then the map of each of the given words.

    Raises:
        BedstoneError: there is nothing to draw, a word isn't in its text, or it can't be written.
    """
    most = max((len(words) for _, words in found), default=0)
    cells: list[np.ndarray] = []
    titles: list[str] = []
    for each, words in found:
        maps = [heat(each.picture, each.of(word), cell) for word in words]
        blank = [np.full((cell, cell, 3), 255, dtype=np.uint8)] * (most - len(words))
        cells += [each.picture, *maps, *blank]
        titles += [each.text, *words, *[""] * len(blank)]
    return contact_sheet(cells, path, titles=titles, columns=most + 1, cell=cell)


def _words(tokenizer: Any, text: str) -> tuple[list[str], list[list[int]]]:
    """The words of a text, and the numbers of each one's tokens; punctuation is left out."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    places: dict[int, list[int]] = {}
    for place, number in enumerate(encoded.word_ids):
        if number is not None:
            places.setdefault(number, []).append(place)
    spans = {n: (encoded.offsets[p[0]][0], encoded.offsets[p[-1]][1]) for n, p in places.items()}
    kept = [n for n, (start, end) in spans.items() if re.search(r"\w", text[start:end])]
    return [text[slice(*spans[n])].strip() for n in kept], [places[n] for n in kept]
