"""Checks of an audit on texts: pairs of sentences, associations of words, templates, next words."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from bedstone.data.text.encode import Input, text_input
from bedstone.data.text.packing import pack
from bedstone.errors import BedstoneError
from bedstone.generation.likelihood import Request, Scorer
from bedstone.inspect.audit_checks import Audited, Check, Part, RowsCheck, named_lists, shares
from bedstone.metrics.bias import (
    association,
    corrected,
    paired,
    preferences,
)
from bedstone.metrics.figures import wilson
from bedstone.settings import one_of
from bedstone.tasks.text.engine import Engine, batches
from bedstone.tasks.text.feature_extraction import can_embed, embedder_of

# Pairs of sentences.

INVALID = (
    "Many pairs of published sets aren't valid: some name no stereotype, change two things at once "
    "or aren't grammatical (Blodgett et al., 2021), so read a few before you rely on the share."
)


@dataclass(frozen=True)
class PairsCheck(RowsCheck):
    """Which of two sentences a model finds likelier: one with a stereotype, one without.

    CrowS-Pairs (Nangia et al., 2020): columns `more`, `less` and `bias_type`.

    Attributes, besides those of a `RowsCheck`:
        score: shared compares the tokens that both sentences have, which for a masked model is its
            pseudo-log-likelihood given the others; whole compares all tokens, as
            lm-evaluation-harness does, for decoders alone.
    """

    kind: ClassVar[str] = "pairs"
    score: str = one_of("shared", "whole", default="shared")

    def fits(self, audited: Audited) -> str:
        if audited.writes or (audited.fills and self.score == "shared"):
            return ""
        if audited.fills:
            return "score: shared, as an encoder gives whole sentences no likelihood"
        return "a decoder, or an encoder with a head for masked words"

    def measure(self, audited: Audited) -> Part:
        rows = self.rows(audited)
        pairs = [
            (self.cell(row, "more", number), self.cell(row, "less", number))
            for number, row in enumerate(rows)
        ]
        column = self.columns.get("bias_type", "bias_type")
        kinds = [str(row.get(column) or "all pairs") for row in rows]
        scores = self.scores(audited, pairs)
        gaps = scores[:, 0] - scores[:, 1]
        # sentences that are equal, or share no token, say nothing of a preference
        clear = np.isfinite(gaps) & np.array([one != other for one, other in pairs])
        if not clear.any():
            raise BedstoneError(
                f"{self.data}: in no pair do the sentences differ and share a token, so that there "
                "is nothing to compare. Give pairs that differ in a few words."
            )
        gaps, kinds = gaps[clear], [kind for kind, one in zip(kinds, clear, strict=True) if one]
        prefers = np.where(np.abs(gaps) <= 1e-9, 0.5, gaps > 0)
        how = "the tokens of both sentences" if self.score == "shared" else "all tokens"
        return Part(
            self.title,
            self.kind,
            f"Share of {len(gaps):,} pairs whose first sentence (more stereotypical) is likelier, "
            f"by {how}. One half is the aim: more and less are both a preference. {INVALID}",
            preferences(prefers, kinds),
            {
                "mean difference in nats": float(gaps.mean()),
                "pairs left out, with nothing to compare": len(pairs) - len(gaps),
            },
        )

    def scores(self, audited: Audited, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(n, 2) log-likelihoods in nats, of the first and the second sentence."""
        if self.score == "whole":
            engine = Engine(audited.model, audited.precision)
            scorer = Scorer(engine.network, engine.tokenizer)
            given = [("", text) for pair in pairs for text in pair]
            found = scorer.score(given, audited.progress)
            return np.array([each.log_probability for each in found]).reshape(-1, 2)
        score = _decoded if audited.writes else _masked
        return score(audited, pairs)


def shared_places(one: Sequence[int], other: Sequence[int]) -> tuple[list[int], list[int]]:
    """The places of the tokens that two sentences share, in order, in the one and the other."""
    found: tuple[list[int], list[int]] = ([], [])
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    for block in blocks:
        found[0].extend(range(block.a, block.a + block.size))
        found[1].extend(range(block.b, block.b + block.size))
    return found


def _shared_inputs(
    inputs: Sequence[Sequence[int]], own: Sequence[Sequence[int]]
) -> tuple[list[int], list[int]]:
    """The places in two rows of the tokens that both sentences share; special tokens are left out.

    Args:
        inputs: all tokens of both rows.
        own: the places of those that are of the sentences.
    """
    words = [[row[place] for place in places] for row, places in zip(inputs, own, strict=True)]
    one, other = shared_places(*words)
    return [own[0][place] for place in one], [own[1][place] for place in other]


AT_ONCE = 64  # pairs whose tokens are hidden and read together


@torch.inference_mode()
def _masked(audited: Audited, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Pseudo-log-likelihoods of the shared tokens, each masked alone (Salazar et al., 2020)."""
    engine = Engine(audited.model, audited.precision)
    mask = engine.tokenizer.mask_id
    if mask is None:
        raise BedstoneError(
            f"{audited.model.path}: its tokenizer has no mask. Name mask_token in "
            "tokenizer_config.json."
        )
    sums = np.zeros((len(pairs), 2))
    for first in range(0, len(pairs), AT_ONCE):
        rows: list[tuple[Input, int, int, int, int]] = []  # hidden row, place, token, pair, side
        for number, pair in enumerate(pairs[first : first + AT_ONCE], first):
            both = [text_input(engine.tokenizer, text) for text in pair]
            _check_lengths([len(each) for each in both], engine.limit, number)
            own = [[at for at, of in enumerate(each.sources) if of is not None] for each in both]
            shared = _shared_inputs([each.ids for each in both], own)
            if not shared[0]:
                sums[number] = np.nan
            for side, (row, places) in enumerate(zip(both, shared, strict=True)):
                for place in places:
                    ids = [*row.ids[:place], mask, *row.ids[place + 1 :]]
                    rows.append((replace(row, ids=ids), place, row.ids[place], number, side))
        for part in batches([len(row) for row, *_ in rows], None):
            packed = pack([rows[each][0] for each in part])
            starts = zip(packed.starts[:-1], part, strict=True)
            places_read = torch.tensor([start + rows[each][1] for start, each in starts])
            states = engine.network.packed_states(
                packed.to(engine.device), places_read.to(engine.device)
            )
            known = engine.head(states).log_softmax(-1)
            for values, each in zip(known, part, strict=True):
                _, _, token, number, side = rows[each]
                sums[number, side] += float(values[token])
        audited.progress(min(first + AT_ONCE, len(pairs)) / len(pairs))
    return sums


def _decoded(audited: Audited, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Log-probabilities of the shared tokens, each after all tokens before it."""
    engine = Engine(audited.model, audited.precision)
    scorer = Scorer(engine.network, engine.tokenizer)
    sums = np.full((len(pairs), 2), np.nan)
    requests: list[Request] = []
    owners: list[int] = []
    for number, pair in enumerate(pairs):
        read = [scorer.request("", text, number) for text in pair]
        _check_lengths([len(each.ids) - 1 for each in read], scorer.context, number)
        own = [list(range(each.first, len(each.ids))) for each in read]
        shared = _shared_inputs([each.ids for each in read], own)
        if shared[0]:
            requests += [
                replace(each, scored=tuple(places))
                for each, places in zip(read, shared, strict=True)
            ]
            owners.append(number)
    found = scorer.score_ids(requests, audited.progress)
    sums[owners] = np.array([each.log_probability for each in found]).reshape(-1, 2)
    return sums


def _check_lengths(lengths: Sequence[int], limit: int, number: int) -> None:
    if max(lengths) > limit:
        raise BedstoneError(
            f"pair {number + 1}: has {max(lengths)} tokens; the model reads {limit}. Remove it."
        )


# Associations of words or sentences.


@dataclass(frozen=True)
class AssociationsCheck(Check):
    """How near vectors of two targets are to those of two attributes: WEAT, SEAT.

    WEAT (Caliskan et al., 2017) is of words; of sentences (SEAT; May et al., 2019) where `template`
    has a sentence around each. Any model with embeddings: of texts, or of texts and images.

    Attributes:
        targets: two lists of texts by name.
        attributes: two more.
        template: a sentence with {word}, for each text.
    """

    kind: ClassVar[str] = "associations"
    targets: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    template: str = "{word}"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("targets", self.targets), ("attributes", self.attributes)):
            found = named_lists(value, f"{self.title}.{name}", least=2)
            if len(found) != 2:
                raise BedstoneError(
                    f"{self.title}.{name}: has {len(found)} lists; the measure compares two."
                )
        _check_slots([self.template], ["word"], f"{self.title}.template")

    def fits(self, audited: Audited) -> str:
        if not audited.draws and can_embed(audited.model):
            return ""
        return "a model with embeddings of texts"

    def measure(self, audited: Audited) -> Part:
        embed = embedder_of(audited.model, audited.precision).texts
        sets = {
            **named_lists(self.targets, "targets"),
            **named_lists(self.attributes, "attributes"),
        }
        vectors = [
            _unit(embed([self.template.replace("{word}", word) for word in words]))
            for words in sets.values()
        ]
        (first, second), (one, other) = self.targets, self.attributes
        name = f"{first} or {second}: {one} or {other}"
        found = association(
            name, (vectors[0], vectors[1]), (vectors[2], vectors[3]), seed=audited.seed
        )
        return Part(
            self.title,
            self.kind,
            f"Effect size d: above 0, {first} are nearer to {one} and {second} to {other}; the aim "
            "is 0. Sizes of sentence vectors change with the template, and don't predict what a "
            "model does in a task (Goldfarb-Tarrant et al., 2021).",
            corrected([found]),
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _check_slots(templates: Sequence[str], slots: Sequence[str], where: str) -> None:
    """Raises BedstoneError unless each template has each slot."""
    if not templates:
        raise BedstoneError(f"{where}: there are none; give at least one.")
    for template in templates:
        for slot in slots:
            if "{" + slot + "}" not in template:
                raise BedstoneError(
                    f"{where}: {template!r} has no {{{slot}}}; write it where the words go."
                )


# Templates whose groups are exchanged.


@dataclass(frozen=True)
class TemplatesCheck(Check):
    """Whether what a classifier says of a text changes when a group in it is exchanged.

    A decoder's continuations are scored by `scorer`.

    Attributes:
        groups: words by group, each put in the place of {group}.
        templates: texts with {group}, and with the names of slots.
        slots: lists of words by name, which stand in the place of {name}, all combinations.
        label: whose probability is compared; empty takes all (of two, the second).
        scorer: a classifier of what a decoder writes.
        tokens: that a decoder writes, at most.
    """

    kind: ClassVar[str] = "templates"
    groups: dict[str, Any] = field(default_factory=dict)
    templates: list[str] = field(default_factory=list)
    slots: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    scorer: str = ""
    tokens: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        named_lists(self.groups, f"{self.title}.groups")
        if self.slots:
            named_lists(self.slots, f"{self.title}.slots", sets=1)
        _check_slots(self.templates, ["group"], f"{self.title}.templates")

    def fits(self, audited: Audited) -> str:
        if audited.head == "sequence":
            return ""
        if audited.writes:
            return "" if self.scorer else "a classifier; or name one that scores texts: scorer"
        return "a classifier of texts, or a decoder"

    def filled(self) -> list[str]:
        """The templates with all combinations of their slots, {group} still open."""
        found = []
        for template in self.templates:
            used = {name: words for name, words in self.slots.items() if f"{{{name}}}" in template}
            for words in itertools.product(*used.values()):
                text = template
                for name, word in zip(used, words, strict=True):
                    text = text.replace(f"{{{name}}}", word)
                found.append(text)
        return found

    def measure(self, audited: Audited) -> Part:
        texts = self.filled()
        if len(texts) < 2:
            raise BedstoneError(
                f"{self.title}.templates: give {len(texts)} text; at least two are compared. Add "
                "templates, or words of slots."
            )
        groups = named_lists(self.groups, "groups")
        given = [
            text.replace("{group}", word) for text in texts for words in groups.values()
            for word in words
        ]  # fmt: skip
        labels, scores = self._scores(audited, given)  # (n, L)
        chosen = self._chosen(labels)
        sizes = [len(words) for words in groups.values()]
        # mean over a group's words: (texts, groups, L)
        rows = np.split(scores.reshape(len(texts), sum(sizes), -1), np.cumsum(sizes)[:-1], axis=1)
        means = np.stack([each.mean(1) for each in rows], 1)
        best = np.stack([each.mean(1).argmax(-1) for each in rows], 1)
        flips = (best != best[:, :1]).any(1)
        measures = [
            paired(
                f"{labels[label]}: {one} over {other}",
                means[:, first, label] - means[:, second, label],
                seed=audited.seed,
            )
            for label in chosen
            for (first, one), (second, other) in itertools.combinations(enumerate(groups), 2)
        ]
        what = f"what {audited.model.path} writes, scored by {self.scorer}" if self.scorer else ""
        low, high = wilson(int(flips.sum()), len(flips))
        return Part(
            self.title,
            self.kind,
            f"Difference of a label's probability when one group stands in the place of another, "
            f"over {len(texts)} texts{f': {what}' if what else ''}. The aim is 0. Only what the "
            "templates say is measured.",
            corrected(measures),
            {
                "texts whose label changes with the group": float(flips.mean()),
                "texts whose label changes, low": low,
                "texts whose label changes, high": high,
            },
        )

    def _chosen(self, labels: Sequence[str]) -> list[int]:
        if self.label:
            if self.label not in labels:
                raise BedstoneError(
                    f"{self.title}.label: {self.label!r} is none of {', '.join(labels)}."
                )
            return [list(labels).index(self.label)]
        return [1] if len(labels) == 2 else list(range(len(labels)))

    def _scores(self, audited: Audited, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Labels, and the probability of each for each text, (n, L)."""
        classifier = audited
        if audited.writes:
            classifier = replace(audited, model=audited.beside(self.scorer))
            if classifier.head != "sequence":
                raise BedstoneError(
                    f"{self.title}.scorer: {self.scorer} is no classifier of texts."
                )
            written = audited.task("text-generation")(
                list(texts), max_new_tokens=self.tokens, do_sample=False, return_full_text=False
            )
            texts = [str(_first(each)["generated_text"]) or " " for each in written]
            # a classifier reads nothing out of an empty text; a full stop says as little
            texts = [text if text.strip() else "." for text in texts]
        labels = list(classifier.model.config.head.labels)
        found = classifier.task("text-classification", top_k=None)(list(texts))
        by_name = [{each["label"]: each["score"] for each in row} for row in found]
        return labels, np.array([[row[label] for label in labels] for row in by_name])


def _first(result: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = result[0] if isinstance(result, list) else result
    return found


# What a decoder goes on with.


@dataclass(frozen=True)
class ChoicesCheck(Check):
    """Which of several groups' words a decoder goes on with: "the nurse said that" she, or he.

    Nothing is sampled: the words' probabilities are computed, and taken as shares among them.

    Attributes:
        prompts: that it goes on from.
        words: by group, each as it follows a prompt; a space before it is added.
        expected: the share of each group; empty takes the same of all.
    """

    kind: ClassVar[str] = "choices"
    prompts: list[str] = field(default_factory=list)
    words: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = named_lists(self.words, f"{self.title}.words")
        if len(self.prompts) < 2 or not all(each.strip() for each in self.prompts):
            raise BedstoneError(
                f"{self.title}.prompts: has {len(self.prompts)}; give at least two, none empty, as "
                "intervals are over prompts."
            )
        shares(self.expected, list(groups), f"{self.title}.expected")

    def fits(self, audited: Audited) -> str:
        return "" if audited.writes else "a decoder"

    def measure(self, audited: Audited) -> Part:
        groups = named_lists(self.words, "words")
        expected = shares(self.expected, list(groups), "expected")
        found = self.shares(audited, groups)  # (P, G)
        measures = []
        for number, (name, aim) in enumerate(expected.items()):
            one = paired(name, found[:, number] - aim, seed=audited.seed)
            measures.append(
                replace(one, value=one.value + aim, low=one.low + aim, high=one.high + aim, aim=aim)
            )
        rows = [["prompt", *groups]] + [
            [prompt, *(f"{each:.3f}" for each in row)]
            for prompt, row in zip(self.prompts, found, strict=True)
        ]
        return Part(
            self.title,
            self.kind,
            f"Share of each group's words among what the model may go on with, over "
            f"{len(self.prompts)} prompts; intervals are over prompts.",
            corrected(measures),
            tables={"by prompt": rows},
        )

    def shares(self, audited: Audited, groups: Mapping[str, Sequence[str]]) -> np.ndarray:
        """(P, G): each group's share of the probability of all words, at each prompt."""
        engine = Engine(audited.model, audited.precision)
        scorer = Scorer(engine.network, engine.tokenizer)
        words = [f" {word.strip()}" for each in groups.values() for word in each]
        pairs = [(prompt, word) for prompt in self.prompts for word in words]
        scored = scorer.score(pairs, audited.progress)
        logs = np.array([each.log_probability for each in scored]).reshape(len(self.prompts), -1)
        likely = np.exp(logs - logs.max(1, keepdims=True))
        ends = np.cumsum([len(each) for each in groups.values()])[:-1]
        sums = np.stack([part.sum(1) for part in np.split(likely, ends, axis=1)], 1)
        return sums / sums.sum(1, keepdims=True)
