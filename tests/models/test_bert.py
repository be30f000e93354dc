"""BERT: the shared network test, parity with the published implementation, heads."""

import json
from dataclasses import replace

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout
from bedstone.nn.blocks import PostNorm
from bedstone.nn.masks import Documents
from networks import check_network, check_published, randomise

LABELS = ("no", "maybe", "yes")
HEADS = {
    "language": HeadConfig("language"),
    "pretraining": HeadConfig("pretraining"),
    "sequence": HeadConfig("sequence", LABELS),
    "multi": HeadConfig("sequence", LABELS, "multi"),
    "regression": HeadConfig("sequence", ("score",), "regression"),
    "tokens": HeadConfig("tokens", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")),
    "spans": HeadConfig("spans"),
    "pooled": HeadConfig("pooled"),
    "states": HeadConfig("states"),
}
LEFT_OUT = {("roberta", "pretraining"), ("distilbert", "pretraining"), ("distilbert", "pooled")}
SHAPES = {
    "small": {},
    "odd": {"width": 36, "heads": 6, "hidden": 50, "norm_eps": 1e-5, "activation": "relu"},
}


def config(name: str, head: str, shape: str = "small", **changes) -> BertConfig:
    known = {"vocab_size": 97, "width": 32, "layers": 3, "heads": 4, "hidden": 48, "context": 40}
    shaped = {**known, **SHAPES[shape], **changes}
    if name == "distilbert":
        shaped.pop("norm_eps", None)
    return BertConfig(layout=name, head=HEADS[head], **shaped)


CASES = {
    f"{name}-{head}": config(name, head, "odd" if index % 2 else "small")
    for name in ("bert", "roberta", "distilbert")
    for index, head in enumerate(HEADS)
    if (name, head) not in LEFT_OUT
}
CASES["bert-untied"] = config("bert", "language", tied=False)
CASES["bert-three-segments"] = config("bert", "pretraining", segments=3, tied=False)
CASES["roberta-untied"] = config("roberta", "language", tied=False, segments=2)
CASES["distilbert-untied"] = config("distilbert", "language", tied=False)


@pytest.fixture(params=CASES, ids=str)
def case(request) -> BertConfig:
    return CASES[request.param]


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, which are real, segments; the second row is padded."""
    ids = torch.randint(5, 97, (2, 40), generator=torch.Generator().manual_seed(7))
    keep = torch.ones(2, 40, dtype=torch.bool)
    keep[1, 23:] = False
    types = torch.zeros(2, 40, dtype=torch.long)
    types[:, 17:] = 1
    return ids, keep, types


def flat(out) -> torch.Tensor:
    return torch.cat([part.flatten() for part in out]) if isinstance(out, tuple) else out


def forward(case, rows):
    ids, keep, types = rows
    types = types if case.segments and case.segments > 1 else None
    return lambda network: flat(network(ids, keep, types=types))


def published(case: BertConfig, folder):
    import transformers

    written = layout(case.layout).write_config(case)
    (folder / "config.json").write_text(json.dumps(written))
    theirs = transformers.AutoConfig.from_pretrained(folder)
    theirs._attn_implementation = "eager"
    kind = getattr(transformers, written["architectures"][0])
    extra = {"add_pooling_layer": False} if case.head.kind == "states" else {}
    if case.layout == "distilbert":
        extra = {}
    return kind(theirs, **extra).eval()


def their_outputs(case, rows):
    ids, keep, types = rows

    def run(network):
        ids_of = {"token_type_ids": types} if case.segments and case.segments > 1 else {}
        # roberta reads positions off its padding: its id has to stand there
        real = ids.masked_fill(~keep, case.pad_id)
        out = network(real, attention_mask=keep.long(), **ids_of)
        kind = case.head.kind
        if kind == "pretraining":
            return flat((out.prediction_logits, out.seq_relationship_logits))
        if kind == "spans":
            return torch.stack((out.start_logits, out.end_logits), -1)
        if kind == "pooled":
            return out.pooler_output
        return out.last_hidden_state if kind == "states" else out.logits

    return run


def real_only(case, keep, run):
    """What stands at padding is nobody's business: zero on both sides."""

    def cut(network):
        out = run(network)
        if out.dim() == 3:
            return out.masked_fill(~keep[..., None], 0.0)
        if case.head.kind == "pretraining":
            words = out[: 2 * 40 * 97].view(2, 40, 97).masked_fill(~keep[..., None], 0.0)
            return torch.cat((words.flatten(), out[2 * 40 * 97 :]))
        return out

    return cut


def test_network(case, rows):
    length = {"sequence": (2, case.head.outputs), "pooled": (2, case.width)}
    last = {"language": 97, "tokens": 5, "spans": 2, "states": case.width}
    kind = case.head.kind
    shape = length.get(kind) or (2, 40, last.get(kind, 0))
    if kind == "pretraining":
        shape = (2 * 40 * 97 + 4,)
    ids = torch.arange(2 * 40).view(2, 40)  # every position and segment takes part
    types = torch.arange(40).expand(2, 40) % max(case.segments, 1)
    if case.layout == "roberta":  # the padding's and the unused position are read by nobody

        def run(network):
            return flat(network(ids, types=types, positions=torch.arange(-2, 38)[None]))
    else:

        def run(network):
            return flat(network(ids, types=types if case.segments else None))

    check_network(build(case), run, shape)


def test_parity_both_ways(case, rows, tmp_path):
    network = build(case).eval()
    randomise(network)
    ids, keep, types = rows
    real = (ids.masked_fill(~keep, case.pad_id), keep, types)
    check_published(
        layout(case.layout),
        network,
        published(case, tmp_path),
        real_only(case, keep, forward(case, real)),
        real_only(case, keep, their_outputs(case, rows)),
    )


def test_whole_folders_open_both_ways(case, tmp_path):
    import transformers

    model = Model(build(case, seed=3).eval())
    model.save(tmp_path / "ours")
    name = model.layout.architecture(case)
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = bedstone.load(tmp_path / "theirs")
    assert again.config.head.labels == case.head.labels
    assert again.config.head.problem == case.head.problem
    ours = model.network.state_dict()
    for key, value in ours.items():
        assert torch.equal(value, again.network.state_dict()[key]), key


def test_packed_documents_are_each_document_alone(rows):
    network = build(config("bert", "states")).eval()
    randomise(network)
    ids, _, types = rows
    lengths = (7, 1, 20, 12)
    numbers = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = network.states(
            ids[:1],
            types=types[:1],
            positions=positions,
            mask=Documents(numbers.int(), causal=False),
        )
        at = 0
        for length in lengths:
            part = slice(at, at + length)
            alone = network.states(ids[:1, part], types=types[:1, part])
            assert (alone - packed[:, part]).abs().max() < 1e-5
            at += length


@pytest.mark.parametrize("edited", [False, True])
def test_states_that_are_asked_for_alone_are_the_same(rows, edited):
    network = build(config("bert", "states")).eval()
    randomise(network)
    if edited:  # another class than the one that knows how
        network.stack[-1]["attn"].__class__ = type("Other", (PostNorm,), {})
    ids, _, types = rows
    read = torch.tensor([31, 2, 3, 39, 0])
    whole = network.states(ids, types=types)[:, read]
    some = network.states(ids, types=types, read=read)
    torch.testing.assert_close(some, whole)
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    want = torch.autograd.grad((whole * weights).sum(), list(network.parameters()))
    found = torch.autograd.grad((some * weights).sum(), list(network.parameters()))
    for one, two in zip(found, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_older_names_of_norms_open(tmp_path):
    from safetensors.torch import load_file, save_file

    model = Model(build(config("bert", "sequence")).eval())
    model.save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    save_file(old, file)
    again = bedstone.load(tmp_path / "m", verify=False)
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[key])


def test_a_new_head_keeps_body_and_pooler():
    network = build(config("bert", "pretraining"), seed=1)
    body = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("head")}
    pooler = network.head.pairs.dense.weight.clone()
    network.set_head(HEADS["sequence"], seed=5)
    assert network.config.head.labels == LABELS
    assert torch.equal(network.head.dense.weight, pooler)
    assert network.head.out.weight.shape == (3, 32)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in body.items())
    network.set_head(HEADS["language"])
    assert network.head.out.weight is network.embed.weight


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"heads": 5}, "doesn't divide the width"),
        ({"activation": "gelo"}, "perhaps 'gelu'"),
        ({"layout": "brt"}, "perhaps 'bert'"),
        ({"layers": 0}, "model.layers"),
        ({"layout": "roberta"}, "no pretraining heads"),
    ],
)
def test_shapes_that_cannot_be(changes, told):
    with pytest.raises(BedstoneError, match=told):
        replace(config("bert", "pretraining"), **changes)


def test_heads_that_cannot_be():
    with pytest.raises(BedstoneError, match="at least one label"):
        HeadConfig("sequence")
    with pytest.raises(BedstoneError, match="there twice"):
        HeadConfig("tokens", ("a", "b", "a"))
    with pytest.raises(BedstoneError, match="perhaps 'tokens'"):
        HeadConfig("token", ("a",))


@pytest.mark.parametrize("named", [None, ["Model"]], ids=["unnamed", "the body"])
@pytest.mark.parametrize("kind", ["language", "pretraining", "sequence", "tokens", "spans"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_weights_with_a_head_open_without_its_class(tmp_path, family, kind, named):
    """config.json without `architectures` has the head of its tensors; one of the body, none."""
    if kind == "pretraining" and family != "bert":
        pytest.skip("only BERT has them")
    labels = ("a", "b", "c") if kind in ("sequence", "tokens") else ()
    config = BertConfig(family, 50, 16, 1, 2, 32, 32, head=HeadConfig(kind, labels))
    network = build(config, seed=0)
    randomise(network)
    Model(network).save(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    stem = said["architectures"][0].split("For")[0]
    said["architectures"] = named and [stem + "Model"]
    path.write_text(json.dumps(said))
    opened = bedstone.load(tmp_path, verify=False)
    assert opened.config.head.kind in ((kind,) if named is None else ("states", "pooled"))
    ids = torch.randint(5, 50, (1, 8))
    with torch.no_grad():
        assert torch.equal(opened.network.states(ids), network.eval().states(ids))


def test_what_a_distilbert_reads_is_what_its_folder_says(tmp_path):
    tokenizer = train_wordpiece(["the cat sat on the mat"] * 3, 120)
    for family, segments in (("distilbert", False), ("bert", True)):
        config = BertConfig(
            family, tokenizer.vocab_size, 16, 1, 2, 32, 32, head=HeadConfig("states")
        )
        Model(build(config), tokenizer).save(tmp_path / family)
        said = json.loads((tmp_path / family / "tokenizer_config.json").read_text())
        assert ("token_type_ids" in said["model_input_names"]) is segments
        import transformers

        theirs = transformers.AutoModel.from_pretrained(tmp_path / family)
        words = transformers.AutoTokenizer.from_pretrained(tmp_path / family)
        theirs(**words("the cat", return_tensors="pt"))
