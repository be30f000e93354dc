"""Learning to draw, through whole runs: every signal, every condition, resumed, gone on from."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline, load_pipeline
from bedstone.commands.train import resume
from bedstone.data.signals.signals import TASKS
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.diffusion.process import Discrete
from bedstone.errors import BedstoneError
from bedstone.models.clip import network as clip
from bedstone.recipes.diffusion import latents_of
from bedstone.runtime import pick_precision
from bedstone.tasks.media.generator import MediaGenerator
from bedstone.train.logs import read_log
from clip_words import clip_words
from diffusion_runs import SHAPE, pictures, recipe_of, run, signals_of, sounds
from drawings import coder, reader
from runs import losses, stop_after

SCENES = {"source": "scenes", "size": [16, 16], "most_rows": 12, "objects": [1, 1]}
TEXT: dict[str, Any] = {
    "task": "text-to-image",
    "data": SCENES,
    "text": {"width": 16, "layers": 1, "heads": 2},
    "tokenizer": {"vocab_size": 120},
}


def weights(model: Path) -> dict[str, bytes]:
    """Every file of weights in a folder, by its place."""
    return {str(p.relative_to(model)): p.read_bytes() for p in model.rglob("*.safetensors")}


def drawn(model: DiffusionPipeline, prompt: Any) -> torch.Tensor:
    return MediaGenerator(model).draw([prompt], [0]).signals


def told(folder: Path) -> dict[str, list[float]]:
    """The losses of a run's log, trained and held out, without when they were."""
    found: dict[str, list[float]] = {"loss": [], "validation_loss": []}
    for record in read_log(folder / "log.jsonl"):
        for name, known in found.items():
            if record.get(name) is not None:
                known.append(record[name])
    return found


KINDS: dict[str, dict[str, Any]] = {
    "class-to-image": {"augment": {"flip": 0.5}},
    "text-to-image": TEXT,
    "unconditional-image-generation": {"data": SCENES},
    "class-to-audio": {"model": {**SHAPE, "patch": 2}},
    "class-to-video": {
        "data": {"source": "moving-scenes", "size": [2, 16, 16], "most_rows": 8},
        "model": {**SHAPE, "patch": [2, 4, 4]},
    },
    "class-to-volume": {"data": {"source": "solids", "size": [8, 8, 8], "most_rows": 8}},
}
PROMPTS = {"none": None, "class": 0, "text": "a red circle"}


@pytest.mark.parametrize("task", KINDS)
def test_a_run_of_every_signal_and_what_it_leaves(tmp_path: Path, task: str) -> None:
    more = {**KINDS[task], "task": task}
    if task == "class-to-image":
        more["data"] = {"source": str(pictures(tmp_path / "p.parquet")), "size": [8, 8]}
    elif task == "class-to-audio":
        sound = {"rate": 2000, "window": 32, "hop": 16}
        more["data"] = {"source": str(sounds(tmp_path / "s")), "size": [8], "sound": sound}
    more.setdefault("data", SCENES)["validation_share"] = 0.3
    done = run(tmp_path / "run", **more)
    assert done.model is not None
    assert done.done.step == 3
    assert math.isfinite(done.done.metrics["validation_loss"])
    with Image.open(tmp_path / "run" / "samples.png") as sheet:
        assert sheet.size[0] > 100
    assert "# bedstone_dit" in (done.model / "README.md").read_text()
    model = open_model(done.model)
    assert isinstance(model, DiffusionPipeline)
    form = model.signal
    assert TASKS[task] == (form.condition, form.kind)
    prompt = PROMPTS[form.condition]
    picture = drawn(model, prompt)
    assert picture.shape[1:] == form.shape
    # A folder written again draws the same, to the last bit.
    again = load_pipeline(model.save(tmp_path / "again"))
    assert torch.equal(drawn(again, prompt), picture)
    assert again.signal == form
    assert again.sampling == model.sampling
    if form.kind == "audio":  # signals become sounds as sounds became signals
        assert form.sound["rate"] == 2000
        assert form.names == ("high", "low")
        heard = MediaGenerator(model).draw(["low"], [0])
        assert heard.kind == "audio"
    if form.condition == "class":
        assert len(form.names) == model.config.classes


@pytest.mark.parametrize("kind", ["clip", "bert", "trained"])
def test_words_are_read_by_another_network(tmp_path: Path, kind: str) -> None:
    """Frozen, its weights stay; otherwise they learn too. The folder has it whole."""
    named = words_of(kind, tmp_path / "words")
    frozen = kind != "trained"
    text = {"encoder": str(named), "frozen": frozen}
    done = run(tmp_path / "run", **{**TEXT, "text": text})
    assert done.model is not None
    model = load_pipeline(done.model)
    assert model.signal.frozen == frozen
    before = open_model(named).network.state_dict()
    after = model.reader.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items()) == frozen
    one, other = drawn(model, "a red circle"), drawn(model, "a blue star")
    assert one.shape == other.shape == (1, 3, 16, 16)


def words_of(kind: str, folder: Path) -> Path:
    if kind != "clip":
        return reader().save(folder)
    words = clip_words(["a red circle and a blue square on white", "green stars"], context=24)
    ends = {f"{role}_id": getattr(words, f"{role}_id") for role in ("bos", "eos", "pad")}
    text = {"vocab_size": words.vocab_size, "context": 24, "width": 16, "layers": 1, "heads": 2}
    image = {"image_size": 16, "patch": 8, "width": 16, "layers": 1, "heads": 2}
    shape = {"layout": "clip", "embed": 16, "text": {**text, **ends}, "image": image}
    return Model(clip.build(clip.clip_config(shape), seed=1), words).save(folder)


def test_latents_are_drawn_of_an_autoencoder(tmp_path: Path) -> None:
    made = coder().save(tmp_path / "coder")
    data = {"source": str(pictures(tmp_path / "p.parquet", side=16)), "size": [16, 16]}
    done = run(tmp_path / "run", data={**data, "validation_share": 0.3}, autoencoder=str(made))
    assert done.model is not None
    model = load_pipeline(done.model)
    assert model.config.size == (8, 8)
    assert model.config.channels == 4
    assert model.signal.shape == (3, 16, 16)
    assert drawn(model, 1).shape == (1, 3, 16, 16)
    index = json.loads((done.model / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    # What is learnt from is what the autoencoder says of each row, in the rows' order.
    learnt, _ = signals_of(recipe_of(tmp_path / "other", data=data))
    found = latents_of(learnt, coder(), pick_precision("fp32", torch.device("cpu")), True)
    one = coder().network.latents(learnt.read([7]))
    torch.testing.assert_close(found.read([7]), one, atol=1e-4, rtol=1e-4)
    assert (found.classes == learnt.classes).all()
    assert found.places == learnt.places


@pytest.mark.parametrize("kind", ["text", "frozen", "latent"])
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Another's reader of words and autoencoder may be gone by then: the checkpoint has them."""
    more: dict[str, Any] = {
        **TEXT,
        "budget": "6 steps",
        "evaluate_every": 2,
        "average": 0.9,
        "process": {"kind": "discrete", "steps": 100, "shift": 2.0},
        "times": "logit_normal",
    }
    aside = tmp_path / "aside"
    if kind == "frozen":
        more["text"] = {"encoder": str(words_of("bert", aside))}
    if kind == "latent":
        more |= {"autoencoder": str(coder().save(aside)), "process": {"kind": "edm"}}
        more["times"] = "log_normal"
        more["data"] = {**SCENES, "size": [16, 16]}
    whole = run(tmp_path / "whole", **more)
    stop_after(monkeypatch, 3)
    part = run(tmp_path / "part", **more)
    assert part.model is None
    assert part.done.step == 3
    monkeypatch.undo()
    if aside.exists():
        aside.rename(tmp_path / "moved")
    again = resume(tmp_path / "part", quiet=True)
    assert whole.model is not None
    assert again.model is not None
    assert losses(tmp_path / "whole") == losses(tmp_path / "part")
    one, other = told(tmp_path / "whole"), told(tmp_path / "part")
    assert one["validation_loss"][-1] == other["validation_loss"][-1]
    first, second = weights(whole.model), weights(again.model)
    assert first.keys() == second.keys()
    assert all(first[name] == second[name] for name in first)


def test_a_run_whose_noise_was_changed_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 1)
    run(tmp_path / "run", data=dict(SCENES))
    monkeypatch.undo()
    path = tmp_path / "run" / "recipe.yaml"
    whole = yaml.safe_load(path.read_text())
    for more in ({"target": "sample"}, {"process": {"kind": "flow", "shift": 3.0}}):
        path.write_text(yaml.safe_dump({**whole, **more}))
        with pytest.raises(BedstoneError, match=r"(target is 'sample'|process: the run learnt)"):
            resume(tmp_path / "run", quiet=True)


def test_it_learns(tmp_path: Path) -> None:
    data = {"source": str(pictures(tmp_path / "p.parquet")), "size": [8, 8]}
    run(
        tmp_path / "run",
        data={**data, "validation_share": 0.3},
        budget="120 steps",
        batch_size=16,
        samples=0,
        optim={"lr": 0.01, "adamw_lr": 0.01},
    )
    known = told(tmp_path / "run")["loss"]
    assert sum(known[-10:]) < 0.7 * sum(known[:10])


def test_going_on_from_another_run(tmp_path: Path) -> None:
    data = {"source": str(pictures(tmp_path / "p.parquet")), "size": [8, 8]}
    more: dict[str, Any] = {"data": {**data, "validation_share": 0.3}, "model": {}}
    first = run(tmp_path / "first", **{**more, "model": SHAPE})
    assert first.model is not None
    words = reader().save(tmp_path / "words")
    more["init"] = str(tmp_path / "first")  # a run stands for its model
    second = run(tmp_path / "second", budget="1 steps", optim={"lr": 0.0, "adamw_lr": 0.0}, **more)
    assert second.model is not None
    assert weights(first.model) == weights(second.model)
    for name, wrong, said in (
        ("a", {"model": SHAPE}, "leave model out"),
        ("b", {"process": {"kind": "discrete"}}, "process: init = "),
        ("c", {"target": "epsilon"}, "process: init = "),
        ("d", {"task": "unconditional-image-generation"}, "task: the model"),
        ("e", {"data": {**more["data"], "size": [16, 16]}}, "data.size: the model"),
        ("f", {"data": {**more["data"], "classes": {0: "r", 1: "g", 2: "b"}}}, "data.classes"),
        ("g", {"autoencoder": "x"}, "leave autoencoder out"),
        ("h", {"init": str(words)}, "is a distilbert, which draws nothing"),
    ):
        with pytest.raises(BedstoneError, match=said):
            run(tmp_path / name, **{**more, **wrong})


def test_words_of_an_earlier_run_are_read_by_its_own_tokenizer(tmp_path: Path) -> None:
    first = run(tmp_path / "first", **TEXT)
    assert first.model is not None
    fewer = {**TEXT, "data": {**SCENES, "most_rows": 5}, "model": {}, "text": {}}
    second = run(tmp_path / "second", **{**fewer, "init": str(first.model)})
    assert second.model is not None
    one, other = load_pipeline(first.model).tokenizer, load_pipeline(second.model).tokenizer
    assert one is not None
    assert other is not None
    assert one.encode("a red circle") == other.encode("a red circle")
    own = Tokenizer.load(tmp_path / "second" / "tokenizer")
    assert own.vocab_size == one.vocab_size


def test_captions_longer_than_the_context_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {**TEXT["text"], "context": 4}
    done = run(tmp_path / "run", **{**TEXT, "text": text})
    assert done.model is not None
    assert (tmp_path / "run" / "samples.png").is_file()
    with pytest.raises(BedstoneError, match="4 at most"):
        drawn(load_pipeline(done.model), "a red circle beside a blue star")


def test_a_published_pipeline_goes_on_learning(tmp_path: Path) -> None:
    """DiT's own form and noise; it is drawn as the recipe says from then on."""
    data = {"source": str(pictures(tmp_path / "p.parquet", side=16)), "size": [16, 16]}
    data["validation_share"] = 0.3
    made = coder().save(tmp_path / "coder")
    more: dict[str, Any] = {"data": data, "process": {"kind": "discrete"}, "target": "epsilon"}
    shape = {**SHAPE, "layout": "dit"}
    first = run(tmp_path / "first", model=shape, autoencoder=str(made), **more)
    assert first.model is not None
    (first.model / "drawing.json").unlink()
    (first.model / "bedstone.json").unlink()
    scheduler = first.model / "scheduler" / "scheduler_config.json"
    said = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**said, "_class_name": "DDIMScheduler"}))
    assert load_pipeline(first.model).scheduler
    data["classes"] = {"0": "0", "1": "1", "2": "2"}
    second = run(tmp_path / "second", model={}, init=str(first.model), **more)
    assert second.model is not None
    model = load_pipeline(second.model)
    assert not model.scheduler
    assert model.sampling.method == "dpm_solver_2m"
    assert isinstance(model.process, Discrete)


def test_compiled_runs_compile_what_takes_noise_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: seen.append(type(self).__name__))
    run(tmp_path / "run", **{**TEXT, "compile": True})
    assert seen == ["DiT"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"task": "class-to-imgae"}, "perhaps 'class-to-image'"),
    ({"model": {**SHAPE, "size": [16, 16]}}, "model.size: is decided by the data"),
    ({"model": {**SHAPE, "channels": 1}}, "model.channels: is decided"),
    ({"model": {**SHAPE, "classes": 3}}, "model.classes: is decided"),
    ({"model": {**SHAPE, "widht": 3}}, "perhaps 'model.width'"),
    ({"model": {**SHAPE, "patch": 3}}, "isn't divided by the patches"),
    ({"model": {**SHAPE, "patch": [2, 2, 2]}}, "model.patch"),
    ({"model": {**SHAPE, "layout": "gpt2"}}, "gpt2"),
    ({"process": {"kind": "flwo"}}, "perhaps 'flow'"),
    ({"process": {"kind": "flow", "shfit": 2.0}}, "perhaps 'process.shift'"),
    ({"process": {"kind": "discrete", "zero_terminal_snr": True}, "target": "epsilon"}, "epsilon"),
    ({"target": "v"}, "target: 'v' is unknown"),
    ({"weight": "minsnr"}, "perhaps 'min_snr'"),
    ({"times": "normal"}, "times: 'normal'"),
    ({"drop": 1.5}, "drop"),
    ({"drop": 0.0, "sampling": {"guidance": 2.0}}, "drop: 0 was given"),
    ({"average": -0.1}, "average"),
    ({"sampling": {"method": "dimm"}}, "sampling.method: 'dimm' is unknown; perhaps 'ddim'"),
    ({"sampling": {"spacing": "trail"}}, "sampling.spacing: 'trail' is unknown"),
    ({"sampling": {"spacing": "leading"}}, "sampling.spacing: 'leading'"),
    (
        {"sampling": {"steps": 30}, "process": {"kind": "discrete", "steps": 20}},
        "sampling.steps: 30",
    ),
    ({"sampling": {"guidance": -1.0}}, "sampling.guidance"),
    ({"sampling": {"interval": [0.5, 0.2]}}, "sampling.interval"),
    ({"data": {**SCENES, "size": [8]}}, "data.size"),
    ({"data": {**SCENES, "size": [16, 20]}}, "scenes are square"),
    ({"data": {"source": "solids"}}, "'solids' is volume"),
    ({"data": {"source": "no/such.parquet"}}, "no/such.parquet"),
    ({"data": {**SCENES, "memory_mb": 0.001}}, "data.memory_mb"),
    ({"task": "class-to-audio", "data": {"size": [8]}, "augment": {"flip": 0.5}}, "augment.flip"),
    ({"task": "class-to-video", "data": {"source": "my-videos"}}, "is no .npz file"),
    ({**TEXT, "tokenizer": {"kind": "characters"}}, "tokenizer.kind: 'characters'"),
    ({**TEXT, "text": {"context": 2}}, "text.context"),
    ({**TEXT, "text": {"width": 16, "heads": 3}}, "text.heads: 3 don't divide"),
    ({"seed": -1}, "seed: -1"),
    ({"seed": 2**63}, "at most 9,223,372,036,854,775,807"),
    ({**TEXT, "text": {"encoder": "no/such"}}, "no/such"),
    ({"autoencoder": "no/such"}, "no/such"),
    ({"init": "no/such", "model": {}}, "no/such"),
]


@pytest.mark.parametrize(("more", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_what_is_refused_before_training(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        run(tmp_path / "run", **{"data": dict(SCENES), **more})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_autoencoders_and_readers_that_do_not_fit(tmp_path: Path) -> None:
    grey = coder(channels=1).save(tmp_path / "grey")
    fine = coder().save(tmp_path / "fine")
    words = reader().save(tmp_path / "words")
    data = {**SCENES, "size": [16, 16]}
    for number, (more, said) in enumerate(
        [
            ({"autoencoder": str(grey)}, "reads pictures of 1 channels"),
            ({"autoencoder": str(words)}, "expected an autoencoder_kl"),
            (
                {"autoencoder": str(fine), "task": "class-to-volume", "data": {"source": "solids"}},
                "class-to-volume makes none",
            ),
            ({"autoencoder": str(fine), "data": {**SCENES, "size": [17, 17]}}, "multiples of that"),
            ({"autoencoder": str(fine), "augment": {"flip": 0.5}}, "can't be mirrored"),
            ({**TEXT, "text": {"encoder": str(fine)}}, "reads no words"),
        ]
    ):
        with pytest.raises(BedstoneError, match=said):
            run(tmp_path / str(number), **{"data": data, **more})
