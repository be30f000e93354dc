"""What a user names opens: folders that draw, runs for their models; parts that don't fit don't."""

import dataclasses

import pytest

import bedstone
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.pipeline import DiffusionPipeline, check_parts, load_pipeline
from bedstone.errors import BedstoneError
from drawings import coder, drawing, reader


def test_what_draws_opens_as_every_model_does(tmp_path):
    made = drawing("text", latent=True)
    made.save(tmp_path / "model")
    for opens in (bedstone.load, open_model, load_pipeline, DiffusionPipeline.from_pretrained):
        model = opens(tmp_path / "model")
        assert isinstance(model, DiffusionPipeline)
        assert model.signal == made.signal
        assert model.sampling == made.sampling
        assert not model.scheduler
    before, after = made.network.state_dict(), model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    assert not isinstance(bedstone.load(tmp_path / "model" / "text_encoder"), DiffusionPipeline)


def test_a_run_stands_for_its_model(tmp_path):
    (tmp_path / "recipe.yaml").write_text("task: class-to-image\n")
    with pytest.raises(BedstoneError, match="no checkpoint yet"):
        bedstone.load(tmp_path)
    drawing().save(tmp_path / "model")
    assert bedstone.load(tmp_path).path == tmp_path / "model"


def test_a_folder_that_draws_nothing(tmp_path):
    reader().save(tmp_path / "words")
    with pytest.raises(BedstoneError, match=r"no model_index.json, so it draws nothing"):
        load_pipeline(tmp_path / "words")


def test_parts_that_do_not_fit_are_named():
    latent = drawing(latent=True)
    for wrong, said in ((coder(3), "latents of 3 channels"), (coder(channels=1), "pictures of 1")):
        with pytest.raises(BedstoneError, match=said):
            check_parts(dataclasses.replace(latent, autoencoder=wrong))
    with pytest.raises(BedstoneError, match="draws 4 channels, and a signal has 3"):
        check_parts(dataclasses.replace(latent, autoencoder=None))
    with pytest.raises(BedstoneError, match=r"states of width 24; the denoiser reads 16"):
        check_parts(dataclasses.replace(drawing("text"), reader=reader(24)))
