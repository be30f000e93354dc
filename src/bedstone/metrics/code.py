"""Metrics of generated code that is run on tests: pass@k, of the Codex paper.

Chen et al. (2021), Evaluating Large Language Models Trained on Code,
https://arxiv.org/abs/2107.03374. A problem counts as solved at k where one of k programs passes.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from bedstone.errors import BedstoneError
from bedstone.metrics.figures import Figures, bootstrap, with_ends
from bedstone.settings import check_whole

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def code_blocks(answer: str) -> list[str]:
    """The code blocks of an answer in Markdown; a block that isn't closed goes to the end."""
    return [block for block in _BLOCK.findall(answer) if block.strip()]


def pass_at_k(count: int, right: int, k: int) -> float:
    """The probability that one of k programs passes, drawn from `count` of which `right` pass.

    Equation 1: `1 - C(n - c, k) / C(n, k)`, unbiased where plain `1 - (1 - c / n)^k` is too low.
    It is computed as a product, since the binomials overflow.

    Raises:
        BedstoneError: k is more than `count` or below 1, or `right` is none of 0 to `count`.
    """
    check_whole("k", k, 1)
    if k > count:
        raise BedstoneError(
            f"k: pass@{k} was wanted of {count} programs for each problem; generate at least {k}, "
            "or lower k."
        )
    if not 0 <= right <= count:
        raise BedstoneError(f"right: {right} of {count} programs; expected 0 to {count}.")
    if count - right < k:
        return 1.0
    others = np.arange(count - right + 1, count + 1)
    return float(1.0 - np.prod(1.0 - k / others))


def passed(
    problems: Sequence[Sequence[bool]],
    ks: Sequence[int] = (1,),
    *,
    verdicts: Mapping[str, int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """pass@k as means over problems; intervals are of the bootstrap over problems.

    Args:
        problems: of each, whether each of its programs passed.
        ks: as in pass@k; the first is the main figure.
        verdicts: how often each came, for `support`.
        resamples: of the bootstrap; 0 leaves intervals out.

    Raises:
        BedstoneError: there is no problem, or one has fewer programs than a k.
    """
    if not problems:
        raise BedstoneError("evaluate: there are no problems to score; give at least one.")
    scores = np.array(
        [[pass_at_k(len(each), sum(each), k) for k in ks] for each in problems]
    )  # (N, K)
    names = [f"pass@{k}" for k in ks]
    rows, intervals = len(problems), {}
    if resamples:
        ends = bootstrap(lambda drawn: drawn @ scores / rows, rows, resamples=resamples, seed=seed)
        intervals = with_ends(names, ends)
    values = dict(zip(names, scores.mean(0).tolist(), strict=True))
    return Figures(
        "code", names[0], values, intervals, rows, support=dict(sorted((verdicts or {}).items()))
    )
