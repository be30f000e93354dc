"""A GPT that sees: the shared network test, shut gates, the cache, several pictures."""

from dataclasses import replace

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.sampling import Sampling
from bedstone.models.flamingo.network import FlamingoConfig, FlamingoGPT, build_flamingo, placed
from bedstone.models.gpt import network as gpts
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.heads import HeadConfig
from bedstone.models.resnet.network import ResNetConfig
from bedstone.models.vit.network import ViTConfig
from bedstone.nn.fast.inference import for_inference
from networks import check_network, randomise

WORDS = {"vocab_size": 97, "width": 32, "layers": 4, "heads": 4, "hidden": 48, "context": 64}
VIT = {"image_size": 12, "patch": 4, "width": 24, "layers": 2, "heads": 4}
CNN = ResNetConfig(image_size=16, width=8, blocks=(1, 1), block="basic", shrink=2)


def config(layout: str = "qwen3", **changes) -> FlamingoConfig:
    words = GPTConfig(layout=layout, **WORDS, **({} if layout == "gpt2" else {"kv_heads": 2}))
    return FlamingoConfig(gpt=words, **{"image": ViTConfig("clip_vision_model", **VIT), **changes})


CASES = {
    "qwen3-clip": config(),
    "llama-siglip-every-third": config(every=3, image=ViTConfig("siglip_vision_model", **VIT)),
    "gpt2-blip": config("gpt2", every=2, image=ViTConfig("blip_vision_model", **VIT)),
    "mistral-vit": config("mistral", cross_heads=2, image=ViTConfig(**VIT)),
    "qwen2-resnet": config("qwen2", every=4, image=CNN),
    "qwen3-resnet-narrow": config(image=CNN, memory_width=20),
}


@pytest.fixture(params=CASES, ids=str)
def case(request) -> FlamingoConfig:
    return CASES[request.param]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (4, 20), generator=torch.Generator().manual_seed(7))


def pixels(case: FlamingoConfig, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn((count, 3, *case.image.size), generator=generator)


def opened(case: FlamingoConfig) -> FlamingoGPT:
    """One whose gates stand open, as after training."""
    network = build_flamingo(case).eval()
    randomise(network)
    for index in case.seeing:
        torch.nn.init.constant_(network.gpt.stack[index]["cross"].gate, 0.7)
    return network


def test_network(case, ids):
    def forward(network):
        return network(ids, pixels=pixels(case))

    check_network(build_flamingo(case), forward, (4, 20, 97))


def contexts():
    return {
        "fp32": torch.autocast("cpu", enabled=False),
        "bf16": torch.autocast("cpu", torch.bfloat16),
    }


@pytest.mark.parametrize("precision", contexts())
def test_without_a_picture_it_is_the_gpt_to_the_last_bit(case, ids, precision):
    network = opened(case)
    plain = gpts.build(case.gpt).eval()
    kept = {name: w for name, w in network.gpt.state_dict().items() if ".cross." not in name}
    plain.load_state_dict(kept)
    with torch.no_grad(), contexts()[precision]:
        expected = plain(ids)
        assert torch.equal(network(ids), expected)
        assert torch.equal(network.gpt_only()(ids), expected)
        assert not torch.equal(network(ids, pixels=pixels(case)), expected)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            ready, other = for_inference(network, dtype), for_inference(plain, dtype)
            assert torch.equal(ready(ids), other(ids))


@pytest.mark.parametrize("precision", contexts())
def test_with_shut_gates_pictures_change_no_bit(case, ids, precision):
    network = opened(case)
    for index in case.seeing:
        torch.nn.init.zeros_(network.gpt.stack[index]["cross"].gate)
    with torch.no_grad(), contexts()[precision]:
        assert torch.equal(network(ids, pixels=pixels(case)), network(ids))


def test_a_new_one_is_the_gpt_and_learns_to_look(ids):
    case = CASES["qwen3-resnet-narrow"]
    network = build_flamingo(case, seed=1)
    randomise(network.gpt)  # a fresh GPT's blocks write nothing
    for index in case.seeing:
        torch.nn.init.zeros_(network.gpt.stack[index]["cross"].gate)
    network.learning()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    assert torch.equal(network(ids, pixels=pixels(case)), network(ids))
    optimizer = torch.optim.AdamW([w for w in network.parameters() if w.requires_grad], 1e-2)
    losses = []
    for _ in range(40):
        network.train()
        logits = network(ids, pixels=pixels(case))
        # the answer is told by the picture alone: rows of one picture share it
        target = torch.tensor([3, 3, 5, 5])
        loss = torch.nn.functional.cross_entropy(logits[:, -1], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    moved = {n for n, w in network.state_dict().items() if not torch.equal(w, before[n])}
    own = ("image.positions", "image.project", "image.norm", "image_norm")
    assert all(".cross." in name or name.startswith(own) for name in moved), moved
    assert {f"gpt.stack.{i}.cross.gate" for i in case.seeing} <= moved
    with torch.no_grad():
        assert torch.equal(network.eval()(ids), network.gpt_only().eval()(ids))


def test_what_is_frozen_neither_drops_out_nor_counts_batches(ids):
    words = replace(CASES["qwen3-clip"].gpt, dropout=0.5)
    network = build_flamingo(replace(CASES["qwen3-resnet-narrow"], gpt=words), seed=1)
    assert network.train().gpt.training
    network.learning()
    network.train()
    assert not any(part.training for part in network.modules())
    seen = pixels(network.config)
    assert torch.equal(network(ids, pixels=seen), network(ids, pixels=seen))
    learns = sum(w.numel() for w in network.parameters() if w.requires_grad)
    cross = sum(w.numel() for n, w in network.named_parameters() if ".cross." in n)
    assert cross < learns < cross + 5000


def test_cache_equals_full_pass(case, ids):
    network = opened(case)
    with torch.no_grad():
        memory = network.memory(pixels(case))  # two pictures for four rows
        full = network.head(network.states(ids, memory=memory))
        writer = network.writer(memory)
        cache = writer.new_cache(4, 20)
        parts = ids.split([9, 4, 1, 1, 5], 1)
        steps = [writer.head(writer.states(part, cache=cache)) for part in parts]
    assert (torch.cat(steps, 1) - full).abs().max() < 1e-5


def test_rows_of_a_picture_equal_rows_with_a_picture_each(case, ids):
    network = opened(case)
    with torch.no_grad():
        memory = network.memory(pixels(case))
        shared = network.states(ids, memory=memory)
        alone = network.states(ids, memory=memory.repeat_interleave(2, 0))
    assert (shared - alone).abs().max() < 1e-5


PLACES = [[2, 9], [], [5], [0, 0, 17]]  # before which tokens each row's pictures are named


def test_a_token_sees_the_pictures_named_before_it(ids):
    network = opened(CASES["qwen3-clip"])
    with torch.no_grad():
        seen = network.memory(pixels(network.config, 6))
        memory, named = placed(seen, PLACES)
        found = network.states(ids, memory=memory, first_token=named)
        plain = network.states(ids)
        assert torch.equal(found[1], plain[1])
        assert torch.equal(found[0, :2], plain[0, :2])
        assert not torch.allclose(found[0, 2:], plain[0, 2:])
        one = network.states(ids[:1, :9], memory=seen[:1], first_token=torch.full((1, 10), 2))
        assert (found[:1, :9] - one).abs().max() < 1e-5
        # the second picture is another: what stands before its name is as it was
        other = seen.clone()
        other[1] += 1.0
        memory, named = placed(other, PLACES)
        changed = network.states(ids, memory=memory, first_token=named)
        assert (changed[0, :9] - found[0, :9]).abs().max() < 1e-6
        assert (changed[0, 9:] - found[0, 9:]).abs().min(-1).values.max() > 0
        assert (changed[1:] - found[1:]).abs().max() < 1e-6


@pytest.mark.parametrize("chunk", [None, 3])
def test_several_pictures_a_prompt_are_continued_as_one_by_one(ids, chunk, monkeypatch):
    """Rows of different lengths end at different steps, and take their pictures with them."""
    network = opened(CASES["gpt2-blip"])
    prompts = [row[:n].tolist() for row, n in zip(ids, (12, 3, 6, 18), strict=True)]
    with torch.no_grad():
        seen = network.memory(pixels(network.config, 6))
    drawn, ends = Sampling(max_tokens=9, temperature=9.0), range(20)
    alone = []
    parts = zip(prompts, PLACES, seen.split([2, 0, 1, 3]), strict=True)
    for seed, (prompt, places, part) in enumerate(parts):
        writer = network.writer(*placed(part, [places])) if places else network
        alone += generate(writer, [prompt], drawn, eos=ends, seeds=[seed])
    if chunk:
        from bedstone.generation import autoregress as autoregress

        whole = autoregress.prefill
        monkeypatch.setattr(autoregress, "prefill", lambda *given: whole(*given, chunk=chunk))
    writer = network.writer(*placed(seen, PLACES))
    together = generate(writer, prompts, drawn, eos=ends, seeds=range(4))
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert len({len(one.ids) for one in together}) > 1  # some end earlier
    for one, other in zip(together, alone, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_a_named_picture_counts_for_rows_that_share_it(ids):
    network = opened(CASES["qwen3-clip"])
    with torch.no_grad():
        seen = network.memory(pixels(network.config))
        named = torch.tensor([3, 8])[:, None].expand(-1, seen.shape[1])
        shared = network.states(ids, memory=seen, first_token=named)
        each = (x.repeat_interleave(2, 0) for x in (seen, named))
        alone = network.states(ids, **dict(zip(("memory", "first_token"), each, strict=True)))
    assert (shared - alone).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ready_for_inference(case, ids, dtype):
    network = opened(case)
    ready = for_inference(network, dtype)
    with torch.no_grad():
        exact = network(ids, pixels=pixels(case))
        found = ready(ids, pixels=pixels(case)).float()
    far = (found - exact).abs().mean() / exact.abs().mean()
    assert far < (1e-5 if dtype is torch.float32 else 0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 5}, "none would see"),
        ({"every": 0}, "model.every: 0"),
        ({"layout": "gpt"}, "expected flamingo"),
        ({"memory_width": 20}, "24 wide"),
        ({"gpt": GPTConfig(**WORDS, head=HeadConfig("states"))}, "language head"),
    ],
)
def test_bad_shapes_are_named(changes, message):
    with pytest.raises(BedstoneError, match=message):
        FlamingoConfig(**{"gpt": CASES["qwen3-clip"].gpt, "image": ViTConfig(**VIT), **changes})


def test_what_does_not_fit_is_named(ids):
    network = opened(CASES["qwen3-clip"])
    with pytest.raises(BedstoneError, match="3 were given for 4 rows"):
        network(ids, pixels=pixels(network.config, 3))
    with pytest.raises(BedstoneError, match="2 were given and the texts name 3"):
        placed(network.memory(pixels(network.config)), [[1, 2], [0]])
    with pytest.raises(BedstoneError, match="no head for sequence"):
        network.set_head(HeadConfig("sequence", ("a", "b")))
