"""Outputs of networks as golden files keep them: a few numbers of each, or generated tokens.

Numbers are compared by their root mean square difference, in units of the spread of that output;
tokens by their ids, as far as the choice between two wasn't a matter of rounding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bedstone.runtime import check_finite

FIRST, SPACED = 8, 8  # numbers that are kept of an output: the largest, and some from all over
EXTREMES = 4.0  # a single number may be so many times as far off as a root mean square


@dataclass(frozen=True)
class Numbers:
    """An output of named numbers, such as logits or a vector.

    Attributes:
        names: of the numbers: labels, token ids, or their places.
        values: the numbers.
        spread: the unit that differences are measured in.
        kept: places of those that are stored.
    """

    names: Sequence[Any]
    values: Tensor
    spread: float
    kept: Sequence[int]

    def record(self) -> dict[str, Any]:
        values = [_short(float(self.values[place])) for place in self.kept]
        names = [self.names[place] for place in self.kept]
        return {"names": names, "values": values, "spread": _short(self.spread)}

    def compare(self, stored: Mapping[str, Any], tolerance: float) -> tuple[Any, Any, float] | None:
        """Of an output that differs what was expected, what there is, and the size."""
        places: Any = self.names  # a range has its own places
        if not isinstance(places, range):
            places = {name: place for place, name in enumerate(self.names)}
        names, expected = stored["names"], stored["values"]
        if unknown := [name for name in names if name not in places]:
            return unknown, list(self.names[: len(unknown)]), math.inf
        got = self.values[[places[name] for name in names]].double()
        apart = (got - torch.tensor(expected, dtype=torch.float64)).square().mean().sqrt()
        size = float(apart) / stored["spread"]
        if size <= tolerance:
            return None
        mine = [_short(each) for each in got.tolist()]
        pairs = [list(zip(names, values, strict=True)) for values in (expected, mine)]
        return pairs[0], pairs[1], size if math.isfinite(size) else math.inf


@dataclass(frozen=True)
class Tokens:
    """An output of generated tokens.

    Attributes:
        ids: of the tokens.
        scores: their log-probabilities.
        margins: how much likelier each is than the next best.
        spread: of the logits.
    """

    ids: Sequence[int]
    scores: Sequence[float]
    margins: Sequence[float]
    spread: float

    def record(self) -> dict[str, Any]:
        found = {"scores": self.scores, "margins": self.margins}
        short = {name: [_short(each) for each in values] for name, values in found.items()}
        return {"ids": list(self.ids), **short, "spread": _short(self.spread)}

    def compare(self, stored: Mapping[str, Any], tolerance: float) -> tuple[Any, Any, float] | None:
        """As `Numbers.compare`, up to the first token that is another one.

        Another token is as far off as the stored one was likelier than the next best.
        """
        size = 0.0 if len(self.ids) >= len(stored["ids"]) else math.inf
        columns = stored["ids"], self.ids, stored["scores"], self.scores, stored["margins"]
        for token, own, score, mine, margin in zip(*columns, strict=False):
            apart = margin if token != own else abs(score - mine)
            size = max(size, apart / stored["spread"] / EXTREMES)
            if token != own:
                break
        if size <= tolerance:
            return None
        scores = [_short(each) for each in self.scores]
        return [stored["ids"], stored["scores"]], [list(self.ids), scores], size


Outputs = dict[str, Numbers | Tokens]


def _short(value: float) -> float:
    """Six digits: far finer than any tolerance."""
    return float(f"{value:.6g}")


def numbers_of(
    rows: Sequence[Tensor],
    names: Sequence[Any] | None = None,
    kept: Sequence[int] | None = None,
    least: float = 1e-6,
) -> list[Numbers]:
    """An output for each row of numbers; all are measured in the spread of all.

    Args:
        names: of a row's numbers; None numbers them.
        kept: places of those that are stored; None keeps the largest and some from all over.
        least: the spread, at least.
    """
    rows = [row.detach().flatten().float().cpu() for row in rows]
    whole = torch.cat(rows)
    check_finite(whole, "the outputs")
    # numbers that hardly differ are known no better than their size lets them be
    deviation = float(whole.std()) if len(whole) > 1 else 0.0
    spread = max(deviation, float(whole.square().mean().sqrt()) / 4, least)
    return [
        Numbers(
            range(len(row)) if names is None else names,
            row,
            spread,
            _places(row) if kept is None else kept,
        )
        for row in rows
    ]


def _places(row: Tensor) -> list[int]:
    """Places of the largest numbers, the largest first, and of some from all over."""
    largest = row.topk(min(FIRST, len(row))).indices.tolist()
    return list(dict.fromkeys([*largest, *spaced(len(row), SPACED)]))


def spaced(count: int, most: int) -> list[int]:
    return sorted(
        {place * count // most for place in range(most)} if count > most else range(count)
    )
