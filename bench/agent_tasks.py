"""Tasks of one to three calls: what a small model solves as it comes, and after learning from runs.

    python bench/agent_tasks.py rows 1200 OUT.jsonl             runs to learn from, by a script
    bedstone finetune sft-own model=smollm2-135m-instruct data.train=OUT.jsonl out=RUN
    python bench/agent_tasks.py solve MODEL [--tasks 100] [--precision int8]

A task asks about a shop and its people; the tools are `stock`, `price`, `person`, `weather` and
the calculator. Values are drawn anew for each task, so that an answer can only come from calls.
Held-out tasks have other goods, names and cities, and every second one a wording of its own.

A task is solved where the answer names the right number or word and no wrong one. The figure is the
share of solved tasks, with Wilson's interval; beside it, how many turns could be read.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedstone.agent.drivers import LocalDriver
from bedstone.agent.lessons import lesson
from bedstone.agent.loop import Agent, Limits, Message, Turn
from bedstone.agent.own_tools import calculator
from bedstone.agent.tools import Tool, tool
from bedstone.checkpoints.load import open_model
from bedstone.data.text.tool_calls import Call
from result import interval


def words(text: str) -> list[str]:
    return text.split()


GOODS = words(
    "lamp chair table cup plate spoon fork mirror carpet candle cushion bottle drawer stool clock "
    "vase hammer ladder rope pillow jacket glove button pencil crayon eraser ruler stapler folder "
    "envelope stamp camera tripod printer scanner monitor keyboard cable charger battery speaker "
    "guitar drum flute violin piano trumpet helmet racket paddle skateboard scooter bicycle tent "
    "hammock lantern compass anchor barrel wheel spade rake shovel hose sprinkler fountain fence "
    "gate window curtain shutter tile brick plank nail screw bolt wrench drill saw chisel pump "
    "engine motor magnet lens telescope globe map poster puzzle kite marble robot puppet mask "
    "ribbon kettle basket blanket bench bucket scarf teapot"
)
NAMES = words(
    "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karla Leo Mia Nils Olga Paul Amir Bella "
    "Carlos Dina Elif Fatima George Hanna Ivan Julia Kofi Laura Maria Noah Omar Petra Quentin Rita "
    "Sofia Tom Uma Vera Walter Yusuf Zoe Rosa Simon Tina Viktor Astrid Bjorn"
)
CITIES = words(
    "Oslo Paris Rome Berlin Vienna Madrid Lisbon Dublin Prague Warsaw Athens London Milan Naples "
    "Seville Geneva Bergen Turin Tokyo Cairo Lima Quito Delhi Dakar Accra Hanoi Seoul Boston "
    "Chicago Denver Austin Toronto Havana Bogota Helsinki Zurich Hamburg Lyon Porto"
)
HELD_OUT = {"goods": 7, "names": 6, "cities": 5}  # the last of each list
SKIES = ("sunny", "cloudy", "rainy", "foggy")


@dataclass
class World:
    """What is true in one task."""

    stocks: dict[str, int]
    prices: dict[str, int]
    people: dict[str, dict[str, Any]]
    weathers: dict[str, dict[str, Any]]

    def tools(self) -> list[Tool]:
        """Tools that tell it."""

        def stock(item: str) -> int:
            """How many pieces of an item the shop has."""
            return self.stocks[item]

        def price(item: str) -> int:
            """The price of one piece of an item, in euros."""
            return self.prices[item]

        def person(name: str) -> dict[str, Any]:
            """The age of a person, and the city where they live."""
            return self.people[name]

        def weather(city: str) -> dict[str, Any]:
            """The temperature and the sky in a city."""
            return self.weathers[city]

        own = [stock, price, person, weather, calculator]
        return [tool(each, effects=False, untrusted=False) for each in own]


@dataclass
class Task:
    """A goal, the calls of a right way to it, and what the answer must name and must not."""

    kind: str
    goal: str
    calls: list[Call]
    answer: str
    wanted: str
    unwanted: str
    world: World


# Each kind: wordings to learn, and one that is held out.
WORDINGS = {
    "stock": ("How many {a}s do we have?", "What is our stock of {a}s?",
              "Count the {a}s in the shop.", "Tell me how many {a}s are left."),
    "price": ("What does a {a} cost?", "How much is one {a}?", "Tell me the price of a {a}.",
              "What must I pay for a {a}?"),
    "age": ("How old is {p}?", "What is the age of {p}?", "Tell me {p}'s age.",
            "How many years old is {p}?"),
    "sum": ("What is {n} * {m}?", "Work out {n} * {m}.", "How much is {n} times {m}?",
            "Multiply {n} by {m}."),
    "sky": ("What is the sky like in {c}?", "How is the sky over {c}?",
            "Is it sunny, cloudy, rainy or foggy in {c}?", "Describe the sky in {c}."),
    "cost": ("What do {n} {a}s cost?", "How much are {n} {a}s?",
             "I want {n} {a}s. What do they cost?", "What is the price of {n} {a}s together?"),
    "warm": ("How warm is it where {p} lives?", "What is the temperature in {p}'s city?",
             "How many degrees does {p} have at home?", "Tell me how warm {p}'s city is."),
    "dearer": ("Which is dearer, a {a} or a {b}?", "Does a {a} or a {b} cost more?",
               "What costs more: a {a} or a {b}?", "Name the more expensive one: {a} or {b}."),
    "worth": ("What are all our {a}s worth?", "What do we get if we sell every {a}?",
              "How much are all {a}s of the shop worth together?",
              "Tell me the value of our whole stock of {a}s."),
    "apart": ("How many years lie between {p} and {q}?", "How many years are {p} and {q} apart?",
              "What is the difference in age of {p} and {q}?",
              "By how many years do the ages of {p} and {q} differ?"),
    "both": ("What do a {a} and a {b} cost together?", "I buy a {a} and a {b}. What do I pay?",
             "How much is a {a} with a {b}?", "Tell me the sum for a {a} and a {b}."),
}  # fmt: skip
KINDS = tuple(WORDINGS)


def make_task(number: int, seed: int, held: bool) -> Task:
    """A task; kinds take turns, held-out ones have every second time the wording of their own."""
    draw = random.Random(f"{seed}-{number}-{held}")
    goods, names, cities = (
        each[-count:] if held else each[:-count]
        for each, count in zip((GOODS, NAMES, CITIES), HELD_OUT.values(), strict=True)
    )
    prices = dict(zip(goods, draw.sample(range(3, 400), len(goods)), strict=True))
    ages = draw.sample(range(18, 90), len(names))
    world = World(
        {each: draw.randrange(2, 60) for each in goods},
        prices,
        {
            name: {"age": age, "city": draw.choice(cities)}
            for name, age in zip(names, ages, strict=True)
        },
        {each: {"degrees": draw.randrange(-9, 35), "sky": draw.choice(SKIES)} for each in cities},
    )
    kind = KINDS[number % len(KINDS)]
    a, b = draw.sample(goods, 2)
    p, q = draw.sample(names, 2)
    c, n, m = draw.choice(cities), draw.randrange(2, 13), draw.randrange(11, 99)
    unseen = held and number // len(KINDS) % 2
    wording = WORDINGS[kind][3] if unseen else draw.choice(WORDINGS[kind][:3])
    goal = wording.format(a=a, b=b, p=p, q=q, c=c, n=n, m=m)
    calls, answer, wanted, unwanted = ways(kind, world, a, b, p, q, c, n, m)
    return Task(kind, goal, calls, answer, wanted, unwanted, world)


def ways(
    kind: str, world: World, a: str, b: str, p: str, q: str, c: str, n: int, m: int
) -> tuple[list[Call], str, str, str]:
    """Calls, answer, and what it must name and must not."""

    def works(expression: str) -> Call:
        return Call("calculator", {"expression": expression})

    def asks(name: str, value: str) -> Call:
        key = {"person": "name", "weather": "city"}.get(name, "item")
        return Call(name, {key: value})

    price, stock, people = world.prices, world.stocks, world.people
    if kind == "stock":
        return [asks("stock", a)], f"There are {stock[a]} {a}s.", str(stock[a]), ""
    if kind == "price":
        return [asks("price", a)], f"A {a} costs {price[a]} euros.", str(price[a]), ""
    if kind == "age":
        age = people[p]["age"]
        return [asks("person", p)], f"{p} is {age} years old.", str(age), ""
    if kind == "sum":
        return [works(f"{n} * {m}")], f"It is {n * m}.", str(n * m), ""
    if kind == "sky":
        sky = world.weathers[c]["sky"]
        return [asks("weather", c)], f"It is {sky} in {c}.", sky, ""
    if kind == "cost":
        found = n * price[a]
        calls = [asks("price", a), works(f"{n} * {price[a]}")]
        return calls, f"{n} {a}s cost {found} euros.", str(found), ""
    if kind == "warm":
        city = people[p]["city"]
        degrees = world.weathers[city]["degrees"]
        calls = [asks("person", p), asks("weather", city)]
        return calls, f"It is {degrees} degrees in {city}.", str(degrees), ""
    if kind == "dearer":
        more, less = (a, b) if price[a] > price[b] else (b, a)
        return [asks("price", a), asks("price", b)], f"The {more} is dearer.", more, less
    if kind == "worth":
        calls = [asks("stock", a), asks("price", a), works(f"{stock[a]} * {price[a]}")]
        found = stock[a] * price[a]
        return calls, f"All {a}s are worth {found} euros.", str(found), ""
    if kind == "apart":
        old, young = sorted((people[p]["age"], people[q]["age"]), reverse=True)
        calls = [asks("person", p), asks("person", q), works(f"{old} - {young}")]
        return calls, f"They are {old - young} years apart.", str(old - young), ""
    calls = [asks("price", a), asks("price", b), works(f"{price[a]} + {price[b]}")]
    found = price[a] + price[b]
    return calls, f"Together they cost {found} euros.", str(found), ""


def solved(task: Task, answer: str) -> bool:
    """Whether an answer names what is wanted, and not what isn't."""
    named = re.findall(r"-?\d+(?:\.\d+)?|[a-z]+", answer.lower())
    if task.wanted.lstrip("-").isdigit():
        return task.wanted in named
    return task.wanted in named and task.unwanted not in named


class Script:
    """The right way, as a driver."""

    name = "script"

    def __init__(self, task: Task) -> None:
        self._turns = [*(Turn(calls=(each,)) for each in task.calls), Turn(task.answer)]

    def turn(self, messages: Sequence[Message], tools: Sequence[Tool], most: int | None) -> Turn:
        return self._turns.pop(0)


def write_rows(count: int, out: Path, seed: int) -> None:
    """Runs of the script, as rows to learn from; each is solved, or the script is wrong."""
    with out.open("w") as file:
        for number in range(count):
            task = make_task(number, seed, held=False)
            tools = task.world.tools()
            found = Agent(Script(task), tools).run(task.goal)
            assert solved(task, found.answer), (task.goal, found.answer)
            file.write(json.dumps(lesson(found.transcript, tools)) + "\n")
    print(f"{count:,} runs in {out}")


def solve(options: argparse.Namespace, make: Callable[[Task], Any]) -> None:
    """Held-out tasks: how many are solved, by number of calls, and what the runs ended by."""
    right: Counter[str] = Counter()
    of: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    turns = faults = 0
    began = time.monotonic()
    for number in range(options.tasks):
        task = make_task(number, options.seed, held=True)
        agent = Agent(make(task), task.world.tools(), limits=Limits(steps=8))
        found = agent.run(task.goal)
        good = found.answered and solved(task, found.answer)
        of[task.kind] += 1
        right[task.kind] += good
        ends[found.reason] += 1
        said = list(found.transcript.of("turn"))
        turns, faults = turns + len(said), faults + sum(bool(each["fault"]) for each in said)
        if options.show and not good:
            made = [(name, *arguments.values(), text) for name, arguments, text
                    in found.transcript.effects]  # fmt: skip
            print(f"{task.goal!r}: {made} {found.answer[:120]!r}, {found.reason}; {task.answer}")
    total = sum(right.values())
    low, high = interval(total, options.tasks)
    print(f"solved {total / options.tasks:.3f} ({low:.3f} to {high:.3f}) of {options.tasks}")
    print(", ".join(f"{kind} {right[kind]}/{of[kind]}" for kind in KINDS))
    print(f"turns that could be read: {turns - faults} of {turns}; ends: {dict(ends)}")
    print(f"{(time.monotonic() - began) / options.tasks:.1f} s a task")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    what = parser.add_subparsers(dest="what", required=True)
    rows = what.add_parser("rows")
    rows.add_argument("count", type=int)
    rows.add_argument("out", type=Path)
    tries = what.add_parser("solve")
    tries.add_argument("model", help="a chat model, or `script`")
    tries.add_argument("--tasks", type=int, default=100)
    tries.add_argument("--precision", default="int8")
    tries.add_argument("--show", action="store_true", help="runs that failed")
    options = parser.parse_args()
    if options.what == "rows":
        write_rows(options.count, options.out, options.seed)
    elif options.model == "script":
        solve(options, Script)
    else:
        model = open_model(options.model)
        driver = LocalDriver(model, precision=options.precision, max_new_tokens=80)
        solve(options, lambda task: driver)


if __name__ == "__main__":
    main()
