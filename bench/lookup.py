"""Prompt lookup beside plain decoding of the same model: code edits, quoted answers, prose.

    python bench/lookup.py [--model MODEL] [--precision auto] [--count 50] [--rounds 3]
        [--threads 2] [--drafts 7] [--kinds code quotes prose] [--data FOLDER] [--write]

Greedy, one row. Code edits are functions of HumanEval in which an argument is to be renamed (two
others, done, stand before; the prediction is the function as it is); quoted answers are sentences
of a privacy policy of PolicyQA that answer a question (two others, and the first five words of the
reference, stand before: a small model paraphrases otherwise); prose answers Alpaca's instructions.

Small models copy badly, so code and quotes are measured twice: with what the model itself says,
and as `reference`, where each token that the reference has next is made the likeliest: the model
does all its work, and says what a better one would.

Rates are of the tokens after the first. Both sides read each prompt in turn, and each begins as
often. Repeated are tokens that a draft had right, whether it was read or not. Decoders that aren't
exact may choose another token where two are as good as equally likely, so equal texts are counted.
"""

import argparse
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bedstone
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.text.chat import render
from bedstone.generation.autoregress import ready, stream
from bedstone.generation.lookup import MOST, Lookup
from bedstone.generation.sampling import Sampling
from bedstone.runtime import pick_precision
from result import SHARED, Side, add_write, write
from rounds import spread

LONGEST = {"code": 256, "quotes": 128, "prose": 128}  # tokens of an answer
FENCE = "```python\n"
WORDS = 5  # of a quotation, that stand before


@dataclass
class Item:
    """A prompt, with what is expected of it.

    Attributes:
        begins: how the answer begins, in the prompt.
        reference: the answer after that.
        prediction: text that is expected to come, of which the reference differs.
    """

    messages: list[dict[str, str]]
    begins: str = ""
    reference: str = ""
    prediction: str = ""


class Counted:
    """A decoder that counts its passes, and says a reference if it has one."""

    def __init__(self, network: Any, prompt: Sequence[int], reference: Sequence[int] = ()) -> None:
        self.network, self.config, self.new_cache = network, network.config, network.new_cache
        self.exact = getattr(network, "exact", False)
        self.passes = 0
        self._wanted = [*prompt, *reference]
        self._says = bool(reference)
        self._next: list[int] = []

    def states(self, ids: Tensor, *, cache: Any = None) -> Tensor:
        self.passes += 1
        after = range(cache.length + 1, cache.length + ids.shape[1] + 1)
        self._next = [self._wanted[min(at, len(self._wanted) - 1)] for at in after]
        return self.network.states(ids, cache=cache)

    def head(self, states: Tensor) -> Tensor:
        logits = self.network.head(states)
        if self._says:
            rows = torch.arange(len(logits))
            logits[rows, torch.tensor(self._next[-len(logits) :])] = 1e4
        return logits


@dataclass
class Found:
    """What a side gave in one round: seconds, tokens after the first ones, passes, texts."""

    seconds: float = 0.0
    tokens: int = 0
    passes: int = 0
    ids: list[list[int]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # of each prompt, tokens a second

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def spaced(found: list[Any], count: int) -> list[Any]:
    """So many of them, from the whole list."""
    return found[:: max(1, len(found) // count)][:count]


def turns(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Messages of users with their answers."""
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def code_items(data: Path, count: int) -> list[Item]:
    """Functions of HumanEval in which the first argument is renamed."""
    tasks = []
    for row in rows(data / "humaneval" / "test.jsonl"):
        source = (row["prompt"].rstrip() + "\n" + row["canonical_solution"]).strip() + "\n"
        if found := re.search(rf"def {row['entry_point']}\((\w+)", source):
            name = found[1]
            new = "values" if name == "data" else "data"
            request = f"Rename the argument `{name}` to `{new}`.\n\n{FENCE}{source}```"
            edited = re.sub(rf"\b{name}\b", new, source)
            tasks.append((request, f"{edited}```", f"{source}```"))
    tasks.sort(key=lambda task: len(task[0]))
    shots = turns((request, FENCE + edited) for request, edited, _ in tasks[10:12])
    return [
        Item([*shots, {"role": "user", "content": request}], FENCE, edited, source)
        for request, edited, source in spaced(tasks[20:], count)
    ]


def quote_items(data: Path, count: int) -> list[Item]:
    """Questions on paragraphs of PolicyQA that sentences of the paragraph answer."""

    def read(part: str, least: int, most: int, long: int) -> list[tuple[str, str]]:
        found = []
        for row in rows(data / "policyqa" / f"{part}.jsonl"):
            answer = max(row["answers"]["text"], key=len)
            if least < len(row["context"]) < most and long < len(answer) < len(row["context"]):
                request = f"Quote the sentences that answer the question: {row['question']}"
                found.append((f"{row['context']}\n\n{request}", f'"{answer}"'))
        return found

    shots = turns(spaced(read("train", 150, 500, 60), 2))
    items = []
    for request, answer in spaced(read("test", 300, 1500, 150), count):
        begins = " ".join(answer.split()[:WORDS])
        rest = answer[len(begins) :]
        items.append(Item([*shots, {"role": "user", "content": request}], begins, rest))
    return items


def prose_items(data: Path, count: int) -> list[Item]:
    """Instructions of Alpaca that are answered at length."""
    found = [
        row["instruction"]
        for row in rows(data / "instruct" / "alpaca-en.jsonl")
        if not row["input"] and len(row["output"]) > 400
    ]
    return [Item([{"role": "user", "content": text}]) for text in spaced(found, count)]


KINDS = {"code": code_items, "quotes": quote_items, "prose": prose_items}


def generated(
    decoder: Counted, prompt: list[int], sampling: Sampling, ends: set[int], prediction: list[int]
) -> tuple[list[int], float]:
    """New tokens, and the seconds of all after the first."""
    ids, start, end = [], 0.0, 0.0
    for step in stream(decoder, [prompt], sampling, eos=ends, prediction=prediction):
        end = time.perf_counter()
        start = start or end
        ids.append(step.token)
    return ids, end - start


def repeats(prompt: list[int], ids: list[int], prediction: list[int]) -> int:
    """Tokens that the first token of a draft had right."""
    looked = Lookup(len(prompt), prediction, measured=False)
    looked.pace.worth = lambda chance, length: 1  # type: ignore[method-assign]
    return sum(
        looked.draft([*prompt, *ids[:place]], 1) == [ids[place]] for place in range(1, len(ids))
    )


@dataclass
class Kind:
    """Prompts of one kind as ids, with their references and predictions, and what came of them."""

    name: str
    longest: int
    prompts: list[list[int]] = field(default_factory=list)
    references: list[list[int]] = field(default_factory=list)  # empty: the model's own words
    predictions: list[list[int]] = field(default_factory=list)
    plain: list[Found] = field(default_factory=list)  # of each round
    lookup: list[Found] = field(default_factory=list)

    def add(self, item: Item, model: Model, reference: bool) -> None:
        tokenizer = tokenizer_of(model)
        begun = [{"role": "assistant", "content": item.begins}] if item.begins else []
        messages = [*item.messages, *begun]
        self.prompts.append(render(tokenizer, messages, continued=bool(begun)).ids)
        ids = [*tokenizer.encode(item.reference), min(model.end_ids)] if reference else []
        self.references.append(ids)
        self.predictions.append(tokenizer.encode(item.prediction))

    def measure(self, network: Any, ends: set[int], drafts: int) -> None:
        """One round: each prompt with both sides, which take turns in beginning."""
        sides = [(self.plain, 0), (self.lookup, drafts)]
        for found, _ in sides:
            found.append(Found())
        for number, prompt in enumerate(self.prompts):
            for found, most in sides[:: 1 if (number + len(self.plain)) % 2 else -1]:
                decoder = Counted(network, prompt, self.references[number])
                how = Sampling(max_tokens=self.longest, prompt_lookup_num_tokens=most)
                prediction = self.predictions[number]
                ids, seconds = generated(decoder, prompt, how, ends, prediction)
                now = found[-1]
                now.ids.append(ids)
                if len(ids) > 1:
                    now.seconds += seconds
                    now.tokens += len(ids) - 1
                    now.passes += decoder.passes - 1  # but for the prompt
                    now.rates.append((len(ids) - 1) / seconds)

    def repeated(self) -> float:
        """The share of tokens that a draft had right, in the last round."""
        each = zip(self.prompts, self.lookup[-1].ids, self.predictions, strict=True)
        return sum(repeats(*one) for one in each) / self.lookup[-1].tokens

    def equal(self) -> int:
        """Texts of the last round that are equal."""
        return sum(map(list.__eq__, self.plain[-1].ids, self.lookup[-1].ids))

    def report(self) -> None:
        plain, lookup = ([each.rate for each in side] for side in (self.plain, self.lookup))
        ratios = [quick / slow for quick, slow in zip(lookup, plain, strict=True)]
        each = [
            quick / slow
            for ours, theirs in zip(self.lookup, self.plain, strict=True)
            for quick, slow in zip(ours.rates, theirs.rates, strict=True)
        ]
        last = self.lookup[-1]
        print(
            f"{self.name:18} {len(self.prompts)} prompts, {last.tokens:,} tokens: plain "
            f"{spread(plain, 1)} tok/s, lookup {spread(lookup, 1)}, {spread(ratios, 2)}x; a prompt "
            f"{spread(each, 2)}x; {last.tokens / last.passes:.2f} tokens a pass, repeated "
            f"{self.repeated():.0%}, equal texts {self.equal()} of {len(self.prompts)}",
            flush=True,
        )

    def keep(self, folder: Path, **settings: Any) -> None:
        work = self.plain[-1].tokens
        quality = {
            "equal texts": self.equal() / len(self.prompts),
            "tokens a pass": self.lookup[-1].tokens / self.lookup[-1].passes,
            "repeated": self.repeated(),
        }
        sides = {
            "plain": Side([work / each.rate for each in self.plain], work),
            "bedstone": Side([work / each.rate for each in self.lookup], work, quality),
        }
        name = "lookup-" + self.name.replace(", ", "-")
        write(folder, name, "tokens", sides, prompts=len(self.prompts), **settings)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--precision", default="auto")
    options.add_argument("--data", type=Path, default=SHARED)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    options.add_argument("--count", type=int, default=50, help="prompts of each kind")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--drafts", type=int, default=MOST, help="tokens of a draft, at most")
    add_write(options)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)

    model = bedstone.load(chosen.model)
    precision = pick_precision(chosen.precision, model.device)
    network = ready(model.network, precision)
    exact = bool(getattr(network, "exact", False))
    print(f"{model!r}, {precision.name}, {'exact' if exact else 'not exact'}", flush=True)
    kinds = []
    for name in chosen.kinds:
        items = KINDS[name](chosen.data, chosen.count)
        for reference in (False, True) if items[0].reference else (False,):
            kinds.append(Kind(name + ", reference" * reference, LONGEST[name]))
            for item in items:
                kinds[-1].add(item, model, reference)
    Kind("warm-up", 32, kinds[0].prompts[:1], [[]], [[]]).measure(network, set(), chosen.drafts)
    for number in range(chosen.rounds):
        for kind in kinds:
            kind.measure(network, model.end_ids, chosen.drafts)
            print(f"round {number + 1}: ", end="")
            kind.report()
    print()
    for kind in kinds:
        kind.report()
        if chosen.write:
            kind.keep(chosen.write, precision=precision.name, exact=exact, drafts=chosen.drafts)


if __name__ == "__main__":
    main()
