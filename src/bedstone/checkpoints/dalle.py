"""A DALL-E on disk: a folder of parts that know each other.

`transformer/` writes codes after words, `vae/` makes images of codes and codes of images, `clip/`,
where there is one, says which of several images fits its words best; `tokenizer/` reads the words.
`dalle.json` says how it draws, and holds the fingerprints of the parts that it was trained with: to
another autoencoder the same codes mean other images, so a mixed pair is refused.

Shapes: B images, C channels, H x W pixels, h x w codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.golden import warn_of_differences
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.model import Model, part_fingerprint
from bedstone.checkpoints.model import load as load_part
from bedstone.checkpoints.pipeline import INDEX, MediaPipeline, SignalSpec
from bedstone.checkpoints.side_files import read_record
from bedstone.data.signals.signals import Condition, Prompts
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.diffusion.sample import (
    BATCH,
    Progress,
    SampleInputs,
    SamplingStep,
    generators_of,
)
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.generation.autoregress import ready
from bedstone.generation.codes import CodeSampling, fill_codes, passes_of, write_codes
from bedstone.models.interfaces import DualEncoder, ImageCoder
from bedstone.nn.fast.pick import prepared
from bedstone.reading import is_plain, read_object
from bedstone.runtime import Precision
from bedstone.settings import from_mapping

SPEC = "dalle.json"
CLASS = "BedstoneDalle"
NOTHING = ""  # the prompt that is none


class CodePrompts(Prompts):
    """`Prompts` whose empty text is the null prompt: padding alone, as it is trained."""

    def condition(self, texts: Sequence[str]) -> Condition:
        found = super().condition(texts)
        assert found.keep is not None
        said = torch.tensor([text != NOTHING for text in texts])
        return Condition(ids=found.ids, keep=found.keep & said[:, None])


@dataclass
class DallePipeline(MediaPipeline):
    """A `models.dalle.network.Dalle` with all that is needed to draw.

    Attributes, besides those of every model that draws:
        sampling: how codes are drawn where nothing else is given.
        autoencoder: whose codes it writes.
        clip: compares images with words; None where it can't tell which of several is best.
        drops: whether it has learnt the null prompt, which guidance leads away from.
        made_with: fingerprints of the autoencoder and the CLIP.
    """

    sampling: CodeSampling = field(default_factory=CodeSampling)
    autoencoder: Any = None
    clip: Model | None = None
    drops: bool = True
    made_with: dict[str, str] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Model]:
        found = {"transformer": Model(self.network), "vae": self.autoencoder}
        return found if self.clip is None else {**found, "clip": self.clip}

    @property
    def prompts(self) -> CodePrompts:
        assert self.tokenizer is not None
        return CodePrompts(self.tokenizer, self.signal.context)

    @property
    def how(self) -> str:
        sampling, config = self.sampling, self.config
        steps = f"{passes_of(config, sampling)} steps" if self.masked else "code by code"
        best = f", the best of {sampling.candidates}" if sampling.candidates > 1 else ""
        return f"{config.order} order, {steps}, guidance {sampling.guidance:g}{best}"

    @property
    def masked(self) -> bool:
        """Whether several codes are drawn at once."""
        return bool(self.config.order != "raster")

    def prepared(self, precision: Precision) -> dict[str, Any]:
        if self.masked:
            return {"network": prepared(self.network, precision)}
        return {"network": ready(self.network, precision)}

    def sample(  # type: ignore[override]  # its options are named
        self,
        seeds: Sequence[int],
        *,
        condition: SampleInputs = None,
        null: SampleInputs = None,
        sampling: CodeSampling | None = None,
        network: Any = None,
        batch: int = BATCH,
        start: Tensor | None = None,
        mask: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) fp32 on the CPU, -1 to 1, one for each seed: a `Generator`.

        Arguments and errors as for `codes`.
        """
        return self.decode(
            self.codes(
                seeds,
                condition=condition,
                null=null,
                sampling=sampling,
                network=network,
                batch=batch,
                start=start,
                mask=mask,
                progress=progress,
            )
        )

    def codes(
        self,
        seeds: Sequence[int],
        *,
        condition: SampleInputs = None,
        null: SampleInputs = None,
        sampling: CodeSampling | None = None,
        network: Any = None,
        batch: int = BATCH,
        start: Tensor | None = None,
        mask: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """The codes (B, h, w) of images, one for each seed.

        Args:
            condition: what to draw, of B rows; None draws without words.
            null: one row of what not to draw; the null prompt where None.
            sampling: the pipeline's own where None.
            network: what `prepared` gave; the network itself for None.
            batch: images drawn at a time.
            start: codes (1 or B, h, w) of images of which a part stays.
            mask: (h, w) bool, True where codes are drawn anew.

        Raises:
            BedstoneError: guidance of a model that has learnt no null prompt; a mask that this
                order can't fill.
        """
        sampling = sampling or self.sampling
        if sampling.guidance != 1 and not self.drops:
            raise BedstoneError(
                f"guidance: {sampling.guidance:g} was given; the model was trained without the "
                "null prompt (drop: 0), which guidance leads away from. Take 1 = none."
            )
        config, rows = self.config, len(seeds)
        null = self.prompts.condition([NOTHING]) if null is None else null
        assert isinstance(null, Condition)
        condition = null.spread(rows) if condition is None else condition
        text, nothing = self._tokens(condition), self._tokens(null)
        known = self._known(start, mask, rows)
        network = network or self.network
        found = []
        for first in range(0, rows, batch):
            part = slice(first, first + batch)
            chances = generators_of(seeds[part])

            def report(
                step: int, steps: int, first: int = first, count: int = len(chances)
            ) -> None:
                if progress is not None:
                    done, empty = (first + count * step / steps) / rows, torch.empty(0)
                    progress(SamplingStep(done, first, step, steps, empty, empty))

            if self.masked:
                codes = fill_codes(
                    network, text[part], nothing, known[part], sampling, chances, progress=report
                )
            else:
                codes = write_codes(
                    network,
                    text[part],
                    nothing,
                    config.places,
                    sampling,
                    chances,
                    known=known[part],
                    progress=report,
                )
            found.append(codes.cpu())
        return torch.cat(found).unflatten(1, tuple(config.grid))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, C, H, W) fp32 on the CPU of codes (B, h, w); one by one, so that none
        depends on another."""
        network = self.autoencoder.network
        device = next(network.parameters()).device
        return torch.cat([network.decode(each.to(device)).float().cpu() for each in codes.split(1)])

    def _tokens(self, condition: Any) -> Tensor:
        moved = condition.to(self.device)
        found: Tensor = self.network.tokens(moved.ids, moved.keep)
        return found

    def _known(self, start: Tensor | None, mask: Tensor | None, rows: int) -> Tensor:
        """What `write_codes` or `fill_codes` is to know of images."""
        places = self.config.places
        drawn = torch.ones(places, dtype=torch.bool) if mask is None else mask.flatten().cpu()
        if start is None:
            whole = torch.full((rows, places), self.config.mask, device=self.device)
            return whole if self.masked else whole[:, :0]
        codes = start.reshape(len(start), -1).expand(rows, -1).to(self.device)
        if len(drawn) != places or codes.shape[1] != places:
            raise BedstoneError(
                f"mask: has {len(drawn)} places, the image {codes.shape[1]} codes; expected "
                f"{places}, {' x '.join(map(str, self.config.grid))}."
            )
        if not drawn.any() or drawn.all():
            covers = "everything: leave the image out" if drawn.all() else "nothing: enlarge it"
            raise BedstoneError(f"mask: covers {covers}.")
        if self.masked:
            return codes.masked_fill(drawn.to(self.device), self.config.mask)
        first = int(drawn.nonzero()[0])
        if not drawn[first:].all():
            raise BedstoneError(
                "mask: leaves codes that stand behind drawn ones, and the model writes in raster "
                "order: from left to right, row by row. Mask what is below, or take a model whose "
                "order is masked or scale."
            )
        return codes[:, :first]

    def write_network(self, folder: Path) -> None:
        """Writes each part into its own folder, and what joins them."""
        write_json(folder / INDEX, {"_class_name": CLASS, **self.write_parts(folder)})
        form = {"signal": asdict(self.signal), "sampling": asdict(self.sampling)}
        write_json(folder / SPEC, {**form, "drops": self.drops, "made_with": self.made_with})


def is_dalle(folder: Path) -> bool:
    """Whether a folder holds a DALL-E."""
    return is_plain(folder / SPEC)


def load_dalle(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    verify: bool = True,
) -> DallePipeline:
    """Opens a DALL-E; arguments as `checkpoints.model.load`. Other parts than the
    transformer are in fp32.

    Raises:
        BedstoneError: it isn't there, isn't whole, or its parts aren't those it was trained with.
    """
    folder = resolve(path, revision=revision)
    record = read_record(folder, verify=verify)
    read_object(folder / INDEX)
    form = read_object(folder / SPEC)
    kinds = {"signal": dict, "sampling": dict, "drops": bool, "made_with": dict}
    if not all(isinstance(form.get(name), kind) for name, kind in kinds.items()):
        raise BedstoneError(
            f"{folder / SPEC}: expected an object with {', '.join(kinds)}; it is damaged. Fetch or "
            "save the model again."
        )
    parts = {}
    for name, kind in (("transformer", dtype), ("vae", torch.float32), ("clip", torch.float32)):
        if (folder / name / "config.json").is_file():
            parts[name] = load_part(folder / name, dtype=kind, device=device, verify=verify)
    if missing := [name for name in ("transformer", "vae") if name not in parts]:
        raise BedstoneError(f"{folder}: is a DALL-E without {missing[0]}/. Fetch it again.")
    try:
        signal = from_mapping(SignalSpec, form["signal"], SPEC, "signal.")
        sampling = from_mapping(CodeSampling, form["sampling"], SPEC, "sampling.")
    except BedstoneError as error:
        raise BedstoneError(f"{folder / SPEC}: {str(error).removeprefix(f'{SPEC}: ')}") from None
    model = DallePipeline(
        parts["transformer"].network.eval(),
        Tokenizer.load(folder / "tokenizer"),
        record=record,
        path=folder,
        signal=signal,
        sampling=sampling,
        autoencoder=parts["vae"],
        clip=parts.get("clip"),
        drops=form["drops"],
        made_with=form["made_with"],
    )
    check_dalle(model)
    if verify:
        warn_of_differences(folder, model)
    return model


PARTS = {"autoencoder": "vae", "clip": "clip"}  # folders of parts, by what `made_with` names them


def check_dalle(model: DallePipeline) -> None:
    """Raises BedstoneError where parts don't fit one another, or are others than in training."""
    config, where = model.config, model.path or "this model"
    if config.layout != "dalle":
        raise BedstoneError(f"{where}: transformer/ is a {config.layout}; expected a dalle.")
    check_coder(model.autoencoder, f"{where}: vae/")
    coder, signal = model.autoencoder, model.signal
    grid = tuple(side // coder.config.shrink for side in signal.shape[1:])
    pairs: Mapping[str, tuple[Any, Any]] = {
        "codes": (config.codes, coder.network.codebook_size),
        "grid": (tuple(config.grid), grid),
        "channels": (signal.shape[0], coder.config.channels),
    }
    for name, (has, makes) in pairs.items():
        if has != makes:
            raise BedstoneError(
                f"{where}: transformer/ was trained for {name} {has}; vae/ has {makes}. Take the "
                "autoencoder that it was trained with."
            )
    if model.tokenizer is not None and model.tokenizer.vocab_size != config.vocab_size:
        raise BedstoneError(
            f"{where}: the tokenizer has {model.tokenizer.vocab_size:,} words, the network "
            f"{config.vocab_size:,}. Take the tokenizer that it was trained with."
        )
    if model.clip is not None and not isinstance(model.clip.network, DualEncoder):
        raise BedstoneError(f"{where}: clip/ is a {model.clip.config.layout}; expected a CLIP.")
    for name, part in (("autoencoder", coder), ("clip", model.clip)):
        known = model.made_with.get(name)
        if part is not None and known != (now := part_fingerprint(part)):
            raise BedstoneError(
                f"{where}: {PARTS[name]}/ has the fingerprint {now[:12]}, and the model was "
                f"trained with {str(known)[:12]}. Put the {name} back that it was trained with, or "
                "train anew with this one."
            )


def check_coder(model: Model, where: str) -> None:
    """Raises BedstoneError unless a model makes ids of images."""
    if not isinstance(model.network, ImageCoder):
        raise BedstoneError(
            f"{where} is a {model.config.layout}, which makes no codes of images; expected a "
            "fsq_autoencoder, vq_model or discrete_vae, as `bedstone pretrain codes-scenes` makes."
        )
