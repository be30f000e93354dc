"""Sentence-embedding folders: ours open in sentence-transformers, theirs and old ones open here."""

import json
import shutil

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.text.encode import text_batch
from bedstone.data.text.packing import pack
from bedstone.data.text.train_tokenizer import train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.nn.layers import MODES, Pooling, normalise, pool
from bedstone.tasks.text.feature_extraction import SentenceEmbedding
from networks import randomise

TEXTS = ["the cat sat", "A dog ran after the cat, and the cat ran", "the " * 40 + "end"]


@pytest.fixture(scope="module")
def plain() -> Model:
    tokenizer = train_wordpiece(TEXTS * 3, 120)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        width=16,
        layers=2,
        heads=2,
        context=64,
        head=HeadConfig("pooled"),
    )
    network = build(config, seed=0).eval()
    randomise(network)
    return Model(network, tokenizer)


def pooled(model: Model, pooling: Pooling) -> Model:
    return Model(model.network, model.tokenizer, pooling=pooling)


@torch.no_grad()
def embed(model: Model) -> torch.Tensor:
    """Each text's vector, cut where the folder says, in plain steps."""
    assert model.pooling is not None and model.tokenizer is not None
    limit = model.pooling.max_tokens or model.config.context
    batch = pack([windows[0] for windows in text_batch(model.tokenizer, TEXTS, limit=limit)])
    vectors = pool(model.network.packed_states(batch), batch.lengths, model.pooling.modes)
    return normalise(vectors) if model.pooling.normalise else vectors


def change(path, **fields):
    path.write_text(json.dumps({**(json.loads(path.read_text())), **fields}))


POOLINGS = [
    Pooling(normalise=True, max_tokens=24),
    Pooling(("cls",), max_tokens=64, prompts={"query": "find: "}, default_prompt="query"),
    Pooling(MODES, similarity="dot", max_tokens=32),
]


@pytest.mark.parametrize("pooling", POOLINGS, ids=lambda pooling: "+".join(pooling.modes))
def test_what_is_saved_comes_back(plain, tmp_path, pooling):
    model = pooled(plain, pooling)
    model.save(tmp_path / "a")
    again = bedstone.load(tmp_path / "a")
    assert again.pooling == pooling
    assert torch.equal(embed(again), embed(model))


@pytest.mark.parametrize("mode", MODES)
def test_a_saved_folder_opens_in_sentence_transformers(plain, tmp_path, mode):
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer
    model = pooled(plain, Pooling((mode,), normalise=mode == "mean", max_tokens=24))
    model.save(tmp_path / "a")
    opened = theirs(str(tmp_path / "a"), device="cpu")
    assert opened.max_seq_length == 24
    found = torch.from_numpy(opened.encode(TEXTS))
    assert (found - embed(model)).abs().max() < 1e-4
    opened.save(str(tmp_path / "theirs"))
    again = bedstone.load(tmp_path / "theirs")
    assert again.pooling == model.pooling
    assert (embed(again) - embed(model)).abs().max() < 1e-6
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        ours = json.loads((tmp_path / "a" / name).read_text())
        assert ours == json.loads((tmp_path / "theirs" / name).read_text())


def as_before_version_3(folder) -> None:
    """Rewrites a saved folder as sentence-transformers 0.3 to 2 wrote them."""
    (folder / "bedstone.json").unlink()
    (folder / "config_sentence_transformers.json").unlink()
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / name, inner / name)
    (folder / "sentence_bert_config.json").unlink()
    (inner / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 12, "do_lower_case": True})
    )
    switches = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}
    switches |= {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 16}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(switches))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": 0,
                    "name": "0",
                    "path": path,
                    "type": f"sentence_transformers.models.{kind}",
                }
                for path, kind in (("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"))
            ]
        )
    )


def test_older_folders_open(plain, tmp_path):
    pooled(plain, Pooling()).save(tmp_path / "a")
    as_before_version_3(tmp_path / "a")
    model = bedstone.load(tmp_path / "a")
    assert model.pooling == Pooling(("max", "mean"), max_tokens=12)
    assert embed(model).shape == (3, 32)


def test_do_lower_case_makes_the_tokenizer_lower(tmp_path):
    tokenizer = train_wordpiece(["the Cat sat on THE mat"] * 3, 120, lowercase=False)
    config = BertConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, context=64)
    Model(build(config, seed=0), tokenizer, pooling=Pooling()).save(tmp_path / "a")
    (tmp_path / "a" / "bedstone.json").unlink()
    cased = bedstone.load(tmp_path / "a").tokenizer
    change(tmp_path / "a" / "sentence_bert_config.json", do_lower_case=True)
    lower = bedstone.load(tmp_path / "a").tokenizer
    assert lower.encode("THE MAT") == cased.encode("the mat") != cased.encode("THE MAT")


def test_a_model_that_says_nothing_of_pooling_has_none(plain, tmp_path):
    plain.save(tmp_path / "a")
    assert bedstone.load(tmp_path / "a").pooling is None
    assert not (tmp_path / "a" / "modules.json").exists()


def module(path: str, kind: str) -> dict:
    return {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.mark.parametrize(
    "modules, told",
    [
        ({"not": "a list"}, "is not a list of modules"),
        ([module("", "Transformer"), module("3_Dense", "Dense")], "models.Dense' is not one"),
        ([module("", "Transformer")] * 2, "is not one that Bedstone runs"),
        ([module("1_Pooling", "Pooling")], "names no Transformer"),
        ([module("", "Transformer"), module("../other", "Pooling")], "no name of a folder inside"),
    ],
)
def test_folders_that_cannot_be_run_are_refused(plain, tmp_path, modules, told):
    pooled(plain, Pooling()).save(tmp_path / "a")
    (tmp_path / "a" / "bedstone.json").unlink()
    (tmp_path / "a" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BedstoneError, match=told):
        bedstone.load(tmp_path / "a")


@pytest.mark.parametrize(
    "name, fields, told",
    [
        ("1_Pooling/config.json", {"pooling_mode": "middle"}, "'middle' is unknown"),
        ("1_Pooling/config.json", {"pooling_mode": 5}, "pooling_mode = 5"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "'long'; expected a number"),
        ("config_sentence_transformers.json", {"prompts": ["find"]}, "prompts = "),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "prompts = "),
    ],
)
def test_damaged_settings_are_named(plain, tmp_path, name, fields, told):
    pooled(plain, Pooling()).save(tmp_path / "a")
    (tmp_path / "a" / "bedstone.json").unlink()
    change(tmp_path / "a" / name, **fields)
    with pytest.raises(BedstoneError, match=told):
        bedstone.load(tmp_path / "a")


def test_vectors_are_cut_as_the_folder_says(plain, tmp_path):
    """`truncate_dim`: what sentence-transformers gives, after the normalisation."""
    library = pytest.importorskip("sentence_transformers")
    pooled(plain, Pooling(normalise=True, width=6)).save(tmp_path / "a")
    opened = bedstone.load(tmp_path / "a")
    assert opened.pooling is not None and opened.pooling.width == 6
    task = SentenceEmbedding(opened)
    ours, theirs = task(TEXTS), library.SentenceTransformer(str(tmp_path / "a"), device="cpu")
    assert ours.shape == (3, 6) and task.width == 6
    assert abs(ours - theirs.encode(TEXTS)).max() < 1e-5
    change(tmp_path / "a" / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(BedstoneError, match="model_type = 'SparseEncoder'"):
        bedstone.load(tmp_path / "a", verify=False)
