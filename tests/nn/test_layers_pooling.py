"""Pooling of rows laid end to end equals pooling of each row by itself."""

import pytest
import torch

from bedstone.errors import BedstoneError
from bedstone.nn.layers import MODES, Pooling, normalise, pool

LENGTHS = (3, 1, 5)


def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 4, generator=generator) for length in LENGTHS]


def by_hand(states: torch.Tensor, mode: str, skipped: int = 0) -> torch.Tensor:
    """One row's vector, (D,), as sentence-transformers defines the mode."""
    weights = torch.arange(1.0, len(states) + 1)[skipped:, None]
    states = states[skipped:]
    return {
        "cls": states[0],
        "lasttoken": states[-1],
        "max": states.max(0).values,
        "mean": states.sum(0) / len(states),
        "mean_sqrt_len_tokens": states.sum(0) / len(states) ** 0.5,
        "weightedmean": (states * weights).sum(0) / weights.sum(),
    }[mode]


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_that_of_each_row(mode):
    found = pool(torch.cat(rows()), LENGTHS, (mode,))
    assert torch.allclose(found, torch.stack([by_hand(row, mode) for row in rows()]), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_skipped_tokens_are_left_out_and_keep_their_places(mode):
    skipped = (2, 0, 3)
    found = pool(torch.cat(rows()), LENGTHS, (mode,), skipped=skipped)
    expected = [by_hand(row, mode, skip) for row, skip in zip(rows(), skipped, strict=True)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_modes_are_joined_in_their_order():
    both = pool(torch.cat(rows()), LENGTHS, ("max", "cls"))
    expected = [torch.cat([by_hand(row, "max"), by_hand(row, "cls")]) for row in rows()]
    assert torch.allclose(both, torch.stack(expected))


def test_sums_of_bf16_states_are_fp32():
    states = torch.ones(4096, 1, dtype=torch.bfloat16)  # bf16 can't count past 256
    assert pool(states, (4096,), ("mean",)).item() == 1.0


def test_normalised_vectors_have_length_one():
    assert torch.allclose(normalise(torch.randn(3, 4)).norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"modes": ("average",)}, "'average' is unknown"),
        ({"modes": ()}, "no mode was given"),
        ({"max_tokens": 0}, "pooling.max_tokens: 0 was given"),
    ],
)
def test_what_is_no_pooling_is_refused(wrong, told):
    with pytest.raises(BedstoneError, match=told):
        Pooling(**wrong)
