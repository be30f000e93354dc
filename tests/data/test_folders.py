"""Folders of images and texts: metadata at any depth, classes, formats that are not read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bedstone.data.fields import PAIRS
from bedstone.data.open import open_dataset
from bedstone.data.sources import open_source
from bedstone.errors import BedstoneError


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def metadata(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions(folder, **options):
    return sorted(text for row in open_dataset(folder, PAIRS, **options) for text in row.captions)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("column", ["file_name", "image_file_name", "photo_file_name"])
def test_metadata_describes_images_wherever_it_lies(tmp_path, kind, column):
    file = f"metadata.{kind}"
    for home in ("own", "train"):
        image(tmp_path / "one" / home / "0.png")
        metadata(tmp_path / "one" / home / file, [{column: "0.png", "text": f"a cat at {home}"}])
    assert captions(tmp_path / "one" / "own") == ["a cat at own"]
    assert captions(tmp_path / "one") == ["a cat at train"]
    for home in ("a", "b/c"):
        image(tmp_path / "two" / home / "0.png")
        metadata(tmp_path / "two" / home / file, [{column: "0.png", "text": f"a dog at {home}"}])
    assert captions(tmp_path / "two") == ["a dog at a", "a dog at b/c"]
    rows = [{column: f"{split}/0.png", "text": f"a cow of {split}"} for split in ("train", "test")]
    image(tmp_path / "three" / "train" / "0.png")
    image(tmp_path / "three" / "test" / "0.png")
    metadata(tmp_path / "three" / file, rows)
    assert captions(tmp_path / "three") == ["a cow of train"]
    assert captions(tmp_path / "three", split="test") == ["a cow of test"]


def test_the_nearest_metadata_describes_an_image_and_the_rest_is_named(tmp_path):
    for name in ("a/0.png", "1.png", "2.png"):
        image(tmp_path / name)
    rows = [{"file_name": "a/0.png", "text": "far"}, {"file_name": "1.png", "text": "here"}]
    metadata(tmp_path / "metadata.jsonl", rows)
    metadata(tmp_path / "a" / "metadata.csv", [{"file_name": "0.png", "text": "near"}])
    assert captions(tmp_path) == ["here", "near"]
    (note,) = open_dataset(tmp_path, PAIRS).reading.notes
    assert "1 pictures are left out" in note
    assert "2.png" in note


def test_a_row_of_metadata_without_its_file_is_broken(tmp_path):
    image(tmp_path / "0.png")
    long = [
        {"file_name": name, "text": "a"} for name in ("x" * 5000, "a\0b", "a\ud800", "../0.png")
    ]
    metadata(tmp_path / "metadata.jsonl", [{"file_name": "0.png", "text": "a"}, *long])
    with pytest.raises(BedstoneError, match="4 of 5 rows are broken") as caught:
        open_dataset(tmp_path, PAIRS)
    assert len(str(caught.value)) < 2000
    assert len(open_dataset(tmp_path, PAIRS, most_broken=0.9)) == 1


def test_a_small_share_of_images_may_be_of_a_format_that_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("bedstone.data.records.EARLY", 3)
    for number in range(60):
        (tmp_path / f"{number}.{'heic' if number < 3 else 'png'}").touch()
    rows = open_dataset(tmp_path, ("image",), most_broken=0.05)
    assert (len(rows), rows.faults.rows, len(rows.faults.broken)) == (57, 60, 3)


def test_nested_folders_have_the_class_of_the_first(tmp_path):
    for name in ("cat/2019/0.png", "cat/2020/0.png", "dog/2019/0.png", "dog/1.png"):
        image(tmp_path / "set" / name)
    for folder in (tmp_path / "set", tmp_path):
        rows = open_dataset(folder, PAIRS)
        assert sorted(row.label for row in rows) == ["cat", "cat", "dog", "dog"]
        (doubt,) = rows.reading.doubts
        assert "cat/2019" in doubt
    flat = tmp_path / "flat"
    image(flat / "2019" / "0.png")
    image(flat / "2020" / "0.png")
    rows = open_dataset(flat, PAIRS)
    assert sorted(row.label for row in rows) == ["2019", "2020"]
    assert rows.reading.doubts == []


def test_texts_in_folders_have_them_as_labels(tmp_path):
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            (folder / "1.txt").write_text(f"{label} of {split}")
    expected = [{"text": f"{label} of train", "label": label} for label in ("neg", "pos")]
    assert open_dataset(tmp_path).rows == expected
    assert open_dataset(tmp_path / "train").rows == expected
    assert [row["text"] for row in open_dataset(tmp_path, split="test")] == [
        "neg of test",
        "pos of test",
    ]
    assert list(open_source(tmp_path / "train").documents()) == ["neg of train", "pos of train"]
    with pytest.raises(BedstoneError, match="named after the split 'validation'"):
        open_dataset(tmp_path / "train", split="validation")
    (tmp_path / "train" / "0.txt").write_text("of no class")
    assert all("label" not in row for row in open_dataset(tmp_path / "train").rows)


def test_images_in_formats_that_are_not_read_are_counted_and_named(tmp_path):
    for number in range(9):
        image(tmp_path / "cat" / f"{number}.png")
        image(tmp_path / "dog" / f"{number}.png")
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "cat" / "0.cr2").write_bytes(b"raw of 0.png")
    with pytest.raises(BedstoneError, match=r"1 of 19 rows .*IMG_1\.HEIC.*isn't read"):
        open_dataset(tmp_path, PAIRS)
    rows = open_dataset(tmp_path, PAIRS, most_broken=0.1)
    assert len(rows) == 18
    assert "IMG_1.HEIC" in rows.describe()
    for path in (tmp_path / "cat").glob("*.png"):
        path.unlink()
    for path in (tmp_path / "dog").glob("*.png"):
        path.unlink()
    with pytest.raises(BedstoneError, match=r"IMG_1\.HEIC.*convert it to JPEG"):
        open_dataset(tmp_path, PAIRS)
