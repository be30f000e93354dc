"""HumanEval: functions that a model completes, run on their tests in the sandbox; pass@k.

Chen et al. (2021), https://arxiv.org/abs/2107.03374. Rows are as published (task_id, prompt,
canonical_solution, test, entry_point), or one's own of the same columns. Completions end at the
stop texts of the paper; of chat models, the code block of the answer is taken.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.dataset import Dataset
from bedstone.data.open import open_dataset
from bedstone.data.text.chat import check_template, render
from bedstone.errors import BedstoneError, nearest
from bedstone.evaluate.runner import Evaluation, Progress, present
from bedstone.files import make_folder, write_text
from bedstone.generation.settings import GenerationSettings
from bedstone.generation.text import encode_prompt
from bedstone.metrics.code import code_blocks, passed
from bedstone.metrics.figures import Figures
from bedstone.reading import shown
from bedstone.remote.model import RemoteModel
from bedstone.runtime import Precision
from bedstone.sandbox.run import Limits, Outcome, score_all, working_way
from bedstone.settings import Settings, number, one_of, optional, share, whole
from bedstone.tasks.pipeline import pipeline
from bedstone.train.logs import ProgressBar

HUMANEVAL = "humaneval"
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
COLUMNS = ("task_id", "prompt", "test", "entry_point")
STOPS_SENT = 4  # that an endpoint takes; at the others its text is cut here
SAMPLED = 0.8  # the temperature where several programs are wanted, as in the paper for large k
BATCH = 8  # problems whose programs are generated before they are run
REQUEST = (
    "Complete this Python function. Answer with the whole function in one code block.\n\n"
    "```python\n{prompt}\n```"
)


@dataclass(frozen=True)
class CodeSettings(Settings):
    """Code generation, of --task humaneval.

    Attributes:
        completions: programs to generate for each problem.
        k: as in pass@k; may be given several times (default: 1, 10 and 100, where there are as many
            completions).
        temperature: of sampling (default: 0 of one completion, 0.8 of several).
        top_p: sample among the most likely tokens that sum to this probability.
        max_new_tokens: the most tokens of a completion.
        seed: of sampling.
        chat: use of the model's chat template: auto, where it has one, or none.
        seconds: that a program may take with its tests.
    """

    completions: int = whole(1, default=1)
    k: tuple[int, ...] = ()
    temperature: float | None = optional(number(0))
    top_p: float | None = optional(share())
    max_new_tokens: int = whole(1, default=512)
    seed: int = whole(0, 2**63 - 1, default=0)
    chat: str = one_of("auto", "none", default="auto")
    seconds: float = number(0.1, 3600, default=5.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for k in self.k:
            if not 1 <= k <= self.completions:
                raise BedstoneError(
                    f"k: {k} was given, and there are {self.completions} completions for each "
                    "problem. Raise completions, or lower k."
                )

    @property
    def ks(self) -> tuple[int, ...]:
        """Those to measure, ascending."""
        usual = tuple(k for k in (1, 10, 100) if k <= self.completions)
        return tuple(sorted(set(self.k))) or usual

    @property
    def generation(self) -> GenerationSettings:
        """The same for the generation of texts."""
        several = self.completions > 1
        chosen = self.temperature if self.temperature is not None else SAMPLED * several
        return GenerationSettings(
            max_new_tokens=self.max_new_tokens,
            temperature=chosen,
            top_p=self.top_p if chosen else None,
            num_return_sequences=self.completions if chosen else None,
            seed=self.seed,
        )


USUAL = CodeSettings()


@dataclass(frozen=True)
class Problem:
    """A function to complete, and its tests.

    Attributes:
        task: its name.
        prompt: the text up to the function's body.
        tests: define `check(candidate)`, which raises an exception where the function is wrong.
        entry: the function's name.
        solution: a body that is right; empty where none was given.
    """

    task: str
    prompt: str
    tests: str
    entry: str
    solution: str = ""

    def program(self, completion: str) -> str:
        """The whole program, of what continues the prompt."""
        return f"{self.prompt}{completion}\n"

    def program_of_answer(self, answer: str) -> str:
        """The whole program, of a chat model's answer.

        Of several code blocks the first that defines the function is taken; one that doesn't is the
        function's body. What the prompt has before the function stands before it.
        """
        blocks = code_blocks(answer) or [answer]
        define = re.compile(rf"^(?:async )?def {re.escape(self.entry)}\b", re.MULTILINE)
        for block in blocks:
            if define.search(block):
                places = [found.start() for found in define.finditer(self.prompt)]
                return f"{self.prompt[: places[-1]] if places else ''}\n{block}\n"
        return self.program(blocks[0])

    @property
    def checks(self) -> str:
        """What the sandbox runs as tests.

        Names that the prompt defines before the function, such as helpers that tests call, are the
        prompt's own here, so that a program can't change them.
        """
        return f"{self._given()}{self.tests}\ncheck({self.entry})\n"

    def _given(self) -> str:
        for more in ("", "    pass\n"):
            try:
                tree = ast.parse(self.prompt + more)
            except (SyntaxError, ValueError):
                continue
            kept = [each for each in tree.body if getattr(each, "name", None) != self.entry]
            return ast.unparse(ast.Module(kept, [])) + "\n"
        return ""


def read_problems(rows: Dataset) -> list[Problem]:
    """Rows as problems.

    Raises:
        BedstoneError: a row lacks a column, or it is no text or no name.
    """
    found = []
    for index, row in enumerate(rows):
        for column in COLUMNS:
            if column not in row:
                raise BedstoneError(
                    f"{rows.where(index)}: has no column {column!r}{nearest(column, row)}. "
                    f"HumanEval has the columns {', '.join(COLUMNS)}."
                )
            if not isinstance(row[column], str):
                raise BedstoneError(
                    f"{rows.where(index)}: {column} is {shown(row[column])}; expected a text."
                )
        if not row["entry_point"].isidentifier():
            raise BedstoneError(
                f"{rows.where(index)}: entry_point is {shown(row['entry_point'])}; expected the "
                "name of a function."
            )
        solution = row.get("canonical_solution")
        task, prompt, tests, entry = (row[column] for column in COLUMNS)
        solution = solution if isinstance(solution, str) else ""
        found.append(Problem(task, prompt, tests, entry, solution))
    return found


@dataclass(frozen=True)
class Attempt:
    """A program for a problem, and what came of it."""

    problem: Problem
    completion: str
    outcome: Outcome

    def record(self) -> dict[str, Any]:
        return {
            "task_id": self.problem.task,
            "completion": self.completion,
            "passed": self.outcome.passed,
            "result": self.outcome.verdict,
            "reason": self.outcome.reason,
        }


class CodeEvaluation(Evaluation):
    """Programs that a model writes, run on the tests of problems.

    Args:
        model: a decoder, or one behind an endpoint.
        problems: to solve.
        settings: of generation.
        precision: its name.

    Raises:
        BedstoneError: the model isn't a decoder, or no way of the sandbox works here.
    """

    def __init__(
        self,
        model: Model | RemoteModel,
        problems: Sequence[Problem],
        settings: CodeSettings = USUAL,
        precision: str = "fp32",
        name: str = HUMANEVAL,
    ) -> None:
        working_way()  # before anything is generated
        self.problems, self.settings, self.name = problems, settings, name
        self.tokenizer, self.context = None, 0  # an endpoint's aren't known
        if isinstance(model, RemoteModel):
            self.task = pipeline("text-generation", model)
            self.chat = settings.chat == "auto"
        else:
            self.task = pipeline("text-generation", model, precision=precision)
            self.tokenizer, self.context = tokenizer_of(model), int(model.config.context)
            self.chat = settings.chat == "auto" and bool(self.tokenizer.chat_template)
            if self.chat:
                check_template(self.tokenizer)
        self.too_long = 0

    def predict(self, progress: Progress = None) -> list[list[Attempt]]:
        """The attempts at each problem."""
        found: list[list[Attempt]] = []
        for start in range(0, len(self.problems), BATCH):
            part = self.problems[start : start + BATCH]
            written = list(self._written(part))
            cases = [
                (self._program(problem, text), problem.checks)
                for problem, texts in zip(part, written, strict=True)
                for text in texts
            ]
            outcomes = score_all(cases, Limits(seconds=self.settings.seconds))
            for problem, texts in zip(part, written, strict=True):
                found.append([Attempt(problem, text, next(outcomes)) for text in texts])
            if progress is not None:
                progress(len(found) / len(self.problems))
        return found

    def score(self, found: list[list[Attempt]], resamples: int) -> dict[str, Figures]:
        verdicts: Counter[str] = Counter(each.outcome.verdict for own in found for each in own)
        passes = [[each.outcome.passed for each in own] for own in found]
        figures = passed(passes, self.settings.ks, verdicts=verdicts, resamples=resamples)
        return {HUMANEVAL: figures}

    def _program(self, problem: Problem, text: str) -> str:
        if self.chat:
            return problem.program_of_answer(text)
        ends = (text.find(stop) for stop in STOPS)
        return problem.program(text[: min((at for at in ends if at >= 0), default=None)])

    def _written(self, problems: Sequence[Problem]) -> Iterator[list[str]]:
        """The completions or answers for each problem; empty ones where the prompt is too long."""
        generation = self.settings.generation
        options = {**generation.given, "return_full_text": False}
        if not self.chat:
            options["stop"] = STOPS if self.tokenizer is not None else STOPS[:STOPS_SENT]
        inputs = [self._input(problem) for problem in problems]
        fitting = [each for each in inputs if each is not None]
        self.too_long += len(inputs) - len(fitting)
        results = iter(self.task(fitting, **options) if fitting else ())
        for each in inputs:
            texts = [""] if each is None else [_text(one) for one in next(results)]
            # One text that was chosen without chance stands for as many as are wanted.
            yield texts * (self.settings.completions // len(texts))

    def _input(self, problem: Problem) -> Any:
        given: Any = problem.prompt
        text: str = problem.prompt
        if self.chat:
            given = [{"role": "user", "content": REQUEST.format(prompt=problem.prompt.strip())}]
        if self.tokenizer is None:
            return given
        if self.chat:
            text = render(self.tokenizer, given)
        return given if len(encode_prompt(self.tokenizer, text)) < self.context else None


def _text(result: dict[str, Any]) -> str:
    return str(result["generated_text"])


def evaluate_humaneval(
    model: Model | RemoteModel,
    data: str,
    precision: Precision,
    settings: CodeSettings = USUAL,
    *,
    split: str | None = None,
    out: str = "",
    as_json: bool = False,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Prints and returns pass@k of a decoder, with 95 % intervals.

    Args:
        data: rows of HumanEval or of its columns.
        out: a folder for `completions.jsonl`: each with its verdict; none where empty.

    Raises:
        BedstoneError: rows aren't problems, the model is no decoder, or no sandbox works here.
    """
    problems = read_problems(open_dataset(data, split=split, as_written=True))
    evaluation = CodeEvaluation(model, problems, settings, precision.name, data)
    with ProgressBar("evaluating", quiet=as_json) as bar:
        found = evaluation.predict(bar.update)
    figures = evaluation.score(found, resamples)[HUMANEVAL]
    notes = [_verdicts(figures), f"sandbox: {working_way()}"]
    if evaluation.too_long:
        notes.append(
            f"{evaluation.too_long:,} prompts were longer than the model's context of "
            f"{evaluation.context:,} tokens; they count as failed."
        )
    if out:
        path = make_folder(out) / "completions.jsonl"
        lines = [_line(each) for own in found for each in own]
        write_text(path, "".join(lines))
        notes.append(f"completions: {path}")
    name = model.address if isinstance(model, RemoteModel) else model.path
    return present(
        {HUMANEVAL: figures.record()},
        {f"{name} on {data}: {HUMANEVAL}": figures.table()},
        notes=notes,
        as_json=as_json,
    )


def _verdicts(figures: Figures) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in figures.support.items())


def _line(attempt: Attempt) -> str:
    return json.dumps(attempt.record(), ensure_ascii=False) + "\n"
