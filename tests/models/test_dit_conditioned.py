"""A denoiser with what reads its words: gradients, masks, frozen readers."""

import copy

import pytest
import torch

from bedstone.models.dit.network import Conditioned
from drawings import drawing, reader
from networks import check_network

X, T = torch.randn(2, 3, 8, 8), torch.tensor([100.0, 700.0])
IDS = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
KEEP = IDS != 0


def network(condition: str = "text") -> Conditioned:
    return copy.deepcopy(drawing(condition).network)


def test_words_reach_what_is_predicted_and_learn():
    made = network()
    made.text.head = torch.nn.Identity()  # nothing of a label
    check_network(made, lambda n: n(X, T, ids=IDS, keep=KEEP), (2, 3, 8, 8))


def test_classes_reach_what_is_predicted():
    classes = torch.tensor([0, 3])  # 3 of three is none of them
    made = network("class")
    out = made(X, T, classes=classes)
    assert not torch.equal(out[0], made(X, T, classes=torch.tensor([1, 3]))[0])
    assert torch.equal(out[1], made(X, T, classes=torch.tensor([1, 3]))[1])
    assert torch.equal(out, made.denoiser(X, T, **made.read_condition(classes=classes)))


def test_what_fills_texts_up_changes_nothing():
    made = network()
    filled = torch.nn.functional.pad(IDS, (0, 3), value=5)
    keep = torch.nn.functional.pad(KEEP, (0, 3))
    one, other = made(X, T, ids=IDS, keep=KEEP), made(X, T, ids=filled, keep=keep)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    changed = torch.where(KEEP, IDS, 11)
    torch.testing.assert_close(one, made(X, T, ids=changed, keep=KEEP), atol=1e-5, rtol=1e-5)


def test_a_frozen_reader_stays_and_has_no_dropout():
    words = reader().network
    made = Conditioned(network().denoiser, words, frozen=True)
    made.train()
    assert made.denoiser.training
    assert not words.training
    made(X, T, ids=IDS, keep=KEEP).sum().backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in words.parameters())
    assert any(weight.grad is not None for weight in made.denoiser.parameters())


def test_words_without_a_reader_are_refused():
    with pytest.raises(ValueError, match="reads no words"):
        network("class").read_condition(ids=IDS)
