"""Texts as the towers of CLIP and SigLIP read them, in training and in use alike.

CLIP's row is what the tokenizer makes of a text, its last token the end token, where the tower is
read; no padding. SigLIP's is padded to the whole context, as it was trained: the tower sees the
padding, and is read at the last token whatever that is.
"""

from collections.abc import Sequence
from typing import Any

from bedstone.data.inputs import Input, text_batch
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

_OLD_END = 2  # published CLIPs take this id of an end token for the mark of an old file


def text_rows(tokenizer: Tokenizer, texts: Sequence[str], config: Any) -> list[Input]:
    """A row for each text. What is longer than the context is cut before its end token.

    Args:
        config: a `CLIPConfig`, or the `TextConfig` in it.

    Raises:
        BedstoneError: a text is empty or broken, or the tokenizer isn't one for a tower.
    """
    config = getattr(config, "text", config)
    _check(tokenizer, config)
    rows = [windows[0] for windows in text_batch(tokenizer, texts, limit=config.context)]
    if config.layout == "clip_text_model":
        return rows
    assert tokenizer.pad_id is not None
    return [_padded(row, tokenizer.pad_id, config.context) for row in rows]


def was_cut(row: Input, text: str) -> bool:
    """Whether a row lacks the end of its text."""
    read = max((end for _, end in row.offsets), default=0)
    return read < len(text.rstrip())


def _padded(row: Input, pad: int, context: int) -> Input:
    more = context - len(row)
    return Input(
        row.ids + [pad] * more,
        row.types + [0] * more,
        row.offsets + [(0, 0)] * more,
        [*row.sources, *[None] * more],
        [*row.words, *[None] * more],
    )


def _check(tokenizer: Tokenizer, config: Any) -> None:
    """Raises BedstoneError unless the tokenizer's rows are what the tower reads."""
    if tokenizer.vocab_size > config.vocab_size:
        raise BedstoneError(
            f"tokenizer: has {tokenizer.vocab_size:,} tokens, the text tower "
            f"{config.vocab_size:,}. Take both from the same model."
        )
    if config.layout != "clip_text_model":
        if tokenizer.pad_id is None:
            raise BedstoneError(
                "tokenizer: has no pad_token, and SigLIP reads padded rows. Name one in "
                "tokenizer_config.json."
            )
        return
    shown = tokenizer.encode("a", special=True)
    end = tokenizer.eos_id
    if end is None or not shown or shown[-1] != end or end == _OLD_END:
        found = "none" if end is None else f"{end}, and 'a' becomes {shown}"
        raise BedstoneError(
            "tokenizer: CLIP's text tower is read at the end token, which the tokenizer has to set "
            f"after each text, with an id other than {_OLD_END}; this one's is {found}. Take "
            "CLIP's own, or train one of its kind (train_clip)."
        )
