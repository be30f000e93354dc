"""Data of stores elsewhere: what fails is fetched again, what changed is noticed."""

import hashlib
import io
import json
import tarfile
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from bedstone.data import shards
from bedstone.data.fields import any_of
from bedstone.data.open import open_dataset
from bedstone.data.records import Faults, Reading
from bedstone.data.shards import Shards
from bedstone.data.sources import open_source, read_records
from bedstone.data.tar import tar_rows
from bedstone.errors import BedstoneError

JSONL = (".jsonl",)


class Flaky(MemoryFileSystem):
    """A store in memory that is slow, and of which every so many requests fail."""

    protocol = "flaky"
    fails, delay, calls, fetched = 0, 0.0, 0, 0
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("flaky://").strip("/")

    def cat_file(self, path, start=None, end=None, **options):
        type(self).calls += 1
        time.sleep(self.delay)
        if self.fails and self.calls % self.fails == 0:
            raise ConnectionError("the line broke")
        found = super().cat_file(path, start=start, end=end, **options)
        type(self).fetched += len(found)
        return found


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Five shards of ten rows; and an empty cache."""
    monkeypatch.setenv("BEDSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "WAIT", 0.001)
    monkeypatch.setattr(shards, "BLOCK", 100)
    Flaky.fails, Flaky.delay, Flaky.calls, Flaky.fetched = 0, 0.0, 0, 0
    found = Flaky()
    for number in range(5):
        rows = [{"text": f"row {number * 10 + each} of shard {number}"} for each in range(10)]
        text = "\n".join(map(json.dumps, rows))
        found.pipe_file(f"/bucket/part-{number}.jsonl", text.encode())
    yield found
    MemoryFileSystem.store.clear()


def kept(folder):
    return sorted(path for path in (folder / "cache" / "shards").glob("*/*"))


def test_rows_come_in_order_from_a_store_that_fails(store):
    Flaky.fails = 4
    rows = open_dataset("flaky://bucket/part-*.jsonl")
    assert [row["text"].split()[1] for row in rows] == [str(number) for number in range(50)]
    size = sum(store.size(f"/bucket/part-{number}.jsonl") for number in range(5))
    assert Flaky.fetched == size  # blocks that came aren't fetched again


def test_documents_and_a_second_reading_fetch_nothing(store):
    source = open_source("flaky://bucket/part-*.jsonl")
    assert len(list(source.documents())) == 50
    fetched = Flaky.fetched
    assert len(list(open_source("flaky://bucket/part-*.jsonl").documents())) == 50
    assert Flaky.fetched == fetched
    assert source.describe()["files"] == 5
    one = open_source("flaky://bucket/part-3.jsonl")
    assert next(iter(one.documents())) == "row 30 of shard 3"


def test_the_split_is_chosen_by_name(store):
    store.pipe_file("/bucket/train-0.jsonl", b'{"text": "a"}')
    store.pipe_file("/bucket/test-0.jsonl", b'{"text": "b"}')
    assert [row["text"] for row in open_dataset("flaky://bucket", split="test")] == ["b"]
    assert [row["text"] for row in open_dataset("flaky://bucket")] == ["a"]


def test_a_changed_store_has_another_fingerprint(store):
    name = "flaky://bucket/part-*.jsonl"
    before = open_source(name).fingerprint()
    assert open_source(name).fingerprint() == before
    store.pipe_file("/bucket/part-2.jsonl", b'{"text": "other"}')
    assert open_source(name).fingerprint() != before
    assert [row["text"] for row in open_dataset(name)][20] == "other"  # not the one that was kept


def test_the_cache_keeps_to_its_bound(store, tmp_path, monkeypatch):
    size = store.size("/bucket/part-0.jsonl")
    monkeypatch.setenv("BEDSTONE_SHARDS_GB", str(3.5 * size / 1e9))
    most = 0
    for _ in Shards("flaky://bucket/part-*.jsonl", JSONL).files():
        held = sum(path.stat().st_size for path in kept(tmp_path))
        most = max(most, held)
    assert len(kept(tmp_path)) <= 3
    assert most <= 4 * size
    monkeypatch.setenv("BEDSTONE_SHARDS_GB", "many")
    store.pipe_file("/bucket/part-9.jsonl", b'{"text": "new"}')
    with pytest.raises(BedstoneError, match="BEDSTONE_SHARDS_GB: 'many'"):
        list(Shards("flaky://bucket/part-9.jsonl", JSONL).files())


def test_the_next_shard_is_fetched_while_one_is_read(store):
    Flaky.delay = 0.02
    found = Shards("flaky://bucket/part-*.jsonl", JSONL).files()
    next(found)
    deadline = time.monotonic() + 10
    calls = Flaky.calls
    while Flaky.calls == calls and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Flaky.calls > calls
    found.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("shards")]


def test_checksums_beside_the_shards_are_kept_to(store):
    data = store.cat_file("/bucket/part-0.jsonl")
    right = hashlib.sha256(data).hexdigest()
    lines = f"{right}  part-0.jsonl\n{'0' * 64}  part-1.jsonl\n"
    store.pipe_file("/bucket/SHA256SUMS", lines.encode())
    files = Shards("flaky://bucket/part-*.jsonl", JSONL).files()
    assert next(files).read_bytes() == data
    with pytest.raises(BedstoneError, match=r"part-1.jsonl: its sha256 is .* SHA256SUMS"):
        next(files)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("flaky://bucket/none-*.jsonl", "no file is there"),
        ("flaky://nowhere", "no file is there"),
        ("nosuch://bucket/a.jsonl", "nosuch"),
    ],
)
def test_addresses_that_lead_nowhere(store, address, wanted):
    with pytest.raises(BedstoneError, match=wanted):
        open_source(address)


def test_a_store_that_never_answers_is_given_up(store):
    Flaky.fails = 1
    with pytest.raises(BedstoneError, match=r"part-0.jsonl: can't be fetched: the line broke, 6 "):
        open_source("flaky://bucket/part-*.jsonl")


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


def picture() -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(held, "png")
    return held.getvalue()


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_is_rows_of_files_of_one_name(tmp_path, ending):
    files = {
        "a/01.png": picture(),
        "a/01.txt": b"a grey square\n",
        "a/01.json": b'{"price": 3}',
        "a/02.png": picture(),
        "a/02.txt": "größer".encode(),
        "b/02.cls": b"7",
    }
    path = archive(tmp_path / f"set.{ending}", files)
    rows = list(tar_rows(path))
    assert [place for place, _ in rows] == ["row a/01", "row a/02", "row b/02"]
    assert rows[0][1] == {"image": picture(), "text": "a grey square", "price": 3}
    assert rows[1][1]["text"] == "größer"
    assert rows[2][1] == {"label": "7"}


def test_images_of_a_tar_in_a_store_are_samples(store, tmp_path):
    files = {"01.png": picture(), "01.txt": b"one", "02.png": picture(), "02.txt": b"two"}
    path = archive(tmp_path / "set.tar", files)
    store.pipe_file("/images/set-0.tar", path.read_bytes())
    rows = open_dataset("flaky://images/*.tar", ("image", any_of("captions")))
    assert [row.captions for row in rows] == [("one",), ("two",)]


def test_messages_name_a_shard_by_its_address(store, tmp_path):
    whole = archive(tmp_path / "set.tar", {"1.txt": b"a", "1.jpg": b"x"}).read_bytes()
    store.pipe_file("/images/set-0.tar", whole[:700])
    with pytest.raises(BedstoneError) as error:
        open_dataset("flaky://images/*.tar", ("image", any_of("captions")))
    assert str(error.value).startswith("flaky://images/set-0.tar: can't be read as a tar")
    assert str(tmp_path) not in str(error.value)
    store.pipe_file("/rows/a.jsonl", b'{"text": "a"}\n{"text": \n')
    with pytest.raises(BedstoneError) as error:
        open_dataset("flaky://rows/a.jsonl")
    assert str(error.value).startswith("flaky://rows/a.jsonl: line 2")


def test_broken_rows_of_a_tar_are_left_out_and_named(tmp_path):
    files = {"01.json": b"[1]", "02.json": b'{"text": "good"}', "03.json": b"{"}
    path = archive(tmp_path / "set.tar", files)
    reading = Reading(Faults("set", 1.0))
    assert [row.values for row in read_records(path, reading=reading)] == [{"text": "good"}]
    assert len(reading.faults.broken) == 2
    assert "01: 01.json: holds no object" in reading.faults.broken[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: 2 * 1024])  # after two files: no end stands behind them
    with pytest.raises(BedstoneError, match="it is cut short"):
        list(tar_rows(path))
    path.write_bytes(whole[:700])
    with pytest.raises(BedstoneError, match="can't be read as a tar"):
        list(tar_rows(path))


def test_what_lies_in_a_tar_writes_no_file(tmp_path):
    path = archive(tmp_path / "set.tar", {"../evil.txt": b"x", "/abs.txt": b"y"})
    before = set(tmp_path.parent.iterdir())
    assert [row["text"] for _, row in tar_rows(path)] == ["x", "y"]
    assert set(tmp_path.parent.iterdir()) == before
