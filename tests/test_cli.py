"""The command line: what it prints, and one paragraph for every kind of bad input."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import bedstone
from bedstone import cli
from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.commands.train import pretrain
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.recipes.base import PretrainRecipe
from bedstone.settings import from_mapping
from runs import make_text, recipe_values, write_recipe


@pytest.fixture(scope="module", autouse=True)
def columns(cache):
    cache.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    recipe = recipe_values(folder, budget="25 steps")
    pretrain(from_mapping(PretrainRecipe, recipe, "test"), quiet=True)
    return folder / "run"


def told(capsys, *words, code=2) -> str:
    """What the command writes to standard error, which is one paragraph and no traceback."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    error = capsys.readouterr().err
    if code:
        last = error[error.index("bedstone: ") :]
        assert "Traceback" not in error
        assert last.strip().count("\n") == 0
        return last
    return error


def test_help_is_quick_and_loads_no_torch():
    resource = pytest.importorskip("resource")
    command = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        "from bedstone.cli import main; main(['--help'])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The processor's time, which other processes hardly change.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert done.stdout.endswith("False\n")
    for name in ("pretrain", "resume", "generate", "evaluate", "info", "demo"):
        assert name in done.stdout


def test_python_m_is_the_command_line():
    words = [sys.executable, "-m", "bedstone", "nonsense"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("bedstone: nonsense: no such command")


@pytest.mark.parametrize("name", ["pretrain", "generate", "evaluate", "info", "demo", "resume"])
def test_every_command_explains_its_arguments(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_help_names_options_as_they_are_typed(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "one of --temperature, --top-k, --top-p and --min-p is given" in shown
    assert "_" not in shown.replace("generation_config.json", "")


def test_words_may_stand_behind_options(monkeypatch):
    asked = []

    def imagine_(model: str, text: list[str], count: int = 4, json: bool = False) -> None:
        """Draw.

        Args:
            model: what draws.
            text: what to draw.
            count: how many.
            json: say it so.
        """
        asked.append((model, text, count, json))

    monkeypatch.setattr(cli, "find_command", lambda name: imagine_)
    for words in (
        ("m", "a", "b", "--count", "2", "--json"),
        ("m", "--count", "2", "a", "--json", "b"),
        ("--json", "m", "--count=2", "a", "b"),
        ("--count", "2", "--json", "--", "m", "a", "b"),
    ):
        assert main(["imagine", *words]) == 0
    assert asked == [("m", ["a", "b"], 2, True)] * 4


def test_generate_prints_the_prompt_and_more(run, capsys):
    assert main(["generate", str(run / "model"), "the cat", "--max-tokens", "5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the cat")
    assert len(out) > len("the cat\n")


def test_generate_several_as_json_with_log_probabilities(run, capsys):
    words = ["generate", str(run), "the cat", "a", "--max-tokens", "4", "--json", "--stop", "zz"]
    assert main([*words, "--precision", "fp32"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert second["prompt"] == "a"
    assert len(first["tokens"]) == len(first["log_probabilities"]) == 4
    model = bedstone.load(run / "model")
    ids = torch.tensor([model.tokenizer.encode("the cat")])
    best = model.network(ids)[0, -1].log_softmax(-1).max().item()
    assert first["log_probabilities"][0] == pytest.approx(best, abs=1e-4)


def test_generate_searches_with_beams(run, capsys):
    words = ["generate", str(run), "the cat", "a", "--max-tokens", "4", "--precision", "fp32"]
    beams = ["--num-beams", "3", "--num-return-sequences", "2", "--early-stopping", "never"]
    assert main([*words, *beams, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in found] == ["the cat", "the cat", "a", "a"]
    assert found[0]["score"] == pytest.approx(found[0]["log_probability"] / 4, rel=1e-4)
    assert found[0]["score"] >= found[1]["score"]
    assert main([*words, *beams, "--length-penalty", "2", "--no-repeat-ngram-size", "2"]) == 0
    assert capsys.readouterr().out.count("the cat") == 2
    assert "num_beams: 3" in told(capsys, *words, *beams, "--temperature", "0.7")
    assert "num_beams" in told(capsys, *words, "--num-return-sequences", "2")


def test_generate_holds_words_and_keeps_others_out(run, capsys):
    words = ["generate", str(run), "the", "--max-tokens", "8", "--precision", "fp32"]
    held = ["--force-words", "cat", "--force-words", "dog|dogs", "--num-beams", "3"]
    assert main([*words, *held]) == 0
    text = capsys.readouterr().out.split()
    assert "cat" in text
    assert {"dog", "dogs"} & {*text}
    ids = bedstone.load(run / "model").tokenizer.encode(" cat")
    assert main([*words, "--force-words-ids", str([ids]), "--num-beams", "2"]) == 0
    assert "cat" in capsys.readouterr().out
    for banned, left in (("cat", "dog"), ("dog", "cat")):
        either = ["--force-words", "cat|dog", "--num-beams", "3", "--bad-words", banned]
        assert main([*words, *either]) == 0
        text = capsys.readouterr().out.split()
        assert left in text
        assert banned not in text
    both = ["--force-words", "cat", "--num-beams", "3", "--bad-words", "cat"]
    assert "must occur, and bad_words_ids" in told(capsys, *words, *both)
    assert "force_words: ['cat'] was given, which counts for beam" in told(
        capsys, *words, "--force-words", "cat"
    )
    groups = ["--num-beams", "4", "--num-beam-groups", "3"]
    assert "num_beam_groups: 3 groups" in told(capsys, *words, *groups)


def test_generate_samples_several(run, capsys):
    words = ["generate", str(run), "the cat", "a", "--max-new-tokens", "4", "--precision", "fp32"]
    chance = ["--temperature", "1", "--num-return-sequences", "2"]
    assert main([*words, *chance, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["prompt"] for one in found] == ["the cat", "the cat", "a", "a"]
    assert {len(one["tokens"]) for one in found} == {4}
    assert "--max-tokens: was given beside" in told(capsys, *words, "--max-tokens", "3")


def test_generate_reads_standard_input(run):
    done = subprocess.run(
        [sys.executable, "-m", "bedstone.cli", "generate", run, "-", "--max-tokens", "3"],
        input="the cat sees",
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("the cat sees")


def test_evaluate_agrees_with_the_runs_own_figure(run, capsys, tmp_path):
    assert main(["evaluate", str(run), str(make_text(tmp_path / "text", seed=5)), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    measured = bedstone.load(run / "model").record["metrics"]
    assert figures["loss"] == pytest.approx(measured["validation_loss"], rel=0.15)
    assert main(["evaluate", str(run), "rows.csv", "--label-column", "stars"]) == 2
    assert "is not measured by labels" in capsys.readouterr().err
    assert figures["perplexity"] == pytest.approx(2.718281828 ** figures["loss"], rel=1e-6)
    nats = figures["loss"] * figures["tokens"] / figures["bytes"]
    assert figures["bits_per_byte"] == pytest.approx(nats / 0.6931471805599453, rel=1e-6)


def test_info_of_a_model_and_of_a_run(run, capsys):
    assert main(["info", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["opens_in_transformers_as"] == "Qwen3ForCausalLM"
    assert facts["parameters"] == sum(
        p.numel() for p in bedstone.load(run / "model").network.parameters()
    )
    assert main(["info", str(run / "model")]) == 0
    assert "qwen3" in capsys.readouterr().out


# Bad input of every kind: the thing is named, exit code 2, no traceback.


def test_an_empty_file(capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    recipe = write_recipe(tmp_path)
    assert "empty.txt" in told(capsys, "pretrain", recipe, f"data.source={tmp_path}/empty.txt")


def test_a_binary_file(capsys, tmp_path):
    (tmp_path / "data.txt").write_bytes(bytes(range(256)) * 50)
    recipe = write_recipe(tmp_path)
    error = told(capsys, "pretrain", recipe, f"data.source={tmp_path}/data.txt")
    assert "data.txt" in error
    assert "binary" in error


def test_bad_utf8_names_the_byte(capsys, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"plain words, then caf\xe9 and more\n" * 50)
    recipe = write_recipe(tmp_path)
    error = told(capsys, "pretrain", recipe, f"data.source={tmp_path}/latin.txt")
    assert "latin.txt" in error
    assert "21" in error


def test_a_line_of_100_mb_is_refused_or_read(capsys, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "a" * 100_000_000}) + "\n")
    recipe = write_recipe(tmp_path)
    began = time.monotonic()
    error = told(capsys, "pretrain", recipe, f"data.source={path}")
    assert "long.jsonl" in error
    assert time.monotonic() - began < 60


def test_a_missing_column_names_those_there_are(capsys, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"texts": "a b c", "label": 1}\n' * 20)
    recipe = write_recipe(tmp_path)
    error = told(capsys, "pretrain", recipe, f"data.source={path}")
    assert "rows.jsonl" in error
    assert "'texts'" in error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.learning_rate=1", ["optim.learning_rate"]),
        ("budgett=1", ["'budgett'", "'budget'"]),
        ("model.widht=64", ["model.widht", "'model.width'"]),
        ("budget=soon", ["budget", "'soon'"]),
        ("context=many", ["context = 'many'", "whole number"]),
        ("batch_size=0", ["batch_size: 0"]),
        ("optim.kind=moun", ["optim.kind", "'muon'"]),
        ("schedule.shape=liner", ["schedule.shape", "'linear'"]),
        ("precision=fp16", ["precision", "fp16"]),
        ("precision=int8", ["precision", "int8", "inference alone", "quantize=8"]),
        ("device=cuda:99", ["device", "cuda:99"]),
        ("tokenizer.kind=word", ["tokenizer.kind"]),
        ("data.source=no/such/file.txt", ["no/such/file.txt"]),
        ("model.kv_heads=3", ["kv_heads", "3"]),
        ("budget", ["key=value"]),
        ("data.validation_share=2", ["validation_share"]),
        ("context=100000", ["100,0"]),
    ],
)
def test_bad_settings_are_named(capsys, tmp_path, override, words):
    error = told(capsys, "pretrain", write_recipe(tmp_path), override)
    for word in words:
        assert word in error


def test_a_recipe_that_is_not_there_or_not_yaml(capsys, tmp_path):
    recipe = write_recipe(tmp_path)
    assert f"perhaps '{recipe}'" in told(capsys, "pretrain", tmp_path / "recipes.yaml")
    recipe.write_text("a: [1, 2\nb: }")
    assert "recipe.yaml" in told(capsys, "pretrain", recipe)
    recipe.write_text("- a list\n")
    assert "mapping" in told(capsys, "pretrain", recipe)


def damaged(run, folder, name, change):
    import shutil

    shutil.copytree(run / "model", folder)
    data = bytearray((folder / name).read_bytes())
    (folder / name).write_bytes(change(data))
    return folder


def test_truncated_and_tampered_models(capsys, run, tmp_path):
    cut = damaged(run, tmp_path / "cut", "model.safetensors", lambda data: data[: len(data) // 2])
    assert "model.safetensors" in told(capsys, "info", cut)

    def flip(data):
        data[len(data) // 2] ^= 1
        return data

    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        bad = damaged(run, tmp_path / f"bad-{name}", name, flip)
        assert name in told(capsys, "generate", bad, "the")
    # Without its record of hashes, the weights themselves still say what they lack.
    (cut / "bedstone.json").unlink()
    assert "model.safetensors" in told(capsys, "info", cut)


def test_a_vocabulary_that_does_not_match(capsys, run, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(run / "model", folder)
    (folder / "bedstone.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert "vocabulary doesn't match" in told(capsys, "info", folder)
    shutil.copytree(run / "model", tmp_path / "other")
    (tmp_path / "other" / "bedstone.json").unlink()
    from bedstone.data.text.train_tokenizer import train_bpe

    train_bpe(["many words of another text, some longer than others " * 9] * 9, 400).save(
        tmp_path / "big"
    )
    tokens = json.loads((tmp_path / "big" / "tokenizer.json").read_text())
    tokens["added_tokens"] += [
        {**tokens["added_tokens"][0], "id": 5000 + i, "content": f"<|{i}|>"} for i in range(500)
    ]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokens))
    assert "vocabulary doesn't match" in told(capsys, "generate", tmp_path / "other", "the")


def test_a_model_that_is_not_there(capsys, run, tmp_path):
    assert "modle" in told(capsys, "info", run / "modle")
    (tmp_path / "empty").mkdir()
    assert "config.json" in told(capsys, "info", tmp_path / "empty")


def test_sampling_out_of_range(capsys, run):
    assert "top_p" in told(capsys, "generate", run, "the", "--top-p", "2")
    assert "context" in told(capsys, "generate", run, "the " * 100)


def test_debug_shows_where(run):
    with pytest.raises(bedstone.BedstoneError):
        main(["info", str(run / "nowhere"), "--debug"])


def test_a_full_disk_leaves_the_model_that_was_there(capsys, run, tmp_path, monkeypatch):
    import errno

    from bedstone import files as files

    model = bedstone.load(run / "model")
    model.save(tmp_path / "copy")
    before = (tmp_path / "copy" / "model.safetensors").read_bytes()

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(files, "_fsync", full)
    with pytest.raises(bedstone.BedstoneError, match="full"):
        model.save(tmp_path / "copy")
    monkeypatch.undo()
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_words_that_are_wrong_are_refused_in_one_paragraph(run, capsys, tmp_path):
    assert "perhaps 'pretrain' is meant" in told(capsys, "pretran")
    assert "'--temperature' is meant" in told(capsys, "generate", "m", "p", "--temperatur", "1")
    assert "required: recipe." in told(capsys, "pretrain")
    assert "--option=VALUE" in told(capsys, "generate", "m", "p", "--stop", "-x")
    assert "--temperature = 'hot'" in told(capsys, "generate", "m", "p", "--temperature", "hot")
    recipe = tmp_path / "labels.yaml"
    recipe.write_text("task: text-classification\nmodel: runs/m\n")
    assert "run bedstone finetune" in told(capsys, "pretrain", recipe)
    recipe.write_text("data: {source: x}\ncontext: 8\n")
    assert "so it was read as one of that method" in told(
        capsys, "pretrain", recipe, "method=contrastive"
    )


def test_generate_needs_a_decoder(capsys, tmp_path):
    config = BertConfig(vocab_size=300, width=16, layers=1, heads=2)
    text = ["some words to learn from"] * 50
    Model(build_bert(config, seed=0), train_wordpiece(text, 300)).save(tmp_path / "m")
    assert "needs a decoder" in told(capsys, "generate", tmp_path / "m", "the cat")


# The edges of the command line: outputs that can't be written, signals, names.


def leave(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "bedstone.cli", *map(str, words)],
        capture_output="stdout" not in options,
        text=True,
        timeout=120,
        **options,
    )


def test_an_output_that_is_full_is_an_error(run):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with Path("/dev/full").open("w") as full:
        left = leave("info", run / "model", stdout=full, stderr=subprocess.PIPE)
    assert left.returncode == 2 and "can't be written: No space left" in left.stderr
    assert "Traceback" not in left.stderr and "Exception ignored" not in left.stderr


def test_a_reader_that_leaves_is_no_error(run):
    command = f"{sys.executable} -m bedstone.cli info {run / 'model'}"
    words = f"{command} | head -c 1; exit ${{PIPESTATUS[0]}}"
    left = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=120)
    assert left.returncode == 0 and left.stderr == ""


@pytest.mark.parametrize(
    "words",
    [
        ("info", "~nosuchuser42/x"),
        ("info", "y" * 5000),
        ("info", "a\0b"),
        ("info", "\x1b[31mred"),
        ("pretrain", "y" * 5000),
        ("pretrain", "\x1b]0;title\x07"),
        ("resume", "~nosuchuser42/x"),
        ("resume", "y" * 5000),
    ],
)
def test_names_are_refused_and_printed_without_their_control_characters(capsys, words):
    message = told(capsys, *words)
    assert message.replace("\n", "").isprintable()


def test_texts_that_read_as_the_name_of_a_file_name_one(capsys, run, tmp_path):
    message = told(capsys, "run", "question-answering", run, "who?", "--context", "notes.txt")
    assert "there is no such file" in message


def test_a_second_signal_exits_with_its_number(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt(15)

    monkeypatch.setattr(cli, "_run", stopped)
    assert main(["info", "x"]) == 143
    monkeypatch.setattr(cli, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["info", "x"]) == 130


def test_what_a_recipe_cannot_have_is_refused_before_data_is_read(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    for word in (
        "model.width=-1",
        "optim.kind=x",
        "optim.betas=[1,2]",
        "task=[a]",
    ):
        began = time.monotonic()
        message = told(capsys, "pretrain", str(recipe), word, f"data.source={tmp_path / 'none'}")
        assert word.partition("=")[0] in message, message
        assert time.monotonic() - began < 10


def test_help_lists_tasks_and_fields_with_their_defaults(capsys):
    from bedstone.tasks.pipeline import TASKS

    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = capsys.readouterr().out
    assert all(task in said for task in TASKS)
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    said = capsys.readouterr().out
    assert "  data.most_broken=0.05\n      share of rows that may be broken" in said
    assert "  lora" in said


def test_facts_are_rounded_for_people():
    from bedstone.commands.info import _shown

    assert _shown(6.570897448353005) == "6.571"
    assert (_shown(1234), _shown(True), _shown("a")) == ("1,234", "True", "a")
