"""CLIP and SigLIP: the shared network test, parity with the published ones, packed text."""

import json
import math

import numpy as np
import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.text.packing import Packed, lay
from bedstone.errors import BedstoneError
from bedstone.models.clip.network import CLIPConfig, TextConfig, build, clip_config
from bedstone.models.published import layout
from bedstone.models.vit.network import ViTConfig
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.lora import LoraConfig, add_adapter
from networks import check_network, check_published, randomise

END = 98
IMAGES = {
    "small": {"image_size": 20, "patch": 5, "width": 32, "layers": 2, "heads": 4, "hidden": 48},
    "odd": {"image_size": 23, "patch": 6, "width": 30, "layers": 3, "heads": 5, "hidden": 41},
}
TEXTS = {
    "small": {"vocab_size": 99, "context": 12, "width": 24, "layers": 2, "heads": 4, "hidden": 40},
    "odd": {"vocab_size": 99, "context": 12, "width": 21, "layers": 1, "heads": 3, "hidden": 33},
}
OTHERS = {"activation": "relu", "norm_eps": 1e-3}


def config(name: str, shape: str = "small", eos_id: int | None = END, **text) -> CLIPConfig:
    more = OTHERS if shape == "odd" else {}
    image = {**IMAGES[shape], **more}
    words = {**TEXTS[shape], **more, "bos_id": 97, "eos_id": eos_id, "pad_id": 1, **text}
    given = {"layout": name, "image": image, "text": words}
    return clip_config({**given, **({"embed": 17} if name == "clip" else {})})


CASES = {f"{n}-{s}": config(n, s) for n in ("clip", "siglip") for s in IMAGES}
CASES["clip-old-end"] = config("clip", eos_id=None)


@pytest.fixture(params=CASES, ids=str)
def case(request) -> CLIPConfig:
    return CASES[request.param]


def pixels(case: CLIPConfig, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn((count, 3, *case.image.size), generator=generator)


def ids() -> torch.Tensor:
    """Two rows of 12; the first text ends at its sixth token, and is padded with ends."""
    found = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(7))
    found[0, 5:] = END
    found[1, 11] = END
    return found


def packed(case: CLIPConfig) -> Packed:
    rows = ids().numpy()
    parts = [rows[0, :6], rows[1]] if case.layout == "clip" else list(rows)
    lengths = np.array([len(part) for part in parts])
    joined = np.concatenate(parts)
    return lay(joined, np.zeros_like(joined), lengths)


def their(case: CLIPConfig, tmp_path):
    import transformers

    written = layout(case.layout).write_config(case)
    (tmp_path / "config.json").write_text(json.dumps(written))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    return getattr(transformers, written["architectures"][0])(theirs).eval()


def test_network(case):
    every = torch.arange(96).view(8, 12) % 99  # every position, most tokens
    every[:, -1] = END
    x = pixels(case)
    check_network(build(case), lambda network: network(x, every), (3, 8))


@pytest.mark.parametrize("masked", [False, True])
def test_parity_both_ways(case, masked, tmp_path):
    network = build(case).eval()
    randomise(network)
    x, words = pixels(case), ids()
    keep = torch.ones(2, 12, dtype=torch.bool)
    keep[0, 6:] = not masked

    def theirs(published):
        given = {"attention_mask": keep.long()} if masked else {}
        return published(pixel_values=x, input_ids=words, **given).logits_per_image

    def ours(network):
        return network(x, words, keep if masked else None)

    check_published(layout(case.layout), network, their(case, tmp_path), ours, theirs)


def test_features_of_packed_rows_are_the_published(case, tmp_path):
    network = build(case).eval()
    randomise(network)
    model = Model(network)
    model.save(tmp_path / "m")
    import transformers

    theirs = transformers.AutoModel.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        found = network.text_features(packed(case))
        expected = theirs.get_text_features(input_ids=ids()).pooler_output
        assert (found - expected).abs().max() < 1e-4
        found = network.image_features(pixels(case))
        expected = theirs.get_image_features(pixel_values=pixels(case)).pooler_output
        assert (found - expected).abs().max() < 1e-4


def test_what_they_save_opens(case, tmp_path):
    theirs = their(case, tmp_path)
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    again = bedstone.load(tmp_path / "theirs")
    assert again.config == case
    with torch.no_grad():
        out = theirs(pixel_values=pixels(case), input_ids=ids()).logits_per_image
        assert (again.network(pixels(case), ids()) - out).abs().max() < 1e-4


def test_gradients_of_packed_text_are_those_of_each_row():
    case = config("clip")
    network = build(case, seed=0)
    rows = packed(case)
    weights = torch.randn(2, 17)
    (network.text_features(rows) * weights).sum().backward()
    found = {n: w.grad.clone() for n, w in network.text.named_parameters()}
    network.zero_grad()
    for number, (start, end) in enumerate(rows.spans):
        row = rows.ids[0, start:end].numpy()
        one = lay(row, np.zeros_like(row), np.array([len(row)]))
        (network.text_features(one) * weights[number]).sum().backward()
    for name, weight in network.text.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-5)


def test_it_begins_as_the_papers_have_it():
    clip, siglip = build(config("clip"), seed=0), build(config("siglip"), seed=0)
    assert clip.scale.item() == pytest.approx(1 / 0.07)
    assert clip.bias is None
    assert siglip.logit_scale.item() == pytest.approx(math.log(10))
    assert siglip.bias.item() == -10
    with torch.no_grad():  # vectors of a sensible length, and pictures told apart
        vectors = clip.image_features(pixels(config("clip"), 8))
    assert 0.3 < vectors.norm(dim=1).mean() / math.sqrt(17) < 3
    assert torch.cosine_similarity(vectors[0], vectors[1], dim=0) < 0.999
    again = build(config("clip"), seed=0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in clip.state_dict().items())


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_it_is_made_ready_for_inference(name):
    case = config(name)
    network = build(case, seed=0).eval()
    x, rows = pixels(case), packed(case)
    with torch.inference_mode():
        for part, given in (("image_features", x), ("text_features", rows)):
            exact = getattr(network, part)(given)
            same = getattr(for_inference(network, torch.float32), part)(given)
            torch.testing.assert_close(same, exact, rtol=1e-4, atol=1e-5)
            rough = getattr(for_inference(network, torch.bfloat16), part)(given).float()
            assert torch.cosine_similarity(rough, exact).min() > 0.999


def test_a_tower_is_adapted_or_exchanged_from_outside():
    case = config("clip")
    network = build(case, seed=0).eval()
    before = network.image_features(pixels(case))
    add_adapter(network, LoraConfig(rank=2, targets=("q", "v")))
    torch.testing.assert_close(network.image_features(pixels(case)), before)

    class Other(torch.nn.Module):
        def features(self, pixels, kept=None):
            return pixels.mean((1, 2, 3))[:, None].expand(-1, 32)

    network.image = Other()
    assert network.image_features(pixels(case)).shape == (3, 17)


def test_older_files_open(tmp_path):
    """Sizes in a second section, no sizes at all, positions that were saved."""
    from safetensors.torch import load_file, save_file

    case = config("clip")
    Model(build(case, seed=0)).save(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    written = json.loads(file.read_text())
    written["text_config_dict"] = written.pop("text_config")
    written["text_config"] = {"hidden_size": 999, "model_type": "clip_text_model"}
    written["vision_config"]["patch_size"] = [5, 5]
    file.write_text(json.dumps(written))
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(tensors, weights)
    assert bedstone.load(tmp_path / "m", verify=False).config == case
    usual = layout("siglip").read_config({"text_config": {}, "vision_config": {}})
    assert (usual.image.patch, usual.text.vocab_size, usual.text.context) == ((16, 16), 32000, 64)
    assert layout("clip").read_config({}).image.patch == (32, 32)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"layout": "clap"}, "perhaps 'clip'"),
        ({"image": {"size": 3}}, "model.image.size"),
        ({"text": {"layout": "siglip_text_model"}}, "clip_text_model"),
        ({"text": {"heads": 5}}, "text.heads"),
        ({"layout": "siglip", "embed": 5}, "Leave it out"),
        ({"layout": "clip_resnet", "image": ViTConfig()}, "ResNetConfig"),
        ({"image": {"head": {"kind": "towers"}}}, "isn't a ViT's"),
    ],
)
def test_shapes_that_cannot_be(given, told):
    with pytest.raises(BedstoneError, match=told):
        clip_config(given)


def test_configurations_are_made_in_python_too():
    image = ViTConfig(image_size=32, patch=8, width=48, layers=2, heads=3)
    text = TextConfig(vocab_size=500, context=16, width=36, layers=2, heads=3)
    assert CLIPConfig("clip", image, text, 20).image.activation == "quick_gelu"
    assert CLIPConfig("siglip", image, text).text.features == 48
