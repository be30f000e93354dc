"""ViT: the shared network test, parity with the published implementation, heads, patches."""

import json
from dataclasses import replace

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout
from bedstone.models.vit.network import ViTConfig, build
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.lora import LoraConfig, add_adapter
from bedstone.nn.patches import PatchEmbed, patchify, unpatchify
from networks import check_network, randomise

LABELS = ("cat", "dog", "a bird")
HEADS = {
    "states": HeadConfig("states"),
    "pooled": HeadConfig("pooled"),
    "sequence": HeadConfig("sequence", LABELS),
    "multi": HeadConfig("sequence", LABELS, "multi"),
}
SHAPES = {
    "small": {"image_size": 20, "patch": 5},
    # a patch that doesn't divide, pictures and patches that aren't square, no biases
    "odd": {"image_size": (23, 14), "patch": (5, 3), "activation": "relu", "qkv_bias": False},
    "wide-heads": {"image_size": 18, "patch": 6, "head_width": 6, "norm_eps": 1e-5, "channels": 1},
}


def config(shape: str = "small", head: str = "states", **changes) -> ViTConfig:
    known = {"layout": "vit", "width": 32, "layers": 2, "heads": 4, "hidden": 48}
    return ViTConfig(**{**known, **SHAPES[shape], "head": HEADS[head], **changes})


CASES = {f"{s}-{h}": config(s, h) for s in SHAPES for h in HEADS}


@pytest.fixture(params=CASES, ids=str)
def case(request) -> ViTConfig:
    return CASES[request.param]


def pixels(case: ViTConfig, count: int = 3) -> torch.Tensor:
    shape = (count, case.channels, *case.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def test_network(case):
    shapes = {"states": (3, case.patches + 1, case.width), "pooled": (3, case.width)}
    x = pixels(case)
    shape = shapes.get(case.head.kind, (3, 3))
    check_network(build(case), lambda network: network(x), shape)


def their_output(case, network):
    out = network(pixels(case))
    if case.head.kind == "sequence":
        return out.logits
    return out.pooler_output if case.head.kind == "pooled" else out.last_hidden_state


def test_whole_folders_open_both_ways(case, tmp_path):
    """Files alone: within transformers 5 its modules have other names than its files."""
    import transformers

    model = Model(build(case).eval())
    randomise(model.network)
    model.save(tmp_path / "ours")
    kind = getattr(transformers, model.layout.architecture(case))
    extra = {"add_pooling_layer": False} if case.head.kind == "states" else {}
    theirs = kind.from_pretrained(tmp_path / "ours", **extra).eval()
    with torch.no_grad():
        out = model.network(pixels(case))
        assert (out - their_output(case, theirs)).abs().max() < 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    again = bedstone.load(tmp_path / "theirs")
    assert again.config == case
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key


def test_its_folder_says_what_it_is(tmp_path):
    Model(build(config(head="sequence"))).save(tmp_path / "m")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "a bird" in card
    assert "ViTForImageClassification" in card
    assert not (tmp_path / "m" / "generation_config.json").exists()
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert written["image_size"] == 20
    assert written["id2label"]["2"] == "a bird"


def test_a_new_head_keeps_the_body():
    network = build(config(head="pooled"), seed=1)
    body = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("head")}
    network.set_head(HEADS["sequence"], seed=5)
    assert network(pixels(config())).shape == (3, 3)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in body.items())


def test_patches_that_are_kept_are_read_alone():
    case = config()
    network = build(case, seed=0).eval()
    x = pixels(case, 2)
    every = torch.arange(16).expand(2, 16)
    torch.testing.assert_close(network(x, every), network(x))
    kept = torch.tensor([[0, 5, 9], [15, 3, 2]])
    out = network(x, kept)
    assert out.shape == (2, 4, 32)
    hidden = x.clone()  # what isn't kept has no part in it
    hidden[0, :, 10:, 10:] = 7.0
    torch.testing.assert_close(network(hidden, kept)[0], out[0])


@pytest.mark.parametrize("head", ["sequence", "pooled"])
def test_one_state_alone_is_the_same_as_all(head):
    network = build(config(head=head), seed=0).eval()
    randomise(network)
    x = pixels(config())
    torch.testing.assert_close(network(x), network.head(network.states(x)[:, 0]))


def test_it_is_made_ready_for_inference():
    network = build(config("odd", "sequence"), seed=0).eval()
    randomise(network)
    x = pixels(config("odd"))
    with torch.inference_mode():
        exact = network(x)
        torch.testing.assert_close(for_inference(network, torch.float32)(x), exact)
        rough = for_inference(network, torch.bfloat16)(x).float()
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_adapters_are_put_on_from_outside():
    network = build(config(head="sequence"), seed=0)
    before = network(pixels(config()))
    add_adapter(network, LoraConfig(rank=2, targets=("q", "v"), train=("head",)))
    learns = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learns
    assert not any("patches" in name for name in learns)
    torch.testing.assert_close(network(pixels(config())), before)


@pytest.mark.parametrize("sizes", [(12,), (6, 8), (4, 6, 2)])
def test_signals_of_any_dimension_are_tokens_and_back(sizes):
    patch = (3, 2, 2)[: len(sizes)] if len(sizes) < 3 else (2, 3, 1)
    signal = torch.randn(2, 3, *sizes)
    tokens = patchify(signal, patch)
    grid = [size // one for size, one in zip(sizes, patch, strict=True)]
    assert torch.equal(unpatchify(tokens, patch, grid), signal)
    embed = PatchEmbed(patch, 3, 5)
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[len(sizes) - 1]
    found = convolve(signal, embed.weight, embed.bias, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(signal), found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layout": "vti"}, "perhaps 'vit'"),
        ({"heads": 5, "head_width": 0}, "doesn't divide the width"),
        ({"patch": 30}, "larger than the pictures"),
        ({"patch": (4, 4, 4)}, "height and width"),
        ({"activation": "gelo"}, "perhaps 'gelu'"),
        ({"head": HeadConfig("spans")}, "isn't a ViT's"),
        ({"layers": 0}, "layers"),
    ],
)
def test_shapes_that_cannot_be(changes, told):
    with pytest.raises(BedstoneError, match=told):
        replace(config(), **changes)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(BedstoneError, match="reads pictures of"):
        build(config())(torch.zeros(1, 3, 24, 24))


def test_heads_of_others_are_refused():
    published = layout("vit").write_config(config())
    published["architectures"] = ["ViTForMaskedImageModeling"]
    with pytest.raises(BedstoneError, match="ViTForMaskedImageModeling"):
        layout("vit").read_config(published)
