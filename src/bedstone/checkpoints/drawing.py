"""What draws: a folder of parts, as diffusers has its pipelines.

`model_index.json` names the parts; `transformer/` is the denoiser, `scheduler/` says how noise is
added and taken away, `text_encoder/` and `tokenizer/` read words, `vae/` turns latents into
pictures. Beside them `drawing.json` says what a signal is and how it is drawn; `bedstone.json` and
`README.md` are those of every artefact. A published DiT pipeline opens likewise, and what is of
its form is written as one.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bedstone.checkpoints.artefact import RECORD, Model
from bedstone.checkpoints.artefact import load as load_part
from bedstone.checkpoints.drawing_card import drawing_card
from bedstone.checkpoints.drawing_form import FORM, SignalForm, read_form
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.scheduler_files import NAME as SCHEDULER
from bedstone.checkpoints.scheduler_files import read_scheduler, write_scheduler
from bedstone.data.prompts import Prompts
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.files import read_json, write_json
from bedstone.manifests import verify_manifest
from bedstone.models.conditioned import Conditioned
from bedstone.nn.noise_targets import Noise, Target
from bedstone.nn.noising import Discrete, Process
from bedstone.recipes_diffusion import SamplingConfig

INDEX = "model_index.json"
VERSION = "0.39.0"  # of diffusers, whose form is written


@dataclass
class DrawingModel(Model):
    """A network that draws, and all that is needed to use it.

    Attributes, besides those of every model:
        network: a `models.conditioned.Conditioned`.
        process: how noise was added when it learnt.
        target: what it predicts.
        signal: what it draws.
        sampling: how it draws unless told otherwise.
        reader: the model whose network, or text tower, is `network.text`.
        autoencoder: what turns its latents into pictures.
        scheduler: `scheduler_config.json` of a published pipeline, which says how it is drawn by;
            empty where `sampling` does.
    """

    process: Process = field(default_factory=Discrete)
    target: Target = field(default_factory=Noise)
    signal: SignalForm = field(default_factory=SignalForm)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reader: Model | None = None
    autoencoder: Model | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "DrawingModel":
        """`load_drawing`, by the name that users of `diffusers` know."""
        return load_drawing(path, **options)

    @property
    def parts(self) -> dict[str, Model]:
        """Its networks by the folders they stand in."""
        found = {"transformer": Model(self.network.denoiser)}
        if self.reader is not None:
            found["text_encoder"] = self.reader
        if self.autoencoder is not None:
            found["vae"] = self.autoencoder
        return found

    @property
    def prompts(self) -> Prompts:
        """How it reads words.

        Raises:
            BedstoneError: it reads none.
        """
        if self.tokenizer is None:
            raise BedstoneError(f"{self.path}: reads no words; it draws {self.told()}.")
        return Prompts(self.tokenizer, self.signal.context)

    def told(self) -> str:
        """What it draws from, in words."""
        names = self.signal.names
        if self.signal.condition == "class":
            return f"one of {len(names)} classes ({', '.join(names[:12])})"
        return "from words" if self.signal.condition == "text" else "without being told what"

    def stands_in(self, folder: Path) -> bool:
        return (folder / INDEX).exists()

    def write_network(self, folder: Path) -> None:
        """Writes each part into its own folder, and what joins them."""
        index: dict[str, Any] = {}
        for name, part in self.parts.items():
            (folder / name).mkdir()
            part.write_network(folder / name)
            known = part.layout.architecture(part.config)
            library = part.layout.library if known else "bedstone"
            index[name] = [library, known or type(part.network).__name__]
        (folder / "scheduler").mkdir()
        method = self.sampling.method
        if self.scheduler:
            write_json(folder / "scheduler" / SCHEDULER, self.scheduler)
            named = self.scheduler["_class_name"]
        else:
            named = write_scheduler(folder / "scheduler", self.process, self.target, method)
        index["scheduler"] = ["diffusers", named]
        if self.tokenizer is not None:
            (folder / "tokenizer").mkdir()
            self.tokenizer.save(folder / "tokenizer")
            index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
        published = self.autoencoder is not None and self.config.layout == "dit"
        kind = "DiTPipeline" if published else "BedstonePipeline"
        head: dict[str, Any] = {"_class_name": kind, "_diffusers_version": VERSION}
        if published:
            head["id2label"] = {str(number): name for number, name in enumerate(self.signal.names)}
        write_json(folder / INDEX, {**head, **index})
        form = {"signal": asdict(self.signal), "sampling": asdict(self.sampling)}
        write_json(folder / FORM, {**form, "published": bool(self.scheduler)})

    def card(self) -> str:
        """The model card."""
        parts = {name: part.network for name, part in self.parts.items()}
        return drawing_card(parts, asdict(self.signal), asdict(self.sampling), self.record)


def is_drawing(folder: Path) -> bool:
    """Whether a folder holds something that draws."""
    return (folder / INDEX).is_file()


def load_drawing(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    verify: bool = True,
) -> DrawingModel:
    """Opens a drawing model, ours or a published DiT pipeline; arguments as `artefact.load`.

    Raises:
        BedstoneError: it isn't there, isn't whole, or has parts that Bedstone doesn't open.
    """
    folder = resolve(path, revision=revision)
    if not is_drawing(folder):
        raise BedstoneError(
            f"{folder}: has no {INDEX}, so it draws nothing. Give the folder that `bedstone "
            "pretrain` reports for a recipe that draws, or a published DiT pipeline."
        )
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    if (files := record.pop("files", None)) and verify:
        verify_manifest(folder, files)
    index = read_json(folder / INDEX)
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
    signal, sampling, own = read_form(folder, index, parts, method)
    reader, autoencoder = parts.get("text_encoder"), parts.get("vae")
    text = None if reader is None else text_part(reader.network)
    network = Conditioned(parts["transformer"].network, text, frozen=signal.frozen).eval()
    tokens = folder / "tokenizer"
    model = DrawingModel(
        network,
        Tokenizer.load(tokens) if tokens.is_dir() else None,
        record=record,
        path=folder,
        process=process,
        target=target,
        signal=signal,
        sampling=sampling,
        reader=reader,
        autoencoder=autoencoder,
        scheduler={} if own else read_json(folder / "scheduler" / SCHEDULER),
    )
    check_parts(model)
    return model


def check_parts(model: DrawingModel) -> None:
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
