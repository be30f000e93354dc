"""An index on disk: rows once by key, conditions, both searches, filling, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bedstone.errors import BedstoneError
from bedstone.tasks.search.durable import Durable
from bedstone.tasks.search.fill import fill, open_source
from bedstone.tasks.search.index import Index, Row
from colours import WIDTH, Colours, paint

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 30), "blue": (10, 30, 230)}


def rows(numbers, width=8, **columns):
    draw = np.random.default_rng(0).standard_normal((100, width))
    return [
        Row(f"k{n}", draw[n], {"price": n, "name": f"it's {n}", **columns}, f"s{n}")
        for n in numbers
    ]


@pytest.fixture
def held(tmp_path):
    with Index.create(tmp_path / "i", 8, "m-1") as index:
        yield index


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    for number, (name, colour) in enumerate(COLOURS.items()):
        paint(place / "some" / f"{name}.png", colour, seed=number)
    paint(place / "red2.jpg", (200, 30, 40))
    return place


def keys(found):
    return [one.key for one in found]


def test_a_key_is_there_once_and_the_last_row_counts(held):
    assert held.add(rows(range(10))) == [f"k{n}" for n in range(10)]
    held.add([*rows(range(5, 15)), Row("k3", np.ones(8), {"price": -1}, "new")] * 2)
    stamps = held.stamps()
    assert len(held) == len(stamps) == 15
    assert stamps["k3"] == "new" and stamps["k14"] == "s14"
    assert held.search(np.ones(8), 1)[0].columns == {"price": -1.0, "name": None}


def test_search_is_the_cosine_and_conditions_hold(held):
    given = rows(range(60))
    held.add(given)
    query = np.arange(8) - 3.0
    cosines = {
        row.key: row.vector @ query / np.linalg.norm(row.vector) / np.linalg.norm(query)
        for row in given
    }
    best = sorted(cosines, key=lambda key: -cosines[key])
    found = held.search(query, 7)
    assert keys(found) == best[:7]
    assert [one.score for one in found] == pytest.approx([cosines[k] for k in best[:7]], abs=1e-6)
    cheap = [key for key in best if int(key[1:]) < 20][:7]
    assert keys(held.search(query, 7, where="price < 20")) == cheap
    assert keys(held.search(query, 7, where="name = 'it''s 4' or key = 'k9'")) == [
        key for key in best if key in ("k4", "k9")
    ]
    assert held.search(query, 7, where="price > 1000") == []
    assert held.count("price >= 50") == 10


def test_vectors_come_back_and_rows_go(held):
    given = rows(range(10))
    held.add(given)
    vectors = held.get(["k2", "none", "k7"])
    assert set(vectors) == {"k2", "k7"}
    unit = given[2].vector / np.linalg.norm(given[2].vector)
    np.testing.assert_allclose(vectors["k2"], unit, atol=1e-6)
    held.add([Row("o'clock", np.ones(8))])
    assert held.remove(["k2", "k2", "none", "o'clock"]) == 2
    assert "k2" not in held.stamps() and len(held) == 9


def test_it_is_the_same_when_opened_again(held):
    held.add(rows(range(30)))
    held.remove(["k1"])
    held.close()
    again = Index.open(held.path, name="m-1")
    assert len(again) == 29 and again.settings.width == 8
    assert again.columns == {"price": "numbers", "name": "text"}
    assert keys(again.search(np.ones(8), 5)) == keys(held.search(np.ones(8), 5))


def test_columns_come_later_and_what_they_hold_is_kept(held):
    held.add(rows([0], new=True, tags=["a", "b"], gone=None, score=np.float32(0.5)))
    held.add(rows([1], colour="red", score=float("nan")))
    kinds = {"price": "numbers", "name": "text", "new": "true or false", "tags": "text"}
    assert held.columns == {**kinds, "score": "numbers", "colour": "text"}
    found = {one.key: one.columns for one in held.search(np.ones(8))}
    assert found["k0"]["tags"] == '["a", "b"]' and found["k0"]["colour"] is None
    assert found["k1"]["score"] is None and found["k0"]["new"] is True
    assert held.count("tags like '%\"b\"%' and new") == 1
    with pytest.raises(BedstoneError, match=r"'price'.*holds numbers.*text was given"):
        held.add([Row("x", np.ones(8), {"price": "cheap"})])
    held.add([Row("x", np.ones(8), {"colour": 3})])  # text takes anything
    assert held.search(np.ones(8), 1)[0].columns["colour"] == "3"
    for name in ("vector", "key", "a.b", " "):
        with pytest.raises(BedstoneError, match="can't be the name of a column"):
            held.add([Row("y", np.ones(8), {name: 1})])


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("prize < 3", "no column 'prize'; perhaps 'price'"),
        ("price <", "can't be understood"),
        ("name < 3", "can't be understood.*price.*numbers"),
        ("frobnicate(price) > 2", "can't be understood"),
        ("price", "can't be understood"),
    ],
)
def test_a_wrong_condition_is_told(held, where, told):
    held.add(rows(range(3)))
    for ask in (lambda: held.search(np.ones(8), where=where), lambda: held.count(where)):
        with pytest.raises(BedstoneError, match=told) as caught:
            ask()
        assert ".rs" not in str(caught.value)


@pytest.mark.parametrize("vector", [np.ones(7), np.zeros(8), np.full(8, np.nan), np.ones((1, 8))])
def test_a_wrong_vector_is_told_and_nothing_is_stored(held, vector):
    held.add(rows([1]))
    with pytest.raises(BedstoneError, match=r"row 'bad'.*expected 8 numbers"):
        held.add([*rows([2]), Row("bad", vector)])
    assert set(held.stamps()) == {"k1"}
    with pytest.raises(BedstoneError, match=r"the query.*expected 8 numbers"):
        held.search(vector)


def test_another_model_another_folder_and_two_writers_are_refused(held, tmp_path):
    held.add(rows([1]))
    with pytest.raises(BedstoneError, match="made by the model m-1, and m-2 was given"):
        Index.open(held.path, name="m-2")
    with pytest.raises(BedstoneError, match="m-2 was given"):
        Index.create(held.path, 8, "m-2")
    with pytest.raises(BedstoneError, match=r"there is no such index .*bedstone index FOLDER"):
        Index.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BedstoneError, match="is there, and is no index"):
        Index.create(tmp_path, 8, "m-1")
    second = Index.open(held.path)
    with pytest.raises(BedstoneError, match="another process is writing"):
        second.add(rows([2]))
    assert len(second) == 1  # it may read
    held.close()
    second.add(rows([2]))
    assert len(Index.open(held.path)) == 2


def test_damaged_settings_are_told(held):
    (held.path / "index.json").write_text('{"format": 1, "approximate": null, "name": "m"}')
    with pytest.raises(BedstoneError, match="doesn't hold what an index does"):
        Index.open(held.path)
    (held.path / "index.json").write_text('{"format": 99}')
    with pytest.raises(BedstoneError, match="newer Bedstone"):
        Index.open(held.path)


def test_an_empty_index_finds_nothing(held):
    assert held.search(np.ones(8)) == [] and len(held) == 0 and held.stamps() == {}
    assert held.remove(["k"]) == 0 and held.add([]) == [] and held.columns == {}
    with pytest.raises(BedstoneError, match="holds nothing yet"):
        held.approximate()


def test_what_was_written_is_fsynced_before_add_returns(held, monkeypatch):
    held.add(rows(range(3)))
    synced = set()
    monkeypatch.setattr("bedstone.tasks.search.durable._fsync", lambda path: synced.add(Path(path)))
    table = held.path / "rows.lance"
    before = {path for path in table.rglob("*") if path.is_file()}
    held.add(rows(range(3, 6)))
    written = {path for path in table.rglob("*") if path.is_file()} - before
    assert any(path.suffix == ".lance" for path in written)
    assert any(path.suffix == ".manifest" for path in written)
    assert written | {path.parent for path in written} <= synced
    assert not {path for path in before if path.suffix == ".lance"} & synced  # only what is new


def test_settling_knows_a_file_that_changed(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("bedstone.tasks.search.durable._fsync", synced.append)
    file = tmp_path / "a"
    file.write_text("1")
    disk = Durable(tmp_path)
    disk.settle(1)
    disk.settle(1)
    assert synced.count(file) == 1
    file.write_text("22")
    disk.settle(1)
    assert synced.count(file) == 2


def clustered(count, width=32, seed=0):
    centres = np.random.default_rng(9).standard_normal((20, width)) * 2
    draw = np.random.default_rng(seed)
    return centres[draw.integers(20, size=count)] + draw.standard_normal((count, width)) * 0.3


def test_the_approximate_search_does_what_it_says(tmp_path):
    vectors = clustered(3000)
    with Index.create(tmp_path / "i", 32, "m") as held:
        held.add(Row(f"k{n}", vector, {"n": n}) for n, vector in enumerate(vectors))
        how = held.approximate(partitions=20, sample=40)
        assert held.settings.approximate == how == Index.open(held.path).settings.approximate
        assert how.recall >= 0.97 and how.rows == 3000 and how.probes < how.partitions
        assert f"{how.recall:.1%}" in how.summary()
        queries = clustered(40, seed=1)
        both = [
            [set(keys(held.search(query, exact=exact))) for query in queries]
            for exact in (True, False)
        ]
        share = np.mean([len(a & b) / 10 for a, b in zip(*both, strict=True)])
        assert share >= 0.9
        # a condition that few rows meet is met in full, wherever they are
        where = "n in (3, 700, 1500, 2999)"
        assert len(held.search(queries[0], where=where, exact=False)) == 4
        # what comes later is found at once, and what goes is gone
        held.add(Row(f"late{n}", query) for n, query in enumerate(queries))
        held.remove(["k5"])

        def first(n):
            return keys(held.search(queries[n], 1, exact=False)) == [f"late{n}"]

        assert all(first(n) for n in range(len(queries)))
        held.tidy()  # from now on they are found by partition and code, as most of all others are
        assert np.mean([first(n) for n in range(len(queries))]) >= 0.7
        assert "k5" not in keys(held.search(vectors[5], 50, exact=False))


def test_many_commits_leave_few_files(held, monkeypatch):
    monkeypatch.setattr("bedstone.tasks.search.index.COMMITS", 8)
    for number in range(20):
        held.add(rows([number]))
    assert len(list((held.path / "rows.lance" / "data").iterdir())) < 100
    assert len(held._table.search().limit(100).to_arrow()) == len(held) == 20
    assert held._commits < 8


def index_of(folder, tmp_path):
    return Index.create(tmp_path / "index", WIDTH, Colours().name), open_source(folder)


def test_only_what_is_new_or_changed_is_embedded(folder, tmp_path):
    def run():
        embedder = Colours()
        index, source = index_of(folder, tmp_path)
        with index:
            done = fill(index, embedder, source, batch=2)
            assert set(index.stamps()) == {item.key for item in source.items()}
            return done, embedder.seen

    done, seen = run()
    assert (done.added, seen) == (4, 4)
    done, seen = run()
    assert (done.unchanged, done.added, done.changed, seen) == (4, 0, 0, 0)
    paint(folder / "some" / "red.png", (0, 0, 0))  # changed
    paint(folder / "new.png", (9, 9, 9))
    (folder / "red2.jpg").unlink()
    os.utime(folder / "some" / "blue.png", (1, 1))  # touched: the same content
    done, seen = run()
    assert (done.added, done.changed, done.removed, done.renewed, done.unchanged) == (1, 1, 1, 1, 1)
    assert seen == 2
    done, seen = run()
    assert (done.unchanged, seen) == (4, 0)


def test_metadata_becomes_columns_and_changes_without_embedding(folder, tmp_path):
    told = '{"file_name": "red2.jpg", "price": 5, "a.b": "x"}\n{"file_name": "lost.png"}\n'
    (folder / "metadata.jsonl").write_text(told)
    (folder / "some" / "metadata.csv").write_text("file_name,price,size\nblue.png,30,XL\n")
    index, source = index_of(folder, tmp_path)
    blue = Colours().images([folder / "some" / "blue.png"])[0]
    with index:
        assert fill(index, Colours(), source).strays == 1 and source.strays == ["lost.png"]
        assert index.columns == {"price": "numbers", "a_b": "text", "size": "text"}
        assert keys(index.search(blue, where="price < 20")) == ["red2.jpg"]
        assert index.search(blue, 1)[0].columns == {"price": 30.0, "a_b": None, "size": "XL"}
        (folder / "metadata.jsonl").write_text(told.replace("5", "50"))
        embedder = Colours()
        done = fill(index, embedder, open_source(folder))
        assert (done.renewed, done.unchanged, embedder.seen) == (1, 3, 0)
        assert set(keys(index.search(blue, where="price >= 30"))) == {"red2.jpg", "some/blue.png"}


def test_broken_files_are_left_out_and_named(folder, tmp_path):
    (folder / "broken.jpg").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "some" / "red.png").read_bytes()[:40])
    index, source = index_of(folder, tmp_path)
    with index:
        done = fill(index, Colours(), source, batch=2)
        assert done.added == 4 and set(done.broken) == {"broken.jpg", "cut.png"}
        assert all(key in told for key, told in done.broken.items())
        paint(folder / "broken.jpg", (3, 3, 3))  # mended
        (folder / "red2.jpg").write_text("broken now")
        done = fill(index, Colours(), open_source(folder))
        assert done.added == 1 and done.removed == 1 and set(done.broken) == {"cut.png", "red2.jpg"}
        assert "red2.jpg" not in index.stamps()


def test_rows_of_a_table_are_items(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures = [{"bytes": path.read_bytes(), "path": None} for path in (folder / "some").iterdir()]
    pictures.append({"bytes": b"no picture", "path": None})
    columns = {"image": [*pictures, None], "price": [1, 2, 3, 4, 5], "thumb": [b"small"] * 5}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "rows.parquet")
    index, source = index_of(tmp_path / "rows.parquet", tmp_path)
    with index:
        done = fill(index, Colours(), source)
        assert done.added == 3 and set(done.broken) == {"rows.parquet#3", "rows.parquet#4"}
        assert index.columns == {"price": "numbers"}
        held = [value for row in source.rows for value in row.values()]
        assert not any(isinstance(value, bytes | dict) for value in held)  # read when asked for
        assert source.image("rows.parquet#1") == pictures[1]["bytes"]
        embedder = Colours()
        again = fill(index, embedder, open_source(tmp_path / "rows.parquet"))
        assert again.unchanged == 3 and not embedder.seen - 1  # the broken one is tried again


def test_an_empty_or_missing_source_clears_nothing(folder, tmp_path):
    index, source = index_of(folder, tmp_path)
    with index:
        fill(index, Colours(), source)
        shutil.rmtree(folder)
        with pytest.raises(BedstoneError, match="no such folder"):
            open_source(folder)
        folder.mkdir()
        with pytest.raises(BedstoneError, match="holds no picture"):
            fill(index, Colours(), open_source(folder))
        assert len(index) == 4


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metadata.jsonl", '{"file": 3}\n', "expected a file's name"),
        ("metadata.jsonl", '{"filname": "a.png"}\n', "no column file_name"),
        ("metadata.jsonl", "{no json\n", "not valid JSON"),
        ("metadata.jsonl", '{"file_name": "red2.jpg", "key": 1}\n', "'key': can't be the name"),
    ],
)
def test_wrong_metadata_is_told(folder, tmp_path, name, content, told):
    (folder / name).write_text(content)
    index, source = index_of(folder, tmp_path)
    with index, pytest.raises(BedstoneError, match=told):
        fill(index, Colours(), source)


def test_sources_that_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BedstoneError, match="expected a folder of pictures"):
        open_source(tmp_path / "a.txt")
    (tmp_path / "r.jsonl").write_text('{"text": "no picture"}\n')
    with pytest.raises(BedstoneError, match="no column of pictures"):
        open_source(tmp_path / "r.jsonl").items()
    with pytest.raises(BedstoneError, match="no such file of metadata"):
        open_source(tmp_path, tmp_path / "m.csv")


# Tables that are not what was written.


def _copy(held, tmp_path, change):
    held.close()
    folder = Path(shutil.copytree(held.path, tmp_path / "copy"))
    change(folder / "rows.lance")
    return folder


def _newest(table):
    return min((table / "_versions").glob("*.manifest"))  # they are numbered downwards


def _flip(table):
    file = next((table / "data").glob("*.lance"))
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda table: _newest(table).unlink(), "is damaged: commit 2 .* 1 is the last"),
        (lambda table: shutil.rmtree(table / "_versions"), "is damaged: commit 2 .* none is there"),
        (shutil.rmtree, "is damaged: commit 2"),
        (_flip, "its content was changed"),
        (lambda table: os.truncate(next((table / "data").iterdir()), 500), "content was changed"),
        (lambda table: next((table / "data").iterdir()).unlink(), "its table can't be read"),
        (lambda table: (table.parent / "rows.json").write_text("[]"), "expected a JSON object"),
    ],
)
def test_a_table_that_is_not_what_was_written_is_refused(held, tmp_path, change, fault):
    held.add(rows(range(9)))
    folder = _copy(held, tmp_path, change)
    with pytest.raises(BedstoneError, match=fault):
        Index.open(folder).search(np.ones(8))


def test_an_index_without_a_seal_opens_and_one_behind_its_table_too(held, tmp_path):
    held.add(rows(range(3)))
    seal = (held.path / "rows.json").read_bytes()
    held.add(rows(range(3, 5)))
    (held.path / "rows.json").write_bytes(seal)  # killed between the commit and its seal
    assert len(Index.open(held.path)) == 5
    (held.path / "rows.json").unlink()  # as older versions left it
    assert len(Index.open(held.path)) == 5


def test_a_change_stays_known_when_more_is_added(held, tmp_path):
    held.add(rows(range(9)))
    folder = _copy(held, tmp_path, lambda table: None)
    with Index.open(folder) as index:
        _flip(folder / "rows.lance")
        index.add(rows(range(9, 12)))
    with pytest.raises(BedstoneError, match="its content was changed"):
        Index.open(folder)


@pytest.mark.parametrize("mark", [";", "--", "/*"])
def test_a_condition_is_one_condition(held, mark):
    held.add(rows(range(3)))
    with pytest.raises(BedstoneError, match="outside of quotes"):
        held.search(np.ones(8), where=f"key = 'k1' {mark} key = 'k2'")
    assert held.search(np.ones(8), where=f"key = 'a{mark}b'") == []


@pytest.mark.parametrize(
    ("key", "value"), [("width", 10**12), ("width", "8"), ("model", 5), ("approximate", [])]
)
def test_settings_of_an_index_are_compared_with_its_table(held, key, value):
    held.add(rows(range(3)))
    file = held.path / "index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(BedstoneError, match=rf"index\.json: {key}"):
        Index.open(held.path)


def test_a_count_is_a_number_of_rows(held):
    held.add(rows(range(3)))
    assert len(held.search(np.ones(8), 2**31 - 1)) == 3
    with pytest.raises(BedstoneError, match="count"):
        held.search(np.ones(8), 10**24)


def test_a_full_disk_is_told_and_loses_nothing(held, monkeypatch):
    held.add(rows(range(3)))

    def full(*_):
        raise RuntimeError("lance error: IO: No space left on device (os error 28), /x/y.rs:1")

    with monkeypatch.context() as patched:
        patched.setattr(type(held._table), "merge_insert", full)
        with pytest.raises(BedstoneError, match="the disk is full"):
            held.add(rows([7]))
    assert len(Index.open(held.path)) == 3
