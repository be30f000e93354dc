"""Learning from pairs: the published losses, equal texts, hard negatives, gradient caching."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from bedstone.data.text.packing import Packed, lay
from bedstone.errors import BedstoneError
from bedstone.objectives.contrastive import (
    ContrastiveLoss,
    cached,
    draw_patches,
    sigmoid_loss,
    softmax_loss,
)


def unit(rows: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator), dim=-1)


class Towers(nn.Module):
    """Two small towers with dropout, and CLIP's form around them."""

    def __init__(self, *, biased: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        patch = 2
        shape = SimpleNamespace(patch=patch, patches=16)
        self.config = SimpleNamespace(image=shape)
        self.image = nn.Sequential(nn.Linear(3 * patch * patch, 8), nn.Tanh(), nn.Dropout(dropout))
        self.text = nn.Embedding(50, 8)
        self.join = nn.Linear(8, 5)
        self.drop = nn.Dropout(dropout)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.shift = nn.Parameter(torch.tensor(-2.0)) if biased else None
        self.patch = patch
        self.seen: list[int] = []

    @property
    def scale(self) -> torch.Tensor:
        return self.logit_scale.exp()

    @property
    def bias(self) -> torch.Tensor | None:
        return self.shift

    def image_features(self, pixels, kept=None):  # type: ignore[no-untyped-def]
        self.seen.append(len(pixels))
        patches = F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)
        if kept is not None:
            patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
        return self.join(self.image(patches).mean(1))

    def text_features(self, rows: Packed):  # type: ignore[no-untyped-def]
        parts = self.drop(self.text(rows.ids[0])).split(rows.lengths)
        return self.join(torch.stack([part.mean(0) for part in parts]))


@dataclasses.dataclass
class Batch:
    pixels: torch.Tensor
    rows: Packed
    groups: torch.Tensor


def batch(pictures: int = 7, extra: int = 3) -> Batch:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 6, pictures + extra)
    ids = random.integers(0, 50, lengths.sum())
    pixels = torch.randn(pictures, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(pictures + extra)
    groups[2] = 0
    return Batch(pixels, lay(ids, np.zeros_like(ids), lengths), groups)


def gradients(
    objective: ContrastiveLoss, **options: object
) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    network = Towers(**options)  # type: ignore[arg-type]
    torch.manual_seed(4)
    loss, count = objective(network, batch())
    (loss / count).backward()
    return loss.item(), {n: w.grad for n, w in network.named_parameters() if w.grad is not None}


def test_distinct_texts_give_clips_loss() -> None:
    image, text, scale = unit(5), unit(5, seed=1), torch.tensor(7.0)
    ours = softmax_loss(image, text, scale, torch.arange(5)) / 5
    torch.testing.assert_close(ours, image_text_contrastive_loss(scale * text @ image.T))


def test_sigmoid_is_siglips_equation_1() -> None:
    image, text = unit(4), unit(4, seed=1)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            z = 1.0 if i == j else -1.0
            expected += float(torch.log1p(torch.exp(z * (-scale * image[i] @ text[j] - bias))))
    ours = sigmoid_loss(image, text, scale, torch.arange(4), bias)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_equal_texts_are_all_right() -> None:
    text = F.normalize(torch.eye(2, 6)[[0, 1, 0]], dim=-1)
    groups, scale = torch.tensor([0, 1, 0]), torch.tensor(50.0)
    best = softmax_loss(text, text, scale, groups)
    # two pictures share a text: nothing tells these apart, so ln 2 each is the least there is
    assert float(best) == pytest.approx(2 * np.log(2), abs=1e-4)
    told_apart = softmax_loss(text, text, scale, torch.arange(3))
    torch.testing.assert_close(told_apart, best)
    assert float(sigmoid_loss(text, text, scale, groups, -25.0)) < 1e-6
    assert float(sigmoid_loss(text, text, scale, torch.arange(3), -25.0)) > 40
    # pictures of one text need not be told apart: moving one away costs, whichever it is
    away = text.clone()
    away[2] = F.normalize(torch.tensor([1.0, 0, 0, 0.5, 0, 0]), dim=-1)
    assert float(softmax_loss(away, text, scale, groups)) > float(best) + 1


def test_hard_negatives_push_pictures_away() -> None:
    image, text = unit(3), unit(3)
    groups, scale = torch.arange(4), torch.tensor(5.0)
    near = torch.cat([text, text[:1]])
    far = torch.cat([text, -text[:1]])
    assert softmax_loss(image, near, scale, groups) > softmax_loss(image, far, scale, groups) + 0.1
    # a negative that is another picture's own text is no negative for that one
    shared = softmax_loss(image, near, scale, torch.tensor([0, 1, 2, 0]))
    assert shared < softmax_loss(image, near, scale, groups)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_cached_gradient_is_the_plain_one(kind: str, chunk: int) -> None:
    found = []
    for objective in (ContrastiveLoss(kind, patch_dropout=0.5), ContrastiveLoss(kind, chunk, 0.5)):
        torch.manual_seed(3)
        network = Towers(biased=kind == "sigmoid", dropout=0.0)
        torch.manual_seed(4)
        loss, count = objective(network, batch())
        (loss / count).backward()
        grads = {name: w.grad for name, w in network.named_parameters()}
        assert count == 7
        assert max(network.seen) <= (objective.chunk or 7)
        found.append((loss, grads))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert set(found[0][1]) == set(found[1][1])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], msg=name)


def test_cached_backward_sees_the_same_dropout() -> None:
    torch.manual_seed(0)
    linear, drop = nn.Linear(4, 4), nn.Dropout(0.5)
    parts = list(torch.randn(6, 4).split(2))
    weights = torch.randn(6, 4)

    def run(part: torch.Tensor) -> torch.Tensor:
        return drop(linear(part))

    torch.manual_seed(1)
    plain = torch.cat([run(part) for part in parts])
    (plain * weights).sum().backward()
    assert linear.weight.grad is not None
    expected, linear.weight.grad = linear.weight.grad.clone(), None
    torch.manual_seed(1)
    ours = cached(run, parts, torch.device("cpu"))
    torch.testing.assert_close(ours, plain)
    after = torch.rand(1)
    torch.manual_seed(9)
    mark = torch.get_rng_state()
    (ours * weights).sum().backward()
    torch.testing.assert_close(linear.weight.grad, expected)
    assert torch.equal(torch.get_rng_state(), mark)  # backward leaves the seed where it was
    assert after.numel() == 1


def test_cached_learns_under_autocast() -> None:
    plain, chunked = [gradients(ContrastiveLoss(chunk=chunk)) for chunk in (0, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(3)
        network = Towers().eval()
        loss, count = ContrastiveLoss(chunk=2)(network, batch())
    (loss / count).backward()
    weight = network.join.weight.grad
    assert weight is not None and weight.dtype == torch.float32 and weight.abs().sum() > 0
    assert set(plain[1]) == set(chunked[1])


def test_frozen_tower_stays_and_is_run_once() -> None:
    network = Towers()
    network.image.requires_grad_(False)
    loss, _ = ContrastiveLoss(chunk=2)(network, batch())
    loss.backward()
    assert network.seen == [7]
    assert all(weight.grad is None for weight in network.image.parameters())
    assert network.text.weight.grad is not None


def test_patches_are_drawn_anew() -> None:
    torch.manual_seed(0)
    first, second = draw_patches(4, 16, 0.5), draw_patches(4, 16, 0.5)
    assert first.shape == (4, 8) and not torch.equal(first, second)
    assert (first.diff(dim=1) > 0).all() and first.max() < 16
    assert draw_patches(2, 4, 0.99).shape == (2, 1)


def test_the_scale_is_clamped_after_a_step_in_the_softmax_form_alone() -> None:
    for kind, kept in (("softmax", 100.0), ("sigmoid", 117.0)):  # a published SigLIP has 117
        network = Towers(dropout=0.0, biased=kind == "sigmoid")
        network.logit_scale.data.fill_(math.log(117))
        ContrastiveLoss(kind).after_step(network)
        assert float(network.scale) == pytest.approx(kept)
    network.logit_scale.data.fill_(-1.0)
    ContrastiveLoss("softmax").after_step(network)
    assert float(network.scale) == 1


def test_the_scale_has_a_gradient_at_its_bound_and_above() -> None:
    """As in open_clip: it can come back down where the pairs are bad."""
    for scale in (100, 109.9):
        network = Towers(dropout=0.0)
        network.logit_scale.data.fill_(math.log(scale))
        ContrastiveLoss()(network, batch())[0].backward()
        assert network.logit_scale.grad is not None and abs(float(network.logit_scale.grad)) > 1e-3


def test_told_what_cannot_be() -> None:
    with pytest.raises(BedstoneError, match="perhaps 'softmax'"):
        ContrastiveLoss("softmx")
    with pytest.raises(BedstoneError, match="patch_dropout"):
        ContrastiveLoss(patch_dropout=1.0)
    network = Towers()
    network.config.image.patch = 0
    with pytest.raises(BedstoneError, match="no patches"):
        ContrastiveLoss(patch_dropout=0.5)(network, batch())
    network.image.append(nn.BatchNorm1d(8))
    with pytest.raises(BedstoneError, match="batch norm"):
        ContrastiveLoss(chunk=2)(network, batch())


def test_parts_of_packed_rows() -> None:
    rows = batch().rows
    parts = [rows.part(at, at + 4) for at in range(0, 10, 4)]
    assert sum((part.lengths for part in parts), ()) == rows.lengths
    assert torch.equal(torch.cat([part.ids for part in parts], 1), rows.ids)
    for part in parts:
        assert torch.equal(part.documents.unique(), torch.arange(len(part.lengths)).int())
