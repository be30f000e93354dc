"""Places of objects in a scene, and spatial relations between them, stated by a margin."""

from collections.abc import Callable

from bedstone.data.scenes.world import COVERED, SIZES, Scene, Sign, Thing, hidden_share

_MARGIN = 0.1  # of the picture's side, before a thing is said to be left of another
_SEEN = 0.03  # and before one grants that it is
_BORDER = 0.03  # from the lines that cut the picture in thirds

RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
OPPOSITE = dict(zip(RELATIONS, (RELATIONS[n ^ 1] for n in range(6)), strict=True))
OPPOSITE |= {"larger than": "smaller than", "smaller than": "larger than"}

PLACES = {  # name -> as said
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}
_NAMES = tuple(PLACES)

Item = Thing | Sign


def place(item: Item, border: float = _BORDER) -> str | None:
    """Which of nine parts of the image the middle is in; None within `border` of another."""
    for line in (1 / 3, 2 / 3):
        if min(abs(item.x - line), abs(item.y - line)) < border:
            return None
    return _NAMES[3 * int(item.y * 3) + int(item.x * 3)]


def _beyond(margin: float) -> dict[str, Callable[[Item, Item], bool]]:
    return {
        "left of": lambda one, other: one.x < other.x - margin,
        "right of": lambda one, other: one.x > other.x + margin,
        "above": lambda one, other: one.y < other.y - margin,
        "below": lambda one, other: one.y > other.y + margin,
        "in front of": _covers,
        "behind": lambda one, other: _covers(other, one),
        "larger than": lambda one, other: _radius(one) > _radius(other) > 0,
        "smaller than": lambda one, other: 0 < _radius(one) < _radius(other),
    }


def _covers(one: Item, other: Item) -> bool:
    if isinstance(one, Sign) or isinstance(other, Sign):
        return False
    return hidden_share(other, one) >= COVERED


def _radius(item: Item) -> float:
    return SIZES[item.size] if isinstance(item, Thing) else 0.0


_CLEAR, _GRANTED = _beyond(_MARGIN), _beyond(_SEEN)


def clearly(relation: str, one: Item, other: Item) -> bool:
    """Whether a relation holds by the margin that a caption needs."""
    return _CLEAR[relation](one, other)


def holds(relation: str, one: Item, other: Item) -> bool:
    """Whether a relation holds, if narrowly."""
    return _GRANTED[relation](one, other)


def relations(one: Item, other: Item) -> list[str]:
    """The relations of `one` to `other` that clearly hold."""
    return [relation for relation in RELATIONS if clearly(relation, one, other)]


def matching(
    scene: Scene,
    shape: str = "",
    colour: str = "",
    size: str = "",
    texture: str = "",
) -> list[Thing]:
    """The objects with these properties; an empty word allows any."""
    return [
        thing
        for thing in scene.objects
        if shape in ("", thing.shape)
        and colour in ("", thing.colour)
        and size in ("", thing.size)
        and texture in ("", thing.texture)
    ]
