"""The loss of DALL-E: against its plain form, its shares, and what changes nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bedstone.data.images.codes import CodeBatch, hidden_codes, hidden_scales
from bedstone.models.dalle.network import Dalle, DalleConfig, make
from bedstone.objectives.dalle import DalleLoss
from networks import randomise


def network_of(order: str = "raster") -> Dalle:
    shape: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "vocab_size": 11}
    network = make(DalleConfig(**shape, text_tokens=6, codes=9, grid=(2, 2), order=order))
    randomise(network)
    return network.eval()


def batch_of(hidden: bool = False) -> CodeBatch:
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(11, (3, 5), generator=chance)
    keep = torch.arange(5) < torch.tensor([[5], [2], [0]])
    codes = torch.randint(9, (3, 4), generator=chance)
    hides = hidden_codes(3, 4, np.random.default_rng(1)) if hidden else None
    return CodeBatch(ids, keep, codes, *(hides or (None, None)), [""] * 3, 0)


@pytest.mark.parametrize("share", [7 / 8, 1.0, 0.5])
def test_words_and_codes_have_their_shares(share: float) -> None:
    network, batch = network_of(), batch_of()
    loss, count = DalleLoss(share)(network, batch)
    expected = torch.zeros(())
    logits, words = network.logits(batch.ids, batch.keep, batch.codes)
    assert words is not None and words.shape == (3, 5, 11)
    for row in range(3):
        image = [-logits[row, n].log_softmax(0)[batch.codes[row, n]] for n in range(4)]
        text = [
            -words[row, n].log_softmax(0)[batch.ids[row, n + 1]]
            for n in range(4)
            if batch.keep[row, n + 1]
        ]
        expected += share * sum(image) / 4
        expected += (1 - share) * sum(text) / max(len(text), 1)
    assert count == 3 and torch.allclose(loss, expected, rtol=1e-5)


def test_padding_and_neighbours_change_nothing() -> None:
    network, batch, loss = network_of(), batch_of(), DalleLoss()
    whole, _ = loss(network, batch)
    longer = torch.nn.functional.pad(batch.ids, (0, 1), value=3)
    kept = torch.nn.functional.pad(batch.keep, (0, 1))
    assert torch.allclose(loss(network, replace(batch, ids=longer, keep=kept))[0], whole)
    parts = [
        replace(
            batch,
            ids=batch.ids[row : row + 1],
            keep=batch.keep[row : row + 1],
            codes=batch.codes[row : row + 1],
        )
        for row in range(3)
    ]
    assert torch.allclose(sum(loss(network, part)[0] for part in parts), whole, rtol=1e-5)


def test_hidden_codes_alone_count() -> None:
    network, batch = network_of("masked"), batch_of(hidden=True)
    assert batch.hidden is not None
    loss, _ = DalleLoss()(network, batch)
    shown = torch.where(batch.hidden, network.config.mask, batch.codes)
    logits, words = network.logits(batch.ids, batch.keep, shown)
    assert words is None
    nats = -logits.log_softmax(-1).gather(-1, batch.codes[..., None])[..., 0]
    expected = sum(nats[row][batch.hidden[row]].mean() for row in range(3))
    assert torch.allclose(loss, expected, rtol=1e-5)
    other = torch.where(batch.hidden, batch.codes, (batch.codes + 1) % 9)  # of those that are seen
    assert not torch.allclose(DalleLoss()(network, replace(batch, codes=other))[0], loss)


def test_a_scale_is_learnt_from_coarser_ones() -> None:
    scales = torch.tensor([0, 2, 1, 2])
    hidden, learnt = hidden_scales(scales, 300, 4, np.random.default_rng(0))
    first = torch.where(hidden, scales, 9).amin(1, keepdim=True)
    assert torch.equal(hidden, scales >= first) and torch.equal(learnt, scales == first)
    assert (first.flatten().bincount() > 70).all()  # each as often
    network, batch = network_of("masked"), batch_of()
    hidden, learnt = hidden_scales(scales, 3, 4, np.random.default_rng(3))
    batch = replace(batch, hidden=hidden, learnt=learnt)
    total, _ = DalleLoss()(network, batch)
    shown = torch.where(hidden, network.config.mask, batch.codes)
    logits = network(batch.ids, batch.keep, shown)
    nats = torch.nn.functional.cross_entropy(logits.mT, batch.codes, reduction="none")
    expected = sum(nats[row][learnt[row]].mean() for row in range(3))
    assert torch.allclose(total, expected, rtol=1e-5)


def test_how_many_codes_are_hidden() -> None:
    hidden, learnt = hidden_codes(4000, 16, np.random.default_rng(0))
    assert torch.equal(hidden, learnt)
    share = hidden.float().mean(1)
    assert share.min() == 1 / 16 and share.max() == 1.0
    assert share.mean().item() == pytest.approx(2 / np.pi + 0.5 / 16, abs=0.02)
    assert (hidden.float().mean(0) - share.mean()).abs().max() < 0.03  # everywhere as often


def test_gradients_reach_every_weight() -> None:
    for network, batch in ((network_of(), batch_of()), (network_of("masked"), batch_of(True))):
        DalleLoss()(network, batch)[0].backward()
        for name, weight in network.named_parameters():
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name
