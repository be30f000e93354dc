"""`bedstone index` and `bedstone search`: what they print, the page, and what they refuse."""

import json
import re

import pytest

import bedstone.commands.search
from bedstone.cli import main
from colours import NAMES, Colours, paint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures with metadata, and the embedder of colours in a model's place."""

    def opened(place, precision="auto", device="auto"):
        embedder = Colours()
        embedder.name = f"colours-{place}"[-9:]
        return embedder

    for module in (bedstone.commands.search, bedstone.commands.search):
        monkeypatch.setattr(module, "open_embedder", opened)
    place = tmp_path / "photos"
    for number, (name, colour) in enumerate(NAMES.items()):
        for copy in range(3):
            paint(place / f"{name}{copy}.png", colour, seed=10 * number + copy)
    lines = [
        {"file_name": f"{name}{copy}.png", "colour": name, "price": 10 * copy}
        for name in NAMES
        for copy in range(3)
    ]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place


@pytest.fixture
def made(folder, tmp_path, capsys):
    assert main(["index", str(folder), "--model", "m1", "--out", str(tmp_path / "i")]) == 0
    capsys.readouterr()
    return str(tmp_path / "i")


def run(capsys, *words):
    code = main(list(words))
    told = capsys.readouterr()
    return code, told.out, told.err


def refused(capsys, *words):
    code, _, told = run(capsys, *words)
    assert code == 2 and "Traceback" not in told
    return told


def test_index_says_what_it_did_and_does_no_more_than_it_must(folder, tmp_path, capsys):
    (folder / "broken.jpg").write_text("no picture")
    code, out, err = run(capsys, "index", str(folder), "--model", "m1")
    assert code == 0 and "stored 9" in out and "9 added" in out and "1 broken" in out
    assert "skipped" in err and "broken.jpg" in err
    assert (tmp_path / "photos.index" / "index.json").is_file()
    (folder / "red0.png").unlink()
    code, out, _ = run(capsys, "index", str(folder))  # it remembers the model
    assert code == 0 and "8 unchanged, 1 removed" in out and "stored" not in out


def test_index_as_json_names_what_is_stored(folder, tmp_path, capsys):
    code, out, _ = run(capsys, "index", str(folder), "--model", "m1", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and lines[-1]["done"]["added"] == 9 and lines[-1]["rows"] == 9
    stored = [key for line in lines[:-1] for key in line["stored"]]
    assert sorted(stored) == sorted(path.name for path in folder.glob("*.png"))


def test_search_by_words_conditions_and_an_example(made, folder, capsys):
    code, out, _ = run(capsys, "search", made, "something red", "--count", "3", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and {row["colour"] for row in rows} == {"red"} and len(rows) == 3
    assert rows[0]["score"] >= rows[1]["score"] >= rows[2]["score"]
    where = "price < 20 and colour = 'blue'"
    code, out, _ = run(capsys, "search", made, "red", "--where", where, "--json")
    assert {json.loads(line)["key"] for line in out.splitlines()} == {"blue0.png", "blue1.png"}
    example = str(folder / "green1.png")
    code, out, _ = run(capsys, "search", made, "--image", example, "--count", "1")
    assert code == 0 and "green1.png" in out and "1.000" in out and "exact search" in out
    code, out, _ = run(capsys, "search", made, "red", "--approximate", "--where", "price > 99")
    assert code == 0 and "nothing was found" in out and "too few" in out


def test_the_page_needs_no_other_file_and_trusts_no_name(made, folder, tmp_path, capsys):
    page = tmp_path / "results.html"
    (folder / "green0.png").unlink()  # gone since it was indexed
    query = "green <script>alert(1)</script>"
    code, out, _ = run(capsys, "search", made, query, "--count", "4", "--page", str(page))
    text = page.read_text()
    assert code == 0 and str(page) in re.sub(r"\s", "", out)
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert not re.findall(r'src="(?!data:image/jpeg;base64,)', text)
    links = re.findall(r'href="([^"]*)"', text)
    assert len(links) == 3 and all((tmp_path / link).resolve().is_file() for link in links)
    assert text.count("data:image/jpeg") == 3 and "be shown" in text
    assert "green1.png" in text and "price" in text
    example = str(folder / "blue1.png")
    assert (
        run(capsys, "search", made, "--image", example, "--page", str(page), "--overwrite")[0] == 0
    )
    assert "Like blue1.png" in page.read_text() and 'class="example"' in page.read_text()


def test_what_is_wrong_is_told(made, folder, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no picture" in refused(capsys, "index", str(empty), "--model", "m1")
    assert not (tmp_path / "empty.index" / "rows.lance").exists()
    assert "no such folder" in refused(capsys, "index", str(tmp_path / "none"), "--model", "m1")
    assert "--model" in refused(capsys, "index", str(folder))
    told = refused(capsys, "index", str(folder), "--out", made, "--model", "m2")
    assert "made by the model" in told and "m2" in told
    other = tmp_path / "other"
    paint(other / "a.png", (1, 2, 3))
    assert "is the index of" in refused(capsys, "index", str(other), "--out", made)
    assert "is no index" in refused(capsys, "search", str(folder), "red")
    assert "either words, or --image" in refused(capsys, "search", made)
    assert "either words, or --image" in refused(capsys, "search", made, "a", "--image", "b")
    assert "words are empty" in refused(capsys, "search", made, " ")
    assert "perhaps 'price'" in refused(capsys, "search", made, "red", "--where", "prise < 2")
    assert "can't be understood" in refused(capsys, "search", made, "red", "--where", "price <")
    assert "made by the model" in refused(capsys, "search", made, "red", "--model", "m2")
    assert "--count 0" in refused(capsys, "search", made, "red", "--count", "0")
    assert "none.jpg" in refused(capsys, "search", made, "--image", str(tmp_path / "none.jpg"))
    (folder / "metadata.jsonl").write_text('{"file_name": "red0.png", "price": "much"}\n')
    assert "'price'" in refused(capsys, "index", str(folder), "--out", made)


def test_a_folder_that_moved_keeps_its_index(made, folder, tmp_path, capsys):
    moved = folder.rename(tmp_path / "elsewhere")
    code, out, _ = run(capsys, "index", str(moved), "--out", made)
    assert code == 0 and "9 unchanged, 0 removed" in out
    assert str(moved) in (tmp_path / "i" / "index.json").read_text()


def test_a_large_index_says_what_the_quick_search_finds(made, folder, capsys, monkeypatch):
    monkeypatch.setattr("bedstone.commands.search.FEWEST", 5)
    code, out, _ = run(capsys, "index", str(folder), "--out", made)
    assert code == 0 and "approximate search finds 1" in out
    code, out, _ = run(capsys, "search", made, "blue", "--approximate", "--count", "3")
    assert code == 0 and "approximate search finds 1" in out and "blue2.png" in out
