"""Sentence-embedding folders: the files with which sentence-transformers says how to pool.

`modules.json` lists a network, a pooling and perhaps a normalisation; each has a folder with its
`config.json`, but the network may lie beside `modules.json` itself. Read as every version since 0.3
wrote them, written as version 6.2 does.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import inside, write_json
from bedstone.nn.layers import MODES, Pooling
from bedstone.published_keys import Keys, keys
from bedstone.reading import is_plain, read_json, read_object, shown

MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
_NETWORKS = ("Transformer", "BERT", "RoBERTa", "DistilBERT")  # the last three before version 0.3
_SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_VERSION = "6.2.0"  # whose form is written
SETTINGS_KEYS = Keys(
    honoured=keys("default_prompt_name model_type prompts similarity_fn_name truncate_dim"),
    harmless=keys("__version__ requirements"),
    remedy="Open a model of the kind SentenceTransformer.",
)
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
NETWORK_KEYS = Keys(
    honoured=keys("max_seq_length do_lower_case"),
    # how the parts of an input are found, and padding, which nothing here has
    harmless=keys("unpad_inputs cache_dir cache_folder tokenizer_name_or_path backend"),
    plain={
        "transformer_task": ("feature-extraction",),
        "module_output_name": ("token_embeddings",),
        "query_length": (),
        "document_length": (),
        "query_expansion": (),
    },
    reported=keys(
        """config_args config_kwargs model_args model_kwargs processing_kwargs processor_kwargs
        tokenizer_args tokenizer_kwargs"""
    ),
    sections={"modality_config": Keys(plain={"text": (_TEXT,)})},
    remedy="Open it with sentence-transformers.",
)
POOLING_KEYS = Keys(
    honoured=keys("pooling_mode include_prompt") | frozenset(_SWITCHES.values()),
    harmless=keys("embedding_dimension word_embedding_dimension"),
)
MODULE_KEYS = Keys(honoured=keys("path type"), harmless=keys("idx name"), reported=keys("kwargs"))
NORMALISE_KEYS = Keys(
    plain={
        "module_input_name": ("sentence_embedding",),
        "module_output_name": ("sentence_embedding",),
    }
)


def network_folder(folder: Path) -> Path:
    """Where the network's own files lie: the folder itself, or one that its modules.json names.

    Raises:
        BedstoneError: modules.json can't be read.
    """
    if is_plain(folder / "config.json") or not is_plain(folder / MODULES):
        return folder
    return _inside(folder, _parts(folder)["network"])


def read_pooling(folder: Path) -> tuple[Pooling, bool] | None:
    """How the folder's model pools, and whether texts are to be put in lower case first.

    None where the folder has no modules.json.

    Raises:
        BedstoneError: a file is damaged, or a module is one that Bedstone doesn't have.
    """
    if not is_plain(folder / MODULES):
        return None
    parts = _parts(folder)
    inner = _inside(folder, parts["network"])
    settings = _optional(folder / _SETTINGS)
    SETTINGS_KEYS.check(settings, folder / _SETTINGS)
    kind = settings.get("model_type")
    if kind not in (None, "SentenceTransformer"):
        raise BedstoneError(
            f"{folder / _SETTINGS}: model_type = {kind!r}; expected 'SentenceTransformer', which "
            "gives one vector of a text. Open it with sentence-transformers."
        )
    network = _network_settings(inner)
    limit = network.get("max_seq_length")
    if limit is None:
        limit = _optional(inner / "tokenizer_config.json").get("model_max_length")
    pooling: dict[str, Any] = {}
    if "pooling" in parts:
        pooling = _read_pooling(_inside(folder, parts["pooling"]) / "config.json")
    if "normalise" in parts:
        path = _inside(folder, parts["normalise"]) / "config.json"
        NORMALISE_KEYS.check(_optional(path), path)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(one, str) for one in prompts.values()):
        raise BedstoneError(
            f"{folder / _SETTINGS}: prompts = {prompts!r}; expected a mapping of names to texts."
        )
    if not isinstance(limit, int | float | None):
        raise BedstoneError(f"{inner}: the longest text is {limit!r}; expected a number of tokens.")
    return Pooling(
        **pooling,
        normalise="normalise" in parts,
        max_tokens=int(limit) if limit is not None and limit < 1e9 else None,
        prompts={name: text for name, text in prompts.items() if text},
        default_prompt=settings.get("default_prompt_name"),
        width=settings.get("truncate_dim"),
        similarity=settings.get("similarity_fn_name") or "cosine",
    ), bool(network.get("do_lower_case"))


def write_pooling(folder: Path, pooling: Pooling, width: int) -> None:
    """Writes all but the network, its tokenizer and their `model_max_length`, into a folder.

    Args:
        width: of the network's states, D.
    """
    modules = [("", "sentence_transformers.base.modules.transformer.Transformer")]
    home = "sentence_transformers.sentence_transformer.modules"
    modules.append(("1_Pooling", f"{home}.pooling.Pooling"))
    if pooling.normalise:
        modules.append(("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"))
    write_json(
        folder / MODULES,
        [
            {"idx": number, "name": str(number), "path": path, "type": kind}
            for number, (path, kind) in enumerate(modules)
        ],
    )
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": _TEXT},
            "module_output_name": "token_embeddings",
        },
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "embedding_dimension": width,
            "pooling_mode": pooling.modes[0] if len(pooling.modes) == 1 else list(pooling.modes),
            "include_prompt": pooling.include_prompt,
        },
    )
    if pooling.normalise:
        (folder / "2_Normalize").mkdir(exist_ok=True)
        name = "sentence_embedding"
        write_json(
            folder / "2_Normalize" / "config.json",
            {"module_input_name": name, "module_output_name": name},
        )
    write_json(
        folder / _SETTINGS,
        {
            "__version__": {"pytorch": torch.__version__, "sentence_transformers": _VERSION},
            "default_prompt_name": pooling.default_prompt,
            "model_type": "SentenceTransformer",
            "prompts": {"document": "", "query": "", **pooling.prompts},
            "similarity_fn_name": pooling.similarity,
            **({} if pooling.width is None else {"truncate_dim": pooling.width}),
        },
    )


def lower_case(tokenizer: Tokenizer) -> None:
    """Makes a tokenizer put texts in lower case first, unless it does so anyway."""
    backend = tokenizer.backend
    if backend.normalizer is None:
        backend.normalizer = normalizers.Lowercase()
    elif backend.normalizer.normalize_str("A") != "a":
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])


def _parts(folder: Path) -> dict[str, str]:
    """What each module is (network, pooling, normalise) and the folder it names."""
    listed = read_json(folder / MODULES)
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise BedstoneError(f"{folder / MODULES}: is not a list of modules; fetch it again.")
    parts: dict[str, str] = {}
    for module in listed:
        MODULE_KEYS.check(module, folder / MODULES)
        kind = str(module.get("type", "")).rpartition(".")[2]
        known = {"Pooling": "pooling", "Normalize": "normalise"}
        part = "network" if kind in _NETWORKS else known.get(kind)
        if part is None or part in parts:
            raise BedstoneError(
                f"{folder / MODULES}: module {module.get('type')!r} is not one that Bedstone runs "
                "there; expected one Transformer, one Pooling and at most one Normalize."
            )
        parts[part] = str(module.get("path") or "")
    if "network" not in parts:
        raise BedstoneError(f"{folder / MODULES}: names no Transformer; expected one, first.")
    return parts


def _inside(folder: Path, named: str) -> Path:
    """A module's folder, which must not lie outside the model's."""
    plain = named.removeprefix("./").rstrip("/")
    if plain in ("", "."):
        return folder
    try:
        return inside(folder, plain, linked_to=[folder.resolve()])
    except BedstoneError as error:
        raise BedstoneError(
            f"{folder / MODULES}: path {shown(named)} is no name of a folder inside this one. "
            "Don't trust this model."
        ) from error


def _network_settings(inner: Path) -> dict[str, Any]:
    for name in ("bert", "roberta", "distilbert"):
        path = inner / f"sentence_{name}_config.json"
        if found := _optional(path):
            NETWORK_KEYS.check(found, path)
            return found
    return {}


def _read_pooling(path: Path) -> dict[str, Any]:
    config = _optional(path)
    POOLING_KEYS.check(config, path)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode in MODES if config.get(_SWITCHES[mode])] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise BedstoneError(
            f"{path}: pooling_mode = {modes!r}; expected a mode, or a list of some."
        )
    return {
        "modes": tuple(modes),
        "include_prompt": config.get("include_prompt", True),
    }


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if is_plain(path) else {}
