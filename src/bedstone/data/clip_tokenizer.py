"""A small tokenizer of CLIP's kind: lower-case byte-level BPE, each text between two tokens.

As in Radford et al. (2021, section 2.4), a text is read in lower case and stands between
`<|startoftext|>` and `<|endoftext|>`, which have the last ids. Word ends are told by the space
before the next word, not by a suffix; so nothing is unknown.
"""

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bedstone.data.cut import cuts
from bedstone.data.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

START, END = "<|startoftext|>", "<|endoftext|>"
SETTINGS = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}


def train_clip(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids.

    Raises:
        BedstoneError: there is no room for the 256 bytes and the two special tokens.
    """
    if vocab_size < 258:
        raise BedstoneError(
            f"tokenizer.vocab_size: {vocab_size:,} is too small; expected 258 or more (256 bytes, "
            "start and end)."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    backend.train_from_iterator((piece for text in texts for piece in cuts(text)), trainer)
    special = [tokenizers.AddedToken(name, normalized=False, special=True) for name in (START, END)]
    backend.add_special_tokens(special)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(name, backend.token_to_id(name)) for name in (START, END)],
    )
    return Tokenizer(backend, dict(SETTINGS))
