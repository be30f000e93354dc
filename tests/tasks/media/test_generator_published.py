"""DiT pipelines beside diffusers: a published folder draws the same here, and ours there."""

import diffusers
import pytest
import torch

import bedstone
from bedstone.checkpoints.pipeline import DiffusionPipeline, load_pipeline
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.reading import read_json
from bedstone.tasks.media.generator import MediaGenerator
from drawings import STEPS, drawing
from networks import randomise

CLASSES = 1000  # DiTPipeline takes this number for no class
SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "ddim-trailing": lambda: diffusers.DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2"
    ),
    "ddim-clipped": lambda: diffusers.DDIMScheduler(clip_sample_range=0.7, set_alpha_to_one=False),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(),
    "dpm-karras": lambda: diffusers.DPMSolverMultistepScheduler(
        use_karras_sigmas=True, beta_schedule="scaled_linear"
    ),
}


def transformer(**changes) -> diffusers.DiTTransformer2DModel:
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 4}
    shape |= {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": CLASSES, **changes}
    network = diffusers.DiTTransformer2DModel(norm_type="ada_norm_zero", norm_num_groups=2, **shape)
    randomise(network, seed=1)
    return network.eval()


def vae(channels: int = 4) -> diffusers.AutoencoderKL:
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
    ).eval()


def theirs(pipe, classes, noise, steps, guidance, monkeypatch):
    """What diffusers' pipeline draws from this noise: (B, 3, H, W) of -1 to 1."""
    name = "diffusers.pipelines.dit.pipeline_dit.randn_tensor"
    monkeypatch.setattr(name, lambda **told: noise.clone())
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt"}
    return pipe(class_labels=classes, **how).images * 2 - 1


NOISE = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_published_pipeline_draws_the_same(name, guidance, tmp_path, monkeypatch):
    pipe = diffusers.DiTPipeline(transformer(), vae(), SCHEDULERS[name]())
    pipe.save_pretrained(tmp_path / "pipe")
    labels = {str(number): f"thing {number}, other {number}" for number in range(CLASSES)}
    index = read_json(tmp_path / "pipe" / "model_index.json")
    write_json(tmp_path / "pipe" / "model_index.json", {**index, "id2label": labels})
    expected = theirs(pipe, [3, 207], NOISE, 20, guidance, monkeypatch)
    model = bedstone.load(tmp_path / "pipe")
    assert isinstance(model, DiffusionPipeline)
    how = {"noise": NOISE, "steps": 20, "guidance": guidance}
    found = MediaGenerator(model).draw([3, "other 207"], [0, 0], **how).signals
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Saved by us, it is drawn as it was, and diffusers still opens it.
    model.save(tmp_path / "copy")
    again = MediaGenerator(bedstone.load(tmp_path / "copy")).draw([3, 207], [0, 0], **how).signals
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)
    copied = diffusers.DiTPipeline.from_pretrained(tmp_path / "copy")
    assert copied.get_label_ids(["other 207"]) == [207]
    found = theirs(copied, [3, 207], NOISE, 20, guidance, monkeypatch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_method_of_ours_takes_the_place_of_the_published(tmp_path):
    pipe = diffusers.DiTPipeline(transformer(), vae(), SCHEDULERS["ddim"]())
    pipe.save_pretrained(tmp_path / "pipe")
    drawer = MediaGenerator(load_pipeline(tmp_path / "pipe"))
    published = drawer.draw([3], [0], steps=5)
    assert published.recipes[0]["sampling"]["spacing"] == "as scheduler_config.json has it"
    ours = drawer.draw([3], [0], steps=5, method="ddim")  # trailing, where theirs is leading
    assert (ours.signals - published.signals).abs().max() > 1e-3
    assert drawer.model.sampling.guidance == 4
    with pytest.raises(BedstoneError, match="steps: 1001"):
        drawer.draw([3], [0], steps=1001)


@pytest.mark.parametrize("method", ["ddim", "dpm_solver_2m"])
def test_ours_written_as_a_pipeline_draws_the_same_there(method, tmp_path, monkeypatch):
    made = drawing(latent=True, process=STEPS, method=method)
    network = made.network
    pipe = diffusers.DiTPipeline(transformer(sample_size=8), vae(), SCHEDULERS["ddim"]())
    pipe.save_pretrained(tmp_path / "begin")
    begun = load_pipeline(tmp_path / "begin")
    ours = DiffusionPipeline(
        begun.network,
        process=made.process,
        target=made.target,
        signal=begun.signal,
        sampling=made.sampling,
        autoencoder=begun.autoencoder,
    )
    assert network is not begun.network
    ours.save(tmp_path / "ours")
    assert read_json(tmp_path / "ours" / "model_index.json")["_class_name"] == "DiTPipeline"
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    found = MediaGenerator(load_pipeline(tmp_path / "ours")).draw(
        [5, 6], [0, 0], noise=noise, steps=10
    )
    opened = diffusers.DiTPipeline.from_pretrained(tmp_path / "ours")
    expected = theirs(opened, [5, 6], noise, 10, made.sampling.guidance, monkeypatch)
    torch.testing.assert_close(found.signals, expected, atol=1e-4, rtol=1e-4)


def test_an_autoencoder_of_other_channels_is_named(tmp_path):
    pipe = diffusers.DiTPipeline(transformer(), vae(3), SCHEDULERS["ddim"]())
    pipe.save_pretrained(tmp_path / "pipe")
    with pytest.raises(BedstoneError, match=r"vae/ turns latents of 3 channels.*latents of 4"):
        load_pipeline(tmp_path / "pipe")


def test_a_pipeline_whose_scheduler_ours_is_not(tmp_path):
    scheduler = diffusers.DPMSolverMultistepScheduler(solver_order=3)
    diffusers.DiTPipeline(transformer(), vae(), scheduler).save_pretrained(tmp_path / "pipe")
    drawer = MediaGenerator(load_pipeline(tmp_path / "pipe"))
    with pytest.raises(BedstoneError, match=r"solver_order is 3.*Name a sampler instead"):
        drawer.draw([3], [0])
    assert drawer.draw([3], [0], method="dpm_solver_2m", steps=3).signals.isfinite().all()
