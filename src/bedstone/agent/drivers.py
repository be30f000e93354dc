"""Models as the loop of an agent calls them: a decoder of ours, or one behind an endpoint.

A decoder of ours says each turn as JSON, which its tokens are held to (`generation.structure`):
`{"tool": NAME, "arguments": {...}}` with the tool's own schema, or `{"answer": TEXT}`. So any chat
model can call, and a call can always be read. An endpoint's calls come by its API.
"""

import json
from collections.abc import Sequence
from typing import Any

from bedstone.agent.loop import Message, Turn
from bedstone.agent.tools import Tool
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.text.chat import check_template, render
from bedstone.data.text.tool_calls import Call
from bedstone.data.text.tool_turns import as_plain, bare, read_turn, turn_schema
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import ready
from bedstone.generation.settings import GenerationSettings
from bedstone.generation.text import write
from bedstone.reading import shown
from bedstone.remote.ledger import Usage
from bedstone.remote.model import RemoteModel
from bedstone.runtime import pick_device, pick_precision

NEW_TOKENS = 256  # of a turn
LEAST = 16  # tokens that a turn needs
KEPT = 200  # characters of old results, where the context is short


class LocalDriver:
    """A decoder of ours with a chat template.

    Args:
        model: a GPT with its language head.
        precision: as of tasks; None is that of the weights.
        max_new_tokens: of a turn.
        settings: of generation, such as temperature; greedy where nothing is given.

    Raises:
        BedstoneError: the model has no chat template.
    """

    def __init__(
        self,
        model: Model,
        *,
        precision: str = "auto",
        max_new_tokens: int = NEW_TOKENS,
        **settings: Any,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer_of(model)
        check_template(self.tokenizer, "Take a chat model, or one behind an endpoint.")
        self.name = str(model.path or "model")
        self.most, self.settings = max_new_tokens, {"do_sample": False, **settings}
        how = pick_precision(precision, pick_device(str(model.device)))
        self.network = ready(model.network, how)

    def turn(
        self, messages: Sequence[Message], tools: Sequence[Tool], most: int | None
    ) -> Turn | None:
        """The next turn; None where `most` leaves no room."""
        room = int(self.model.config.context) - self.most
        if room < LEAST:
            raise BedstoneError(
                f"max_new_tokens: is {self.most}, and the model's context is "
                f"{self.model.config.context}. Lower it."
            )
        schemas = [each.schema for each in tools]
        prompt = self._fitted(as_plain(messages, schemas), room)
        new = self.most if most is None else min(self.most, most - len(prompt.ids))
        if new < LEAST:
            return None
        settings = GenerationSettings(
            max_new_tokens=new, json_schema=turn_schema(schemas), **self.settings
        )
        way = settings.resolve({}, tokenizer=self.tokenizer)
        ends = self.model.end_ids
        (one,) = write(self.network, self.tokenizer, [prompt], way, eos=ends)  # type: ignore[arg-type]
        tokens = len(prompt.ids) + len(one.ids)
        if not one.complete:
            return Turn(one.text, tokens=tokens, fault=f"it was cut after {len(one.ids)} tokens.")
        turn = read_turn(one.text)
        if isinstance(turn, Call):
            return Turn(calls=(turn,), tokens=tokens)
        return Turn(turn or "", tokens=tokens)

    def _fitted(self, messages: list[Message], room: int) -> Any:
        """The prompt, with old results shortened until it fits.

        Raises:
            BedstoneError: it doesn't fit at all.
        """
        messages = [dict(each) for each in messages]
        results = [n for n, each in enumerate(messages) if each.get("result")]
        for number in [None, *results]:
            if number is not None:
                text = messages[number]["content"]
                if len(text) <= KEPT:
                    continue
                messages[number]["content"] = f"{text[:KEPT]}... (shortened)"
            prompt = render(self.tokenizer, bare(messages))
            if len(prompt.ids) <= room:
                return prompt
        raise BedstoneError(
            f"the conversation has {len(prompt.ids):,} tokens, and the model's context has room "
            f"for {room:,}. Take fewer tools, a shorter goal, or a model with a longer context."
        )


class RemoteDriver:
    """A model behind an endpoint, whose calls come by its API.

    Args:
        model: the endpoint.
        settings: of generation.

    Raises:
        BedstoneError: it gives no calls of tools.
    """

    def __init__(
        self, model: RemoteModel, *, max_new_tokens: int = NEW_TOKENS, **settings: Any
    ) -> None:
        model.needs("tools", "agent")
        self.model, self.name = model, str(model.address)
        if model.address.key != "OPENAI_API_KEY":  # where some models refuse any temperature
            settings = {"do_sample": False, **settings}
        self.most, self.settings = max_new_tokens, settings

    def turn(
        self, messages: Sequence[Message], tools: Sequence[Tool], most: int | None
    ) -> Turn | None:
        """The next turn; None where `most` leaves no room, by the usage of the turns before."""
        new = self.most if most is None else min(self.most, most)
        if new < LEAST:
            return None
        budget = self.model.endpoint.budget
        before, cost = budget.spent, budget.cost
        settings = GenerationSettings(max_new_tokens=new, **self.settings)
        (reply, *_) = self.model.chat(messages, settings, tools=[each.schema for each in tools])
        spent = Usage(budget.spent.read - before.read, budget.spent.written - before.written)
        found: list[Call] = []
        for _, name, text in reply.calls:
            try:
                given = json.loads(text)
            except ValueError:
                given = None
            if not isinstance(given, dict):
                fault = f"the arguments of {name} are no JSON object: {shown(text, 80)}"
                return Turn(reply.text, (), spent.tokens, fault, budget.cost - cost)
            found.append(Call(name, given))
        fault = "it was cut." if reply.finish == "length" and not found else ""
        return Turn(reply.text, tuple(found), spent.tokens, fault, budget.cost - cost)
