"""A small tokenizer in CLIP's published form, made by hand."""

from collections.abc import Sequence

from bedstone.data.text.convert_tokenizer import CONTEXT, ENDING, from_merges
from bedstone.data.text.tokenizer import Tokenizer


def clip_words(texts: Sequence[str], context: int = CONTEXT) -> Tokenizer:
    """Knows the ASCII words of `texts` whole, all else by its bytes."""
    merges: dict[str, tuple[str, str]] = {}
    for word in " ".join(texts).lower().split():
        if word.isascii() and word.isalpha():
            start = ""
            for part in [*word[:-1], word[-1] + ENDING]:
                if start:
                    merges.setdefault(start + part, (start, part))
                start += part
    backend, settings = from_merges(list(merges.values()))
    return Tokenizer(backend, {**settings, "model_max_length": context})
