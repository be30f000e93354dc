"""`bedstone finetune` on pictures, from end to end: whole, by an adapter, the head alone."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import bedstone
from bedstone.checkpoints.model import Model, load
from bedstone.cli import main
from bedstone.commands.train import finetune, resume
from bedstone.data.fields import PAIRS
from bedstone.data.images.processor import clip_processor, plain_processor
from bedstone.data.images.supervised import ImageExamples, labelled_image_stream
from bedstone.data.open import open_dataset
from bedstone.errors import BedstoneError
from bedstone.models.clip import network as clip
from bedstone.models.clip.network import CLIPConfig, TextConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig
from bedstone.recipes.supervised import FinetuneRecipe, see
from bedstone.runtime import pick_precision
from bedstone.settings import from_mapping
from bedstone.train.logs import read_log

SIZE = 16
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210)}
SHAPE = {"image_size": SIZE, "patch": 8, "width": 32, "layers": 2, "heads": 4, "hidden": 48}


def picture(colour: str, draw: np.random.Generator) -> np.ndarray:
    """A square of that colour on a noisy ground."""
    pixels = draw.integers(60, 130, (20, 20, 3))
    top, left = draw.integers(2, 8, 2)
    pixels[top : top + 10, left : left + 10] = COLOURS[colour]
    noisy = pixels + draw.integers(-20, 20, pixels.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def folder_of(path: Path, count: int, seed: int) -> Path:
    """Pictures in a folder for each class."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        (path / colour).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(colour, draw)).save(path / colour / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("pictures")
    train, held = folder_of(home / "a", 60, 0), folder_of(home / "b", 30, 1)
    return {"train": str(train), "validation": str(held)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    body = vit.build(ViTConfig(layout="vit", **SHAPE), seed=1)
    Model(body.eval(), processor=plain_processor(SIZE)).save(home / "vit")
    made = {"vit": home / "vit"}
    for layout in ("clip", "siglip"):
        text = TextConfig(vocab_size=300, context=8, width=32, layers=1, heads=4)
        network = clip.build(CLIPConfig(layout, ViTConfig(**SHAPE), text), seed=1)
        Model(network.eval(), processor=clip_processor(SIZE)).save(home / layout)
        made[layout] = home / layout
    return made


def recipe_for(folder: Path, data: dict, model, **changes) -> FinetuneRecipe:
    values = {
        "model": str(model) if isinstance(model, Path) else model,
        "task": "image-classification",
        "out": str(folder / "run"),
        "data": data,
        "epochs": 12,
        "batch_size": 10,
        "optim": {"adamw_lr": 3e-3},
        "device": "cpu",
        "precision": "fp32",
        "log_every": 5,
        **changes,
    }
    return from_mapping(FinetuneRecipe, values, "test")


def right(path, data) -> float:
    """The share of validation pictures that the saved model's best label is right for."""
    rows = open_dataset(data["validation"], PAIRS)
    task = bedstone.pipeline("image-classification", path, top_k=1, device="cpu")
    found = [each[0]["label"] for each in task([pair.image for pair in rows])]
    return float(np.mean([one == pair.label for one, pair in zip(found, rows, strict=True)]))


@pytest.mark.parametrize("base", ["vit", "clip", "siglip"])
def test_a_whole_network_learns_and_opens_elsewhere(base, bases, data, tmp_path):
    finished = finetune(recipe_for(tmp_path, data, bases[base]), quiet=True)
    assert finished.done.metrics["validation_accuracy"] >= 0.9
    assert right(finished.model, data) == pytest.approx(
        finished.done.metrics["validation_accuracy"]
    )
    record = json.loads((finished.run / "evaluation.json").read_text())
    assert set(record["validation"]["labels"]) == set(COLOURS)
    assert (finished.run / "confusion-validation.png").is_file()

    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(finished.model)
    prepare = transformers.AutoImageProcessor.from_pretrained(finished.model)
    shown = picture("green", np.random.default_rng(5))
    task = bedstone.pipeline("image-classification", finished.model, top_k=None, device="cpu")
    with torch.no_grad():
        given = prepare(Image.fromarray(shown), return_tensors="pt")
        scores = theirs(**given).logits.softmax(-1)[0].tolist()
    expected = {theirs.config.id2label[i]: score for i, score in enumerate(scores)}
    assert {each["label"]: each["score"] for each in task(shown)} == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize(
    "model",
    [
        {"layout": "vit", **SHAPE},
        {"layout": "resnet", "image_size": SIZE, "width": 16, "blocks": [1, 1], "block": "basic"}
        | {"shrink": 1, "features": 32},
    ],
    ids=["vit", "resnet"],
)
def test_sizes_in_place_of_a_model_train_from_scratch(model, data, tmp_path):
    finished = finetune(recipe_for(tmp_path, data, model), quiet=True)
    assert finished.done.metrics["validation_accuracy"] >= 0.9
    assert right(finished.model, data) == finished.done.metrics["validation_accuracy"]


def test_a_head_alone_learns_as_it_does_under_a_frozen_body(bases, data, tmp_path):
    """The same losses, though the pictures are looked at once."""
    how = {"train": "head", "optim": {"adamw_lr": 3e-2}}
    finished = finetune(recipe_for(tmp_path, data, bases["vit"], **how), quiet=True)
    network, base = load(finished.model).network, load(bases["vit"]).network
    for name, weight in network.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(weight, base.state_dict()[name]), name
    # the same by hand: a body that never changes, the same batches through all of it
    examples = ImageExamples(open_dataset(data["train"], PAIRS), plain_processor(SIZE))
    seen = see(load(bases["vit"]), examples, pick_precision("fp32", torch.device("cpu")))
    with torch.no_grad():
        whole = examples.batch(np.arange(7))
        assert (whole.states(base) - seen.batch(np.arange(7)).shown).abs().max() < 1e-5
    recipe = recipe_for(tmp_path / "by-hand", data, bases["vit"], **how)
    logged = [line["loss"] for line in read_log(finished.run / "log.jsonl") if "loss" in line]
    assert logged == pytest.approx(by_hand(recipe, seen, len(logged)), abs=1e-4)
    assert finished.done.metrics["validation_accuracy"] > 0.6


def by_hand(recipe: FinetuneRecipe, seen, lines: int) -> list[float]:
    """Mean losses between lines of the log, of a linear map trained by torch's own AdamW."""
    from bedstone.data.text.examples import example_stream
    from bedstone.recipes.supervised import open_start, prepare
    from bedstone.runtime import seed_everything
    from bedstone.train.schedule import build_schedule

    seed_everything(recipe.seed)
    model = open_start(recipe, None)
    prepare(model, recipe, seen)
    head = model.network.head.out
    decayed = {"params": [head.weight], "weight_decay": recipe.optim.weight_decay}
    optimizer = torch.optim.AdamW([decayed, {"params": [head.bias], "weight_decay": 0.0}])
    batches = example_stream(seen, recipe.batch_size, seed=recipe.seed)
    schedule, steps, losses = build_schedule(recipe.schedule), lines * recipe.log_every, []
    total = int(recipe.epochs * batches.steps_per_epoch)
    for step in range(steps):
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = recipe.optim.adamw_lr * schedule(step / total)
        loss = torch.nn.functional.cross_entropy(head(batch.shown), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), recipe.optim.clip)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses).reshape(lines, -1).mean(1).tolist()


@pytest.mark.parametrize("base", ["vit", "clip"])
def test_an_adapter_learns(base, bases, data, tmp_path):
    how = {"lora": {"rank": 4, "alpha": 8}, "optim": {"adamw_lr": 1e-2}}
    finished = finetune(recipe_for(tmp_path, data, bases[base], **how), quiet=True)
    assert finished.done.metrics["validation_accuracy"] >= 0.8
    assert (finished.run / "adapter" / "adapter_model.safetensors").is_file()
    assert right(finished.model, data) == finished.done.metrics["validation_accuracy"]


@pytest.mark.parametrize("trained", ["whole", "head"])
def test_a_run_that_stops_early_and_one_that_goes_on(trained, bases, data, tmp_path):
    augment = {"flip": 0.5, "crop": [0.7, 1.0]} if trained == "whole" else {}
    how = {"augment": augment, "train": trained, "budget": "12 steps", "best": "last"}
    whole = finetune(recipe_for(tmp_path / "whole", data, bases["vit"], **how), quiet=True)
    half = recipe_for(tmp_path / "half", data, bases["vit"], **how, save_every=5)
    run = Path(half.out)

    class Stop(Exception):
        pass

    from bedstone.train.loop import Trainer

    step = Trainer.one_step

    def stopping(self, share):
        if self.step == 7:
            raise Stop
        return step(self, share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "one_step", stopping)
        with pytest.raises(Stop):
            finetune(half, quiet=True)
    resume(run, quiet=True)
    ours, theirs = (load(path / "model").network.state_dict() for path in (run, whole.run))
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def test_rows_come_from_tables_and_lists(bases, data, tmp_path):
    """The same pictures as a Parquet file, as a JSONL file, as folders."""
    rows = list(open_dataset(data["train"], PAIRS))
    stored = [{"image": {"bytes": pair.image.read_bytes()}, "kind": pair.label} for pair in rows]
    pq.write_table(pa.Table.from_pylist(stored), tmp_path / "rows.parquet")
    lines = [json.dumps({"image": str(pair.image), "kind": pair.label}) for pair in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    made = []
    for name in ("rows.parquet", "rows.jsonl"):
        given = {**data, "train": str(tmp_path / name), "columns": {"label": "kind"}}
        how = {"budget": "2 steps", "best": "last"}
        with pytest.raises(BedstoneError, match="label"):
            finetune(recipe_for(tmp_path / name[5:], {**given, "columns": {}}, bases["vit"], **how))
        del given["validation"]
        done = finetune(recipe_for(tmp_path / name[5:], given, bases["vit"], **how), quiet=True)
        made.append(load(done.model).network.state_dict())
    assert made[0].keys() == made[1].keys()


def test_batches_hold_every_picture_once_an_epoch_and_go_back_anywhere(data):
    examples = ImageExamples(open_dataset(data["train"], PAIRS), plain_processor(SIZE))
    stream = labelled_image_stream(examples, 15, seed=3, weights={"red": 2.0})
    first = [next(stream) for _ in range(4)]
    assert sorted(row for batch in first for row in batch.origins) == list(range(60))
    state = stream.state_dict()
    coming = [next(stream) for _ in range(3)]
    again = labelled_image_stream(examples, 15, seed=3, weights={"red": 2.0})
    again.load_state_dict(json.loads(json.dumps(state)))
    for one, other in zip(coming, [next(again) for _ in range(3)], strict=True):
        assert one.origins == other.origins
        assert torch.equal(one.shown, other.shown)
    red = examples.labels.index("red")
    for batch in first:
        expected = torch.where(batch.targets == red, 2.0, 1.0)
        assert torch.equal(batch.weights, expected)
        assert [examples.actual[row] for row in batch.origins] == [
            examples.labels[target] for target in batch.targets
        ]


def test_broken_pictures_are_left_out_counted_and_named(bases, tmp_path, capsys):
    train = folder_of(tmp_path / "train", 60, 0)
    broken = train / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    examples = ImageExamples(open_dataset(train, PAIRS), plain_processor(SIZE))
    assert len(examples) == 59
    assert "1 rows left out" in examples.describe()
    assert "0.png" in examples.describe()
    assert len(examples.actual) == 59
    for name in (train / "red").glob("*"):
        name.write_bytes(b"no")
    with pytest.raises(BedstoneError, match="20 of 60"):
        ImageExamples(open_dataset(train, PAIRS), plain_processor(SIZE))


def test_what_cannot_be_learnt_is_told(bases, data, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    folder_of(tmp_path / "one", 3, 0)
    flat = tmp_path / "flat.jsonl"
    shown = next(Path(data["train"]).rglob("*.png"))
    flat.write_text("\n".join([json.dumps({"image": str(shown), "text": "a square"})] * 4))
    cases = [
        ({"model": "nowhere/at-all"}, "nowhere"),
        ({"model": {"layout": "bert"}}, "layout"),
        ({"model": {"layout": "vit", "patches": 3}}, "patches"),
        ({"model": 3}, "model: 3"),
        ({"data": {**data, "train": str(flat)}}, "has no label"),
        ({"data": {**data, "labels": ["red", "green"]}}, "none of the 2"),
        ({"data": {**data, "train": str(tmp_path / "one" / "red")}}, "label"),
        ({"data": {**data, "train": str(tmp_path / "none")}}, "none"),
        ({"train": "tail"}, "train: 'tail'"),
        ({"train": "head", "augment": {"flip": 0.5}}, "augment"),
        ({"train": "head", "lora": {"rank": 2}}, "lora"),
        ({"augment": {"flips": 0.5}}, "flips"),
        ({"task": "text-classification", "train": "head"}, "image-classification"),
        ({"task": "text-classification", "model": {"width": 3}}, "image-classification"),
        ({"class_weights": {"pink": 2}}, "pink"),
    ]
    for number, (changes, told) in enumerate(cases):
        with pytest.raises(BedstoneError, match=told):
            values = {"model": bases["vit"], "data": data, "epochs": 1, **changes}
            model, given = values.pop("model"), values.pop("data")
            finetune(recipe_for(tmp_path / str(number), given, model, **values), quiet=True)


def test_commands_from_recipe_to_labels(bases, data, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"task: image-classification\nmodel: {bases['vit']}\nout: {tmp_path / 'run'}\n"
        f"data: {{train: {data['train']}, validation: {data['validation']}}}\n"
        "augment: {flip: 0.5, rotation: 10}\nbatch_size: 10\noptim: {adamw_lr: 3.0e-3}\n"
    )
    assert main(["finetune", str(recipe), "--sample", "3"]) == 0
    assert (tmp_path / "run" / "augmented.png").is_file()
    assert main(["finetune", str(recipe), "--find-rate"]) == 0
    assert "is proposed" in capsys.readouterr().out
    assert main(["finetune", str(recipe), "epochs=12"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), data["validation"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] >= 0.9
    folder = Path(data["validation"]) / "green"
    assert main(["run", "image-classification", str(tmp_path / "run"), str(folder), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 10
    assert sum(line["result"][0]["label"] == "green" for line in lines) >= 8


def test_run_leaves_out_what_is_broken_and_says_so(bases, data, tmp_path, capsys):
    base = {"out": tmp_path / "run", "model": bases["vit"], "data.train": data["train"]}
    words = [f"{key}={value}" for key, value in {**base, "budget": "1 steps"}.items()]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: image-classification\n")
    assert main(["finetune", str(recipe), *words]) == 0
    folder = folder_of(tmp_path / "mixed", 6, 0)
    (folder / "red" / "0.png").write_bytes(b"not a picture")
    given = ["run", "--json", "image-classification", str(tmp_path / "run")]
    capsys.readouterr()
    assert main([*given, str(folder)]) == 0
    told = capsys.readouterr()
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert len(lines) == 5
    assert not any(line["input"].endswith("0.png") for line in lines)
    assert "1 of 6 pictures" in told.err
    assert "0.png" in told.err
    (tmp_path / "empty").mkdir()
    for words, expected in (
        ([str(tmp_path / "empty")], "holds no picture"),
        ([str(folder / "red" / "0.png")], "0.png"),
        ([str(folder / "red" / "0.png")] * 2, "1 of 1"),
        (["https://example.org/a.jpg"], "address"),
        ([], "pictures or folders"),
    ):
        assert main([*given, *words]) == 2
        assert expected in capsys.readouterr().err
