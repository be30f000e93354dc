"""Answers that call functions: sampled up to a call, its result read, sampled on.

Token in, token out: what was sampled stays as it is, and the tokens of a result are set behind it.
These are read, not sampled: no probability of theirs is learnt.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.tool_calls import Call, call_form, result_ids, schema_of
from bedstone.errors import BedstoneError
from bedstone.generation.rollout import Sampled, joined, sample_answers
from bedstone.runtime import Precision

LONGEST = 2000  # characters of a result; what is longer is cut


class Tools:
    """Functions that a model may call.

    Args:
        functions: of the user; they run in this process.
        ends: ids that end an answer.

    Attributes:
        schemas: of the functions, for the chat template.

    Raises:
        BedstoneError: two have one name, one can't be called by names, or the chat template writes
            no calls that could be read back.
    """

    def __init__(
        self, functions: Sequence[Callable[..., Any]], tokenizer: Tokenizer, ends: Iterable[int]
    ) -> None:
        self.tokenizer, self.ends = tokenizer, frozenset(ends)
        self.functions: dict[str, Callable[..., Any]] = {}
        for each in functions:
            if each.__name__ in self.functions:
                raise BedstoneError(
                    f"tools: two functions are called {each.__name__!r}. Rename one of them."
                )
            self.functions[each.__name__] = each
        self.schemas = [schema_of(each) for each in functions]
        self.form = call_form(tokenizer, self.schemas)
        result_ids(tokenizer, [Call("probe", {})], ["probe"], self.ends, self.schemas)

    def reply(self, ids: Sequence[int]) -> list[int] | None:
        """The tokens to be read behind an answer; None where it calls nothing.

        Args:
            ids: of the answer since the last result, its end token included.
        """
        answer = self.tokenizer.decode(list(ids[:-1]), skip_special=False)
        calls = self.form.read(answer.strip())
        if not calls:
            return None
        results = [self.result(call) for call in calls]
        return result_ids(self.tokenizer, calls, results, self.ends, self.schemas)

    def result(self, call: Call) -> str:
        """What a call gives, as text; what goes wrong is a result too, which the model reads."""
        if call.name not in self.functions:
            known = ", ".join(self.functions)
            return f"error: there is no tool {call.name!r}; there are {known}"
        try:
            found = self.functions[call.name](**call.arguments)
            text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        except Exception as error:
            text = f"error: {type(error).__name__}: {error}"
        text = text.encode("utf-8", "replace").decode().replace("\0", "")
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}... (cut)"


def sample_with_tools(
    network: Any,
    prompts: Sequence[Sequence[int]],
    tools: Tools,
    *,
    group: int = 1,
    max_tokens: int,
    temperature: float = 1.0,
    random: np.random.Generator | None = None,
    precision: Precision,
) -> Sampled:
    """As `generation.rollout.sample_answers`, with the results of calls in the answers.

    Args:
        max_tokens: of an answer, results included. One whose result doesn't fit is cut there.

    Returns:
        `read` says which tokens are of results; their log-probabilities and entropies are 0.
    """
    how: dict[str, Any] = {"temperature": temperature, "random": random, "precision": precision}
    ends = sorted(tools.ends)
    made = sample_answers(network, prompts, ends, group=group, max_tokens=max_tokens, **how)
    owners = np.repeat(np.arange(len(prompts)), group)
    rows = [_Row(list(prompts[owner]), made, n) for n, owner in enumerate(owners.tolist())]
    waiting = [row for row in rows if row.calls(tools, max_tokens)]
    while waiting:
        context = int(network.config.context)
        shortest = min(waiting, key=lambda row: len(row.ids))
        limit = max_tokens - len(shortest.ids)
        fit = [row for row in waiting if len(row.before) + len(row.ids) + limit <= context]
        fit = fit or [shortest]
        asks = [[*row.before, *row.ids] for row in fit]
        more = sample_answers(network, asks, ends, max_tokens=limit, **how)
        for number, row in enumerate(fit):
            row.add(more, number, max_tokens)
        rest = [row for row in waiting if not any(row is each for each in fit)]
        waiting = rest + [row for row in fit if row.calls(tools, max_tokens)]
    return joined([row.sampled() for row in rows])


class _Row:
    """An answer in the making.

    Attributes:
        before: tokens of its prompt.
        ids, read, log_probs, entropy: of its tokens.
        start: where those begin that follow the last result.
    """

    def __init__(self, before: list[int], made: Sampled, number: int) -> None:
        self.before, self.start, self.ended = before, 0, False
        self.ids: list[int] = []
        self.read: list[bool] = []
        self.log_probs: list[float] = []
        self.entropy: list[float] = []
        self.add(made, number, made.ids.shape[1])

    def add(self, made: Sampled, number: int, limit: int) -> None:
        """Takes what was sampled, as far as there is room."""
        size = min(int(made.lengths[number]), limit - len(self.ids))
        self.ids += made.ids[number, :size].tolist()
        self.log_probs += made.log_probs[number, :size].tolist()
        self.entropy += made.entropy[number, :size].tolist()
        self.read += [False] * size
        self.ended = bool(made.ended[number]) and size == int(made.lengths[number])

    def calls(self, tools: Tools, limit: int) -> bool:
        """Whether it ends with a call whose result fits, which is then set behind it."""
        if not self.ended:
            return False
        found = tools.reply(self.ids[self.start :])
        if found is None:
            return False
        self.ended = False  # by a call, not by an answer
        if len(self.ids) + len(found) >= limit:
            return False
        self.ids += found
        self.read += [True] * len(found)
        self.log_probs += [0.0] * len(found)
        self.entropy += [0.0] * len(found)
        self.start = len(self.ids)
        return True

    def sampled(self) -> Sampled:
        def row(values: Sequence[Any], kind: torch.dtype) -> Tensor:
            return torch.tensor([values], dtype=kind)

        return Sampled(
            row(self.ids, torch.long),
            torch.tensor([len(self.ids)]),
            torch.tensor([self.ended]),
            row(self.log_probs, torch.float),
            row(self.entropy, torch.float),
            row(self.read, torch.bool),
        )


def runs_of(sampled: Sampled) -> list[list[tuple[bool, list[int]]]]:
    """Each answer as runs of tokens: whether they were read, and their ids."""
    found = []
    read = torch.zeros_like(sampled.ids, dtype=torch.bool) if sampled.read is None else sampled.read
    for ids, mask in zip(sampled.answers(), read.tolist(), strict=True):
        runs: list[tuple[bool, list[int]]] = []
        for token, was_read in zip(ids, mask, strict=False):
            if not runs or runs[-1][0] != was_read:
                runs.append((was_read, []))
            runs[-1][1].append(token)
        found.append(runs)
    return found
