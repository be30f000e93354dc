"""Models in GGUF files, to and from the files of llama.cpp.

A file is read through the same tables as a folder: a layout of `models/gpt/gguf.py` says which
metadata key and which tensor is which of ours. Weights in four bits are held as they stand in the
file by quantised layers; all others are made whole.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.gguf_blocks import HELD, codes, whole, write_gguf
from bedstone.checkpoints.gguf_file import GGUF, read_gguf
from bedstone.checkpoints.sizes import build, read_config
from bedstone.data.text.gguf_tokenizer import ENDS, read_gguf_tokenizer, write_gguf_tokenizer
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.models.gpt.gguf import LAYOUTS, ROPE_FACTORS, rope_divisors
from bedstone.models.published import load_published, to_published
from bedstone.nn.quantize import holds
from bedstone.reading import check_kinds, shown

KINDS = {"f32": "F32", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
_FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # `general.file_type`
_BLOCK = 32  # numbers of a row that are quantised together
# Sampling settings of newer files, by their names in generation_config.json.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclasses.dataclass
class Opened:
    """What a GGUF file holds.

    Attributes:
        network: on the CPU.
        tokenizer: None where the file has none.
        generation: end tokens and sampling settings, as generation_config.json has them.
        record: what the file says of the model: name, licence.
    """

    network: Any
    tokenizer: Tokenizer | None
    generation: dict[str, Any]
    record: dict[str, Any]


def open_gguf(path: Path, *, dtype: torch.dtype | None = None) -> Opened:
    """Reads a model from a GGUF file.

    Args:
        dtype: what to hold the weights in; None keeps what is stored: four bits stay four bits
            where our layers can hold them, other quantised weights become fp32.

    Raises:
        BedstoneError: the file is damaged, of an architecture that isn't built, or one part of a
            set.
    """
    file = read_gguf(path)
    architecture = file.values.get("general.architecture")
    if architecture not in LAYOUTS:
        raise BedstoneError(
            f"{path}: general.architecture = {shown(architecture)}"
            f"{nearest(str(architecture), LAYOUTS)}."
        )
    layout = LAYOUTS[architecture]
    ggml = file.section("tokenizer.ggml")
    template = file.values.get("tokenizer.chat_template")
    check_kinds({"tokenizer.chat_template": template}, {"tokenizer.chat_template": "text"}, path)
    values = _of_network(file, architecture, ggml)
    shapes = {name: each.shape for name, each in file.tensors.items()}
    config = read_config(layout, values, shapes, path)
    tokenizer = read_gguf_tokenizer(ggml, template, path, architecture=architecture)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise BedstoneError(
            f"{path}: its vocabulary has {tokenizer.vocab_size:,} tokens, its weights "
            f"{config.vocab_size:,}. Fetch the file again."
        )
    network = build(layout, config, path)
    tensors: dict[str, Any] = {}
    for name in layout.names(config):
        stored = file.tensors.get(name.theirs)
        held = stored is not None and dtype is None and stored.kind in HELD
        if held and all(holds(network, ours) for ours in name.ours):
            assert stored is not None
            tensors[name.theirs] = codes(stored)
        elif stored is not None:
            tensors[name.theirs] = whole(stored, dtype)
    used = [*tensors, *layout.ignored]
    tensors |= {name: whole(each) for name, each in file.tensors.items() if name not in used}
    load_published(layout, network, tensors, where=str(path))
    return Opened(network, tokenizer, _generation(file, ggml), _record(file))


def _of_network(file: GGUF, architecture: str, ggml: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the network, without the architecture before its keys."""
    values = file.section(architecture)
    lists = [key for key, value in values.items() if not isinstance(value, str | int | float)]
    if lists:
        raise BedstoneError(
            f"{file.path}: {architecture}.{lists[0]} is a list: its layers differ from one "
            "another, which isn't built."
        )
    if "vocab_size" not in values:
        values["vocab_size"] = len(ggml.get("tokens") or ())
        if (embedding := file.tensors.get("token_embd.weight")) is not None:
            values["vocab_size"] = embedding.shape[0]
    if (factors := file.tensors.get(ROPE_FACTORS)) is not None:
        if len(factors.shape) != 1 or factors.shape[0] > 1 << 12:
            raise BedstoneError(f"{file.path}: {ROPE_FACTORS} has shape {factors.shape}.")
        values[ROPE_FACTORS] = whole(factors, torch.float32).tolist()
    return values


def _generation(file: GGUF, ggml: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ends = [ggml[key] for key in ("eos_token_id", *ENDS) if isinstance(ggml.get(key), int)]
    if ends := list(dict.fromkeys(ends)):
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    for key, value in file.section("general.sampling").items():
        if (name := _SAMPLING.get(key)) is not None and isinstance(value, int | float):
            found[name] = value
    return found


def _record(file: GGUF) -> dict[str, Any]:
    general = file.section("general")
    found = {key: general[key] for key in ("name", "license") if isinstance(general.get(key), str)}
    return {"gguf": found} if found else {}


def check_kind(quantize: str) -> None:
    """Raises BedstoneError for a kind of storing that isn't written; "" is as the model is."""
    if quantize and quantize not in KINDS:
        raise BedstoneError(f"quantize: {quantize!r} was given{nearest(quantize, KINDS)}.")


def save_gguf(model: Any, path: Path, quantize: str = "") -> Path:
    """Writes a GPT to a GGUF file, whole or not at all.

    Args:
        model: a `checkpoints.model.Model`.
        quantize: one of `KINDS`, for weights that are matrices; "" keeps fp32, fp16 and bf16.

    Raises:
        BedstoneError: the model is none that a GGUF file can hold, or the disk refuses.
    """
    config, network = model.config, model.network
    if getattr(config, "layout", None) not in (*LAYOUTS, "mistral"):
        raise BedstoneError(
            f"{model.path}: is a {config.layout}; GGUF files hold {', '.join(LAYOUTS)} and mistral."
        )
    if config.head.kind != "language":
        raise BedstoneError(
            f"{model.path}: has a {config.head.kind} head; GGUF files of GPTs hold the language "
            "head alone."
        )
    check_kind(quantize)
    architecture = "llama" if config.layout == "mistral" else config.layout
    layout = LAYOUTS[architecture]
    shape = layout.write_config(config)
    tensors = to_published(layout, network)
    if (divisors := rope_divisors(config)) is not None:
        tensors[ROPE_FACTORS] = divisors
    kinds = {name: _kind(name, tensor, quantize) for name, tensor in tensors.items()}
    main = max(set(kinds.values()), key=list(kinds.values()).count) if not quantize else (
        KINDS[quantize]
    )  # fmt: skip
    values: dict[str, Any] = {
        "general.type": "model",
        "general.name": model.record.get("gguf", {}).get("name") or _name_of(model),
        "general.file_type": _FILE_TYPES.get(main, 0),
        "general.quantization_version": 2,
    }
    if licence := model.record.get("gguf", {}).get("license"):
        values["general.license"] = licence
    values |= {f"{architecture}.{key}": value for key, value in shape.items()}
    if model.tokenizer is not None:
        values |= write_gguf_tokenizer(model.tokenizer, config.vocab_size)
        _add_ends(values, model.end_ids, model.tokenizer)
    for key, name in _SAMPLING.items():
        if isinstance(value := model.generation.get(name), int | float):
            whole = name == "top_k"
            values[f"general.sampling.{key}"] = int(value) if whole else float(value)
    write_gguf(path, architecture, values, tensors, kinds)
    return path


def _add_ends(values: dict[str, Any], ends: set[int], tokenizer: Tokenizer) -> None:
    """The tokens that end an answer, where they are others than the one that ends a text."""
    first = values.get("tokenizer.ggml.eos_token_id")
    if first not in ends and ends:
        first = values["tokenizer.ggml.eos_token_id"] = min(ends)
    others = sorted(ends - {first})
    for key, number in zip(ENDS, others, strict=False):
        values[f"tokenizer.ggml.{key}"] = number


def _name_of(model: Any) -> str:
    path = model.path
    return "model" if path is None else str(path.parent.name if path.name == "model" else path.name)


def _kind(name: str, tensor: torch.Tensor, quantize: str) -> str:
    """How a tensor is stored: vectors in fp32, matrices as asked for where blocks divide rows."""
    if tensor.dim() == 1 or name == "position_embd.weight":
        return "F32"
    wanted = KINDS[quantize] if quantize else ""
    if not wanted:
        plain = {torch.float16: "F16", torch.bfloat16: "BF16"}
        return plain.get(tensor.dtype, "F32")
    if wanted in ("F32", "BF16"):
        return wanted
    if tensor.shape[-1] % _BLOCK:
        return "BF16"
    # The words that are read and written lose more than what lies between.
    return "Q8_0" if name in ("token_embd.weight", "output.weight") else wanted
