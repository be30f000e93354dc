"""A page of several systems that drew the same prompts: images, time, CLIP score, verdicts.

Needs no other file. Verdicts are said in words, and images are kept as PNG: of 32 pixels, a JPEG
would blur what is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bedstone.files import write_text
from bedstone.report.pages import png, render

SYSTEM_PAGE = """
{% block style %}
.scroll { overflow-x: auto; margin: 0 0 1.6rem }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top }
th:first-child, td:first-child { text-align: left }
td small { display: block; color: var(--dim); font-size: .8rem; max-width: 30rem }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
section { background: var(--tile); border: 1px solid var(--line); border-radius: 8px;
          padding: .7rem .9rem .9rem; margin: 0 0 1rem }
.systems { display: grid; gap: .8rem 1.6rem;
           grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)) }
h3 { font-size: .85rem; font-weight: 600; color: var(--dim); margin: 0 0 .3rem }
.row { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(4.6rem, 1fr)) }
.row img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated;
           border-radius: 5px; display: block }
figcaption { font-size: .74rem; line-height: 1.35; color: var(--dim); margin-top: .15rem;
             font-variant-numeric: tabular-nums }
.yes { color: var(--right); font-weight: 600 } .no { color: var(--wrong); font-weight: 600 }
@media (max-width: 30rem) { body { margin: 1rem auto; padding: 0 .7rem } h1 { font-size: 1.4rem }
  th, td { padding-right: .7rem; font-size: .84rem } section { padding: .5rem .6rem .7rem } }
{% endblock %}
{% block content %}
<div class="scroll" role="region" aria-label="Figures" tabindex="0"><table>
<tr>{% for name in head %}<th scope="col">{{ name }}</th>{% endfor %}</tr>
{% for each in systems %}<tr><td>{{ each.name }}<small>{{ each.how }}</small></td>
{% for value in each.figures %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}
</table></div>
{% for prompt in prompts %}<section><h2>{{ prompt }}</h2><div class="systems">
{% set at = loop.index0 %}{% for each in systems %}<div><h3>{{ each.name }}</h3><div class="row">
{% for shot in each.rows[at] %}<figure><img src="{{ shot.source }}" alt="{{ prompt }}">
<figcaption>{% if shot.right is not none %}<span class="{{ 'yes' if shot.right else 'no' }}">
{{- 'right' if shot.right else 'wrong' }}</span> {% endif %}
{%- if shot.score is not none %}{{ "%.2f" | format(shot.score) }}{% endif %}</figcaption></figure>
{% endfor %}</div></div>{% endfor %}</div></section>{% endfor %}
{% endblock %}
"""


@dataclass(frozen=True)
class Shot:
    """An image that was drawn.

    Attributes:
        pixels: (H, W, 3) uint8.
        right: a judge's verdict; None without a judge.
        score: of a CLIP; None without one.
    """

    pixels: np.ndarray
    right: bool | None = None
    score: float | None = None

    @property
    def source(self) -> str:
        """The image as a PNG in a data URI."""
        from PIL import Image

        return png(Image.fromarray(self.pixels))


@dataclass(frozen=True)
class DrawnBy:
    """What one system drew.

    Attributes:
        name: of the system.
        how: it draws, in a sentence.
        figures: as they are shown, one for each heading.
        rows: of each prompt, its images.
    """

    name: str
    how: str
    figures: Sequence[str]
    rows: Sequence[Sequence[Shot]]


def write_system_page(
    path: str | Path,
    title: str,
    lead: str,
    prompts: Sequence[str],
    headings: Sequence[str],
    systems: Sequence[DrawnBy],
) -> Path:
    """Writes the page, whole or not at all.

    Args:
        headings: of the figures.
        systems: each with a row of images for each prompt, and a figure for each heading.
    """
    head = ["system", *headings]
    page = render(SYSTEM_PAGE, title=title, lead=lead, prompts=prompts, head=head, systems=systems)
    write_text(path, page)
    return Path(path)
