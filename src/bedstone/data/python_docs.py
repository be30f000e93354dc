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
import importlib
import inspect
import re
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
