"""Image-text losses: captions, answers, contrast and matching.

Captions are predicted token by token over the picture, answers over the question as it was read
with the picture (BLIP, Li et al., 2022, sections 3.1 and 4.4). Contrast tells each picture's text
from the batch's others; matching says of a text and a picture whether they belong together, its
wrong pairs drawn by what contrast finds similar (section 3.2; ALBEF, Li et al., 2021, section 3.2).

A picture is seen once for all its texts, and logits are computed at real targets only.

Shapes: P pictures, n = m P texts, row i of picture i // m; T and U tokens, S places of the memory,
N targets, D width, V vocabulary, E joint width.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.data.stream import IGNORED
from bedstone.objectives.contrastive import bound_scale, softmax_loss
from bedstone.objectives.tokens import token_loss


class Part(Protocol):
    """Texts of a batch.

    Attributes:
        ids, keep: (n, T) captions or questions as they are read.
        ids_in, targets: (n, U) captions or answers as they are written, -100 where nothing is.
        groups: (n,) which text each is: equal numbers are equal texts; -1 where there is none.
        each: texts of a picture, m.
    """

    @property
    def ids(self) -> Tensor: ...
    @property
    def keep(self) -> Tensor: ...
    @property
    def ids_in(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def groups(self) -> Tensor: ...
    @property
    def each(self) -> int: ...


class ImageTextScores(Protocol):
    """What is read of a batch; a part that there is none of is None."""

    @property
    def pixels(self) -> Tensor: ...
    @property
    def captions(self) -> Part | None: ...
    @property
    def answers(self) -> Part | None: ...
    @property
    def target_count(self) -> int: ...


@dataclass(frozen=True)
class ImageTextLoss:
    """The objective: (network, batch) to the sum of losses and the number of target tokens.

    Tokens of captions and answers weigh one by one, so that padding, accumulation and the number
    of texts change nothing. Contrast and matching are means over a batch's pictures, each beside
    the mean of a token.

    Attributes:
        caption, answer: what a token of each weighs; 0 leaves that out.
        contrast, match: what each weighs beside all tokens together.
        smoothing: share of a target's probability that is spread over the vocabulary.
    """

    caption: float = 1.0
    answer: float = 0.0
    contrast: float = 0.0
    match: float = 0.0
    smoothing: float = 0.0

    def __call__(self, network: Any, batch: ImageTextScores) -> tuple[Tensor, int]:
        memory = network.memory(batch.pixels)  # (P, S, D)
        loss = memory.new_zeros((), dtype=torch.float32)
        captions, answers, count = batch.captions, batch.answers, batch.target_count
        if captions is not None and self.caption:
            states = network.caption_states(captions.ids_in, None, memory)
            loss = loss + self.caption * self.written(network.head, states, captions)
        if answers is not None and self.answer:
            read = network.read(answers.ids, answers.keep, memory)
            states = network.answer_states(answers.ids_in, None, read, answers.keep)
            loss = loss + self.answer * self.written(network.head, states, answers)
        if captions is not None and (self.contrast or self.match):
            texts = first_texts(captions)
            if len(texts.ids):
                loss = loss + count * self.joined(network, texts, memory[texts.images])
        return loss, count

    def after_step(self, network: Any) -> None:
        """Keeps the scale of contrast within its bounds; called after each update."""
        if self.contrast or self.match:
            bound_scale(network)

    def written(self, head: Any, states: Tensor, part: Part) -> Tensor:
        """The sum of losses of a part's tokens, () fp32, from the decoder's states (n, U, D)."""
        return word_loss(head, states, part.targets, self.smoothing)[0]

    def joined(self, network: Any, texts: "Texts", memory: Tensor) -> Tensor:
        """Contrast and matching, means over the pictures, () fp32."""
        image = F.normalize(network.image_vectors(memory).float(), dim=-1)  # (P, E)
        text = F.normalize(network.text_vectors(texts.ids, texts.keep).float(), dim=-1)
        scale = network.logit_scale.float().exp()
        loss = image.new_zeros(())
        if self.contrast:
            loss = self.contrast * softmax_loss(image, text, scale, texts.groups) / len(image)
        if self.match:
            similar = (scale * image @ text.T).detach()
            found, right = match_logits(network, texts, memory, similar)
            loss = loss + self.match * F.cross_entropy(found.float(), right)
        return loss


@dataclass(frozen=True)
class Texts:
    """A text of each picture that has one: (P, T) ids and keep, (P,) which text and picture."""

    ids: Tensor
    keep: Tensor
    groups: Tensor
    images: Tensor


def first_texts(part: Part) -> Texts:
    """The first text of each picture; which one that is was drawn with the batch."""
    ids, keep, groups = (x[:: part.each] for x in (part.ids, part.keep, part.groups))
    there = (groups >= 0).nonzero()[:, 0]
    return Texts(ids[there], keep[there], groups[there], there)


def match_logits(
    network: Any, texts: Texts, memory: Tensor, similar: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of right and wrong pairs, and which are right.

    Each picture stands with its own text and with a wrong one, and each text with a wrong picture;
    wrong ones are drawn by similarity, so that most are nearly right.

    Args:
        similar: (P, P) of each picture with each text.

    Returns:
        (R, 2) logits, no and yes, and (R,) 1 where the pair is right. R is 3 P; a text that all
        pictures share has no wrong one.
    """
    images = len(memory)
    wrong = texts.groups[:, None] != texts.groups  # (P, P)
    some = wrong.any(1)
    other = drawn(similar, wrong)  # the wrong text of each picture
    image = drawn(similar.T, wrong)  # the wrong picture of each text
    both = torch.stack((torch.arange(images, device=other.device), other), 1).flatten()
    logits = network.match_logits(texts.ids[both], texts.keep[both], memory)  # (2 P, 2)
    right = (torch.arange(2 * images, device=logits.device) % 2 == 0) * 1
    more = network.match_logits(texts.ids, texts.keep, memory[image])  # (P, 2)
    real = torch.cat((some[:, None].new_ones(images, 1), some[:, None]), 1).flatten()
    logits = torch.cat((logits[real], more[some]))
    return logits, torch.cat((right[real], right.new_zeros(int(some.sum()))))


def drawn(similar: Tensor, may: Tensor) -> Tensor:
    """A column of each row, (P,), by the softmax over those it may be; any where it may be none."""
    chance = similar.masked_fill(~may, float("-inf")).softmax(-1)
    chance = torch.where(may.any(1, keepdim=True), chance, torch.ones_like(chance))
    return torch.multinomial(chance, 1)[:, 0]


def word_loss(
    head: Any, states: Tensor, targets: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, int]:
    """Cross-entropy of the word head at every real target, and how many there are.

    Args:
        head: a `models.heads.Head`; all before its last product is computed at targets alone.
        states: (n, U, D).
        targets: (n, U), -100 where nothing is to be predicted.
        smoothing: share of a target's probability spread over all V (Szegedy et al., 2016,
            section 7).
    """
    states, targets = states.flatten(0, 1), targets.flatten()
    rows = (targets != IGNORED).nonzero()[:, 0]
    prepared, wanted = head.prepare(states[rows]), targets[rows]  # (N, D), (N,)
    if not smoothing or not len(rows):
        return token_loss(prepared, head.out, wanted)
    return _smoothed(head.out, prepared, wanted, smoothing), len(rows)


def _smoothed(out: nn.Module, states: Tensor, targets: Tensor, share: float) -> Tensor:
    logits = out(states).float()
    return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=share)


# A GPT that sees learns to say: the next token of captions and answers, over their pictures.
#
# Shapes: P pictures, n = m P texts, row i of picture i // m; U tokens.


def flamingo_loss(network: Any, batch: ImageTextScores) -> tuple[Tensor, int]:
    """(network, batch) to the sum of losses of all tokens to be said, and their number.

    A picture is read once for all its texts; prompts are read and not asked for.
    """
    memory = network.memory(batch.pixels)  # (P, S, width)
    total, count = memory.new_zeros(()).float(), 0
    for part in (batch.captions, batch.answers):
        if part is not None:
            states = network.states(part.ids_in, memory=memory)
            loss, tokens = token_loss(states, network.head, part.targets)
            total, count = total + loss, count + tokens
    return total, count
