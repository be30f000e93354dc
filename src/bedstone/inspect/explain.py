"""`bedstone.explain`: what in an input a model's answer rests on, and whether that holds.

Every explanation is put to the test before it is shown: whether it adds up, whether what it ranks
highest counts more than chance, whether it changes with the weights; and where a model is served in
few bits, the served network is asked, not its whole twin.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError, nearest
from bedstone.inspect import image_targets, text_targets
from bedstone.inspect.attribution import (
    FORWARD,
    METHODS,
    Attribution,
    Case,
    integrated_gradients,
    shapley,
)
from bedstone.inspect.explanation import Agreement, Explanation, Result, View
from bedstone.inspect.faithfulness import (
    FEWEST,
    ORDERS,
    Faithfulness,
    randomised,
    rank_correlation,
)
from bedstone.inspect.lens import Patching
from bedstone.inspect.lens import patch as patch_states
from bedstone.inspect.text_targets import Target
from bedstone.nn.quantize import Quantized
from bedstone.tasks.pipeline import check_head, natural_task, task_class

ROLLOUT = "attention-rollout"
USUAL = ("integrated-gradients", "occlusion", ROLLOUT)
SHUFFLES = 4  # of all weights
MAPS = 6  # words that have a map of their own
# Makers of targets: (task, input, target, baseline) to one or several.
TARGETS: dict[str, Any] = {
    "text-classification": text_targets.label_target,
    "token-classification": text_targets.tag_target,
    "question-answering": text_targets.answer_target,
    "text-generation": text_targets.next_token_target,
    "fill-mask": text_targets.masked_target,
    "sentence-similarity": text_targets.similarity_target,
    "zero-shot-image-classification": image_targets.similarity_targets,
    "image-classification": image_targets.class_target,
    "image-to-text": image_targets.caption_target,
    "visual-question-answering": image_targets.answer_targets,
    "text-to-image": image_targets.drawing_target,
}
# What each reads of an input; the first may be given alone.
READS: dict[str, tuple[str, ...]] = {
    "text-classification": ("text", "text_pair"),
    "token-classification": ("text",),
    "question-answering": ("context", "question"),
    "text-generation": ("text",),
    "fill-mask": ("text",),
    "sentence-similarity": ("text", "text_pair"),
    "zero-shot-image-classification": ("image", "text", "candidate_labels"),
    "image-classification": ("image",),
    "image-to-text": ("image",),
    "visual-question-answering": ("image", "question"),
    "text-to-image": ("prompt", "seed"),
}


def explain(
    model: Model | str | Path,
    inputs: Any,
    *,
    task: str | None = None,
    target: str | None = None,
    methods: Sequence[str] = USUAL,
    baseline: str = "auto",
    precision: str = "fp32",
    orders: int = ORDERS,
    shuffles: int = SHUFFLES,
    maps: bool = True,
    lens: bool = False,
    patch: str | None = None,
    seed: int = 0,
) -> Explanation:
    """Explains one answer of a model.

        found = bedstone.explain("runs/sentiment", "a lovely evening")
        found.scores  # {"a": 0.1, "lovely": 2.9, "evening": 0.4}
        found.holds, found.save("why.html")

    Args:
        model: a `Model`, or what `bedstone.load` opens.
        inputs: what the task reads: a text or a picture; or a dictionary: text and text_pair,
            question and context, image and text (or several), image and question, prompt and seed.
        task: another than the one that the model was made for.
        target: what to explain instead of what is predicted: a label, a word's tag as `word=tag`,
            an answer, a token, a text.
        methods: the first is shown first: integrated-gradients, occlusion, shapley,
            gradient-x-input, attention-rollout (which is no proof).
        baseline: what stands for a part that is gone: auto, mask, mean or zero.
        precision: of the network that is asked: fp32, bf16, int8 or int4, as it is served.
            Gradients are taken of its fp32 twin, and how both agree is said.
        orders: drawn by chance, beside which explanations are put.
        shuffles: of all weights, with which the scores must change; 0 leaves it out.
        maps: whether each word of a picture's text is explained by cells of its own.
        lens: whether to look at what the network would say after each block.
        patch: another text, of as many tokens, into whose pass states of this one are put.
        seed: of what is drawn by chance.

    Raises:
        BedstoneError: the model, the input or an option can't be used.
    """
    known = [*METHODS, ROLLOUT]
    for name in methods:
        if name not in known:
            raise BedstoneError(f"--method: {name!r} is unknown{nearest(name, known)}.")
    if not methods or methods[0] == ROLLOUT:
        raise BedstoneError(
            f"--method: expected one of {', '.join(METHODS)} first: where attention goes is no "
            "proof, and is shown beside another."
        )
    if orders < 2 or shuffles < 0:
        raise BedstoneError(f"--orders: {orders} was given; expected 2 or more.")
    if not isinstance(model, Model):
        model = open_model(model)
    name = task or _task(model, inputs)
    whole, ready = open_task(model, name, precision)
    inputs = _read(ready.name, inputs, seed)
    made = TARGETS[ready.name](ready, inputs, target, baseline)
    targets = made if isinstance(made, list) else [made]
    _check_of_use(ready.name, targets, methods, maps)
    served = whole if precision == "fp32" else _served(ready)
    request = _Request(methods, orders, shuffles, maps, seed, whole, served)
    views = tuple(request.view(each) for each in targets)
    agreement = None if served is whole else _agreement(targets[0], whole, served, precision)
    seen = None
    if lens:
        if targets[0].lens is None:
            raise BedstoneError(
                "--lens: needs a model that says words (a GPT, a BERT with its head for words, "
                "captions) or draws pictures."
            )
        seen = targets[0].lens(whole)
    patched = (
        None if patch is None else _patching(ready, whole, inputs, patch, targets[0], baseline)
    )
    name = str(model.path or "the model")
    return Explanation(name, ready.name, views, agreement, seen, patched)


def _read(task: str, inputs: Any, seed: int) -> Any:
    """An input as the task's target takes it.

    Raises:
        BedstoneError: a part of it is of no use to the task.
    """
    reads = READS[task]
    given = dict(inputs) if isinstance(inputs, Mapping) else {reads[0]: inputs}
    for name in given:
        if name not in reads:
            raise BedstoneError(
                f"--{str(name).replace('_', '-')}: {task} has no use for it; it reads "
                f"{', '.join(reads)}. Leave it out, or name another --task."
            )
    if task == "text-to-image":
        return {"seed": seed, **given}
    return given[reads[0]] if given.keys() == {reads[0]} else given


def _check_of_use(task: str, targets: Sequence[Target], methods: Sequence[str], maps: bool) -> None:
    """Raises BedstoneError for what was chosen and changes nothing of these targets."""
    if not maps and not any(each.maps or each.regions for each in targets):
        raise BedstoneError(f"--no-maps: {task} has no maps of words. Leave it out.")
    chosen = ROLLOUT in methods and tuple(methods) != USUAL
    if chosen and not any(each.rollout for each in targets):
        raise BedstoneError(
            f"--method: {ROLLOUT} can't be shown of {task}: attention isn't followed from its "
            "number to parts of one text. Leave it out."
        )


def _patching(
    task: Any, whole: Any, inputs: Any, other: str, target: Target, baseline: str
) -> Patching:
    """States of an input in the pass of another.

    Raises:
        BedstoneError: the network reads no text by blocks, or the other text doesn't fit.
    """
    if target.rollout is None:
        raise BedstoneError(f"--patch: is for what reads one text; {task.name} is not.")
    given: Any = other
    if isinstance(inputs, Mapping):
        given = {**inputs, "context" if "context" in inputs else "text": other}
    beside = TARGETS[task.name](task, given, None, baseline)
    return patch_states(whole, target.case(whole), beside.case(whole), target.tokens)


def twin(network: nn.Module) -> Any:
    """A copy in fp32, whole and without dropout, of which gradients are taken.

    bf16 loses small gradients, and a quantised layer has none for its weights' rounding.
    """
    found: Any = copy.deepcopy(network)
    for path, module in list(found.named_modules()):
        if isinstance(module, Quantized):
            home, _, name = path.rpartition(".")
            setattr(found.get_submodule(home), name, _whole(module))
    if getattr(found, "frozen", False):
        found.frozen = False  # a frozen reader of words keeps no graph
    return found.float().eval().requires_grad_(False)


def _whole(module: Any) -> nn.Module:
    """A quantised layer with its weights whole."""
    weight = module.whole(torch.float32)
    if not hasattr(module, "bias"):
        return nn.Embedding.from_pretrained(weight)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
    made.weight = nn.Parameter(weight, False)
    if module.bias is not None:
        made.bias = nn.Parameter(module.bias.detach().float(), False)
    return made


def _task(model: Model, inputs: Any) -> str:
    """What a model does with such an input: by its parts, or what it was made for."""
    given = set(inputs) if isinstance(inputs, Mapping) else set()
    for parts, task in (
        ({"image", "question"}, "visual-question-answering"),
        ({"context", "question"}, "question-answering"),
    ):
        if parts <= given:
            return task
    name = natural_task(model)
    return "sentence-similarity" if name in ("feature-extraction", "semantic-search") else name


def open_task(model: Model, task: str, precision: str = "fp32") -> tuple[Any, Any]:
    """The fp32 twin of a model's network, and the task ready to be asked.

    Raises:
        BedstoneError: the task has no target, or the model doesn't do it.
    """
    kind = task_class(task)
    if kind.name not in TARGETS:
        raise BedstoneError(
            f"--task: {kind.name} can't be explained; expected one of {', '.join(TARGETS)}."
        )
    check_head(kind, model)
    whole = twin(model.network)
    ready: Any = kind(model, precision=precision)
    ready.model = replace(model, network=whole)
    return whole, ready


def _served(task: Any) -> Any:
    """The network that answers."""
    return (getattr(task, "engine", None) or task.drawer.engine).network


@dataclass(frozen=True)
class _Request:
    """What is done with each target."""

    methods: Sequence[str]
    orders: int
    shuffles: int
    maps: bool
    seed: int
    whole: Any
    served: Any

    def view(self, target: Target) -> View:
        case = target.case(self.served)
        differentiable = case if self.served is self.whole else target.case(self.whole)
        full, empty = case.at(np.stack([np.ones(len(case)), np.zeros(len(case))])).tolist()
        test = self._test(case)
        results = {}
        for name in self.methods:
            if name == ROLLOUT and target.rollout is None:
                continue
            found = self._attribution(name, target, case, differentiable)
            results[name] = Result(found, None if test is None else test.curves(found.scores))
        maps = self._largest(target) if self.maps else []
        return View(
            target,
            full,
            empty,
            results,
            {word: self._map(target.maps[word]) for word in maps},
            target.regions(self.served) if target.regions and self.maps else {},
            self._shuffled(target, results[self.methods[0]].attribution),
        )

    def _test(self, case: Case) -> Faithfulness | None:
        if len(case) < FEWEST:
            return None
        return Faithfulness(case, orders=self.orders, seed=self.seed)

    def _attribution(
        self, name: str, target: Target, case: Case, differentiable: Case
    ) -> Attribution:
        if name == ROLLOUT:
            assert target.rollout is not None
            return Attribution(ROLLOUT, target.rollout(self.whole), proof=False)
        if name == "shapley":
            return shapley(case, seed=self.seed)
        return METHODS[name](case if name in FORWARD else differentiable)

    def _largest(self, target: Target) -> list[str]:
        """The words whose numbers the picture changes most, in their order."""
        changes = {}
        for word, make in target.maps.items():
            case = make(self.served)
            full, empty = case.at(np.stack([np.ones(len(case)), np.zeros(len(case))])).tolist()
            changes[word] = abs(full - empty)
        kept = sorted(changes, key=lambda word: -changes[word])[:MAPS]
        return [word for word in changes if word in kept]

    def _map(self, make: Any) -> Result:
        """A word's cells, by integrated gradients."""
        case = make(self.served)
        found = integrated_gradients(case if self.served is self.whole else make(self.whole))
        return Result(
            found, Faithfulness(case, orders=max(4, self.orders // 4)).curves(found.scores)
        )

    def _shuffled(self, target: Target, main: Attribution) -> tuple[float, ...]:
        """Rank correlations of the main scores with those of shuffled weights."""
        method = METHODS[main.method]
        found = []
        for number in range(self.shuffles):
            other = method(target.case(randomised(self.whole, seed=self.seed + number)))
            found.append(rank_correlation(main.scores, other.scores))
        return tuple(found)


def _agreement(target: Target, whole: Any, served: Any, precision: str) -> Agreement:
    cases = [target.case(network) for network in (served, whole)]
    scores = [METHODS["occlusion"](case).scores for case in cases]
    values = [float(case.at(np.ones((1, len(case))))[0]) for case in cases]
    return Agreement(precision, values[0], values[1], rank_correlation(scores[0], scores[1]))
