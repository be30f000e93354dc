"""Rows of pictures with texts: every form they come in, and what is said of broken ones."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bedstone.data.dataset import Dataset
from bedstone.data.fields import PAIRS, Sample, SampleReader
from bedstone.data.images.pixels import ImageCache, decoded
from bedstone.data.open import open_dataset
from bedstone.data.scenes.datasets import CLASSES, heldout_scene_pairs, scene_pairs
from bedstone.errors import BedstoneError


def png(seed: int = 0, side: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, rows: list[dict], features: dict | None = None) -> Path:  # type: ignore[type-arg]
    table = pa.Table.from_pylist(rows)
    if features:
        stored = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": stored})
    pq.write_table(table, path)
    return path


def folder(path: Path, rows: list[dict], name: str = "metadata.jsonl") -> Path:  # type: ignore[type-arg]
    path.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        (path / f"{number}.png").write_bytes(png(number))
    (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fit(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((4, 4)))


def test_parquet_with_structs_or_bytes(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(i), "path": None}, "text": f"number {i} "} for i in range(3)]
    found = open_dataset(parquet(tmp_path / "a.parquet", rows), PAIRS)
    assert [pair.captions for pair in found] == [(f"number {i}",) for i in range(3)]
    assert found[1].place.endswith("a.parquet: row 2")
    raw = [{"img": png(i), "caption": f"number {i}"} for i in range(3)]
    again = open_dataset(parquet(tmp_path / "b.parquet", raw), PAIRS)
    assert np.array_equal(decoded(again[2]), decoded(found[2]))
    assert again.fingerprint() == found.fingerprint()
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink:
        table = pa.Table.from_pylist(raw)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert open_dataset(tmp_path / "c.arrow", PAIRS).fingerprint() == found.fingerprint()


@pytest.mark.parametrize("key", ["text", "caption", "captions"])
def test_folder_with_metadata(tmp_path: Path, key: str) -> None:
    value = ["one", "", "two"] if key == "captions" else "one"
    path = folder(tmp_path / "train", [{"file_name": f"{i}.png", key: value} for i in range(4)])
    found = open_dataset(tmp_path, PAIRS)
    assert len(found) == 4
    assert found[0].captions == (("one", "two") if key == "captions" else ("one",))
    assert np.array_equal(decoded(found[3]), np.asarray(Image.open(path / "3.png")))
    with pytest.raises(BedstoneError, match="has no folder of pictures for the split 'test'"):
        open_dataset(tmp_path, PAIRS, split="test")


def test_lines_with_paths(tmp_path: Path) -> None:
    folder(tmp_path / "pictures", [])
    lines = [{"image": f"pictures/{i}.png", "text": f"n {i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "rows.csv").write_text(
        "image_path,title\n" + "".join(f"pictures/{i}.png,n {i}\n" for i in range(4))
    )
    by_lines = open_dataset(tmp_path / "rows.jsonl", PAIRS)
    by_csv = open_dataset(tmp_path / "rows.csv", PAIRS, columns={"text": "title"})
    assert by_lines.fingerprint() == by_csv.fingerprint()


def test_captions_from_labels(tmp_path: Path) -> None:
    rows = [{"image": png(i), "label": i % 2} for i in range(4)]
    templates = ["a photo of a {label}", "one {label}"]
    own = open_dataset(
        parquet(tmp_path / "a.parquet", rows, {"label": {"names": ["cat", "dog"]}}),
        PAIRS,
        templates=templates,
    )
    assert own[1].captions == ("a photo of a dog", "one dog")
    assert own[1].made and own[1].label == "dog" and own.classes == ("cat", "dog")
    for classes in ({0: "kitten", 1: "puppy"}, ["kitten", "puppy"]):
        named = open_dataset(tmp_path / "a.parquet", PAIRS, templates=templates, classes=classes)
        assert named[0].captions[0] == "a photo of a kitten"
    with pytest.raises(BedstoneError, match="none of the 1 classes"):
        open_dataset(tmp_path / "a.parquet", PAIRS, classes={0: "kitten"})
    with pytest.raises(BedstoneError, match="no place for a label"):
        SampleReader(PAIRS, templates=["a photo"])


def test_texts_win_over_labels(tmp_path: Path) -> None:
    rows = [{"image": png(i), "text": f"item {i}", "kind": "shirt"} for i in range(3)]
    path = parquet(tmp_path / "a.parquet", rows)
    found = open_dataset(path, PAIRS, columns={"label": "kind"}, templates=["a {label}"])
    assert found[0].captions == ("item 0",) and not found[0].made
    assert found.classes == ("shirt",) and found.templates == ("a {label}",)


def test_class_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png())
    found = open_dataset(tmp_path, PAIRS)
    assert [pair.captions for pair in found] == [("a photo of a cat",), ("a photo of a dog",)]


def test_negatives(tmp_path: Path) -> None:
    rows = [{"image": png(), "text": "a cat", "negatives": ["a dog", "a cow"]}] * 2
    assert open_dataset(parquet(tmp_path / "a.parquet", rows), PAIRS)[0].negatives == (
        "a dog",
        "a cow",
    )


def test_broken_rows_are_left_out_and_named(tmp_path: Path) -> None:
    rows = [
        {"file_name": "0.png", "text": "fine"},
        {"file_name": "0.png", "text": ""},
        {"file_name": "missing.png", "text": "gone"},
        {"file_name": "../secret.png", "text": "out"},
        {"text": "no picture"},
        {"file_name": "1.png", "text": None},
        {"file_name": "2.png", "text": 7},
    ]
    (tmp_path / "secret.png").write_bytes(png())
    path = folder(tmp_path / "data", rows)
    found = open_dataset(path, PAIRS, most_broken=0.9)
    assert len(found) == 1 and len(found.faults.broken) == 6
    text = found.describe()
    for expected in ("6 rows left out", "line 2", "there is no file", "leads out", "line 5"):
        assert expected in text
    with pytest.raises(BedstoneError, match=r"6 of 7 rows are broken.*line 2.*and 1 more"):
        open_dataset(path, PAIRS, most_broken=0.5)


def test_broken_pictures_are_counted_when_decoded(tmp_path: Path) -> None:
    rows = [{"image": png(i), "text": f"n {i}"} for i in range(9)]
    rows[4]["image"] = png(4)[:40]
    rows[7]["image"] = b"<svg></svg>"
    path = parquet(tmp_path / "a.parquet", rows)
    for memory in (1.0, 0.0):
        found = open_dataset(path, PAIRS, most_broken=0.3)
        pictures = ImageCache(found, fit, (4, 4), memory_mb=memory)
        assert pictures.kept is (memory > 0)
        numbers, pixels = pictures.read(pictures.readable)
        if pictures.kept:
            assert numbers.tolist() == [0, 1, 2, 3, 5, 6, 8]
        assert pixels.shape == (7, 4, 4, 3) and pixels.dtype == np.uint8
        assert len(found.faults.broken) == 2 and "row 5" in found.faults.summary()
        assert np.array_equal(pixels[-1], fit(decoded(found[8])))
    with pytest.raises(BedstoneError, match="2 of 9 rows are broken"):
        ImageCache(open_dataset(path, PAIRS, most_broken=0.1), fit, (4, 4))


def test_what_is_missing_is_reported(tmp_path: Path) -> None:
    nothing = parquet(tmp_path / "a.parquet", [{"image": png(), "size": 3}] * 2)
    with pytest.raises(BedstoneError, match=r"has no text.*'size'"):
        open_dataset(nothing, PAIRS)
    unseen = parquet(tmp_path / "b.parquet", [{"photo": png(), "text": "a"}] * 2)
    with pytest.raises(BedstoneError, match=r"no column for the picture.*data\.columns"):
        open_dataset(unseen, PAIRS)
    with pytest.raises(BedstoneError, match="perhaps 'image'"):
        SampleReader(PAIRS, {"imagee": "photo"})
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:100])
    with pytest.raises(BedstoneError, match="cut"):
        open_dataset(tmp_path / "cut.parquet", PAIRS)
    with pytest.raises(BedstoneError, match="no such file"):
        open_dataset(tmp_path / "nothing.parquet", PAIRS)


def test_hold_out_keeps_equal_pictures_together() -> None:
    pairs = [Sample(png(i % 40), (f"text {i}",), place=str(i)) for i in range(120)]
    learnt, held = Dataset(pairs).hold_out(0.3)
    assert len(learnt) + len(held) == 120 and 10 < len(held) < 70
    assert not {pair.image for pair in learnt} & {pair.image for pair in held}
    assert len(learnt.take(10, seed=1)) == 10
    with pytest.raises(BedstoneError, match="too few rows"):
        Dataset(pairs[:1]).hold_out(0.3)


def test_scenes() -> None:
    rows = scene_pairs(6, size=24)
    assert all(pair.captions and pair.label is None for pair in rows)
    assert decoded(rows[0]).shape == (24, 24, 3)
    assert rows.fingerprint() != scene_pairs(6, seed=1, size=24).fingerprint()
    held = heldout_scene_pairs("validation", size=24, ones=5, several=4)
    assert len(CLASSES) == 80 == len(held.classes) and len(set(CLASSES)) == 80
    assert sum(pair.made for pair in held) == 5
    learnt = " ".join(" ".join(pair.captions) for pair in scene_pairs(60))
    assert not any(pair.label and pair.label in learnt for pair in held)
    assert len(open_dataset("scenes", PAIRS, split="validation")) == 420


def test_sentences_made_of_columns(tmp_path: Path) -> None:
    rows = [
        {"image": png(i), "title": f" no {i}", "kind": "shirt", "size": i or None} for i in range(3)
    ]
    path = parquet(tmp_path / "a.parquet", rows)
    several = ["title", "{title}, a {kind}"]
    found = open_dataset(path, PAIRS, columns={"text": several, "label": "kind"})
    assert found[1].captions == ("no 1", "no 1, a shirt") and not found[1].made
    sized = {"text": "size {size}"}
    with pytest.raises(BedstoneError, match=r"row 1: column 'size'.*'size {size}'.*'kind'"):
        open_dataset(path, PAIRS, columns=sized, most_broken=0.1)
    assert [
        pair.captions for pair in open_dataset(path, PAIRS, columns=sized, most_broken=0.5)
    ] == [
        ("size 1",),
        ("size 2",),
    ]
