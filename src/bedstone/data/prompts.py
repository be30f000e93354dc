"""Words to draw from, as the network that reads them takes them.

Shapes: B texts, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bedstone.data.conditions import Condition, text_condition
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError


@dataclass(frozen=True)
class Prompts:
    """Texts to conditions.

    Attributes:
        tokenizer: with a token around each text, so that no text is empty.
        context: tokens of a text at most; longer ones are cut.
    """

    tokenizer: Tokenizer
    context: int

    def __post_init__(self) -> None:
        if not self.nothing:
            raise BedstoneError(
                "tokenizer: sets no token around a text, so that a text which says nothing has "
                "none. Use a CLIP's or a BERT's, or train one (tokenizer.kind: wordpiece)."
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, not cut."""
        return [self.tokenizer.encode(text, special=True) for text in texts]

    @property
    def nothing(self) -> list[int]:
        """The tokens of the text that says nothing."""
        return self.encode([""])[0]

    @property
    def pad(self) -> int:
        """What fills shorter texts up."""
        return self.tokenizer.pad_id or 0

    def condition(self, texts: Sequence[str]) -> Condition:
        """The condition of each text.

        Raises:
            BedstoneError: a text is none, or longer than the network reads.
        """
        rows = self.encode(texts)
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.context:
                raise BedstoneError(
                    f"prompt: {text[:60]!r}... has {len(row)} tokens; the model reads "
                    f"{self.context} at most. Say it in fewer words."
                )
        return text_condition(rows, pad=self.pad)
