"""How well a GPT that sees puts held-out pictures into words."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bedstone.checkpoints.artefact import tokenizer_of
from bedstone.commands.told_scoring import LONGEST, SHORTEST, Found, Measure, ToldScorer
from bedstone.data.gpt_told import gpt_words, prompt_ids
from bedstone.data.told_prompts import said_text
from bedstone.data.told_text import Words, taught
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

    def _measured(self) -> list[Measure]:
        known = {"captions": self._captions, "answers": self._answers}
        return [measure for name, measure in known.items() if self.kind in (name, "joint")]

    def _captions(self, numbers: list[int], memory: Tensor, found: Found) -> None:
        rows = [self.pictures.rows[number] for number in numbers]
        kept = [place for place, row in enumerate(rows) if row.captions]
        rows = [rows[place] for place in kept]
        texts = [row.captions[n % len(row.captions)] for n, row in enumerate(rows)]
        prompts = [list(self.words.begin)] * len(rows)
        found.captions += self._told(prompts, texts, memory[kept], found, LONGEST)
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
        found.answers += self._told(prompts, texts, memory, found, SHORTEST, self.candidates)
        found.asked += [(number, one) for _, number, one in asked]

    def _told(
        self,
        prompts: list[list[int]],
        texts: list[str],
        memory: Tensor,
        found: Found,
        most: int,
        candidates: Sequence[str] = (),
    ) -> list[str]:
        """What is written after each prompt; counts the loss of what should be."""
        if not prompts:
            return []
        words, network = self.words, self.model.network
        ended = zip(prompts, self._ended(texts), strict=True)
        rest = [said[: words.context + 1 - len(prompt)] for prompt, said in ended]
        ids, targets = (x.to(memory.device) for x in taught(prompts, rest, words.pad))
        states = network.states(ids, memory=memory)
        loss, count = token_loss(states, network.head, targets)
        found.losses.append((float(loss), count))
        return self._write(network.writer(memory), prompts, most, candidates)

    def _cut(self, texts: Sequence[str]) -> list[list[int]]:
        return super()._cut([said_text(text) for text in texts])
