"""Published folders of encoder-decoders, both ways: weights, configuration, ties, losses."""

import json
import re

import pytest
import torch

import bedstone
from bedstone.checkpoints.adapters import adapt
from bedstone.commands.info import describe
from bedstone.errors import BedstoneError
from bedstone.models.encoder_decoder.network import EncoderDecoder
from bedstone.models.encoder_decoder.published import fresh_generation
from bedstone.models.published import layout
from bedstone.nn.lora import LoraConfig
from bedstone.nn.ties import retie, untie
from bedstone.objectives.tokens import pair_loss
from encoder_decoders import CASES, MARIAN, T5, packed, published, saved, sources, targets


@pytest.fixture(params=CASES, ids=str)
def case(request) -> str:
    return request.param


def logits_of(theirs, ids, keep, after) -> torch.Tensor:
    with torch.no_grad():
        known = {"input_ids": ids, "attention_mask": keep.long(), "decoder_input_ids": after}
        return theirs(**known).logits


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-4 * max(1.0, float(other.abs().max())))


def edit(folder, **changes) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def test_theirs_opens_the_same_in_both_ways(case, tmp_path):
    theirs = saved(case, tmp_path / "t")
    (ids, keep), after = sources(), targets()
    expected = logits_of(theirs, ids, keep, after)
    mine = bedstone.load(tmp_path / "t")
    with torch.no_grad():
        assert near(mine.network(ids, after, keep), expected)
    mine.save(tmp_path / "o")
    back, report = type(theirs).from_pretrained(tmp_path / "o", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert near(logits_of(back.eval(), ids, keep, after), expected)
    again = bedstone.load(tmp_path / "o")
    assert again.config == mine.config
    for name, weight in mine.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[name]), name


def test_what_their_newest_version_writes_opens(case, tmp_path):
    theirs = published(case, tmp_path / "c")
    theirs.save_pretrained(tmp_path / "t")  # with its own config.json, which says other things
    (ids, keep), after = sources(), targets()
    mine = bedstone.load(tmp_path / "t")
    with torch.no_grad():
        assert near(mine.network(ids, after, keep), logits_of(theirs, ids, keep, after))


def test_loss_and_gradients_of_a_batch_with_label_smoothing(case, tmp_path):
    from transformers.trainer_pt_utils import LabelSmoother

    theirs = saved(case, tmp_path / "t")
    mine = bedstone.load(tmp_path / "t")
    network, start = mine.network, mine.config.start_id
    ids, keep = sources(5)
    lengths, labels = [9, 1, 4, 7, 2], targets(5)
    real = torch.arange(9) < torch.tensor(lengths)[:, None]
    labels = labels.masked_fill(~real, -100)
    out = theirs(input_ids=ids, attention_mask=keep.long(), labels=labels)
    smoothed = LabelSmoother(0.1)({"logits": out.logits}, labels)
    plain = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    assert abs(out.loss - plain) < 1e-4

    class Pairs:
        sources = packed(ids, keep.sum(1))
        rows = packed(
            torch.cat((torch.full((5, 1), start), labels[:, :-1]), 1).clamp(min=0), lengths
        )
        targets = labels[real][None]

    total, count = pair_loss(network, Pairs, smoothing=0.1)
    assert count == sum(lengths)
    assert abs(total / count - smoothed) < 1e-4
    smoothed.backward()
    (total / count).backward()
    grads = {name: weight.grad for name, weight in theirs.named_parameters(remove_duplicate=False)}
    names = layout(mine.config.layout).names(mine.config)
    compared = 0
    ours = dict(network.named_parameters())
    for name in names:
        if set(name.ours) & set(network.ties) or grads.get(name.theirs) is None:
            continue
        one, other = ours[name.ours[0]].grad, grads[name.theirs]
        assert (one - other).abs().max() < 1e-4, name.theirs
        compared += 1
    assert compared >= 45


def test_every_name_of_a_tied_table_loads(tmp_path):
    for case, body in (("t5", ""), ("marian", "model."), ("bart", "model.")):
        theirs = saved(case, tmp_path / case)
        (ids, keep), after = sources(), targets()
        expected = logits_of(theirs, ids, keep, after)
        tensors = dict(bedstone.checkpoints.model.load_tensors(tmp_path / case))
        table = tensors.pop(f"{body}shared.weight")
        sides = [f"{body}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
        ways = [[sides[0]], [sides[1]], ["lm_head.weight"], [*sides, "lm_head.weight"]]
        ways += [[f"{body}shared.weight", *sides, "lm_head.weight"]]
        for way in ways:
            held = {**tensors, **{name: table.clone() for name in way}}
            (tmp_path / case / "model.safetensors").unlink()
            bedstone.checkpoints.model.save_tensors(tmp_path / case, held)
            mine = bedstone.load(tmp_path / case)
            with torch.no_grad():
                assert near(mine.network(ids, after, keep), expected), way
        held[sides[1]] = table + 1
        (tmp_path / case / "model.safetensors").unlink()
        bedstone.checkpoints.model.save_tensors(tmp_path / case, held)
        if case == "t5":
            with pytest.raises(BedstoneError, match=r"decoder.embed_tokens.weight' differ"):
                bedstone.load(tmp_path / case)
        else:  # these layouts have untied networks, and so it is one, whatever the file says
            own = bedstone.load(tmp_path / case).network
            assert not own.config.tied
            assert torch.equal(own.decoder.embed.weight, table + 1)
            assert torch.equal(own.encoder.embed.weight, table)


@pytest.mark.parametrize("case", ["t5-v1.1", "t5-gated-tied"])
def test_no_table_stands_in_for_another(case, tmp_path):
    """transformers#48154: the encoder's embedding was read from lm_head.weight, unsaid."""
    saved(case, tmp_path)
    tensors = dict(bedstone.checkpoints.model.load_tensors(tmp_path))
    tensors["lm_head.weight"] = tensors.get("lm_head.weight", tensors["shared.weight"])
    del tensors["shared.weight"]
    (tmp_path / "model.safetensors").unlink()
    bedstone.checkpoints.model.save_tensors(tmp_path, tensors)
    if case == "t5-gated-tied":  # newer versions write v1.1 so: nothing shows that they are one
        edit(tmp_path, scale_decoder_outputs=False)
    with pytest.raises(BedstoneError, match=r"1 tensors .* missing, 'shared.weight' first"):
        bedstone.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.1.layer.1.EncDecAttention.q.weight",
        "decoder.final_layer_norm.weight",
    ],
)
def test_a_missing_tensor_is_named(name, tmp_path):
    saved("t5", tmp_path)
    tensors = dict(bedstone.checkpoints.model.load_tensors(tmp_path))
    del tensors[name]
    (tmp_path / "model.safetensors").unlink()
    bedstone.checkpoints.model.save_tensors(tmp_path, tensors)
    with pytest.raises(BedstoneError, match=re.escape(name)):
        bedstone.load(tmp_path)


def test_tables_that_older_files_hold_are_passed_over(tmp_path):
    """t5-small has a bias of cross-attention that no class reads; marian its sinusoids."""
    theirs = saved("t5", tmp_path / "t")
    tensors = dict(bedstone.checkpoints.model.load_tensors(tmp_path / "t"))
    extra = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[extra] = torch.randn(8, 3)
    (tmp_path / "t" / "model.safetensors").unlink()
    bedstone.checkpoints.model.save_tensors(tmp_path / "t", tensors)
    (ids, keep), after = sources(), targets()
    with torch.no_grad():
        found = bedstone.load(tmp_path / "t").network(ids, after, keep)
    assert near(found, logits_of(theirs, ids, keep, after))
    saved("marian", tmp_path / "m")
    tensors = dict(bedstone.checkpoints.model.load_tensors(tmp_path / "m"))
    tensors["model.encoder.embed_positions.weight"] = torch.randn(40, 36)
    del tensors["final_logits_bias"]
    (tmp_path / "m" / "model.safetensors").unlink()
    bedstone.checkpoints.model.save_tensors(tmp_path / "m", tensors)
    assert not bedstone.load(tmp_path / "m").network.head.out.bias.any()


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("marian", {"normalize_before": True}, "normalize_before = True is not supported"),
        ("marian", {"static_position_embeddings": False}, "static_position_embeddings"),
        ("bart", {"add_final_layer_norm": True}, "add_final_layer_norm"),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, "BartForSequence"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder"),
        ("t5", {"feed_forward_proj": "gate-relu"}, "feed_forward_proj"),
        ("t5", {"feed_forward_proj": "gated-rely"}, "rely"),
        ("t5", {"dense_act_fn": "gelu_new"}, "dense_act_fn"),
        ("t5", {"task_specific_params": [3]}, "task_specific_params"),
        ("t5", {"num_decoder_layers": 10**6}, "num_decoder_layers"),
        ("marian", {"encoder_layers": 10**6}, "encoder_layers"),
        ("marian", {"decoder_start_token_id": 99}, "decoder_start_token_id"),
        ("marian", {"encoder_attention_heads": 5}, "encoder_attention_heads"),
        ("t5", {"tie_encoder_decoder": True}, "tie_encoder_decoder"),
    ],
)
def test_configurations_that_cannot_be(case, changes, words, tmp_path):
    saved(case, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(BedstoneError, match=words):
        bedstone.load(tmp_path)


def test_scaling_and_ties_are_as_the_file_says():
    """transformers#43681: after a change, outputs of every T5 were scaled."""

    def read(**changes):
        values = {**T5, **changes}
        return layout("t5").read({k: v for k, v in values.items() if v is not None}, set())

    assert (read().tied, read().scaled_output, read().gated) == (True, True, False)
    v11 = read(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    assert (v11.tied, v11.scaled_output, v11.gated, v11.activation) == (
        False, False, True, "gelu_new"
    )  # fmt: skip
    newer = read(
        feed_forward_proj="gated-gelu", tie_word_embeddings=True, scale_decoder_outputs=False
    )
    assert (newer.tied, newer.scaled_output) == (True, False)
    assert read(feed_forward_proj="gated-silu").activation == "silu"
    small = layout("mt5").read({"vocab_size": 97}, set())
    assert (small.gated, small.scaled_output, small.layers, small.start_id) == (True, False, 8, 0)


def test_what_is_left_out_is_as_their_class_has_it():
    import transformers

    for name, kind in (("marian", "Marian"), ("bart", "Bart"), ("t5", "T5"), ("mt5", "MT5")):
        values = json.loads(json.dumps(getattr(transformers, f"{kind}Config")().to_dict()))
        assert layout(name).read({}, set()) == layout(name).read(values, set())


def test_settings_of_generation_in_config_json_count(tmp_path):
    saved("bart", tmp_path / "b")
    mine = bedstone.load(tmp_path / "b")
    assert mine.generation["forced_bos_token_id"] == 0 and mine.generation["num_beams"] == 4
    assert mine.generation["decoder_start_token_id"] == 2
    mine.save(tmp_path / "o")
    written = json.loads((tmp_path / "o" / "generation_config.json").read_text())
    assert written["forced_bos_token_id"] == 0 and written["no_repeat_ngram_size"] == 3
    assert bedstone.load(tmp_path / "o").generation == mine.generation
    saved("marian", tmp_path / "m")
    edit(tmp_path / "m", forced_eos_token_id=...)  # the class's own default is not written
    assert bedstone.load(tmp_path / "m").generation["forced_eos_token_id"] == 0
    assert bedstone.load(tmp_path / "m").generation["bad_words_ids"] == [[96]]


def test_settings_of_tasks_are_prefixes_alone(tmp_path):
    """transformers#6502: min_length 56 of a published summary leaks into one's own model."""
    saved("t5", tmp_path / "t")
    mine = bedstone.load(tmp_path / "t")
    assert mine.config.prefixes == {
        "summarization": "summarize: ",
        "translation_en_to_de": "translate English to German: ",
    }
    assert not {"min_length", "num_beams", "max_length"} & set(mine.generation)
    mine.save(tmp_path / "o")
    assert bedstone.load(tmp_path / "o").config == mine.config
    assert mine.config.for_training().prefixes == {}
    saved("bart", tmp_path / "b")
    bart = bedstone.load(tmp_path / "b").config
    assert (bart.prefix, bart.prefixes, bart.for_training().prefix) == (" ", {}, "")


def test_a_run_that_begins_with_it_drops_settings_of_tasks(tmp_path):
    from dataclasses import dataclass, field

    from bedstone.train.start import begin

    @dataclass
    class Recipe:
        init: str
        model: dict = field(default_factory=dict)

    saved("bart", tmp_path / "b")
    model = begin(Recipe(str(tmp_path / "b")), None, ("bart",))
    assert (model.config.prefix, model.config.prefixes) == ("", {})
    assert model.generation == {
        "decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "forced_bos_token_id": 0, "forced_eos_token_id": 2,
    }  # fmt: skip


def test_a_start_token_that_no_file_says_is_unknown():
    bare = {name: value for name, value in T5.items() if name != "decoder_start_token_id"}
    shape = layout("t5").read(bare, set())
    assert shape.start_id is None and shape.for_training().start_id == shape.pad_id
    bare = {name: value for name, value in MARIAN.items() if name != "decoder_start_token_id"}
    assert layout("marian").read(bare, set()).start_id is None  # 58,100 is another vocabulary's


def test_fresh_models_never_generate_padding():
    shape = layout("marian").read(MARIAN, set())
    found = fresh_generation(shape)
    assert found["bad_words_ids"] == [[96]] and found["decoder_start_token_id"] == 96


@pytest.mark.parametrize("case", ["t5", "marian", "bart"])
def test_adapters_merge_and_ties_come_back(case, tmp_path):
    saved(case, tmp_path)
    mine = bedstone.load(tmp_path)
    (ids, keep), after = sources(), targets()
    with torch.no_grad():
        before = mine.network(ids, after, keep)
    undone = untie(mine.network)
    assert "head.out.weight" not in mine.network.ties
    assert mine.network.head.out.weight is not mine.network.encoder.embed.weight
    with torch.no_grad():
        assert near(mine.network(ids, after, keep), before)
    retie(mine.network, undone)
    assert mine.config.tied
    adapt(mine.network, LoraConfig(rank=2), seed=1)
    named = [name for name, weight in mine.network.named_parameters() if weight.requires_grad]
    assert any(".cross." in name for name in named)


def test_info_and_card(case, tmp_path):
    saved(case, tmp_path / "t")
    mine = bedstone.load(tmp_path / "t")
    facts = describe(mine)
    assert facts["head"] == "seq2seq" and facts["vocabulary"] == 97
    mine.save(tmp_path / "o")
    card = (tmp_path / "o" / "README.md").read_text()
    assert "text2text-generation" in card and CASES[case]["architectures"][0] in card
    with pytest.raises(BedstoneError, match=r"continues no text.*text2text-generation"):
        mine.generate("a text")


@pytest.mark.parametrize("case", ["t5", "marian", "bart"])
def test_adapters_open_in_peft(case, tmp_path):
    peft = pytest.importorskip("peft")
    from bedstone.checkpoints.adapters import save_adapter

    theirs = saved(case, tmp_path / "base")
    mine = bedstone.load(tmp_path / "base")
    adapt(mine.network, LoraConfig(rank=2), seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in mine.network.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    save_adapter(mine, tmp_path / "a")
    (ids, keep), after = sources(), targets()
    with torch.no_grad():
        found = mine.network.eval()(ids, after, keep)
    both = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    assert near(logits_of(both, ids, keep, after), found)


@pytest.mark.parametrize("bits", [8, 4])
def test_few_bits_save_and_open(bits, tmp_path):
    from bedstone.nn.fast.inference import for_inference

    saved("t5", tmp_path)
    network = bedstone.load(tmp_path).network
    (ids, keep), after = sources(), targets()
    with torch.no_grad():
        plain = network(ids, after, keep)
        for dtype, how in ((torch.float32, None), (torch.bfloat16, None), (torch.float32, bits)):
            ready = for_inference(network, dtype, how)
            found = ready(ids, after, keep).float()
            assert (found - plain).norm() < (0.35 if how == 4 else 0.06) * plain.norm()
    assert isinstance(ready, EncoderDecoder)
