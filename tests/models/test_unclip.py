"""unCLIP's prior: the shared test, diffusers' network both ways, statistics, what it reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.images.contrastive import text_rows
from bedstone.data.signals.signals import Prompts
from bedstone.data.text.packing import pack
from bedstone.errors import BedstoneError
from bedstone.models.published import layout
from bedstone.models.unclip.network import (
    ConditionedPrior,
    Prior,
    PriorConfig,
    build,
    joint,
    make,
    read_words,
)
from image_models import clip_model
from networks import check_network, check_published, randomise

SMALL: dict[str, Any] = {"embed": 6, "text_tokens": 5, "width": 16, "layers": 2, "heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "usual": SMALL,
    "odd, of other widths": {
        **SMALL,
        "width": 15,
        "heads": 3,
        "text_tokens": 3,
        "time_width": 11,
        "words_embed": 9,
        "out_embed": 7,
        "norm_in": True,
        "norm_words": True,
        "time_activation": "gelu",
    },
    "without a query": {**SMALL, "query": False, "additional": 3, "layers": 1},
    "states of its own width": {**SMALL, "projects_words": False, "layers": 3},
}
ROWS = 3


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest) -> PriorConfig:
    return PriorConfig(**SHAPES[request.param])


def inputs(case: PriorConfig) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Embeddings, timesteps, and what they are conditioned on; texts of 1 and more words."""
    chance = torch.Generator().manual_seed(3)
    wide = case.embed if case.projects_words else case.width
    keep = torch.arange(case.text_tokens) < torch.tensor([case.text_tokens, 2, 1])[:, None]
    given = {
        "words": torch.randn(ROWS, case.words_embed, generator=chance),
        "text": torch.randn(ROWS, case.text_tokens, wide, generator=chance),
        "text_keep": keep,
    }
    x = torch.randn(ROWS, case.embed, generator=chance)
    return x, torch.tensor([999, 500, 0]), given


def ready(case: PriorConfig) -> Prior:
    network = make(case)
    randomise(network)
    with torch.no_grad():
        network.mean.normal_(generator=torch.Generator().manual_seed(1))
        network.std.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return network.eval()


def test_network(case: PriorConfig) -> None:
    x, t, given = inputs(case)
    check_network(make(case), lambda one: one(x, t, **given), (ROWS, case.out_embed))


@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_published_one_both_ways(case: PriorConfig, masked: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    how, network = layout("prior_transformer"), ready(case)
    values = {k: v for k, v in how.write_config(case).items() if k != "_class_name"}
    x, t, given = inputs(case)
    keep = given["text_keep"] if masked else None

    def theirs(published: Any) -> Tensor:
        found = published(
            x,
            t,
            proj_embedding=given["words"],
            encoder_hidden_states=given["text"],
            attention_mask=keep,
        ).predicted_image_embedding
        return found if case.query else found[:, 0]

    peer = diffusers.PriorTransformer(**values)
    ours = lambda one: one(x, t, **{**given, "text_keep": keep})  # noqa: E731
    check_published(how, network, peer, ours, theirs)
    assert how.read({**dict(peer.config), "_class_name": "PriorTransformer"}, set()) == case
    with torch.no_grad():
        assert torch.allclose(peer.post_process_latents(x[:, :1]), network.restored(x[:, :1]))


def test_positions_of_the_embeddings_alone() -> None:
    """As Shap-E has them: rows of several embeddings, and no text."""
    diffusers = pytest.importorskip("diffusers")
    config = PriorConfig(**{**SMALL, "additional": 0, "query": False, "projects_words": False})
    how, network = layout("prior_transformer"), ready(config)
    values = {k: v for k, v in how.write_config(config).items() if k != "_class_name"}
    x = torch.randn(ROWS, 5, 6, generator=torch.Generator().manual_seed(0))
    words, t = x[:, 0], torch.tensor([7, 8, 9])
    check_published(
        how,
        network,
        diffusers.PriorTransformer(**values),
        lambda one: one(x, t, words=words),
        lambda one: one(x, t, proj_embedding=words).predicted_image_embedding,
    )
    with pytest.raises(BedstoneError, match=r"x: 4 tokens were given; .* 5 positions"):
        network(x[:, :2], t, words=words)


def test_a_folder_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    peer = diffusers.PriorTransformer(2, 8, 1, 6, 5).eval()
    torch.nn.init.uniform_(peer.clip_std, 0.5, 1.0)
    peer.save_pretrained(tmp_path / "theirs")
    model = bedstone.load(tmp_path / "theirs")
    assert isinstance(model.network, Prior)
    model.save(tmp_path / "ours")
    again = diffusers.PriorTransformer.from_pretrained(tmp_path / "ours")
    for name, value in peer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_texts_may_be_shorter_and_filling_says_nothing() -> None:
    case = PriorConfig(**SMALL)
    network = ready(case)
    x, t, given = inputs(case)
    words, keep = given["words"], given["text_keep"]
    with torch.no_grad():
        found = network(x, t, **given)
        other = given["text"].masked_fill(~keep[..., None], 7.0)
        assert torch.allclose(network(x, t, words=words, text=other, text_keep=keep), found)
        short = network(
            x[1:], t[1:], words=words[1:], text=given["text"][1:, :2], text_keep=keep[1:, :2]
        )
        assert torch.allclose(short, found[1:], atol=1e-6)
        alone = network(x[1:2], t[1:2], **{name: each[1:2] for name, each in given.items()})
        assert torch.allclose(alone, found[1:2], atol=1e-6)


def test_shapes_that_do_not_fit() -> None:
    case = PriorConfig(**SMALL)
    network = ready(case)
    x, t, given = inputs(case)
    with pytest.raises(BedstoneError, match="text: none was given"):
        network(x, t, words=given["words"])
    with pytest.raises(BedstoneError, match=r"reads states of width 6 .* CLIP that it was trained"):
        network(x, t, **{**given, "text": given["text"][..., :4]})
    with pytest.raises(BedstoneError, match="text: has 4 states"):
        network(x, t, words=given["words"], text=given["text"][:, :4])
    with pytest.raises(BedstoneError, match="don't make the width"):
        PriorConfig(width=10, heads=3)
    with pytest.raises(BedstoneError, match="norm_in_type = 'batch'"):
        layout("prior_transformer").read({"norm_in_type": "batch"}, set())


# Statistics.


def test_standardised_and_back() -> None:
    network = ready(PriorConfig(**SMALL))
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network.restored(network.standardised(x)), x, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, float("nan"), -1.0])
def test_a_prior_without_statistics_is_refused(value: float) -> None:
    fresh = build(PriorConfig(**SMALL), seed=0)
    for call in (fresh.check, lambda: fresh.restored(torch.zeros(1, 6))):
        with pytest.raises(BedstoneError, match=r"prior: its clip_std is 0 .* 6 of 6 dimensions"):
            call()
    network = ready(PriorConfig(**SMALL))
    network.check()
    network.std[2] = value
    with pytest.raises(BedstoneError, match="1 of 6 dimensions"):
        network.standardised(torch.zeros(1, 6))


def test_weights_without_statistics_are_refused(tmp_path: Path) -> None:
    Model(ready(PriorConfig(**SMALL))).save(tmp_path / "prior")
    (tmp_path / "prior" / "bedstone.json").unlink()
    name = "diffusion_pytorch_model.safetensors"
    tensors = load_tensors(tmp_path / "prior", name=name)
    tensors.pop("clip_mean")
    save_tensors(tmp_path / "prior", tensors, name=name)
    with pytest.raises(BedstoneError, match="the weights have no clip_mean"):
        bedstone.load(tmp_path / "prior")


# What a prior reads of a CLIP.


@pytest.mark.parametrize("kind", ["clip", "clip_resnet"])
def test_words_are_read_as_the_clip_itself_reads_them(kind: str) -> None:
    clip = clip_model(kind)
    texts = ["a photo of a red circle", "things"]
    condition = Prompts(clip.tokenizer, clip.config.context).condition(texts)
    vectors, states = read_words(clip.network, condition.ids, condition.keep)
    packed = pack(text_rows(clip.tokenizer, texts, clip.config))
    with torch.no_grad():
        own = joint(clip.network.text_features(packed))
    assert torch.allclose(vectors, own, atol=1e-5)
    embed = clip.config.embed
    assert states.shape == (2, condition.ids.shape[1], embed)
    assert torch.allclose(vectors.square().mean(1), torch.ones(2))


def test_a_prior_with_its_clip() -> None:
    clip = clip_model()
    config = PriorConfig(**{**SMALL, "embed": clip.config.embed, "text_tokens": 20})
    network = ConditionedPrior(ready(config), clip.network)
    assert not any(name.startswith("read") for name in network.state_dict())
    condition = Prompts(clip.tokenizer, 20).condition(["a red circle", "green things"])
    x = torch.zeros(2, clip.config.embed)
    with torch.no_grad():
        one, other = network(x, torch.tensor([9, 9]), condition.ids, condition.keep)
    assert not torch.allclose(one, other)
