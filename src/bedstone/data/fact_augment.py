"""Changes of a picture that leave true what is said of it.

Where left or right is said, nothing is flipped; where a colour is said, no colour changes; where a
place, a number or a size is said, nothing is cut, turned, enlarged or covered. What is said is what
the batch teaches with the picture: the captions, questions and answers drawn for it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.image_augment import ImageAugment
from bedstone.mapping import from_mapping

SIDES, PLACES, COLOURS, COUNTS, SIZES = 1, 2, 4, 8, 16
ALL = SIDES | PLACES | COLOURS | COUNTS | SIZES

# Words that state a fact of each sort, rather one too many than one too few. Written signs mirror
# too, so they count as sides; what is said to be there could be cut off, so it counts as a number.
WORDS = {
    SIDES: "left right leftmost rightmost lefthand righthand east west eastern western "
    "clockwise anticlockwise counterclockwise mirrored mirror sign signs says say said saying "
    "written writing write writes read reads reading word words letter letters text logo label "
    "spell spells spelled spelt",
    PLACES: "left right leftmost rightmost lefthand righthand top bottom topmost bottommost upper "
    "lower above below middle centre center central corner corners edge edges side sides where "
    "upright upside tilted rotated horizontal vertical diagonal horizontally vertically diagonally "
    "north south east west clockwise anticlockwise counterclockwise background foreground",
    COLOURS: "colour color colours colors coloured colored colourful colorful multicolour "
    "multicolor multicoloured red orange yellow green cyan blue purple pink brown grey "
    "gray black white teal turquoise magenta violet indigo maroon crimson scarlet navy olive lime "
    "gold golden silver bronze copper beige cream tan khaki mustard lavender lilac mauve peach "
    "salmon coral burgundy rust charcoal fuchsia aqua azure ivory mint rose nude metallic dark "
    "darker light lighter bright brighter pale dim blonde blond brunette ginger night",
    COUNTS: "no not none zero one two three four five six seven eight nine ten eleven twelve dozen "
    "several both many few number count amount total pair pairs couple triple single only more "
    "most fewer fewest less least all every each there any anything contain contains present exist "
    "exists absent without first second third last how",
    SIZES: "small medium large big little tiny huge giant smaller larger bigger smallest largest "
    "biggest size sizes sized",
}
_TABLE: dict[str, int] = {}
for _fact, _words in WORDS.items():
    for _word in _words.split():
        _TABLE[_word] = _TABLE.get(_word, 0) | _fact
_FINDS = re.compile(r"[^\W\d_]+|\d+")


def facts_of(text: str) -> int:
    """The sorts of facts that a text states or asks for, added up: SIDES, PLACES, ..."""
    facts = 0
    for word in _FINDS.findall(text.lower()):
        facts |= COUNTS if word.isdigit() else _TABLE.get(word, 0)
    return facts


@dataclass(frozen=True)
class FactAugment:
    """An `ImageAugment` that is held back picture by picture.

    Attributes:
        augment: what may happen where nothing is said against it.
    """

    augment: ImageAugment

    def __call__(
        self, pixels: Tensor, generator: torch.Generator, facts: np.ndarray | Iterable[int]
    ) -> Tensor:
        """Pictures (P, H, W, 3) uint8 to (P, h, w, 3) uint8.

        Args:
            facts: (P,) what is said of each picture, as `facts_of` tells it.
        """
        kept = np.fromiter(facts, np.int64, len(pixels))
        side = self.augment.size
        made = pixels.new_empty(len(pixels), side or pixels.shape[1], side or pixels.shape[2], 3)
        for sort in np.unique(kept):
            chosen = torch.from_numpy(np.flatnonzero(kept == sort))
            made[chosen] = self.allowed(int(sort))(pixels[chosen], generator)
        return made

    def allowed(self, facts: int) -> ImageAugment:
        """What may happen to a picture of which such facts are told."""
        changed: dict[str, Any] = {}
        if facts & SIDES:
            changed["flip"] = 0.0
        if facts & COLOURS:
            changed |= {"colour": 0.0}
        if facts & (PLACES | COUNTS | SIZES):
            changed |= {"crop": (1.0, 1.0), "scale": (1.0, 1.0), "rotation": 0.0, "erase": 0.0}
        return replace(self.augment, **changed)


def fact_augment(values: Mapping[str, Any], size: int = 0) -> FactAugment | None:
    """As a recipe asks for it; None where it asks for nothing.

    Args:
        values: the fields of `ImageAugment`.
        size: pixels of the sides of what comes out; 0 keeps those of what comes in.
    """
    if not values and not size:
        return None
    return FactAugment(from_mapping(ImageAugment, {**values, "size": size}, "recipe", "augment."))
