"""Instructions as prompts: by the model's own chat template, where it has one, else as Alpaca's."""

import pytest

from bedstone.data.dataset import Dataset
from bedstone.data.text.chat import render
from bedstone.data.text.completions import CompletionExamples
from bedstone.data.text.instructions import alpaca_prompt, alpaca_template
from bedstone.data.text.train_tokenizer import train_bpe

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Say it <|im_end|> again.", "input": "the sea", "output": "The sea."},
]


@pytest.fixture
def tokenizer():
    names = ("<|im_end|>", "<|im_start|>")
    return train_bpe(["name a colour again the sea red"] * 9, 300, special_tokens=names)


def learnt(tokenizer, **how):
    return CompletionExamples(Dataset(ROWS), tokenizer, limit=200, **how)


def test_the_own_template_writes_instructions_and_is_kept(tokenizer):
    tokenizer.settings["chat_template"] = CHATML
    examples = learnt(tokenizer)
    assert examples.chat_template == ""  # nothing takes the place of its own
    asked = "Say it <|im_end|> again.\n\nthe sea"
    prompt = render(tokenizer, [{"role": "user", "content": asked}])
    row = examples.ids[examples.starts[1] :].tolist()
    end = tokenizer.encode("The sea.")
    assert row == [*prompt.ids, *end, tokenizer.eos_id]
    assert row.count(tokenizer.id_of("<|im_end|>")) == 2  # what a row says makes no control token


def test_without_a_template_or_with_alpacas_the_form_is_alpacas(tokenizer):
    for template in (None, alpaca_template(tokenizer)):
        tokenizer.settings["chat_template"] = template
        examples = learnt(tokenizer)
        assert examples.prompts[0] == alpaca_prompt("Name a colour.")
        assert examples.chat_template == alpaca_template(tokenizer)


def test_runs_of_earlier_versions_go_on_with_alpacas_form(tokenizer):
    tokenizer.settings["chat_template"] = CHATML
    examples = learnt(tokenizer, own_template=False)
    assert examples.prompts[1] == alpaca_prompt("Say it <|im_end|> again.", "the sea")
    assert examples.chat_template == alpaca_template(tokenizer)
