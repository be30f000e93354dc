"""BLIP: the shared network test, parity with the three published classes, shared memories."""

import json
from dataclasses import replace

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import generate
from bedstone.generation.sampling import Sampling
from bedstone.models.blip.config import BlipConfig, blip_config
from bedstone.models.blip.network import Blip, build_blip
from bedstone.models.published import layout, load_published, to_published
from bedstone.nn.fast.inference import for_inference
from networks import check_network, randomise

BOS, SEP, PAD = 1, 2, 0
V = 43
END_BIAS = 4.0
PLAIN = {"image_size": 20, "patch": 5, "width": 24, "layers": 2, "heads": 4, "hidden": 40}
# 23 pixels don't divide into patches of 6: what is left over is dropped
ODD = {
    "image_size": 23,
    "patch": 6,
    "width": 30,
    "layers": 1,
    "heads": 5,
    "hidden": 41,
    "activation": "quick_gelu",
    "norm_eps": 1e-3,
}
CNN = {"image_size": 20, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 2}
TEXT = {"vocab_size": V, "context": 11, "width": 24, "layers": 2, "heads": 4}
ODD_TEXT = {**TEXT, "layers": 3, "heads": 2, "hidden": 33, "activation": "relu", "norm_eps": 1e-4}


def config(
    kind: str, image=PLAIN, text=TEXT, name: str = "blip", embed: int = 17, **words
) -> BlipConfig:
    words = {**text, "bos_id": BOS, "eos_id": SEP, "pad_id": PAD, **words}
    parts = {"image": image, "text": words, "head": {"kind": kind}}
    return blip_config({"layout": name, "embed": embed, **parts})


PUBLISHED = {
    "captions": config("captions"),
    "captions-odd": config("captions", ODD, ODD_TEXT),  # pictures 30 wide, text 24
    "captions-untied": config("captions", tied=False),
    "answers": config("answers"),
    "answers-odd": config("answers", {**ODD, "width": 35}, {**ODD_TEXT, "width": 35, "heads": 7}),
    "answers-untied": config("answers", tied=False),
    "matching": config("matching"),
    "matching-odd": config("matching", ODD, ODD_TEXT),
}
OURS = {
    "joint": config("joint"),
    "joint-untied": config("joint", tied=False),
    "cnn-captions": config("captions", CNN, name="blip_resnet"),
    "cnn-few": replace(config("answers", CNN, name="blip_resnet"), decoder_layers=1),
    "cnn-joint": config("joint", CNN, name="blip_resnet"),
    "cnn-bare": config("captions", CNN, name="blip_resnet", memory_width=16),  # no linear map
}
CASES = {**PUBLISHED, **OURS}


@pytest.fixture(params=CASES, ids=str)
def case(request) -> BlipConfig:
    return CASES[request.param]


@pytest.fixture(params=PUBLISHED, ids=str)
def published(request) -> BlipConfig:
    return PUBLISHED[request.param]


def made(case: BlipConfig) -> Blip:
    network = build_blip(case).eval()
    randomise(network)
    return network


def pixels(case: BlipConfig, count: int = 3) -> torch.Tensor:
    shape = (count, 3, *case.image.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def ids(rows: int = 3, length: int = 7, seed: int = 7) -> torch.Tensor:
    return torch.randint(3, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def keep(rows: int = 3, length: int = 7) -> torch.Tensor:
    """The second row is three tokens shorter."""
    real = torch.ones(rows, length, dtype=torch.bool)
    real[1, length - 3 :] = False
    return real


def answers(rows: int = 3) -> torch.Tensor:
    return torch.cat((torch.full((rows, 1), BOS), ids(rows, 3, 9)), 1)


def everything(network: Blip) -> torch.Tensor:
    """All that a network gives, of every token and position: (outputs,)."""
    case = network.config
    words = (torch.arange(4 * 11).view(4, 11) * 5 + 1) % V
    more = (torch.arange(4 * 11).view(4, 11) + 1) % V
    memory = network.memory(pixels(case, 2))
    out = []
    if case.head.kind in ("captions", "joint"):
        out.append(network.head(network.caption_states(words, None, memory)))
    if case.head.kind in ("answers", "joint"):
        questions = network.read(words, None, memory)
        out.append(network.head(network.answer_states(more, None, questions)))
    if case.matches:
        out.append(network.match_logits(words, None, memory))
        image, text = network.image_vectors(memory), network.text_vectors(more, None)
        out.append(image @ text.T * network.scale)
    return torch.cat([part.flatten() for part in out])


def test_network(case):
    words, kind = 4 * 11 * V, case.head.kind
    count = words * {"captions": 1, "answers": 1, "matching": 0, "joint": 2}[kind]
    check_network(build_blip(case), everything, (count + (16 if case.matches else 0),))


def their(case: BlipConfig, tmp_path):
    import transformers

    written = layout(case.layout).write_config(case)
    (tmp_path / "config.json").write_text(json.dumps(written))
    theirs = transformers.BlipConfig.from_pretrained(tmp_path)
    return getattr(transformers, written["architectures"][0])(theirs).eval()


def give(network: Blip, published) -> None:
    """Our weights into the published network: every one, and none left over."""
    written = to_published(layout(network.config.layout), network)
    written.pop("logit_scale", None)  # no published class has it
    missing, unexpected = published.load_state_dict(written, strict=False)
    assert set(missing) <= set(published.all_tied_weights_keys)
    assert not unexpected


def their_logits(published, case: BlipConfig, masked: bool) -> torch.Tensor:
    x, words = pixels(case), ids()
    real = {"attention_mask": keep().long()} if masked else {}
    kind = case.head.kind
    if kind == "captions":
        return published(pixel_values=x, input_ids=words, **real).logits
    if kind == "matching":
        return published(pixel_values=x, input_ids=words, **real).itm_score
    found = {}
    hook = published.text_decoder.register_forward_hook(lambda *call: found.update(out=call[-1]))
    published(pixel_values=x, input_ids=words, decoder_input_ids=answers(), **real)
    hook.remove()
    return found["out"].logits


@pytest.mark.parametrize("masked", [False, True])
def test_logits_are_the_published(published, masked, tmp_path):
    network, theirs = made(published), their(published, tmp_path)
    give(network, theirs)
    real = keep() if masked else None
    with torch.no_grad():
        expected = their_logits(theirs, published, masked)
        if published.head.kind == "answers":
            # The installed class reads a padded question's padding too: it loses the mask on the
            # way to cross-attention. BLIP's own code doesn't, nor do we where a mask is given.
            states = network.read(ids(), real, network.memory(pixels(published)))
            found = network.head(network.answer_states(answers(), None, states))
            whole = network(pixels(published), ids(), real, answers())
            assert torch.equal(whole[0], found[0])
            assert torch.equal(whole[1], found[1]) == (not masked)
        else:
            found = network(pixels(published), ids(), real)
    if published.head.kind == "captions" and masked:  # of padding nobody asks
        found, expected = found[keep()], expected[keep()]
    assert found.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-4


def test_weights_come_back_bitwise(published, tmp_path):
    network, theirs = made(published), their(published, tmp_path)
    give(network, theirs)
    again = build_blip(published)
    load_published(layout("blip"), again, dict(theirs.state_dict()), where="test")
    for name, value in network.state_dict().items():
        if name != "logit_scale":
            assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("name", ["matching", "matching-odd"])
def test_cosines_of_contrast_are_the_published(name, tmp_path):
    case = PUBLISHED[name]
    network, theirs = made(case), their(case, tmp_path)
    give(network, theirs)
    given = {"input_ids": ids(), "attention_mask": keep().long(), "use_itm_head": False}
    with torch.no_grad():
        expected = theirs(pixel_values=pixels(case), **given).itm_score
        memory = network.memory(pixels(case))
        image = torch.nn.functional.normalize(network.image_vectors(memory), dim=-1)
        text = torch.nn.functional.normalize(network.text_vectors(ids(), keep()), dim=-1)
    assert (image @ text.T - expected).abs().max() < 1e-4


def written(network, memory, prompts, real=None) -> list[list[int]]:
    writer = network.writer(memory, real)
    return [
        g.ids for g in generate(writer, prompts, Sampling(temperature=0, max_tokens=8), eos=[SEP])
    ]


def told(rows: torch.Tensor) -> list[list[int]]:
    """Published rows up to their end."""
    cut = []
    for row in rows.tolist():
        cut.append(row[: row.index(SEP) + 1] if SEP in row else row)
    return cut


@pytest.mark.parametrize("name", ["captions", "captions-odd", "captions-untied"])
@pytest.mark.parametrize("prompted", [False, True])
def test_captions_are_written_as_published(name, prompted, tmp_path):
    case = PUBLISHED[name]
    network, theirs = made(case), their(case, tmp_path)
    _lively(network)
    give(network, theirs)
    x = pixels(case, 6)
    prompt = ids(6, 3) if prompted else None
    # the published puts [DEC] in the place of a prompt's [CLS], and drops its [SEP]
    begin = [[BOS]] * 6 if prompt is None else [[BOS, row[1]] for row in prompt.tolist()]
    given = {} if prompt is None else {"input_ids": prompt.clone()}
    out = theirs.generate(pixel_values=x, max_new_tokens=8, do_sample=False, **given)
    expected = [row[len(begin[0]) :] for row in told(out)]
    with torch.no_grad():
        found = written(network, network.memory(x), begin)
    assert found == expected
    assert len({tuple(row) for row in found}) > 1  # it reads the picture
    assert len({len(row) for row in found}) > 1  # rows leave at different times


def _lively(network: Blip) -> None:
    """What is written depends on what is read, and ends after different lengths."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() > 1:
                weight.mul_(4)
            elif name.endswith("bias"):
                weight.sub_(1)
        network.head.out.bias[SEP] += END_BIAS


@pytest.mark.parametrize("name", ["answers", "answers-odd", "answers-untied"])
def test_answers_are_written_as_published(name, tmp_path):
    case = PUBLISHED[name]
    network, theirs = made(case), their(case, tmp_path)
    _lively(network)
    give(network, theirs)
    x, questions = pixels(case, 6), ids(6)
    out = theirs.generate(
        input_ids=questions, pixel_values=x, max_new_tokens=8, do_sample=False, num_beams=1
    )
    with torch.no_grad():
        states = network.read(questions, None, network.memory(x))
        assert written(network, states, [[BOS]] * 6) == [row[1:] for row in told(out)]


@pytest.mark.parametrize("name", ["joint", "cnn-joint"])
def test_cached_decoding_is_the_full_pass(name):
    network = made(CASES[name])
    x, words = pixels(network.config, 2), ids(4, 9)
    with torch.no_grad():
        memory = network.memory(x)
        states = network.read(ids(4), keep(4), memory)
        for seen, real in ((memory, None), (states, keep(4))):
            writer = network.writer(seen, real)
            cache = writer.new_cache(4, 9)
            parts = [writer.states(words[:, :4], cache=cache)]
            parts += [writer.states(words[:, i : i + 1], cache=cache) for i in range(4, 9)]
            assert (torch.cat(parts, 1) - writer.states(words)).abs().max() < 1e-5


def test_padded_questions_are_not_read_and_rows_may_leave():
    """Answers to questions of different lengths in a batch are those of each alone."""
    network = made(CASES["joint"])
    _lively(network)
    x, questions, real = pixels(network.config, 3), ids(6), keep(6)
    real[4, 2:] = False
    with torch.no_grad():
        memory = network.memory(x)
        states = network.read(questions, real, memory)
        found = written(network, states, [[BOS]] * 6, real)
        for row in range(6):
            short = questions[row : row + 1, : int(real[row].sum())]
            alone = network.read(short, None, memory[row // 2 : row // 2 + 1])
            assert (states[row, : short.shape[1]] - alone[0]).abs().max() < 1e-5
            assert written(network, alone, [[BOS]]) == [found[row]]
    assert len({len(row) for row in found}) > 1


def test_rows_that_share_a_memory_read_as_if_each_had_its_own():
    network = made(CASES["joint"])
    memory, words = network.memory(pixels(network.config, 2)), ids(6)
    apart = memory.repeat_interleave(3, 0)
    for states in (
        lambda seen: network.read(words, keep(6), seen),
        lambda seen: network.caption_states(words, None, seen),
    ):
        assert (states(memory) - states(apart)).abs().max() < 1e-5
    assert written(network, memory, [[BOS]] * 6) == written(network, apart, [[BOS]] * 6)


def test_without_a_memory_the_encoder_is_a_plain_bert():
    network = made(CASES["matching"])
    before = network.read(ids(), keep())
    with torch.no_grad():
        for block in network.encoder.stack:
            for weight in block["cross"].parameters():
                weight.zero_()
    assert torch.equal(network.read(ids(), keep()), before)


@pytest.mark.parametrize("name", ["joint", "cnn-joint"])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_ready_for_inference_it_gives_the_same(name, dtype, apart):
    network = build_blip(CASES[name], seed=3).eval()
    ready = for_inference(network, dtype)
    with torch.no_grad():
        found, expected = everything(ready).float(), everything(network)
        assert (found - expected).abs().max() < apart * max(1, expected.abs().max() / 4)
        memory = ready.memory(pixels(network.config))
        assert len(written(ready, memory, [[BOS]] * 3)) == 3
        if dtype == torch.float32:
            plain = network.memory(pixels(network.config))
            assert written(ready, memory, [[BOS]] * 3) == written(network, plain, [[BOS]] * 3)


def test_it_begins_as_the_papers_have_it():
    network = build_blip(config("joint", text={**TEXT, "width": 24}), seed=0)
    twin = build_blip(config("joint", text={**TEXT, "width": 24}), seed=0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    assert network.scale.item() == pytest.approx(1 / 0.07)
    cross = network.decoder.stack[0]["cross"].sublayer
    assert cross.k.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert not cross.k.bias.any()
    assert network.head.out.weight is network.decoder.embed.weight


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layout": "blib"}, "perhaps 'blip'"),
        ({"decoder_layers": 1}, "model.decoder_layers"),
        ({"layout": "blip_resnet"}, "model.image.patch"),
        ({"embed": 0}, "model.embed"),
        ({"head": {"kind": "language"}}, "captions, answers, matching, joint"),
        ({"image": {**PLAIN, "image_size": [20, 30]}}, "square"),
        ({"image": {**PLAIN, "width": 32}, "head": {"kind": "answers"}}, "both must be equal"),
        ({"image": {**PLAIN, "layout": "vit"}}, "Leave it out"),
        ({"image": {**PLAIN, "qkv_bias": False}}, "has biases"),
        ({"text": {**TEXT, "memory_width": 7}}, "model.text.memory_width: 7"),
        ({"text": {**TEXT, "heads": 5}}, "model.text.heads: 5"),
        ({"text": {**TEXT, "bos_id": V}}, "model.text.bos_id: 43"),
        ({"text": {**TEXT, "activation": "gelo"}}, "perhaps 'gelu'"),
        ({"text": 3}, "model.text = 3"),
        ({"texts": {}}, "model.texts"),
    ],
)
def test_shapes_that_cannot_be(change, told):
    with pytest.raises(BedstoneError, match=told):
        blip_config({"image": PLAIN, "text": TEXT, **change})


def test_inputs_that_do_not_fit():
    network = made(CASES["captions"])
    memory = network.memory(pixels(network.config, 2))
    with pytest.raises(BedstoneError, match="2 were given for 3 rows"):
        network.caption_states(ids(3), None, memory)
    with pytest.raises(BedstoneError, match="has 12 tokens; the network's context is 11"):
        network.caption_states(ids(2, 12), None, memory)
    with pytest.raises(BedstoneError, match="9 wide"):
        network.caption_states(ids(2), None, memory[..., :9])
    with pytest.raises(BedstoneError, match="made for captions and has no encoder"):
        network.read(ids(2), None, memory)
    with pytest.raises(BedstoneError, match="have the shape"):
        network.memory(torch.zeros(1, 3, 8, 8))
    with pytest.raises(BedstoneError, match="answers: were not given"):
        made(CASES["answers"])(pixels(network.config, 2), ids(2))


def test_every_head_says_what_it_has():
    shapes = {
        kind: replace(CASES["joint"], head=CASES[kind].head) for kind in CASES if "-" not in kind
    }
    has = {kind: (each.reads, each.writes, each.matches) for kind, each in shapes.items()}
    assert has == {
        "captions": (False, True, False),
        "answers": (True, True, False),
        "matching": (True, False, True),
        "joint": (True, True, True),
    }
