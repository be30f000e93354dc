"""Bytes and text of files: encodings are named, packed files have a limit, lines have numbers."""

import gzip
import subprocess

import pytest

from bedstone.data import bytes as reading
from bedstone.data.bytes import check_text, lines, read_text
from bedstone.data.open import open_dataset
from bedstone.errors import BedstoneError

CONTENT = {
    "a.txt": "text here\n",
    "a.csv": "text,label\na,x\n",
    "a.tsv": "text\tlabel\na\tx\n",
    "a.jsonl": '{"text": "a", "label": "x"}\n',
    "a.json": '[{"text": "a", "label": "x"}]',
}


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_no_part_of_any_format(tmp_path, name, packed):
    path = tmp_path / (name + ".gz" * packed)
    data = b"\xef\xbb\xbf" + CONTENT[name].encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    rows = open_dataset(path).rows
    assert rows[0]["text"] == ("text here\n" if name == "a.txt" else "a")


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named_and_the_command_mends_them(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes(CONTENT[name].encode(encoding))
    with pytest.raises(BedstoneError, match=f"is {encoding[:6].upper()}") as caught:
        open_dataset(path)
    command = str(caught.value).partition("Convert it with: ")[2]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert open_dataset(next(tmp_path.glob("converted.*"))).rows  # read as what it is


def test_packed_files_are_named_by_their_kind(tmp_path):
    path = tmp_path / "a.csv"
    for data, kind in ((b"PK\x03\x04", "zip"), (b"\xfd7zXZ\0", "xz"), (gzip.compress(b"a"), ".gz")):
        path.write_bytes(data + b"more")
        with pytest.raises(BedstoneError, match=f"is not text but .*{kind}"):
            open_dataset(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.csv.gz", "a.jsonl.gz", "a.json.gz"])
def test_a_packed_file_has_a_limit_while_it_unpacks(tmp_path, name, monkeypatch):
    monkeypatch.setattr(reading, "UNPACKED", 1 << 20)
    start = {"a.csv.gz": b"text\n", "a.json.gz": b"["}.get(name, b"")
    (tmp_path / name).write_bytes(gzip.compress(start + b" \n" * (2 << 20)))
    with pytest.raises(BedstoneError, match=r"unpacks to over [12] MiB .* 250 times"):
        open_dataset(tmp_path / name)


def test_honest_repetition_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "UNPACKED", 1 << 10)
    text = "".join(f"line {number} of the log\n" for number in range(5000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert "".join(piece.text for piece in read_text(tmp_path / "a.txt.gz")) == text


def test_lines_have_their_numbers_and_faults_their_places(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\r\n\nlast")
    assert list(lines(path)) == [(1, "one\n"), (2, "two\r\n"), (3, "\n"), (4, "last")]
    path.write_bytes(b"one\n\0\n")
    with pytest.raises(BedstoneError, match="NUL byte in line 2"):
        list(lines(path))
    for text in (3, "", " ", "a\ud800"):
        with pytest.raises(BedstoneError, match="here: "):
            check_text(text, "here")
