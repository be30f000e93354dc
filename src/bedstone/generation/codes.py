"""Writing the codes of an image after a text: one by one, or several at once.

Guidance has two rows an image, of which the second has the null prompt: logits are `null + scale *
(text - null)`, so that 1 is none and 0 is the null prompt's. Each image has a generator of its own.

A prior of unCLIP writes the codes of an embedding's components in the same way.

Shapes: B images, T text places, N codes of an image, K codes there are, D width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import Decoder, decode, prefill
from bedstone.generation.sampling import Sampling, draw
from bedstone.runtime import check_finite
from bedstone.settings import Settings, number, share, whole

Progress = Callable[[int, int], None]  # is handed the steps done, and all


@dataclass
class CodeSampling(Settings):
    """How codes are drawn.

    Attributes:
        guidance: how far to go from what is likely without the text towards what is likely with it:
            1 = none.
        temperature: below 1 prefers likely codes; 0 always takes the likeliest.
        top_k: draw from so many likeliest codes; 0 from all.
        top_p: draw from the fewest likeliest codes that reach this probability.
        steps: of masked order, in each of which the surest codes are kept.
        noise: of masked order: Gumbel noise on how sure a code is, which falls to 0 over the steps.
        candidates: images that are drawn for each one, of which a CLIP keeps the best.
    """

    section: ClassVar[str] = "sampling."
    guidance: float = number(0, default=3.0)
    temperature: float = number(0, default=1.0)
    top_k: int = whole(0, default=0)
    top_p: float = share(default=1.0)
    steps: int = whole(1, default=10)
    noise: float = number(0, default=4.5)
    candidates: int = whole(1, default=1)

    @property
    def choice(self) -> Sampling:
        """How one code is chosen."""
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


def guided(logits: Tensor, null: Tensor, scale: float) -> Tensor:
    """`null + scale * (logits - null)`, in fp32."""
    null = null.float()
    return null + scale * (logits.float() - null)


@torch.inference_mode()
def write_codes(
    network: Decoder,
    text: Tensor,
    null: Tensor,
    places: int,
    sampling: CodeSampling,
    generators: Sequence[torch.Generator],
    *,
    known: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The codes of images in raster order, (B, N).

    Args:
        network: a decoder whose logits are of codes, such as a `models.dalle.network.Dalle`, or
            what `generation.autoregress.ready` made of it.
        text: tokens of the prompts, (B, T).
        null: those of the null prompt, (1, T).
        places: N.
        generators: one an image.
        known: the first codes of each image, (B, n), which stay.
    """
    rows, scale = len(text), sampling.guidance
    alone = scale in (0, 1)
    prompts = text if scale == 1 else null.expand_as(text)
    prompts = prompts if alone else torch.cat((text, prompts))
    known = text[:, :0] if known is None else known
    ids = torch.cat((prompts, known.repeat(len(prompts) // rows, 1)), 1)
    cache = network.new_cache(len(ids), text.shape[1] + places)
    lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
    logits = prefill(network, ids, lengths, cache)
    choice, found = sampling.choice, [known]
    empty: list[list[int]] = [[] for _ in range(rows)]  # nothing is penalised
    for place in range(known.shape[1], places):
        if not alone:
            logits = guided(logits[:rows], logits[rows:], scale)
        chosen = choice.choose(logits, empty, generators)
        found.append(chosen[:, None])
        if progress is not None:
            progress(place + 1, places)
        if place + 1 < places:
            logits = decode(network, chosen.repeat(len(ids) // rows), cache)
    return torch.cat(found, 1)


@torch.no_grad()
def write_components(
    prior: Any,
    prefix: Tensor,
    null: Tensor,
    guidance: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The codes of embeddings' components, (B, N), the largest component first.

    Args:
        prior: a `models.unclip.autoregressive.CodePrior`.
        prefix: what codes are written after, (B, T, D).
        null: that of the empty text, (B, T, D).
        guidance: as of `CodeSampling`.
        generators: one an embedding.
    """
    rows, alone = len(prefix), guidance in (0, 1)
    read = prefix if guidance == 1 else null if alone else torch.cat((prefix, null))
    cache, found = prior.new_cache(len(read)), []
    for place in range(prior.config.components):
        logits = prior.head(prior.core.states(read, cache=cache)[:, -1]).float()
        if not alone:
            logits = guided(logits[:rows], logits[rows:], guidance)
        check_finite(logits.amax(-1), "the prior's logits")
        found.append(draw(logits, generators)[:, None])
        read = prior.as_tokens(found[-1], place).repeat(1 if alone else 2, 1)
    return torch.cat(found, 1)


@torch.inference_mode()
def fill_codes(
    network: Any,
    text: Tensor,
    null: Tensor,
    codes: Tensor,
    sampling: CodeSampling,
    generators: Sequence[torch.Generator],
    *,
    progress: Progress | None = None,
) -> Tensor:
    """The codes of images of which some are masked, (B, N), several at a time.

    In masked order all masked codes are drawn in each step, and of these the surest are kept: as
    many as a cosine says (MaskGIT, Chang et al., 2022, section 3.2). Without noise on how sure they
    are, the dullest codes come first and an image stays empty. In the order of scales a step draws
    the codes of one scale, and keeps them. Images are computed one by one, so that none depends
    on what is drawn beside it.

    Args:
        network: a `models.dalle.network.Dalle` of order masked or scale, or its form for inference.
        text, null, generators: as for `write_codes`.
        codes: (B, N), `config.mask` where a code is to be drawn.

    Raises:
        BedstoneError: the temperature is 0, at which this gives empty images.
    """
    if sampling.temperature == 0:
        raise BedstoneError(
            "temperature: 0 was given; where several codes are drawn at once, the likeliest of an "
            "image that isn't there yet are those of an empty one. Take 0.5 to 1."
        )
    done = []
    for row, generator in enumerate(generators):

        def report(step: int, steps: int, row: int = row) -> None:
            if progress is not None:
                progress(row * steps + step, len(generators) * steps)

        one = codes[row], text[row : row + 1], null
        way = _by_scale if network.config.order == "scale" else _by_sureness
        done.append(way(network, *one, sampling, generator, report))
    return torch.stack(done)


def passes_of(config: Any, sampling: CodeSampling) -> int:
    """Steps in which `fill_codes` draws a whole image."""
    if config.order == "scale":
        return int(config.scales.max()) + 1
    return int(min(sampling.steps, config.places))


def _by_scale(
    network: Any,
    codes: Tensor,
    text: Tensor,
    null: Tensor,
    sampling: CodeSampling,
    generator: torch.Generator,
    report: Progress,
) -> Tensor:
    """One image's codes, (N,), scale by scale; those that are known stay."""
    hidden, scales = codes == network.config.mask, network.config.scales.to(codes.device)
    wanted = scales[hidden].unique().tolist()
    prompts = _prompts(text, null, sampling.guidance)
    for step, scale in enumerate(wanted, 1):
        drawn, _ = _drawn(network, codes, prompts, sampling.guidance, sampling.choice, generator)
        codes = torch.where(hidden & (scales == scale), drawn, codes)
        report(step, len(wanted))
    return codes


def _prompts(text: Tensor, null: Tensor, guidance: float) -> Tensor:
    """What one image is drawn from: its text, the null prompt, or both, a row each."""
    if guidance in (0, 1):
        return text if guidance == 1 else null
    return torch.cat((text, null))


def _drawn(
    network: Any,
    codes: Tensor,
    prompts: Tensor,
    guidance: float,
    choice: Sampling,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A code for each place of one image, (N,), and the logits that they are drawn by, (N, K)."""
    places = len(codes)
    ids = torch.cat((prompts, codes.expand(len(prompts), -1)), 1)
    logits = network.head(network.states(ids)[:, -places:]).float()
    check_finite(logits.amax(-1), "the network's logits")
    both = logits[0] if len(prompts) == 1 else guided(logits[0], logits[1], guidance)
    warped = choice.warp(both, [[] for _ in range(places)])
    return draw(warped, [generator] * places), warped


def _by_sureness(
    network: Any,
    codes: Tensor,
    text: Tensor,
    null: Tensor,
    sampling: CodeSampling,
    generator: torch.Generator,
    report: Progress,
) -> Tensor:
    """One image's codes, (N,), the surest first."""
    mask, places, scale = network.config.mask, len(codes), sampling.guidance
    choice, count = sampling.choice, int((codes == mask).sum())
    prompts = _prompts(text, null, scale)
    for step in range(1, (steps := min(sampling.steps, count)) + 1):
        now = scale if scale <= 1 else 1 + (scale - 1) * step / steps  # rises with what is known
        drawn, warped = _drawn(network, codes, prompts, now, choice, generator)
        hidden = codes == mask
        sure = warped.log_softmax(-1).gather(-1, drawn[:, None])[:, 0].double().cpu()
        chance = torch.rand(places, dtype=torch.float64, generator=generator)
        gumbel = -torch.log(-torch.log(chance.clamp(1e-12, 1 - 1e-12)))
        sure = sure + sampling.noise * (1 - step / steps) * gumbel
        sure[~hidden.cpu()] = math.inf
        left = min(int(count * math.cos(math.pi / 2 * step / steps)), int(hidden.sum()) - 1)
        codes = torch.where(hidden, drawn, codes)
        if step < steps and left:
            codes[sure.topk(left, largest=False).indices.to(codes.device)] = mask
        report(step, steps)
    return codes
