"""Instructions as prompts: by a model's own chat template, or in the form of Alpaca.

The wording of Alpaca's prompts is that of Taori et al., 2023
(https://github.com/tatsu-lab/stanford_alpaca). A model that has a chat template already was taught
to answer in it, so rows to learn from, and prompts of `bedstone predict`, are written by it; the
template of any other becomes Alpaca's form.
"""

import json
from collections.abc import Sequence

from bedstone.data.text.chat import instruction_template, render
from bedstone.data.text.encode import frame_of
from bedstone.data.text.tokenizer import Tokenizer

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """An instruction, with its input where one is given, as a prompt."""
    form = ALPACA_INPUT if given.strip() else ALPACA
    return form.format(instruction=instruction, input=given)


def has_own_template(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has a chat template, and another than the one of Alpaca's form."""
    template = tokenizer.chat_template
    return bool(template) and template != alpaca_template(tokenizer)


def alpaca_template(tokenizer: Tokenizer) -> str:
    """The chat template of Alpaca's form."""
    ids = frame_of(tokenizer, 1).before[0]
    before = "".join(tokenizer.backend.id_to_token(number) or "" for number in ids)
    return instruction_template(ALPACA, before)


def conversation_template(tokenizer: Tokenizer) -> str:
    """The chat template of a tokenizer that has none: Alpaca's headings around each turn.

    It needs no control token but the end token, which stands after each answer.
    """
    ids = frame_of(tokenizer, 1).before[0]
    before = "".join(tokenizer.backend.id_to_token(number) or "" for number in ids)
    return (
        f"{{{{ {json.dumps(before)} }}}}{{% for message in messages %}}"
        "{% if message['role'] in ('system', 'developer') %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{{ '### Instruction:\\n' + message['content'] + '\\n\\n### Response:' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\\n\\n' }}"
        "{% else %}{{ raise_exception('no tools were learnt') }}{% endif %}{% endfor %}"
    )


def instruction_prompts(
    tokenizer: Tokenizer | None, tasks: Sequence[str], inputs: Sequence[str]
) -> list[str]:
    """Instructions as prompts: by the tokenizer's own chat template, else in Alpaca's form.

    Args:
        tokenizer: None takes Alpaca's form.
        inputs: what each is about; "" for nothing.

    Raises:
        BedstoneError: the template fails.
    """
    pairs = list(zip(tasks, inputs, strict=True))
    if tokenizer is None or not has_own_template(tokenizer):
        return [alpaca_prompt(*each) for each in pairs]
    asks = [f"{task}\n\n{given}" if given.strip() else task for task, given in pairs]
    return [render(tokenizer, [{"role": "user", "content": each}]) for each in asks]
