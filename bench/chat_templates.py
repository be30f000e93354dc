"""Chat templates: ids and masks beside transformers', for every template of a folder.

    python bench/chat_templates.py FOLDER [--count 1000] [--hostile 500] [--only PART]

FOLDER holds Jinja files, as TRL's `chat_templates` does. Random conversations, with system
messages, tools and calls, are written by each template; ids must be those of `apply_chat_template`,
and masks of templates with `{% generation %}` those of `return_assistant_tokens_mask`. Where
`transformers` masks a part of a character's bytes at an answer's end, and Bedstone all of them, the
row is counted apart. Hostile contents, made of pieces of the template's own control tokens, must
leave the number of control tokens as it is with harmless ones.
"""

import argparse
import random
import re
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import AddedToken

import bedstone
from bedstone.data.text.chat import LearntChat, learnt_chats
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError

WORDS = [
    "the",
    "sun",
    "shines",
    "é",
    "😀",
    "日本",
    "x\n\n",
    "<b>",
    "{{x}}",
    "'",
    '"',
    "\\",
    "how",
    "are",
    "you",
    "?",
    "don't",
    "12,5",
    "\t",
    "end",
]
NAMES = r"<[|｜][^<>|｜]{1,40}[|｜]>|\[/?INST\]|<bos>|<eos>|<start_of_turn>|<end_of_turn>|<\|\w+>"
ENDS = r"im_end|eot|end_of_turn|end▁of|END_OF_TURN|return"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "description": "é"}}}
TOOL = {
    "name": "add",
    "description": "Adds & more <b>.",
    "parameters": {**SCHEMA, "required": ["a"]},
}
TOOLS = [{"type": "function", "function": TOOL}]


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))


def conversation(draw: random.Random) -> tuple[list[dict[str, Any]], list[Any] | None]:
    kind = draw.choice(["plain", "without system", "tools"])
    talk: list[dict[str, Any]] = []
    if kind != "without system" and draw.random() < 0.5:
        talk.append({"role": "system", "content": text(draw)})
    for _ in range(draw.randint(1, 3)):
        talk.append({"role": "user", "content": text(draw)})
        if kind == "tools" and draw.random() < 0.5:
            call = {"name": "add", "arguments": {"a": draw.randint(0, 9)}}
            calls = [{"type": "function", "function": call}]
            content = draw.choice([text(draw), ""])
            talk.append({"role": "assistant", "content": content, "tool_calls": calls})
            talk.append({"role": "tool", "name": "add", "content": text(draw)})
        talk.append({"role": "assistant", "content": text(draw)})
    return talk, TOOLS if kind == "tools" else None


def compared(chat: LearntChat, expected: Any, blocks: bool) -> str:
    """equal, bytes (of a character at the end), ids or mask."""
    if chat.ids != expected["input_ids"]:
        return "ids"
    if not blocks:
        return "equal"
    theirs = expected["assistant_masks"]
    apart = [n for n, on in enumerate(chat.trained) if int(on) != theirs[n]]
    if not apart:
        return "equal"
    ends = [end for _, end in chat.offsets]
    same = all(chat.trained[n] and ends[n] == ends[n - 1] for n in apart)
    return "bytes" if same else "mask"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--hostile", type=int, default=500, help="contents, over all templates")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    base = bedstone.load("smollm2-135m-instruct").tokenizer.backend.to_str()
    files = [each for each in sorted(args.folder.glob("*.jinja")) if args.only in each.name]
    totals: dict[str, int] = {}
    wrong = tried = 0
    for path in files:
        template = path.read_text(encoding="utf-8")
        own = tokenizers.Tokenizer.from_str(base)
        names = sorted(set(re.findall(NAMES, template)))
        own.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        end = next((name for name in names if re.search(ENDS, name)), "<|im_end|>")
        special = {"eos_token": end, "bos_token": "<|im_start|>"}
        known = Tokenizer(own, {**special, "chat_template": template})
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=own, **special)
        blocks = "generation %}" in template or "generation -%}" in template
        draw, counts = random.Random(0), dict.fromkeys(("equal", "bytes", "ids", "mask"), 0)
        counts |= {"both refuse": 0, "one refuses": 0}
        for _ in range(args.count):
            talk, tools = conversation(draw)
            try:
                expected = theirs.apply_chat_template(
                    talk,
                    tools=tools,
                    chat_template=template,
                    return_dict=True,
                    return_assistant_tokens_mask=blocks,
                )
            except Exception:
                expected = None
            try:
                chat = learnt_chats(known, talk, tools=tools)[-1]
            except BedstoneError:
                counts["both refuse" if expected is None else "one refuses"] += 1
                continue
            counts[compared(chat, expected, blocks) if expected else "one refuses"] += 1
        print(f"{path.stem:34} {'blocks' if blocks else '':7} {counts}", flush=True)
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
        ids = {own.token_to_id(name) for name in names}
        pieces = [*names, *(name[:3] for name in names), *(name[3:] for name in names), " ", "x"]
        for _ in range(-(-args.hostile // len(files))):
            talk = [{"role": role, "content": "x"} for role in ("user", "assistant")]
            bad = [{**m, "content": "x" + "".join(draw.choices(pieces, k=4)) + "x"} for m in talk]
            try:
                plain, made = (learnt_chats(known, each)[-1].ids for each in (talk, bad))
            except BedstoneError:
                continue
            tried += len(bad)
            wrong += sum(n in ids for n in plain) != sum(n in ids for n in made)
    print(f"{len(files)} templates: {totals}")
    print(f"hostile contents: {tried}; conversations with more or fewer control tokens: {wrong}")


if __name__ == "__main__":
    main()
