"""Rewards of answers: Python functions, regular expressions, reward models, and sums of them.

A reward is named by a text:

- `rewards.py:exact` or `package.module:exact`: a function, called with `prompts`, `completions` and
  the other columns of the rows by their names, that returns a number for each answer;
- `regex:PATTERN`: 1 where the pattern is found in the answer, else 0;
- `tests:COLUMN` or `tests:FILE.py`: 1 where the answer's code passes tests in the sandbox, else 0;
- `scene:COLUMN`: how well the answer describes a scene, from 0 to 1;
- `judge:MODEL`: the score that a chat model gives by a `rubric`, from 0 to 1: a decoder, or one
  behind an endpoint (`judge:openai:NAME`, `judge:http://host/v1#NAME`);
- a folder, or a name of `bedstone models`: a reward model (method: reward).

A number that is missing is an error that names its row: taken as 0 it would be learnt from.
"""

import ast
import importlib
import importlib.util
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import tokenizer_of
from bedstone.data.scenes.world import read_scene
from bedstone.data.text.encode import Input
from bedstone.data.text.packing import pack
from bedstone.data.text.preference_examples import scored_input
from bedstone.data.text.preferences import Text
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.chat_judge import ChatJudge
from bedstone.evaluate.scene_judge import described
from bedstone.metrics.code import code_blocks
from bedstone.reading import read_text, shown
from bedstone.runtime import Precision
from bedstone.sandbox.run import Limits, score_all, working_way

CONSTANT = 5  # rollouts of one and the same reward after which there is a warning
SCORED = 16  # answers that a reward model reads at a time
LARGEST_TESTS = 1 << 20  # bytes of a file of tests
TEST_SECONDS = 5.0  # of the processor, that code may take with its tests
OWN = ("prompts", "completions", "completion_ids")  # arguments that are no columns

Columns = Mapping[str, Sequence[Any]]  # of rows, by name


@dataclass(frozen=True)
class Answers:
    """Answers to be scored, one an entry.

    Attributes:
        prompts: as their rows have them: texts or messages.
        texts: the answers.
        ids: their tokens.
        columns: the other columns of the rows, by name.
        places: where each row is from.
        talks: of answers that may call functions, their messages; `texts` are then the last ones.
    """

    prompts: Sequence[Text]
    texts: Sequence[str]
    ids: Sequence[Sequence[int]]
    columns: Columns
    places: Sequence[str]
    talks: Sequence[list[dict[str, Any]]] | None = None

    @property
    def completions(self) -> list[Text]:
        """The answers in the form of their prompts: texts, or their messages."""
        if self.talks is not None:
            return list(self.talks)
        return [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(self.prompts, self.texts, strict=True)
        ]


class Reward(Protocol):
    """One kind of reward.

    Attributes:
        spec: the text that names it.
    """

    spec: str

    def check(self, columns: Columns, places: Sequence[str]) -> None:
        """Raises BedstoneError where rows can't be scored.

        Args:
            columns: their values, by name.
            places: where each row is from.
        """

    def score(self, answers: Answers) -> Any:
        """A number for each answer."""

    def fingerprint(self) -> str:
        """What tells it from another of that name."""


class RegexReward:
    """1 where a pattern is found in the answer (`re.search`, dots match line ends), else 0."""

    def __init__(self, spec: str, precision: Precision) -> None:
        self.spec = spec
        pattern = spec.partition(":")[2]
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise BedstoneError(
                f"rewards: {spec!r} is no regular expression: {error}. Mend it."
            ) from error

    def check(self, columns: Columns, places: Sequence[str]) -> None:
        return None

    def score(self, answers: Answers) -> list[float]:
        return [float(self.pattern.search(text) is not None) for text in answers.texts]

    def fingerprint(self) -> str:
        return self.spec


class FunctionReward:
    """A Python function of a file, or of a module that can be imported."""

    def __init__(self, spec: str, precision: Precision) -> None:
        self.spec = spec
        self.function = load_function(spec)
        self._parameters = inspect.signature(self.function).parameters.values()
        kinds = {each.kind for each in self._parameters}
        self._takes_all = inspect.Parameter.VAR_KEYWORD in kinds
        self._names = {
            each.name
            for each in self._parameters
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        }

    def check(self, columns: Columns, places: Sequence[str]) -> None:
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for parameter in self._parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise BedstoneError(
                    f"rewards: {self.spec}: its parameter {parameter.name!r} can't be given by "
                    "name. Leave the / out."
                )
            needed = parameter.default is parameter.empty and parameter.kind not in variadic
            if needed and parameter.name not in (*OWN, *columns):
                raise BedstoneError(
                    f"rewards: {self.spec}: asks for {parameter.name!r}, which the rows don't have"
                    f"{nearest(parameter.name, [*OWN, *columns])}. It may ask for prompts, "
                    f"completions, completion_ids and the columns {', '.join(columns) or 'none'}."
                )

    def score(self, answers: Answers) -> Any:
        given = {
            **{name: list(values) for name, values in answers.columns.items()},
            "prompts": list(answers.prompts),
            "completions": answers.completions,
            "completion_ids": [list(ids) for ids in answers.ids],
        }
        if not self._takes_all:
            given = {name: value for name, value in given.items() if name in self._names}
        try:
            return self.function(**given)
        except Exception as error:
            raise BedstoneError(
                f"rewards: {self.spec}: raised {type(error).__name__}: {error}, of "
                f"{len(answers.texts):,} answers, the first to {answers.places[0]}: "
                f"{shown(answers.texts[0])}. Mend the function; nothing was updated."
            ) from error

    def fingerprint(self) -> str:
        return source_print(self.function)


class TestsReward:
    """1 where the answer's code passes tests in the sandbox, else 0.

    Tests are those of a column of the rows, a text or a list of texts, of which the share that pass
    is the reward; or those of a file, for all rows. The code is an answer's blocks, or the answer,
    behind a prompt that is a text and that it continues. Without a sandbox nothing runs.
    """

    def __init__(self, spec: str, precision: Precision) -> None:
        self.spec = spec
        self.limits = Limits(seconds=TEST_SECONDS)
        working_way()  # before anything is generated
        self.place = spec.partition(":")[2].strip()
        self.text = ""  # of a file
        if self.place.endswith(".py"):
            self.text = read_text(self.place, LARGEST_TESTS)
            _check_tests(self.text, self.place)

    def check(self, columns: Columns, places: Sequence[str]) -> None:
        if not self.text:
            for value, place in _column(self, columns, places):
                for text in value if isinstance(value, list | tuple) and value else [value]:
                    _check_tests(text, f"{place}: {self.place}")

    def score(self, answers: Answers) -> list[float]:
        tests = [self.text] * len(answers.texts) if self.text else answers.columns[self.place]
        cases: dict[tuple[str, str], bool] = {}
        wanted: list[list[tuple[str, str]]] = []
        for prompt, text, own in zip(answers.prompts, answers.texts, tests, strict=True):
            program = program_of(prompt, text)
            listed = own if isinstance(own, list | tuple) else [own]
            wanted.append([(program, each) for each in listed])
            cases |= dict.fromkeys(wanted[-1], False)
        outcomes = score_all(list(cases), self.limits)  # equal answers of a group run once
        passed = {case: each.passed for case, each in zip(cases, outcomes, strict=True)}
        return [sum(passed[case] for case in own) / len(own) for own in wanted]

    def fingerprint(self) -> str:
        return f"{self.spec} {sha256(self.text.encode()).hexdigest()}"


def program_of(prompt: Text, answer: str) -> str:
    """The program of an answer: its blocks of Python; else the answer, behind a prompt that is a
    text where both together are Python."""
    blocks = [block for block in code_blocks(answer) if _is_python(block)]
    if blocks:
        return "\n\n".join(blocks)
    if isinstance(prompt, str) and _is_python(prompt + answer):
        return prompt + answer
    return answer


def _is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _check_tests(text: Any, place: str) -> None:
    if not isinstance(text, str) or not text.strip() or not _is_python(text):
        raise BedstoneError(
            f"{place}: is {shown(text)}; expected tests in Python, such as 'assert f(1) == 2'. "
            "Mend them, or leave the row out."
        )


def _column(reward: Any, columns: Columns, places: Sequence[str]) -> list[tuple[Any, str]]:
    """The values of the column that a reward names, each with its place."""
    if reward.place not in columns:
        raise BedstoneError(
            f"rewards: {reward.spec}: the rows have no column {reward.place!r}"
            f"{nearest(reward.place, columns)}. They have {', '.join(columns) or 'no others'}."
        )
    return list(zip(columns[reward.place], places, strict=True))


class SceneReward:
    """How well an answer describes the scene in a column of its row (`scene_judge.described`)."""

    def __init__(self, spec: str, precision: Precision) -> None:
        self.spec, self.place = spec, spec.partition(":")[2].strip()

    def check(self, columns: Columns, places: Sequence[str]) -> None:
        for value, place in _column(self, columns, places):
            try:
                read_scene(value)
            except BedstoneError as error:
                raise BedstoneError(
                    f"{place}: {self.place}: {error}. Mend it, or leave the row out."
                ) from error

    def score(self, answers: Answers) -> list[float]:
        pairs = zip(answers.columns[self.place], answers.texts, strict=True)
        return [described(read_scene(value), text) for value, text in pairs]

    def fingerprint(self) -> str:
        return self.spec


class ModelReward:
    """A reward model: the score that its head gives an answer."""

    def __init__(self, spec: str, precision: Precision) -> None:
        self.spec, self.precision = spec, precision
        model = open_model(spec, dtype=torch.float32)
        head = getattr(model.config, "head", None)
        if head is None or head.kind != "sequence" or head.outputs != 1:
            raise BedstoneError(
                f"rewards: {spec} is a {model.config.layout} whose head gives no single score; "
                "name a reward model (method: reward), a function as rewards.py:exact, or "
                "regex:PATTERN."
            )
        self.tokenizer, self.network = tokenizer_of(model), model.network.eval()
        self.network.to(precision.device)
        recipe = model.record.get("recipe")
        learnt = recipe.get("limit") if isinstance(recipe, dict) else 0
        self.limit = min(learnt or model.config.context, model.config.context)

    def check(self, columns: Columns, places: Sequence[str]) -> None:
        return None

    @torch.inference_mode()
    def score(self, answers: Answers) -> list[float]:
        rows = [
            self._row(prompt, completion)
            for prompt, completion in zip(answers.prompts, answers.completions, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        found = np.zeros(len(rows))
        last = getattr(self.network.head, "reads", "last") == "last"
        for at in range(0, len(rows), SCORED):
            part = order[at : at + SCORED]
            packed = pack([rows[row] for row in part]).to(self.precision.device)
            starts = packed.starts
            places = [end - 1 for end in starts[1:]] if last else starts[:-1]
            with self.precision.autocast():
                read = torch.tensor(places, device=self.precision.device)
                scores = self.network.head(self.network.packed_states(packed, read))
            found[part] = scores[:, 0].float().cpu().numpy()
        return [float(score) for score in found]

    def _row(self, prompt: Text, completion: Text) -> Input:
        said = completion if isinstance(completion, str) else completion[-1]["content"]
        if not said.strip():  # an empty answer is one that was given, and is scored too
            last = "." if isinstance(completion, str) else {**completion[-1], "content": "."}
            completion = last if isinstance(last, str) else [*completion[:-1], last]
        value = {"prompt": prompt, "completion": completion}
        causal = bool(self.network.causal)
        return scored_input(self.tokenizer, value, self.limit, causal=causal)[0]

    def fingerprint(self) -> str:
        return self.spec


class JudgeReward:
    """The score of a chat model that reads a rubric, the prompt and the answer."""

    def __init__(self, spec: str, precision: Precision, **options: Any) -> None:
        self.spec, self.judge = (
            spec,
            ChatJudge(spec.partition(":")[2], precision=precision, **options),
        )

    def check(self, columns: Columns, places: Sequence[str]) -> None:
        return None

    def score(self, answers: Answers) -> list[float]:
        prompts = list(answers.prompts)
        if answers.talks is not None:  # calls, and what came of them, stand before the answer
            talks = zip(prompts, answers.talks, strict=True)
            prompts = [[*prompt, *talk[:-1]] for prompt, talk in talks]
        return self.judge.score(prompts, answers.texts)

    def fingerprint(self) -> str:
        return f"{self.spec} {self.judge.rubric}"


# Kinds that are named by what stands before the first colon; a further kind is a line here.
KINDS: dict[str, Callable[..., Reward]] = {
    "regex": RegexReward,
    "tests": TestsReward,
    "scene": SceneReward,
    "judge": JudgeReward,
}
OPTIONS = {"judge": ("rubric", "budget_tokens")}  # of a kind, beside the text that names it


def make_reward(spec: Any, precision: Precision, **options: Any) -> Reward:
    """A reward by the text that names it, with those of its `OPTIONS` that are given.

    Raises:
        BedstoneError: there is none such.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise BedstoneError(
            f"rewards: {shown(spec)} was given; name a function as rewards.py:exact, a reward "
            f"model, or {', '.join(f'{kind}:...' for kind in KINDS)}."
        )
    kind, colon, rest = spec.partition(":")
    if wrong := options.keys() - set(OPTIONS.get(kind, ())):
        raise BedstoneError(f"rewards: {spec} has no {min(wrong)}. Leave it out.")
    if colon and kind in KINDS:
        return KINDS[kind](spec, precision, **options)
    if colon and re.fullmatch(r"[\w.]+", rest) and not Path(spec).exists():
        return FunctionReward(spec, precision)
    return ModelReward(spec, precision)


def source_print(function: Callable[..., Any]) -> str:
    """A hash (hex) of the file that a function is in."""
    file = inspect.getsourcefile(function)
    source = Path(file).read_bytes() if file and Path(file).is_file() else b""
    return sha256(source).hexdigest()


def load_function(spec: str, field: str = "rewards") -> Callable[..., Any]:
    """The function `FILE.py:NAME` or `MODULE:NAME`; `field` of the recipe is for errors.

    Raises:
        BedstoneError: the file can't be read or run, or has no such function.
    """
    home, _, name = spec.rpartition(":")
    try:
        is_file = home.endswith(".py")
        module = _module(Path(home), field) if is_file else importlib.import_module(home)
    except BedstoneError:
        raise
    except Exception as error:
        raise BedstoneError(
            f"{field}: {spec}: {home} can't be run: {type(error).__name__}: {error}. Mend it."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise BedstoneError(
            f"{field}: {spec}: {home} has no function {name!r}{nearest(name, known)}."
        )
    if inspect.iscoroutinefunction(found):
        raise BedstoneError(f"{field}: {spec}: is async; give a function that returns at once.")
    return found


def _module(path: Path, field: str) -> ModuleType:
    if not path.is_file():
        raise BedstoneError(
            f"{field}: {path}: there is no such file. A function is named "
            "FILE.py:FUNCTION, from the folder that the run is started in."
        )
    known = importlib.util.spec_from_file_location(f"rewards_{path.stem}", path.resolve())
    assert known is not None and known.loader is not None
    module = importlib.util.module_from_spec(known)
    sys.path.insert(0, str(path.resolve().parent))  # files beside it can be imported
    try:
        known.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


class RewardSum:
    """A weighted sum of rewards, each checked.

    Args:
        given: a text; a mapping with `reward` and maybe `weight`, `name` and the reward's
            `OPTIONS`; or a list of such.
        field: of the recipe, for errors.

    Attributes:
        names: of the parts.

    Raises:
        BedstoneError: it is of another form, or a part of it is.
    """

    def __init__(self, given: Any, precision: Precision, field: str = "rewards") -> None:
        listed = list(given) if isinstance(given, list | tuple) else [given]
        if not listed:
            raise BedstoneError(f"{field}: is empty; name a reward, such as rewards.py:exact.")
        self.parts: list[Reward] = []
        self.weights: list[float] = []
        self.names: list[str] = []
        for each in listed:
            each = each if isinstance(each, Mapping) else {"reward": each}
            options = {key: each[key] for key in chain(*OPTIONS.values()) if key in each}
            known = ("reward", "weight", "name", *chain(*OPTIONS.values()))
            if unknown := each.keys() - set(known):
                name = min(map(str, unknown))
                raise BedstoneError(f"{field}: the key {name!r} is unknown{nearest(name, known)}.")
            weight = each.get("weight", 1.0)
            try:
                weight = float(weight)  # YAML reads 1e-3 as text
            except (TypeError, ValueError):
                weight = math.nan
            if isinstance(each.get("weight"), bool) or not math.isfinite(weight):
                raise BedstoneError(
                    f"{field}.weight: {shown(each['weight'])} was given; expected a number."
                )
            self.parts.append(make_reward(each.get("reward"), precision, **options))
            self.weights.append(weight)
            self.names.append(str(each.get("name") or _short(self.parts[-1].spec)))
        if len(set(self.names)) < len(self.names):
            self.names = [f"{name}_{n + 1}" for n, name in enumerate(self.names)]
        self._seen: list[tuple[float, float]] = []  # least and most of each rollout so far

    def check(self, columns: Columns, places: Sequence[str] = ()) -> None:
        """Raises BedstoneError where rows can't be scored; arguments as of `Reward.check`."""
        for part in self.parts:
            part.check(columns, places)

    def score(self, answers: Answers) -> np.ndarray:
        """(n, parts) rewards, not weighted.

        Raises:
            BedstoneError: a reward can't be computed, or isn't a number for each answer.
        """
        columns = [_numbers(part, part.score(answers), answers) for part in self.parts]
        return np.stack(columns, 1)

    def total(self, scores: np.ndarray) -> np.ndarray:
        """(n,) weighted sums of what `score` gives."""
        found: np.ndarray = scores @ np.array(self.weights)
        return found

    def watch(self, totals: np.ndarray) -> None:
        """Warns once where all answers of the first rollouts have one and the same reward."""
        if len(self._seen) >= CONSTANT:
            return
        self._seen.append((float(totals.min()), float(totals.max())))
        least, most = min(low for low, _ in self._seen), max(high for _, high in self._seen)
        if len(self._seen) == CONSTANT and least == most:
            warnings.warn(
                f"rewards: all answers of the first {CONSTANT} rollouts have the reward {least:g}, "
                "so nothing can be learnt. Look at the answers and the reward: is what it looks "
                "for ever written?",
                stacklevel=2,
            )

    def fingerprint(self) -> str:
        """A hash (hex) of what the rewards are."""
        parts = zip(self.parts, self.weights, strict=True)
        text = repr([(part.spec, part.fingerprint(), weight) for part, weight in parts])
        return sha256(text.encode()).hexdigest()[:32]


def _short(spec: str) -> str:
    """The name of a reward in logs: a function's, a folder's, or of its kind."""
    kind, colon, rest = spec.partition(":")
    if colon and kind in KINDS:
        return kind
    return rest if colon else Path(spec).name


def _numbers(part: Reward, found: Any, answers: Answers) -> np.ndarray:
    """What a reward gave, as (n,) float64; raises BedstoneError for what is no number."""
    if isinstance(found, torch.Tensor | np.ndarray):
        found = found.tolist()
    count = len(answers.texts)
    if not isinstance(found, list | tuple):
        raise BedstoneError(
            f"rewards: {part.spec}: gave {shown(found)}; expected a list of {count:,} numbers, "
            "one for each answer."
        )
    if len(found) != count:
        raise BedstoneError(
            f"rewards: {part.spec}: gave {len(found):,} numbers for {count:,} answers; expected "
            "one for each, in their order."
        )
    values = np.zeros(count)
    for number, value in enumerate(found):
        try:
            values[number] = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            values[number] = math.nan
        if not math.isfinite(values[number]):
            raise BedstoneError(
                f"{answers.places[number]}: {part.spec} gave {shown(value)} for the answer "
                f"{shown(answers.texts[number])}; expected a finite number. Mend the reward: an "
                "answer that can't be judged needs a number of its own."
            )
    return values
