"""A run as one page: figures, curve, samples, what to try next. Pictures stand inside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from bedstone.files import write_text


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
        commands: what to try next, each with a remark.
    """

    title: str
    words: str = ""
    figures: dict[str, str] = field(default_factory=dict)
    pictures: dict[Path, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.9rem; margin-bottom: .2rem } h2 { margin-top: 2.6rem }
table { border-collapse: collapse; margin: 1rem 0 }
td { padding: .25rem 1.6rem .25rem 0; border-bottom: 1px solid #eee; vertical-align: top }
td + td { font-variant-numeric: tabular-nums }
figure { margin: 1rem 0 } img { max-width: 100% } figcaption { color: #666; font-size: .9rem }
pre { background: #f6f7f9; padding: .8rem 1rem; border-radius: 6px; overflow-x: auto;
      font-size: .82rem; line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere;
      margin: .3rem 0 }
.sample { display: grid; gap: 1rem; margin: 1.2rem 0;
          grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)) }
.who { color: #666; font-size: .85rem } b { color: #1a5fb4; font-weight: 600 }
</style>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
<p>{{ section.words }}</p>
{% if section.figures %}<table>
{% for name, value in section.figures.items() %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>{% endif %}
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
{% endfor %}{% endif %}
{% endfor %}
</html>
"""


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes the page, whole or not at all; it needs no other file."""

    def inline(picture: Path) -> str:
        return base64.b64encode(picture.read_bytes()).decode()

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(PAGE).render(
        title=title, lead=lead, sections=sections, inline=inline
    )
    write_text(path, page)
    return Path(path)
