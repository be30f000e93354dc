"""Pictures with what was said of them, as one page: captions, or questions with their answers.

The page needs no other file: thumbnails stand inside it. It can be read without seeing it: a
picture's first caption is its alternative text, and right and wrong are told in words, not by
colour alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from bedstone.files import write_text
from bedstone.inspect.picture_page import thumbnail

LONGEST = 600  # characters of one text


@dataclass(frozen=True)
class Line:
    """One thing that was said of a picture.

    Attributes:
        said: a caption, or an answer.
        asked: the question that it answers.
        right: whether it is; None where nobody knows, and nothing is marked.
        expected: what would have been right, told where it is wrong.
        score: beside it, as it is to be shown.
    """

    said: str
    asked: str = ""
    right: bool | None = None
    expected: str = ""
    score: str = ""


@dataclass(frozen=True)
class Captioned:
    """A picture and what was said of it.

    Attributes:
        picture: as `data.images.decode` takes it; None where it is gone.
        name: of the picture: its file, its row.
        lines: captions, the best first; or answers.
    """

    picture: Any
    name: str
    lines: Sequence[Line] = ()

    @property
    def alternative(self) -> str:
        """What the picture shows, in words: its first caption, or its name."""
        return next((line.said for line in self.lines if line.said and not line.asked), self.name)


PAGE = """<!doctype html>
<html lang="{{ language }}"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ink: #222; --dim: #5b616a; --paper: #fff; --tile: #f6f7f9; --line: #dfe2e7;
        --right: #14702e; --wrong: #a8271d }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --dim: #a6abb3; --paper: #16181c; --tile: #20232a; --line: #3a3f48;
          --right: #7fd897; --wrong: #ff9d92 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere }
main > p { color: var(--dim); margin: 0 0 1.4rem }
ul { list-style: none; padding: 0; margin: 0 }
.pictures { display: grid; gap: 1rem; align-items: start;
            grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)) }
figure { margin: 0; background: var(--tile); border: 1px solid var(--line); border-radius: 8px;
         overflow: hidden }
figure img { width: 100%; aspect-ratio: 4/3; object-fit: contain; display: block;
             background: var(--paper) }
.gone { aspect-ratio: 4/3; display: grid; place-items: center; color: var(--dim) }
figcaption { padding: .6rem .8rem .8rem; border-top: 1px solid var(--line);
             overflow-wrap: anywhere }
.name { font-size: .78rem; color: var(--dim) }
.said li { margin-top: .35rem } .asked { display: block; font-size: .86rem; color: var(--dim) }
.score { float: right; margin-left: .6rem; font-size: .82rem; color: var(--dim);
         font-variant-numeric: tabular-nums }
.mark { font-weight: 600 } .right { color: var(--right) } .wrong { color: var(--wrong) }
</style>
<main>
<h1>{{ title }}</h1>
{% if lead %}<p>{{ lead }}</p>{% endif %}
<ul class="pictures">
{% for each, source in pictures %}<li><figure>
{% if source %}<img src="{{ source }}" alt="{{ each.alternative | truncate(longest, True, "…") }}"
 loading="lazy">{% else %}<div class="gone">can't be shown</div>{% endif %}
<figcaption><div class="name">{{ each.name }}</div>
<ul class="said">{% for line in each.lines %}<li>
{%- if line.score %}<span class="score">{{ line.score }}</span>{% endif %}
{%- if line.asked %}<span class="asked">{{ line.asked | truncate(longest, True, "…") }}</span>
{%- endif %}
{%- if line.right is true %}<span class="mark right">✓ right:</span>
{% elif line.right is false %}<span class="mark wrong">✗ wrong:</span>
{% endif %}{{ (line.said or "nothing") | truncate(longest, True, "…") }}
{%- if line.right is false and line.expected %}
<span class="asked">expected: {{ line.expected | truncate(longest, True, "…") }}</span>{% endif %}
</li>{% endfor %}</ul></figcaption></figure></li>
{% else %}<li>There are no pictures.</li>{% endfor %}
</ul>
</main>
</html>
"""


def write_captions(
    path: str | Path,
    title: str,
    lead: str,
    pictures: Sequence[Captioned],
    *,
    language: str = "en",
) -> Path:
    """Writes the page, whole or not at all; a picture that can't be read is told so on it.

    Args:
        lead: what the page is, in a sentence.
        language: of the captions, as HTML has it.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(PAGE).render(
        title=title,
        lead=lead,
        pictures=[(each, thumbnail(each.picture)) for each in pictures],
        language=language,
        longest=LONGEST,
    )
    write_text(path, page)
    return Path(path)
