"""A CNN in CLIP's form: the shared network test, OpenAI's names, folded norms."""

import pytest
import torch
import torch.nn.functional as F

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.models.clip import network as clip
from bedstone.models.published import layout, to_published
from bedstone.models.resnet import network as resnet
from bedstone.models.resnet.network import ResNetConfig
from bedstone.nn.fast.inference import for_inference
from networks import check_network

TEXT = {"vocab_size": 99, "context": 12, "width": 24, "layers": 1, "heads": 4}
SHAPES = {
    "published": {"image_size": 64, "width": 8, "blocks": [1, 2, 1, 1], "heads": 4},
    "small": {"image_size": 28, "channels": 1, "width": 16, "blocks": [1, 1, 1], "shrink": 1},
    "basic": {"image_size": 32, "width": 12, "blocks": [2, 1], "block": "basic", "shrink": 2},
}
SHAPES["small"]["block"] = "basic"


def config(shape: str) -> ResNetConfig:
    values = {**SHAPES[shape], "blocks": tuple(SHAPES[shape]["blocks"])}
    return ResNetConfig(**values, features=10)


@pytest.fixture(params=SHAPES)
def case(request) -> ResNetConfig:
    return config(request.param)


def pixels(case: ResNetConfig, count: int = 3) -> torch.Tensor:
    shape = (count, case.channels, *case.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def trained(network):
    """Norms that have seen something."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network.features(pixels(network.config, 8) * 2 + 1)
    return network.eval()


def test_network(case):
    network = trained(resnet.build(case, seed=0))
    check_network(network, lambda net: net.features(pixels(case)), (3, 10))


def test_maps_have_the_size_that_is_told(case):
    maps = resnet.build(case).maps(pixels(case))
    assert tuple(maps.shape) == (3, case.states, case.side, case.side)


def test_clip_s_rn50_has_openai_s_names_and_shapes():
    whole = clip.clip_config({"layout": "clip_resnet", "embed": 1024, "text": {"layers": 1}})
    with torch.device("meta"):
        tensors = to_published(layout("clip_resnet"), clip.make(whole))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert {
        "visual.conv1.weight": (32, 3, 3, 3),
        "visual.bn3.running_var": (64,),
        "visual.layer1.0.conv1.weight": (64, 64, 1, 1),
        "visual.layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "visual.layer1.0.downsample.1.weight": (256,),
        "visual.layer4.2.conv3.weight": (2048, 512, 1, 1),
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.q_proj.weight": (2048, 2048),
        "visual.attnpool.c_proj.weight": (1024, 2048),
    }.items() <= shapes.items()
    assert "visual.layer1.1.downsample.0.weight" not in shapes
    count = sum(tensors[n].numel() for n in tensors if n.startswith("visual.") and "num_" not in n)
    buffers = sum(t.numel() for n, t in tensors.items() if "running" in n)
    assert count - buffers == 38_316_896  # RN50's image tower, as published


def test_the_pool_is_attention_of_the_mean_to_the_map():
    """OpenAI's form, written out by torch's own function."""
    case = config("basic")
    pool = resnet.build(case, seed=0).pool
    maps = torch.randn(2, case.states, case.side, case.side)
    x = maps.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positions.weight[:, None]
    attn = pool.attn
    expected, _ = F.multi_head_attention_forward(
        query=x[:1],
        key=x,
        value=x,
        embed_dim_to_check=case.states,
        num_heads=case.heads,
        q_proj_weight=attn.q.weight,
        k_proj_weight=attn.k.weight,
        v_proj_weight=attn.v.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([attn.q.bias, attn.k.bias, attn.v.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attn.out.weight,
        out_proj_bias=attn.out.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    torch.testing.assert_close(pool(maps), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_opened_it_is_the_same_to_the_bit(shape, tmp_path):
    given = {"layout": "clip_resnet", "image": SHAPES[shape], "text": TEXT, "embed": 14}
    whole = clip.clip_config(given)
    network = clip.build(whole, seed=0)
    trained(network.image)
    Model(network).save(tmp_path / "m")
    again = bedstone.load(tmp_path / "m")
    assert again.config.image == whole.image
    assert again.config.embed == 14
    x = pixels(whole.image)
    assert torch.equal(again.network.image_features(x), network.image_features(x))
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    assert "Bedstone alone opens it" in (tmp_path / "m" / "README.md").read_text()
    halved = bedstone.load(tmp_path / "m", dtype=torch.bfloat16).network.state_dict()
    assert halved["image.stem.0.norm.num_batches_tracked"].dtype is torch.int64


def test_norms_fold_into_convolutions(case):
    network = trained(resnet.build(case, seed=0))
    for name, weight in network.named_parameters():
        if "norm.weight" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)  # no block is its shortcut alone
    x = pixels(case)
    with torch.inference_mode():
        exact = network.features(x)
        folded = for_inference(network, torch.float32)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded.features(x), exact, rtol=1e-3, atol=1e-4)
        rough = for_inference(network, torch.bfloat16).features(x).float()
    assert torch.cosine_similarity(rough, exact).min() > 0.99


def test_a_block_begins_as_its_shortcut():
    block = resnet.build(config("published"), seed=0).stages[1][1].eval()
    x = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(x), x)


def test_what_cannot_be():
    with pytest.raises(BedstoneError, match="perhaps 'basic'"):
        ResNetConfig(block="basik")
    with pytest.raises(BedstoneError, match="too few"):
        ResNetConfig(image_size=16)
    with pytest.raises(BedstoneError, match="shrink"):
        ResNetConfig(shrink=3)
    small = resnet.build(config("small"))
    with pytest.raises(BedstoneError, match="patch_dropout"):
        small.features(pixels(config("small")), torch.tensor([[0]]))
    with pytest.raises(BedstoneError, match="reads pictures of"):
        small.features(torch.zeros(1, 3, 28, 28))
