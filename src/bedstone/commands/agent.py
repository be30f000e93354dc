"""`bedstone agent`: a goal, a model and tools."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.agent.drivers import LocalDriver, RemoteDriver
from bedstone.agent.loop import Agent, Driver, Limits
from bedstone.agent.mcp import serve_stdio
from bedstone.agent.own_tools import named_tools
from bedstone.agent.policy import Policy
from bedstone.agent.tools import Toolbox
from bedstone.commands.remote import Asking, open_remote, refuse_for_remote
from bedstone.errors import BedstoneError
from bedstone.outputs import new_file
from bedstone.reading import shown
from bedstone.report.agent_page import write_agent_page
from bedstone.runtime import pick_device, pick_precision
from bedstone.settings import number, optional, whole
from bedstone.tasks.pipeline import open_decoder

REASONS = {
    "steps": "the limit of turns (--steps)",
    "seconds": "the limit of time (--seconds)",
    "tokens": "the limit of tokens (--tokens)",
    "money": "the limit of money",
    "repeated": "the same call three times",
    "failed": "the model couldn't be asked",
}


@dataclass(frozen=True)
class Bounds:
    """Limits of a run.

    Attributes:
        steps: number of turns of the model, at most.
        seconds: number of seconds, at most.
        tokens: number of tokens that the model reads and writes, at most.
        max_new_tokens: number of tokens of a turn, at most.
    """

    steps: int = whole(1, default=12)
    seconds: float | None = optional(number(0, open_least=True))
    tokens: int | None = optional(whole(1))
    max_new_tokens: int = whole(1, default=256)


def agent(
    goal: str,
    bounds: Bounds,
    asking: Asking,
    model: str = "",
    tools: tuple[str, ...] = (),
    policy: tuple[str, ...] = (),
    transcript: str | None = None,
    page: str | None = None,
    overwrite: bool = False,
    *,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> int:
    """Reach a goal by calling tools, step after step, under rules that the model can't change.

    Tools without effects are called at once. One with effects is asked about in the terminal, or
    denied where there is none, unless a rule says otherwise; once the model has read texts that
    others wrote, only `trust` lets effects through without asking.

    Args:
        goal: what is to be reached.
        model: a chat model: a folder, a name that `bedstone models` lists, a hub id, or one behind
            an endpoint, openai:NAME or http://host/v1#NAME.
        tools: a tool; may be given several times: calculator, python (in the sandbox),
            files=FOLDER, search=FOLDER, memory=FOLDER (notes for later runs), caption=MODEL,
            ask=MODEL, classify=MODEL, imagine=MODEL, FILE.py:FUNCTION, mcp=COMMAND or
            mcp=http://ADDRESS.
        policy: a rule, such as "allow write_file(path=reports/*)" or "deny run_python"; may be
            given several times, the first that fits counts: trust, allow, ask or deny.
        transcript: new file that all that happens is written to.
        page: HTML file that shows it.
        overwrite: replace a transcript or a page of the same name.
        as_json: print each event as a JSON object, and ask nothing.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone agent "What is 17 % of 2,340?" --model openai:gpt-4o-mini --tools calculator
        bedstone agent "Sum up notes/ in report.md" --model openai:gpt-4o-mini --tools files=notes

    Raises:
        BedstoneError: the model can't be opened, or a tool or a rule is unknown.
    """
    if transcript is not None:
        new_file(transcript, "--transcript", overwrite=overwrite)
    if page is not None:
        new_file(page, "--page", overwrite=overwrite)
    if not model:
        raise BedstoneError(
            "--model: none was named; take a chat model, such as smollm2-135m-instruct, or one "
            "behind an endpoint."
        )
    if not tools:
        raise BedstoneError("--tools: none were given; an agent needs one, such as calculator.")
    asks = sys.stdin.isatty() and not as_json
    rules = Policy(policy, ask=_ask if asks else None)
    made = named_tools(tools)
    limits = Limits(steps=bounds.steps, seconds=bounds.seconds, tokens=bounds.tokens)
    rules.check(Toolbox(made).tools)
    driver = _driver(model, asking, bounds.max_new_tokens, precision, device)
    tell = _print_json if as_json else _print
    if transcript is not None:  # a new one is begun
        Path(transcript).unlink(missing_ok=True)
    found = Agent(driver, made, policy=rules, limits=limits, tell=tell).run(goal, transcript)
    if page is not None:
        print(f"page: {write_agent_page(Path(page), found.transcript.events)}", file=sys.stderr)
    if found.answered:
        if not as_json:
            print(found.answer)
        return 0
    why = REASONS[found.reason] + (f": {found.answer}" if found.answer else "")
    print(f"bedstone: agent: no answer: {why}.", file=sys.stderr)
    return 1


def mcp(tools: tuple[str, ...] = ()) -> None:
    """Serve tools to other agents by the Model Context Protocol, on standard input and output.

    Args:
        tools: a tool; may be given several times, as `bedstone agent` has them.

    Example:
        bedstone mcp --tools calculator --tools search=docs --tools caption=scenes-vlm

    Raises:
        BedstoneError: none are given, or one is unknown.
    """
    if not tools:
        raise BedstoneError("--tools: none were given; give those to serve, such as calculator.")
    serve_stdio(named_tools(tools))


def _driver(model: str, asking: Asking, most: int, precision: str, device: str) -> Driver:
    if (remote := open_remote(model, asking)) is not None:
        refuse_for_remote(model, precision=precision, device=device)
        return RemoteDriver(remote, max_new_tokens=most)
    where = pick_device(device)
    pick_precision(precision, where)
    return LocalDriver(open_decoder(model, where), precision=precision, max_new_tokens=most)


def _ask(name: str, arguments: Mapping[str, Any], reason: str) -> bool:
    given = json.dumps(arguments, ensure_ascii=True, default=str)
    print(f"{name} {given}\n({reason}) [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _print_json(event: Mapping[str, Any]) -> None:
    print(json.dumps(event, ensure_ascii=False, default=str), flush=True)


def _print(event: Mapping[str, Any]) -> None:
    """Says on standard error what happens."""
    kind = event["kind"]
    if kind == "decision":
        given = json.dumps(event["arguments"], ensure_ascii=True, default=str)
        denied = "" if event["action"] == "allow" else f"  ({event['action']}: {event['reason']})"
        print(f"  {event['name']} {given}{denied}", file=sys.stderr, flush=True)
    elif kind == "result":
        print(f"    {shown(event['text'], 160)}", file=sys.stderr, flush=True)
    elif kind == "turn" and event["fault"]:
        print(f"  no call and no answer: {event['fault']}", file=sys.stderr, flush=True)
