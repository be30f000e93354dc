"""A page of sources, outputs and references, the most suspicious first.

For translations and summaries: each row says why it stands where it does (`metrics.suspicion`), and
marks the words and numbers in question. Rows are filtered by a reason without any script: the page
needs no other file, is readable on a phone, and says in words what colours say.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.files import write_text
from bedstone.metrics.suspicion import Signs, signs
from bedstone.report.pages import render

MOST = 500  # rows of a page: the most suspicious
LONGEST = 1200  # characters of one text
Piece = tuple[str, bool]  # a part of a text, and whether it is marked

OUTPUT_PAGE = """
{% block style %}
.filter { position: absolute; opacity: 0; width: 1px; height: 1px }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0 0 1rem }
nav label { border: 1px solid var(--line); border-radius: 99px; padding: .3rem .8rem;
            font-size: .9rem; background: var(--tile); cursor: pointer }
nav span { color: var(--dim); font-variant-numeric: tabular-nums }
{% for name in reasons %}
#f{{ loop.index }}:checked ~ nav label[for=f{{ loop.index }}],
{% endfor %}#f0:checked ~ nav label[for=f0] { border-color: var(--mark); color: var(--mark);
  font-weight: 600 }
{% for name in reasons %}
#f{{ loop.index }}:focus-visible ~ nav label[for=f{{ loop.index }}],
{% endfor %}#f0:focus-visible ~ nav label[for=f0] { outline: 2px solid var(--mark) }
{% for name in reasons %}
#f{{ loop.index }}:checked ~ ol li:not(.r{{ loop.index }}) { display: none }
{% endfor %}
ol li { background: var(--tile); border: 1px solid var(--line); border-radius: 8px;
        padding: .6rem .9rem .8rem; margin: 0 0 .8rem }
.head { display: flex; flex-wrap: wrap; gap: .3rem .6rem; align-items: baseline;
        font-size: .84rem; color: var(--dim) }
.score { font-variant-numeric: tabular-nums; font-weight: 600; color: var(--ink) }
.why { border-radius: 4px; padding: 0 .4rem; border: 1px solid var(--wrong); color: var(--wrong) }
.texts { display: grid; gap: .2rem 1.4rem; margin-top: .4rem;
         grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)) }
.texts h2 { font-size: .78rem; font-weight: 600; color: var(--dim); margin: .2rem 0 0 }
.texts p { margin: 0 0 .3rem; white-space: pre-line; overflow-wrap: anywhere }
.nothing { color: var(--wrong) }
mark { background: none; color: var(--wrong); text-decoration: underline dotted;
       text-underline-offset: .2em }
@media (max-width: 30rem) { body { margin: 1rem auto; padding: 0 .7rem } h1 { font-size: 1.4rem }
  ol li { padding: .5rem .6rem } nav label { padding: .45rem .8rem } }
{% endblock %}
{% block content %}
<input class="filter" type="radio" name="filter" id="f0" checked>
{% for name in reasons %}<input class="filter" type="radio" name="filter" id="f{{ loop.index }}">
{% endfor %}<nav aria-label="Show rows by reason">
<label for="f0">all <span>{{ rows | length }}</span></label>
{% for name, count in reasons.items() %}
<label for="f{{ loop.index }}">{{ name }} <span>{{ count }}</span></label>{% endfor %}
</nav>
<ol>
{% for row in rows %}<li class="{{ row.classes }}">
<div class="head"><span class="score">{{ "%.2f" | format(row.signs.score) }}</span>
<span>{{ row.place }}</span>
{% for name in row.signs.reasons %}<span class="why">{{ name }}</span>{% endfor %}
<span>length × {{ "%.2f" | format(row.signs.ratio) }}</span>
<span>{{ "%.0f" | format(100 * row.signs.copied_share) }} % of words in the source</span>
{% if row.signs.coverage is not none %}<span>{{ "%.0f" | format(100 * row.signs.coverage) }} % of
 the source read</span>{% endif %}</div>
<div class="texts">
{% for name, language, texts in row.texts %}<div><h2>{{ name }}</h2>
{% for pieces in texts %}<p lang="{{ language }}">
{%- for text, marked in pieces %}{% if marked %}<mark>{{ text }}</mark>{% else %}{{ text }}
{%- endif %}{% else %}<span class="nothing">nothing</span>{% endfor %}</p>{% endfor %}</div>
{% endfor %}</div></li>
{% else %}<li>There are no outputs.</li>{% endfor %}
</ol>
{% endblock %}
"""


@dataclass(frozen=True)
class _Row:
    """A row as the page shows it.

    Attributes:
        place: which row it is.
        classes: of its element, by which it is filtered.
        texts: each with its heading and language.
    """

    place: str
    classes: str
    signs: Signs
    texts: Sequence[tuple[str, str, Sequence[Sequence[Piece]]]]


def write_output_page(
    path: str | Path,
    title: str,
    sources: Sequence[str],
    outputs: Sequence[str],
    references: Sequence[str | Sequence[str]] | None = None,
    *,
    lead: str = "",
    translated: bool = True,
    coverage: Sequence[float] | None = None,
    places: Sequence[str] = (),
    languages: tuple[str, str] = ("en", "en"),
    most: int = MOST,
) -> Path:
    """Writes the page, whole or not at all; of very many rows the most suspicious.

    Args:
        references: of each row a text, or a list of texts; None leaves them out.
        lead: what the page is, in a sentence; a count of its rows follows.
        translated: whether outputs are translations; False for summaries.
        coverage: of each row, the share of the source's tokens that cross-attention read.
        places: names of the rows; their numbers where it is empty.
        languages: of sources and of outputs, as HTML has them.

    Raises:
        BedstoneError: lengths differ, or a coverage isn't a share.
    """
    known = None
    if references is not None:
        known = [[own] if isinstance(own, str) else list(own) for own in references]
    found = signs(sources, outputs, known, translated=translated, coverage=coverage)
    if places and len(places) != len(sources):
        raise BedstoneError(
            f"places: {len(places):,} were given for {len(sources):,} sources; expected one for "
            "each, in the same order."
        )
    order = sorted(range(len(found)), key=lambda row: -found[row].score)[:most]
    counts = Counter(name for row in order for name in found[row].reasons)
    reasons = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    numbers = {name: number for number, name in enumerate(reasons, 1)}

    def shown(row: int) -> _Row:
        own = found[row]
        texts: list[Any] = [
            ("source", languages[0], [_pieces(sources[row], own.missing_numbers)]),
            ("output", languages[1], [_pieces(outputs[row], own.untranslated, own.added_numbers)]),
        ]
        if known is not None:
            right = [_pieces(text) for text in known[row]]
            texts.append((f"reference{'s' * (len(right) > 1)}", languages[1], right))
        classes = " ".join(f"r{numbers[name]}" for name in own.reasons)
        return _Row(places[row] if places else f"row {row}", classes, own, texts)

    suspect = sum(bool(each.reasons) for each in found)
    count = f"{suspect:,} of {len(found):,} outputs have a sign of an error"
    cut = "" if len(order) == len(found) else f"; the {len(order):,} most suspicious are shown"
    page = render(
        OUTPUT_PAGE,
        title=title,
        lead=f"{lead} {count}{cut}.".strip(),
        rows=[shown(row) for row in order],
        reasons=reasons,
    )
    write_text(path, page)
    return Path(path)


def _pieces(text: str, *marked: Iterable[str]) -> list[Piece]:
    """The parts of a text, of which words and numbers may be marked; none of an empty one."""
    text = text.strip()
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    wanted = {each for group in marked for each in group}
    parts = re.split(r"(\w+(?:[.,'’-]\w+)*)", text) if wanted else [text]
    return [(part, _is_marked(part, wanted)) for part in parts if part]


def _is_marked(part: str, wanted: set[str]) -> bool:
    return part.lower() in wanted or (part[:1].isdigit() and re.sub(r"\D", "", part) in wanted)
