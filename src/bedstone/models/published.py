"""Name tables between Bedstone's networks and the published layouts.

A layout says how a published `config.json` reads and writes, and which of its tensors are
which of ours. The tables hold for both directions, so what is read is what is written.
"""

import importlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bedstone.data.images.processor import ImageProcessor
from bedstone.errors import BedstoneError
from bedstone.models.families import WEIGHTS, home_of
from bedstone.models.heads import HeadConfig
from bedstone.models.interfaces import TextFormat
from bedstone.nn.lora import adapters
from bedstone.nn.quantize import Codes, held_state, hold, holds, shapes_of
from bedstone.nn.ties import ties, without_ties
from bedstone.published_keys import Keys, keys

T = TypeVar("T")


@dataclass(frozen=True)
class Name:
    """One published tensor and what it is made of here.

    Attributes:
        theirs: its published name.
        ours: our parameters; several are stacked along the output dimension.
        transposed: whether it is stored as (inputs, outputs).
        leading: dimensions of size 1 that it has before ours.
        paired: heads whose rows are stored so that those which rotate together are neighbours,
            where half a head lies between them here; 0 for rows as they are.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    leading: int = 0
    paired: int = 0

    def write(self, state: Mapping[str, Any]) -> Any:
        """The published tensor; of codes, as they stand: outputs by inputs."""
        parts = [state[name] for name in self.ours]
        if isinstance(parts[0], Codes) and all(map(parts[0].like, parts)):
            codes = parts[0] if len(parts) == 1 else Codes.join(parts)
            return codes[self._in_pairs(len(codes))] if self.paired else codes
        parts = [each.whole(torch.float32) if isinstance(each, Codes) else each for each in parts]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        whole = whole.view((1,) * self.leading + whole.shape)
        if self.paired:
            whole = whole[self._in_pairs(len(whole))]
        return whole.t().contiguous() if self.transposed else whole

    def _in_pairs(self, rows: int) -> Tensor:
        """Our rows in the order of the published ones."""
        return torch.arange(rows).view(self.paired, 2, -1).mT.flatten()

    def read(self, whole: Any) -> dict[str, Any]:
        """Our parameters, from the published tensor.

        Raises:
            BedstoneError: it doesn't divide into them.
        """
        if isinstance(whole, Tensor):
            whole = whole.t() if self.transposed and whole.dim() == 2 else whole
        if self.leading and isinstance(whole, Tensor):
            bare = whole.shape[: self.leading] == (1,) * self.leading
            whole = whole.reshape(whole.shape[self.leading :]) if bare else whole
        if self.paired and whole.dim() and len(whole) % (2 * self.paired) == 0:
            whole = whole[torch.arange(len(whole)).view(self.paired, -1, 2).mT.flatten()]
        if len(self.ours) == 1:
            return {self.ours[0]: whole.contiguous()}
        parts = whole.chunk(len(self.ours)) if whole.dim() else ()
        if len({part.shape for part in parts}) != 1 or len(parts) != len(self.ours):
            raise BedstoneError(
                f"{self.theirs} has shape {tuple(whole.shape)}; expected {len(self.ours)} equal "
                "parts. Take weights and config.json from the same model."
            )
        return {name: part.contiguous() for name, part in zip(self.ours, parts, strict=True)}


def write_ends(config: dict[str, Any], tokenizer: Any) -> None:
    """Sets the tokens that begin, end and pad a text in a published configuration."""
    for key in ("bos", "eos", "pad"):
        config[f"{key}_token_id"] = getattr(tokenizer, f"{key}_id")


@dataclass(frozen=True)
class Layout:
    """A published layout: its configuration, its network, its names.

    Attributes:
        model_type: as in the published `config.json`.
        architecture: our configuration to the published class that opens it; None where there
            is none.
        read_config: published configuration to ours.
        write_config: ours to the published one.
        build: an empty network of that configuration.
        names: its tensors.
        prefix: what published names start with; checkpoints of the bare body lack it.
        ignored: endings of published tensors that hold no weights (masks, caches).
        renamed: endings that older files have, and what they are called now.
        fit: what the names of the stored tensors change in the configuration.
        modules: its tensors by the names that the published network has for them in memory, which
            adapters use, where its files have others.
        write_ends: sets the tokenizer's special ids in the published configuration.
        usual: tensors of ours that published files may lack, and what they are then.
        same: (configuration, names of the stored tensors) -> other published names under which
            files hold a tensor, by the name that it has here: one of them serves where that is
            absent, and those beside it must be equal.
        library: whose published folders it is of: transformers, or diffusers.
        processor: how images become pixels for a fresh model; None where it reads none.
        fresh: (sizes as a recipe says them, seed) -> a network with fresh weights that learns from
            labelled images; None where it doesn't.
        text_format: (tokenizer, configuration) -> how an image-text model reads and writes text.
        keys: every key of its `config.json`: honoured, harmless or refused.
        defaults: what a file means by leaving a key out: the defaults of the library's own class.
        classes: classes with a head, in the order in which they are tried where a file names none.
    """

    model_type: str
    architecture: Callable[[Any], str | None]
    read_config: Callable[[dict[str, Any]], Any]
    write_config: Callable[[Any], dict[str, Any]]
    build: Callable[[Any], nn.Module]
    names: Callable[[Any], Iterable[Name]]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    fit: Callable[[Any, set[str]], Any] = lambda config, tensors: config
    modules: Callable[[Any], Iterable[Name]] | None = None
    write_ends: Callable[[dict[str, Any], Any], None] = write_ends
    usual: Callable[[Any], Mapping[str, Tensor]] = lambda config: {}
    same: Callable[[Any, set[str]], Mapping[str, Sequence[str]]] = lambda config, tensors: {}
    library: str = "transformers"
    processor: Callable[[Any], ImageProcessor] | None = None
    fresh: Callable[[Mapping[str, Any], int], Any] | None = None
    text_format: Callable[[Any, Any], TextFormat] | None = None
    keys: Keys = field(default_factory=Keys)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def read(
        self, published: dict[str, Any], tensors: set[str], where: str | Path = "config.json"
    ) -> Any:
        """Our configuration from a published one and the names of the stored tensors.

        Raises:
            BedstoneError: a key asks for something that isn't built, or a value doesn't fit.
        """
        self.keys.check(published, where)
        values = {**self.defaults, **published}
        if not published.get("architectures"):
            values["architectures"] = self._class_of(values, tensors)
        return self.fit(self.read_config(values), tensors)

    def _class_of(self, values: dict[str, Any], tensors: set[str]) -> list[str] | None:
        """The class whose tensors are all there, where the file names none."""
        stored = set(_current_names(self, dict.fromkeys(tensors)))
        for name in self.classes:
            config = self.read_config({**values, "architectures": [name]})
            usual = self.usual(config)
            lacking = (
                each
                for each in self.names(config)
                if each.theirs not in stored and each.theirs not in usual
            )
            missing = list(itertools.islice(lacking, 3))  # two may be copies of tied ones
            if len(missing) < 3 and (not missing or self._copied(config, missing)):
                return [name]
        return None

    def _copied(self, config: Any, names: Iterable[Name]) -> bool:
        """Whether these tensors are all copies of others, which a file need not hold."""
        with torch.device("meta"):
            copies = set(ties(self.build(config)))
        return all(copies & set(name.ours) for name in names)

    @property
    def weights(self) -> str:
        """The file of its weights."""
        return WEIGHTS[self.library]

    def module_names(self, config: Any) -> list[Name]:
        """Its tensors as the modules of the published network are named."""
        return list((self.modules or self.names)(config))


def layout(model_type: str) -> Layout:
    """The layout of a published `model_type`.

    Raises:
        BedstoneError: Bedstone has no such layout.
    """
    return importlib.import_module(home_of(model_type)).LAYOUTS[model_type]


def fresh_processor(config: Any) -> ImageProcessor:
    """How images become pixels for a fresh model of that configuration."""
    made = layout(config.layout).processor
    if made is None:
        raise ValueError(f"layout {config.layout} reads no images")
    return made(config)


def to_published(layout: Layout, network: nn.Module, *, held: bool = False) -> dict[str, Any]:
    """The network's weights under their published names; tied ones are written once.

    Args:
        held: whether quantised weights are given as the codes that they stand in, not made whole.

    Raises:
        BedstoneError: it has adapters, which have no names there.
    """
    if named := adapters(network):
        raise BedstoneError(
            f"the network has adapters ({', '.join(named)}), which a model's files have no place "
            "for. Save them with save_adapter, or fold one into the weights first (nn.lora.fold)."
        )
    state = held_state(network) if held else dict(network.state_dict())
    copies = ties(network)
    names = [name for name in layout.names(network.config) if not set(name.ours) & set(copies)]
    covered = {ours for name in names for ours in name.ours} | set(copies)
    if missing := sorted(set(state) - covered):
        raise ValueError(f"layout {layout.model_type} has no name for {', '.join(missing)}")
    return {name.theirs: name.write(state) for name in names}


def load_published(
    layout: Layout,
    network: Any,
    tensors: dict[str, Any],
    *,
    where: str,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Fills the network, which may be on the meta device, from published tensors.

    Quantised layers take the places of those whose weights are codes.

    Args:
        tensors: by their published names; codes stand outputs by inputs.
        where: the folder or file, for error messages.
        dtype: what to hold the weights in; None keeps what is stored.

    Returns:
        Published tensors that the layout has no use for.

    Raises:
        BedstoneError: tensors are missing or have the wrong shape; nothing was filled.
    """
    copies = ties(network)
    tensors = _one_name(layout, network.config, _current_names(layout, tensors), where)
    state: dict[str, Any] = {}
    absent: list[Name] = []
    usual, known = layout.usual(network.config), set()
    for name in layout.names(network.config):
        if set(name.ours) & set(copies):
            tensors.pop(name.theirs, None)  # a tied copy, stored all the same by some
            continue
        bare = name.theirs.removeprefix(layout.prefix)
        whole = None
        for stored in _places(layout, name.theirs):
            whole = tensors.pop(stored, None) if whole is None else whole
        whole = usual.get(name.theirs) if whole is None else whole
        known.add(_numberless(bare))
        if whole is not None:
            state.update(_read(name, whole, where))
        else:
            absent.append(name)
    # one parameter may have two names in files
    if missing := [name.theirs for name in absent if not set(name.ours) <= set(state)]:
        raise BedstoneError(
            f"{where}: {len(missing)} tensors that its config.json asks for are missing, "
            f"{missing[0]!r} first. The weights belong to another configuration, or the "
            "download is not whole: fetch the folder again."
        )
    _check_shapes(network, state, where)
    for left in sorted(tensors):
        if (bare := left.removeprefix(layout.prefix)) != _numberless(bare) in known:
            raise BedstoneError(
                f"{where}: the weights hold {left!r}, a layer more than config.json asks for. Take "
                "weights and config.json from the same model."
            )
    if dtype is not None:
        state = {name: _cast(each, dtype) for name, each in state.items()}
    state |= {copy: state[own] for copy, own in copies.items()}
    codes = {name: each for name, each in state.items() if isinstance(each, Codes)}
    for ours in codes:
        if not holds(network, ours):
            raise BedstoneError(
                f"{where}: {ours} is stored in few bits; expected that of weights of linear layers "
                "and tables alone. Fetch the folder again."
            )
    hold(network, codes)
    network.load_state_dict(state, assign=True)
    if copies:
        network.tie()
    return sorted(tensors)


def _cast(weight: Any, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Codes):
        return weight.whole(dtype)
    cast: Tensor = weight.to(dtype) if weight.is_floating_point() else weight
    return cast


def _current_names(layout: Layout, tensors: Mapping[str, T]) -> dict[str, T]:
    """Those that hold weights, by their names of today."""
    found: dict[str, T] = {}
    for name, tensor in tensors.items():
        for old, new in layout.renamed.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
                break
        if not name.endswith(layout.ignored or "\0"):
            found[name] = tensor
    return found


def _one_name(layout: Layout, config: Any, tensors: dict[str, Any], where: str) -> dict[str, Any]:
    """The tensors without those that files hold under other names too (`Layout.same`).

    Raises:
        BedstoneError: two that the configuration makes one differ.
    """
    found = dict(tensors)
    names = {place for name in tensors for place in _places(layout, name)}
    for own, others in layout.same(config, names).items():
        held = next((key for key in _places(layout, own) if key in tensors), None)
        for other in others:
            key = next((key for key in _places(layout, other) if key in tensors), None)
            if key is None:
                continue
            found.pop(key, None)
            if held is None:
                held, found[own] = key, tensors[key]
            elif not _equal(tensors[held], tensors[key]):
                raise BedstoneError(
                    f"{where}: {held!r} and {key!r} differ, and by its config.json both are one "
                    "table. Take weights and config.json from the same model."
                )
    return found


def _places(layout: Layout, name: str) -> tuple[str, str, str]:
    """Where a tensor may stand: with the body's name before it, or without."""
    bare = name.removeprefix(layout.prefix)
    return name, bare, layout.prefix + bare


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


COUNTERS = ("num_batches_tracked",)  # endings of stored tensors that count
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_weights(name: str, whole: Tensor, where: str) -> None:
    """Checks the dtype and the values of a stored tensor.

    Raises:
        BedstoneError: it holds no plain floating-point numbers, or some that aren't finite.
    """
    if whole.dtype not in FLOATS:
        if name.endswith(COUNTERS):
            return
        raise BedstoneError(
            f"{where}: {name} holds {str(whole.dtype).removeprefix('torch.')}; expected "
            "float32, float16 or bfloat16. Quantised by another library, it means nothing without "
            "its scales: take the weights in full precision."
        )
    if whole.numel() and not all(map(math.isfinite, map(float, whole.aminmax()))):
        raise BedstoneError(
            f"{where}: {name} holds numbers that aren't finite (NaN or infinity); nothing "
            "that it gives means anything. Take another copy, or an earlier checkpoint."
        )


def _read(name: Name, whole: Any, where: str) -> dict[str, Any]:
    """Our parameters of a stored tensor, or of one in four bits, checked."""
    parts = (whole.scales, whole.lowest) if isinstance(whole, Codes) else (whole,)
    for part in parts:
        if part is not None:
            check_weights(name.theirs, part, where)
    try:
        return name.read(whole)
    except BedstoneError as error:
        raise BedstoneError(f"{where}: {error}") from None


def has_own_copies(layout: Layout, network: Any, tensors: Mapping[str, Any]) -> bool:
    """Whether tensors that the network would tie are stored beside one another and differ.

    So it is after an output layer was trained by itself, whatever the configuration says.
    """
    stored = _current_names(layout, tensors)
    copies, found = ties(network), dict[str, Any]()
    for name in layout.names(without_ties(network.config)):
        key = next((key for key in _places(layout, name.theirs) if key in stored), None)
        if key is None or len(name.ours) > 1:
            continue
        whole = stored[key]
        other = found.setdefault(copies.get(name.ours[0], name.ours[0]), whole)
        if other is not whole and not _equal(other, whole):
            return True
    return False


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Codes) and isinstance(other, Codes):
        return one.like(other) and all(map(_equal, one.parts.values(), other.parts.values()))
    if isinstance(one, Codes) or isinstance(other, Codes) or one.shape != other.shape:
        return False
    return torch.equal(one, other)


def _check_shapes(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    for name, shape in shapes_of(network).items():
        found = state.get(name)
        if found is None or found.shape == shape:
            continue
        hint = ""
        if name in ("embed.weight", "head.weight") and found.shape[1:] == shape[1:]:
            hint = (
                f" The vocabulary doesn't match the weights: config.json says vocab_size "
                f"{shape[0]}, the weights hold {found.shape[0]} tokens."
            )
        raise BedstoneError(
            f"{where}: {name} has shape {tuple(found.shape)}; its config.json asks for "
            f"{tuple(shape)}.{hint} Take weights and config.json from the same model."
        )


# How heads are published: the class in `architectures`, labels, the kind of problem.

_SUFFIXES = {
    "ForPreTraining": "pretraining",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "spans",
}
_LANGUAGE = ("ForMaskedLM", "ForCausalLM", "LMHeadModel")
_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def architecture(stem: str, language: str, head: HeadConfig) -> str:
    """The published class: `stem` is as in BertModel, `language` the ending for its words."""
    endings = {kind: ending for ending, kind in _SUFFIXES.items()}
    return stem + {**endings, "language": language}.get(head.kind, "Model")


def read_head(config: dict[str, Any], *, bare: str) -> HeadConfig:
    """The head that a published configuration says its weights have.

    Args:
        bare: the kind of head where the class is the body alone, or none is named.

    Raises:
        BedstoneError: a class that Bedstone has no head for, or labels that don't fit.
    """
    name = (config.get("architectures") or ["Model"])[0]
    if name.endswith(_LANGUAGE):
        return HeadConfig("language")
    kind = next((kind for ending, kind in _SUFFIXES.items() if name.endswith(ending)), None)
    if kind is None:
        if not name.endswith("Model"):
            known = ", ".join([*_LANGUAGE, *_SUFFIXES, "Model"])
            raise BedstoneError(
                f"config.json: architectures names {name!r}, a head that Bedstone doesn't have; "
                f"classes that end in {known} open."
            )
        return HeadConfig(bare)
    if kind not in ("sequence", "tokens"):
        return HeadConfig(kind)
    return HeadConfig(kind, _labels(config), _problem(config))


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not named:
        return tuple(f"LABEL_{i}" for i in range(config.get("num_labels") or 2))
    try:
        by_id = {int(number): str(label) for number, label in named.items()}
        return tuple(by_id[i] for i in range(len(by_id)))
    except (KeyError, ValueError, AttributeError):
        raise BedstoneError(
            f"config.json: id2label = {named!r} isn't a mapping of 0, 1, 2, ... to labels."
        ) from None


def _problem(config: dict[str, Any]) -> str:
    kind = config.get("problem_type")
    if kind is None:
        return "single"  # of one output alone, transformers then gives the sigmoid
    problems = {theirs: ours for ours, theirs in _PROBLEMS.items()}
    if kind not in problems:
        raise BedstoneError(
            f"config.json: problem_type = {kind!r}; expected one of {', '.join(problems)}."
        )
    return problems[kind]


def write_head(head: HeadConfig) -> dict[str, Any]:
    """Labels and problem, as the published configuration has them."""
    if head.kind not in ("sequence", "tokens"):
        return {}
    labels = {
        "id2label": {str(i): label for i, label in enumerate(head.labels)},
        "label2id": {label: i for i, label in enumerate(head.labels)},
    }
    if head.kind != "sequence" or (head.problem == "single" and len(head.labels) == 1):
        return labels  # no published problem is that of one output: it is the absence of one
    return labels | {"problem_type": _PROBLEMS[head.problem]}


# Keys that every `config.json` of a library may have.

GENERATION = keys(
    """bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature
    top_k top_p typical_p"""
)
# Older versions of transformers write settings of generation into every config.json: decoders have
# them where there is no generation_config.json (`checkpoints.model`), and other networks need none.
TRANSFORMERS = Keys(
    honoured=keys(
        "architectures bos_token_id eos_token_id id2label model_type num_labels pad_token_id "
        "problem_type tie_word_embeddings"
    ),
    harmless=keys(
        """_attn_implementation _attn_implementation_autoset _attn_implementation_internal
        _commit_hash _from_model_config _name_or_path _num_labels attn_implementation
        chunk_size_feed_forward cls_token_id dtype finetuning_task gradient_checkpointing
        initializer_factor initializer_range label2id mask_token_id name_or_path output_attentions
        output_hidden_states output_past prefix return_dict sep_token_id task_specific_params
        tf_legacy_loss tokenizer_class torch_dtype torchscript transformers_version unk_token_id
        use_bfloat16 use_cache use_return_dict xla_device"""
    )
    | GENERATION,
    plain={
        "is_encoder_decoder": (False,),
        "tie_encoder_decoder": (False,),
        "pruned_heads": ({},),
        "cross_attention_hidden_size": (),
        "quantization_config": (),
    },
    reported=keys("auto_map"),
)
DIFFUSERS = Keys(
    honoured=keys("_class_name"),
    harmless=keys("_diffusers_version _name_or_path _commit_hash _use_default_values"),
)


# Reading values of a published `config.json`, each checked.


def need(config: dict[str, Any], key: str) -> int:
    """A size that every published configuration of the layout has."""
    size = config.get(key)
    if not isinstance(size, int) or isinstance(size, bool):
        found = f"is {size!r}" if key in config else "is missing"
        raise BedstoneError(f"config.json: {key!r} {found}; expected a whole number.")
    return size


def refuse(config: dict[str, Any], unsupported: dict[str, Any]) -> None:
    """Raises BedstoneError if a key has a value that changes the network in ways we don't build."""
    for key, plain in unsupported.items():
        if config.get(key, plain) not in (plain, None):
            raise BedstoneError(
                f"config.json: {key} = {config[key]!r} is not supported; only {plain!r} is."
            )
