"""Linear probes: what the embedding knows they read, what nobody knows they don't."""

import json

import numpy as np
import pytest

from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.inspect.probes import probe
from bedstone.models.heads import HeadConfig
from small_models import NLI, decoder, model, saved

WORDS = ["the", "unfriendly", "dogs", "barked", "at", "a", "small", "red", "cat", "film", "dull"]
WORDS += ["slow", "too", "long", "evening"]


def rows(count=60, seed=0):
    random = np.random.default_rng(seed)
    return [list(random.choice(WORDS, 6)) for _ in range(count)]


@pytest.mark.parametrize("made", [model(NLI), decoder(HeadConfig("language"), "qwen3")])
def test_what_a_word_is_can_be_read_and_what_nobody_knows_can_not(made):
    texts = rows()
    animals = [["animal" if word in ("dogs", "cat") else "other" for word in row] for row in texts]
    found = probe(made, texts, animals)
    assert [each.layer for each in found.layers] == ["embedding", "block 1", "block 2"]
    assert found.count == 360 and found.labels == ("animal", "other")
    assert found.layers[0].accuracy > 0.97 > found.majority
    # a control task that is learnt by heart is as good: the probe says nothing here
    assert found.layers[0].control > 0.9
    assert abs(found.layers[0].selectivity) < 0.1
    random = np.random.default_rng(1)
    noise = [list(random.choice(["one", "two"], 6)) for _ in texts]
    assert probe(made, texts, noise).layers[0].accuracy < 0.65
    assert probe(made, texts, noise).layers[0].bits > 0.9


def test_labels_of_texts_are_read_off_their_mean():
    texts = [" ".join(row) for row in rows(80)]
    found = probe(model(NLI), texts, ["red" in text for text in texts])
    assert found.layers[0].accuracy > 0.9
    assert found.layers[0].selectivity > 0.2  # no text comes twice: nothing is learnt by heart
    table = found.panel().tables["Layers"]
    assert table[1][0] == "embedding" and len(table) == 4
    assert found.record()["layers"][0]["selectivity"] == found.layers[0].selectivity


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(BedstoneError, match="expected as many"):
        probe(model(NLI), rows(20), [["a"] * 6] * 19)
    with pytest.raises(BedstoneError, match="row 3 has 5 labels for 6 words"):
        probe(model(NLI), rows(20), [["a", "b"] * 3] * 3 + [["a"] * 5] + [["a"] * 6] * 16)
    with pytest.raises(BedstoneError, match="all labels are the same"):
        probe(model(NLI), rows(20), [["a"] * 6] * 20)


def test_the_command_probes_the_rows_of_a_file(tmp_path, capsys):
    file, page = tmp_path / "rows.jsonl", tmp_path / "probes.html"
    lines = [
        json.dumps({"tokens": row, "tags": ["yes" if word == "cat" else "no" for word in row]})
        for row in rows(20)
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    words = ["explain", str(saved(tmp_path, NLI)), str(file), "--probe", "--out", str(page)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 120
    assert "control task" in page.read_text(encoding="utf-8")
    file.write_text(json.dumps({"words": "a"}), encoding="utf-8")
    assert main(words[:4]) == 2
    assert "expected columns of tokens and tags" in capsys.readouterr().err
