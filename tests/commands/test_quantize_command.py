"""`bedstone quantize`: what it writes, what it says of it, and what it refuses."""

import json

import pytest
import torch
from PIL import Image

import bedstone
from bedstone.checkpoints.adapters import adapt, save_adapter
from bedstone.cli import main
from bedstone.models.heads import HeadConfig
from bedstone.nn.lora import adapter_parameters
from bedstone.nn.quantize import Quantized
from encoder_decoders import HELD_OUT, in_words, trained_model
from image_models import clip_model, pictures
from networks import randomise
from small_models import SENTENCES, decoder, model


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"{sentence} {number}"} for number in range(12) for sentence in SENTENCES]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def gpt(tmp_path):
    return decoder(HeadConfig("language"), "llama").save(tmp_path / "gpt")


def kinds(folder) -> set[int]:
    network = bedstone.load(folder).network
    return {layer.bits for layer in network.modules() if isinstance(layer, Quantized)}


@pytest.mark.parametrize("bits", [8, 4])
def test_a_decoder(bits, gpt, texts, tmp_path, capsys):
    out = tmp_path / "small"
    words = ["quantize", str(gpt), str(out), "--bits", str(bits), "--texts", str(texts)]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["folder"] == str(out)
    assert facts["calibrated"] == (14 if bits == 4 else 0)
    assert facts["bytes"] < 0.75 * facts["bytes_before"]
    assert facts["tokens"] > 20
    assert 0 <= facts["divergence"] < 0.05
    assert 0.8 < facts["perplexity"] / facts["before"] < 1.2
    assert facts["agreement"] > 0.7 and facts["cosine"] > 0.95
    assert kinds(out) == ({8} if bits == 8 else {4, 8})
    assert bedstone.load(out).record["quantized"]["bits"] == bits
    assert main([*words, "--overwrite"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "perplexity",
        "same likeliest word",
        "divergence",
        "MB",
        "that calibrated nothing",
    ):
        assert part in shown
    assert main(["info", str(out), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert f"to {bits} bits" in info["quantized"] and info["bytes"] == facts["bytes"]
    assert main(["generate", str(out), "the dogs", "--max-new-tokens", "3"]) == 0
    assert main(["evaluate", str(out), str(texts), "--json"]) == 0


def test_without_texts_and_without_a_plain_form(gpt, tmp_path, capsys):
    out = tmp_path / "small"
    assert main(["quantize", str(gpt), str(out), "--bits", "4", "--no-plain"]) == 0
    said = capsys.readouterr()
    assert "--texts FILE makes them better" in said.err
    assert "perplexity" not in said.out
    assert not (out / "model.safetensors").exists()
    assert isinstance(bedstone.load(out).generate("the", max_new_tokens=2), str)


def test_an_encoder_and_a_clip(texts, tmp_path, capsys):
    bert = model(HeadConfig("states")).save(tmp_path / "bert")
    out = tmp_path / "small"
    words = ["quantize", str(bert), str(out), "--bits", "4", "--texts", str(texts), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cosine"] > 0.95 and facts["calibrated"] == 10
    assert "perplexity" not in facts and "agreement" not in facts
    clip = clip_model().save(tmp_path / "clip")
    out = tmp_path / "clip-small"
    assert main(["quantize", str(clip), str(out), "--texts", str(texts), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cosine"] > 0.95


def test_an_adapter_is_folded_in(gpt, tmp_path):
    opened = bedstone.load(gpt)
    adapt(opened.network, seed=0)
    with torch.no_grad():
        for parameter in adapter_parameters(opened.network).values():
            parameter.copy_(torch.randn(parameter.shape) * 0.05)
        expected = opened.network(torch.arange(12)[None])
    save_adapter(opened, tmp_path / "adapter")
    assert main(["quantize", str(tmp_path / "adapter"), str(tmp_path / "small")]) == 0
    network = bedstone.load(tmp_path / "small").network.float()
    with torch.no_grad():
        found = network(torch.arange(12)[None])
    assert (found - expected).std() < 0.1 * expected.std()


def test_the_data_that_it_learnt_from_calibrates(texts, gpt, tmp_path, capsys):
    opened = bedstone.load(gpt)
    opened.record = {"recipe": {"data": {"source": str(texts)}}, "data": {"source": str(texts)}}
    opened.save(gpt)
    assert main(["quantize", str(gpt), str(tmp_path / "a"), "--bits", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["texts"] == str(texts) and facts["calibrated"] == 14
    texts.unlink()
    assert main(["quantize", str(gpt), str(tmp_path / "b"), "--bits", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] is None


def test_commands_compute_in_few_bits(gpt, texts, tmp_path, capsys):
    def said(*words) -> str:
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    losses = {
        how: json.loads(said("evaluate", gpt, texts, "--json", "--precision", how))["loss"]
        for how in ("fp32", "int8", "int4")
    }
    assert 0 < abs(losses["int8"] - losses["fp32"]) < abs(losses["int4"] - losses["fp32"]) < 0.1
    bert = model(HeadConfig("sequence", ("bad", "good"))).save(tmp_path / "bert")
    on = ("--precision", "int8")
    for words in (
        ("generate", gpt, "the dogs", "--max-new-tokens", 2),
        ("run", "text-classification", bert, "go"),
        ("predict", bert, texts, "--out", tmp_path / "found.jsonl"),
    ):
        said(*words, *on)
    assert bedstone.pipeline("text-classification", bert, load_in_8bit=True)("go") == (
        bedstone.pipeline("text-classification", bert, precision="int8")("go")
    )
    clip = clip_model().save(tmp_path / "clip")
    images = tmp_path / "images"
    images.mkdir()
    for number, picture in enumerate(pictures(3)):
        Image.fromarray(picture).save(images / f"{number}.png")
    said("index", images, "--out", tmp_path / "index", "--model", clip, *on)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bits", "5"], "--bits: 5 was given; expected 8 or 4"),
        (["--bits", "4", "--group", "48"], "--group: 48 was given"),
        (["--group", "64"], "Leave it out, or take --bits 4"),
        (["--texts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_it_refuses(words, message, gpt, tmp_path, capsys):
    out = tmp_path / "small"
    assert main(["quantize", str(gpt), str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_it_refuses_what_is_there_and_what_is_quantised(gpt, tmp_path, capsys):
    out = tmp_path / "small"
    assert main(["quantize", str(gpt), str(out)]) == 0
    assert main(["quantize", str(gpt), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["quantize", str(out), str(tmp_path / "again")]) == 2
    assert "in few bits already" in capsys.readouterr().err


def test_too_few_texts_and_broken_weights(gpt, tmp_path, capsys):
    few = tmp_path / "few.txt"
    few.write_text("a few words")
    assert main(["quantize", str(gpt), str(tmp_path / "a"), "--texts", str(few)]) == 2
    assert "expected three or more" in capsys.readouterr().err
    opened = bedstone.load(gpt)
    randomise(opened.network)
    with torch.no_grad():
        opened.network.stack[0]["mlp"].sublayer.up.weight[0, 0] = 1e5
    opened.save(gpt)
    assert main(["quantize", str(gpt), str(tmp_path / "a"), "--bits", "4"]) == 2
    assert "stack.0.mlp.sublayer.up.weight: holds 1e+05" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main(["quantize", str(gpt), str(tmp_path / "a")]) == 0


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A folder of a model that says numbers in words, and rows of such pairs."""
    folder = tmp_path_factory.mktemp("numbers")
    rows = [{"source": str(number), "target": in_words(number)} for number in range(100, 160)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = [{"source": str(number), "target": in_words(number)} for number in HELD_OUT]
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, held)))
    return trained_model().save(folder / "model"), folder / "pairs.jsonl", folder / "held.jsonl"


def bleu(capsys, folder, rows, *words) -> float:
    assert (
        main(["evaluate", str(folder), str(rows), "--task", "translation", "--json", *words]) == 0
    )
    return json.loads(capsys.readouterr().out)["translation"]["bleu"]


@pytest.mark.parametrize("bits", [8, 4])
def test_an_encoder_decoder(bits, numbers, tmp_path, capsys):
    model, pairs, held = numbers
    out = tmp_path / "small"
    words = ["quantize", str(model), str(out), "--bits", str(bits), "--texts", str(pairs), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    # 2 blocks of 6 layers that read words, 2 of 6 and 4 more
    assert facts["calibrated"] == (32 if bits == 4 else 0)
    assert facts["texts"] == str(pairs) and facts["bytes"] < 0.5 * facts["bytes_before"]
    assert facts["agreement"] > 0.9 and facts["cosine"] > 0.95
    assert 0.9 < facts["perplexity"] / facts["before"] < 1.2 and facts["before"] < 1.5
    assert kinds(out) == ({8} if bits == 8 else {4, 8})
    exact = bleu(capsys, model, held, "--precision", "fp32")
    assert exact > 0.9
    assert bleu(capsys, out, held) >= exact - (0.005 if bits == 8 else 0.05)
    loaded = bedstone.load(out, dtype=torch.float32)
    found = bedstone.pipeline("translation", loaded)("412")
    assert found == bedstone.pipeline("translation", str(model))("412")


def test_precision_int8_leaves_the_figures_as_they_are(numbers, capsys):
    model, _, held = numbers
    exact = bleu(capsys, model, held, "--precision", "fp32")
    assert bleu(capsys, model, held, "--precision", "int8") == pytest.approx(exact, abs=0.005)


def test_pairs_that_calibrate_nothing(numbers, tmp_path, capsys):
    model, *_ = numbers
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"source": "1", "target": "one"}))
    words = ["quantize", str(model), str(tmp_path / "small"), "--texts"]
    assert main([*words, str(few)]) == 2
    assert "has 1 pairs of texts; expected three or more" in capsys.readouterr().err
    few.write_text(json.dumps({"text": "1"}))
    assert main([*words, str(few)]) == 2
    assert "no column for the target" in capsys.readouterr().err
