"""Golden outputs: stored with every kind of model, and different as soon as something breaks."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bedstone
from bedstone.checkpoints import golden as module
from bedstone.checkpoints.golden import (
    FILE,
    LIMIT,
    brief_differences,
    differences,
    golden_outputs,
    read_golden,
)
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.probe_outputs import Tokens
from bedstone.checkpoints.probes import CAPABILITIES, TEXTS, golden_image
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.blip.config import BlipTextConfig
from bedstone.models.blip.network import BlipText, word_head
from bedstone.models.heads import HeadConfig
from bedstone.models.memory import MemoryWriter
from bedstone.nn.gptq import quantize_for_inference
from bedstone.nn.layers import ACTIVATIONS, MLP, GatedMLP, LayerNorm, RMSNorm, gelu_tanh
from bedstone.nn.quantize import make_whole_in
from bedstone.runtime import pick_precision
from golden_models import MODELS
from image_models import clip_model, labelled_model
from networks import randomise
from runs import recipe_values
from small_models import NLI, SENTENCES, decoder, model

PRECISIONS = ("fp32", "bf16", "int8")


def how(name: str = "fp32"):
    return pick_precision(name, torch.device("cpu"))


def saved(made: Model, folder: Path) -> Path:
    return made.save(folder / "model")


def found_in(folder: Path, changed: Model | None = None, precision: str = "fp32") -> list:
    stored = read_golden(folder)
    assert stored is not None
    return differences(changed or bedstone.load(folder), stored, how(precision))


@pytest.mark.parametrize("name", MODELS)
def test_unbroken_models_give_their_outputs_in_every_precision(name, tmp_path):
    made = MODELS[name]()
    before = torch.random.get_rng_state()
    golden_outputs(made)
    assert torch.equal(before, torch.random.get_rng_state())  # or runs would go on otherwise
    folder = saved(made, tmp_path)
    again = bedstone.load(folder)
    stored = read_golden(folder)
    assert (folder / FILE).stat().st_size < LIMIT
    by_kind = [case["capability"] for case in stored["cases"]]
    assert all(by_kind.count(each) == 5 for each in by_kind)
    for precision in PRECISIONS:
        assert differences(again, stored, how(precision)) == [], precision
    assert brief_differences(again, stored) == []


def test_models_of_all_capabilities_are_tested():
    having = {kind.name for make in MODELS.values() for kind in CAPABILITIES if kind.has(make())}
    assert having == {kind.name for kind in CAPABILITIES} - {"text to text"}  # tested below


def test_weights_in_few_bits_and_in_bf16_give_their_outputs(tmp_path):
    half = decoder(HeadConfig("language"), "llama")
    half.network.bfloat16()
    folder = saved(half, tmp_path / "half")
    for precision in PRECISIONS:
        assert found_in(folder, precision=precision) == [], precision
    assert brief_differences(bedstone.load(folder), read_golden(folder)) == []
    for bits in (8, 4):
        coded = decoder(HeadConfig("language"), "llama")
        quantize_for_inference(coded.network, bits, 32, (), lambda share: None)
        make_whole_in(coded.network, torch.bfloat16)
        folder = saved(coded, tmp_path / str(bits))
        for precision in PRECISIONS:
            assert found_in(folder, precision=precision) == [], (bits, precision)


# What broke models elsewhere. Sizes are those of small random networks.


@torch.no_grad()
def scaled_outputs(made: Model) -> None:  # transformers#43681
    out = made.network.head
    getattr(out, "out", out).weight.mul_(made.config.width**-0.5)


@torch.no_grad()
def embedding_from_head(made: Model) -> None:  # transformers#48154
    made.network.embed.weight = torch.nn.Parameter(made.network.head.weight.clone())


def other_eps(made: Model) -> None:
    for part in made.network.modules():
        if isinstance(part, RMSNorm | LayerNorm):
            part.eps = 1e-4 if isinstance(part, RMSNorm) else 1e-3


def other_activation(made: Model) -> None:
    for part in made.network.modules():
        if isinstance(part, MLP):
            part.activation = F.gelu if part.activation is gelu_tanh else gelu_tanh
        elif isinstance(part, GatedMLP):
            part.activation = F.gelu


def relu(made: Model) -> None:
    for part in made.network.modules():
        if isinstance(part, MLP | GatedMLP):
            part.activation = F.relu


@torch.no_grad()
def swapped_layers(made: Model) -> None:
    first, last = made.network.stack[0], made.network.stack[-1]
    one, other = first.state_dict(), last.state_dict()
    one = {name: value.clone() for name, value in one.items()}
    first.load_state_dict(other)
    last.load_state_dict(one)


def untied() -> Model:
    return decoder(HeadConfig("language"), "llama", tied=False)


BREAKS = [scaled_outputs, embedding_from_head, other_eps, other_activation, relu, swapped_layers]


@pytest.mark.parametrize("spoil", BREAKS)
def test_what_breaks_a_decoder_is_seen(spoil, tmp_path):
    folder = saved(untied(), tmp_path)
    broken = bedstone.load(folder)
    spoil(broken)
    found = found_in(folder, broken)
    assert {"next"} <= {each.output for each in found}
    assert all(each.size > each.tolerance > 0 for each in found)
    assert found_in(folder) == []


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("spoil", [scaled_outputs, embedding_from_head, relu, swapped_layers])
def test_a_real_break_is_seen_in_rough_precisions_too(spoil, precision, tmp_path):
    folder = saved(untied(), tmp_path)
    broken = bedstone.load(folder)
    spoil(broken)
    assert found_in(folder, broken, precision)


ENCODERS = {
    "bert": (lambda: model(NLI), [other_eps, relu, scaled_outputs, swapped_layers]),
    "clip": (clip_model, [other_eps, other_activation, relu]),
    "vit": (labelled_model, [other_eps, other_activation, scaled_outputs, swapped_layers]),
    "embedder": (MODELS["embedder"], [other_eps, relu, swapped_layers]),
}
EACH = [(make, spoil) for make, spoils in ENCODERS.values() for spoil in spoils]


@pytest.mark.parametrize(("make", "spoil"), EACH)
def test_what_breaks_an_encoder_is_seen(make, spoil, tmp_path):
    folder = saved(make(), tmp_path)
    broken = bedstone.load(folder)
    spoil(broken)
    assert found_in(folder, broken)


@torch.no_grad()
def test_the_scale_of_a_clip_is_seen(tmp_path):
    folder = saved(clip_model(), tmp_path)
    broken = bedstone.load(folder)
    broken.network.logit_scale.zero_()
    assert {each.output for each in found_in(folder, broken)} == {"similarity"}


def test_labels_that_change_places_are_seen(tmp_path):
    folder = saved(model(NLI), tmp_path)
    (folder / "bedstone.json").unlink()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    labels = config["id2label"]
    config["id2label"] = labels | {"0": labels["1"], "1": labels["0"]}
    config["label2id"] = {label: int(number) for number, label in config["id2label"].items()}
    path.write_text(json.dumps(config))
    assert {each.output for each in found_in(folder)} == {"scores"}


def test_pixels_that_are_made_otherwise_are_seen(tmp_path):
    folder = saved(labelled_model(), tmp_path)
    (folder / "bedstone.json").unlink()
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"image_mean": [0.4, 0.5, 0.6]}))
    assert found_in(folder)


def test_a_swapped_tokenizer_is_named(tmp_path):
    folder = saved(untied(), tmp_path)
    other = train_bpe([text[::-1] for text in SENTENCES] * 3, 300)
    (folder / "bedstone.json").unlink()
    other.save(folder)
    found = found_in(folder)
    assert {each.output for each in found} == {"the tokenizer's ids"}  # the weights are right
    assert found[0].expected != found[0].got and found[0].input == {"text": TEXTS[0]}


def test_a_token_that_was_as_good_as_another_may_change():
    stored = Tokens([5, 7, 9], [-1.0, -1.0, -1.0], [0.5, 1e-6, 0.5], 1.0).record()
    near = Tokens([5, 8, 1], [-1.0, -1.0, -9.0], [0.5, 1e-6, 0.5], 1.0)
    assert near.compare(stored, 1e-4) is None
    other = Tokens([6, 7, 9], [-1.0, -1.0, -1.0], [0.5, 0.5, 0.5], 1.0)
    expected, got, size = other.compare(stored, 1e-4)
    assert (expected[0], got[0], size) == ([5, 7, 9], [6, 7, 9], 0.125)
    assert Tokens([5], [-1.0], [0.5], 1.0).compare(stored, 1e-4)[2] == math.inf


class Translator(torch.nn.Module):
    """An encoder-decoder of BLIP's text halves, with the methods that one has."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.config = BlipTextConfig(
            vocab_size=vocabulary, width=24, layers=2, heads=4, context=64, memory_width=24
        )
        self.encoder, self.decoder = BlipText(self.config), BlipText(self.config)
        self.head = word_head(self.config)

    def memory(self, ids, keep=None):
        return self.encoder.states(ids, keep=keep, causal=False)

    def packed_memory(self, sources):
        raise NotImplementedError

    def writer(self, memory, memory_keep=None):
        return MemoryWriter(self.decoder, self.head, memory, memory_keep)


def test_encoder_decoders_are_known_by_their_methods():
    known = train_bpe(SENTENCES * 3, 300)
    network = Translator(known.vocab_size)
    randomise(network)
    made = Model(network.eval(), known, generation={"decoder_start_token_id": 3})
    stored = json.loads(json.dumps(golden_outputs(made)))
    assert {case["capability"] for case in stored["cases"]} == {"text to text"}
    assert all(len(case["outputs"]["tokens"]["ids"]) == 8 for case in stored["cases"])
    assert differences(made, stored, how()) == []
    made.generation["decoder_start_token_id"] = 4
    assert differences(made, stored, how())


# The file: written with finished models alone, checked before it is believed.


def test_a_run_s_checkpoints_hold_none_and_its_model_does(tmp_path):
    result = bedstone.pretrain(recipe_values(tmp_path, budget="12 steps"), quiet=True)
    run = Path(result.folder if hasattr(result, "folder") else tmp_path / "run")
    assert read_golden(run / "model") is not None
    assert not list((run / "checkpoints").rglob(FILE))
    record = json.loads((run / "model" / "bedstone.json").read_text())
    assert FILE in record["files"]


def test_saving_leaves_the_network_as_it_is(tmp_path):
    made = model(NLI)
    made.network.train()
    saved(made, tmp_path)
    assert made.network.training
    assert all(part.training for part in made.network.modules())


def test_a_model_that_gives_no_numbers_is_saved_without(tmp_path, caplog):
    made = untied()
    with torch.no_grad():
        made.network.head.weight.fill_(math.nan)
    with caplog.at_level(logging.WARNING):
        folder = saved(made, tmp_path)
    assert "golden.json was left out" in caplog.text and "not finite" in caplog.text
    assert read_golden(folder) is None and (folder / "model.safetensors").exists()


def test_opening_computes_nothing_where_the_record_vouches(tmp_path, monkeypatch):
    folder = saved(untied(), tmp_path)
    monkeypatch.setattr(module, "brief_differences", lambda *_: pytest.fail("computed"))
    bedstone.load(folder)
    bedstone.load(folder, verify=False)


def test_opening_by_another_version_warns_where_outputs_differ(tmp_path, monkeypatch, caplog):
    folder = saved(untied(), tmp_path)
    monkeypatch.setattr(module, "versions", lambda: dict.fromkeys(module.SOFTWARE, "99"))
    bedstone.load(folder)
    assert not caplog.text
    monkeypatch.setitem(ACTIVATIONS, "silu", F.relu)
    bedstone.load(folder)
    assert "the model doesn't give what it gave" in caplog.text
    assert f"bedstone check {folder}" in caplog.text
    caplog.clear()
    bedstone.load(folder, verify=False)
    assert not caplog.text


DAMAGED = [
    lambda stored: [],
    lambda stored: stored | {"schema": 99},
    lambda stored: stored | {"cases": []},
    lambda stored: stored | {"cases": [5]},
    lambda stored: stored | {"cases": [stored["cases"][0] | {"capability": "flying"}]},
    lambda stored: stored | {"cases": [stored["cases"][0] | {"input": {"ids": []}}]},
    lambda stored: stored | {"cases": [stored["cases"][0] | {"input": {"ids": ["a"]}}]},
    lambda stored: stored | {"cases": [stored["cases"][0] | {"input": {"image": -1}}]},
    lambda stored: (
        stored | {"cases": [stored["cases"][0] | {"outputs": {"next": {"names": [[]]}}}]}
    ),
    lambda stored: stored | {"cases": [stored["cases"][0] | {"outputs": {"next": 4}}]},
]


@pytest.mark.parametrize("change", DAMAGED)
def test_a_damaged_file_is_refused_and_the_model_opens(change, tmp_path, caplog):
    folder = saved(untied(), tmp_path)
    stored = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(change(stored)))
    with pytest.raises(BedstoneError, match=r"golden\.json.*--overwrite|golden\.json.* = "):
        read_golden(folder)
    (folder / "bedstone.json").unlink()
    bedstone.load(folder)
    assert FILE in caplog.text


def test_inputs_that_a_network_does_not_know_are_differences(tmp_path):
    folder = saved(untied(), tmp_path)
    stored = read_golden(folder)
    stored["cases"][0]["input"]["ids"] = [10**6]
    found = differences(bedstone.load(folder), stored, how())
    assert "outputs" in {each.output for each in found}


def test_published_folders_open_as_before(tmp_path):
    folder = saved(untied(), tmp_path)
    (folder / FILE).unlink()
    (folder / "bedstone.json").unlink()
    assert read_golden(folder) is None
    assert bedstone.load(folder).writes_text


def test_images_are_the_same_everywhere():
    drawn = golden_image(3)
    assert drawn.shape == (60, 80, 3) and drawn.dtype == np.uint8
    assert [int(drawn[7, 11, 0]), int(drawn[30, 40, 1]), int(drawn[59, 79, 2])] == PIXELS
    assert not np.array_equal(drawn, golden_image(2))


PIXELS = [152, 7, 60]
