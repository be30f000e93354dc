"""Decoders over memories in the C++ engine: captions, answers, GPTs with images."""

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate, ready
from bedstone.generation.beam import beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch
from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import build_blip
from bedstone.models.flamingo.network import FlamingoConfig, build_flamingo, placed
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.vit.network import ViTConfig
from bedstone.nn.fast import kernels
from bedstone.nn.fast.decoder import NEVER, Decoder, MemoryDecoder, decoder_of
from bedstone.nn.fast.inference import for_inference
from engine_forms import FORMS
from networks import randomise

pytestmark = pytest.mark.skipif(
    kernels.library() is None, reason=f"there is no engine here: {kernels.why_not()}"
)
IMAGE = {"image_size": 20, "patch": 5, "width": 40, "layers": 1, "heads": 4, "hidden": 40}
TEXT = {
    "vocab_size": 97, "context": 40, "width": 36, "layers": 3, "heads": 3, "hidden": 52,
    "bos_id": 1, "eos_id": 2, "pad_id": 0,
}  # fmt: skip
GPT = {"vocab_size": 97, "width": 40, "layers": 4, "heads": 4, "hidden": 48, "context": 64}


def caption_network(**changes):
    shape = {"image": IMAGE, "text": {**TEXT, **changes}, "head": {"kind": "captions"}}
    return strong(build_blip(blip_config({"layout": "blip", **shape}), seed=1))


def gpt_network(layout="qwen3", **changes):
    image = ViTConfig("clip_vision_model", **{k: v for k, v in IMAGE.items() if k != "hidden"})
    grouped = {} if layout == "gpt2" else {"kv_heads": 2}
    words = GPTConfig(layout=layout, **GPT, **grouped)
    made = strong(build_flamingo(FlamingoConfig(gpt=words, image=image, **changes), seed=1))
    for index in made.config.seeing:
        torch.nn.init.constant_(made.gpt.stack[index]["cross"].gate, 0.7)
    return made


def strong(network):
    """In evaluation, and with weights that make a difference."""
    randomise(network.eval())
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
    return network


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", request.param)


@torch.inference_mode()
def read(decoder, ids, parts):
    """Logits of rows read in parts of so many tokens."""
    cache = decoder.new_cache(len(ids), ids.shape[1] + 3)
    return torch.cat([decoder.head(decoder.states(p, cache=cache)) for p in ids.split(parts, 1)], 1)


def close(decoder, writer, ids, tolerance=1e-4):
    """Whether logits of both agree, whatever is read at once."""
    expected = read(writer, ids, ids.shape[1])
    found = read(decoder, ids, ids.shape[1])
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for parts in (1, 3):
        assert torch.equal(read(decoder, ids, parts), found)
    return found


@pytest.mark.parametrize("changes", [{}, {"tied": False, "activation": "relu", "heads": 2}])
def test_a_caption_decoder_computes_as_its_network(form, changes):
    own = caption_network(**changes)
    memory, ids = torch.randn(2, 17, 40), torch.randint(97, (6, 11))
    found = close(Decoder(own, torch.float32).over(memory), own.writer(memory), ids)
    alone = Decoder(own, torch.float32).over(memory[1:])
    assert torch.equal(read(alone, ids[5:], 11)[0], found[5])


def test_states_that_are_padding_are_not_read(form):
    own = caption_network()
    memory, ids = torch.randn(3, 9, 40), torch.randint(97, (3, 7))
    keep = torch.ones(3, 9, dtype=torch.bool)
    keep[0, 4:] = False
    keep[2, [0, 3, 8]] = False  # wherever they stand
    memory[~keep] = 1e4
    decoder = Decoder(own, torch.float32).over(memory, torch.where(keep, 0, NEVER))
    close(decoder, own.writer(memory, keep), ids)


@pytest.mark.parametrize("layout", ["qwen3", "gpt2", "llama"])
def test_a_gpt_with_images_computes_as_its_network(form, layout):
    own = gpt_network(layout, every=2, cross_heads=2)
    states = own.memory(torch.randn(5, 3, 20, 20))
    memory, first = placed(states, [[0, 4], [3], [2, 9]])
    ids = torch.randint(97, (3, 14))
    writer = own.writer(memory, first)
    close(Decoder(own, torch.float32).over(memory, first), writer, ids)
    plain = Decoder(own, torch.float32)  # of text alone
    torch.testing.assert_close(read(plain, ids, 14), read(own, ids, 14), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_fewer_bits_stay_near(form, bits):
    own = caption_network(width=64, heads=2, hidden=96)
    memory, ids = torch.randn(2, 17, 40), torch.randint(97, (4, 11))
    exact = read(own.writer(memory), ids, 11)
    found = read(Decoder(own, torch.bfloat16, bits).over(memory), ids, 11)
    assert (found - exact).abs().max() < {None: 0.05, 8: 0.08, 4: 0.5}[bits] * exact.abs().max()


@pytest.mark.parametrize("make", [caption_network, gpt_network])
def test_a_ready_network_generates_over_the_engine(form, make):
    own = make()
    memory = own.memory(torch.randn(3, 3, 20, 20))
    fast = for_inference(own, torch.float32)
    writer = fast.writer(memory)
    assert isinstance(ready(writer, None), MemoryDecoder)
    prompts = [[1, 7], [1], [1, 5, 9], [1, 3], [1, 2], [1, 8]]  # two a memory
    way = Sampling(max_tokens=12, temperature=0.9, seed=3)
    expected = generate(own.writer(memory), prompts, way, eos=[2])
    found = generate(writer, prompts, way, eos=[2])
    assert [one.ids for one in found] == [one.ids for one in expected]
    search = BeamSearch(beams=4, returned=3, max_tokens=10)
    theirs = beam_search(own.writer(memory), prompts, search, eos=[2])
    ours = beam_search(writer, prompts, search, eos=[2])
    for a, b in zip(theirs, ours, strict=True):
        assert [one.ids for one in a] == [one.ids for one in b]
        for first, second in zip(a, b, strict=True):
            assert abs(first.score - second.score) < 1e-4


def test_a_network_that_has_changed_since_it_was_ready_is_left_to_torch(form):
    own = caption_network()
    fast = for_inference(own, torch.float32)
    memory = own.memory(torch.randn(1, 3, 20, 20))
    with torch.no_grad():
        own.decoder.embed.weight.mul_(1.5)
    assert not isinstance(ready(fast.writer(memory), None), MemoryDecoder)


def test_a_network_that_does_not_write_has_no_decoder():
    shape = {"image": IMAGE, "text": TEXT, "head": {"kind": "matching"}}
    own = build_blip(blip_config({"layout": "blip", **shape}), seed=1)
    assert decoder_of(own.image, torch.float32) is None
    for_inference(own, torch.float32)


def test_rows_memories_and_lengths_that_do_not_fit_are_refused(form):
    own = caption_network()
    decoder = Decoder(own, torch.float32)
    with pytest.raises(BedstoneError, match="2 were given for 3 rows"):
        decoder.over(torch.randn(2, 5, 40)).new_cache(3, 8)
    with pytest.raises(BedstoneError, match=r"39 wide.*reads 40"):
        decoder.over(torch.randn(2, 5, 39))
    over = decoder.over(torch.randn(1, 5, 40))
    with torch.inference_mode(), pytest.raises(BedstoneError, match=r"41 tokens.*context is 40"):
        over.states(torch.ones(1, 41, dtype=torch.long), cache=over.new_cache(1, 60))
