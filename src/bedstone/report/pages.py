"""HTML pages that need no other file: images found, images with captions or answers, run reports.

All share one template, readable on a phone and in dark mode. Thumbnails stand inside the page. It
can be read without seeing it: an image's first caption is its alternative text, and right and wrong
are said in words, not by colour alone.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from bedstone.data.images.decode import decode
from bedstone.errors import BedstoneError
from bedstone.files import write_text

SIDE = 360  # pixels of a thumbnail's longer side: twice what is shown, for dense screens
FACTS = 6  # facts below a picture
LONGEST_FACT = 120  # characters of a fact


BASE = """<!doctype html>
<html lang="{{ language }}"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ink: #222; --dim: #5b616a; --paper: #fff; --tile: #f6f7f9; --line: #dfe2e7;
        --mark: #1a5fb4; --right: #14702e; --wrong: #a8271d }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --dim: #a6abb3; --paper: #16181c; --tile: #20232a; --line: #3a3f48;
          --mark: #8ab8f5; --right: #7fd897; --wrong: #ff9d92 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: {{ width }}rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere }
.lead { color: var(--dim); margin: 0 0 1.4rem }
figure { margin: 0 } ul, ol { list-style: none; padding: 0; margin: 0 }
{% block style %}{% endblock %}
</style>
<main>
<h1>{{ title }}</h1>
{% if lead %}<p class="lead">{{ lead }}</p>{% endif %}
{% block content %}{% endblock %}
</main>
</html>
"""


def render(template: str, **values: Any) -> str:
    """A page from a template that fills the blocks `style` and `content` of `BASE`."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"base": BASE}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string('{% extends "base" %}' + template).render(
        {"language": "en", "width": 76, **values}
    )


@dataclass(frozen=True)
class Tile:
    """A picture, its name and score, and what is known of it.

    Attributes:
        picture: as `data.images.decode.decode` takes it; None where it is gone.
    """

    picture: Any
    name: str
    score: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


IMAGE_PAGE = """
{% block style %}
.example img { max-height: 12rem; max-width: 100%; border-radius: 8px }
ol { display: grid; gap: 1rem; align-items: start;
     grid-template-columns: repeat(auto-fill, minmax(min(11.5rem, 50% - .5rem), 1fr)) }
li { background: var(--tile); border: 1px solid var(--line); border-radius: 8px; overflow: hidden }
.shot { aspect-ratio: 1; display: grid; place-items: center; color: var(--dim); min-width: 0 }
.shot a { display: contents }
li img { width: 100%; height: 100%; object-fit: contain; min-height: 0 }
.about { padding: .5rem .7rem .7rem; font-size: .82rem; line-height: 1.4;
         border-top: 1px solid var(--line); overflow-wrap: anywhere }
.score { float: right; color: var(--mark); font-weight: 600; font-variant-numeric: tabular-nums;
         margin-left: .5rem }
dl { margin: .3rem 0 0 } dt { color: var(--dim); float: left; margin-right: .5rem }
dd { margin: 0 }
@media (max-width: 30rem) {  /* a phone: two columns, and four pictures a screen */
  body { margin: 1rem auto; padding: 0 .7rem } h1 { font-size: 1.4rem }
  .lead { margin-bottom: .8rem } .example { margin: 0 0 .8rem } .example img { max-height: 7rem }
  ol { gap: .6rem } .about { padding: .35rem .5rem .5rem; font-size: .76rem } }
{% endblock %}
{% block content %}
{% if example %}<p class="example"><img src="{{ example }}" alt="the example"></p>{% endif %}
<ol>
{% for tile, source, original in tiles %}<li>
<div class="shot">{% if source %}{% if original %}<a href="{{ original }}">{% endif -%}
<img src="{{ source }}" alt="{{ tile.name }}" loading="lazy">
{%- if original %}</a>{% endif %}{% else %}can't be shown{% endif %}</div>
<div class="about"><span class="score">{{ tile.score }}</span>{{ tile.name }}
{% if tile.facts %}<dl>{% for name, value in tile.facts.items() %}{% if loop.index <= most %}
<dt>{{ name }}</dt><dd>{{ value | truncate(longest, True, "…") }}</dd>{% endif %}{% endfor %}</dl>
{% endif %}</div></li>
{% else %}<p>Nothing was found.</p>{% endfor %}
</ol>
{% endblock %}
"""


def write_image_page(
    path: str | Path, title: str, lead: str, tiles: Sequence[Tile], *, example: Any = None
) -> Path:
    """Writes the page, whole or not at all; the page says which image could not be read.

    A picture that is a file is a link to it, relative to the page's folder.

    Args:
        example: the picture that was searched by.
    """
    home = Path(path).resolve().parent
    page = render(
        IMAGE_PAGE,
        title=title,
        lead=lead,
        tiles=[(tile, thumbnail(tile.picture), link(tile.picture, home)) for tile in tiles],
        example=thumbnail(example),
        most=FACTS,
        longest=LONGEST_FACT,
    )
    write_text(path, page)
    return Path(path)


def link(picture: Any, home: Path) -> str:
    """The address of a picture's file as seen from a folder; empty of one that is no file."""
    if not isinstance(picture, str | Path):
        return ""
    file = Path(picture).resolve()
    try:
        return quote(Path(os.path.relpath(file, home)).as_posix())
    except ValueError:  # on another drive
        return file.as_uri()


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


def png(image: Any) -> str:
    """Pillow's image as a PNG in a data URI, for what a JPEG would blur."""
    held = io.BytesIO()
    image.save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


LONGEST_TEXT = 600  # characters of one text


@dataclass(frozen=True)
class Line:
    """A caption of an image, or the answer to a question.

    Attributes:
        text: the caption or answer.
        question: the question that it answers.
        right: whether it is; None where nobody knows, and nothing is marked.
        expected: what would have been right, shown where it is wrong.
        score: beside it, as it is to be shown.
    """

    text: str
    question: str = ""
    right: bool | None = None
    expected: str = ""
    score: str = ""


@dataclass(frozen=True)
class Captioned:
    """An image and its captions or answers.

    Attributes:
        picture: as `data.images.decode.decode` takes it; None where it is gone.
        name: of the picture: its file, its row.
        lines: captions, the best first; or answers.
    """

    picture: Any
    name: str
    lines: Sequence[Line] = ()

    @property
    def alternative(self) -> str:
        """What the picture shows, in words: its first caption, or its name."""
        return next(
            (line.text for line in self.lines if line.text and not line.question), self.name
        )


CAPTION_PAGE = """
{% block style %}
.images { display: grid; gap: 1rem; align-items: start;
          grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)) }
figure { background: var(--tile); border: 1px solid var(--line); border-radius: 8px;
         overflow: hidden }
figure img { width: 100%; aspect-ratio: 4/3; object-fit: contain; display: block;
             background: var(--paper) }
.gone { aspect-ratio: 4/3; display: grid; place-items: center; color: var(--dim) }
figcaption { padding: .6rem .8rem .8rem; border-top: 1px solid var(--line);
             overflow-wrap: anywhere }
.name { font-size: .78rem; color: var(--dim) }
.texts li { margin-top: .35rem }
.ask { display: block; font-size: .86rem; color: var(--dim) }
.score { float: right; margin-left: .6rem; font-size: .82rem; color: var(--dim);
         font-variant-numeric: tabular-nums }
.mark { font-weight: 600 } .right { color: var(--right) } .wrong { color: var(--wrong) }
{% endblock %}
{% block content %}
<ul class="images">
{% for each, source in images %}<li><figure>
{% if source %}<img src="{{ source }}" alt="{{ each.alternative | truncate(longest, True, "…") }}"
 loading="lazy">{% else %}<div class="gone">can't be shown</div>{% endif %}
<figcaption><div class="name">{{ each.name }}</div>
<ul class="texts">{% for line in each.lines %}<li>
{%- if line.score %}<span class="score">{{ line.score }}</span>{% endif %}
{%- if line.question %}<span class="ask">{{ line.question | truncate(longest, True, "…") }}</span>
{%- endif %}
{%- if line.right is true %}<span class="mark right">✓ right:</span>
{% elif line.right is false %}<span class="mark wrong">✗ wrong:</span>
{% endif %}{{ (line.text or "nothing") | truncate(longest, True, "…") }}
{%- if line.right is false and line.expected %}
<span class="ask">expected: {{ line.expected | truncate(longest, True, "…") }}</span>{% endif %}
</li>{% endfor %}</ul></figcaption></figure></li>
{% else %}<li>There are no pictures.</li>{% endfor %}
</ul>
{% endblock %}
"""


def write_caption_page(
    path: str | Path,
    title: str,
    lead: str,
    pictures: Sequence[Captioned],
    *,
    language: str = "en",
) -> Path:
    """Writes the page, whole or not at all; the page says which image could not be read.

    Args:
        lead: what the page is, in a sentence.
        language: of the captions, as HTML has it.
    """
    page = render(
        CAPTION_PAGE,
        title=title,
        lead=lead,
        images=[(each, thumbnail(each.picture)) for each in pictures],
        language=language,
        longest=LONGEST_TEXT,
    )
    write_text(path, page)
    return Path(path)


# A run as one page: figures, curve, samples, what to try next. Pictures stand inside it.


@dataclass
class Sample:
    """One prompt and what was printed after it, by whom."""

    prompt: str
    outputs: dict[str, str]


@dataclass
class Section:
    """One part of a report.

    Attributes:
        title: of the part.
        words: what was done, a paragraph.
        figures: measured numbers, as they are to be shown.
        pictures: PNG files and their captions.
        samples: prompts with outputs side by side.
        tables: rows of cells under their headings, by caption; the first row is the head.
        commands: what to try next, each with a remark.
        warning: what is wrong, said before all else.
        glance: figures for the top of the page, each with what it is.
    """

    title: str
    words: str = ""
    figures: dict[str, str] = field(default_factory=dict)
    pictures: dict[Path, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    warning: str = ""
    glance: dict[str, str] = field(default_factory=dict)


REPORT_PAGE = """
{% block style %}
h2 { margin-top: 2.6rem }
table { border-collapse: collapse; margin: 1rem 0 }
td { padding: .25rem 1.6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
     overflow-wrap: anywhere }
.wide td { overflow-wrap: break-word; min-width: 4rem }
td + td { font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th { text-align: left; font-weight: 600; padding: .25rem 1.6rem .25rem 0; color: var(--dim) }
.warning { border-left: 4px solid var(--wrong); padding: .5rem .9rem; background: var(--tile) }
nav { display: flex; flex-wrap: wrap; gap: .4rem .6rem; margin: 0 0 1.6rem }
nav a { background: var(--tile); border: 1px solid var(--line); border-radius: 99px;
        padding: .15rem .8rem; text-decoration: none; font-size: .9rem } a { color: var(--mark) }
.glance { display: grid; gap: .8rem; margin: 1.4rem 0;
          grid-template-columns: repeat(auto-fit, minmax(min(11rem, 100%), 1fr)) }
.glance div { background: var(--tile); border: 1px solid var(--line); border-radius: 12px;
              padding: .9rem 1.1rem; color: var(--dim); font-size: .88rem; line-height: 1.35 }
.glance b { display: block; color: var(--ink); font-size: 1.9rem; line-height: 1.2 }
{% if sections | length > 1 %}
section { background: var(--tile); border: 1px solid var(--line); border-radius: 14px;
          padding: .2rem 1.4rem 1.2rem; margin: 1.4rem 0 }
section h2 { margin-top: 1.1rem } section pre { background: var(--paper) }
{% endif %}
figure { margin: 1.2rem 0 } figure img { border-radius: 8px } img { max-width: 100% }
figure { overflow-x: auto }
@media (max-width: 40rem) { main figure img { max-width: none; width: 38rem }
  section { padding: .2rem .8rem 1rem } .glance b { font-size: 1.5rem } }
figcaption { color: var(--dim); font-size: .9rem }
pre { background: var(--tile); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto;
      font-size: .82rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere;
      margin: .3rem 0 }
.sample { display: grid; gap: 1rem; margin: 1.2rem 0;
          grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr)) }
.who { color: var(--dim); font-size: .85rem } b { color: var(--mark); font-weight: 600 }
{% endblock %}
{% block content %}
{% if sections | length > 1 %}<nav>{% for section in sections %}
<a href="#part-{{ loop.index }}">{{ section.title }}</a>{% endfor %}</nav>{% endif %}
{% set glances = sections | map(attribute="glance") | select | list %}
{% if glances %}<div class="glance">
{% for glance in glances %}{% for figure, what in glance.items() %}
<div><b>{{ figure }}</b>{{ what }}</div>
{% endfor %}{% endfor %}</div>{% endif %}
{% for section in sections %}<section>
<h2 id="part-{{ loop.index }}">{{ section.title }}</h2>
{% if section.warning %}<p class="warning">{{ section.warning }}</p>{% endif %}
{% if section.words %}<p>{{ section.words }}</p>{% endif %}
{% if section.figures %}<table>
{% for name, value in section.figures.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>{% endif %}
{% for caption, rows in section.tables.items() %}
<p class="who">{{ caption }}</p><div class="wide"><table>
{% for row in rows %}<tr>{% for cell in row %}
<{{ "th" if rows[0] is sameas row else "td" }}>{{ cell }}
</{{ "th" if rows[0] is sameas row else "td" }}>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
{% for path, caption in section.pictures.items() %}
<figure><img src="data:image/png;base64,{{ inline(path) }}" alt="{{ caption }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% for sample in section.samples %}<div class="sample">
{% for who, text in sample.outputs.items() %}
<div><div class="who">{{ who }}</div><pre><b>{{ sample.prompt }}</b>{{ text }}</pre></div>
{% endfor %}</div>{% endfor %}
{% if section.commands %}<p>Try next:</p>
{% for command, remark in section.commands.items() %}
<p class="who">{{ remark }}</p><pre>{{ command }}</pre>
{% endfor %}{% endif %}</section>
{% endfor %}
{% endblock %}
"""


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes the page, whole or not at all; it needs no other file."""

    def inline(picture: Path) -> str:
        return base64.b64encode(picture.read_bytes()).decode()

    page = render(REPORT_PAGE, title=title, lead=lead, sections=sections, inline=inline, width=62)
    write_text(path, page)
    return Path(path)
