"""What a policy learns from: sampled answers, their rewards, and the advantage of each token.

Groups stand together, the best answer first, so that it is seen what a reward tells apart, and a
reward that pays for the wrong thing is seen before it is learnt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.files import write_text
from bedstone.report.pages import render

GROUPS, ANSWERS = 4, 8  # of a rollout, that are shown
LONGEST = 600  # characters of a prompt; its end is shown
Part = tuple[str, float, int]  # text, advantage, colour from -100 to 100


@dataclass(frozen=True)
class Shown:
    """A sampled answer.

    Attributes:
        reward: of it.
        note: what else there is to say: whether it was cut, or isn't learnt.
        parts: its tokens.
    """

    reward: float
    note: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Group:
    """Answers to one prompt."""

    place: str
    prompt: str
    answers: Sequence[Shown]


PAGE = """
{% block style %}
pre { background: var(--tile); border: 1px solid var(--line); border-radius: 8px; padding: .6rem;
      white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .5rem; font-size: .86rem }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .2rem } h3 { font-size: .95rem; margin: 1rem 0 .2rem }
.prompt { color: var(--dim) } .note { color: var(--dim); font-size: .82rem }
{% endblock %}
{% block content %}
<p>Tokens on green are made likelier, on red less likely, by as much as the colour is strong; those
without colour stay as they are. Point at a token for its advantage.</p>
{% for name, groups in rollouts %}<h2>{{ name }}</h2>
{% for group in groups %}<h3>{{ group.place }}</h3>
<pre class="prompt">{{ group.prompt }}</pre>
{% for answer in group.answers %}<div class="note">reward {{ "%.4g" | format(answer.reward) }}
{{- answer.note }}</div>
<pre>{% for text, advantage, colour in answer.parts %}<span
 title="{{ '%+.3f' | format(advantage) }}"
{%- if colour %} style="background: color-mix(in srgb, var(--{{ 'right' if colour > 0 else 'wrong'
}}) {{ (colour | abs) // 2 }}%, transparent)"{% endif %}>{{ text }}</span>{% endfor %}</pre>
{% endfor %}{% endfor %}{% endfor %}
{% endblock %}
"""


def rollout_groups(prompts: Any, rollout: Any) -> list[Group]:
    """The first groups of a rollout, the best answer of each first.

    Args:
        prompts: a `data.text.reinforcement.Prompts`.
        rollout: a `train.rollout.Rollout`.
    """
    rows = rollout.rows.tolist()
    sampled, advantages = rollout.sampled, rollout.advantages.numpy()
    largest = float(np.abs(advantages).max(initial=0.0)) or 1.0
    members: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        members.setdefault(row, []).append(number)
    found = []
    for row, numbers in list(members.items())[:GROUPS]:
        best = sorted(numbers, key=lambda n: -float(rollout.rewards[n]))
        if len(best) > ANSWERS:  # the best and the worst
            best = best[: ANSWERS // 2] + best[-ANSWERS // 2 :]
        answers = []
        for number in best:
            size = int(sampled.lengths[number])
            ids = sampled.ids[number, :size].tolist()
            texts = prompts.tokenizer.parts(prompts.ids[row], ids)
            own = advantages[number, :size].tolist()
            parts = [
                (text, value, round(100 * value / largest))
                for text, value in zip(texts, own, strict=True)
            ]
            note = "" if bool(sampled.ended[number]) else ", cut by max_new_tokens"
            if not bool(rollout.counted[number]):
                note += ", doesn't count"
            elif not bool(rollout.live[number]):
                note += ", its group has equal rewards: nothing is learnt"
            answers.append(Shown(float(rollout.rewards[number]), note, parts))
        prompt = prompts.tokenizer.decode(prompts.ids[row], skip_special=False)[-LONGEST:]
        found.append(Group(prompts.rows.where(row), prompt, answers))
    return found


def write_advantage_page(path: Path, title: str, prompts: Any, rollouts: Iterable[Any]) -> Path:
    """A page of the last rollouts, the newest first, written whole or not at all.

    Args:
        prompts, rollouts: as for `rollout_groups`.
    """
    newest = list(rollouts)[::-1]
    named = []
    for number, rollout in enumerate(newest):
        name = "the last rollout" if number == 0 else f"{number} before"
        mean = float(rollout.rewards.mean())
        named.append((f"{name}: mean reward {mean:.4g}", rollout_groups(prompts, rollout)))
    lead = f"{len(newest):,} rollouts, the newest first"
    write_text(path, render(PAGE, title=title, lead=lead, rollouts=named))
    return path
