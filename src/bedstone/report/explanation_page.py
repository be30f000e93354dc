"""A page that shows what an answer rests on, and how far that was proved; it needs no other file.

Words and cells that raise the number are blue, those that lower it orange; the figures stand in a
table beside, so that nothing is said by colour alone. Whatever failed a test is marked in red,
before it is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from bedstone.files import write_text
from bedstone.report.pages import png, render

RAISES, LOWERS = (26, 95, 180), (198, 90, 0)  # colours, red green blue
SIDE = 300  # pixels of a picture's longer side
WIDTH, HEIGHT = 320, 150  # of a chart
MARGIN = 34  # left of it, for numbers


@dataclass(frozen=True)
class Highlighted:
    """A text whose pieces have scores.

    Attributes:
        heading: what it is.
        pieces: its text in order, each with its score; None where it has none.
    """

    heading: str
    pieces: Sequence[tuple[str, float | None]]


@dataclass(frozen=True)
class Overlay:
    """A picture under scores.

    Attributes:
        title: what is scored.
        source: a PNG in a data URI.
        failures: what it failed.
        note: of what the colours show.
    """

    title: str
    source: str
    failures: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """F as parts go or come: in the order of the scores, and by chance.

    Attributes:
        title: of the chart.
        shares: (K,) of parts, 0 to 1.
        line: (K,) F in the order of the scores.
        chance: (R, K) F in orders by chance.
        note: what it says.
    """

    title: str
    shares: np.ndarray
    line: np.ndarray
    chance: np.ndarray
    note: str = ""

    def _points(self, values: np.ndarray) -> list[str]:
        low = float(min(self.line.min(), self.chance.min()))
        high = float(max(self.line.max(), self.chance.max()))
        x = MARGIN + self.shares * (WIDTH - MARGIN - 6)
        y = 6 + (1 - (values - low) / ((high - low) or 1.0)) * (HEIGHT - 26)
        return [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]

    @property
    def own(self) -> str:
        """The line as SVG has it."""
        return " ".join(self._points(self.line))

    @property
    def mean(self) -> str:
        """The mean by chance."""
        return " ".join(self._points(self.chance.mean(0)))

    @property
    def band(self) -> str:
        """Where nine of ten orders by chance lie, as a polygon."""
        low, high = (self._points(np.quantile(self.chance, q, axis=0)) for q in (0.05, 0.95))
        return " ".join([*low, *high[::-1]])

    @property
    def ends(self) -> tuple[str, str]:
        """The numbers at the top and at the bottom."""
        both = np.concatenate((self.line, self.chance.ravel()))
        return f"{both.max():.3g}", f"{both.min():.3g}"


@dataclass(frozen=True)
class Grid:
    """A table of short cells, each as dark as its strength.

    Attributes:
        title, note: of it.
        head: headings of the columns.
        rows: each its heading and cells, (text, strength from 0 to 1).
    """

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]


@dataclass(frozen=True)
class Panel:
    """One explanation, or what else is looked at.

    Attributes:
        title: of it.
        facts: what is explained, and how, by name.
        failures: what it failed; marked red.
        proved: whether it was tested, so that passing is worth saying.
        texts, overlays, charts, grids: what it shows.
        tables: rows of cells by caption, the first row the head.
        note: in small print.
    """

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()
    proved: bool = False
    texts: Sequence[Highlighted] = ()
    overlays: Sequence[Overlay] = ()
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    note: str = ""


PAGE = """
{% block style %}
section { background: var(--tile); border: 1px solid var(--line); border-radius: 12px;
          padding: .9rem 1.2rem 1.1rem; margin: 0 0 1.2rem }
h2 { font-size: 1.25rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
h3 { font-size: .85rem; font-weight: 600; color: var(--dim); margin: 1.1rem 0 .3rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .2rem 0 .6rem;
     font-size: .92rem }
dt { color: var(--dim) } dd { margin: 0; overflow-wrap: anywhere }
.failed { border: 2px solid var(--wrong); border-radius: 8px; color: var(--wrong); font-weight: 600;
          padding: .45rem .8rem; margin: .5rem 0; background: var(--paper) }
.failed ul { font-weight: 400; font-size: .92rem; list-style: disc; padding-left: 1.2rem }
.held { color: var(--right); font-weight: 600; margin: .4rem 0 }
.text { background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
        padding: .6rem .8rem; line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere }
.text span { border-radius: 4px; padding: .12em .1em; box-decoration-break: clone;
             -webkit-box-decoration-break: clone }
.pictures, .charts { display: grid; gap: .9rem; align-items: start;
    grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 46%), 1fr)) }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)) }
figure img { width: 100%; border-radius: 6px; display: block; image-rendering: pixelated }
figure.bad img { outline: 3px solid var(--wrong) }
figcaption { font-size: .82rem; color: var(--dim); margin-top: .25rem; overflow-wrap: anywhere }
figcaption b { color: var(--ink) } figcaption .why { color: var(--wrong); display: block }
svg { width: 100%; height: auto; display: block } svg text { font-size: 10px; fill: var(--dim) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top }
th { color: var(--dim); font-weight: 600 }
.grid td { padding: .2rem .45rem; border: 1px solid var(--line); white-space: pre }
.grid th { padding: .2rem .45rem; white-space: pre }
td.fails { color: var(--wrong) } .note { color: var(--dim); font-size: .84rem; margin: .5rem 0 0 }
.key span { border-radius: 4px; padding: 0 .4em; margin-right: .5em }
@media (max-width: 30rem) { body { margin: 1rem auto; padding: 0 .7rem } h1 { font-size: 1.4rem }
  section { padding: .7rem .75rem .8rem } dl { grid-template-columns: 1fr; gap: 0 }
  dd { margin: 0 0 .3rem } }
{% endblock %}
{% block content %}
<p class="key note"><span style="background: rgba({{ raises }}, .45)">raises</span>
<span style="background: rgba({{ lowers }}, .45)">lowers</span> the number that is explained</p>
{% for panel in panels %}<section>
<h2>{{ panel.title }}</h2>
{% if panel.failures %}<div class="failed" role="alert">✗ Not to be trusted:
<ul>{% for why in panel.failures %}<li>{{ why }}</li>{% endfor %}</ul></div>
{% elif panel.proved %}<p class="held">✓ passed all tests</p>{% endif %}
{% if panel.facts %}<dl>{% for name, value in panel.facts.items() %}<dt>{{ name }}</dt>
<dd>{{ value }}</dd>{% endfor %}</dl>{% endif %}
{% for one in panel.texts %}<h3>{{ one.heading }}</h3>
<div class="text">{% for piece, score in one.pieces %}{% if score is none %}{{ piece }}
{%- else %}<span style="{{ shade(score, panel) }}" title="{{ '%+.3f' | format(score) }}">
{{- piece }}</span>{% endif %}{% endfor %}</div>{% endfor %}
{% if panel.overlays %}<h3>Pictures</h3><div class="pictures">{% for each in panel.overlays %}
<figure{% if each.failures %} class="bad"{% endif %}><img src="{{ each.source }}"
 alt="{{ each.title }}"><figcaption><b>{{ each.title }}</b>
{% if each.note %}{{ each.note }}{% endif %}
{% for why in each.failures %}<span class="why">✗ {{ why }}</span>{% endfor %}
</figcaption></figure>{% endfor %}</div>{% endif %}
{% if panel.charts %}<h3>What the order of the scores is worth</h3><div class="charts">
{% for chart in panel.charts %}<figure><svg viewBox="0 0 {{ wide }} {{ high }}" role="img"
 aria-label="{{ chart.title }}. {{ chart.note }}">
<polygon points="{{ chart.band }}" fill="var(--dim)" opacity=".22"/>
<polyline points="{{ chart.mean }}" fill="none" stroke="var(--dim)" stroke-dasharray="4 3"/>
<polyline points="{{ chart.own }}" fill="none" stroke="var(--mark)" stroke-width="2"/>
<text x="0" y="14">{{ chart.ends[0] }}</text><text x="0" y="{{ high - 20 }}">{{ chart.ends[1] }}
</text><text x="{{ margin }}" y="{{ high - 4 }}">0 %</text>
<text x="{{ wide - 34 }}" y="{{ high - 4 }}">100 %</text></svg>
<figcaption><b>{{ chart.title }}</b> {{ chart.note }}</figcaption></figure>{% endfor %}</div>
<p class="note">Line: in the order of the scores. Grey: nine of ten orders by chance, and their
mean.</p>{% endif %}
{% for caption, rows in panel.tables.items() %}<h3>{{ caption }}</h3><div class="wide"><table>
{% for row in rows %}<tr>{% for cell in row %}{% if loop.first or rows[0] is sameas row %}
<th scope="{{ 'col' if rows[0] is sameas row else 'row' }}">{{ cell }}</th>{% else %}
<td{% if cell.startswith('✗') %} class="fails"{% endif %}>{{ cell }}</td>{% endif %}{% endfor %}
</tr>{% endfor %}</table></div>{% endfor %}
{% for grid in panel.grids %}<h3>{{ grid.title }}</h3><div class="wide"><table class="grid">
<tr><th></th>{% for name in grid.head %}<th scope="col">{{ name }}</th>{% endfor %}</tr>
{% for name, cells in grid.rows %}<tr><th scope="row">{{ name }}</th>{% for text, strength in cells
%}<td style="background: rgba({{ raises }}, {{ '%.2f' | format(0.6 * strength) }})">{{ text }}</td>
{% endfor %}</tr>{% endfor %}</table></div><p class="note">{{ grid.note }}</p>{% endfor %}
{% if panel.note %}<p class="note">{{ panel.note }}</p>{% endif %}
</section>{% endfor %}
{% endblock %}
"""


def write_explanation_page(
    path: str | Path, title: str, lead: str, panels: Sequence[Panel]
) -> Path:
    """Writes the page, whole or not at all."""

    def shade(value: float, panel: Panel) -> str:
        most = max(
            (abs(score) for one in panel.texts for _, score in one.pieces if score is not None),
            default=0.0,
        )
        colour = ", ".join(map(str, RAISES if value > 0 else LOWERS))
        return f"background: rgba({colour}, {0.6 * abs(value) / (most or 1.0):.2f})"

    page = render(
        PAGE,
        title=title,
        lead=lead,
        panels=panels,
        shade=shade,
        raises=", ".join(map(str, RAISES)),
        lowers=", ".join(map(str, LOWERS)),
        width=62,
        wide=WIDTH,
        high=HEIGHT,
        margin=MARGIN,
    )
    write_text(path, page)
    return Path(path)


def overlay(picture: np.ndarray, scores: np.ndarray, side: int = SIDE) -> str:
    """A picture (h, w, 3) in grey under scores (h, w) in colour, as a PNG in a data URI."""
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L"), np.float32)
    strength = np.abs(scores) / (np.abs(scores).max() or 1.0)
    share = (0.85 * strength)[..., None]
    colour = np.where((scores > 0)[..., None], np.array(RAISES), np.array(LOWERS))
    light = 70 + 0.7 * grey[..., None]
    mixed = (1 - share) * light + share * (0.75 * colour + 0.25 * light)
    return enlarged(np.clip(mixed, 0, 255).astype(np.uint8), side)


def enlarged(picture: np.ndarray, side: int = SIDE) -> str:
    """A picture as a PNG in a data URI; a small one is enlarged by whole pixels."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    longest = max(image.size)
    if longest > side:
        image.thumbnail((side, side))
    elif side // longest > 1:
        factor = side // longest
        sides = (image.width * factor, image.height * factor)
        image = image.resize(sides, Image.Resampling.NEAREST)
    return png(image)
