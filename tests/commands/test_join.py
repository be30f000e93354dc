"""Shares of a run, joined, are the run."""

import hashlib
import json

import pytest

from bedstone.bulk.shares import Shard
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from small_models import SENTENCES, saved


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
