import gzip
import json
import subprocess
import sys
import time

import pytest

from bedstone.data import bytes as readers
from bedstone.data.sources import Texts, open_source
from bedstone.errors import BedstoneError


def texts(name, **options):
    return list(open_source(name, **options).documents())


def write_rows(path, rows, column="text"):
    path.write_text("".join(json.dumps({column: row, "n": 1}) + "\n" for row in rows))
    return path


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    content = "first\r\nsecond\n\n  third ü 漢 \n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert texts(tmp_path / "a.txt") == [content]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content.encode()))
    assert texts(tmp_path / "a.txt.gz") == [content]
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert texts(tmp_path / "bom.txt") == [content]


@pytest.mark.parametrize("unit", ["word ü ", "漢字", "a", "\n" * 99 + "b", "word\n"])
def test_a_long_text_comes_in_bounded_pieces_that_join_to_it(tmp_path, unit):
    content = unit * (3_500_000 // len(unit.encode()))
    (tmp_path / "a.txt").write_bytes(content.encode())
    source = open_source(tmp_path / "a.txt")
    pieces = list(source.pieces())
    assert len(pieces) > 1
    assert max(len(piece.text) for piece in pieces) <= 2 * readers.BLOCK
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert list(source.documents()) == [content]


def test_rows_of_every_format(tmp_path):
    rows = ["one", 'two, "quoted"\nwith a line', "three ü"]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.json").write_text(json.dumps([{"text": row} for row in rows]))
    import csv

    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *([1, row] for row in rows)])
    import datasets

    table = datasets.Dataset.from_dict({"text": rows})
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "a.arrow").write_bytes(next((tmp_path / "saved").glob("*.arrow")).read_bytes())
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow"):
        assert texts(tmp_path / name) == rows, name


def test_folders_globs_and_splits(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data / "train-0.jsonl", ["a", "b"])
    write_rows(data / "train-1.jsonl", ["c"])
    write_rows(data / "validation.jsonl", ["v"])
    (data / "README.md").write_text("about")
    assert texts(data) == ["a", "b", "c"]
    assert texts(data, split="validation") == ["v"]
    assert texts(str(data / "train-*.jsonl")) == ["a", "b", "c"]
    with pytest.raises(BedstoneError, match="named after the split 'test'"):
        open_source(data, split="test")
    with pytest.raises(BedstoneError, match="perhaps 'train'"):
        open_source(data, split="trian")
    with pytest.raises(BedstoneError, match="no file matches"):
        open_source(str(data / "*.csv"))


def test_a_source_tree_reads_text_and_counts_the_rest(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "b.py").write_text("print('b')\n")
    (tmp_path / "src" / "a.c").write_text("int main;\n")
    (tmp_path / "settings.json").write_text('{"k": 1}')
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.c").write_bytes(b"x" * 20_000 + b"\xe9")  # past the sample
    (tmp_path / "empty.py").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    source = open_source(tmp_path)
    assert list(source.documents()) == ['{"k": 1}', "int main;\n", "print('b')\n"]
    assert source.describe()["skipped"] == 2
    (tmp_path / "notes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BedstoneError, match=r"notes.txt: is not UTF-8 at byte 3.*iconv"):
        list(open_source(tmp_path).documents())


def test_the_fingerprint_follows_the_content(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ["one"])
    first = open_source(path).fingerprint()
    assert open_source(path).fingerprint() == first
    write_rows(path, ["two"])
    assert open_source(path).fingerprint() != first
    assert Texts(["ab", "c"], "x").fingerprint() != Texts(["a", "bc"], "x").fingerprint()
    assert Texts(["ab"], "x").fingerprint() == Texts(["ab"], "y").fingerprint()


def faulty(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BedstoneError) as caught:
        list(open_source(path).documents())
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    return message


def test_faults_are_reported_in_one_paragraph(tmp_path):
    good = b'{"text": "fine"}\n'
    assert "is empty" in faulty(tmp_path, "a.txt", b"")
    assert "no text at all" in faulty(tmp_path, "blank.txt", b" \n")
    assert "NUL byte at offset 3" in faulty(tmp_path, "b.txt", b"abc\0def")
    assert "byte 1,200,005" in faulty(tmp_path, "c.txt", b"a" * 1_200_005 + b"\xff" + b"b")
    assert "byte 3" in faulty(tmp_path, "cut.txt", b"abc\xe6\xbc")
    assert "UTF-16" in faulty(tmp_path, "d.txt", "text".encode("utf-16"))
    assert "line 2 is not valid JSON" in faulty(tmp_path, "e.jsonl", good + b'{"text": \n')
    assert "line 2 is not valid JSON" in faulty(tmp_path, "f.jsonl", good + b"[" * 200_000)
    assert "'text' in line 1 holds None" in faulty(tmp_path, "g.jsonl", b'{"text": null}')
    assert "holds 3 of type int" in faulty(tmp_path, "h.jsonl", b'{"text": 3}')
    assert "of type str" in faulty(tmp_path, "i.jsonl", b'"text"')
    assert "half a character" in faulty(tmp_path, "half.jsonl", b'{"text": "a\\ud83d"}')
    assert "byte 18" in faulty(tmp_path, "j.jsonl", good + b'"\xff"')
    message = faulty(tmp_path, "k.jsonl", b'{"txt": "x", "id": 1}')
    assert "no column 'text'; perhaps 'txt'" in message
    assert "'txt', 'id'" in message
    assert "no column 'text'" in faulty(tmp_path, "l.csv", b"a,b\n1,2\n")
    assert "has 3 fields" in faulty(tmp_path, "m.csv", b"text,b\n1,2\n1,2,3\n")
    assert "not valid CSV" in faulty(tmp_path, "n.csv", b'text\n"a" b\n')
    assert "array of objects" in faulty(tmp_path, "o.json", b'[{"text": "x"},')
    assert "can't be read as a parquet" in faulty(tmp_path, "p.parquet", b"PAR1 nothing")
    assert "can't be read as a arrow" in faulty(tmp_path, "q.arrow", b"nothing")
    assert "cut short" in faulty(tmp_path, "r.txt.gz", gzip.compress(b"text " * 10_000)[:-20])
    assert "can't be read" in faulty(tmp_path, "s.txt.gz", b"not gzip")


def test_a_parquet_column_that_is_missing_or_no_string(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"body": ["x"], "n": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BedstoneError, match="has the columns 'body', 'n'"):
        open_source(tmp_path / "a.parquet")
    with pytest.raises(BedstoneError, match="of type int"):
        open_source(tmp_path / "a.parquet", text_column="n")
    assert texts(tmp_path / "a.parquet", text_column="body") == ["x"]


def test_missing_data_names_the_nearest(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("x")
    with pytest.raises(BedstoneError, match=r"perhaps 'shakespeare\.txt'"):
        open_source(tmp_path / "shakespere.txt")
    with pytest.raises(BedstoneError, match="perhaps 'python-docs'"):
        open_source("python-doc")
    with pytest.raises(BedstoneError, match="does not exist"):
        open_source(tmp_path / "no" / "such.txt")


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(BedstoneError, match=r"to_parquet.*python-docs"):
        open_source("nobody/nothing-here")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_line_of_100_megabytes_is_refused_in_little_time_and_memory(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b"text\n" if name == "a.csv" else b'{"text": "')
        for _ in range(100):
            file.write(b"a" * 1_000_000)
    script = (
        "import resource, sys\n"
        "from bedstone.data.sources import open_source\n"
        "from bedstone.errors import BedstoneError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    open_source(sys.argv[1])\n"
        "except BedstoneError as error:\n    assert 'MiB' in str(error), error\n"
        "else:\n    raise SystemExit('accepted')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000  # KiB
    assert time.monotonic() - began < 60


def test_broken_rows_of_a_text_are_left_out_and_counted(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", ["one"] * 30)
    with path.open("a") as file:
        file.write('{"text": null}\n{"text": \n{"body": "x"}\n{"text": "last"}\n')
    source = open_source(path, most_broken=0.1)
    assert list(source.documents()) == ["one"] * 30 + ["last"]
    assert len(source.faults.broken) == 3
    assert source.faults.rows == 34
    with pytest.raises(BedstoneError, match="3 of 34 rows are broken, more than"):
        list(open_source(path, most_broken=0.05).documents())
    with pytest.raises(BedstoneError, match="line 31 holds None"):
        list(open_source(path).documents())
    write_rows(path, ["one"] * 5000, column="body")
    with pytest.raises(BedstoneError, match="1,000 of the first 1,000 rows are broken"):
        open_source(path, most_broken=0.05)
