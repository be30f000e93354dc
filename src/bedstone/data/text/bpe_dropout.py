"""BPE-dropout: other cuts of the same words in every epoch (Provilkov et al., 2020).

At each step each merge that is possible in a word is left out with a chance of `share`, and the
first of the rest, by rank, is made; where none is left, the word is cut as it is then. The draws
come from a generator that is handed in, so cuts are those of a seed (the dropout of the
`tokenizers` library has none), whatever else is known already.

The cuts that a word can have on the way are the nodes of a graph, each with the merges that are
possible there by rank. A node is made when it is first come to, and kept: cutting a word again is
a walk, with one number for each step: how many of the first merges are left out, which is
geometric.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from bedstone.data.text.encode import special_ids
from bedstone.data.text.seq2seq import PairBatch, PairExamples, pair_batch
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tokenizer_limits import guarded
from bedstone.errors import BedstoneError
from bedstone.settings import check_shares

NODES = 1 << 18  # that are kept, some 150 MB; others are made anew each time


class Node:
    """A word, cut somehow.

    Attributes:
        ids: of its parts.
        merges: (place, id of what is made) of each merge that is possible, by rank, then by place.
        after: the node after each merge; None where it isn't known.
    """

    __slots__ = ("after", "ids", "merges")

    def __init__(self, ids: tuple[int, ...], merges: list[tuple[int, int]]) -> None:
        self.ids, self.merges = ids, merges
        self.after: list[Node | None] = [None] * len(merges)


Words = Sequence[Node]  # of a text


class BPEDropout:
    """Cuts texts by the merges of a byte-level BPE tokenizer, some of which are left out.

    Args:
        tokenizer: whose merges they are.
        share: chance that a merge is left out; with 0 the ids are the tokenizer's own.

    Raises:
        BedstoneError: the tokenizer is no byte-level BPE, or `share` is none below 1.
    """

    def __init__(self, tokenizer: Tokenizer, share: float) -> None:
        check_shares({"bpe_dropout": share})
        model = json.loads(tokenizer.backend.to_str())["model"]
        vocabulary = model.get("vocab")
        letters = pre_tokenizers.ByteLevel.alphabet()
        odd = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
        plain = tokenizer.plain.get_added_tokens_decoder().values()
        if (
            model.get("type") != "BPE"
            or any(model.get(name) for name in odd)
            or not set(letters) <= set(vocabulary)
            or not all(token.special for token in plain)
        ):
            raise BedstoneError(
                f"bpe_dropout: {tokenizer.path} is no plain byte-level BPE, whose merges alone "
                "decide how a word is cut. Train one (tokenizer.kind: bpe), or leave bpe_dropout "
                "out."
            )
        self.tokenizer, self.share = tokenizer, share
        self._letters = {name: number for name, number in vocabulary.items() if len(name) == 1}
        self._merges = dict(_merge(vocabulary, *item) for item in enumerate(model["merges"]))
        self._words: dict[str, Node] = {}
        self._nodes: dict[tuple[int, ...], Node] = {}

    def words(self, text: str) -> Words:
        """The words of a text, to be cut any number of times by `cut`."""
        plain, found = self.tokenizer.plain, []
        with guarded(self.tokenizer.path, text):
            for piece in self.tokenizer.pieces(text):
                if plain.normalizer is not None:
                    piece = plain.normalizer.normalize_str(piece)
                found += [word for word, _ in plain.pre_tokenizer.pre_tokenize_str(piece)]
        known = self._words
        return [known.get(word) or self._word(word) for word in found]

    def cut(self, words: Words, draw: np.random.Generator | None) -> list[int]:
        """The ids of a text, some merges left out; without a generator, none."""
        skipped: Iterator[int] = repeat(0)
        if draw is not None:
            steps = sum(len(word.ids) for word in words)  # a merge leaves one part less
            skipped = iter((draw.geometric(1.0 - self.share, steps) - 1).tolist())
        found: list[int] = []
        for node in words:
            after = node.after
            while after:
                number = next(skipped)
                if number >= len(after):
                    break
                node = after[number] or self._merged(node, number)
                after = node.after
            found += node.ids
        return found

    def __call__(self, text: str, draw: np.random.Generator) -> list[int]:
        """The ids of a text, without special tokens, some merges left out."""
        return self.cut(self.words(text), draw)

    def _word(self, word: str) -> Node:
        node = self._node(tuple(self._letters[letter] for letter in word))
        if len(self._words) < NODES:
            self._words[word] = node
        return node

    def _merged(self, node: Node, number: int) -> Node:
        """The node after a merge."""
        place, made = node.merges[number]
        found = self._node((*node.ids[:place], made, *node.ids[place + 2 :]))
        if len(self._nodes) < NODES:
            node.after[number] = found
        return found

    def _node(self, ids: tuple[int, ...]) -> Node:
        if ids in self._nodes:
            return self._nodes[ids]
        found = []
        for place in range(len(ids) - 1):
            if merge := self._merges.get(ids[place : place + 2]):
                found.append((merge[0], place, merge[1]))
        node = Node(ids, [(place, made) for _, place, made in sorted(found)])
        if len(self._nodes) < NODES:
            self._nodes[ids] = node
        return node


def _merge(
    vocabulary: dict[str, int], rank: int, merge: Any
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """A pair of ids, and its rank and what it becomes."""
    one, two = merge.split(" ") if isinstance(merge, str) else merge
    return (vocabulary[one], vocabulary[two]), (rank, vocabulary[one + two])


class RecutPairs:
    """Pairs that are cut anew whenever they are read, for `data.text.seq2seq.pair_stream`.

    A text is read as it is where a cut is longer than the network reads, and where the tokenizer
    finds special tokens in it; the token of a language before a source stays as it is.

    Args:
        examples: the pairs by their own tokens.
        tokenizer: that they were read by.
        share: chance that a merge is left out.
        most: tokens of a source, and of a target, that the network reads.

    Raises:
        BedstoneError: as `BPEDropout`.
    """

    def __init__(
        self, examples: PairExamples, tokenizer: Tokenizer, share: float, most: tuple[int, int]
    ) -> None:
        self.examples = examples
        pairs = examples.pairs
        sides = [(pairs.sources[row], pairs.codes[row].strip()) for row in examples.kept]
        self.sources = _Side(tokenizer, share, most[0], sides, examples.sources)
        sides = [(pairs.targets[row], "") for row in examples.kept]
        self.targets = _Side(tokenizer.target, share, most[1], sides, examples.targets)

    def __len__(self) -> int:
        return len(self.examples)

    def collate(self, rows: np.ndarray, random: np.random.Generator, number: int) -> PairBatch:
        """For `data.stream.Stream`: all cuts are drawn from its generator."""
        order, pairs = rows.tolist(), self.examples.pairs
        return pair_batch(
            [self.sources.ids(row, random) for row in order],
            [self.targets.ids(row, random) for row in order],
            self.examples.start,
            number,
            [pairs.where(self.examples.kept[row]) for row in order],
        )


class _Side:
    """The sources or the targets: texts, each with the token before it, or an empty one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        share: float,
        most: int,
        texts: Sequence[tuple[str, str]],
        plain: Any,
    ) -> None:
        self.cut, self.most, self.plain = BPEDropout(tokenizer, share), most, plain
        self.before, self.after = special_ids(tokenizer)
        self.codes = [tokenizer.id_of(code) if code else None for _, code in texts]
        self.words: list[Words] = []
        for row, (text, _) in enumerate(texts):
            words = self.cut.words(text)
            same = self._around(row, self.cut.cut(words, None)) == plain[row].tolist()
            self.words.append(words if same else ())

    def ids(self, row: int, draw: np.random.Generator) -> np.ndarray:
        words = self.words[row]
        found = self._around(row, self.cut.cut(words, draw)) if words else []
        return np.array(found) if 0 < len(found) <= self.most else self.plain[row]

    def _around(self, row: int, ids: list[int]) -> list[int]:
        code = self.codes[row]
        return [*self.before, *([] if code is None else [code]), *ids, *self.after]
