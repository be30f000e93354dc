"""A published config.json as a configuration, checked against the weights at hand first.

Sizes are believed only as far as the weights bear them out: a count of layers is compared with the
count of tensors, a width with the largest dimension among them. So nothing is built, and no memory
taken, for what a file merely says. Errors name the file, its own key and the value.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.models.published import Layout
from bedstone.reading import check_kinds, numbers, shown
from bedstone.runtime import without_weights

Shapes = Mapping[str, tuple[int, ...]]

# Keys of any config.json whose values are used as they are, by kind. Others are checked where a
# dataclass is made of them.
KINDS = {
    "architectures": "a list of texts",
    "model_type": "text",
    "_class_name": "text",
    "problem_type": "text",
    "id2label": "an object",
    "num_labels": "a whole number",
    "layer_types": "a list of texts",
    "sliding_window": "a whole number",
    "max_window_layers": "a whole number",
    "use_sliding_window": "true or false",
    "tie_word_embeddings": "true or false",
    "rope_parameters": "an object",
    "rope_scaling": "an object",
    "rope_theta": "a number",
    "original_max_position_embeddings": "a whole number",
    "num_key_value_heads": "a whole number",
    "head_dim": "a whole number",
    "pad_token_id": "a whole number",
    "bos_token_id": "a whole number or a list of them",
    "eos_token_id": "a whole number or a list of them",
    "sep_token_id": "a whole number",
    "text_config": "an object",
    "vision_config": "an object",
    "text_config_dict": "an object",
    "vision_config_dict": "an object",
    "projection_size": "a whole number",
    "projection_dim": "a whole number",
    "decoder_layers": "a whole number",
    "num_decoder_layers": "a whole number",
    "encoder_layers": "a whole number",
    "decoder_start_token_id": "a whole number",
    "decoder_vocab_size": "a whole number",
    "share_encoder_decoder_embeddings": "true or false",
    "scale_decoder_outputs": "true or false",
    "prefix": "text",
    "image_text_hidden_size": "a whole number",
    "down_block_types": "a list of texts",
    "up_block_types": "a list of texts",
    "block_out_channels": "a list of whole numbers",
    "activation_fn": "text",
    "norm_type": "text",
    "sample_size": "a whole number or a list of them",
    "interpolation_scale": "a number",
    "use_additional_conditions": "true or false",
}
SECTIONS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
# Keys that count modules, each of which has tensors.
COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "layers",
    "layers_per_block",
    "num_resnet_blocks",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "block_count",
)
MOST = 2**31 - 1  # of any whole number in a config.json
LEAST_WIDE = 2**16  # a size up to here is never too large: weights on paper take no memory
SIDE = 2**14  # pixels of a side, and
PLACES = 2**27  # numbers in a table of positions that no file holds
# Fields of our configurations that no weight has as a dimension, and that take no memory.
_FREE_IDS = ("bos_id", "eos_id", "pad_id", "start_id")
FREE = ("context", "window", "window_layers", "shift", "distance", *_FREE_IDS)
PIXELS = ("size", "image_size")


def read_config(kind: Layout, published: dict[str, Any], shapes: Shapes, path: Path) -> Any:
    """Our configuration of a published one that fits the weights.

    Args:
        shapes: of the stored tensors, by name.
        path: of the config.json, for errors.

    Raises:
        BedstoneError: a value is of another kind, out of bounds, or more than the weights hold.
    """
    largest = max((max(shape, default=1) for shape in shapes.values()), default=1)
    _check_values(published, len(shapes), path)
    try:
        config = kind.read(published, set(shapes), path)
    except BedstoneError as error:
        raise BedstoneError(_named(kind, published, str(error), path)) from None
    except (
        ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        fault = f"a value is of another kind than expected ({type(error).__name__}: {error})"
        raise BedstoneError(_named(kind, published, fault, path)) from error
    # Whole tensors of positions or frequencies are made even where weights are not.
    if fault := _oversized(config, largest):
        raise BedstoneError(_named(kind, published, fault, path))
    return config


def build(kind: Layout, config: Any, path: Path) -> Any:
    """The network of a configuration, without memory for its weights.

    Raises:
        BedstoneError: it can't be built.
    """
    try:
        with without_weights():
            return kind.build(config)
    except BedstoneError as error:
        raise BedstoneError(f"{path}: {error}") from None
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = next(iter(str(error).splitlines()), "")[:200]
        raise BedstoneError(
            f"{path}: what it describes can't be built ({type(error).__name__}: {why}). Take "
            "weights and config.json from the same model."
        ) from error


def _check_values(published: dict[str, Any], tensors: int, path: Path) -> None:
    """Raises BedstoneError for values of other kinds and counts that the weights belie."""
    sections = {"": published}
    check_kinds(published, KINDS, path)
    sections |= {f"{name}.": published[name] for name in SECTIONS if published.get(name)}
    for prefix, section in sections.items():
        if prefix:
            check_kinds(section, KINDS, f"{path}: {prefix[:-1]}")
        for key in COUNTS:
            count = section.get(key)
            total = sum(n for _, n in numbers(count)) if isinstance(count, list) else count
            if isinstance(total, int | float) and total > tensors:
                raise BedstoneError(
                    f"{path}: {prefix}{key} = {shown(count)}, but the weights hold {tensors:,} "
                    "tensors in all. Take weights and config.json from the same model."
                )
        if (base := section.get("rope_theta")) is not None and base <= 1:
            raise BedstoneError(
                f"{path}: {prefix}rope_theta = {shown(base)}; expected a number above 1."
            )
    for key, number in numbers(published):
        if isinstance(number, int) and abs(number) > MOST:
            raise BedstoneError(
                f"{path}: {key} = {shown(number)}; expected a number within {MOST:,}."
            )


def _oversized(config: Any, largest: int) -> str:
    """What is wrong with a size; "" where all are borne out by a largest dimension."""
    limit = max(largest, LEAST_WIDE)
    for name, value in _sizes(config):
        leaf = name.rpartition(".")[2]
        if leaf in FREE:
            continue
        sides = [value] if isinstance(value, int) else value
        if min(sides) < 0:
            return f"{name}: {shown(value)} was given; expected a whole number, 0 or more."
        most = SIDE if leaf in PIXELS else limit
        if any(side > most for side in sides):
            why = f"the weights' largest dimension is {largest:,}" if leaf not in PIXELS else ""
            why = why or f"expected at most {SIDE:,} pixels"
            return f"{name}: {shown(value)} was given; {why}."
        places = math.prod(sides) // _patch(config) * int(getattr(config, "width", 1))
        if leaf == "size" and places > PLACES:
            return f"{name}: {shown(value)} was given; its positions take {places * 4:,} bytes."
    return ""


def _patch(config: Any) -> int:
    patches = getattr(config, "patches", 1)
    return math.prod(patches) if isinstance(patches, tuple) else 1


def _sizes(config: Any, prefix: str = "") -> Iterator[tuple[str, int | tuple[int, ...]]]:
    """Whole numbers of a configuration, and tuples of them, with the names of their fields."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from _sizes(value, f"{prefix}{each.name}.")
        elif type(value) is int or (
            isinstance(value, tuple) and value and all(type(item) is int for item in value)
        ):
            yield prefix + each.name, value


# Which key of a file an error is about: one that leads to another answer when it is left out, and
# whose value the error shows.


def _named(kind: Layout, published: dict[str, Any], fault: str, path: Path) -> str:
    """An error about our configuration, in the words of the file that it was read from."""
    subject = fault.partition(";")[0]
    keys = [key for key, value in _leaves(published) if _shows(subject, value)]
    keys = [key for key in keys if _answer(kind, _without(published, key)) != fault]
    if not keys and "another kind" in fault:
        every = [key for key, _ in _leaves(published)]
        keys = [key for key in every if _answer(kind, _without(published, key)) == ""]
    fault = fault.removeprefix(f"{path}: ").removeprefix("config.json: ")
    if not keys or any(key.rpartition(".")[2] in fault for key in keys):
        return f"{path}: {fault}"
    values = dict(_leaves(published))
    named = ", ".join(f"{key} = {shown(values[key])}" for key in keys[:3])
    fault = re.sub(r"^[\w.]+( = |: )(\S+( was given)?; )?", "", fault)  # the name of our field
    return f"{path}: {named}; {fault}"


def _shows(text: str, value: Any) -> bool:
    """Whether a text shows a value of a JSON file, as a word of its own."""
    forms = [value]
    if isinstance(value, list):
        forms.append(tuple(value))
    elif type(value) is int and abs(value) < 2**53:
        forms.append(float(value))
    shapes = [rf"(?<![\w.]){re.escape(repr(form))}(?![\w.])" for form in forms]
    return any(re.search(shape, text) for shape in shapes)


def _leaves(published: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in published.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from _leaves(value, f"{key}.")
        elif value is not None:
            yield prefix + key, value


def _without(published: dict[str, Any], key: str) -> dict[str, Any]:
    section, _, leaf = key.rpartition(".") if key.startswith(SECTIONS) else ("", "", key)
    if section:
        return {**published, section: _without(published[section], leaf)}
    return {name: value for name, value in published.items() if name != leaf}


def _answer(kind: Layout, published: dict[str, Any]) -> str:
    """What reading says: "" where it says nothing."""
    try:
        kind.read_config({**kind.defaults, **published})
    except Exception as error:
        return str(error)
    return ""
