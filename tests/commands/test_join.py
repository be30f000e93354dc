"""Shares of runs, evaluations, drawings and indexes, joined, are the whole."""

import hashlib
import json

import pytest

from bedstone.bulk.shares import Shard
from bedstone.cli import main
from bedstone.commands import search
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.search.index import Index
from colours import NAMES, Colours, paint
from drawings import drawing
from small_models import NLI, SENTENCES, TAGS, saved


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A command of 150 inputs of many lengths."""
    folder = tmp_path_factory.mktemp("join")
    words = " ".join(SENTENCES).split()
    texts = [" ".join(words[n % 7 : n % 7 + 1 + n % 5]) for n in range(150)]
    (folder / "rows.txt").write_text("\n".join(texts) + "\n")
    model = saved(folder, HeadConfig("pooled"))
    return ["run", "feature-extraction", str(model), "--file", str(folder / "rows.txt"), "--json"]


def output(words, path, capsys):
    assert main([*words]) == 0
    path.write_text(capsys.readouterr().out)
    return path


def test_joined_shares_are_the_whole(work, tmp_path, capsys):
    whole = output(work, tmp_path / "whole", capsys)
    parts = [output([*work, "--shard", f"{n}/2"], tmp_path / f"part{n}", capsys) for n in (2, 1)]
    assert main(["join", str(tmp_path / "joined"), *map(str, parts)]) == 0
    both = [hashlib.sha256(path.read_bytes()).digest() for path in (whole, tmp_path / "joined")]
    assert both[0] == both[1] and len(whole.read_text().splitlines()) == 150


def test_shares_that_are_not_of_one_run_are_refused(work, tmp_path, capsys):
    one, two = (output([*work, "--shard", f"{n}/4"], tmp_path / f"part{n}", capsys) for n in (1, 4))
    assert two.read_text().count("\n") == 1  # more shares than blocks: only what it is of
    joined = tmp_path / "joined"

    def refused(*shares) -> str:
        assert main(["join", str(joined), *map(str, shares)]) == 2
        assert not joined.exists()
        return capsys.readouterr().err

    assert "2, 3 of 4 missing" in refused(one, two)
    other = tmp_path / "other"
    other.write_text(one.read_text().replace("0.", "1.", 1))
    assert "a line was changed" in refused(other, two)
    kept = one.read_text()
    assert main(["join", str(one), str(one), str(two), "--overwrite"]) == 2
    assert "is one of the shares" in capsys.readouterr().err
    assert one.read_text() == kept
    other = output([*work, "--shard", "1/4", "--precision", "fp32"], tmp_path / "other", capsys)
    assert "another model or options" in refused(one, other)
    lines = one.read_text().splitlines(keepends=True)
    (tmp_path / "cut").write_text("".join(lines[:-1]))
    assert "isn't the whole output" in refused(tmp_path / "cut")
    end = {**json.loads(lines[-1]), "shard": "2/4"}
    (tmp_path / "moved").write_text("".join(lines[:-1]) + json.dumps(end) + "\n")
    assert "isn't a line of this share" in refused(tmp_path / "moved")


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "-1/2"])
def test_shares_that_are_none(text):
    with pytest.raises(BedstoneError, match="expected number/shares"):
        Shard.read(text)


def test_every_input_is_of_one_share():
    for count, shares in ((1, 1), (64, 3), (65, 2), (1000, 7)):
        rows = [row for n in range(shares) for row in Shard(n + 1, shares).rows(count)]
        assert sorted(rows) == list(range(count))


def test_a_file_of_lines_is_what_is_printed_and_goes_on(work, tmp_path, capsys):
    whole = output(work, tmp_path / "whole", capsys).read_bytes()
    command, out = work[:-1], tmp_path / "out.jsonl"
    assert main([*command, "--out", str(out)]) == 0
    assert out.read_bytes() == whole and "150 rows" in capsys.readouterr().err
    assert main([*command, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    parts = [tmp_path / "one", tmp_path / "two"]
    for number, part in enumerate(parts, 1):
        assert main([*command, "--shard", f"{number}/2", "--out", str(part)]) == 0
    assert main(["join", str(tmp_path / "joined"), *map(str, parts)]) == 0
    assert (tmp_path / "joined").read_bytes() == whole


def test_batches_of_any_size_are_joined(work, tmp_path, capsys):
    """A share is cut where batches are, so that rows keep their neighbours."""
    command = [*work, "--option", "batch_size=50"]
    whole = output(command, tmp_path / "whole", capsys)
    parts = [output([*command, "--shard", f"{n}/2"], tmp_path / f"{n}", capsys) for n in (1, 2)]
    assert json.loads(parts[0].read_text().splitlines()[-1])["block"] == 100
    assert main(["join", str(tmp_path / "joined"), *map(str, parts)]) == 0
    assert (tmp_path / "joined").read_bytes() == whole.read_bytes()


def test_rows_that_cannot_be_done_are_set_aside(tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("a red [MASK]\nno mask\n[MASK] go\n")
    model = str(saved(tmp_path, HeadConfig("language")))
    command = ["run", "fill-mask", model, "--file", str(tmp_path / "rows.txt")]
    assert main([*command, "--out", str(tmp_path / "out.jsonl")]) == 3
    error = capsys.readouterr().err
    assert "2 of 3 rows; 1 set aside" in error and "row 1: " in error
    inputs = [json.loads(line)["input"] for line in (tmp_path / "out.jsonl").open()]
    assert inputs == ["a red [MASK]", "[MASK] go"]
    assert '"row": 1' in (tmp_path / "out.aside.jsonl").read_text()
    assert main([*command, "--json", "--shard", "1/1"]) == 3
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 3 and "1 of 3 rows were left out" in found.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--on", "ray"], "--on: needs --out"),
        (["--shard", "1/2"], "Give --json, or --out"),
        (["--out", "x", "--page", "y.html"], "--page: isn't there with --out"),
        (["--on", "elsewhere", "--out", "x"], "expected here, ray, or ray:HOST:PORT"),
        (["--actors", "2", "--out", "x"], "it is of --on ray"),
    ],
)
def test_places_that_a_run_cannot_have(work, more, message, capsys):
    assert main([*work[:-1], *more]) == 2
    assert message in capsys.readouterr().err


def evaluation(model, data, task):
    words = ["evaluate", str(model), str(data), "--task", task, "--device", "cpu", "--json"]
    return [*words, "--precision", "fp32"]


@pytest.mark.parametrize(
    ("head", "task"), [(NLI, "text-classification"), (TAGS, "token-classification")]
)
def test_figures_of_joined_results_are_those_of_the_whole(head, task, tmp_path, capsys):
    model = saved(tmp_path, head)
    rows = []
    for number in range(150):
        text = SENTENCES[number % 4]
        labelled = {"text": f"{text} {number}", "label": NLI.labels[number % 3]}
        words = text.split()
        tags = [TAGS.labels[(number + place) % 3] for place in range(len(words))]
        rows.append(labelled if head is NLI else {"tokens": words, "ner_tags": tags})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = evaluation(model, data, task)
    whole = json.loads(output(command, tmp_path / "figures", capsys).read_text())
    parts = [str(tmp_path / f"part{number}") for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        assert main([*command, "--shard", f"{number}/2", "--results", part]) == 0
    joined = tmp_path / "joined"
    assert main(["join", str(joined), *parts]) == 0
    capsys.readouterr()
    assert main([*command, "--results", str(joined)]) == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert main([*command, "--results", str(tmp_path / "own")]) == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert (tmp_path / "own").read_bytes() == joined.read_bytes()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    assert main([*command, "--results", str(joined)]) == 2
    assert "results of other rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "ner", "--shard", "1/2"], "--shard: needs --results"),
        (["--results", "x"], "need a --task whose rows are independent"),
        (["--task", "humaneval", "--on", "ray"], "need a --task whose rows are independent"),
    ],
)
def test_evaluations_that_are_of_one_process(tmp_path, more, message, capsys):
    model, data = saved(tmp_path, NLI), tmp_path / "rows.jsonl"
    data.write_text('{"text": "go", "label": "neutral"}\n')
    assert main(["evaluate", str(model), str(data), *more]) == 2
    assert message in capsys.readouterr().err


def test_images_of_joined_results_are_those_of_the_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(drawing("text", "image").save(tmp_path / "model"))
    command = ["imagine", model, "ink", "a red circle", "--count", "50", "--steps", "2"]
    command += ["--precision", "fp32"]
    assert main([*command, "--out", "whole"]) == 0
    for number in (1, 2):
        share = ["--shard", f"{number}/2", "--results", f"part{number}"]
        assert main([*command, *share]) == 0 and not (tmp_path / "imagined").exists()
    assert main(["join", "all", "part1", "part2"]) == 0
    assert main([*command, "--results", "all", "--out", "joined"]) == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) == 101
    for name in names:
        one, two = (tmp_path / folder / name for folder in ("whole", "joined"))
        assert one.read_bytes() == two.read_bytes(), name
    capsys.readouterr()
    assert main([*command, "--seed", "9", "--results", "all", "--out", "other"]) == 2
    assert "results of other rows" in capsys.readouterr().err
    assert main([*command, "--shard", "1/2"]) == 2
    assert "--shard: needs --results" in capsys.readouterr().err
    assert main([*command, "--results", "x", "--style", "oil"]) == 2
    assert "serve prompts and seeds alone" in capsys.readouterr().err


def test_joined_indexes_are_the_whole_one(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lancedb")
    monkeypatch.setattr(search, "open_embedder", lambda *_: Colours())
    folder = tmp_path / "photos"
    for number in range(300):
        paint(folder / f"{number:03d}.png", list(NAMES.values())[number % 3], seed=number)
    (folder / "broken.jpg").write_text("no picture")
    rows = [{"file_name": f"{n:03d}.png", "price": n} for n in range(150)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["index", str(folder), "--model", "m", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    parts = [str(tmp_path / f"part{number}") for number in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        assert main([*command, part, "--shard", f"{number}/3"]) == 0
    joined = str(tmp_path / "joined")
    assert main(["join", joined, *reversed(parts)]) == 0
    held = []
    for path in (str(tmp_path / "whole"), joined):
        index = Index.open(path)
        keys, vectors, columns = index.rows()
        rows = zip(keys, vectors.tolist(), columns, strict=True)
        held.append(({key: row for key, *row in rows}, index.stamps(), index.settings))
    assert held[0] == held[1] and len(held[0][0]) == 300
    capsys.readouterr()
    assert main(["join", str(tmp_path / "no"), *parts[:2]]) == 2
    assert "3 of 3 missing" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert main([*command, parts[0]]) == 0  # made whole: a share no longer
    assert main(["join", str(tmp_path / "no"), *parts]) == 2
    assert "isn't a finished share of an index" in capsys.readouterr().err
    assert main(["index", str(folder), "--model", "m", "--shard", "1/3"]) == 2
    assert "--shard: needs --out" in capsys.readouterr().err
