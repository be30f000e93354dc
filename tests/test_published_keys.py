"""Allowlists of published keys: every key that the installed libraries write is in a list."""

import json
import logging

import pytest

from bedstone.checkpoints import peft
from bedstone.checkpoints import sentence_transformers as embeddings
from bedstone.data.images.processor import CLASSES as PROCESSORS
from bedstone.data.images.processor import KEYS as PROCESSOR_KEYS
from bedstone.data.text.tokenizer_settings import CONFIG_KEYS, MAP_KEYS
from bedstone.diffusion.schedulers import KEYS as SCHEDULER_KEYS
from bedstone.errors import BedstoneError
from bedstone.generation.constraints import KEYS as GENERATION_KEYS
from bedstone.models.families import FAMILIES
from bedstone.models.published import layout
from bedstone.published_keys import Keys, keys

SMALL = Keys(
    honoured=keys("size rope"),
    harmless=keys("version"),
    plain={"scale": (1.0, 2.0), "cross": ()},
    reported=keys("code"),
    sections={"inner": Keys(honoured=keys("width"), plain={"pad": (False,)})},
    remedy="Take another model.",
)


def test_honoured_and_harmless_keys_pass_without_a_word(caplog):
    values = {"size": 3, "version": "x", "scale": 2, "cross": None, "code": None, "odd": None}
    with caplog.at_level(logging.WARNING, logger="bedstone.published"):
        SMALL.check({**values, "inner": {"width": 4, "pad": False}}, "a.json")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scale": 3}, r"a.json: scale = 3 is not supported; expected 1.0 or 2.0. Take another"),
        ({"scale": True}, "scale = True"),
        ({"cross": 0}, "cross = 0 is not supported; expected no value"),
        ({"inner": {"pad": True}}, r"a.json: inner.pad = True"),
        ({"scale": [1] * 999}, r"scale = \[1.{78}… is not"),
    ],
)
def test_what_isnt_built_is_refused_by_file_key_and_value(values, words):
    with pytest.raises(BedstoneError, match=words):
        SMALL.check(values, "a.json")


def test_unknown_keys_are_reported_once_for_each_file(caplog, tmp_path):
    values = {"odd": 3, "code": "x.py", "inner": {"strange": 1}, "empty": {}}
    with caplog.at_level(logging.WARNING, logger="bedstone.published"):
        for name in ("one.json", "one.json", "two.json"):
            SMALL.check(values, tmp_path / name)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 6
    assert said[0].startswith(f"{tmp_path / 'one.json'}: odd = 3 isn't known")
    assert "code = 'x.py' has no effect" in said[1] and "inner.strange = 1" in said[2]
    assert list(SMALL.unknown(values)) == ["odd", "inner.strange", "empty"]


def test_a_warning_reaches_standard_error_without_any_setting(capsys, tmp_path):
    logger = logging.getLogger("bedstone.published")
    record = logger.makeRecord(logger.name, logging.WARNING, "", 0, "odd = 3", (), None)
    logging.lastResort.handle(record)
    assert "odd = 3" in capsys.readouterr().err


def test_one_list_takes_a_key_from_the_others():
    both = SMALL | Keys(honoured=keys("scale version"), plain={"size": (1,)})
    assert both.honoured == keys("scale version rope") and not both.harmless
    assert set(both.plain) == {"size", "cross"}
    assert both.counts() == {"honoured": 5, "harmless": 0, "refused or reported": 4}


# Default configurations of every class that Bedstone opens.

CONFIGS = {
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "vit": "ViT",
    "clip": "CLIP",
    "siglip": "Siglip",
    "blip": "Blip",
    "marian": "Marian",
    "bart": "Bart",
    "t5": "T5",
    "mt5": "MT5",
}
DENOISERS = {
    "dit": "DiTTransformer2DModel",
    "pixart": "PixArtTransformer2DModel",
    "autoencoder_kl": "AutoencoderKL",
    "vq_model": "VQModel",
    "prior_transformer": "PriorTransformer",
}
OURS = {"clip_resnet", "blip_resnet", "flamingo", "sighted_gpt", "bedstone_dit", "fsq_autoencoder"}
OURS |= {"dalle", "autoregressive_prior"}
OURS |= {"discrete_vae"}  # of a library without configuration files


def default(model_type):
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"{CONFIGS[model_type]}Config")()
    return json.loads(json.dumps(made.to_dict()))


def test_every_layout_of_a_library_is_walked():
    assert {*CONFIGS, *DENOISERS} | OURS == set(FAMILIES)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_key_of_a_default_configuration_is_in_a_list(model_type):
    how, values = layout(model_type), default(model_type)
    assert list(how.keys.unknown(values)) == []
    how.keys.check(values, "its defaults")


@pytest.mark.parametrize("model_type", CONFIGS)
def test_what_a_file_leaves_out_is_the_librarys_default(model_type):
    """A config.json with the model's type alone, as with all keys."""
    how, values = layout(model_type), default(model_type)
    sections = {key: {} for key, value in values.items() if key.endswith("_config") and value}
    whole = how.read(values, set())
    assert how.read({"model_type": model_type, **sections}, set()) == whole
    for key in values.keys() - {"architectures", "model_type"}:
        assert how.read({k: v for k, v in values.items() if k != key}, set()) == whole, key


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3", "llama"])
def test_missing_keys_mean_what_they_mean_in_transformers(model_type):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 256, "num_attention_heads": 32, "num_hidden_layers": 3}
    kind = getattr(transformers, f"{CONFIGS[model_type]}Config")
    theirs = kind.from_dict({**sizes, "use_sliding_window": True, "max_window_layers": 1})
    ours = layout(model_type).read(
        {**sizes, "use_sliding_window": True, "max_window_layers": 1}, set()
    )
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.context == theirs.max_position_embeddings
    assert ours.head_width == (getattr(theirs, "head_dim", None) or 256 // 32)
    if model_type != "llama":
        assert ours.window == theirs.sliding_window == 4096


@pytest.mark.parametrize("model_type", DENOISERS)
def test_every_key_of_a_default_denoiser_is_in_a_list(model_type):
    diffusers = pytest.importorskip("diffusers")
    import inspect

    kind = getattr(diffusers, DENOISERS[model_type])
    signature = inspect.signature(kind.__init__).parameters
    values = {name: each.default for name, each in signature.items() if name != "self"}
    values |= {"_class_name": DENOISERS[model_type], "_diffusers_version": "0"}
    how = layout(model_type)
    assert list(how.keys.unknown(values)) == []
    how.keys.check(values, "its defaults")
    few = {"_class_name": DENOISERS[model_type]}
    assert how.read(few, set()) == how.read(values, set())


def test_every_key_of_an_older_denoiser_is_in_a_list():
    diffusers = pytest.importorskip("diffusers")
    import inspect

    names = set(inspect.signature(diffusers.Transformer2DModel.__init__).parameters) - {"self"}
    for model_type in ("dit", "pixart"):
        assert names <= layout(model_type).keys.names


@pytest.mark.parametrize("name", PROCESSORS.values())
@pytest.mark.parametrize("ending", ["", "Pil"])
def test_every_key_of_a_default_processor_is_in_a_list(name, ending):
    transformers = pytest.importorskip("transformers")
    values = getattr(transformers, name + ending)().to_dict()
    assert list(PROCESSOR_KEYS.unknown(values)) == []
    PROCESSOR_KEYS.check(values, "its defaults")


def test_every_key_of_a_lora_configuration_is_in_a_list():
    lora = pytest.importorskip("peft").LoraConfig(task_type="CAUSAL_LM")
    known = {*peft.READ, *peft.PLAIN, *peft.DEFAULTS}
    assert set(lora.to_dict()) <= known
    peft.check_plain({**lora.to_dict(), "peft_type": "LORA"}, "its defaults")


def test_every_key_that_sentence_transformers_writes_is_in_a_list(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.BertConfig(vocab_size=6, intermediate_size=8, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    from sentence_transformers.base.modules.normalize import Normalize
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    parts = [Transformer(str(tmp_path)), Pooling(8), Normalize()]
    made = library.SentenceTransformer(modules=parts, truncate_dim=4, device="cpu")
    made.save(str(tmp_path / "saved"))
    files = {
        "config_sentence_transformers.json": embeddings.SETTINGS_KEYS,
        "sentence_bert_config.json": embeddings.NETWORK_KEYS,
        "1_Pooling/config.json": embeddings.POOLING_KEYS,
        "2_Normalize/config.json": embeddings.NORMALISE_KEYS,
    }
    for name, known in files.items():
        values = json.loads((tmp_path / "saved" / name).read_text())
        assert list(known.unknown(values)) == [], name
        known.check(values, name)
    for module in json.loads((tmp_path / "saved" / "modules.json").read_text()):
        assert list(embeddings.MODULE_KEYS.unknown(module)) == []
    found = embeddings.read_pooling(tmp_path / "saved")
    assert found is not None and found[0].width == 4 and found[0].normalise


def table() -> dict[str, dict[str, int]]:
    """The number of keys in each list, by the kind of file."""
    kinds = {f"config.json ({name})": layout(name).keys for name in FAMILIES if name not in OURS}
    kinds |= {"tokenizer_config.json": CONFIG_KEYS, "special_tokens_map.json": MAP_KEYS}
    kinds |= {"generation_config.json": GENERATION_KEYS, "preprocessor_config.json": PROCESSOR_KEYS}
    kinds |= {f"scheduler_config.json ({name})": each for name, each in SCHEDULER_KEYS.items()}
    kinds |= {
        "config_sentence_transformers.json": embeddings.SETTINGS_KEYS,
        "sentence_bert_config.json": embeddings.NETWORK_KEYS,
        "modules.json": embeddings.MODULE_KEYS,
        "1_Pooling/config.json": embeddings.POOLING_KEYS,
    }
    counted = {name: each.counts() for name, each in kinds.items()}
    harmless = set(peft.DEFAULTS) - set(peft.PLAIN) - peft.READ
    counted["adapter_config.json"] = {
        "honoured": len(peft.READ),
        "harmless": len(harmless),
        "refused or reported": len(peft.PLAIN),
    }
    return counted


def test_every_kind_of_file_has_lists():
    for name, counts in table().items():
        assert counts["honoured"], name


if __name__ == "__main__":
    for kind, lists in table().items():
        print(f"{kind:56}", *(f"{count:4}" for count in lists.values()))
