"""Supervised fine-tuning on conversations: transformers' loss, ends, what is shown and refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.dataset import Dataset
from bedstone.data.text.conversations import ConversationExamples
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.objectives.supervised import completion_loss
from small_models import SENTENCES

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


CHATS = [
    chat(SENTENCES[0], SENTENCES[1], SENTENCES[2], SENTENCES[0]),
    chat("a walk?", SENTENCES[2]),
    chat("film?", "yes", "why?", SENTENCES[1], "oh", "no"),
]


@pytest.fixture
def model(tmp_path):
    made = train_bpe(SENTENCES * 3, 300).backend
    made.add_special_tokens([AddedToken(n, special=True) for n in ("<|im_start|>", "<|im_end|>")])
    known = Tokenizer(made, {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE})
    config = GPTConfig(
        layout="llama", vocab_size=known.vocab_size, width=32, layers=2, heads=4, context=256
    )
    return Model(build(config, seed=1).eval(), known)


def rows_file(folder, rows):
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_loss_and_gradients_are_those_of_transformers_on_rows_by_themselves(model, tmp_path):
    """So packed rows equal unpacked ones, and the mask is that of `assistant_only_loss`."""
    folder = model.save(tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    examples = ConversationExamples(
        Dataset([{"messages": each} for each in CHATS]), model.tokenizer, limit=256
    )
    loss, count = completion_loss(model.network, examples.batch(np.arange(len(CHATS))))
    loss = loss / count
    loss.backward()
    total, targets = 0.0, 0
    for each in CHATS:
        read = words.apply_chat_template(
            each, return_dict=True, return_assistant_tokens_mask=True, chat_template=TEMPLATE
        )
        ids, mask = (torch.tensor([read[k]]) for k in ("input_ids", "assistant_masks"))
        labels = ids.masked_fill(mask == 0, -100)
        total = total + theirs(input_ids=ids, labels=labels).loss * int(mask.sum())
        targets += int(mask.sum())
    assert count == targets
    expected = total / targets
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    ours = model.network.embed.weight.grad[: model.config.vocab_size]
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(
        ours, theirs.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-4
    )


def test_trl_has_the_same_loss_and_gradient(model, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    folder = model.save(tmp_path / "m")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.pad_token = "<|endoftext|>"
    trainer = trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder),
        processing_class=words,
        train_dataset=datasets.Dataset.from_list([{"messages": each} for each in CHATS]),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"),
            assistant_only_loss=True,
            per_device_train_batch_size=len(CHATS),
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
        ),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    examples = ConversationExamples(
        Dataset([{"messages": each} for each in CHATS]), model.tokenizer, limit=256
    )
    loss, count = completion_loss(model.network, examples.batch(np.arange(len(CHATS))))
    (loss / count).backward()
    assert (loss / count).item() == pytest.approx(expected.item(), abs=1e-5)
    theirs = trainer.model.get_input_embeddings().weight.grad
    torch.testing.assert_close(model.network.embed.weight.grad, theirs, atol=1e-5, rtol=1e-4)


def test_a_model_learns_to_answer_and_to_end(model, tmp_path):
    folder = model.save(tmp_path / "m")
    rows = [{"messages": chat(f"{word}?", f"{word}!")} for word in ("a walk", "film", "sun")] * 8
    run = bedstone.finetune(
        {
            "method": "sft",
            "model": str(folder),
            "out": str(tmp_path / "run"),
            "optim": {"adamw_lr": 1e-2},
            "epochs": 40,
            "dropout": 0.0,
        },
        data={"train": rows, "validation": rows[:3]},
        quiet=True,
    )
    learnt = bedstone.load(run.model)
    end = learnt.tokenizer.backend.token_to_id("<|im_end|>")
    assert end in learnt.generation["eos_token_id"]
    write = bedstone.pipeline("text-generation", learnt)
    said = write(chat("film?"), max_new_tokens=20, do_sample=False)[0]["generated_text"]
    assert said[-1] == {"role": "assistant", "content": "film!"}
    page = (run.run / "trained-tokens.html").read_text()
    assert (
        '<span class="trained">film!</span><span class="control trained">&lt;|im_end|&gt;' in page
    )


def test_answers_are_predicted_beside_conversations(model, tmp_path):
    folder = model.save(tmp_path / "m")
    rows = rows_file(tmp_path, [{"messages": CHATS[1]}, {"messages": CHATS[1][:1]}])
    out = tmp_path / "out.jsonl"
    words = ["predict", str(folder), rows, "--out", str(out)]
    assert main([*words, "--option", "max_new_tokens=5", "--option", "do_sample=false"]) == 0
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["prediction"] == second["prediction"] != ""
    write = bedstone.pipeline("text-generation", str(folder))
    said = write(CHATS[1][:1], max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert first["prediction"] == said[-1]["content"]


def test_rows_are_shown_before_training(model, tmp_path, capsys):
    folder = model.save(tmp_path / "m")
    rows = rows_file(tmp_path, [{"messages": each} for each in CHATS] * 4)
    out = tmp_path / "r"
    words = ["finetune", "sft-own", f"model={folder}", f"data.train={rows}", f"out={out}"]
    words.append(f"data.validation={rows}")
    code = main([*words, "--sample", "2"])
    said, fault = capsys.readouterr()
    assert code == 0, fault
    assert "trained" in said and "tokens of answers are learnt" in said
    assert (out / "trained-tokens.html").is_file()


def test_a_few_broken_rows_are_named_and_half_of_them_are_too_many(model, tmp_path):
    folder = model.save(tmp_path / "m")
    good, bad = {"messages": CHATS[1]}, {"messages": CHATS[1][:1]}
    recipe = {"method": "sft", "model": str(folder), "out": str(tmp_path / "run")}
    with pytest.raises(BedstoneError, match=r"line 1: column 'messages' has no turn of the assist"):
        rows = rows_file(tmp_path, [bad, good] * 4)
        bedstone.finetune(recipe, f"data.train={rows}", quiet=True)


def test_an_encoder_is_refused(tmp_path):
    from bedstone.models.heads import HeadConfig
    from small_models import saved

    recipe = {"method": "sft", "model": str(saved(tmp_path, HeadConfig("language")))}
    rows = rows_file(tmp_path, [{"messages": CHATS[1]}] * 4)
    with pytest.raises(BedstoneError, match="needs a decoder"):
        bedstone.finetune(recipe, f"data.train={rows}", f"out={tmp_path / 'run'}", quiet=True)


def test_conversations_of_a_run_are_evaluated_by_its_own_loss(model, tmp_path, capsys):
    """The loss is that of training: of the tokens that the assistant writes."""
    folder = str(model.save(tmp_path / "m"))
    chats = rows_file(tmp_path, [{"messages": each} for each in CHATS])
    examples = ConversationExamples(
        Dataset([{"messages": each} for each in CHATS]), model.tokenizer, limit=256
    )
    with torch.no_grad():
        loss, count = completion_loss(model.network, examples.batch(np.arange(len(CHATS))))
    assert main(["evaluate", folder, chats, "--json", "--precision", "fp32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(loss.item() / count, rel=1e-5)
    assert (found["answer_tokens"], found["rows"]) == (count, 3)
    assert main(["evaluate", folder, chats, "--precision", "fp32"]) == 0
    assert "nats a token of answers" in capsys.readouterr().out

    instructions = tmp_path / "alpaca.jsonl"
    instructions.write_text(json.dumps({"instruction": "go", "output": "no"}) + "\n")
    assert main(["evaluate", folder, str(instructions), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 1

    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": SENTENCES[0]}) + "\n")
    assert main(["evaluate", folder, str(texts), "--json"]) == 0
    assert "bits_per_byte" in json.loads(capsys.readouterr().out)  # all of the text
    assert main(["evaluate", folder, chats, "--column", "text"]) == 2
    assert "text" in capsys.readouterr().err


def test_columns_of_a_run_are_those_of_its_evaluation(model, tmp_path, capsys):
    start = str(model.save(tmp_path / "m"))
    rows = [{"talk": each} for each in CHATS * 3]
    run = bedstone.finetune(
        {
            "method": "sft",
            "model": start,
            "out": str(tmp_path / "run"),
            "data": {"train": rows_file(tmp_path, rows), "columns": {"messages": "talk"}},
            "budget": "1 steps",
            "device": "cpu",
        },
        quiet=True,
    )
    chats = tmp_path / "other.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert main(["evaluate", str(run.model), str(chats), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2
