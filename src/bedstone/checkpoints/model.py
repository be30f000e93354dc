"""The artefact: a folder that Bedstone and the rest of the field open alike.

`config.json`, `model.safetensors`, the tokenizer's files, `preprocessor_config.json` and
`generation_config.json` stand in the published layout. Beside them `bedstone.json` says where the
weights come from and what every file weighs and hashes to, and `README.md` is the model card.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.adapters import CONFIG as ADAPTER
from bedstone.checkpoints.adapters import load_with_adapter
from bedstone.checkpoints.card import card
from bedstone.checkpoints.gguf import open_gguf
from bedstone.checkpoints.gguf_file import gguf_in
from bedstone.checkpoints.golden import try_write_golden, warn_of_differences
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.quantized import is_quantized, load_quantized, save_quantized
from bedstone.checkpoints.sentence_transformers import (
    lower_case,
    network_folder,
    read_pooling,
    write_pooling,
)
from bedstone.checkpoints.side_files import read_generation, read_record, write_record
from bedstone.checkpoints.sizes import build, read_config
from bedstone.checkpoints.store import CheckpointStore
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.images.processor import FILES as PROCESSORS
from bedstone.data.images.processor import ImageProcessor
from bedstone.data.text.marian_tokenizer import load_tokenizer
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError, nearest
from bedstone.files import atomic_folder, write_json, write_text
from bedstone.generation.settings import BeamSearch, GenerationSettings, without_usual_length
from bedstone.generation.text import encode_prompt, write, write_beams
from bedstone.models.families import QUANTIZED, model_type
from bedstone.models.interfaces import CausalLM, EncoderDecoderModel
from bedstone.models.published import (
    FLOATS,
    GENERATION,
    Layout,
    has_own_copies,
    layout,
    load_published,
    to_published,
)
from bedstone.nn.layers import Pooling
from bedstone.nn.quantize import make_whole_in, weights_of
from bedstone.nn.ties import without_ties
from bedstone.reading import check_kinds, is_plain, read_object, to_path
from bedstone.runtime import pick_precision

# Settings of generation that name tokens, which a model keeps whatever it is trained for.
TOKENS = (
    *("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
)


@dataclass(repr=False)
class Model:
    """A network and all that is needed to use it.

    Attributes:
        network: the torch module; a GPT maps ids (B, T) to logits (B, T, V).
        processor: how pictures become pixels; None where it reads none.
        tokenizer: None where the folder has none.
        generation: `generation_config.json`: end tokens and sampling defaults.
        record: what `bedstone.json` says of its making: recipe, data, metrics, versions.
        path: where it was read from.
        pooling: how it makes one vector of a text, where its folder says so.
        plain: whether weights that are quantised are saved whole too, as other libraries read them.
    """

    network: Any
    tokenizer: Tokenizer | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    pooling: Pooling | None = None
    processor: ImageProcessor | None = None
    plain: bool = True

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.network.config

    @property
    def layout(self) -> Layout:
        """The published layout it is written in."""
        return layout(self.config.layout)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "Model":
        """`bedstone.load`, by the name that users of `transformers` know."""
        return load(path, **options)

    def __repr__(self) -> str:
        config = self.config
        count, _ = weights_of(self.network)
        head = getattr(config, "head", None)
        parts = [config.layout, *([f"{head.kind} head"] if head else []), f"{count / 1e6:.2f}M"]
        if self.tokenizer is not None:
            parts.append(f"vocabulary {self.tokenizer.vocab_size:,}")
        return f"<Model {', '.join(parts)}, {self.device}>"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.network.parameters()).device
        return found

    def to(
        self, device: torch.device | torch.dtype | str | None = None, dtype: Any = None
    ) -> "Model":
        """Moves the weights to a device, or to a type of numbers; gives this model back."""
        if isinstance(device, torch.dtype):  # as torch's own modules take it
            device, dtype = None, device
        self.network.to(device=device, dtype=dtype)
        return self

    @property
    def writes_text(self) -> bool:
        """Whether it continues texts."""
        causal = isinstance(self.network, CausalLM) and self.network.causal
        return bool(causal and self.config.head.kind == "language")

    def generate(
        self, prompt: str | Sequence[str], *, precision: str = "fp32", **settings: Any
    ) -> Any:
        """The continuation of a text, or of each of several.

        Args:
            prompt: one text or a list.
            precision: of computation: fp32, bf16, auto for bf16 where the hardware has it, or int8
                or int4, which quantise weights.
            settings: fields of `GenerationSettings`, such as `max_new_tokens` or `temperature`.

        Raises:
            BedstoneError: the model writes no text, or a setting is out of range.
        """
        if isinstance(self.network, EncoderDecoderModel):
            raise BedstoneError(
                f"{self!r} continues no text: it writes one given another. Use "
                "bedstone.pipeline('text2text-generation', model), 'translation' or "
                "'summarization'."
            )
        if not self.writes_text:
            raise BedstoneError(f"{self!r} writes no text; take a GPT with its language head.")
        known, how = tokenizer_of(self), pick_precision(precision, self.device)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not all(isinstance(each, str) for each in prompts):
            raise BedstoneError(
                "prompt: expected a text or a list of texts, not token ids or messages; for "
                "messages, use bedstone.pipeline('text-generation', model)."
            )
        sizes = [len(encode_prompt(known, each)) for each in prompts]
        known_names = [each.name for each in fields(GenerationSettings)]
        for name in settings:
            if name not in known_names:
                raise BedstoneError(
                    f"generate: {name!r} is no setting{nearest(name, known_names)}. See the fields "
                    "of GenerationSettings."
                )
        chosen = GenerationSettings(**settings)
        published, longest = without_usual_length(self.generation), max(sizes, default=1)
        way = chosen.resolve(published, longest, tokenizer=known)
        if isinstance(way, BeamSearch):
            beams = write_beams(self.network, known, prompts, way, eos=self.end_ids, precision=how)
            texts = [own[0].text for own in beams]
        else:
            rows = write(self.network, known, prompts, way, eos=self.end_ids, precision=how)
            if way.form is not None and not all(each.complete for each in rows):
                raise BedstoneError(
                    f"{way.form.kind}: a text was cut before it was whole. Raise max_new_tokens, "
                    f"which is {way.max_tokens}, or take pipeline('text-generation', model), "
                    "whose results say which are whole."
                )
            texts = [each.text for each in rows]
        return texts[0] if isinstance(prompt, str) else texts

    def forget_tasks(self) -> None:
        """Drops what an encoder-decoder was published with for a task of its own.

        Prefixes, and settings of generation such as `min_length`, would otherwise count for what it
        is trained for next; special tokens stay.
        """
        network = self.network
        if isinstance(network, EncoderDecoderModel):
            self.network.config = self.config.for_training()
            kept = {name: self.generation[name] for name in TOKENS if name in self.generation}
            self.generation = {"decoder_start_token_id": self.config.start_id, **kept}

    def save_pretrained(self, path: str | Path) -> Path:
        """`save`, by the name that users of `transformers` know."""
        return self.save(path)

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end a generation."""
        ids = self.generation.get("eos_token_id")
        if ids is None:
            ids = self.tokenizer.eos_id if self.tokenizer else None
        return set(ids) if isinstance(ids, list) else set() if ids is None else {ids}

    def save(self, path: str | Path) -> Path:
        """Writes the artefact whole or not at all, taking the place of one that is there.

        Raises:
            BedstoneError: the folder can't be written; what was there before is untouched.
        """
        path = Path(path)
        if path.suffix.lower() == ".gguf":
            raise BedstoneError(
                f"{path}: a model is saved as a folder; write a GGUF file with bedstone export."
            )
        if path.exists() and not path.is_dir():
            raise BedstoneError(f"{path}: is a file; an artefact is a folder. Choose another name.")
        if path.is_dir() and any(path.iterdir()) and not self.stands_in(path):
            raise BedstoneError(
                f"{path}: holds other files than a model; saving would replace the whole folder. "
                "Choose a folder that is new or holds a model."
            )
        with atomic_folder(path) as folder:
            self.write_files(folder, golden=True)
        return path

    def stands_in(self, folder: Path) -> bool:
        """Whether a folder holds such an artefact, which saving may replace."""
        return (folder / "config.json").exists()

    def write_files(self, folder: Path, *, golden: bool = False) -> None:
        """Writes every file of the artefact into an existing folder, not atomically.

        Args:
            golden: whether golden outputs are among them, for which the network is run.
        """
        self.write_network(folder)
        for measured in ("figures", "audit"):  # of the weights that they were measured of
            self.record.pop(measured, None)
        write_text(folder / "README.md", self.card())
        if golden:
            try_write_golden(folder, self)
        write_record(folder, self.record)

    def write_network(self, folder: Path) -> None:
        """Writes the published files alone: configuration, weights, and how inputs are read."""
        config = self.layout.write_config(self.config)
        quantized = is_quantized(self.network)
        if quantized:
            save_quantized(folder, self.layout, self.network)
        if self.plain or not quantized:
            tensors = to_published(self.layout, self.network)
            save_tensors(folder, tensors, name=self.layout.weights)
            if self.layout.library == "transformers":
                dtype = next(iter(tensors.values())).dtype
                config["dtype"] = str(dtype).removeprefix("torch.")
        if self.pooling is not None:
            write_pooling(folder, self.pooling, self.config.width)
            if self.tokenizer is not None and self.pooling.max_tokens:
                self.tokenizer.settings["model_max_length"] = self.pooling.max_tokens
        if self.tokenizer is not None:
            self.tokenizer.save(folder, segments=getattr(self.config, "segments", 1) != 0)
            self.layout.write_ends(config, self.tokenizer)
        if self.processor is not None:
            self.processor.write(folder)
        write_json(folder / "config.json", config)
        if "vocab_size" in config or self.generation:  # what reads pictures alone writes no text
            keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
            generation = {key: config[key] for key in keys if config.get(key) is not None}
            write_json(folder / "generation_config.json", {**generation, **self.generation})

    def card(self) -> str:
        """The model card, in Markdown with the metadata block that hubs read."""
        kind = self.layout
        return card(self.network, self.record, kind.architecture(self.config), kind.library)


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    verify: bool = True,
) -> Model:
    """Opens an artefact, a published folder, a hub id, or an adapter's folder with its base.

    Args:
        path: a folder, a GGUF file, or an id such as `Qwen/Qwen3-0.6B`.
        dtype: what to hold the weights in; None keeps what is stored.
        device: where to.
        revision: branch, tag or commit of a hub id.
        verify: whether to check sizes and hashes, where the folder says what they are.

    Raises:
        BedstoneError: it isn't there, isn't whole, was tampered with, holds pickled weights,
            or is of a layout that Bedstone doesn't open.
    """
    outer = resolve(model_folder(path), revision=revision)
    if is_plain(outer / ADAPTER) and not is_plain(outer / "config.json"):

        def open_base(base: str) -> Model:
            return load(base, dtype=dtype, device=device, verify=verify)

        model = load_with_adapter(outer, open_base)
        model.tokenizer = _tokenizer(outer) or model.tokenizer
        model.network.to(device).eval()
        return model
    if (file := gguf_in(outer)) is not None:
        found = open_gguf(file, dtype=dtype)
        model = Model(found.network.to(device).eval(), found.tokenizer, found.generation)
        model.record, model.path = found.record, file
        return model
    folder = network_folder(outer)
    if not is_plain(folder / "config.json"):
        raise BedstoneError(
            f"{folder}: has no config.json and no GGUF file, so it is not a model. Give the folder "
            "that `bedstone pretrain` reports, or a published one."
        )
    record = read_record(folder, verify=verify)
    published = read_object(folder / "config.json")
    check_kinds(published, {"model_type": "text", "_class_name": "text"}, folder / "config.json")
    try:
        kind = layout(model_type(published))
    except BedstoneError as error:
        raise BedstoneError(f"{folder}/{error}") from None
    quantized = is_plain(folder / QUANTIZED)
    tensors: dict[str, Any] = (
        load_quantized(folder) if quantized else load_tensors(folder, name=kind.weights)
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = read_config(kind, published, shapes, folder / "config.json")
    network = build(kind, config, folder / "config.json")
    if has_own_copies(kind, network, tensors):
        network = build(kind, without_ties(config), folder / "config.json")
    load_published(kind, network, tensors, where=str(folder), dtype=dtype)
    if quantized:
        dtypes = {str(each).removeprefix("torch."): each for each in FLOATS}
        make_whole_in(network, dtypes.get(str(published.get("dtype")), torch.float32))
    tokenizer = _tokenizer(folder)
    model = Model(network.to(device).eval(), tokenizer, path=folder, record=record)
    model.plain = not quantized or any(folder.glob(f"{kind.weights}*"))
    model.pooling = _pooling(outer, tokenizer)
    model.processor = ImageProcessor.read(folder)
    _check_pixels(model, folder)
    if tokenizer is not None:
        most = getattr(model.config, "vocab_size", 0)
        _check_vocabulary(tokenizer, most, folder)
        _check_vocabulary(
            tokenizer.target, getattr(model.config, "target_vocab_size", most), folder
        )
    model.generation = read_generation(folder)
    if not model.generation:
        if isinstance(network, EncoderDecoderModel):
            # what its files leave out is as the library's class has it
            ends = {"decoder_start_token_id": config.start_id, "pad_token_id": config.pad_id}
            model.generation = _older_generation({**kind.defaults, **published, **ends})
        elif getattr(network, "causal", False):
            model.generation = _older_generation(published)
    if verify:
        warn_of_differences(folder, model)
    return model


def model_folder(path: str | Path) -> str | Path:
    """The folder of a run's model, or of its latest checkpoint; what is no run stays as it is.

    Raises:
        BedstoneError: it is a run that has no checkpoint yet.
    """
    run = to_path(path, "model")
    if not is_plain(run / "recipe.yaml"):
        return path
    if any(is_plain(run / "model" / name) for name in ("config.json", "model_index.json")):
        return run / "model"
    latest = CheckpointStore(run / "checkpoints").latest()
    if latest is None:
        raise BedstoneError(f"{run}: is a run that has no checkpoint yet.")
    return latest.path


def _check_vocabulary(tokenizer: Tokenizer, most: int, folder: Path) -> None:
    """Raises BedstoneError where a tokenizer has more tokens than the weights."""
    if tokenizer.vocab_size > most:
        raise BedstoneError(
            f"{folder}: the vocabulary doesn't match the weights: the tokenizer has "
            f"{tokenizer.vocab_size} tokens, the weights {most}. Take both from the same model."
        )


def _older_generation(published: dict[str, Any]) -> dict[str, Any]:
    """Settings of generation that stand in config.json, where older versions keep them.

    A default of those versions that is written out says nothing.
    """
    ends = {"bos_token_id", "eos_token_id", "pad_token_id"}
    found = {k: published[k] for k in GENERATION | ends if published.get(k) is not None}
    return without_usual_length(found)


def _check_pixels(model: Model, folder: Path) -> None:
    """Raises BedstoneError where pictures are made much larger than the network reads them."""
    reads = getattr(getattr(model.config, "image", model.config), "size", None)
    if model.processor is None or not isinstance(reads, tuple):
        return
    made = model.processor.size
    if math.prod(made) > 4 * math.prod(reads):
        file = next(name for name in PROCESSORS if (folder / name).exists())
        raise BedstoneError(
            f"{folder / file}: makes pictures of {made[0]} x {made[1]} pixels; by config.json "
            f"the network reads {reads[0]} x {reads[1]}. Take both from the same model."
        )


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        BedstoneError: it has none.
    """
    if model.tokenizer is None:
        raise BedstoneError(
            f"{model.path}: has no tokenizer, so text means nothing to it. Put its tokenizer.json "
            "beside the weights."
        )
    return model.tokenizer


def _tokenizer(folder: Path) -> Tokenizer | None:
    known = (
        *("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "vocab.txt"),
        "source.spm",
    )
    return load_tokenizer(folder) if any(is_plain(folder / name) for name in known) else None


def _pooling(folder: Path, tokenizer: Tokenizer | None) -> Pooling | None:
    """How the folder's model pools; its tokenizer is made to lower case where that is asked for."""
    pooling, lowers = read_pooling(folder) or (None, False)
    if lowers and tokenizer is not None:
        lower_case(tokenizer)
    return pooling


def weights_hash(model: Model) -> str:
    """A hash (hex) of all that decides what a network gives: its shape and its weights."""
    return _hashed(model, repr(model.config))


def fingerprint(model: Model) -> str:
    """A hash (hex) by which a part is known again that another network was trained with.

    Of its weights and of what its codes mean; fields that later versions add to a configuration
    change nothing.
    """
    return _hashed(model, _meaning(model.config))


def part_fingerprint(model: Model) -> str:
    """`fingerprint` of a model's weights in fp32: the same in whatever precision they are held, as
    long as that holds their values."""
    return _hashed(model, _meaning(model.config), in_fp32=True)


def _meaning(config: Any) -> str:
    codes = getattr(config, "levels", None) or getattr(config, "codes", None)
    return f"{config.layout} {codes}"


def _hashed(model: Model, head: str, *, in_fp32: bool = False) -> str:
    digest = hashlib.sha256(head.encode())
    for name, weight in sorted(model.network.state_dict().items()):
        weight = weight.float() if in_fp32 and weight.is_floating_point() else weight
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
