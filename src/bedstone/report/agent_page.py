"""A page of what an agent did: each turn with its calls, what was decided and what came back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bedstone.files import write_text
from bedstone.report.pages import render

LONGEST = 1500  # characters of a result that is shown

PAGE = """
{% block style %}
ol.run > li { border-left: 3px solid var(--line); padding: 0 0 .2rem 1rem; margin: 0 0 1.2rem }
h2 { font-size: 1rem; margin: 0 0 .3rem }
pre { background: var(--tile); border: 1px solid var(--line); border-radius: 8px; padding: .6rem;
      white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; font-size: .86rem }
.allow { color: var(--right) } .deny { color: var(--wrong) }
.why { color: var(--dim); font-size: .9rem }
.answer { font-size: 1.1rem; border-left: 3px solid var(--mark); padding-left: 1rem;
          white-space: pre-wrap; overflow-wrap: anywhere }
{% endblock %}
{% block content %}
<ol class="run">
{% for turn in turns %}<li><h2>Turn {{ turn.step }}</h2>
{% if turn.text and turn.calls %}<p>{{ turn.text }}</p>{% endif %}
{% if turn.fault %}<p class="deny">No call and no answer: {{ turn.fault }}</p>{% endif %}
{% for call in turn.calls %}
<pre><strong>{{ call.name }}</strong> {{ call.arguments }}</pre>
{% if call.action %}<p class="why"><span class="{{ call.action }}">
{{ 'made' if call.action == 'allow' else 'denied' }}</span>: {{ call.reason }}</p>{% endif %}
{% if call.text is not none %}<pre>{{ call.text }}</pre>{% endif %}
{% endfor %}</li>
{% endfor %}
</ol>
{% if answer %}<p class="answer">{{ answer }}</p>{% endif %}
<p class="why">{{ reason }}; model {{ model }}; tools {{ tools }}; rules: {{ rules }}</p>
{% endblock %}
"""


def write_agent_page(path: Path, events: Sequence[Mapping[str, Any]]) -> Path:
    """A page of a run, written whole or not at all.

    Args:
        events: of a transcript of `agent.transcript`, the first of which is its start.
    """
    start = events[0]
    end = next((each for each in events if each["kind"] == "end"), {})
    turns = _turns(events)
    spent = f"{len(turns)} turns, {sum(each['tokens'] for each in turns):,} tokens"
    if seconds := sum(each["seconds"] for each in events if each["kind"] == "result"):
        spent += f", {seconds:.1f} s in tools"
    page = render(
        PAGE,
        title=start["goal"],
        lead=spent,
        width=52,
        turns=turns,
        answer=end.get("answer", ""),
        reason=f"ended: {end.get('reason', 'killed before its end')}",
        model=start["model"],
        tools=", ".join(start["tools"]),
        rules="; ".join(start["rules"]) or "none",
    )
    write_text(path, page)
    return path


def _turns(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turns with their calls, each with what was decided and what came of it."""
    turns: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] == "turn":
            waiting = [
                {
                    "name": each["name"],
                    "arguments": json.dumps(each["arguments"], ensure_ascii=False, default=str),
                    "action": "",
                    "reason": "",
                    "text": None,
                }
                for each in event["calls"]
            ]
            turns.append({**event, "calls": list(waiting)})
        elif event["kind"] == "decision":
            call = next((each for each in waiting if not each["action"]), None)
            if call is not None:
                call |= {"action": event["action"], "reason": event["reason"]}
        elif event["kind"] == "result":
            done = [each for each in waiting if each["action"] == "allow" and each["text"] is None]
            if done:
                text = event["text"]
                cut = f"{text[:LONGEST]}... (shortened)" if len(text) > LONGEST else text
                done[-1]["text"] = cut
    return turns
