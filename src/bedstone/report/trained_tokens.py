"""Which tokens of rows are trained, which are read alone, and which are control tokens.

It is shown before the first step: a mask that is wrong is seen there, and not in a model that never
stops.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.text import Text

from bedstone.data.text.examples import Examples
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.files import write_text
from bedstone.report.pages import render

STYLES = {"trained": "green", "read": "dim", "control": "magenta"}
LONGEST = 200  # tokens of a row that are printed in a terminal
Part = tuple[str, bool, bool, int]  # text, whether trained, whether control, tokens


@dataclass(frozen=True)
class Row:
    """A row as its tokens.

    Attributes:
        place: where it is from.
        parts: runs of tokens of one kind, and control tokens by themselves.
        tokens: of the row.
        trained: of them, how many are.
    """

    place: str
    parts: Sequence[Part]
    tokens: int
    trained: int


def token_rows(examples: Examples, windows: Iterable[int]) -> list[Row]:
    """Some windows of examples of completions or conversations."""
    found = []
    for window in windows:
        batch = examples.batch(np.array([window]))
        ids = batch.rows.ids[0].tolist()
        learnt = set((batch.read + 1).tolist())
        place = examples.rows.where(batch.origins[0])
        if batch.windows[0]:
            place += f", window {batch.windows[0] + 1}"
        trained = [at in learnt for at in range(len(ids))]
        parts = _parts(examples.tokenizer, ids, trained)
        found.append(Row(place, parts, len(ids), len(learnt)))
    return found


def _parts(tokenizer: Tokenizer, ids: Sequence[int], trained: Sequence[bool]) -> list[Part]:
    added = tokenizer.backend.get_added_tokens_decoder()
    special = {number for number, each in added.items() if each.special}
    found: list[Part] = []
    places = range(len(ids))
    for (on, control, _), run in groupby(
        places, lambda at: (trained[at], ids[at] in special, at if ids[at] in special else -1)
    ):
        own = [ids[at] for at in run]
        text = tokenizer.backend.decode(own, skip_special_tokens=False)
        found.append((text, on, control, len(own)))
    return found


def as_text(row: Row, longest: int = LONGEST) -> Text:
    """A row in colours, for a terminal: trained green, read dim, control tokens magenta."""
    text = Text(f"{row.place}: {row.tokens:,} tokens, ")
    text.append("trained", "green").append(f" {row.trained:,}, ")
    text.append("read", "dim").append(f" {row.tokens - row.trained:,}, ")
    text.append("control", "magenta").append(" tokens (trained ones underlined)\n")
    count = 0
    for part, on, control, tokens in row.parts:
        style = STYLES["control" if control else "trained" if on else "read"]
        text.append(part, style + (" underline" if control and on else ""))
        count += tokens
        if count >= longest and count < row.tokens:
            text.append(f" ... {row.tokens - count:,} tokens more")
            break
    return text


PAGE = """
{% block style %}
pre { background: var(--tile); border: 1px solid var(--line); border-radius: 8px; padding: .8rem;
      white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 1.4rem; font-size: .86rem }
.read { color: var(--dim) }
.trained { color: var(--right); background: color-mix(in srgb, var(--right) 12%, transparent) }
.control { color: var(--mark); font-weight: 600 }
h2 { font-size: 1rem; margin: 0 }
{% endblock %}
{% block content %}
<p><span class="trained">trained</span>, <span class="read">read alone</span>,
<span class="control">control token</span>, <span class="control trained">trained control
token</span></p>
{% for row in rows %}<h2>{{ row.place }}: {{ "{:,}".format(row.trained) }} of
{{ "{:,}".format(row.tokens) }} tokens are trained</h2>
<pre>{% for text, on, control, _ in row.parts %}<span class="{{ 'control ' if control }}
{{- 'trained' if on else ('' if control else 'read') }}">{{ text }}</span>{% endfor %}</pre>
{% endfor %}
{% endblock %}
"""


def write_token_page(path: Path, title: str, rows: Sequence[Row]) -> Path:
    """A page of rows in colours, written whole or not at all."""
    trained, tokens = sum(row.trained for row in rows), sum(row.tokens for row in rows)
    lead = f"{len(rows):,} rows; {trained / max(tokens, 1):.0%} of their tokens are trained"
    write_text(path, render(PAGE, title=title, lead=lead, rows=rows))
    return path
