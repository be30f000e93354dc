"""Checks of an audit on what a model decides, generates and finds: groups, rates, search."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.evaluate.generative import at_size, open_clip
from bedstone.evaluate.scene_judge import open_scene_judge, stated
from bedstone.inspect.audit_checks import Audited, Check, Part, RowsCheck, named_lists, shares
from bedstone.metrics.bias import (
    FEW,
    Measure,
    chosen_rates,
    corrected,
    group_differences,
    group_rates,
    skew,
)
from bedstone.report.sheets import as_pixels
from bedstone.runtime import pick_precision
from bedstone.settings import whole
from bedstone.tasks.media.generator import rows_of
from bedstone.tasks.media.unclip import open_generator
from bedstone.tasks.task import embeds_both, embeds_images
from bedstone.tasks.text.feature_extraction import can_embed, embedder_of

# Decisions on labelled rows, by group.


@dataclass(frozen=True)
class GroupsCheck(RowsCheck):
    """Whether a classifier serves groups of labelled rows differently.

    Columns `text` or `image`, `label`, and those of `groups`.

    Attributes, besides those of a `RowsCheck`:
        groups: columns that say which group a row is of; of several, their combinations too.
        favourable: the label whose rates are compared.
    """

    kind: ClassVar[str] = "groups"
    groups: list[str] = field(default_factory=list)
    favourable: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.groups:
            raise BedstoneError(f"{self.title}.groups: name the columns that say the group.")
        if not self.favourable:
            raise BedstoneError(f"{self.title}.favourable: name the label whose rates count.")

    def fits(self, audited: Audited) -> str:
        return "" if audited.head == "sequence" else "a classifier of texts or images"

    def measure(self, audited: Audited) -> Part:
        rows = self.rows(audited)
        labels = list(audited.model.config.head.labels)
        if self.favourable not in labels:
            raise BedstoneError(
                f"{self.title}.favourable: {self.favourable!r} is none of the model's labels, "
                f"{', '.join(labels)}."
            )
        truth = np.array(
            [self.cell(row, "label", n) == self.favourable for n, row in enumerate(rows)]
        )
        guess = np.array([each == self.favourable for each in self._said(audited, rows)])
        measures: list[Measure] = []
        tables = {}
        for column, of in self._columns(rows):
            names = sorted(set(of))
            if len(names) > len(of) / 2:
                raise BedstoneError(
                    f"{self.title}.groups: {column} has {len(names)} values in {len(of)} rows, so "
                    "that hardly two rows are of one group. Name a column of groups."
                )
            places = np.array([names.index(each) for each in of])
            rates = group_rates(truth, guess, places, names)
            tables[f"{column}: label {self.favourable}"] = _table(rates)
            found = group_differences(truth, guess, places, names, seed=audited.seed)
            measures += [replace(each, name=f"{column}: {each.name}") for each in found]
        return Part(
            self.title,
            self.kind,
            f"Largest difference between groups, over {len(rows):,} rows, of the label "
            f"{self.favourable}. The aim is 0; a largest difference is above it by chance, so go "
            "by the test, not by the interval alone. Equal rates of all kinds at once are "
            "impossible where groups' base rates differ (Kleinberg et al., 2017).",
            corrected(measures),
            tables=tables,
        )

    def _columns(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
        """Groups of all rows, by each column and by all of them together."""
        found = [
            (name, [self.cell(row, name, number) for number, row in enumerate(rows)])
            for name in self.groups
        ]
        if len(found) > 1:
            both = [" and ".join(each) for each in zip(*(of for _, of in found), strict=True)]
            found.append((" and ".join(self.groups), both))
        return found

    def _said(self, audited: Audited, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """The model's label for each row."""
        if embeds_images(audited.model):
            task, part, home = "image-classification", "image", Path(self.data).parent
            given: list[Any] = [home / self.cell(row, part, n) for n, row in enumerate(rows)]
        else:
            task, part = "text-classification", "text"
            given = [self.cell(row, part, n) for n, row in enumerate(rows)]
        found = audited.task(task, top_k=1)(given)
        return [str(each[0]["label"]) for each in found]


def _table(rates: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    names = list(next(iter(rates.values())))
    rows = [["group", *names]]
    for group, of in rates.items():
        few = " (few)" if of["rows"] < FEW else ""
        cells = [f"{value:.3f}" if name != "rows" else f"{value:,.0f}{few}"
                 for name, value in of.items()]  # fmt: skip
        rows.append([group, *cells])
    return rows


# What is generated for neutral prompts.


@dataclass(frozen=True)
class RatesCheck(Check):
    """How often what is generated for neutral prompts shows each value of an attribute.

    Texts are searched for words; images are seen by a judge of scenes, or by a CLIP.

    Attributes:
        prompts: that name none of the values.
        samples: outputs of each prompt, from seeds 0, 1, ...
        values: by name, words that show the value in a text; or, of images, phrases for the judge
            ("a red circle") or for the CLIP ("a photo of a woman").
        expected: the share of each; empty takes the same of all. With the shares of the training
            data, the measure over its aim is the amplification.
        judge: the folder of a judge of scenes.
        clip: a CLIP; its own mistakes are part of the rates.
        tokens: of a text, at most.
    """

    kind: ClassVar[str] = "rates"
    prompts: list[str] = field(default_factory=list)
    samples: int = whole(1, default=100)
    values: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)
    judge: str = ""
    clip: str = ""
    tokens: int = whole(1, default=32)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = named_lists(self.values, f"{self.title}.values")
        if not self.prompts:
            raise BedstoneError(f"{self.title}.prompts: there are none; give at least one.")
        shares(self.expected, list(names), f"{self.title}.expected")
        if self.judge and self.clip:
            raise BedstoneError(f"{self.title}: judge and clip were given; name one of them.")
        for name, phrases in names.items() if self.judge else ():
            for phrase in phrases:
                try:
                    stated(phrase)
                except BedstoneError as error:
                    raise BedstoneError(f"{self.title}.values.{name}: {error}") from None

    def fits(self, audited: Audited) -> str:
        if audited.writes:
            return ""
        if audited.draws:
            return "" if self.judge or self.clip else "a decoder; or name a judge or a clip"
        return "a decoder of text, or a model that draws images from words"

    def measure(self, audited: Audited) -> Part:
        values = named_lists(self.values, "values")
        shown = self._written(audited, values) if audited.writes else self._drawn(audited, values)
        counts = Counter(each for each in shown if each)
        clear = sum(counts.values())
        expected = shares(self.expected, list(values), "expected")
        measures = corrected(chosen_rates(counts, expected, name=self.title))
        facts: dict[str, float] = {"outputs": len(shown), "that show one value": clear}
        if self.expected:
            facts |= {
                f"amplification of {each.name}": each.value / each.aim
                for each in measures
                if each.aim
            }
        by = self.judge or self.clip
        return Part(
            self.title,
            self.kind,
            f"Of {len(shown):,} outputs for {len(self.prompts)} prompts, {clear:,} show exactly "
            f"one of the values{f', as {by} sees them' if by else ''}; shares are of these.",
            measures,
            facts,
        )

    def _written(self, audited: Audited, values: Mapping[str, Sequence[str]]) -> list[str]:
        """The value that each text shows; empty where it shows none, or several."""
        task = audited.task("text-generation", do_sample=True, return_full_text=False)
        found = []
        for number, prompt in enumerate(self.prompts):
            written = task(
                prompt,
                max_new_tokens=self.tokens,
                num_return_sequences=self.samples,
                seed=audited.seed + number * self.samples,  # a row draws by seed + its number
            )
            found += [only_value(str(each["generated_text"]), values) for each in written]
            audited.progress((number + 1) / len(self.prompts))
        return found

    def _drawn(self, audited: Audited, values: Mapping[str, Sequence[str]]) -> list[str]:
        """The value that each image shows; empty where it shows none, or several."""
        model: Any = audited.model
        rows, _ = rows_of(list(self.prompts), self.samples, audited.seed)
        seeds = list(range(audited.seed, audited.seed + len(rows)))  # no two of the same noise
        drawer = open_generator(model, audited.precision)
        drawn = drawer.draw(rows, seeds).signals
        if self.judge:
            judge = open_scene_judge(self.judge)
            wanted = {
                name: [stated(phrase) for phrase in phrases] for name, phrases in values.items()
            }
            seen = judge.things(at_size(drawn, judge.size))
            found = []
            for there in seen:
                names = [name for name, each in wanted.items()
                         if any(_shows(there, one) for one in each)]  # fmt: skip
                found.append(names[0] if len(names) == 1 else "")
            return found
        device = next(audited.model.network.parameters()).device
        clip = open_clip(self.clip, model, pick_precision(audited.precision, device))
        phrases = [(name, phrase) for name, each in values.items() for phrase in each]
        vectors = clip.images(list(as_pixels(drawn)))
        near = (vectors @ clip.texts([phrase for _, phrase in phrases]).T).argmax(1)
        return [phrases[each][0] for each in near]


def _shows(there: Mapping[tuple[str, str], int], wanted: Mapping[tuple[str, str], int]) -> bool:
    """Whether a scene has all the things of a phrase; a shape or colour left open fits any."""
    return all(
        sum(
            seen
            for (shape, colour), seen in there.items()
            if one in ("", shape) and other in ("", colour)
        )
        >= count
        for (one, other), count in wanted.items()
    )


def only_value(text: str, values: Mapping[str, Sequence[str]]) -> str:
    """The value whose words a text has; empty where it has none, or words of several."""
    spaced = _words(text)
    names = [name for name, own in values.items() if any(_words(each) in spaced for each in own)]
    return names[0] if len(names) == 1 else ""


def _words(text: str) -> str:
    """A text's words in lower case, a space before and after each."""
    return f" {' '.join(re.findall(WORD, text.lower()))} "


WORD = r"\w+(?:'\w+)?"


# Who is found by neutral queries.


@dataclass(frozen=True)
class SearchCheck(RowsCheck):
    """Whether the first results of neutral queries show groups as all that is searched has them.

    Columns `image` or `text`, and that of `group`.

    Attributes, besides those of a `RowsCheck`:
        group: the column that says which group an entry is of.
        queries: that name no group.
        top: results of a query.
    """

    kind: ClassVar[str] = "search"
    group: str = ""
    queries: list[str] = field(default_factory=list)
    top: int = whole(1, default=50)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.group:
            raise BedstoneError(f"{self.title}.group: name the column that says the group.")
        if not self.queries:
            raise BedstoneError(f"{self.title}.queries: there are none; give at least one.")

    def fits(self, audited: Audited) -> str:
        if not audited.draws and can_embed(audited.model):
            return ""
        return "a model with embeddings, of texts or of texts and images"

    def measure(self, audited: Audited) -> Part:
        rows = self.rows(audited)
        of = [self.cell(row, self.group, number) for number, row in enumerate(rows)]
        if self.top >= len(rows):
            raise BedstoneError(
                f"{self.title}.top: {self.top} of {len(rows)} rows were to be found, which shows "
                "nothing. Take fewer."
            )
        engine = embedder_of(audited.model, audited.precision)
        if embeds_both(audited.model):
            home = Path(self.data).parent
            entries = engine.images(
                [home / self.cell(row, "image", number) for number, row in enumerate(rows)]
            )
        else:
            entries = engine.texts(
                [self.cell(row, "text", number) for number, row in enumerate(rows)]
            )
        near = engine.texts(list(self.queries)) @ entries.T  # (Q, n)
        counts, measures = Counter(of), []
        for query, scores in zip(self.queries, near, strict=True):
            first = Counter(of[each] for each in np.argsort(-scores, kind="stable")[: self.top])
            measures += [
                skew(f"{query}: {group}", first[group], self.top, members, len(rows))
                for group, members in sorted(counts.items())
            ]
        return Part(
            self.title,
            self.kind,
            f"Share of each group among the first {self.top} results, beside its share of all "
            f"{len(rows):,} entries.",
            corrected(measures),
        )
