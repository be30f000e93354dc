"""An explanation: what methods say of an answer, how each did when it was tested, and its page."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.inspect.attribution import Attribution
from bedstone.inspect.faithfulness import Curves
from bedstone.inspect.lens import Patching
from bedstone.inspect.text_targets import Part, Target
from bedstone.report.explanation_page import (
    Chart,
    Highlighted,
    Overlay,
    Panel,
    enlarged,
    overlay,
    write_explanation_page,
)

UNRELATED = 0.2  # rank correlation with shuffled weights, at most
LISTED = 12  # parts in a table
NO_PROOF = "where attention goes is no proof of what an answer rests on"


@dataclass(frozen=True)
class Result:
    """An attribution and how it did.

    Attributes:
        curves: None where there are too few parts for an order to say anything.
    """

    attribution: Attribution
    curves: Curves | None

    @property
    def failures(self) -> list[str]:
        """What it failed, in words; empty where it holds."""
        found = [] if self.curves is None else list(self.curves.failures)
        sums = self.attribution.completeness
        if sums is not None and not sums.met:
            found.append(f"its scores miss the change of F by {min(sums.error, 99):.1%}")
        if self.curves is None:
            found.append("there are too few parts to test it")
        return found

    def record(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {"scores": self.attribution.scores.tolist()}
        if self.attribution.deviations is not None:
            found["standard_errors"] = self.attribution.deviations.tolist()
        if (sums := self.attribution.completeness) is not None:
            found["completeness"] = {
                "sum": sums.total,
                "change": sums.change,
                "error": sums.error if np.isfinite(sums.error) else None,
                "gradients": sums.gradients,
            }
        if (curves := self.curves) is not None:
            found["deletion_better_than_chance"] = [curves.fall, *curves.fall_interval]
            found["insertion_better_than_chance"] = [curves.rise, *curves.rise_interval]
            found["comprehensiveness"] = curves.comprehensiveness
            found["sufficiency"] = curves.sufficiency
        return {**found, "failures": self.failures}


@dataclass(frozen=True)
class View:
    """A target and what each method says of it, the main one first.

    Attributes:
        full, empty: F of the whole input and of the baseline.
        results: by method.
        maps: by word, of targets that have maps.
        regions: by word, of targets that measure them.
        shuffled: rank correlation of the main scores with those of shuffled weights, each time.
    """

    target: Target
    full: float
    empty: float
    results: dict[str, Result]
    maps: dict[str, Result] = field(default_factory=dict)
    regions: dict[str, np.ndarray] = field(default_factory=dict)
    shuffled: tuple[float, ...] = ()

    @property
    def main(self) -> Result:
        return next(iter(self.results.values()))

    @property
    def failures(self) -> list[str]:
        """What the main method failed."""
        found = list(self.main.failures)
        if self.shuffled and abs(np.mean(self.shuffled)) > self.unrelated:
            found.append("its scores stay nearly the same when the weights are shuffled")
        return found

    @property
    def unrelated(self) -> float:
        """What the mean rank correlation with shuffled weights may be: `UNRELATED`, or what chance
        gives with so few parts."""
        freedom = max(len(self.target.parts) - 1, 1) * max(len(self.shuffled), 1)
        return max(UNRELATED, 2 / freedom**0.5)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        target = self.target
        return {
            "family": target.family,
            "number": target.number,
            "baseline": target.baseline,
            "predicted": target.predicted,
            "value": self.full,
            "value_of_baseline": self.empty,
            "parts": [part.name for part in target.parts],
            "tokens": list(target.tokens),
            "methods": {name: one.record() for name, one in self.results.items()},
            "maps": {name: one.record() for name, one in self.maps.items()},
            "regions": {name: one.tolist() for name, one in self.regions.items()},
            "rank_correlation_with_shuffled_weights": list(self.shuffled),
            "failures": self.failures,
        }


@dataclass(frozen=True)
class Agreement:
    """How a served network and the fp32 twin that gradients are taken of agree.

    Attributes:
        precision: of the served one.
        served, twin: F of each.
        correlation: rank correlation of their occlusion scores.
    """

    precision: str
    served: float
    twin: float
    correlation: float


@dataclass(frozen=True)
class Explanation:
    """What a model's answer rests on.

    Attributes:
        model: its name.
        task: that it did.
        views: of the same answer; a CLIP's picture and its words are two.
        agreement: where it was served in another precision than fp32.
        lens: what the network would say after each block, where that was wanted.
        patching: what comes back as its states stand in another input's pass, likewise.
    """

    model: str
    task: str
    views: tuple[View, ...]
    agreement: Agreement | None = None
    lens: Any = None
    patching: Patching | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing that is shown first failed."""
        return not any(view.failures for view in self.views)

    @property
    def scores(self) -> dict[str, float]:
        """The main scores of the first view by part; a word that is there twice is numbered."""
        view, found = self.views[0], dict[str, float]()
        for part, score in zip(
            view.target.parts, view.main.attribution.scores.tolist(), strict=True
        ):
            name, again = part.name, 1
            while name in found:
                again += 1
                name = f"{part.name} ({again})"
            found[name] = score
        return found

    def record(self) -> dict[str, Any]:
        """For JSON."""
        agreement = None if self.agreement is None else vars(self.agreement)
        views = [view.record() for view in self.views]
        found = {"model": self.model, "task": self.task, "views": views, "served": agreement}
        for name, more in (("lens", self.lens), ("patching", self.patching)):
            found |= {} if more is None else {name: more.record()}
        return found

    def panels(self) -> Iterator[Panel]:
        """What a page shows of it."""
        for view in self.views:
            yield _panel(view)
        if (found := self.agreement) is not None:
            yield Panel(
                f"Served in {found.precision}",
                {
                    f"number by {found.precision}": f"{found.served:.4g}",
                    "by its fp32 twin": f"{found.twin:.4g}",
                    "rank correlation of their occlusion scores": f"{found.correlation:.3f}",
                },
                note="Parts were taken from the served network. Gradients are its twin's.",
            )
        for more in (self.lens, self.patching):
            if more is not None:
                yield more.panel()

    def save(self, path: str | Path, *more: Panel) -> Path:
        """Writes it as a page that needs no other file, what else was looked at behind it."""
        view = self.views[0]
        lead = f"{self.model}, {self.task}: predicted {view.target.predicted!r}"
        return write_explanation_page(
            path, f"Why: {view.target.number}", lead, [*self.panels(), *more]
        )


def _panel(view: View) -> Panel:
    target, main = view.target, view.main
    by = "cells of the picture" if target.picture is not None and not target.texts else "words"
    sums = main.attribution.completeness
    facts = {
        "explained": target.number,
        "with the input": f"{view.full:.4g}",
        "with nothing left": f"{view.empty:.4g}",
        "what is gone": target.baseline,
        "method": main.attribution.method,
    }
    if sums is not None:
        facts["adds up to"] = (
            f"{sums.total:.4g} of a change of {sums.change:.4g} ({min(sums.error, 99):.2%} off, "
            f"{sums.gradients} gradients)"
        )
    if view.shuffled:
        facts["rank correlation with shuffled weights"] = (
            f"{np.mean(view.shuffled):.2f}, the mean of {len(view.shuffled)}"
        )
    curves = main.curves
    return Panel(
        f"{target.family}: by {by}",
        facts,
        view.failures,
        proved=curves is not None,
        texts=list(_highlights(target, main.attribution.scores)) if target.texts else [],
        overlays=list(_overlays(view)),
        charts=[] if curves is None else list(_charts(curves)),
        tables={"Parts": _parts_table(view), "Methods": _methods_table(view)},
        note=f"{NO_PROOF[0].upper()}{NO_PROOF[1:]}." if _has_attention(view) else "",
    )


def _has_attention(view: View) -> bool:
    return any(not one.attribution.proof for one in view.results.values())


def _highlights(target: Target, scores: np.ndarray) -> Iterator[Highlighted]:
    """Each text of a target, its words with their scores."""
    for number, (heading, text) in enumerate(target.texts.items()):
        pieces: list[tuple[str, float | None]] = []
        at = 0
        own = [(part, float(s)) for part, s in zip(target.parts, scores, strict=True)]
        for part, score in sorted(
            ((part, score) for part, score in own if part.text == number),
            key=lambda pair: pair[0].start,
        ):
            pieces += [(text[at : part.start], None), (text[part.start : part.end], score)]
            at = part.end
        yield Highlighted(heading, [*(one for one in pieces if one[0]), (text[at:], None)])


def _overlays(view: View) -> Iterator[Overlay]:
    picture = view.target.picture
    if picture is None:
        return
    yield Overlay("as the network reads it" if view.maps else "picture", enlarged(picture))
    parts, size = view.target.parts, picture.shape[:2]
    if not view.target.texts:
        scores = view.main.attribution.scores
        yield Overlay("all cells", overlay(picture, _spread(parts, scores, size)), view.failures)
    for name, one in view.maps.items():
        shown = overlay(picture, _spread(parts, one.attribution.scores, size))
        yield Overlay(name, shown, one.failures)
    for name, grown in view.regions.items():
        note = "where the error grows without it; measured"
        yield Overlay(name, overlay(picture, _fitted(grown, size)), note=note)


def _spread(parts: tuple[Part, ...], scores: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Scores of cells over their pixels, (h, w)."""
    found = np.zeros(size)
    for part, score in zip(parts, scores, strict=True):
        assert part.box is not None
        top, left, bottom, right = part.box
        found[top:bottom, left:right] = score
    return found


def _fitted(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Values of places (h, w), of latents maybe, at the size of a picture."""
    rows = np.arange(size[0]) * values.shape[0] // size[0]
    columns = np.arange(size[1]) * values.shape[1] // size[1]
    return values[rows][:, columns]


def _charts(curves: Curves) -> Iterator[Chart]:
    for title, line, chance, better, ends in (
        ("Deletion", curves.deletion, curves.random_deletion, curves.fall, curves.fall_interval),
        ("Insertion", curves.insertion, curves.random_insertion, curves.rise, curves.rise_interval),
    ):
        way = "lower" if title == "Deletion" else "higher"
        note = (
            f"{better:.3g} {way} than by chance on average (95 %: {ends[0]:.3g} to {ends[1]:.3g})"
        )
        yield Chart(title, curves.shares, line, chance, note)


def _parts_table(view: View) -> list[list[str]]:
    main = view.main.attribution
    order = np.argsort(-np.abs(main.scores), kind="stable")[:LISTED]
    head = ["part", main.method]
    others = [one.attribution for one in list(view.results.values())[1:]]
    rows = [
        [view.target.parts[at].name, _number(main, at), *(_number(one, at) for one in others)]
        for at in order
    ]
    return [[*head, *(one.method for one in others)], *rows]


def _number(found: Attribution, at: int) -> str:
    score = f"{found.scores[at]:+.3g}"
    if found.deviations is None:
        return score
    return f"{score} ± {found.deviations[at]:.2g}"


def _methods_table(view: View) -> list[list[str]]:
    head = ["method", "deletion", "insertion", "comprehensiveness", "sufficiency", "verdict"]
    rows = [head]
    for name, one in view.results.items():
        curves = one.curves
        cells = ["", "", "", ""]
        if curves is not None:
            cells = [
                f"{curves.fall:+.3g} ({curves.fall_interval[0]:.3g} to "
                f"{curves.fall_interval[1]:.3g})",
                f"{curves.rise:+.3g} ({curves.rise_interval[0]:.3g} to "
                f"{curves.rise_interval[1]:.3g})",
                f"{curves.comprehensiveness:.3g}",
                f"{curves.sufficiency:.3g}",
            ]
        verdict = "✗ " + "; ".join(one.failures) if one.failures else "✓ holds"
        named = name if one.attribution.proof else f"{name} (no proof)"
        rows.append([named, *cells, verdict])
    return rows
