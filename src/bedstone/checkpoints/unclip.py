"""An unCLIP on disk: a pipeline of diffusion with a CLIP and a prior (Ramesh et al., 2022).

Beside the parts of every pipeline stand `clip/`, `prior/`, which makes the CLIP's embedding of an
image out of words, and `prior_scheduler/`, which says how that is sampled. `unclip.json` holds the
fingerprints of CLIP and prior: embeddings mean something to their CLIP alone, so that a mixed pair
is refused. `upsampler/`, where there is one, is a pipeline of its own that enlarges the images.

Shapes: B images, T tokens, E width of the CLIP's embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bedstone.checkpoints.enlarging import check_enlarges, enlarge
from bedstone.checkpoints.golden import warn_of_differences
from bedstone.checkpoints.hub import resolve
from bedstone.checkpoints.model import Model, part_fingerprint
from bedstone.checkpoints.model import load as load_part
from bedstone.checkpoints.pipeline import (
    DiffusionPipeline,
    check_parts,
    is_pipeline,
    load_pipeline,
    read_fields,
)
from bedstone.data.signals.enlarging import USUAL_NOISE
from bedstone.data.signals.signals import Condition, Prompts
from bedstone.diffusion.sample import (
    SampleControls,
    SampleInputs,
    SamplingConfig,
    candidate_seeds,
    generators_of,
    sample_many,
)
from bedstone.diffusion.schedulers import NAME as SCHEDULER
from bedstone.diffusion.schedulers import UNCLIP, process_from, published
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.generation.codes import write_components
from bedstone.models.interfaces import DualEncoder
from bedstone.models.unclip.autoregressive import CodePrior
from bedstone.models.unclip.network import (
    ConditionedPrior,
    StandardisedPrior,
    joint,
    read_words,
)
from bedstone.reading import is_plain, read_object
from bedstone.settings import number, one_of, whole

SPEC = "unclip.json"
UPSAMPLER = "upsampler"  # folder of the part that enlarges images
PRIORS = ("diffusion", "autoregressive", "none")
PRIOR_BATCH = 256  # embeddings that are sampled at a time
# How priors are trained and sampled, as unCLIP's were published; embeddings are standardised.
PRIOR_SCHEDULER = {
    "_class_name": UNCLIP,
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "clip_sample": True,
    "clip_sample_range": 5.0,
    "variance_type": "fixed_small_log",
}


@dataclass
class UnclipSampling(SamplingConfig):
    """`SamplingConfig` of the images, and how their embeddings are made of words.

    Attributes, besides those of `SamplingConfig`:
        prior: the model's own, diffusion or autoregressive; or none, which takes the embedding of
            the words itself.
        prior_steps: of a diffusion prior's sampling.
        prior_guidance: `null + guidance * (text - null)` of the prior; 1 = none.
        prior_samples: embeddings that are sampled, of which the one nearest to that of the words
            is kept.
        upsample: whether images are enlarged, where the model has a part that does.
        upsample_steps: of its sampling; 0 takes its own.
        upsample_noise: deviation of the noise in the images before, which hides their faults.
    """

    prior: str = one_of(*PRIORS, default="diffusion")
    prior_steps: int = whole(1, 1000, default=25)
    prior_guidance: float = number(0, default=1.0)
    prior_samples: int = whole(1, default=2)
    upsample: bool = True
    upsample_steps: int = whole(0, 1000, default=0)
    upsample_noise: float = number(0, 1, default=USUAL_NOISE)


@dataclass
class UnclipPipeline(DiffusionPipeline):
    """A denoiser that reads an image's embedding, with what makes one of words.

    Attributes, besides those of every `DiffusionPipeline`:
        sampling: how it draws where nothing else is given.
        clip: whose embeddings it reads; its tokenizer is the pipeline's.
        prior: makes embeddings of words; None where the words' own are taken.
        upsampler: enlarges the images; None where they stay as they are.
        drops: whether nothing in the place of words and embedding is learnt, which guidance leads
            away from.
        made_with: fingerprints of the CLIP and the prior.
        prior_scheduler: `scheduler_config.json` of the prior.
    """

    kind: ClassVar[str] = "BedstoneUnCLIP"
    sampling: UnclipSampling = field(default_factory=UnclipSampling)
    clip: Any = None
    prior: Model | None = None
    upsampler: DiffusionPipeline | None = None
    drops: bool = True
    made_with: dict[str, str] = field(default_factory=dict)
    prior_scheduler: dict[str, Any] = field(default_factory=lambda: dict(PRIOR_SCHEDULER))

    @property
    def parts(self) -> dict[str, Model]:
        found = {**super().parts, "clip": self.clip}
        return found if self.prior is None else {**found, "prior": self.prior}

    @property
    def how(self) -> str:
        sampling = self.sampling
        if sampling.prior == "none":
            return f"{super().how}, from the words' own embedding"
        best = f", the best of {sampling.prior_samples}" if sampling.prior_samples > 1 else ""
        kind = f"prior of {sampling.prior_steps} steps"
        kind = kind if sampling.prior == "diffusion" else f"{sampling.prior} prior"
        return f"{super().how}; {kind}, guidance {sampling.prior_guidance:g}{best}"

    def sample(  # type: ignore[override]  # its options are those of DiffusionPipeline
        self,
        seeds: Sequence[int],
        *,
        condition: SampleInputs = None,
        null: SampleInputs = None,
        sampling: UnclipSampling | None = None,
        **options: Any,
    ) -> Tensor:
        """As `DiffusionPipeline.sample`; a condition without embeddings gets the prior's.

        Raises:
            BedstoneError: guidance of a model that has learnt nothing without condition, or as
                `embeddings`.
        """
        sampling = sampling or self.sampling
        if sampling.guidance != 1 and not self.drops:
            raise BedstoneError(
                f"guidance: {sampling.guidance:g} was given; the model was trained without images "
                "of no words and no embedding (drop: 0 or drop_text: 0), which guidance leads away "
                "from. Take 1 = none."
            )
        if condition is None:
            condition = self.prompts.condition([""]).spread(len(seeds))
        if isinstance(condition, Condition) and condition.embedding is None:
            found = self.embeddings(seeds, condition, sampling)
            condition = replace(condition, embedding=found.cpu())
        if null is None:
            null = self.prompts.condition([""])
        if isinstance(null, Condition) and null.embedding is None:
            null = replace(null, embedding=torch.zeros(1, self.config.embedding_width))
        return super().sample(seeds, condition=condition, null=null, sampling=sampling, **options)

    @torch.no_grad()
    def embeddings(
        self, seeds: Sequence[int], condition: Condition, sampling: UnclipSampling | None = None
    ) -> Tensor:
        """Embeddings (B, E) of images at length sqrt(E) that the prior makes of texts, one for
        each seed; of several the one nearest to the words (Ramesh et al., 2022, section 2.2).

        Raises:
            BedstoneError: there is no prior, one of another kind, or one without statistics.
        """
        sampling = sampling or self.sampling
        moved, clip = condition.to(self.device), self.clip.network.to(self.device)
        assert moved.ids is not None and moved.keep is not None
        words, _ = read_words(clip, moved.ids, moved.keep)
        if sampling.prior == "none":
            return words
        if self.prior is None:
            raise BedstoneError(
                f"prior: {sampling.prior} was asked for, and {self.path or 'the model'} has none. "
                "Take prior none, the words' own embedding, or train one with it."
            )
        if sampling.prior != (kind := self.prior.config.kind):
            raise BedstoneError(
                f"prior: {sampling.prior} was asked for, and that of {self.path or 'the model'} is "
                f"{kind}. Take {kind}, or none."
            )
        count = sampling.prior_samples
        every = [candidate_seeds(seed, count + 1)[1:] for seed in seeds]  # the first is the image's
        drawn = torch.stack(
            [
                sample_prior(
                    self.prior.network.to(self.device),
                    clip,
                    [own[number] for own in every],
                    condition,
                    self.prompts.condition([""]),
                    self.prior_scheduler,
                    sampling.prior_steps,
                    sampling.prior_guidance,
                )
                for number in range(count)
            ],
            1,
        )
        best = (drawn * words[:, None]).sum(-1).argmax(1)
        return drawn[torch.arange(len(drawn)), best]

    def enlarged(self, images: Tensor, seeds: Sequence[int], sampling: Any = None) -> Tensor:
        """Images (B, C, h, w) that it sampled from these seeds as its up-sampler enlarges them,
        (B, C, H, W); as they are without one, or where `sampling` says so."""
        sampling = sampling or self.sampling
        if self.upsampler is None or not sampling.upsample:
            return images
        own = [candidate_seeds(seed, 2)[1] for seed in seeds]  # no noise is drawn a second time
        steps, noise = sampling.upsample_steps, sampling.upsample_noise
        self.upsampler.network.to(self.device)
        return enlarge(self.upsampler, images, own, noise=noise, steps=steps)

    def image_embeddings(self, vectors: Any) -> Tensor:
        """A CLIP's vectors (B, E) of images as the denoiser reads them, on its device."""
        return joint(torch.as_tensor(vectors).to(self.device))

    def write_network(self, folder: Path) -> None:
        super().write_network(folder)
        (folder / "prior_scheduler").mkdir()
        write_json(folder / "prior_scheduler" / SCHEDULER, self.prior_scheduler)
        if self.upsampler is not None:
            (folder / UPSAMPLER).mkdir()
            self.upsampler.write_network(folder / UPSAMPLER)
        write_json(folder / SPEC, {"drops": self.drops, "made_with": self.made_with})


def sample_prior(
    prior: Any,
    clip: Any,
    seeds: Sequence[int],
    condition: Condition,
    null: Condition,
    scheduler: dict[str, Any],
    steps: int,
    guidance: float = 1.0,
) -> Tensor:
    """Embeddings (B, E) at length sqrt(E) that a prior makes of texts, one for each seed.

    Args:
        prior: a `Prior` or a `CodePrior`.
        clip: the network that reads its words.
        condition: texts, of B rows.
        null: the empty text, of one row.
        scheduler: `scheduler_config.json`; it and `steps` are of a diffusion prior.

    Raises:
        BedstoneError: the prior has no statistics, or the scheduler isn't known.
    """
    prior.check()
    if isinstance(prior, CodePrior):
        return joint(prior.restored(written(prior, clip, seeds, condition, null, guidance)))
    process, aim = process_from(scheduler)
    network = ConditionedPrior(prior, clip).eval()
    parts = sample_many(
        network,
        process,
        aim,
        (prior.config.embed,),
        SamplingConfig(method="ddpm", steps=steps, guidance=guidance),
        seeds,
        condition=condition,
        null=null,
        controls=SampleControls(way=published(scheduler)),
        batch=PRIOR_BATCH,
    )
    return joint(prior.restored(torch.cat(list(parts)).float()))


def written(
    prior: CodePrior,
    clip: Any,
    seeds: Sequence[int],
    condition: Condition,
    null: Condition,
    guidance: float,
) -> Tensor:
    """Standardised embeddings (B, E) that an autoregressive prior writes; as `sample_prior`."""
    prior, found = prior.eval(), []
    for rows in range(0, len(seeds), PRIOR_BATCH):
        chances = generators_of(seeds[rows : rows + PRIOR_BATCH])
        # a bucket of the better half, which all draw from alike (Ramesh et al., 2022, section 2.2)
        half = prior.config.fits // 2
        fits = [int(torch.randint(half, prior.config.fits, (), generator=one)) for one in chances]
        texts = condition.pick(slice(rows, rows + PRIOR_BATCH)), null.spread(len(chances))
        given = [texts_prefix(prior, clip, text, fits) for text in texts]
        codes = write_components(prior, given[0], given[1], guidance, chances)
        found.append(prior.embeddings_of(codes))
    return torch.cat(found)


@torch.no_grad()
def texts_prefix(prior: CodePrior, clip: Any, texts: Condition, fits: Sequence[int]) -> Tensor:
    """What an autoregressive prior writes after, (B, T, D), of texts and buckets of their fit."""
    device = prior.mean.device
    moved = texts.to(device)
    assert moved.ids is not None and moved.keep is not None
    words, states = read_words(clip, moved.ids, moved.keep)
    return prior.prefix(words, states, moved.keep, torch.tensor(fits, device=device))


def is_unclip(folder: Path) -> bool:
    """Whether a folder holds an unCLIP."""
    return is_plain(folder / SPEC)


def load_unclip(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    verify: bool = True,
) -> UnclipPipeline:
    """Opens an unCLIP; arguments as `checkpoints.model.load`. Other parts
    than those of every pipeline are in fp32.

    Raises:
        BedstoneError: it isn't there, isn't whole, or its parts aren't those it was trained with.
    """
    folder = resolve(path, revision=revision)
    fields = read_fields(folder, UnclipSampling, dtype=dtype, device=device, verify=verify)
    form = read_object(folder / SPEC)
    if not isinstance(form.get("drops"), bool) or not isinstance(form.get("made_with"), dict):
        raise BedstoneError(
            f"{folder / SPEC}: expected an object with drops and made_with; it is damaged. Fetch "
            "or save the model again."
        )
    parts = {
        name: load_part(folder / name, dtype=torch.float32, device=device, verify=verify)
        for name in ("clip", "prior")
        if (folder / name / "config.json").is_file()
    }
    if "clip" not in parts:
        raise BedstoneError(f"{folder}: is an unCLIP without clip/. Fetch it again.")
    scheduler = read_object(folder / "prior_scheduler" / SCHEDULER)
    upsampler = None
    if is_pipeline(folder / UPSAMPLER):
        upsampler = load_pipeline(
            folder / UPSAMPLER, dtype=torch.float32, device=device, verify=verify
        )
    model = UnclipPipeline(
        **fields,
        clip=parts["clip"],
        prior=parts.get("prior"),
        upsampler=upsampler,
        drops=form["drops"],
        made_with=form["made_with"],
        prior_scheduler=scheduler,
    )
    check_unclip(model)
    if verify:
        warn_of_differences(folder, model)
    return model


def check_unclip(model: UnclipPipeline) -> None:
    """Raises BedstoneError where parts don't fit one another, or are others than in training."""
    where = f"{model.path or 'this model'}"
    check_parts(model)
    check_clip(model.clip, f"{where}: clip/")
    width = model.clip.config.embed
    if model.config.embedding_width != width:
        raise BedstoneError(
            f"{where}: transformer/ reads embeddings of width {model.config.embedding_width}; "
            f"clip/ makes some of {width}. Take the CLIP that it was trained with."
        )
    if model.upsampler is not None:
        check_enlarges(model.upsampler, tuple(model.signal.shape), f"{where}: {UPSAMPLER}/")
    published(model.prior_scheduler)  # which is refused where it isn't known
    if model.prior is not None:
        check_prior(model.prior, model.clip, f"{where}: prior/")
        if model.sampling.prior not in ("none", kind := model.prior.config.kind):
            raise BedstoneError(
                f"{where}: sampling.prior is {model.sampling.prior}, and prior/ is {kind}. Say "
                f"sampling.prior: {kind}, or none."
            )
    for name, part in (("clip", model.clip), ("prior", model.prior)):
        known = model.made_with.get(name)
        if part is not None and known != (now := part_fingerprint(part)):
            raise BedstoneError(
                f"{where}: {name}/ has the fingerprint {now[:12]}, and the model was made with "
                f"{str(known)[:12]}. Put the {name} back that it was made with, or train anew with "
                "this one."
            )
    if model.prior is None and "prior" in model.made_with:
        raise BedstoneError(f"{where}: is an unCLIP without prior/. Fetch it again.")


def check_clip(model: Any, where: str) -> None:
    """Raises BedstoneError unless a model is a CLIP whose embeddings an unCLIP can read."""
    network: Any = model.network
    if not isinstance(network, DualEncoder) or not getattr(network, "text", None):
        raise BedstoneError(
            f"{where} is a {model.config.layout}, which doesn't compare images with words; "
            "expected a CLIP."
        )
    if not model.network.text.causal:
        raise BedstoneError(
            f"{where} is a {model.config.layout}, whose words see those behind them; expected a "
            "CLIP of the layout clip or clip_resnet."
        )
    if model.tokenizer is None or model.processor is None:
        lacks = "tokenizer" if model.tokenizer is None else "preprocessor_config.json"
        raise BedstoneError(
            f"{where} has no {lacks}, so nothing says how it reads. Take a CLIP with one."
        )
    Prompts(model.tokenizer, model.config.context)


def check_prior(model: Model, clip: Any, where: str) -> None:
    """Raises BedstoneError unless a model is a prior that makes embeddings of a CLIP's width."""
    network = model.network
    if not isinstance(network, StandardisedPrior):
        raise BedstoneError(
            f"{where} is a {model.config.layout}; expected a prior_transformer or an "
            "autoregressive_prior, as `bedstone pretrain` makes by method: prior."
        )
    config, width = model.config, clip.config.embed
    if {config.embed, config.words_embed, config.out_embed} != {width}:
        raise BedstoneError(
            f"{where} makes embeddings of width {config.out_embed} of words' of "
            f"{config.words_embed}; the CLIP has {width}. Take the prior that was trained with it."
        )
    try:
        network.check()
    except BedstoneError as error:
        raise BedstoneError(f"{where}: {error}") from None
    known = (model.record.get("data") or {}).get("clip")
    if known is not None and known != (now := part_fingerprint(clip)):
        raise BedstoneError(
            f"{where} was trained with a CLIP of the fingerprint {str(known)[:12]}; this one has "
            f"{now[:12]}. Take the CLIP that it was trained with, or train a prior with this one."
        )
