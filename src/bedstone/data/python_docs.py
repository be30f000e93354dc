"""Built-in data: the documentation and source of the Python that runs.

Present on every machine, about 12 MB of prose and code, the same at every reading on one Python.
Three kinds of documents:

- `topic`: a chapter of the language reference, as `help("if")` shows it
- `docstring`: a module's documentation: names, signatures and docstrings, without the code
- `source`: a module's source

Left out: test suites, generated tables, installed packages, what is not UTF-8.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import io
import random
import re
import sysconfig
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bedstone.data.bytes import Piece
from bedstone.errors import BedstoneError

KINDS = ("docstring", "source", "topic")

_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "ensurepip",  # wheels
    "encodings",  # generated tables
    "pydoc_data",  # the topics
    "__pycache__",
    "__phello__",
}
# Written in C, so their documentation is in no source file; these exist on every platform.
_IN_C = ("array", "builtins", "cmath", "gc", "itertools", "math", "time")


class Document(NamedTuple):
    """`name` is the module's or the topic's; a module's docstrings and source share it."""

    kind: str
    name: str
    text: str


@functools.cache  # three seconds of parsing; a run reads them several times
def python_documents() -> tuple[Document, ...]:
    """Every document, by name and then kind, so that prose and code are mixed.

    Raises:
        BedstoneError: this Python came without its standard library's source.
    """
    documents = [*_topics(), *_modules()]
    if not documents:
        raise BedstoneError(
            "data python-docs: this Python has neither source nor topics of its standard library "
            f"(looked in {_library()}). Name a folder of your own text instead."
        )
    return tuple(sorted(documents, key=lambda document: (document.name, document.kind)))


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _topics() -> Iterator[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # left out of some slim installations
        return
    for name, text in topics.items():
        yield Document("topic", name, text)


def _modules() -> Iterator[Document]:
    root = _library()
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        skipped = _SKIPPED_FOLDERS.intersection(parts) or parts[0].startswith("config-")
        if skipped or path.name.startswith("_sysconfigdata"):  # differs between machines
            continue
        try:
            text = path.read_bytes().decode()
            tree = ast.parse(text)
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
            continue  # Latin-1 sources and templates that are no Python
        name = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        if text.strip():
            yield Document("source", name, text)
        described = _described(name, tree)
        if described:
            yield Document("docstring", name, described)
    for name in _IN_C:
        yield Document("docstring", name, _described_object(importlib.import_module(name), name))


def _described(name: str, tree: ast.Module) -> str:
    """Everything in a module that has a docstring, in the order of the source."""
    parts = [_entry(name, ast.get_docstring(tree))]
    for node in tree.body:
        parts += _described_node(name, node)
    text = "\n".join(part for part in parts if part)
    return text if len(text) > 200 else ""  # a line of prose is no document


def _described_node(prefix: str, node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        signature = f"{prefix}.{node.name}({ast.unparse(node.args)})"
        if node.returns:
            signature += f" -> {ast.unparse(node.returns)}"
        yield _entry(signature, ast.get_docstring(node))
    elif isinstance(node, ast.ClassDef):
        name = f"{prefix}.{node.name}"
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        yield _entry(
            f"class {name}({bases})" if bases else f"class {name}", ast.get_docstring(node)
        )
        for inner in node.body:
            yield from _described_node(name, inner)


def _described_object(thing: object, name: str) -> str:
    parts = [_entry(name, inspect.getdoc(thing))]
    for key, value in sorted(vars(thing).items()):
        # what a running program has added there, such as `exit`, differs between programs
        native = isinstance(value, type | types.BuiltinFunctionType)
        if key.startswith("_") or not native or not inspect.getdoc(value):
            continue
        parts.append(_entry(f"{name}.{key}{_signature(value)}", inspect.getdoc(value)))
        if isinstance(value, type) and not issubclass(value, BaseException):
            for inner, method in sorted(vars(value).items()):
                if not inner.startswith("_") and callable(method):
                    doc = inspect.getdoc(method)
                    parts.append(_entry(f"{name}.{key}.{inner}{_signature(method)}", doc))
    return "\n".join(part for part in parts if part)


def _signature(value: object) -> str:
    # `inspect.signature` can show addresses of default values, which change from run to run.
    text = getattr(value, "__text_signature__", None) or ""
    return re.sub(r"\$\w+(, /)?(, )?", "", text) if "0x" not in text else ""


def _entry(head: str, doc: str | None) -> str:
    if not doc:
        return ""
    body = "\n".join(f"    {line}" if line else "" for line in doc.strip().splitlines())
    return f"{head}\n\n{body}\n"


# Built-in instructions: what functions of the standard library do, by their own docstrings.

DESCRIBED = """
    ast base64 bisect calendar cmd codecs contextlib copy csv datetime difflib dis email.utils
    fnmatch fractions functools getpass glob gzip heapq html http.client inspect ipaddress json
    locale logging lzma mimetypes numbers os pathlib pickle pkgutil platform plistlib posixpath
    pprint random re shelve shlex shutil socket sqlite3 statistics string subprocess tarfile
    tempfile textwrap threading timeit tokenize traceback types typing unittest.mock urllib.parse
    urllib.request uuid warnings wave weakref xml.dom.minidom zipfile
"""
LONGEST_ANSWER = 160  # characters


def python_instructions() -> list[dict[str, str]]:
    """Rows of `instruction`, `output` and `module`, the same on every run of one Python.

    The instruction names a public function with its arguments, the output is the first sentence of
    its docstring.
    """
    rows = []
    for name in DESCRIBED.split():
        path = _library() / f"{name.replace('.', '/')}.py"
        path = path if path.is_file() else path.with_suffix("") / "__init__.py"
        if not path.is_file():
            continue
        for node in ast.parse(path.read_bytes()).body:
            doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if doc is None or node.name.startswith("_"):  # type: ignore[attr-defined]
                continue
            arguments = ast.unparse(node.args)  # type: ignore[attr-defined]
            answer = " ".join(doc.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")
            if 20 <= len(answer) <= LONGEST_ANSWER and len(arguments) <= LONGEST_ANSWER:
                said = f"What does {name}.{node.name}({arguments}) do?"  # type: ignore[attr-defined]
                rows.append({"instruction": said, "output": f"{answer}.", "module": name})
    return rows


# Built-in labelled data: passages of Python's documentation and source, by kind.
#
# Four kinds, close enough to be confused: `reference` (the language reference), `docstring` (what a
# module says of itself), `comment` (what its authors say to each other), `code`. Passages of one
# module stay on one side of a split.

PASSAGE_KINDS = ("reference", "docstring", "comment", "code")
SHORTEST, LONGEST = 8, 40  # words
OF_ONE = 25  # passages of a kind from one module, at most: no module is to speak for its kind
_OF = {"topic": ("reference",), "docstring": ("docstring",), "source": ("comment", "code")}


def python_passages(most: int = 1500, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `text`, `label` and `module`, at most `most` of a kind, in an order of `seed`."""
    draw = random.Random(seed)
    documents = list(python_documents())
    draw.shuffle(documents)
    found: dict[str, dict[str, str]] = {kind: {} for kind in PASSAGE_KINDS}  # text to its module
    for document in documents:
        wanted = _OF[document.kind]
        if all(len(found[kind]) >= most for kind in wanted):
            continue
        taken = dict.fromkeys(PASSAGE_KINDS, 0)
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
    """Passages to train on and passages held out, by a hash of the module's name."""

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


def python_pieces() -> Iterator[Piece]:
    """The documentation as pieces of text, the built-in source `python-docs`."""
    # A module's docstrings are also in its source: its name keeps both on one side of a split.
    return (Piece(each.text, key=f"python {each.name}") for each in python_documents())
