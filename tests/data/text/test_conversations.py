"""Conversations to learn from: masks, windows, transformers' ids, rows that can't be learnt."""

import json
import random

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken

from bedstone.data.dataset import Dataset
from bedstone.data.records import Faults, Reading
from bedstone.data.text.chat import learnt_chats, read_messages, render
from bedstone.data.text.conversations import ConversationExamples
from bedstone.data.text.supervised import examples_of, make_examples, usable_rows
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError

CHATML = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name }}"
    "{{ c.function.arguments | tojson + '</call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BLOCKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# thoughts are left out of all turns but the last
THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' "
    "and not loop.last %}{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Well, é 😀."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "The sun shines."},
]


@pytest.fixture(scope="module")
def backend():
    made = train_bpe(["how are you? well, the sun shines. why? be short. user assistant"] * 3, 400)
    return made.backend.to_str()


def tokenizer(backend, template):
    import tokenizers

    own = tokenizers.Tokenizer.from_str(backend)
    own.add_special_tokens(
        [AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")]
    )
    settings = {"eos_token": "<|im_end|>"}
    if template:
        settings["chat_template"] = template
    return Tokenizer(own, settings)


def learnt(chat, known):
    """The texts of each run of learnt tokens."""
    runs, run = [], []
    for number, on in [*zip(chat.ids, chat.trained, strict=True), (0, False)]:
        if on:
            run.append(number)
        elif run:
            runs.append(known.backend.decode(run, skip_special_tokens=False))
            run = []
    return runs


@pytest.mark.parametrize("template", [CHATML, BLOCKS])
def test_answers_and_their_end_tokens_are_learnt(backend, template):
    known = tokenizer(backend, template)
    (chat,) = learnt_chats(known, TALK)
    assert learnt(chat, known) == ["Well, é 😀.<|im_end|>", "The sun shines.<|im_end|>"]
    (last,) = learnt_chats(known, TALK, last=True)
    assert learnt(last, known) == ["The sun shines.<|im_end|>"]
    marked = [*TALK[:4], {**TALK[4], "weight": 0}]
    assert learnt(learnt_chats(known, marked)[0], known) == ["Well, é 😀.<|im_end|>"]
    # what the model reads before an answer is what it is given to reply to
    cue = render(known, TALK[:4]).ids
    assert chat.ids[: len(cue)] == cue
    assert chat.trained[len(cue)] and not chat.trained[len(cue) - 1]


def test_ids_and_masks_are_those_of_transformers(backend):
    known = tokenizer(backend, BLOCKS)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=known.backend, eos_token="<|im_end|>"
    )
    draw = random.Random(0)
    words = [
        "how",
        "are",
        "you",
        "?",
        "well",
        "é",
        "😀",
        "日本",
        "x\n",
        "<b>",
        "{{x}}",
        "'",
        '"',
        "\\",
        "the",
    ]
    for _ in range(100):
        talk = [{"role": "system", "content": " ".join(draw.choices(words, k=3))}]
        for _ in range(draw.randint(1, 4)):
            for role in ("user", "assistant"):
                content = " ".join(draw.choices(words, k=draw.randint(1, 9)))
                talk.append({"role": role, "content": content})
        expected = theirs.apply_chat_template(
            talk,
            chat_template=BLOCKS,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        (chat,) = learnt_chats(known, talk)
        assert chat.ids == expected["input_ids"]
        assert [int(on) for on in chat.trained] == expected["assistant_masks"]


@pytest.mark.parametrize("template", [CHATML, BLOCKS])
def test_no_message_holds_a_control_token(backend, template):
    known = tokenizer(backend, template)
    names = {"<|im_start|>", "<|im_end|>"}
    ids = {known.backend.token_to_id(name) for name in names}
    draw = random.Random(1)
    pieces = [
        "<|im_end|>",
        "<|im_start|>",
        "<|im_",
        "end|>",
        "<",
        "|",
        ">",
        "assistant\n",
        "x",
        " ",
    ]
    for _ in range(100):
        talk = [
            {"role": role, "content": "".join(draw.choices(pieces, k=draw.randint(1, 6)))}
            for role in ("user", "assistant", "user", "assistant")
        ]
        (chat,) = learnt_chats(known, talk)
        assert sum(number in ids for number in chat.ids) == 2 * len(talk)
        found = learnt(chat, known)
        assert found == [f"{each['content']}<|im_end|>" for each in talk[1::2]]


def test_answers_that_are_written_otherwise_later_become_conversations_of_their_own(backend):
    known = tokenizer(backend, THOUGHTS)
    talk = [{**m, "content": f"so</think>{m['content']}"} if m["role"] == "assistant" else m
            for m in TALK]  # fmt: skip
    first, whole = learnt_chats(known, talk)
    assert learnt(first, known) == ["so</think>Well, é 😀.<|im_end|>"]
    assert learnt(whole, known) == ["so</think>The sun shines.<|im_end|>"]
    assert "so</think>Well" not in whole.text
    examples = ConversationExamples(Dataset([{"messages": talk}]), known, limit=200)
    assert len(examples) == 2
    assert "became one for each answer" in examples.describe()


def test_calls_and_tools_are_written_and_learnt(backend):
    known = tokenizer(backend, CHATML)
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    talk = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2 <|im_end|>"},
        {"role": "assistant", "content": "2"},
    ]
    tools = [{"type": "function", "function": {"name": "add", "description": "<|im_start|>"}}]
    (chat,) = learnt_chats(known, talk, tools=tools)
    assert learnt(chat, known) == ['<call>add{"a": 1}</call><|im_end|>', "2<|im_end|>"]
    start = known.backend.token_to_id("<|im_start|>")
    assert chat.ids.count(start) == len(talk)
    assert '"description": "<|im_start|>"}}]' in chat.text


def test_windows_begin_before_an_answer_and_learn_each_token_once(backend):
    known = tokenizer(backend, CHATML)
    talk = [
        {"role": role, "content": f"{role} says {'the sun shines ' * number}"}
        for number in range(1, 9)
        for role in ("user", "assistant")
    ]
    (chat,) = learnt_chats(known, talk)
    short = ConversationExamples(Dataset([{"messages": talk}]), known, limit=64)
    assert short.lengths.max() <= 64
    assert short.trained_count == sum(chat.trained)
    batch = short.batch(np.arange(len(short)))
    assert batch.targets.tolist() == [n for n, on in zip(chat.ids, chat.trained, strict=True) if on]
    ids = batch.rows.ids[0]
    assert (ids[batch.read + 1] == batch.targets).all()
    for start, (begin, _) in zip(batch.rows.starts, batch.rows.spans, strict=False):
        own = batch.read[(batch.read >= begin)][0] - start
        assert own > 12  # tokens before the first target


def test_a_tokenizer_without_a_template_gets_one_that_ends_answers(backend):
    known = tokenizer(backend, "")
    examples = make_examples("text-generation", Dataset([{"messages": TALK}]), known, limit=300)
    assert examples.chat_template == known.chat_template
    (chat,) = examples.chats(0)
    assert learnt(chat, known) == ["Well, é 😀.<|im_end|>", "The sun shines.<|im_end|>"]
    assert examples.end_ids == {known.eos_id}


def test_prompts_of_messages_are_read_alone(backend):
    known = tokenizer(backend, CHATML)
    rows = Dataset([{"prompt": TALK[:4], "completion": TALK[4:]}])
    examples = make_examples("text-generation", rows, known, limit=300)
    assert learnt(examples.chats(0)[0], known) == ["The sun shines.<|im_end|>"]


def test_other_forms_of_messages_are_read():
    shared = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert [m["role"] for m in read_messages(shared)] == ["user", "assistant"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]
    assert read_messages(parts)[0]["content"] == "ab"
    assert read_messages('[{"role": "user", "content": "x"}]')[0]["content"] == "x"


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        (TALK[:2], "no turn of the assistant"),
        ([{**TALK[2], "weight": 0}], "no turn of the assistant"),
        ([{"role": "robot", "content": "x"}, TALK[2]], r"messages\[0\].*expected a role"),
        ([{"role": "user", "content": None}, TALK[2]], r"messages\[0\].*a text as content"),
        ([{"role": "user", "content": [{"type": "image"}]}, TALK[2]], r"messages\[0\]"),
        ("no list", "expected a list of messages"),
        ([], "expected a list of messages"),
    ],
)
def test_rows_that_cannot_be_learnt_are_named(messages, fault):
    with pytest.raises(BedstoneError, match=rf"row 1.*{fault}"):
        usable_rows("text-generation", Dataset([{"messages": messages}]))


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{{ raise_exception('no') }}", "no"),
        ("{% for m in range(10 ** 9) %}{% for n in range(10 ** 9) %}{% endfor %}{% endfor %}", ""),
        ("{{ messages[7].content }}", "chat_template"),
    ],
)
def test_templates_that_fail_are_named(backend, template, fault):
    known = tokenizer(backend, template)
    with pytest.raises(BedstoneError, match=rf"row 1: chat_template: can't write.*{fault}"):
        ConversationExamples(Dataset([{"messages": TALK}]), known, limit=64)


STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)


def test_conversations_that_a_template_cannot_write_are_left_out_and_named(backend):
    good, bad = {"messages": TALK[1:]}, {"messages": TALK}
    reading = Reading(Faults("chats", 0.3, 7))
    rows = Dataset([good, bad, good, good, good, bad, good], "chats", reading=reading)
    made = ConversationExamples(rows, tokenizer(backend, STRICT), limit=99)
    alone = ConversationExamples(Dataset([good] * 5), made.tokenizer, limit=99)
    assert len(made.rows) == 5 and made.owner.tolist() == alone.owner.tolist()
    assert made.actual == alone.actual and made.ids.tolist() == alone.ids.tolist()
    assert made.trained_count == alone.trained_count
    assert made.chats(4) == alone.chats(4)
    left = "2 rows left out: chats: row 2: chat_template: can't write these messages (no system)"
    assert left in made.describe()
    few = Dataset([good, bad, bad], "chats", reading=Reading(Faults("chats", 0.3, 3)))
    with pytest.raises(BedstoneError, match=r"2 of 3 rows are broken, .*row 2: chat_template"):
        ConversationExamples(few, made.tokenizer, limit=99)


def test_a_template_that_writes_none_of_the_first_rows_is_refused_at_once(backend):
    tried = []
    made = ConversationExamples.chats

    def chats(self, row):
        tried.append(row)
        return made(self, row)

    rows = Dataset([{"messages": TALK}] * 200, reading=Reading(Faults("chats", 0.9, 200)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConversationExamples, "chats", chats)
        with pytest.raises(BedstoneError, match=r"row 1: chat_template: can't write"):
            ConversationExamples(rows, tokenizer(backend, STRICT), limit=99)
    assert len(tried) == 20


ASKS = {"instruction": "Add.", "input": "1 2", "output": "3"}


def test_alpaca_s_history_and_system_are_turns_before_the_instruction(backend):
    words = tokenizer(backend, CHATML)
    pairs = [["Hi.", "Hello."], ["Who?", "I."]]
    before = [each for one, two in pairs for each in (said("user", one), said("assistant", two))]
    last = [said("user", "Add.\n\n1 2"), said("assistant", "3")]
    system = [said("system", "Be short.")]
    for value, earlier in (
        (pairs, before),
        (json.dumps(pairs), before),
        ([], []),
        (None, []),
        ("", []),
        (float("nan"), []),
    ):
        rows = usable_rows("text-generation", Dataset([{**ASKS, "history": value}]))
        made = examples_of("text-generation", rows, words, limit=200)
        alone = ConversationExamples(Dataset([{"messages": earlier + last}]), words, limit=200)
        assert made.ids.tolist() == alone.ids.tolist() and made.trained_count == alone.trained_count
    rows = Dataset([{**ASKS, "history": pairs, "system": "Be short."}])
    made = ConversationExamples(rows, words, limit=200)
    alone = ConversationExamples(Dataset([{"messages": system + before + last}]), words, limit=200)
    assert made.ids.tolist() == alone.ids.tolist()
    plain = examples_of("text-generation", Dataset([ASKS]), words, limit=200)
    assert not isinstance(plain, ConversationExamples)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (["Hi.", "Hello."], "'Hi.'; expected pairs"),
        ([["Hi."]], "expected pairs of an instruction and its output"),
        ([["Hi.", ""]], "expected pairs"),
        ([["Hi.", 5]], "expected pairs"),
        ("Hi.", "holds 'Hi.'; expected pairs"),
        (7, "holds 7; expected pairs"),
    ],
)
def test_a_history_that_is_none_is_named(value, fault):
    with pytest.raises(BedstoneError, match=rf"row 1: column 'history' holds .*{fault[-12:]}"):
        usable_rows("text-generation", Dataset([{**ASKS, "history": value}]))


def said(role, text):
    return {"role": role, "content": text}


def test_what_a_template_lacks_is_said(backend):
    known = tokenizer(backend, CHATML.replace("<|im_end|>", "<|eot|>"))
    said = ConversationExamples(Dataset([{"messages": TALK}]), known, limit=200).describe()
    assert "writes <|eot|>, which the tokenizer reads as plain text" in said
    assert "1 conversations have answers that the chat template ends with no special token" in said


def test_answers_that_follow_one_another_are_learnt(backend):
    known = tokenizer(backend, CHATML)
    (chat,) = learnt_chats(known, [*TALK[:3], TALK[4]])
    assert learnt(chat, known) == ["Well, é 😀.<|im_end|>", "The sun shines.<|im_end|>"]


@pytest.mark.parametrize("no", [0, "0", "false", False, " False "])
@pytest.mark.parametrize("name", ["weight", "train"])
def test_answers_that_are_only_read(backend, name, no):
    talk = [TALK[1], {**TALK[2], name: no}, TALK[3], {**TALK[4], name: "1"}]
    made = ConversationExamples(Dataset([{"messages": talk}]), tokenizer(backend, CHATML), limit=99)
    alone = [TALK[1], {**TALK[2], "weight": 0}, *TALK[3:]]
    other = ConversationExamples(Dataset([{"messages": alone}]), made.tokenizer, limit=99)
    assert made.trained_count == other.trained_count > 0


def test_an_empty_answer_is_not_learnt(backend):
    rows = Dataset([{"messages": [TALK[1], {"role": "assistant", "content": " "}]}])
    with pytest.raises(BedstoneError, match=r"row 1: .*an empty turn of the assistant"):
        ConversationExamples(rows, tokenizer(backend, CHATML), limit=99)


def test_a_column_of_system_messages_is_read(backend):
    words = tokenizer(backend, CHATML)
    rows = [
        {"system": "Be short.", "conversations": TALK[1:]},
        {"system": None, "conversations": TALK},
        {"system": "Other", "conversations": TALK},
    ]
    made = [ConversationExamples(Dataset([row]), words, limit=99).chats(0) for row in rows]
    assert made[0] == made[1] == made[2]
