"""`bedstone complete` and `bedstone generate --suffix`: places, what is printed, repositories."""

import json
import os

import pytest

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.commands import complete as command
from bedstone.commands.complete import Place, around, other_files, read_place
from bedstone.data.text.fim import STYLES, fim_tokens
from bedstone.data.text.train_tokenizer import END, train_bpe
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import Written, write
from bedstone.models.gpt.network import GPTConfig, build
from networks import randomise

CODE = "def f(a, b):\r\n    return a + b\r\n\r\nprint(f(1, 2))"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    for name, tokens in (("fim", STYLES["starcoder"].tokens), ("plain", ())):
        tokenizer = train_bpe([CODE] * 5, 300, special_tokens=(END, *tokens))
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, context=128
        )
        network = build(config, seed=0).eval()
        randomise(network)
        Model(network, tokenizer).save(folder / name)
    (folder / "app.py").write_bytes(CODE.encode())
    return folder


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that were given to the model, which answers with a text of the test's."""
    seen = []

    def written(network, tokenizer, given, way, *, eos, precision):
        seen.extend(given)
        return [Written(text="    x = 1\r\n    return a + b\r\n", ids=[1, 2], finish="stop")]

    monkeypatch.setattr(command, "write", written)
    return seen


def said(capsys, *words):
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_places_of_a_file_with_crlf(place):
    path = place / "app.py"
    for where, before in (
        ("1", "def f(a, b):"),
        ("1:1", ""),
        ("1:5", "def "),
        ("1:13", "def f(a, b):"),
        ("2", "def f(a, b):\r\n    return a + b"),
        ("3", "def f(a, b):\r\n    return a + b\r\n"),
        ("4:15", CODE),
        ("4", CODE),
    ):
        prefix, suffix = around(read_place(f"{path}:{where}"))
        assert prefix == before and prefix + suffix == CODE, where


def test_a_last_line_that_is_empty_is_a_place(tmp_path):
    file = tmp_path / "a:3.py"  # a name may hold a colon
    file.write_text("\ufeffx\n")
    assert read_place(f"{file}:2") == Place(file, 2, None)
    assert around(read_place(f"{file}:2")) == ("x\n", "")
    assert around(read_place(f"{file}:1")) == ("x", "\n")


def test_the_middle_alone_is_printed(place, capsys):
    words = ["complete", f"{place}/app.py:2:7", "--model", f"{place}/fim", "--precision", "fp32"]
    assert main([*words, "--max-new-tokens", "6"]) == 0
    shown = capsys.readouterr()
    assert main([*words, "--max-tokens", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert shown.out == found["middle"] and not shown.err
    assert found["finish_reason"] in ("stop", "length") and found["tokens"] <= 6
    model = Model.from_pretrained(place / "fim")
    fim = fim_tokens(model.tokenizer)
    prompt = fim.prompt(CODE[: CODE.index("turn")], CODE[CODE.index("turn") :])
    (one,) = write(model.network, fim.tokenizer, [prompt], Sampling(max_tokens=6), eos=fim.stops)
    assert found["middle"] == one.text and found["prompt_tokens"] == len(prompt.ids)
    assert main([*words, "--num-beams", "2", "--max-new-tokens", "4"]) == 0


def test_lines_that_stand_behind_are_left_out(place, prompts, capsys):
    assert main(["complete", f"{place}/app.py:2:1", "--model", f"{place}/fim"]) == 0
    assert capsys.readouterr().out == "    x = 1\r\n"


def test_a_long_file_is_cut_around_the_cursor_and_said(place, tmp_path, prompts, capsys):
    file = tmp_path / "long.py"
    file.write_text("".join(f"n{number} = {number}\n" for number in range(200)))
    words = ["complete", f"{file}:100", "--model", str(place / "fim"), "--max-new-tokens", "28"]
    assert main(words) == 0
    assert "note: to fit the model's context, the prefix is cut" in capsys.readouterr().err
    fim = fim_tokens(Model.from_pretrained(place / "fim").tokenizer)
    ids = prompts[0].ids
    assert len(ids) == 100
    at = ids.index(fim.ids["<fim_suffix>"])
    before, after = fim.tokenizer.decode(ids[:at]), fim.tokenizer.decode(ids[at:])
    assert before.endswith("n98 = 98\nn99 = 99") and after.startswith("\nn100 = 100\n")
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    assert "cut from its left" in json.loads(shown.out)["warning"] and not shown.err


def test_files_of_a_repository_those_changed_last_first(place, tmp_path, prompts, capsys):
    home = tmp_path / "kit"
    for number, name in enumerate(("old.py", "lib/new.py", "app.py", "notes.md", ".hidden/x.py")):
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"v = {number}\n")
        os.utime(file, (1000 + number, 1000 + number))
    (home / "bad.py").write_bytes(b"\xff\xfe\x00")
    found = other_files(home, home / "app.py")
    assert found == [("lib/new.py", "v = 1\n"), ("old.py", "v = 0\n")]
    words = ["complete", f"{home}/app.py:1", "--model", f"{place}/fim", "--repo", str(home)]
    assert main([*words, "--max-new-tokens", "8"]) == 0
    model = Model.from_pretrained(place / "fim")
    assert model.tokenizer.decode(prompts[0].ids, skip_special=False) == (
        "<repo_name>kit<file_sep>old.py\nv = 0\n<file_sep>lib/new.py\nv = 1\n<file_sep>"
        "<fim_prefix>app.py\nv = 2<fim_suffix>\n<fim_middle>"
    )
    assert "no such folder" in said(capsys, *words[:-1], tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["@app.py:2"], "--model: none was given"),
        (["@app.py", "--model", "@fim"], "expected FILE:LINE or FILE:LINE:COLUMN"),
        (["@none.py:1", "--model", "@fim"], "none.py: no such file"),
        (["@app.py:9", "--model", "@fim"], "has 4 lines; line 9 was given"),
        (["@app.py:0", "--model", "@fim"], "has 4 lines; line 0 was given"),
        (["@app.py:2:30", "--model", "@fim"], "line 2 has 16 characters; column 30 was given"),
        (["@app.py:2:0", "--model", "@fim"], "column 0 was given"),
        (["@app.py:2", "--model", "@plain"], "complete: the model's tokenizer has no tokens"),
    ],
)
def test_what_is_refused(place, words, message, capsys):
    given = [word.replace("@", f"{place}/") for word in words]
    assert message in said(capsys, "complete", *given)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "a.py").write_bytes(b"a\0b")
    with pytest.raises(BedstoneError, match="is not text"):
        around(Place(tmp_path / "a.py", 1))


def test_generate_with_a_suffix(place, capsys):
    words = ["generate", f"{place}/fim", "def f(", "--suffix", "\n", "--precision", "fp32"]
    words += ["--max-new-tokens", "6"]
    model = Model.from_pretrained(place / "fim")
    fim = fim_tokens(model.tokenizer)
    prompt = fim.prompt("def f(", "\n")
    (one,) = write(model.network, fim.tokenizer, [prompt], Sampling(max_tokens=6), eos=fim.stops)
    assert main(words) == 0
    assert capsys.readouterr().out == f"def f({one.text}\n\n"
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["generated_text"] == one.text
    assert (found["prompt"], found["suffix"]) == ("def f(", "\n")
    assert len(found["tokens"]) == len(one.ids)
    assert main([*words, "--num-beams", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suffix"] == "\n"
    assert "Leave out --chat" in said(capsys, *words, "--chat")
    words[1] = f"{place}/plain"
    assert "--suffix: the model's tokenizer has no tokens" in said(capsys, *words)
