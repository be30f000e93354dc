"""Scores of reward models: alone, in batches, and by transformers with padding on either side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.data.text.preference_examples import pad_apart
from bedstone.data.text.train_tokenizer import train_bpe, train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.gpt.network import build as build_gpt
from bedstone.models.heads import HeadConfig
from networks import randomise
from task_checks import check_task

pytestmark = pytest.mark.usefixtures("cache")
WORDS = "the answer to a question may be short or rather long and in the end it stops"
GPTS = ("gpt2", "llama", "qwen2", "qwen3", "mistral")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SCORE = HeadConfig("sequence", ("reward",), "regression")


def reward_model(layout: str, **changes: Any) -> Model:
    if layout == "bert":
        words = train_wordpiece([WORDS] * 3, 120)
        config: Any = BertConfig(
            vocab_size=words.vocab_size, width=32, layers=2, heads=4, hidden=48, context=48,
            head=SCORE,
        )  # fmt: skip
        network: Any = build_bert(config, seed=1)
    else:
        words = train_bpe([WORDS] * 3, 280)
        pad_apart(words)
        config = GPTConfig(
            layout=layout, vocab_size=280, width=32, layers=2, heads=4, context=48, head=SCORE
        )
        network = build_gpt(config, seed=1)
    randomise(network, seed=3)
    return Model(network.eval(), words)


ROWS = [
    {"prompt": "the question", "completion": " short"},
    {"prompt": "the question", "completion": " rather long and in the end it stops"},
    {"prompt": "a rather long question and a short", "completion": " answer"},
    {"prompt": "", "completion": "the answer"},
]


@pytest.mark.parametrize("layout", ["bert", *GPTS])
def test_padding_by_transformers_changes_no_score(layout: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = reward_model(layout)
    task = bedstone.pipeline("text-classification", model)
    together = [each["score"] for each in task(ROWS)]
    alone = [task(row)["score"] for row in ROWS]
    assert together == pytest.approx(alone, abs=1e-5)
    model.save(tmp_path / "model")
    published = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(published["id2label"].values()) == ["reward"]
    kind = transformers.AutoModelForSequenceClassification
    network = kind.from_pretrained(tmp_path / "model").eval()
    assert network.config.num_labels == 1 and network.config.pad_token_id is not None
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = [task.prepare(row, task.options).windows[0] for row in ROWS]
    longest = max(map(len, rows))
    for side in ("left", "right"):
        words.padding_side = side
        given = words.pad(
            {"input_ids": [row.ids for row in rows]}, padding="max_length", max_length=longest + 3,
            return_tensors="pt",
        )  # fmt: skip
        if layout == "bert" and side == "left":
            continue  # its positions are learnt from the first place on
        known = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
        if layout == "bert":
            types = [row.types + [0] * (longest + 3 - len(row)) for row in rows]
            known["token_type_ids"] = torch.tensor(types)
        ways: list[dict[str, Any]] = [{}]
        if side == "left":  # positions as generation counts them
            counted = {"position_ids": (known["attention_mask"].cumsum(-1) - 1).clamp(min=0)}
            ways = [counted] if layout == "gpt2" else [{}, counted]  # rotation is relative
        for more in ways:
            with torch.no_grad():
                found = network(**known, **more).logits[:, 0].tolist()
            assert found == pytest.approx(alone, abs=1e-5), (side, *more)


@pytest.mark.parametrize("layout", ["bert", "llama"])
def test_the_task(layout: str) -> None:
    check_task(
        "text-classification",
        reward_model(layout),
        ROWS[:3],
        {"prompt": "the question", "completion": " "},
        "empty answer",
    )


def test_what_can_not_be_scored() -> None:
    task = bedstone.pipeline("text-classification", reward_model("bert"))
    with pytest.raises(BedstoneError, match="the key 'tool' is unknown; perhaps 'tools' is meant"):
        task({"prompt": "a", "completion": "b", "tool": "c"})
    chat = [{"role": "assistant", "content": "the answer"}]
    with pytest.raises(BedstoneError, match="an encoder has no chat template"):
        task({"prompt": [{"role": "user", "content": "the question"}], "completion": chat})


def test_of_a_long_prompt_the_end_is_read(caplog: pytest.LogCaptureFixture) -> None:
    task = bedstone.pipeline("text-classification", reward_model("llama"))
    long = {"prompt": f"{WORDS} {WORDS} {WORDS}", "completion": " short"}
    (window,) = task.prepare(long, task.options).windows
    assert len(window) == 48
    short = task.tokenizer.encode(" short")
    assert window.ids[-len(short) - 1 : -1] == short or window.ids[-len(short) :] == short
    assert "the first tokens were cut" in caplog.text


def test_an_end_token_is_read_where_padding_is_another(tmp_path: Path) -> None:
    words = train_bpe([WORDS] * 3, 280)
    assert words.eos_id is not None
    before = words.pad_id
    pad_apart(words)
    assert words.pad_id != words.eos_id or words.pad_id == before
