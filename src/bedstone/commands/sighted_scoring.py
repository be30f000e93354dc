"""How well a GPT that sees puts held-out pictures into words."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bedstone.checkpoints.artefact import tokenizer_of
from bedstone.commands.told_scoring import LONGEST, SHORTEST, Found, ToldScorer
from bedstone.data.gpt_told import gpt_words, prompt_ids
from bedstone.data.told_prompts import said_text
from bedstone.data.told_text import Words, taught
from bedstone.generation.autoregress import generate
from bedstone.generation.ranking import rank
from bedstone.generation.sampling import Sampling
from bedstone.objectives.tokens import token_loss


@dataclass
class SightedScorer(ToldScorer):
    """As `ToldScorer`: the same figures, of a network that reads the question as it writes.

    Attributes:
        kind: what is measured: captions, answers or joint.
    """

    kind: str = "answers"

    @property
    def words(self) -> Words:
        return gpt_words(tokenizer_of(self.model), self.model.config.context)

    @torch.no_grad()
    def said(self, *, told: Callable[[float], None] | None = None) -> Found:
        found = Found()
        for done, numbers in self._chunks():
            kept, memory = self._seen(numbers)
            with self.precision.autocast():
                if self.kind in ("captions", "joint"):
                    self._captions(kept, memory, found)
                if self.kind in ("answers", "joint"):
                    self._answers(kept, memory, found)
            if told is not None:
                told(done)
        return found

    def _captions(self, numbers: list[int], memory: Tensor, found: Found) -> None:
        rows = [self.pictures.rows[number] for number in numbers]
        kept = [place for place, row in enumerate(rows) if row.captions]
        rows = [rows[place] for place in kept]
        texts = [row.captions[n % len(row.captions)] for n, row in enumerate(rows)]
        prompts = [list(self.words.begin)] * len(rows)
        found.captions += self._told(prompts, texts, memory[kept], LONGEST, found)
        found.captioned += rows

    def _answers(self, numbers: list[int], memory: Tensor, found: Found) -> None:
        asked = [
            (place, number, one)
            for place, number in enumerate(numbers)
            for one in self.pictures.rows[number].asked
        ]
        prompts = prompt_ids(self.words, [one.question for _, _, one in asked])
        texts = [one.answers[0] for _, _, one in asked]
        memory = memory[[place for place, _, _ in asked]]
        found.answers += self._told(prompts, texts, memory, SHORTEST, found)
        found.asked += [(number, one) for _, number, one in asked]

    def _told(
        self, prompts: list[list[int]], texts: list[str], memory: Tensor, most: int, found: Found
    ) -> list[str]:
        """What is written after each prompt; counts the loss of what should be."""
        if not prompts:
            return []
        words, network = self.words, self.model.network
        rest = [[*ids.tolist(), words.end] for ids in words.plain([said_text(t) for t in texts])]
        ids, targets = (x.to(memory.device) for x in taught(prompts, rest, words.pad))
        states = network.states(ids, memory=memory)
        loss, count = token_loss(states, network.head, targets)
        found.losses.append((float(loss), count))
        writer = network.writer(memory)
        if self.candidates:
            known = words.plain([said_text(text) for text in self.candidates])
            given = [[*ids.tolist(), words.end] for ids in known]
            return [self.candidates[number] for number in rank(writer, prompts, given).argmax(1)]
        sampling = Sampling(max_tokens=most, temperature=0.0)
        done = generate(writer, prompts, sampling, eos=[words.end])
        return [words.tokenizer.decode(each.ids).strip() for each in done]
