"""DALL-E's network: the shared test, what each place sees, positions, the engine beside torch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import decode, prefill
from bedstone.models.dalle.network import Dalle, DalleConfig, build, coordinates, make
from bedstone.models.interfaces import CausalLM
from bedstone.nn.fast import kernels
from bedstone.nn.fast.decoder import decoder_of
from networks import check_network, randomise

SIZE: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "vocab_size": 11, "text_tokens": 5}
SHAPES: dict[str, dict[str, Any]] = {
    "usual": {**SIZE, "codes": 9, "grid": (2, 3)},
    "tables, grouped heads": {
        **SIZE,
        "codes": 20,
        "grid": (3, 2),
        "positions": "tables",
        "heads": 4,
        "kv_heads": 2,
        "width": 32,
    },
    "masked": {**SIZE, "codes": 7, "grid": (3, 3), "order": "masked"},
    "scale": {**SIZE, "codes": 7, "grid": (3, 2), "order": "scale"},
    "masked, tables": {
        **SIZE,
        "codes": 7,
        "grid": (1, 4),
        "order": "masked",
        "positions": "tables",
    },
}


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest) -> DalleConfig:
    return DalleConfig(**SHAPES[request.param])


def inputs(case: DalleConfig, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(3)
    ids = torch.randint(case.vocab_size, (rows, 4), generator=chance)
    keep = torch.arange(4) < torch.tensor([4, 2, 0])[:rows, None]
    codes = torch.randint(case.codes, (rows, case.places), generator=chance)
    if case.order != "raster":
        codes[:, ::2] = case.mask
    return ids, keep, codes


def ready(case: DalleConfig) -> Dalle:
    network = make(case)
    randomise(network)
    return network.eval()


def test_network(case: DalleConfig) -> None:
    ids, keep, codes = inputs(case)

    def forward(network: Any) -> Tensor:
        found = network.logits(ids, keep, codes)
        return torch.cat([each.flatten(1) for each in found if each is not None], 1)

    numbers = case.places * case.codes
    numbers += (case.text_tokens - 1) * case.vocab_size * (case.order == "raster")
    check_network(make(case), forward, (2, numbers))


def test_fresh_weights_know_nothing_yet(case: DalleConfig) -> None:
    logits = build(case, seed=0)(*inputs(case))
    assert logits.shape == (2, case.places, case.codes) and logits.abs().max() == 0


def test_a_folder(tmp_path: Path, case: DalleConfig) -> None:
    network = ready(case)
    Model(network).save(tmp_path / "model")
    again = bedstone.load(tmp_path / "model")
    assert again.config == case and not isinstance(again.network, CausalLM)
    assert torch.equal(again.network(*inputs(case)), network(*inputs(case)))


@pytest.mark.parametrize("positions", ["rotary", "tables"])
def test_a_code_sees_what_is_before_it(positions: str) -> None:
    case = DalleConfig(**{**SHAPES["usual"], "positions": positions})
    network = ready(case)
    ids, keep, codes = inputs(case)
    before = network(ids, keep, codes)
    for place in range(case.places):
        other = codes.clone()
        other[:, place] = (other[:, place] + 1) % case.codes
        apart = (network(ids, keep, other) - before).abs().amax(2)[0]
        assert (apart[: place + 1] == 0).all() and (apart[place + 1 :] > 0).all()
    assert ((network(ids + 1, keep, codes) - before).abs().amax(2) > 0).all()


def test_a_masked_code_sees_all_others() -> None:
    case = DalleConfig(**SHAPES["masked"])
    network = ready(case)
    ids, keep, codes = inputs(case)
    before = network(ids, keep, codes)
    codes[:, -2] = (codes[:, -2] + 1) % case.codes
    assert ((network(ids, keep, codes) - before).abs().amax(2) > 0).all()


def test_each_place_of_a_text_has_its_own_padding() -> None:
    case = DalleConfig(**SHAPES["usual"])
    network = ready(case)
    ids, keep, codes = inputs(case, 3)
    tokens = network.tokens(ids, keep)
    first = case.codes + 1
    assert torch.equal(tokens[0, :4], first + ids[0])
    paddings = first + case.vocab_size + torch.arange(5)
    assert torch.equal(tokens[1, 2:], paddings[2:]) and torch.equal(tokens[2], paddings)
    assert int(tokens.max()) < case.core.vocab_size
    # what stands behind a text is nothing
    assert torch.equal(network.tokens(ids.masked_fill(~keep, 7), keep), tokens)
    null = network(ids[2:], keep[2:], codes[2:])
    assert torch.equal(network(ids[2:, :1] * 0, keep[2:, :1], codes[2:]), null)
    with pytest.raises(BedstoneError, match="has 6 tokens; the model reads 5"):
        network.tokens(torch.zeros(1, 6, dtype=torch.long), torch.ones(1, 6, dtype=torch.bool))


def test_places_of_text_and_grid() -> None:
    at = coordinates(DalleConfig(**SHAPES["usual"]))
    assert at[:5].tolist() == [[n, n] for n in range(5)]
    assert at[5:].tolist() == [[5 + row, 5 + column] for row in range(2) for column in range(3)]


def test_rows_and_columns_are_told_apart() -> None:
    """Attention knows how far a code stands to the left and how far above."""
    case = DalleConfig(**{**SHAPES["masked"], "text_tokens": 1})
    rotary = ready(case).core.rotary
    assert rotary is not None
    cos, sin = rotary(torch.arange(case.context)[None])
    assert cos.shape == sin.shape == (1, 1, case.context, 8)
    turned = torch.cat((cos, sin), -1)[0, 0, 1:]
    assert len(turned.unique(dim=0)) == case.places


@pytest.mark.parametrize("shape", ["usual", "tables, grouped heads"])
def test_decoding_step_by_step_is_the_whole_at_once(shape: str) -> None:
    case = DalleConfig(**SHAPES[shape])
    network = ready(case)
    ids, keep, codes = inputs(case)
    with torch.inference_mode():
        whole = network(ids, keep, codes)
    decoders: list[Any] = [network]
    if kernels.library() is not None:
        decoders.append(decoder_of(network, torch.float32))
        assert decoders[-1] is not None
    for decoder in decoders:
        prompts = network.tokens(ids, keep)
        cache = decoder.new_cache(2, case.context)
        found = [prefill(decoder, prompts, torch.full((2,), case.text_tokens), cache)]
        found += [decode(decoder, codes[:, place], cache) for place in range(case.places - 1)]
        for place, logits in enumerate(found):
            assert logits.shape == (2, case.codes)
            assert (logits - whole[:, place]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"codes": 1}, "codes"),
        ({"codes": 2**16 + 1}, "codes"),
        ({"grid": (3,)}, "model.grid"),
        ({"grid": (0, 3)}, "model.grid"),
        ({"heads": 3}, "model.heads"),
        ({"heads": 8}, "model.heads"),
        ({"kv_heads": 3}, "model.kv_heads"),
        ({"order": "spiral"}, "order"),
        ({"positions": "none"}, "positions"),
    ],
)
def test_shapes_that_can_not_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BedstoneError, match=said):
        DalleConfig(**{**SHAPES["usual"], **values})
