"""Built-in labelled data: passages of Python's documentation and source, by kind.

Four kinds, close enough to be confused: `reference` (the language reference), `docstring` (what a
module says of itself), `comment` (what its authors say to each other), `code`. Passages of one
module stay on one side of a split.
"""

import hashlib
import io
import random
import re
import tokenize
from collections.abc import Iterator
from typing import Any

from bedstone.data.python_docs import python_documents

KINDS = ("reference", "docstring", "comment", "code")
SHORTEST, LONGEST = 8, 40  # words
OF_ONE = 25  # passages of a kind from one module, at most: no module is to speak for its kind
_OF = {"topic": ("reference",), "docstring": ("docstring",), "source": ("comment", "code")}


def python_passages(most: int = 1500, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `text`, `label` and `module`, at most `most` of a kind, in an order of `seed`."""
    draw = random.Random(seed)
    documents = list(python_documents())
    draw.shuffle(documents)
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}  # text to its module
    for document in documents:
        wanted = _OF[document.kind]
        if all(len(found[kind]) >= most for kind in wanted):
            continue
        taken = dict.fromkeys(KINDS, 0)
        for kind, text in _passages(document.kind, document.text):
            if len(found[kind]) < most and taken[kind] < OF_ONE and text not in found[kind]:
                found[kind][text] = document.name
                taken[kind] += 1
    rows = [
        {"text": text, "label": kind, "module": module}
        for kind, texts in found.items()
        for text, module in texts.items()
    ]
    draw.shuffle(rows)
    return rows


def split_passages(
    rows: list[dict[str, Any]], share: float = 0.15
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """To learn from, and to measure on: by a hash of the module's name."""

    def held(row: dict[str, Any]) -> bool:
        digest = hashlib.blake2b(row["module"].encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") < share * 2**32

    return [row for row in rows if not held(row)], [row for row in rows if held(row)]


def _passages(kind: str, text: str) -> Iterator[tuple[str, str]]:
    if kind == "source":
        yield from _of_source(text)
        return
    label = "reference" if kind == "topic" else "docstring"
    for paragraph in re.split(r"\n\s*\n", text):
        yield from ((label, part) for part in _cut(paragraph))


def _of_source(text: str) -> Iterator[tuple[str, str]]:
    """Runs of comment lines, and runs of lines of code without comments or strings of prose."""
    comments: dict[int, str] = {}
    prose: set[int] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
                comments[token.start[0]] = token.string.lstrip("#! ")
            elif token.type == tokenize.STRING and token.end[0] > token.start[0]:
                prose |= set(range(token.start[0], token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError):
        return
    run: list[str] = []
    before = ""
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if number in comments:
            now, word = "comment", comments[number]
        elif line.strip() and number not in prose and '"""' not in line:
            now, word = "code", line.strip()
        else:
            now, word = "", ""
        if now != before and run:
            yield from ((before, part) for part in _cut("\n".join(run)))
            run = []
        before = now
        if now:
            run.append(word)


def _cut(text: str) -> Iterator[str]:
    """A passage of a fair length, from the start of the text, if it has one."""
    words = text.split()
    letters = sum(character.isalpha() for character in text)
    if len(words) >= SHORTEST and letters > 0.5 * len(text):
        yield " ".join(words[:LONGEST])
