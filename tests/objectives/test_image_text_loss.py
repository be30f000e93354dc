"""Pictures into words: the losses beside their plain forms, sharing, padding, hard negatives."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bedstone.models.blip.config import blip_config
from bedstone.models.blip.network import Blip, build_blip
from bedstone.objectives import image_text
from bedstone.objectives.image_text import (
    ImageTextLoss,
    Texts,
    drawn,
    first_texts,
    match_logits,
    word_loss,
)

BOS, EOS = 1, 2


@dataclass
class Part:
    ids: torch.Tensor
    keep: torch.Tensor
    ids_in: torch.Tensor
    targets: torch.Tensor
    each: int

    @property
    def groups(self) -> torch.Tensor:
        return torch.unique(self.ids, dim=0, return_inverse=True)[1]


@dataclass
class Batch:
    pixels: torch.Tensor
    captions: Part | None
    answers: Part | None

    @property
    def target_count(self) -> int:
        parts = (self.captions, self.answers)
        return sum(int((part.targets != -100).sum()) for part in parts if part is not None)


def network(kind: str = "joint") -> Blip:
    shape = {
        "layout": "blip_resnet",
        "image": {"image_size": 16, "width": 8, "blocks": [1, 1], "block": "basic", "shrink": 1},
        "text": {"width": 16, "layers": 1, "heads": 2, "vocab_size": 40, "context": 16},
        "embed": 6,
        "head": {"kind": kind},
    }
    made = build_blip(blip_config(shape), seed=0)
    for name, weight in made.named_parameters():  # blocks that start at zero would hide errors
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return made.eval()


def part(lengths: list[int], each: int, seed: int = 0, more: int = 0) -> Part:
    """Texts of so many words, read and written; `more` columns of padding."""
    random = torch.Generator().manual_seed(seed)
    wide = max(lengths) + 1 + more
    read = torch.zeros(len(lengths), wide + 1, dtype=torch.long)
    ids_in = torch.zeros(len(lengths), wide, dtype=torch.long)
    targets = torch.full((len(lengths), wide), -100)
    for row, length in enumerate(lengths):
        words = torch.randint(3, 40, (length,), generator=random)
        ends = torch.tensor([BOS]), torch.tensor([EOS])
        read[row, : length + 2] = torch.cat((ends[0], words, ends[1]))
        ids_in[row, : length + 1] = torch.cat((ends[0], words))
        targets[row, : length + 1] = torch.cat((words, ends[1]))
    return Part(read, read != 0, ids_in, targets, each)


def batch(more: int = 0) -> Batch:
    pixels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    captions = part([3, 5, 2, 4, 4, 6], 2, seed=1, more=more)
    return Batch(pixels, captions, part([2, 1, 3], 1, seed=2, more=more))


def plain(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_captions_and_answers_are_the_plain_cross_entropy(smoothing: float) -> None:
    told, made = batch(), network()
    captions, answers = told.captions, told.answers
    assert captions is not None and answers is not None
    ours, count = ImageTextLoss(0.5, 2.0, smoothing=smoothing)(made, told)
    assert count == told.target_count == 24 + 6 + 6 + 3
    of_captions = torch.stack(
        [  # each text by itself, with its own picture
            plain(made(told.pixels[i // 2, None], ids[None])[:, : len(row)], row[None], smoothing)
            for i, (ids, row) in enumerate(zip(captions.ids_in, captions.targets, strict=True))
        ]
    ).sum()
    of_answers = plain(
        made(told.pixels, answers.ids, answers.keep, answers.ids_in), answers.targets, smoothing
    )
    torch.testing.assert_close(ours, 0.5 * of_captions + 2 * of_answers, atol=2e-3, rtol=1e-4)


def test_padding_changes_nothing() -> None:
    made, objective = network(), ImageTextLoss(1.0, 1.0)
    (one, count), (other, same) = objective(made, batch()), objective(made, batch(more=3))
    assert count == same
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_every_weight_learns_from_all_together() -> None:
    made = network().train()
    torch.manual_seed(0)
    loss, _ = ImageTextLoss(1.0, 1.0, 1.0, 1.0)(made, batch())
    loss.backward()
    assert not [name for name, weight in made.named_parameters() if weight.grad is None]


def test_contrast_and_matching_weigh_as_all_tokens_do() -> None:
    made, told = network("matching"), batch()
    assert told.captions is not None
    loss, count = ImageTextLoss(0.0, contrast=1.0)(made, told)
    texts = first_texts(told.captions)
    assert texts.ids.tolist() == told.captions.ids[::2].tolist()
    memory = made.memory(told.pixels)
    image = F.normalize(made.image_vectors(memory), dim=-1)
    text = F.normalize(made.text_vectors(texts.ids, texts.keep), dim=-1)
    logits = made.scale * image @ text.T
    own = torch.arange(3)
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(loss / count, wanted, atol=1e-4, rtol=1e-4)


class Judge:
    """Says yes where a text's second token is the number of the picture."""

    def match_logits(self, ids: torch.Tensor, keep: torch.Tensor, memory: torch.Tensor) -> Any:
        own = memory[:, 0, 0].repeat_interleave(len(ids) // len(memory))
        right = (ids[:, 1] == own).float()
        return torch.stack((1 - right, right), 1)


def pictures(numbers: list[int]) -> tuple[Texts, torch.Tensor]:
    ids = torch.tensor([[BOS, number, EOS] for number in numbers])
    told = first_texts(Part(ids, ids != 0, ids, ids, 1))
    return told, torch.tensor(numbers, dtype=torch.float)[:, None, None]


def test_wrong_pairs_are_wrong_and_hard() -> None:
    torch.manual_seed(0)
    texts, memory = pictures([3, 4, 5, 3])  # the first and the last have equal texts
    for _ in range(20):
        logits, right = match_logits(Judge(), texts, memory, torch.zeros(4, 4))
        assert len(logits) == 12 and right.sum() == 4
        assert torch.equal(logits.argmax(1), right)
    similar = torch.full((4, 4), -50.0)
    similar[0, 2] = similar[0, 3] = 50.0  # 3 is nearer still than 2 would be, but it is right
    wrong = texts.groups[:, None] != texts.groups
    assert drawn(similar, wrong)[0] == 2


def test_hard_pairs_are_those_that_contrast_finds_similar(monkeypatch) -> None:
    made, told, found = network("matching"), batch(), []
    assert told.captions is not None
    texts, memory = first_texts(told.captions), made.memory(told.pixels)

    def watched(network, texts, memory, similar):
        found.append(similar)
        return match_logits(network, texts, memory, similar)

    monkeypatch.setattr(image_text, "match_logits", watched)
    ImageTextLoss(0.0, match=1.0).joined(made, texts, memory)
    image = F.normalize(made.image_vectors(memory), dim=-1)
    text = F.normalize(made.text_vectors(texts.ids, texts.keep), dim=-1)
    torch.testing.assert_close(found[0], made.scale * image @ text.T)
    assert not found[0].requires_grad and found[0].std() > 0.01


def test_texts_that_are_all_equal_have_no_wrong_pairs() -> None:
    texts, memory = pictures([3, 3, 3])
    logits, right = match_logits(Judge(), texts, memory, torch.zeros(3, 3))
    assert len(logits) == 3 and right.tolist() == [1, 1, 1]


def test_no_target_is_no_loss() -> None:
    made = network("captions")
    states = torch.randn(2, 3, 16, requires_grad=True)
    loss, count = word_loss(made.head, states, torch.full((2, 3), -100), 0.1)
    assert count == 0 and loss == 0
    loss.backward()


def test_a_batch_of_one_has_no_wrong_pairs() -> None:
    told = batch()
    assert told.captions is not None
    few = replace(told.captions, **{k: getattr(told.captions, k)[:2] for k in ("ids", "keep")})
    loss, _ = ImageTextLoss(0.0, contrast=1.0, match=1.0)(
        network("matching"), replace(told, pixels=told.pixels[:1], captions=few)
    )
    assert torch.isfinite(loss)


class Nothing(Part):
    """Pictures of which nothing is said."""

    @property
    def groups(self) -> torch.Tensor:
        return torch.full((len(self.ids),), -1)


def test_pictures_without_captions_are_not_told_apart() -> None:
    told = batch()
    assert told.captions is not None
    ids, keep, ids_in = told.captions.ids, told.captions.keep, told.captions.ids_in
    none = Nothing(ids, keep, ids_in, torch.full_like(ids_in, -100), told.captions.each)
    learnt = ImageTextLoss(contrast=1.0, match=1.0)
    assert learnt(network(), replace(told, captions=none))[0] == 0


@pytest.mark.parametrize("parts", [{"contrast": 1.0}, {"match": 0.5}, {"contrast": 1, "match": 1}])
@pytest.mark.parametrize(("scale", "bounded"), [(1e4, 100.0), (0.01, 1.0), (20.0, 20.0)])
def test_the_scale_of_contrast_is_bounded_after_a_step(parts, scale, bounded) -> None:
    made = network("matching")
    with torch.no_grad():
        made.logit_scale.fill_(math.log(scale))
    ImageTextLoss(1.0, 1.0).after_step(made)  # reads no scale, and leaves it
    assert made.logit_scale.exp().item() == pytest.approx(scale, rel=1e-4)
    ImageTextLoss(**parts).after_step(made)
    assert made.logit_scale.exp().item() == pytest.approx(bounded, rel=1e-4)


def test_hard_pairs_are_drawn_by_how_similar_they_are(monkeypatch) -> None:
    """Of three wrong texts and pictures the nearest comes most often, each by its own side."""
    torch.manual_seed(0)
    texts, memory = pictures([3, 4, 5])
    similar = torch.tensor([[9.0, 3.0, 0.0], [0.0, 9.0, 3.0], [3.0, 0.0, 9.0]])
    found: list[torch.Tensor] = []

    class Watched(Judge):
        def match_logits(self, ids, keep, memory):
            found.append(
                torch.stack(
                    (ids[:, 1].float(), memory[:, 0, 0].repeat_interleave(len(ids) // len(memory)))
                )
            )
            return super().match_logits(ids, keep, memory)

    for _ in range(60):
        match_logits(Watched(), texts, memory, similar)
    of_images = torch.stack([text[0].view(3, 2)[:, 1] for text in found[::2]])
    of_texts = torch.stack([pair[1] for pair in found[1::2]])
    hard = torch.tensor([4.0, 5.0, 3.0])  # row i is most like column i + 1
    assert (of_images == hard).float().mean() > 0.85
    assert (of_texts == torch.tensor([5.0, 3.0, 4.0])).float().mean() > 0.85
