"""Writing codes: guidance, choice, what is known, and that no image depends on its neighbours."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import ready
from bedstone.generation.codes import CodeSampling, fill_codes, guided, passes_of, write_codes
from bedstone.models.dalle.network import Dalle, DalleConfig, make
from bedstone.nn.fast import kernels
from bedstone.runtime import Precision
from networks import randomise

PLACES, CODES = 6, 9
FP32 = Precision(torch.device("cpu"), torch.float32)


def network_of(order: str) -> Dalle:
    shape = {"width": 16, "layers": 2, "heads": 2, "vocab_size": 11, "text_tokens": 4}
    network = make(DalleConfig(**shape, codes=CODES, grid=(2, 3), order=order))
    randomise(network)
    with torch.no_grad():  # so that much depends on the text
        for weight in network.parameters():
            weight.mul_(5.0 if weight.dim() == 2 else 1.0)
    return network.eval()


@pytest.fixture(scope="module", params=["torch", "engine"])
def raster(request: pytest.FixtureRequest) -> Any:
    """(what decodes, the network)"""
    network = network_of("raster")
    if request.param == "torch":
        return network, network
    if kernels.library() is None:
        pytest.skip("the engine doesn't run here")
    return ready(network, FP32), network


@pytest.fixture(scope="module")
def masked() -> Dalle:
    return network_of("masked")


def texts(network: Dalle, rows: int = 4) -> tuple[Tensor, Tensor]:
    ids = torch.arange(3 * rows).view(rows, 3) % 11
    keep = torch.ones_like(ids, dtype=torch.bool)
    return network.tokens(ids, keep), network.tokens(ids[:1], ~keep[:1])


def chances(seeds: Any) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def whole(network: Dalle, rows: int) -> Tensor:
    return torch.full((rows, PLACES), network.config.mask)


def test_guidance_of_one_is_none_and_of_zero_the_null_prompt(raster: Any) -> None:
    decoder, network = raster
    text, null = texts(network)
    how = CodeSampling(guidance=1.0)
    plain = write_codes(decoder, text, null, PLACES, how, chances(range(4)))
    other = write_codes(decoder, text, text[:1], PLACES, how, chances(range(4)))
    assert torch.equal(plain, other) and plain.shape == (4, PLACES)  # whatever the null prompt is
    free = replace(how, guidance=0.0)
    nothing = write_codes(decoder, text, null, PLACES, free, chances(range(4)))
    drawn = write_codes(decoder, null.expand(4, -1), null, PLACES, how, chances(range(4)))
    assert torch.equal(nothing, drawn) and not torch.equal(nothing, plain)


def test_guidance_goes_away_from_the_null_prompt(raster: Any) -> None:
    decoder, network = raster
    text, null = texts(network)
    how = CodeSampling(guidance=2.5, temperature=0.0)
    found = write_codes(decoder, text, null, PLACES, how, chances(range(4)))
    for row in range(4):
        codes = found[row : row + 1]
        with torch.inference_mode():
            both = [
                network.head(network.states(torch.cat((each, codes), 1))[:, 3:-1])
                for each in (text[row : row + 1], null)
            ]
        assert torch.equal(guided(*both, 2.5).argmax(-1), codes)
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    assert torch.equal(guided(one, other, 0.0), other)
    assert guided(one, other, 3.0).tolist() == [[-3.0, 4.0]]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_batch(raster: Any, guidance: float) -> None:
    decoder, network = raster
    text, null = texts(network)
    how = CodeSampling(guidance=guidance, top_k=5, top_p=0.9)
    together = write_codes(decoder, text, null, PLACES, how, chances([7, 8, 9, 10]))
    for row, seed in enumerate([7, 8, 9, 10]):
        alone = write_codes(decoder, text[row : row + 1], null, PLACES, how, chances([seed]))
        assert torch.equal(alone[0], together[row])


def test_what_is_known_stays_and_the_rest_follows_from_it(raster: Any) -> None:
    decoder, network = raster
    text, null = texts(network)
    how = CodeSampling(guidance=2.0, temperature=0.0)
    first = write_codes(decoder, text, null, PLACES, how, chances(range(4)))
    again = write_codes(
        decoder, text, null, PLACES, how, chances(range(4)), known=first[:, : PLACES // 2]
    )
    assert torch.equal(again, first)
    other = (first[:, :3] + 1) % CODES
    found = write_codes(decoder, text, null, PLACES, how, chances(range(4)), known=other)
    assert torch.equal(found[:, :3], other) and not torch.equal(found[:, 3:], first[:, 3:])


def test_choice(raster: Any) -> None:
    decoder, network = raster
    text, null = texts(network)
    cold = CodeSampling(guidance=1.0, temperature=0.0)
    likeliest = write_codes(decoder, text, null, PLACES, cold, chances(range(4)))
    for other in (replace(cold, temperature=1.0, top_k=1), replace(cold, temperature=1e-4)):
        assert torch.equal(
            write_codes(decoder, text, null, PLACES, other, chances(range(4))), likeliest
        )
    many = CodeSampling(guidance=1.0, temperature=3.0)
    rows = write_codes(decoder, text[:1].expand(64, -1), null, PLACES, many, chances(range(64)))
    assert len(rows.unique(dim=0)) > 40


def test_progress(raster: Any, masked: Dalle) -> None:
    decoder, network = raster
    text, null = texts(network)
    seen: list[tuple[int, int]] = []

    def progress(done: int, steps: int) -> None:
        seen.append((done, steps))

    write_codes(decoder, text, null, PLACES, CodeSampling(), chances(range(4)), progress=progress)
    assert seen == [(n + 1, PLACES) for n in range(PLACES)]
    seen.clear()
    how = CodeSampling(steps=3)
    codes = whole(masked, 2)
    fill_codes(masked, text[:2], null, codes, how, chances(range(2)), progress=progress)
    assert seen == [(n + 1, 6) for n in range(6)]


# Masked order.


def calls_of(network: Dalle, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tokens of each pass."""
    seen: list[Tensor] = []
    plain = network.states

    def states(ids: Tensor) -> Tensor:
        seen.append(ids.clone())
        return plain(ids)

    monkeypatch.setattr(network, "states", states)
    return seen


def test_codes_are_known_by_a_cosine(masked: Dalle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of(masked, monkeypatch)
    text, null = texts(masked)
    how = CodeSampling(guidance=1.0, steps=3)
    found = fill_codes(masked, text[:1], null, whole(masked, 1), how, chances([0]))
    assert found.max() < CODES
    hidden = [int((ids[0, -PLACES:] == masked.config.mask).sum()) for ids in seen]
    assert hidden == [6, 5, 3]  # 6 cos(pi / 6) = 5.2, 6 cos(pi / 3) = 3
    for before, after in pairwise(seen):  # what is known once stays
        known = before[0, -PLACES:] != masked.config.mask
        assert torch.equal(after[0, -PLACES:][known], before[0, -PLACES:][known])


def test_each_step_makes_a_code_known(masked: Dalle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of(masked, monkeypatch)
    text, null = texts(masked)
    found = fill_codes(
        masked, text[:1], null, whole(masked, 1), CodeSampling(steps=100), chances([0])
    )
    assert found.max() < CODES and len(seen) == PLACES


def test_any_mask_is_filled(masked: Dalle) -> None:
    text, null = texts(masked)
    how = CodeSampling(steps=2)
    start = torch.tensor([[4, 9, 9, 2, 9, 1]]).repeat(2, 1)
    found = fill_codes(masked, text[:2], null, start, how, chances(range(2)))
    kept = start != masked.config.mask
    assert torch.equal(found[kept], start[kept]) and found.max() < CODES
    same = torch.arange(PLACES)[None]
    assert torch.equal(fill_codes(masked, text[:1], null, same, how, chances([0])), same)


def test_a_masked_image_does_not_depend_on_its_batch(masked: Dalle) -> None:
    text, null = texts(masked)
    how = CodeSampling(steps=3)
    together = fill_codes(masked, text, null, whole(masked, 4), how, chances(range(4)))
    for row in range(4):
        alone = fill_codes(masked, text[row : row + 1], null, whole(masked, 1), how, chances([row]))
        assert torch.equal(alone[0], together[row])


def test_guidance_of_masked_order(masked: Dalle) -> None:
    text, null = texts(masked)
    how = CodeSampling(guidance=1.0, steps=3)
    codes = whole(masked, 4)
    plain = fill_codes(masked, text, null, codes, how, chances(range(4)))
    other = fill_codes(masked, text, text[:1], codes, how, chances(range(4)))
    assert torch.equal(plain, other)
    free = replace(how, guidance=0.0)
    nothing = fill_codes(masked, text, null, codes, free, chances(range(4)))
    drawn = fill_codes(masked, null.expand(4, -1), null, codes, how, chances(range(4)))
    assert torch.equal(nothing, drawn)
    far = fill_codes(masked, text, null, codes, replace(how, guidance=6.0), chances(range(4)))
    assert not torch.equal(far, plain)


def test_noise_decides_what_is_known_first(masked: Dalle) -> None:
    text, null = texts(masked)
    sure, free = (CodeSampling(steps=3, noise=noise, top_k=1) for noise in (0.0, 50.0))
    rows = text[:1].expand(24, -1)
    codes = whole(masked, 24)
    assert len(fill_codes(masked, rows, null, codes, sure, chances(range(24))).unique(dim=0)) == 1
    assert len(fill_codes(masked, rows, null, codes, free, chances(range(24))).unique(dim=0)) > 3


def test_scale_by_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("scale")
    scales = network.config.scales
    assert scales.view(2, 3).tolist() == [[0, 2, 1], [3, 3, 3]]
    assert passes_of(network.config, CodeSampling()) == 4
    seen = calls_of(network, monkeypatch)
    text, null = texts(network)
    how = CodeSampling(guidance=1.0)
    found = fill_codes(network, text[:2], null, whole(network, 2), how, chances(range(2)))
    assert found.max() < CODES and len(seen) == 8
    for number, ids in enumerate(seen[:4]):  # of the first image
        known = ids[0, -PLACES:] != network.config.mask
        assert torch.equal(known, scales < number)
        assert torch.equal(ids[0, -PLACES:][known], found[0][known])  # and what is known stays
    alone = fill_codes(network, text[1:2], null, whole(network, 1), how, chances([1]))
    assert torch.equal(alone[0], found[1])  # whatever is drawn beside it
    start = torch.tensor([[4, 9, 9, 2, 9, 1]])
    filled = fill_codes(network, text[:1], null, start, how, chances([0]))
    kept = start != network.config.mask
    assert torch.equal(filled[kept], start[kept]) and filled.max() < CODES
    plain = fill_codes(network, text, null, whole(network, 4), how, chances(range(4)))
    far = replace(how, guidance=6.0)
    guided = fill_codes(network, text, null, whole(network, 4), far, chances(range(4)))
    assert not torch.equal(plain, guided)


def test_scales_of_grids() -> None:
    shape = {"width": 16, "layers": 1, "heads": 2}
    sizes = DalleConfig(**shape, grid=(8, 8), order="scale").scales.bincount().tolist()
    assert sizes == [1, 1, 2, 4, 8, 16, 32]
    for grid in ((1, 1), (1, 5), (7, 3), (4, 4)):
        scales = DalleConfig(**shape, grid=grid, order="scale").scales
        assert len(scales) == grid[0] * grid[1]
        assert scales.unique().tolist() == list(range(int(scales.max()) + 1))


def test_no_temperature_of_zero_in_masked_order(masked: Dalle) -> None:
    text, null = texts(masked)
    with pytest.raises(BedstoneError, match="temperature: 0"):
        fill_codes(masked, text, null, whole(masked, 4), CodeSampling(temperature=0.0), chances([]))


@pytest.mark.parametrize(
    "values", [{"candidates": 0}, {"guidance": -1.0}, {"top_p": 2.0}, {"steps": 0}, {"noise": -1.0}]
)
def test_settings_that_can_not_be(values: dict[str, Any]) -> None:
    with pytest.raises(BedstoneError, match=f"sampling.{next(iter(values))}"):
        CodeSampling(**values)
