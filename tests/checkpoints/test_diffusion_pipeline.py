"""Folders of what draws: written and read whole, broken ones refused by name."""

import json
import os
from pathlib import Path

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import DiffusionPipeline, load_pipeline
from bedstone.diffusion.process import EDM, Discrete, Flow
from bedstone.errors import BedstoneError
from bedstone.models.autoencoder import discrete as discrete_autoencoder
from bedstone.models.autoencoder.config import DiscreteConfig
from drawings import NAMES, SHAPES, coder, drawing, reader

PARTS = {"none": {}, "class": {}, "text": {"text_encoder", "tokenizer"}}


def loose(folder: Path) -> Path:
    """Without the list of its files' hashes, so that parts can be changed."""
    (folder / "bedstone.json").unlink()
    return folder


@pytest.mark.parametrize("condition", PARTS)
@pytest.mark.parametrize("kind", SHAPES)
def test_all_that_a_model_is_comes_back(tmp_path, condition, kind):
    model = drawing(condition, kind, latent=False)
    found = load_pipeline(model.save(tmp_path / "model"))
    assert found.signal == model.signal
    assert found.sampling == model.sampling
    assert found.config == model.config
    assert found.target.name == model.target.name
    assert found.process == model.process
    weights = model.network.state_dict()
    assert all(torch.equal(weights[name], w) for name, w in found.network.state_dict().items())
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert set(index) >= {"transformer", "scheduler", *PARTS[condition]}
    assert {path.name for path in (tmp_path / "model").iterdir() if path.is_dir()} == {
        "transformer",
        "scheduler",
        *PARTS[condition],
    }


@pytest.mark.parametrize(
    ("process", "predicts"),
    [
        (Flow(shift=2.0), "flow_prediction"),
        (Discrete(50, "squaredcos_cap_v2"), "v_prediction"),
        (Discrete(50, shift=2.0), "epsilon"),
        (Discrete(50, zero_terminal_snr=True), "v_prediction"),
        (EDM(data_std=0.7), "edm"),
    ],
)
def test_noise_is_added_alike_after_a_folder(tmp_path, process, predicts):
    model = drawing(process=process, predicts=predicts)
    found = load_pipeline(model.save(tmp_path / "model"))
    t = torch.linspace(0.1, 1, 10)
    torch.testing.assert_close(found.process.log_snr(t), process.log_snr(t), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.process.timestep(t), process.timestep(t))
    assert found.target.name == predicts


def test_the_package_opens_it_and_its_card_says_how_to_draw(tmp_path):
    model = bedstone.load(drawing().save(tmp_path / "model"))
    assert isinstance(model, DiffusionPipeline)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f'bedstone imagine . "{NAMES[0]}" --out out.png' in card
    assert "3 classes" in card
    assert "drawn by" in card
    words = drawing("text", "audio").save(tmp_path / "words")
    assert '"a red circle" --out out.wav' in (words / "README.md").read_text()


def test_a_folder_that_draws_nothing(tmp_path):
    with pytest.raises(BedstoneError, match=r"has no model_index\.json"):
        load_pipeline(reader().save(tmp_path / "words"))
    model = loose(drawing().save(tmp_path / "model"))
    (model / "transformer").rename(tmp_path / "kept")
    with pytest.raises(BedstoneError, match="without a transformer"):
        load_pipeline(model)


def test_a_file_that_changed_is_noticed(tmp_path):
    model = drawing().save(tmp_path / "model")
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(BedstoneError, match="diffusion_pytorch_model"):
        load_pipeline(model)


def test_another_autoencoder_is_refused(tmp_path):
    model = loose(drawing(latent=True).save(tmp_path / "model"))
    for number, (other, told) in enumerate(
        [
            (coder(latents=8), "latents of 8 channels into pictures of 3"),
            (coder(channels=1), "latents of 4 channels into pictures of 1"),
        ]
    ):
        (model / "vae").rename(tmp_path / f"was{number}")
        other.save(model / "vae")
        with pytest.raises(BedstoneError, match=told):
            load_pipeline(model)
    (model / "vae").rename(tmp_path / "last")
    with pytest.raises(BedstoneError, match="draws 4 channels, and a signal has 3"):
        load_pipeline(model)


def test_codes_are_no_latents(tmp_path):
    model = loose(drawing(latent=True).save(tmp_path / "model"))
    (model / "vae").rename(tmp_path / "was")
    shape = DiscreteConfig(image_size=16, widths=(8, 8), groups=4, patch=1)
    Model(discrete_autoencoder.build_discrete(shape)).save(model / "vae")
    with pytest.raises(BedstoneError, match="vae/ is a fsq_autoencoder"):
        load_pipeline(model)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ([], "expected a JSON object"),
        ({"signal": {}}, "expected an object with signal and sampling"),
        ({"signal": {"kind": "film"}, "sampling": {}}, "draws 'film' from 'none'"),
        ({"signal": {"condition": "song"}, "sampling": {}}, "draws 'image' from 'song'"),
        ({"signal": {"shape": [3, 8]}, "sampling": {}}, r"signal\.shape: \[3, 8\]"),
    ],
)
def test_a_damaged_form_is_named(tmp_path, form, said):
    model = loose(drawing().save(tmp_path / "model"))
    (model / "drawing.json").write_text(json.dumps(form))
    with pytest.raises(BedstoneError, match=said):
        load_pipeline(model)


def test_names_of_a_published_folder_stand_at_their_numbers(tmp_path):
    model = loose(drawing().save(tmp_path / "model"))
    (model / "drawing.json").unlink()
    index = json.loads((model / "model_index.json").read_text())
    for labels, names in (
        ({"2": "cat", "0": "dog"}, ("dog", "1", "cat")),
        ({"first": "dog"}, ("0", "1", "2")),
        (["dog"], ("0", "1", "2")),
    ):
        (model / "model_index.json").write_text(json.dumps({**index, "id2label": labels}))
        assert load_pipeline(model).signal.names == names


def test_another_reader_of_words_is_refused(tmp_path):
    model = loose(drawing("text").save(tmp_path / "model"))
    (model / "text_encoder").rename(tmp_path / "narrow")
    reader(width=32).save(model / "text_encoder")
    with pytest.raises(BedstoneError, match="states of width 32; the denoiser reads 16"):
        load_pipeline(model)


def test_a_model_of_classes_reads_no_words(tmp_path):
    with pytest.raises(BedstoneError, match="draws one of 3 classes"):
        drawing().prompts  # noqa: B018
