"""Documents cut for fill-in-the-middle, to learn from: which, where, and their tokens.

Two characters are drawn from a document, and its middle moves to its end with the token that ends
it (Bavarian et al., 2022, https://arxiv.org/abs/2207.14255, sections 3 and 4.4). Documents that are
longer than a context are cut into passages first, as their context-level FIM does: a window would
otherwise hold a middle without what stands around it.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bedstone.data.text.fim import PSM, SPM, STYLES, encode_behind, encode_first, fim_tokens
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.settings import Settings, one_of, optional, share, whole


@dataclass
class FimConfig(Settings):
    """Fill-in-the-middle: which documents a decoder learns from are cut, and how.

    Attributes:
        rate: share of documents whose middle moves to their end; 0 cuts none.
        spm: share of these that begin with the suffix; by default half where the convention has
            both orders.
        style: the convention, such as starcoder or qwen2.5-coder; empty takes the tokenizer's own,
            and starcoder for a tokenizer that is trained.
        passage: characters of a passage: a longer document is cut at line ends into passages, each
            of which counts as a document here, so that a middle is learnt in sight of what stands
            around it; by default twice the context's tokens. 0 cuts whole documents alone.
        lines: share of cuts whose middle is the rest of one line, as editors ask for it: from the
            line's begin, its first character that isn't white space, or any (a third each), to its
            last. The other cuts are at two characters drawn from all.
        apart: whether a passage that is cut is a document of its own, which reads nothing before it
            as a prompt does; else it stays in its document, as in the paper, and what follows reads
            it, which keeps long contexts.
    """

    rate: float = share(default=0.5)
    spm: float | None = optional(share())
    style: str = one_of("", *STYLES, default="")
    passage: int | None = optional(whole(0))
    lines: float = share(default=0.0)
    apart: bool = True

    section: ClassVar[str] = "fim."


class FimCounts(NamedTuple):
    """How many passages there are, how many are cut, and how many of these begin with a suffix."""

    passages: int = 0
    cut: int = 0
    spm: int = 0

    def plus(self, other: "FimCounts") -> "FimCounts":
        return FimCounts(*(a + b for a, b in zip(self, other, strict=True)))


class CutText(NamedTuple):
    """The tokens of a text, some passages of which are cut.

    Attributes:
        ids: (T,) uint32.
        starts: where in them further documents begin; 0 is none of them.
        open_ended: whether the text's own end token is still to come.
        counts: of its passages.
    """

    ids: np.ndarray
    starts: tuple[int, ...]
    open_ended: bool
    counts: FimCounts


class FimCutter:
    """Cuts documents and encodes them; what is drawn depends on a seed and on the text alone.

    A passage that is cut is a document of its own and ends with the token that ends a middle. What
    stands between two of them stays one document.

    Args:
        passage: characters of a passage; 0 takes whole documents.

    Raises:
        BedstoneError: the tokenizer lacks the tokens, or the share of SPM isn't the convention's.
    """

    def __init__(self, tokenizer: Tokenizer, config: FimConfig, passage: int, seed: int) -> None:
        self.tokens = fim_tokens(tokenizer, config.style, "fim")
        style = self.tokens.style
        self.rate, self.lines, self.seed = config.rate, config.lines, seed
        self.apart = config.apart
        self.passage = passage if config.passage is None else config.passage
        usual = 0.5 if len(style.orders) == 2 else float(SPM in style.orders)
        self.spm = usual if config.spm is None else config.spm
        if len(style.orders) == 1 and self.spm != usual:
            raise BedstoneError(
                f"fim.spm: {self.spm:g} was given; the convention {style.name} has "
                f"{style.orders[0]} alone, so it is {usual:g}. Leave it out."
            )

    def identity(self) -> dict[str, Any]:
        """All that decides which tokens come out, beside the tokenizer and the text."""
        style = self.tokens.style.name
        names = ["rate", "spm", "passage", "seed"]
        names += ["lines"] if self.lines else []  # caches made before they were there stay good
        names += [] if self.apart else ["apart"]
        return {"style": style, **{name: getattr(self, name) for name in names}}

    def encode(
        self, texts: Sequence[str], begins: Sequence[bool], ends: Sequence[bool]
    ) -> list[CutText]:
        """The tokens of pieces of documents.

        Args:
            begins, ends: whether a piece begins or ends its document; where it doesn't, its first
                or last passage stays as it is, since it goes on in the next piece.
        """
        spans = [self._spans(*each) for each in zip(texts, begins, ends, strict=True)]
        plain = [one for own in spans for one in own if one.order == ""]
        cut = [one for own in spans for one in own if one.order]
        known = self.tokens.tokenizer
        wholes = iter(
            known.encode_batch([one.text for one in plain], [one.continued for one in plain])
        )
        prefixes = iter(encode_first(known, [one.text[: one.first] for one in cut]))
        inner = [one.text[one.first : one.last] for one in cut]
        inner += [one.text[one.last :] for one in cut]
        found = encode_behind(known, inner)
        middles, suffixes = iter(found[: len(cut)]), iter(found[len(cut) :])
        done = []
        for own in spans:
            parts: list[np.ndarray] = []
            for one in own:
                if one.order:
                    before, after = next(prefixes).tolist(), next(suffixes).tolist()
                    made = self.tokens.arrange(before, after, one.order)
                    made += [*next(middles).tolist(), self.tokens.end_id]
                    parts.append(np.array(made, dtype=np.uint32))
                else:
                    parts.append(next(wholes))
            sizes = np.cumsum([len(part) for part in parts if len(part)])[:-1]
            sizes = sizes if self.apart else sizes[:0]
            ids = np.concatenate(parts)
            orders = [one.order for one in own]
            passages = sum(one.passages for one in own)
            counts = FimCounts(passages, len(orders) - orders.count(""), orders.count(SPM))
            done.append(CutText(ids, tuple(sizes.tolist()), not orders[-1], counts))
        return done

    def _spans(self, text: str, begins: bool, ends: bool) -> list["_Span"]:
        """Cut passages, and what stands between them."""
        digest = hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=16).digest()
        random = np.random.default_rng(int.from_bytes(digest, "big"))
        whole = not self.passage and begins and ends
        passages = [text] if not self.passage else list(_passages(text, self.passage))
        spans: list[_Span] = []
        held: list[str] = []  # passages that stay as they are

        def keep() -> None:
            continued = not (begins or spans)
            spans.append(_Span("".join(held), len(held), continued=continued))
            held.clear()

        for number, passage in enumerate(passages):
            outer = (not number and not begins) or (number == len(passages) - 1 and not ends)
            drawn = random.random() < self.rate
            order = SPM if random.random() < self.spm else PSM
            first, last = sorted(random.integers(0, len(passage) + 1, 2).tolist())
            if not drawn or outer or len(passage) < 2 or not (self.passage or whole):
                held.append(passage)
                continue
            if held:
                keep()
            if self.lines and random.random() < self.lines:
                first, last = _rest_of_a_line(passage, random) or (first, last)
            spans.append(_Span(passage, 1, order, first, last))
        if held:
            keep()
        return spans


class _Span(NamedTuple):
    text: str
    passages: int
    order: str = ""  # of one that is cut
    first: int = 0  # characters at which it is cut
    last: int = 0
    continued: bool = False  # goes on from the piece before


def _passages(text: str, size: int) -> Iterator[str]:
    """A text in passages of at most `size` characters, cut at line ends where there are some."""
    start = 0
    while len(text) - start > size:
        stop = text.rfind("\n", start + size // 2, start + size) + 1 or start + size
        yield text[start:stop]
        start = stop
    yield text[start:]


def _rest_of_a_line(text: str, random: np.random.Generator) -> tuple[int, int] | None:
    """Where the rest of a line begins and ends; None for a text of nothing but white space."""
    lines = list(re.finditer(r"([^\S\r\n]*)(\S[^\r\n]*)", text))
    if not lines:
        return None
    line = lines[random.integers(len(lines))]
    starts = line.start(), line.start(2), int(random.integers(line.start(2), line.end()))
    return starts[random.integers(3)], line.end()
