"""GPT: the shared network test, the cache, and parity with the published implementation."""

import json
from dataclasses import replace

import pytest
import torch

from bedstone.checkpoints.model import Model, load
from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import LAYOUTS, GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout, to_published
from bedstone.nn.masks import Documents
from networks import TOLERANCE, check_network, check_published, randomise

SMALL = GPTConfig(vocab_size=97, width=32, layers=3, heads=4, hidden=48, context=64)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def config(name: str, **changes) -> GPTConfig:
    shape = {"vocab_size": 97, "width": 32, "layers": 3, "heads": 4, "hidden": 48, "context": 64}
    return GPTConfig(layout=name, **{**shape, **changes})


CASES = {
    "gpt2": config("gpt2"),
    "gpt2-untied": config("gpt2", tied=False, norm_eps=1e-5, heads=2, activation="relu"),
    "llama": config("llama", tied=False),
    "llama-grouped-wide-head": config("llama", heads=6, kv_heads=2, head_width=10, width=36),
    "llama-biases-one-kv": config("llama", kv_heads=1, qkv_bias=True, out_bias=True, mlp_bias=True),
    "llama3-rope": config("llama", kv_heads=2, rope_base=500_000.0, rope_scaling=LLAMA3),
    "llama-linear": config("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama-dynamic": config(
        "llama", context=24, rope_scaling={"rope_type": "dynamic", "factor": 2.0}
    ),
    "llama-yarn": config("llama", rope_scaling=YARN),
    "mistral": config("mistral", kv_heads=2, tied=False),
    "mistral-window": config("mistral", kv_heads=2, window=7, activation="gelu"),
    "qwen2": config("qwen2", kv_heads=2),
    "qwen2-window": config("qwen2", window=5, window_layers=(1, 2), tied=False),
    "qwen3": config("qwen3", kv_heads=2, head_width=16),
    "qwen3-biases": config("qwen3", qkv_bias=True, out_bias=True, tied=False, head_width=6),
}


@pytest.fixture(params=CASES, ids=str)
def case(request) -> GPTConfig:
    return CASES[request.param]


def steady(case: GPTConfig, length: int) -> int:
    """How long a sequence may be before its frequencies depend on its length."""
    return min(length, case.context if case.rope_scaling.get("rope_type") == "dynamic" else length)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(7))


def published(case: GPTConfig, folder):
    """Their network of our configuration, from the config.json we write."""
    import transformers

    written = layout(case.layout).write_config(case)
    (folder / "config.json").write_text(json.dumps(written))
    theirs = transformers.AutoConfig.from_pretrained(folder)
    theirs._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(theirs).eval()


def test_network(case, ids):
    check_network(build(case), lambda network: network(ids), (2, 40, 97))


def test_cache_equals_full_pass(case, ids):
    network = build(case).eval()
    randomise(network)
    ids = ids[:, : steady(case, ids.shape[1])]
    with torch.no_grad():
        full = network(ids)
        cache = network.new_cache(2, ids.shape[1])
        steps = [
            network(part, cache=cache) for part in ids.split([9, 4, 1, 1, ids.shape[1] - 15], 1)
        ]
    assert (torch.cat(steps, 1) - full).abs().max() < 1e-5


def test_cache_refuses_what_does_not_fit(ids):
    network = build(SMALL)
    with pytest.raises(ValueError, match="holds 10 tokens"):
        network(ids, cache=network.new_cache(2, 10))


def test_parity_both_ways(case, ids, tmp_path):
    network = build(case).eval()
    randomise(network)
    theirs = published(case, tmp_path)
    check_published(
        layout(case.layout),
        network,
        theirs,
        lambda network: network(ids),
        lambda network: network(ids).logits,
    )


def test_their_config_opens_as_ours(case, tmp_path):
    """Their class writes the configuration; we read the same shape from it."""
    theirs = published(case, tmp_path).config
    theirs.save_pretrained(tmp_path / "theirs")
    read = layout(case.layout).read_config(
        json.loads((tmp_path / "theirs" / "config.json").read_text())
    )
    assert replace(read, rope_scaling={}) == replace(case, rope_scaling={})
    assert case.rope_scaling.items() <= read.rope_scaling.items()


def test_greedy_continuations_are_theirs(case, ids, tmp_path):
    network = build(case).eval()
    randomise(network, seed=3)
    theirs = published(case, tmp_path)
    check = layout(case.layout)
    theirs.load_state_dict(to_published(check, network), strict=False)
    prompt = ids[:1, :6]
    theirs.generation_config.eos_token_id = None
    new = steady(case, 56) - 6
    expected = theirs.generate(prompt, max_new_tokens=new, do_sample=False, pad_token_id=0)
    got = prompt
    with torch.no_grad():
        cache = network.new_cache(1, 56)
        step = prompt
        for _ in range(new):
            step = network(step, cache=cache)[:, -1:].argmax(-1)
            got = torch.cat((got, step), 1)
    assert torch.equal(got, expected)


def test_packed_documents_equal_one_by_one(case):
    network = build(case).eval()
    randomise(network)
    total = steady(case, 40)
    lengths = [[total - 10, 10], [3, total - 3]]
    ids = torch.randint(0, 97, (2, total))
    numbers = torch.stack(
        [torch.repeat_interleave(torch.arange(2), torch.tensor(n)) for n in lengths]
    )
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    with torch.no_grad():
        packed = network(ids, mask=Documents(numbers), positions=positions)
        for row, sizes in enumerate(lengths):
            alone = [network(part[None])[0] for part in ids[row].split(sizes)]
            assert (torch.cat(alone) - packed[row]).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "gpt3"}, "perhaps 'gpt2'"),
        ({"kv_heads": 3}, "doesn't divide the 4 heads"),
        ({"layers": 0}, "model.layers: 0"),
        ({"activation": "sillu"}, "perhaps 'silu'"),
        ({"layout": "mistral", "mlp_bias": True}, "mistral layout has it False only"),
        ({"layout": "gpt2", "head_width": 6}, "model.width: 32 isn't"),
        ({"head_width": 7}, "odd"),
        ({"rope_scaling": {"rope_type": "lama3"}}, "perhaps 'llama3'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "original_max_position"),
    ],
)
def test_bad_shapes_are_named(changes, message):
    with pytest.raises(BedstoneError, match=message):
        build(config(changes.pop("layout", "qwen3"), **changes))


def test_every_layout_is_tested():
    assert {case.layout for case in CASES.values()} == set(LAYOUTS)


LABELLED = {
    "sequence": HeadConfig("sequence", ("no", "maybe", "yes")),
    "regression": HeadConfig("sequence", ("score",), "regression"),
    "tokens": HeadConfig("tokens", ("O", "B-X", "I-X")),
    "spans": HeadConfig("spans"),
    "states": HeadConfig("states"),
}


@pytest.mark.parametrize("head", LABELLED)
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_heads_are_theirs(name, head, ids, tmp_path):
    import transformers

    case = config(name, head=LABELLED[head], **({} if name == "gpt2" else {"kv_heads": 2}))
    network = build(case).eval()
    randomise(network)
    check = layout(name)
    (tmp_path / "config.json").write_text(json.dumps(check.write_config(case)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.pad_token_id = 0
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[1, 29:] = False
    real = ids.clamp(min=1).masked_fill(~keep, 0)

    def outputs(network):
        out = network(real, attention_mask=keep.long())
        if head == "spans":
            return torch.stack((out.start_logits, out.end_logits), -1)
        return out.last_hidden_state if head == "states" else out.logits

    def visible(run):
        """What stands at padding is nobody's business."""

        def cut(network):
            out = run(network)
            return out.masked_fill(~keep[..., None], 0.0) if out.dim() == 3 else out

        return cut

    kind = getattr(transformers, check.architecture(case))
    check_published(
        check,
        network,
        kind(theirs),
        visible(lambda network: network(real, keep)),
        visible(outputs),
    )
    assert check.read_config(check.write_config(case)).head == case.head


def test_attention_dropout_of_a_llama_is_of_attention_alone():
    import transformers

    theirs = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    theirs.attention_dropout = 0.3
    network = build(layout("llama").read(theirs.to_dict(), set()))
    assert {part.p for part in network.modules() if isinstance(part, torch.nn.Dropout)} == {0.0}
    assert network.stack[0].attn.sublayer.dropout == 0.3
    again = layout("llama").read(layout("llama").write_config(network.config), set())
    assert again == network.config
    ours = GPTConfig(layout="llama", dropout=0.2)  # of a recipe: both
    assert (ours.dropout, ours.attention_dropout) == (0.2, 0.2)
    assert layout("llama").read(layout("llama").write_config(ours), set()) == ours


def test_the_dropouts_of_a_gpt2_are_three():
    shares = {"resid_pdrop": 0.1, "attn_pdrop": 0.2, "embd_pdrop": 0.3}
    network = build(layout("gpt2").read({"n_layer": 1, "n_embd": 24, "n_head": 2, **shares}, set()))
    assert network.dropout.p == 0.3
    assert network.stack[0].attn.sublayer.dropout == 0.2
    assert network.config.dropout == 0.1
    written = layout("gpt2").write_config(network.config)
    assert {name: written[name] for name in shares} == shares


@pytest.mark.parametrize("head", ["language", "sequence", "tokens", "states"])
def test_a_decoder_without_its_class_has_the_head_of_its_tensors(tmp_path, head):
    labels = ("a", "b") if head in ("sequence", "tokens") else ()
    shape = {"vocab_size": 61, "width": 32, "layers": 1, "heads": 4, "hidden": 48}
    for family, tied in (("llama", False), ("qwen2", True), ("gpt2", True)):
        config = GPTConfig(layout=family, tied=tied, head=HeadConfig(head, labels), **shape)
        Model(build(config, seed=0)).save(tmp_path / family)
        path = tmp_path / family / "config.json"
        said = json.loads(path.read_text())
        del said["architectures"]
        path.write_text(json.dumps(said))
        assert load(tmp_path / family, verify=False).config.head == config.head
