import subprocess
import sys

from bedstone.data.python_docs import KINDS, python_documents
from bedstone.data.sources import open_source


def test_documents_are_named_sorted_and_of_three_kinds():
    documents = python_documents()
    names = [(document.name, document.kind) for document in documents]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert {document.kind for document in documents} == set(KINDS)
    found = {(document.kind, document.name): document.text for document in documents}
    assert "def dedent(text):" in found["source", "textwrap"]
    assert (
        "textwrap.dedent(text)\n\n    Remove any common leading whitespace"
        in (found["docstring", "textwrap"])
    )
    assert "math.sqrt(x, /)" in found["docstring", "math"]
    assert "if" in found["topic", "if"]
    assert sum(len(document.text) for document in documents) > 5_000_000


def test_tests_and_tables_are_left_out():
    parts = {part for document in python_documents() for part in document.name.split(".")}
    assert not parts & {"test", "tests", "idle_test", "encodings", "site-packages"}


def test_another_process_reads_the_same():
    script = (
        "from bedstone.data.sources import open_source as o; print(o('python-docs').fingerprint())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert other.stdout.strip() == open_source("python-docs").fingerprint(), other.stderr


def test_a_module_keeps_its_docstrings_and_source_on_one_side():
    keys = {}
    for document, piece in zip(
        python_documents(), open_source("python-docs").pieces(), strict=True
    ):
        keys.setdefault(document.name, set()).add(piece.key)
    assert all(len(found) == 1 for found in keys.values())
