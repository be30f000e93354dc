"""What draws: a folder of parts, as diffusers has its pipelines.

`model_index.json` names the parts; `transformer/` is the denoiser, `scheduler/` says how noise is
added and taken away, `text_encoder/` and `tokenizer/` read words, `vae/` turns latents into
pictures. Beside them `drawing.json` says what a signal is and how it is drawn; `bedstone.json` and
`README.md` are those of every artefact. A published DiT pipeline opens likewise, and what is of
its form is written as one.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bedstone.checkpoints.card import pipeline_card
from bedstone.checkpoints.golden import warn_of_differences
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.model import load as load_part
from bedstone.checkpoints.side_files import read_record
from bedstone.data.signals.signals import KINDS, TASKS, Prompts
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.diffusion.denoiser import clip
from bedstone.diffusion.process import Discrete, Process
from bedstone.diffusion.sample import (
    BATCH,
    NOTHING_MORE,
    Autocast,
    Progress,
    SampleControls,
    SampleInputs,
    SamplingConfig,
    sample_many,
)
from bedstone.diffusion.schedulers import NAME as SCHEDULER
from bedstone.diffusion.schedulers import read_scheduler, write_scheduler
from bedstone.diffusion.targets import EpsilonPrediction, Target
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.models.dit.network import Conditioned
from bedstone.nn.fast.pick import prepared
from bedstone.reading import is_plain, read_object
from bedstone.runtime import Precision
from bedstone.settings import from_mapping

SPEC = "drawing.json"


@dataclass
class SignalSpec:
    """What is drawn, and from what.

    Attributes:
        kind: image, audio, video or volume.
        shape: (C, *S) of a signal, before an autoencoder.
        condition: none, class or text.
        names: of the classes.
        context: tokens of a text at most.
        sound: how sounds become signals, and signals sounds.
        frozen: whether the reader of words is another's, and keeps its weights.
        small: (C, h, w) of the smaller images that it enlarges; empty where it enlarges none.
    """

    kind: str = "image"
    shape: tuple[int, ...] = (3, 32, 32)
    condition: str = "none"
    names: tuple[str, ...] = ()
    context: int = 0
    sound: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    small: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.condition, self.kind) not in TASKS.values():
            raise BedstoneError(
                f"signal: draws {self.kind!r} from {self.condition!r}; expected image, audio, "
                "video or volume, from none, class or text."
            )
        if len(self.shape) != KINDS[self.kind] + 1:
            raise BedstoneError(
                f"signal.shape: {list(self.shape)} was given; expected the channels and "
                f"{KINDS[self.kind]} more of {self.kind}."
            )


def read_spec(
    folder: Path,
    index: Mapping[str, Any],
    parts: Mapping[str, Model],
    method: str,
    kind: type[SamplingConfig] = SamplingConfig,
) -> tuple[SignalSpec, SamplingConfig, bool]:
    """What is drawn and how: said by our own file, or as published pipelines are used; and whether
    that, and not the scheduler, says how it is drawn.

    Args:
        folder: of the whole model.
        index: its `model_index.json`.
        parts: its networks.
        method: of sampling, that the scheduler names.
        kind: of its settings of sampling.

    Raises:
        BedstoneError: our file is damaged, or says what can't be.
    """
    if is_plain(folder / SPEC):
        form = read_object(folder / SPEC)
        if not {"signal", "sampling"} <= form.keys() or not all(
            isinstance(form[name], dict) for name in ("signal", "sampling")
        ):
            raise BedstoneError(
                f"{folder / SPEC}: expected an object with signal and sampling; it is damaged. "
                "Fetch or save the model again."
            )
        try:
            return (
                from_mapping(SignalSpec, form["signal"], SPEC, "signal."),
                from_mapping(kind, form["sampling"], SPEC, "sampling."),
                not form.get("published"),
            )
        except BedstoneError as error:
            fault = str(error).removeprefix(f"{SPEC}: ")
            raise BedstoneError(f"{folder / SPEC}: {fault}") from None
    config = parts["transformer"].config
    size, channels = tuple(config.size), config.channels
    if "vae" in parts:
        coder = parts["vae"].config
        size, channels = tuple(side * coder.shrink for side in size), coder.channels
    said = index.get("id2label")
    labels = said if isinstance(said, dict) else {}
    names = tuple(str(labels.get(str(n), n)) for n in range(config.classes))  # by their numbers
    spec = SignalSpec("image", (channels, *size), "class" if config.classes else "none", names)
    guidance = 4.0 if config.classes else 1.0
    return spec, SamplingConfig(method=method, steps=50, guidance=guidance), False


INDEX = "model_index.json"
VERSION = "0.39.0"  # of diffusers, whose form is written


@dataclass
class MediaPipeline(Model):
    """What draws signals, of whatever kind: a `diffusion.sample.Generator`.

    Attributes, besides those of every model:
        signal: what it draws.
        sampling: how it draws where nothing else is given.
    """

    signal: SignalSpec = field(default_factory=SignalSpec)
    sampling: Any = None

    @property
    def parts(self) -> dict[str, Model]:
        """Its networks by the folders they stand in."""
        raise NotImplementedError

    @property
    def prompts(self) -> Prompts:
        """How it reads words.

        Raises:
            BedstoneError: it reads none.
        """
        if self.tokenizer is None:
            raise BedstoneError(f"{self.path}: reads no words; it draws {self.inputs()}.")
        return Prompts(self.tokenizer, self.signal.context)

    def sample(
        self,
        seeds: Sequence[int],
        *,
        condition: SampleInputs = None,
        null: SampleInputs = None,
        batch: int = BATCH,
        progress: Progress | None = None,
        **options: Any,
    ) -> Tensor:
        """Signals (B, C, *S) fp32 on the CPU, about -1 to 1, one for each seed."""
        raise NotImplementedError

    def prepared(self, precision: Precision) -> dict[str, Any]:
        """Arguments of `sample` by which many are drawn, in a precision."""
        raise NotImplementedError

    @property
    def how(self) -> str:
        """How it draws, in words."""
        raise NotImplementedError

    def inputs(self) -> str:
        """What it draws from, in words."""
        names = self.signal.names
        if self.signal.small:
            return f"of smaller images, {' x '.join(map(str, self.signal.small))}"
        if self.signal.condition == "class":
            return f"one of {len(names)} classes ({', '.join(names[:12])})"
        return "from words" if self.signal.condition == "text" else "without being told what"

    def stands_in(self, folder: Path) -> bool:
        return (folder / INDEX).exists()

    def write_parts(self, folder: Path) -> dict[str, Any]:
        """Writes each part and the tokenizer into folders of their own; what the index says."""
        index: dict[str, Any] = {}
        for name, part in self.parts.items():
            (folder / name).mkdir()
            part.write_network(folder / name)
            known = part.layout.architecture(part.config)
            library = part.layout.library if known else "bedstone"
            index[name] = [library, known or type(part.network).__name__]
        if self.tokenizer is not None:
            (folder / "tokenizer").mkdir()
            self.tokenizer.save(folder / "tokenizer")
            index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
        return index

    def card(self) -> str:
        """The model card."""
        parts = {name: part.network for name, part in self.parts.items()}
        return pipeline_card(parts, asdict(self.signal), self.how, self.record)


@dataclass
class DiffusionPipeline(MediaPipeline):
    """A network that draws, and all that is needed to use it.

    Attributes, besides those of every model that draws:
        network: a `models.dit.network.Conditioned`.
        process: how noise was added when it learnt.
        target: what it predicts.
        reader: the model whose network, or text tower, is `network.text`.
        autoencoder: what turns its latents into pictures.
        scheduler: `scheduler_config.json` of a published pipeline, which says how it is drawn by;
            empty where `sampling` does.
    """

    kind: ClassVar[str] = "BedstonePipeline"  # that the index names

    process: Process = field(default_factory=Discrete)
    target: Target = field(default_factory=EpsilonPrediction)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reader: Model | None = None
    autoencoder: Model | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "DiffusionPipeline":
        """`load_drawing`, by the name that users of `diffusers` know."""
        return load_pipeline(path, **options)

    @property
    def parts(self) -> dict[str, Model]:
        found = {"transformer": Model(self.network.denoiser)}
        if self.reader is not None:
            found["text_encoder"] = self.reader
        if self.autoencoder is not None:
            found["vae"] = self.autoencoder
        return found

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, *S) of what the denoiser samples: signals, or latents of them."""
        return (self.config.channels, *self.config.size)

    def sample(  # type: ignore[override]  # its options are named
        self,
        seeds: Sequence[int],
        *,
        condition: SampleInputs = None,
        null: SampleInputs = None,
        sampling: SamplingConfig | None = None,
        shape: tuple[int, ...] = (),
        controls: SampleControls = NOTHING_MORE,
        network: Any = None,
        autocast: Autocast = contextlib.nullcontext,
        batch: int = BATCH,
        decoded: int = 0,
        progress: Progress | None = None,
    ) -> Tensor:
        """Signals (B, C, *S) fp32 on the CPU, about -1 to 1, one for each seed: a `Generator`.

        Args:
            condition: what to sample, of B rows.
            null: one row that says nothing, or what not to sample; guidance goes away from it.
            sampling: the pipeline's own where None.
            shape: (C, *S) of what the denoiser samples; `sample_shape` where empty.
            controls: starts, masks, noise and the like.
            network: a copy of the network that is ready for inference; the network itself for None.
            autocast: the precision in which the network computes.
            batch: rows sampled at a time.
            decoded: rows that the autoencoder decodes at a time; 0 decodes a batch at once.

        Raises:
            BedstoneError: as `diffusion.sample.sample` does.
        """
        parts = sample_many(
            network or self.network,
            self.process,
            self.target,
            shape or self.sample_shape,
            sampling or self.sampling,
            seeds,
            condition=condition,
            null=null,
            controls=controls,
            autocast=autocast,
            batch=batch,
            progress=progress,
        )
        return torch.cat([self.decode(part, decoded) for part in parts])

    @torch.no_grad()
    def decode(self, sampled: Tensor, rows: int = 0) -> Tensor:
        """Signals (B, C, *S) fp32 on the CPU of what the denoiser samples, `rows` at a time."""
        if self.autoencoder is not None:
            network = self.autoencoder.network
            sampled = sampled.float().to(next(network.parameters()).device)
            parts = sampled.split(rows or len(sampled))
            sampled = torch.cat([network.pictures(part) for part in parts])
        return sampled.float().cpu()

    def prepared(self, precision: Precision) -> dict[str, Any]:
        return {
            "network": prepared(self.network, precision),
            "autocast": precision.autocast,
            "controls": SampleControls(limit=clip() if self.autoencoder is None else None),
        }

    @property
    def how(self) -> str:
        sampling = self.sampling
        return f"{sampling.method}, {sampling.steps} steps, guidance {sampling.guidance:g}"

    def write_network(self, folder: Path) -> None:
        """Writes each part into its own folder, and what joins them."""
        index = self.write_parts(folder)
        tokens = index.pop("tokenizer", None)
        (folder / "scheduler").mkdir()
        method = self.sampling.method
        if self.scheduler:
            write_json(folder / "scheduler" / SCHEDULER, self.scheduler)
            named = self.scheduler["_class_name"]
        else:
            named = write_scheduler(folder / "scheduler", self.process, self.target, method)
        index["scheduler"] = ["diffusers", named]
        if tokens is not None:
            index["tokenizer"] = tokens
        published = self.autoencoder is not None and self.config.layout == "dit"
        kind = "DiTPipeline" if published else self.kind
        head: dict[str, Any] = {"_class_name": kind, "_diffusers_version": VERSION}
        if published:
            head["id2label"] = {str(number): name for number, name in enumerate(self.signal.names)}
        write_json(folder / INDEX, {**head, **index})
        form = {"signal": asdict(self.signal), "sampling": asdict(self.sampling)}
        write_json(folder / SPEC, {**form, "published": bool(self.scheduler)})


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds something that draws."""
    return is_plain(folder / INDEX)


def load_pipeline(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    verify: bool = True,
) -> DiffusionPipeline:
    """Opens a drawing model, ours or a published DiT pipeline; arguments as `artefact.load`.

    Raises:
        BedstoneError: it isn't there, isn't whole, or has parts that Bedstone doesn't open.
    """
    folder = resolve(path, revision=revision)
    model = DiffusionPipeline(**read_fields(folder, dtype=dtype, device=device, verify=verify))
    check_parts(model)
    if verify:
        warn_of_differences(folder, model)
    return model


def read_fields(
    folder: Path,
    sampling: type[SamplingConfig] = SamplingConfig,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str,
    verify: bool,
) -> dict[str, Any]:
    """The fields of the `DiffusionPipeline` in a folder, not compared with one another.

    Args:
        sampling: the kind of its settings of sampling.

    Raises:
        BedstoneError: as `load_pipeline`.
    """
    if not is_pipeline(folder):
        raise BedstoneError(
            f"{folder}: has no {INDEX}, so it draws nothing. Give the folder that `bedstone "
            "pretrain` reports for a recipe that draws, or a published DiT pipeline."
        )
    record = read_record(folder, verify=verify)
    index = read_object(folder / INDEX)
    parts = {
        name: load_part(folder / name, dtype=dtype, device=device, verify=verify)
        for name in ("transformer", "text_encoder", "vae")
        if (folder / name / "config.json").is_file()
    }
    if "transformer" not in parts:
        raise BedstoneError(
            f"{folder}: is a {index.get('_class_name', 'pipeline')} without a transformer; "
            "networks of the DiT and PixArt kind open. Choose such a one."
        )
    process, target, method = read_scheduler(folder / "scheduler")
    signal, how, own = read_spec(folder, index, parts, method, sampling)
    reader, autoencoder = parts.get("text_encoder"), parts.get("vae")
    text = None if reader is None else text_part(reader.network)
    network = Conditioned(parts["transformer"].network, text, frozen=signal.frozen).eval()
    tokens = folder / "tokenizer"
    return {
        "network": network,
        "tokenizer": Tokenizer.load(tokens) if tokens.is_dir() else None,
        "record": record,
        "path": folder,
        "process": process,
        "target": target,
        "signal": signal,
        "sampling": how,
        "reader": reader,
        "autoencoder": autoencoder,
        "scheduler": {} if own else read_object(folder / "scheduler" / SCHEDULER),
    }


def check_parts(model: DiffusionPipeline) -> None:
    """Raises BedstoneError where the parts of a model don't fit one another."""
    config, where = model.config, model.path or "this model"
    drawn = model.signal.shape[0]
    if model.autoencoder is not None:
        coder = model.autoencoder.config
        if coder.layout != "autoencoder_kl":
            raise BedstoneError(
                f"{where}: vae/ is a {coder.layout}, which has codes and no latents to be drawn; "
                "expected an autoencoder_kl. Take the one that the denoiser was trained with."
            )
        channels, shown = coder.latent_channels, coder.channels
        if (channels, shown) != (config.channels, drawn):
            raise BedstoneError(
                f"{where}: vae/ turns latents of {channels} channels into pictures of {shown}; the "
                f"denoiser draws latents of {config.channels} for pictures of {drawn}. Take the "
                "autoencoder that it was trained with."
            )
    elif config.channels != drawn:
        raise BedstoneError(
            f"{where}: the denoiser draws {config.channels} channels, and a signal has {drawn}; "
            "expected an autoencoder in vae/ that makes the one of the other. Put it there."
        )
    if bool(model.signal.small) != bool(config.beside):
        raise BedstoneError(
            f"{where}: {SPEC} has signal.small = {list(model.signal.small)}, and the denoiser "
            f"reads {config.beside} channels beside the noisy signal; expected both or neither. "
            "Take both of the same model."
        )
    if model.reader is not None:
        reads: Any = text_part(model.reader.network).config
        width = reads.width
        if width != config.memory_width:
            raise BedstoneError(
                f"{where}: text_encoder/ gives states of width {width}; the denoiser reads "
                f"{config.memory_width}. Take the text encoder that it was trained with."
            )


def text_part(network: Any) -> nn.Module:
    """What reads words in a network: a CLIP's text tower, or all of a BERT.

    Raises:
        BedstoneError: it reads none, or has no states of single words.
    """
    part = getattr(network, "text", network)
    if not hasattr(part, "states") or not hasattr(part.config, "vocab_size"):
        raise BedstoneError(
            f"text.encoder: a {type(network).__name__} reads no words; choose a CLIP or a BERT."
        )
    return part
