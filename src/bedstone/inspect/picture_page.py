"""Pictures that were found, as one page that needs no other file: thumbnails stand inside it."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from bedstone.data.images import decode
from bedstone.errors import BedstoneError
from bedstone.files import write_text

SIDE = 360  # pixels of a thumbnail's longer side: twice what is shown, for dense screens
FACTS = 6  # facts below a picture
LONGEST = 120  # characters of a fact


@dataclass(frozen=True)
class Tile:
    """A picture, its name and score, and what is known of it.

    Attributes:
        picture: as `data.images.decode` takes it; None where it is gone.
    """

    picture: Any
    name: str
    score: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ink: #222; --dim: #666; --paper: #fff; --tile: #f6f7f9; --line: #e4e6ea; --mark: #1a5fb4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --dim: #a0a4ab; --paper: #16181c; --tile: #20232a; --line: #32363e;
          --mark: #8ab8f5 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere }
p { color: var(--dim); margin: 0 0 1.4rem }
.example img { max-height: 12rem; max-width: 100%; border-radius: 8px }
ol { list-style: none; padding: 0; margin: 0; display: grid; gap: 1rem; align-items: start;
     grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)) }
li { background: var(--tile); border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
.shot { aspect-ratio: 1; display: grid; place-items: center; color: var(--dim); min-width: 0 }
li img { width: 100%; height: 100%; object-fit: contain; min-height: 0 }
.told { padding: .5rem .7rem .7rem; font-size: .82rem; line-height: 1.4; border-top: 1px solid
        var(--line); overflow-wrap: anywhere }
.score { float: right; color: var(--mark); font-weight: 600; font-variant-numeric: tabular-nums;
         margin-left: .5rem }
dl { margin: .3rem 0 0 } dt { color: var(--dim); float: left; margin-right: .5rem }
dd { margin: 0 }
</style>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% if example %}<p class="example"><img src="{{ example }}" alt="the example"></p>{% endif %}
<ol>
{% for tile, source in tiles %}<li>
<div class="shot">{% if source %}<img src="{{ source }}" alt="{{ tile.name }}" loading="lazy">
{% else %}can't be shown{% endif %}</div>
<div class="told"><span class="score">{{ tile.score }}</span>{{ tile.name }}
{% if tile.facts %}<dl>{% for name, value in tile.facts.items() %}{% if loop.index <= most %}
<dt>{{ name }}</dt><dd>{{ value | truncate(longest, True, "…") }}</dd>{% endif %}{% endfor %}</dl>
{% endif %}</div></li>
{% else %}<p>Nothing was found.</p>{% endfor %}
</ol>
</html>
"""


def write_pictures(
    path: str | Path, title: str, lead: str, tiles: Sequence[Tile], *, example: Any = None
) -> Path:
    """Writes the page, whole or not at all; a picture that can't be read is told so on it.

    Args:
        example: the picture that was searched by.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(PAGE).render(
        title=title,
        lead=lead,
        tiles=[(tile, thumbnail(tile.picture)) for tile in tiles],
        example=thumbnail(example),
        most=FACTS,
        longest=LONGEST,
    )
    write_text(path, page)
    return Path(path)


def thumbnail(picture: Any, side: int = SIDE) -> str:
    """A picture as a small JPEG in a data URI; empty where it can't be read."""
    from PIL import Image

    if picture is None:
        return ""
    try:
        image = Image.fromarray(decode(picture, size=side))
    except BedstoneError:
        return ""
    image.thumbnail((side, side))
    held = io.BytesIO()
    image.save(held, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
