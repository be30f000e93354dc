"""Text as a network reads it: ids with what the tokenizer sets around them, and where they are from.

Training and use make their inputs here and nowhere else, so a model is served the very ids it was
trained on. Nothing is cut in silence: what is longer than a row becomes several windows, each with
`stride` tokens of the one before.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Input:
    """One row for a network. T tokens.

    Attributes:
        ids: (T,) token ids, special tokens included.
        types: (T,) 0 for the first text, 1 for the second (`token_type_ids`).
        offsets: (T,) (start, end) characters in the text that a token is from; (0, 0) for special
            tokens. Of words, within the word.
        sources: (T,) 0 or 1 for the text that a token is from, None for special tokens.
        words: (T,) the index of the word that a token is of; None for special tokens.
    """

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]]
    sources: list[int | None]
    words: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)
