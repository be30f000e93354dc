"""A GPT that sees learns to say: the next token of captions and answers, over their pictures.

Shapes: P pictures, n = m P texts, row i of picture i // m; U tokens.
"""

from typing import Any

from torch import Tensor

from bedstone.objectives.tokens import token_loss
from bedstone.objectives.told import Told


def sighted_loss(network: Any, batch: Told) -> tuple[Tensor, int]:
    """(network, batch) to the sum of losses of all tokens to be said, and their number.

    A picture is read once for all its texts; prompts are read and not asked for.
    """
    memory = network.memory(batch.pixels)  # (P, S, width)
    total, count = memory.new_zeros(()).float(), 0
    for part in (batch.captions, batch.answers):
        if part is not None:
            states = network.states(part.ids_in, memory=memory)
            loss, tokens = token_loss(states, network.head, part.targets)
            total, count = total + loss, count + tokens
    return total, count
