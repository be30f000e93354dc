"""DiT: the shared network test, parity with diffusers both ways, what it is told, bad input."""

import json
from dataclasses import replace

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.models.dit.config import DiTConfig
from bedstone.models.dit.network import DiT, build
from bedstone.nn.fast.inference import for_inference
from networks import check_network, randomise

SMALL = {"size": (8, 8), "width": 24, "layers": 3, "heads": 2}
OWN = {
    "plain": {},
    "classes": {"classes": 5, "activation": "geglu", "time_scale": 3.0},
    "text": {"memory_width": 10, "qkv_bias": False},
    "all": {
        "classes": 4,
        "memory_width": 10,
        "projected": True,
        "modulation": "shared",
        "skips": True,
        "conv_in": 1,
        "fine": 4,
        "positions": "learnt",
        "activation": "gelu",
    },
    "embedding": {"memory_width": 10, "embedding_width": 7, "embedding_tokens": 3},
    "embedding, wordless": {"embedding_width": 7, "modulation": "shared"},
    "embedding, whitened": {"embedding_width": 7, "embedding_whitened": True, "memory_width": 10},
    "sound": {"size": (12,), "patch": 3, "channels": 5, "width": 22, "head_width": 6},
    "video": {"size": (4, 6, 8), "patch": (1, 3, 2), "conv_in": 2, "fine": 4, "skips": True},
    "bare": {"positions": "none", "rotary": False, "qk_norm": False, "patch": 4, "heads": 3},
    "wide": {"size": (4, 12), "channels": 1, "out_channels": 2, "pooled": False},
}
DITS = {
    "dit": {"classes": 5},
    "dit-sigma": {"classes": 1, "out_channels": 8, "patch": 1, "size": (3, 3), "layers": 1},
    "dit-nameless": {"patch": 4, "qkv_bias": False, "activation": "geglu", "norm_eps": 0.1},
    "pixart": {"memory_width": 10, "projected": True, "out_channels": 8},
    "pixart-straight": {"memory_width": 10, "heads": 3, "activation": "swiglu", "patch": 1},
    "pixart-told": {"memory_width": 24, "told_size": True, "interpolation": 2.0, "norm_eps": 0.1},
    "pixart-wordless": {"qkv_bias": False, "patch": 4, "activation": "gelu", "interpolation": 0.5},
}


def config(name: str, **changes) -> DiTConfig:
    if name in OWN:
        return DiTConfig(**{**SMALL, **OWN[name], **changes})
    known = {"layout": name.partition("-")[0], "channels": 4, **DITS[name]}
    return DiTConfig(**{**SMALL, **known, **changes})


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def told(case: DiTConfig, sizes: tuple[int, ...] | None = None) -> dict:
    """Three rows of everything that a network of that configuration reads."""
    given = {"x": noise(3, case.channels, *(sizes or case.size)), "t": noise(3).abs() * 500}
    if case.classes or case.layout == "dit":
        given["classes"] = torch.tensor([0, case.classes // 2, case.classes])
    if case.memory_width:
        given["memory"] = noise(3, 5, case.memory_width, seed=1)
        given["memory_keep"] = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0] * 5]).bool()
    if case.embedding_width:
        given["embedding"] = noise(3, case.embedding_width, seed=2)
    if case.told_size:
        given["told_size"] = torch.tensor([[64.0, 64, 1], [512, 256, 2], [96, 128, 0.75]])
    return given


def test_every_parameter_learns(name):
    case = config(name)
    shape = (3, case.out_channels, *case.size)
    check_network(build(case), lambda network: network(**told(case)), shape)


def test_folders_keep_everything(name, tmp_path):
    network = build(config(name))
    randomise(network)
    Model(network).save(tmp_path / "saved")
    again = bedstone.load(tmp_path / "saved").network
    assert again.config == network.config
    with torch.no_grad():
        assert torch.equal(again(**told(again.config)), network.eval()(**told(network.config)))


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [*OWN, *DITS])
    if "published" in metafunc.fixturenames:
        metafunc.parametrize("published", DITS)


def theirs(network, given: dict) -> torch.Tensor:
    """What diffusers gives for the same input."""
    x, t = given["x"], given["t"]
    if "classes" in given:
        return network(x, t, class_labels=given["classes"]).sample
    size, keep = given.get("told_size"), given.get("memory_keep")
    added = size is not None and {"resolution": size[:, :2], "aspect_ratio": size[:, 2:]}
    return network(
        x,
        given.get("memory"),
        t,
        added_cond_kwargs=added or None,
        encoder_attention_mask=keep if keep is None else keep.long(),
    ).sample


def their_class(case: DiTConfig):
    import diffusers

    names = {"dit": "DiTTransformer2DModel", "pixart": "PixArtTransformer2DModel"}
    return getattr(diffusers, names[case.layout])


def test_diffusers_opens_ours_and_we_open_theirs(published, tmp_path):
    case = config(published)
    network = build(case).eval()
    randomise(network)
    Model(network).save(tmp_path / "ours")
    other = their_class(case).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert (network(**told(case)) - theirs(other, told(case))).abs().max() < 1e-4
    other.save_pretrained(tmp_path / "theirs")
    again = bedstone.load(tmp_path / "theirs")
    assert again.config == case
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key]), key


def test_what_diffusers_made_gives_the_same_here(published, tmp_path):
    case = config(published)
    made = bedstone.load  # a fresh network of theirs, every setting from our configuration
    Model(build(case)).save(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    kind = their_class(case)
    other = kind(**{key: each for key, each in written.items() if key != "_class_name"}).eval()
    randomise(other, seed=3)
    other.save_pretrained(tmp_path / "theirs")
    network = made(tmp_path / "theirs").network
    with torch.no_grad():
        assert (network(**told(case)) - theirs(other, told(case))).abs().max() < 1e-4


@pytest.mark.parametrize("sizes", [(4, 12), (16, 8), (12, 12)])
def test_pixart_of_another_size(sizes, tmp_path):
    case = config("pixart")
    network = build(case).eval()
    randomise(network)
    Model(network).save(tmp_path / "m")
    other = their_class(case).from_pretrained(tmp_path / "m").eval()
    given = told(case, sizes)
    with torch.no_grad():
        assert (network(**given) - theirs(other, given)).abs().max() < 1e-4


def test_settings_that_diffusers_leaves_out(tmp_path):
    """A PixArt of 128 is told its size, one of 192 has its places spread."""
    import diffusers

    for side, size_told, spread in ((128, True, 2.0), (192, False, 3.0)):
        other = diffusers.PixArtTransformer2DModel(
            num_attention_heads=1,
            attention_head_dim=12,
            num_layers=1,
            sample_size=side,
            patch_size=32,
            cross_attention_dim=6,
        )
        other.save_pretrained(tmp_path / str(side))
        model = bedstone.load(tmp_path / str(side))
        assert model.config.told_size is size_told
        assert model.config.interpolation == spread
        x, memory = noise(1, 4, side, side), noise(1, 3, 6)
        size = torch.tensor([[8.0 * side, 8.0 * side, 1.0]]) if size_told else None
        given = {"x": x, "t": torch.tensor([7.0]), "memory": memory}
        with torch.no_grad():
            out = theirs(other.eval(), {**given, **({} if size is None else {"told_size": size})})
            assert (model.network(**given) - out).abs().max() < 1e-4  # the size of a latent


def test_an_older_class_name_opens(tmp_path):
    network = build(config("dit"))
    Model(network).save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "_class_name": "Transformer2DModel"}))
    assert bedstone.load(tmp_path / "m", verify=False).config == network.config
    path.write_text(json.dumps({**values, "norm_elementwise_affine": True}))
    with pytest.raises(BedstoneError, match="norm_elementwise_affine"):
        bedstone.load(tmp_path / "m", verify=False)


def test_it_starts_as_nothing_and_its_blocks_as_the_identity(name):
    network = build(config(name), seed=0)
    given = told(network.config)
    assert not network(**given).any()
    states = []
    for block in network.stack:
        block.register_forward_hook(lambda _, args, out: states.append((args[0], out)))
    network(**given)
    assert len(states) == network.config.layers
    assert all(torch.equal(before, after) for before, after in states)


def test_a_seed_draws_the_same_weights():
    first, again, other = (build(config("all"), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["patches.weight"], other["patches.weight"])


def random_network(name: str, **changes) -> DiT:
    network = build(config(name, **changes)).eval()
    randomise(network)
    return network


@torch.no_grad()
def test_no_class_and_no_text_have_several_forms():
    network = random_network("all")
    given = told(network.config)
    x, t = given["x"], given["t"]
    none = network(x, t)
    nobody = torch.full((3,), network.config.classes)
    torch.testing.assert_close(network(x, t, classes=nobody), none)
    assert not torch.allclose(network(x, t, classes=torch.zeros(3, dtype=torch.long)), none)
    # a row whose words are all dropped has what it has without any
    bare = random_network("text")
    memory = given["memory"]
    dropped = torch.tensor([[1] * 5, [0] * 5, [0] * 5]).bool()
    x = noise(3, 3, 8, 8)
    out = bare(x, t, memory=memory, memory_keep=dropped)
    torch.testing.assert_close(out[1:], bare(x, t)[1:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(out[0], bare(x, t)[0])
    # what isn't kept has no part in it
    changed = torch.where(dropped[:, :, None], memory, 9.0)
    torch.testing.assert_close(bare(x, t, memory=changed, memory_keep=dropped), out)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["embedding", "embedding, wordless"])
def test_an_embedding_decides_and_zeros_are_none(kind):
    network = build(config(kind))
    randomise(network)
    given = told(network.config)
    with torch.no_grad():
        found = network.eval()(**given)
        other = network(**{**given, "embedding": given["embedding"].flip(1)})
        none = network(**{**given, "embedding": torch.zeros(3, 7)})
        assert all((found - each).abs().max() > 1e-3 for each in (other, none))
        given.pop("embedding")
        assert torch.equal(network(**given), none)
    with pytest.raises(BedstoneError, match=r"embedding: has the shape \[3, 8\]; .* width 7"):
        network(**given, embedding=torch.zeros(3, 8))
    with pytest.raises(BedstoneError, match="this network reads none"):
        plain = build(config("plain"))
        plain(**told(plain.config), embedding=torch.zeros(3, 7))


def test_rows_do_not_depend_on_each_other(name):
    network = random_network(name)
    given = told(network.config)
    whole = network(**given)
    for row in range(3):
        alone = network(**{key: value[row : row + 1] for key, value in given.items()})
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-4, rtol=1e-4)
    one = {**given, "t": torch.tensor(7.0)}  # one time for all
    each = {**given, "t": torch.tensor([7.0, 7.0, 7.0])}
    assert torch.equal(network(**one), network(**each))


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "none"])
def test_places_count(positions):
    """Turned or added, places make patches differ; without any they are a set."""
    swap = [1, 0, 2, 3]

    def moved(**changes) -> bool:
        network = random_network("plain", patch=4, positions=positions, **changes)
        x = noise(1, 3, 8, 8)
        parts = torch.stack([x[..., i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)])
        other = parts[swap]
        whole = torch.cat((torch.cat((*other[:2],), -1), torch.cat((*other[2:],), -1)), -2)
        out, again = network(x, torch.ones(1)), network(whole, torch.ones(1))
        same = torch.allclose(out[..., :4, :4], again[..., :4, 4:], atol=1e-4)
        return not same

    assert moved(rotary=True)
    assert moved(rotary=False) is (positions != "none")


@torch.no_grad()
def test_patches_that_overlap_see_their_neighbours():
    for overlap in (0, 1):
        network = random_network("plain", conv_in=overlap)
        x = noise(1, 3, 8, 8)
        other = x.clone()
        other[..., 2] += 1  # the first column of the second patch
        patches, again = network.patches(x), network.patches(other)
        assert torch.equal(patches[:, 0], again[:, 0]) is (overlap == 0)


@torch.no_grad()
def test_overlap_is_a_convolution():
    network = random_network("plain", conv_in=1)
    x, patches = noise(2, 3, 8, 8), network.patches
    out = torch.nn.functional.conv2d(x, patches.weight, patches.bias, stride=2, padding=1)
    torch.testing.assert_close(patches(x), out.flatten(2).mT, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fine_convolutions_know_no_places():
    network = random_network("plain", fine=4)
    whole, fine = noise(1, 3, 16, 16), network.fine_in
    moved = whole.roll((1, 1), dims=(2, 3))  # by half a patch; no edge reaches the middle
    torch.testing.assert_close(fine(moved)[..., 8:10, 8:10], fine(whole)[..., 7:9, 7:9])
    network.stack = torch.nn.ModuleList()  # and without blocks, what lies past a patch counts
    other, given = whole.clone(), told(network.config)
    other[..., 2] += 1  # the first column of the second patch
    first, second = (network(x, given["t"][:1]) for x in (whole, other))
    assert not torch.equal(first[..., :2], second[..., :2])


@torch.no_grad()
def test_half_precision_stays_near(name):
    network = random_network(name)
    given = told(network.config)
    exact = network(**given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(**given)
    assert rough.dtype == torch.float32
    scale = exact.abs().max()
    assert (rough - exact).abs().max() < 0.1 * scale
    assert (for_inference(network, torch.float32)(**given) - exact).abs().max() < 1e-5 * scale
    assert (for_inference(network, torch.bfloat16)(**given) - exact).abs().max() < 0.1 * scale


@torch.no_grad()
@pytest.mark.parametrize("one", ["plain"])
def test_it_is_one_graph_to_a_compiler(one):
    network = random_network(one)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    given = told(network.config)
    torch.testing.assert_close(compiled(**given), network(**given), atol=1e-5, rtol=1e-5)


BAD_SHAPES = {
    "model.interpolation: 0": {"interpolation": 0.0},
    "model.rotary_base: 0": {"rotary_base": 0.0},
    "model.time_scale: nan": {"time_scale": float("nan")},
    "model.norm_eps: -1": {"norm_eps": -1.0},
    "model.told_size": {"told_size": True, "width": 20, "heads": 2},
    "isn't divided by the patches, \\[3, 3\\]": {"patch": 3},
    "model.heads: 5": {"heads": 5},
    "model.patch": {"patch": (2, 2, 2)},
    "model.size": {"size": (2, 2, 2, 2)},
    "perhaps 'swiglu' is meant": {"activation": "swigl"},
    "model.head_width: 7": {"head_width": 7},
    "model.positions": {"positions": "rope"},
    "model.fine": {"fine": -1},
    "model.qk_norm: True": {"layout": "dit", "qk_norm": True},
    "has squares alone": {"layout": "dit", "size": (8, 4)},
    "perhaps 'pixart' is meant": {"layout": "pixartt"},
    "model.width": {"layout": "dit", "width": 22},
    "model.dropout": {"dropout": 1.0},
}


@pytest.mark.parametrize("message", BAD_SHAPES)
def test_shapes_that_cannot_be(message):
    with pytest.raises(BedstoneError, match=message):
        DiTConfig(**{**SMALL, **BAD_SHAPES[message]})


BAD_INPUTS = {
    "x: has the shape": {"x": torch.zeros(3, 2, 8, 8)},
    "x: \\[8, 9\\] isn't divided": {"x": torch.zeros(3, 3, 8, 9)},
    "has learnt the places of \\[8, 8\\]": {"x": torch.zeros(3, 3, 8, 10)},
    "classes: 5 is out of range": {"classes": torch.tensor([0, 5, 1])},
    "classes: -1 is out of range": {"classes": torch.tensor([0, -1, 1])},
    "one number for each of 3": {"classes": torch.tensor([0, 1])},
    "states of width 10": {"memory": torch.zeros(3, 5, 11)},
    "for each of 3 rows": {"memory": torch.zeros(2, 5, 10)},
    "memory_keep: has the shape": {"memory_keep": torch.ones(3, 4).bool()},
}


@pytest.mark.parametrize("message", BAD_INPUTS)
def test_inputs_that_do_not_fit(message):
    network = build(config("all"))
    with pytest.raises(BedstoneError, match=message):
        network(**{**told(network.config), **BAD_INPUTS[message]})


def test_what_a_network_does_not_read():
    x, t = noise(1, 3, 8, 8), torch.ones(1)
    with pytest.raises(BedstoneError, match="made without any"):
        build(config("plain"))(x, t, classes=torch.tensor([0]))
    with pytest.raises(BedstoneError, match="no cross-attention"):
        build(config("plain"))(x, t, memory=noise(1, 2, 10))
    with pytest.raises(BedstoneError, match="none was given"):
        build(config("pixart"))(noise(1, 4, 8, 8), t)
    assert replace(config("plain"), classes=3).classes == 3
