"""What a network would say after each of its blocks, and which states an answer goes through.

The logit lens (nostalgebraist, 2020) leaves a network early: the state after a block goes through
the network's own last norm and head, so what stands after the last block is the network's output
bit for bit. Activation patching (Vig et al., 2020; Meng et al., 2022) puts single states of one
input into the pass of another, and says how much of the first's answer comes back.

Shapes: L blocks, T tokens, D width, H heads, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bedstone.errors import BedstoneError
from bedstone.inspect.attribution import Case
from bedstone.models.heads import PretrainingHeads
from bedstone.nn.attention import SelfAttention
from bedstone.report.explanation_page import Grid, Overlay, Panel, enlarged

SHOWN = 16  # tokens of a text, the last ones
LARGEST = 4096  # tokens of states that are patched at a time


@torch.no_grad()
def after_blocks(stack: Any, read: Callable[[], Tensor]) -> list[Tensor]:
    """A pass's output, had it ended before the first block, after the first, ... after all: L + 1.

    Args:
        stack: the blocks, each from x and its context to x.
        read: the pass, in which each block is used once.

    Raises:
        BedstoneError: a block was not used.
    """
    blocks, found = list(stack), []
    for state in block_states(stack, read):
        with _left_at(blocks, state):
            found.append(read())
    return found


@torch.no_grad()
def block_states(stack: Any, read: Callable[[], Any]) -> list[Tensor]:
    """What the first block is given and what each gives in a pass, L + 1 of (B, T, D).

    Raises:
        BedstoneError: a block was not used once.
    """
    states: list[Tensor] = []

    def before(_: nn.Module, given: tuple[Any, ...]) -> None:
        states.append(given[0])

    def after(_: nn.Module, __: Any, output: Tensor) -> None:
        states.append(output)

    blocks = list(stack)
    with contextlib.ExitStack() as hooks:
        hooks.enter_context(_hooked(blocks[0].register_forward_pre_hook(before)))
        for block in blocks:
            hooks.enter_context(_hooked(block.register_forward_hook(after)))
        read()
    if len(states) != len(blocks) + 1:
        raise BedstoneError("lens: this network doesn't use its blocks one after another.")
    return states


@contextlib.contextmanager
def _left_at(blocks: Sequence[nn.Module], state: Tensor) -> Iterator[None]:
    """While it lasts, the first block gives `state`, and all others what they are given."""
    for number, block in enumerate(blocks):
        own = state if number == 0 else None
        block.forward = lambda x, context, own=own: x if own is None else own
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@dataclass(frozen=True)
class Lens:
    """What a network would say after each block.

    Attributes:
        tokens: that it reads, T of them.
        said: the likeliest token after each block at each token, L + 1 rows of T.
        sure: its probability, (L + 1, T).
        chosen: the probability of what is said at last, (L + 1, T).
    """

    tokens: tuple[str, ...]
    said: tuple[tuple[str, ...], ...]
    sure: np.ndarray
    chosen: np.ndarray

    @property
    def settled(self) -> list[int]:
        """After which block each token's last word is the likeliest for good, 0 to L."""
        last = self.said[-1]
        found = []
        for at, word in enumerate(last):
            depth = len(self.said) - 1
            while depth and self.said[depth - 1][at] == word:
                depth -= 1
            found.append(depth)
        return found

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tokens": list(self.tokens),
            "said": [list(row) for row in self.said],
            "probability": self.sure.tolist(),
            "probability_of_the_last": self.chosen.tolist(),
        }

    def panel(self) -> Panel:
        """For a page; of a long text the last tokens."""
        first = max(0, len(self.tokens) - SHOWN)
        rows = [
            (
                "embedding" if depth == 0 else f"block {depth}",
                [
                    (_visible(word), float(sure))
                    for word, sure in zip(
                        self.said[depth][first:], self.sure[depth][first:], strict=True
                    )
                ],
            )
            for depth in range(len(self.said) - 1, -1, -1)
        ]
        note = (
            "The likeliest token after each block, by the network's own last norm and head; the "
            "darker, the surer. The first row is the network's output. What stands below is what "
            "the head makes of states that it never learnt to read."
        )
        head = [_visible(token) for token in self.tokens[first:]]
        return Panel("Logit lens", grids=[Grid("After each block", note, head, rows)])


def _visible(text: str) -> str:
    """A token as it is shown: line ends and such by signs, a vocabulary's own marks as spaces."""
    for mark, sign in (("\n", "↵"), ("\t", "⇥"), ("Ġ", " "), ("Ċ", "↵"), ("▁", " ")):
        text = text.replace(mark, sign)
    return text or "∅"


def text_lens(network: Any, tokenizer: Any, ids: Sequence[int]) -> Lens:
    """The lens of a GPT, or of a BERT with a head for words."""
    given = torch.tensor([list(ids)], device=next(network.parameters()).device)

    def read() -> Tensor:
        states = network.states(given)
        head = network.head.words if isinstance(network.head, PretrainingHeads) else network.head
        return head(states)[0]

    return logit_lens(network.stack, read, tokenizer, ids)


def logit_lens(stack: Any, read: Callable[[], Tensor], tokenizer: Any, ids: Sequence[int]) -> Lens:
    """The lens of a pass that gives logits (T, V) of the tokens `ids`."""
    logits = torch.stack(after_blocks(stack, read)).float()  # (L + 1, T, V)
    shares = logits.softmax(-1)
    sure, best = shares.max(-1)
    chosen = shares.gather(-1, best[-1].expand(len(best), -1)[..., None])[..., 0]

    def text(one: int) -> str:
        return str(tokenizer.decode([one], skip_special=False))

    return Lens(
        tuple(text(one) for one in ids),
        tuple(tuple(text(one) for one in row) for row in best.tolist()),
        sure.cpu().numpy(),
        chosen.cpu().numpy(),
    )


@dataclass(frozen=True)
class DrawnLens:
    """The clean picture that a denoiser predicts after each block.

    Attributes:
        pictures: L + 1 of (h, w, 3) uint8.
        errors: mean squared distance of each from the last.
    """

    pictures: tuple[np.ndarray, ...]
    errors: tuple[float, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"squared_distance_from_the_last": list(self.errors)}

    def panel(self) -> Panel:
        """For a page."""
        names = ["before all blocks", *(f"block {at}" for at in range(1, len(self.pictures)))]
        shown = [
            Overlay(name, enlarged(picture), note=f"distance from the last {error:.3g}")
            for name, picture, error in zip(names, self.pictures, self.errors, strict=True)
        ]
        note = "What the last layer makes of the state after each block, of half noise."
        return Panel("Clean picture after each block", overlays=shown, note=note)


@dataclass(frozen=True)
class Patching:
    """How much of an answer comes back as states of one input stand in the pass of another.

    Attributes:
        clean, other: F of both inputs.
        tokens: of the clean one.
        states: share of F's difference that comes back, by block and token, (L + 1, T); the first
            row is the embedding.
        heads: by block and head, over all tokens, (L, H).
    """

    clean: float
    other: float
    tokens: tuple[str, ...]
    states: np.ndarray
    heads: np.ndarray

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "clean": self.clean,
            "other": self.other,
            "tokens": list(self.tokens),
            "states": self.states.tolist(),
            "heads": self.heads.tolist(),
        }

    def panel(self) -> Panel:
        """For a page."""
        facts = {"with the input": f"{self.clean:.4g}", "with the other": f"{self.other:.4g}"}
        note = (
            "Share of the difference that comes back where a single state of the input stands in "
            "the pass of the other: 1 is all of it, 0 nothing. Effects of this intervention, "
            "measured; states that work only together show nothing alone."
        )
        blocks = ["embedding", *(f"block {at + 1}" for at in range(len(self.heads)))]
        heads = [f"head {at + 1}" for at in range(self.heads.shape[1])]
        rows = [(name, _cells(row)) for name, row in zip(blocks, self.states, strict=True)]
        by_head = [(name, _cells(row)) for name, row in zip(blocks[1:], self.heads, strict=True)]
        grids = [
            Grid("State after a block, at a token", note, list(map(_visible, self.tokens)), rows),
            Grid("What a head adds, at all tokens", note, heads, by_head),
        ]
        return Panel("Activation patching", facts, grids=grids)


def _cells(row: np.ndarray) -> list[tuple[str, float]]:
    shown = (f"{value:.2f}" if abs(value) >= 0.005 else "0" for value in row)
    return [
        (text, float(np.clip(abs(value), 0, 1))) for text, value in zip(shown, row, strict=True)
    ]


@torch.no_grad()
def patch(network: Any, clean: Case, other: Case, tokens: Sequence[str]) -> Patching:
    """Patches each state, and each head, of one input into the pass of another.

    Args:
        network: with blocks in `stack`, of which both cases are.
        clean: the case of the input whose number F is explained.
        other: of an input of as many tokens.

    Raises:
        BedstoneError: the inputs have different lengths, or the same number.
    """
    if clean.values.shape != other.values.shape:
        raise BedstoneError(
            f"--patch: has {len(other.values)} tokens, the input {len(clean.values)}; expected as "
            "many. Change a word for one of as many tokens."
        )
    narrows = network.narrows
    network.narrows = False  # the last block's states of all tokens are wanted
    try:
        return _patched(network, clean, other, tokens)
    finally:
        network.narrows = narrows


def _patched(network: Any, clean: Case, other: Case, tokens: Sequence[str]) -> Patching:
    score = clean.score  # by the row of the input: its length and its places are the other's too
    full, empty = float(score(clean.values[None])), float(score(other.values[None]))
    if abs(full - empty) < 1e-6:
        raise BedstoneError("--patch: both inputs give the same number, so nothing can come back.")
    blocks = list(network.stack)
    attentions = [_attention(block) for block in blocks]
    kept = _kept([*blocks, *(each.out for each in attentions)], lambda: score(clean.values[None]))
    length = len(clean.values)

    def share(values: Tensor) -> np.ndarray:
        return ((values.double() - empty) / (full - empty)).cpu().numpy()

    def each_token(module: nn.Module | None, state: Tensor) -> np.ndarray:
        """Patched at one token a row."""
        found = []
        for places in torch.arange(length).split(max(1, LARGEST // length)):
            rows = torch.arange(len(places))
            values = other.values.expand(len(places), -1, -1).clone()
            if module is None:
                values[rows, places] = state[places]
                found.append(score(values))
                continue

            def swap(_: Any, __: Any, output: Tensor, places: Tensor = places) -> Tensor:
                output = output.clone()
                output[torch.arange(len(places)), places] = state[0, places]
                return output

            with _hooked(module.register_forward_hook(swap)):
                found.append(score(values))
        return share(torch.cat(found))

    def each_head(attention: SelfAttention, mixed: Tensor) -> np.ndarray:
        """Patched at one head a row; what heads give stands side by side before `out`."""
        width = attention.head_width
        count = mixed.shape[-1] // width

        def swap(_: Any, given: tuple[Tensor]) -> tuple[Tensor]:
            x = given[0].clone()
            for head in range(count):
                part = slice(head * width, (head + 1) * width)
                x[head, :, part] = mixed[0, :, part]
            return (x,)

        with _hooked(attention.out.register_forward_pre_hook(swap)):
            return share(score(other.values.expand(count, -1, -1)))

    states = [each_token(None, clean.values)]
    states += [each_token(block, kept[block][1]) for block in blocks]
    heads = [each_head(each, kept[each.out][0]) for each in attentions]
    return Patching(full, empty, tuple(tokens), np.stack(states), np.stack(heads))


def _attention(block: Any) -> SelfAttention:
    found = next((one for one in block.modules() if isinstance(one, SelfAttention)), None)
    if found is None:
        raise BedstoneError("--patch: a block of this network has no self-attention.")
    return found


def _kept(
    modules: Sequence[nn.Module], read: Callable[[], Any]
) -> dict[Any, tuple[Tensor, Tensor]]:
    """What each module is given and gives in a pass."""
    found: dict[Any, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        found[module] = (given[0], output)

    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(_hooked(module.register_forward_hook(keep)))
        read()
    return found


@contextlib.contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
