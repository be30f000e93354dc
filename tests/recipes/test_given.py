"""Training from Python: recipes by name, file, values or object; rows, tables; extended runs."""

import json

import pytest
import yaml

import bedstone
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.recipes.base import EXTENDABLE
from bedstone.recipes.given import read_finetuning
from bedstone.train.logs import read_log
from bedstone.train.run import held_folder
from small_models import SENTENCES, saved

SMALL = {"context": 32, "batch_size": 2, "model": {"width": 16, "layers": 1, "heads": 2}}
QUICK = {"epochs": 1, "batch_size": 8, "device": "cpu"}
ROWS = [{"text": each, "label": "ab"[n % 2]} for n, each in enumerate(SENTENCES * 4)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(saved(tmp_path_factory.mktemp("encoder"), HeadConfig("sequence", ("x", "y"))))


def tables():
    import datasets
    import pandas

    yield "rows", ROWS
    yield "columns", {key: [row[key] for row in ROWS] for key in ("text", "label")}
    yield "DataFrame", pandas.DataFrame(ROWS)
    yield "Dataset", datasets.Dataset.from_list(ROWS)
    yield "selected", datasets.Dataset.from_list([*ROWS, *ROWS]).select(range(len(ROWS)))


@pytest.mark.parametrize("given", tables(), ids=lambda given: given[0])
def test_rows_of_every_kind_are_learnt_from(given, encoder, tmp_path):
    run = bedstone.finetune(
        "finetune-own", model=encoder, data=given[1], out=str(tmp_path / "run"), quiet=True, **QUICK
    )
    assert run.model is not None
    said = json.loads((tmp_path / "run" / "data.json").read_text())
    assert said["rows"] == 0.9 * len(ROWS)
    assert bedstone.load(run.model).config.head.labels == ("a", "b")


def test_texts_are_pretrained_on(tmp_path):
    run = bedstone.pretrain(
        {"tokenizer": {"vocab_size": 300}, **SMALL},
        "budget=2 steps",
        data=SENTENCES * 20,
        out=str(tmp_path / "run"),
        quiet=True,
    )
    assert run.done.step == 2
    assert (tmp_path / "run" / "rows" / "source.parquet").is_file()


def test_a_mapping_of_fields_is_the_section(encoder, tmp_path):
    run = bedstone.finetune(
        {"model": encoder},
        data={"train": ROWS, "validation": ROWS[:6], "columns": {"text": "text"}},
        out=str(tmp_path / "run"),
        quiet=True,
        **QUICK,
    )
    recipe = yaml.safe_load((run.run / "recipe.yaml").read_text())
    assert recipe["data"]["columns"] == {"text": "text"}
    assert recipe["data"]["validation"].endswith("validation.parquet")


def test_a_run_with_its_own_rows_is_resumed_where_it_was_moved(encoder, tmp_path):
    at = {"model": encoder, "data": ROWS, "quiet": True, **QUICK, "save_every": 1}
    bedstone.finetune("finetune-own", out=str(tmp_path / "run"), **at)
    (tmp_path / "run").rename(tmp_path / "moved")
    more = bedstone.resume(tmp_path / "moved", "epochs=3", quiet=True)
    steps = [line["step"] for line in read_log(tmp_path / "moved" / "log.jsonl")]
    assert more.done.step == steps[-1] > 3
    assert yaml.safe_load((tmp_path / "moved" / "recipe.yaml").read_text())["epochs"] == 3


def test_a_finished_run_is_extended_as_one_with_the_longer_budget(tmp_path):
    """With a constant rate, a run that is extended is the longer run bit for bit."""
    recipe = {**SMALL, "tokenizer": {"vocab_size": 300}, "schedule": {"warmup": 0, "decay": 0}}
    options = {"data": SENTENCES * 20, "quiet": True, "log_every": 1, "evaluate_every": 3}
    bedstone.pretrain(recipe, out=str(tmp_path / "short"), budget="3 steps", **options)
    bedstone.resume(tmp_path / "short", "budget=6 steps", quiet=True)
    bedstone.pretrain(recipe, out=str(tmp_path / "long"), budget="6 steps", **options)
    short, long = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("short", "long")
    )
    assert short == long


def test_what_a_run_learnt_from_stays(tmp_path, encoder):
    at = {"model": encoder, "data": ROWS, "quiet": True, **QUICK}
    run = bedstone.finetune("finetune-own", out=str(tmp_path / "run"), **at)
    with pytest.raises(BedstoneError, match=r"optim: can't be changed when a run goes on"):
        bedstone.resume(run.run, "optim.lr=1")
    with pytest.raises(BedstoneError, match="holds a run already"):
        bedstone.finetune("finetune-own", out=str(run.run), **at)
    assert set(EXTENDABLE) <= set(yaml.safe_load((run.run / "recipe.yaml").read_text())) | {
        "budget",
        "log",  # these two stand there where they aren't as usual
        "parallel",
    }


def test_rows_touch_no_run_that_is_under_way(encoder, tmp_path):
    out = tmp_path / "run"
    with held_folder(out):  # as another process does while it trains
        (out / "tokenizer").mkdir()
        (out / "log.jsonl").write_text("kept")
        with pytest.raises(BedstoneError, match="another run is training there"):
            bedstone.finetune("finetune-own", model=encoder, data=ROWS, out=str(out), **QUICK)
    assert (out / "log.jsonl").read_text() == "kept" and (out / "tokenizer").is_dir()
    assert not (out / "rows").exists()


def test_a_recipe_object_takes_no_fields(encoder, tmp_path):
    recipe = read_finetuning({"model": encoder, "data": {"train": "rows.csv"}})
    with pytest.raises(BedstoneError, match="beside a recipe object"):
        bedstone.finetune(recipe, "epochs=1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data.train: has no rows"),
        ([{"text": "a", "label": "x"}, 3], r"data.train\[1\]: is int"),
        ({"text": ["a", "b"], "label": ["x"]}, "columns have"),
        (7, "int was given; expected a list of dictionaries"),
        ([{"text": "a"}, {"text": object()}], "can't be written as columns"),
    ],
)
def test_what_is_no_table(data, message, tmp_path, encoder):
    with pytest.raises(BedstoneError, match=message):
        bedstone.finetune("finetune-own", model=encoder, data=data, out=str(tmp_path / "run"))


def test_names_of_the_package():
    assert set(bedstone.__all__) <= set(dir(bedstone))
    assert not {"importlib", "Any", "TYPE_CHECKING"} & set(dir(bedstone))
    assert bedstone.__version__.count(".") == 2
    for name in bedstone.__all__:
        assert getattr(bedstone, name).__doc__


def test_a_gap_of_pandas_in_a_text_is_an_empty_cell(tmp_path):
    from pyarrow import parquet

    from bedstone.data.write import write_rows

    rows = [{"text": "a", "n": 1.5}, {"text": float("nan"), "n": float("nan")}, {"text": None}]
    write_rows(rows, tmp_path / "x.parquet", "rows")
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["text"] == ["a", None, None]
    assert table["n"][0] == 1.5
