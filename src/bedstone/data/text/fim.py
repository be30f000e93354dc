"""Fill-in-the-middle (FIM): the text between a prefix and a suffix, as published models write it.

A document is cut at two characters and its middle is moved to the end, so that a decoder learns to
write it given both sides (Bavarian et al., 2022, https://arxiv.org/abs/2207.14255): prefix, suffix,
middle (PSM), or suffix, prefix, middle (SPM; the paper's second variant, in which the middle goes
on right behind the prefix). What a model is given in use is made by the code that made what it
learnt from: control tokens are set by their ids, and their names inside a text stay text.

Sources of the conventions: StarCoder 2 (Lozhkov et al., 2024), SantaCoder (Ben Allal et al., 2023),
Qwen2.5-Coder (Hui et al., 2024), CodeGemma (Zhao et al., 2024), DeepSeek-Coder (Guo et al., 2024),
Code Llama (Roziere et al., 2023) and its `infilling_prompt_tokens`, Codestral by `mistral_common`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from bedstone.data.text.chat import Rendered
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.reading import shown

PSM, SPM = "psm", "spm"
SETTING = "fim_style"  # of tokenizer_config.json, by which an artefact says its convention


@dataclass(frozen=True)
class RepoStyle:
    """How files of a repository stand before the one that is completed.

    Attributes:
        file: the token of each file.
        name: the token before the repository's name; empty leaves the name out.
        gap: text behind the name and behind each file.
        behind: whether `file` ends a file instead of beginning one.
        inside: whether the path of the file that is completed is part of its prefix.
    """

    file: str
    name: str = ""
    gap: str = ""
    behind: bool = False
    inside: bool = False


@dataclass(frozen=True)
class FimStyle:
    """A published convention of fill-in-the-middle.

    Attributes:
        name: of the convention, in recipes and artefacts.
        prefix, suffix: the tokens before these parts.
        middle: the token before the middle, or in SPM before the prefix; empty where there is none.
        end: the token that ends a middle; the tokenizer's end token where the vocabulary lacks it.
        orders: of a prompt: psm, spm or both, the usual one first.
        begins: whether a prompt begins with the token that begins a text.
        own_end: whether `end` is a token of this convention alone.
        repo: files of a repository before it; None where nothing is published.
    """

    name: str
    prefix: str
    suffix: str
    middle: str
    end: str
    orders: tuple[str, ...] = (PSM,)
    begins: bool = False
    own_end: bool = False
    repo: RepoStyle | None = None

    @property
    def needed(self) -> tuple[str, ...]:
        """The tokens that a vocabulary must have; CodeGemma's end tells it from Qwen2.5-Coder."""
        own = (self.end,) if self.own_end else ()
        return tuple(filter(None, (self.prefix, self.suffix, self.middle, *own)))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every control token of the convention, each once."""
        files = (self.repo.name, self.repo.file) if self.repo else ()
        return tuple(dict.fromkeys(filter(None, (*self.needed, *files))))


STYLES = {
    style.name: style
    for style in (
        FimStyle(  # and StarCoder 2, StableCode, Granite, CodeQwen 1.5
            *("starcoder", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>"),
            orders=(PSM, SPM),
            repo=RepoStyle("<file_sep>", "<repo_name>", inside=True),
        ),
        FimStyle(
            *("santacoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<|endoftext|>"),
            orders=(PSM, SPM),
        ),
        FimStyle(  # before Qwen2.5-Coder, which has all of its tokens but the last
            *("codegemma", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
            "<|file_separator|>",
            begins=True,
            own_end=True,
            repo=RepoStyle("<|file_separator|>", behind=True),
        ),
        FimStyle(
            *("qwen2.5-coder", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
            "<|endoftext|>",
            repo=RepoStyle("<|file_sep|>", "<|repo_name|>", gap="\n"),
        ),
        FimStyle(
            *("deepseek-coder", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
            "<｜end▁of▁sentence｜>",
            begins=True,
        ),
        FimStyle(  # the spaces of `<PRE> P <SUF>S <MID>` are part of SentencePiece's tokens
            *("codellama", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
            orders=(PSM, SPM),
            begins=True,
            own_end=True,
        ),
        FimStyle(
            *("codestral", "[PREFIX]", "[SUFFIX]", "", "</s>"),
            orders=(SPM,),
            begins=True,
        ),
    )
}


def style_of(tokenizer: Tokenizer, named: str = "") -> FimStyle | None:
    """The convention of a tokenizer: the one named, else the one its settings say, else detected.

    None where the vocabulary has the tokens of none.

    Raises:
        BedstoneError: the settings say one that is unknown.
    """
    name = named or tokenizer.settings.get(SETTING)
    if name:
        if not isinstance(name, str) or name not in STYLES:
            raise BedstoneError(
                f"{tokenizer.path}: {SETTING} = {shown(name)}; expected one of "
                f"{', '.join(STYLES)}. Mend it in tokenizer_config.json."
            )
        return STYLES[name]
    for style in STYLES.values():
        if all(tokenizer.id_of(token) is not None for token in style.needed):
            return style
    return None


def fim_tokens(tokenizer: Tokenizer, named: str = "", what: str = "suffix") -> "FimTokens":
    """A tokenizer's convention with its ids.

    Args:
        named: a convention that counts instead of the tokenizer's own.
        what: the option that asks for it, for errors.

    Raises:
        BedstoneError: the vocabulary has no tokens for it; the tokens that were sought are named.
    """
    style = style_of(tokenizer, named)
    if style is not None:
        return FimTokens(tokenizer, style, what)
    sought = ["".join(filter(None, each.needed)) for each in STYLES.values()]
    some = [
        token
        for token in dict.fromkeys(token for each in STYLES.values() for token in each.needed)
        if tokenizer.id_of(token) is not None
    ]
    half = f" It has {', '.join(some)}, which are not all of one." if some else ""
    raise BedstoneError(
        f"{what}: the model's tokenizer has no tokens for fill-in-the-middle; sought were "
        f"{', '.join(sought)}.{half} Take a model that was trained with them, or train one by a "
        "recipe with `fim:` and a tokenizer of its own, such as code-fim."
    )


class FimTokens:
    """A convention with the ids of a tokenizer.

    Attributes:
        style: the convention.
        tokenizer: as given, with the convention's tokens marked as special, so that their names in
            a text stay text, and none of them is decoded.
        end_id: that ends a middle.
        stops: ids that end a middle: `end_id`, the tokenizer's end token, and every control token.
        begin: ids that a prompt begins with.

    Raises:
        BedstoneError: the vocabulary lacks one of the tokens, or one is several.
    """

    def __init__(self, tokenizer: Tokenizer, style: FimStyle, what: str = "suffix") -> None:
        self.style = style
        for token in style.needed:
            if tokenizer.id_of(token) is None:
                count = len(tokenizer.encode(token))
                raise BedstoneError(
                    f"{what}: {token} of the convention {style.name} is {count} tokens of the "
                    "tokenizer; expected one. Name the convention that the model learnt, or leave "
                    "tokenizer.path out: a tokenizer that is trained anew (bpe or characters) has "
                    "the tokens."
                )
        ends = [tokenizer.settings.get(role) for role in ("bos_token", "eos_token")]
        self.tokenizer = _marked(tokenizer, filter(None, (*style.tokens, style.end, *ends)))
        known = {token: tokenizer.id_of(token) for token in style.tokens}
        self.ids: dict[str, int] = {token: i for token, i in known.items() if i is not None}
        end = tokenizer.id_of(style.end)
        end = tokenizer.eos_id if end is None else end
        if end is None:
            raise BedstoneError(
                f"{what}: no token ends a middle: the vocabulary lacks {style.end}, and the "
                "tokenizer has no eos_token. Name one in tokenizer_config.json."
            )
        self.end_id = end
        own = end if tokenizer.eos_id is None else tokenizer.eos_id
        self.stops = frozenset({end, own, *self.ids.values()})
        self.begin = self.tokenizer.begins
        if not self.begin and style.begins and self.tokenizer.bos_id is not None:
            self.begin = [self.tokenizer.bos_id]

    def arrange(
        self,
        prefix: Iterable[int],
        suffix: Iterable[int],
        order: str = "",
        ahead: Iterable[int] = (),
    ) -> list[int]:
        """The ids of a prompt, behind which the middle is written.

        Args:
            prefix, suffix: ids of the two parts.
            order: psm or spm; the convention's usual one where empty.
            ahead: ids of what stands before, such as files of a repository.

        Raises:
            BedstoneError: the convention has no such order.
        """
        style = self.style
        order = order or style.orders[0]
        if order not in style.orders:
            raise BedstoneError(
                f"order: {shown(order)} isn't one of the convention {style.name}; expected "
                f"{' or '.join(style.orders)}."
            )
        first, second = self.ids[style.prefix], self.ids[style.suffix]
        if order == PSM:
            parts = [first, *prefix, second, *suffix, self.ids[style.middle]]
        elif style.middle:
            parts = [first, second, *suffix, self.ids[style.middle], *prefix]
        else:
            parts = [second, *suffix, first, *prefix]
        return [*self.begin, *ahead, *parts]

    def encode(self, prefix: str, suffix: str) -> tuple[list[int], list[int]]:
        """The ids of the two parts by themselves."""
        (before,) = encode_first(self.tokenizer, [prefix])
        (after,) = encode_behind(self.tokenizer, [suffix])
        return before.tolist(), after.tolist()

    def prompt(
        self,
        prefix: str,
        suffix: str,
        order: str = "",
        *,
        room: int | None = None,
        files: Sequence[tuple[str, str]] = (),
        path: str = "",
        repo: str = "",
    ) -> Rendered:
        """A prompt, as `generation.text.write` takes it; its text is the prefix.

        Args:
            prefix, suffix: before and behind the cursor; either may be empty.
            order: as of `arrange`.
            room: tokens that it may have: the prefix is cut from its left and the suffix from its
                right, the suffix to a quarter where both are long. `warning` says so.
            files: (path, text) of other files, the most useful first; as much as fits in half of
                the room, or in what is left, stands before it, the first file last. One that
                doesn't fit is cut from its right.
            path: of the file that is completed; of use with `files`.
            repo: the repository's name; of use with `files`.

        Raises:
            BedstoneError: there is no room for anything, or the convention knows no files.
        """
        made, whole = Rendered(prefix), (len(prefix), len(suffix))
        if room is not None:  # a token of a text is rarely longer, and editors don't wait
            prefix, suffix = prefix[-room * LONGEST :], suffix[: room * LONGEST]
        before, after = self.encode(prefix, suffix)
        fixed = len(self.arrange((), (), order))
        ahead, lead, notes = self._files(
            files, path, repo, _least(room, fixed + len(before) + len(after))
        )
        sizes = len(before), len(after)
        lost = len(prefix) < whole[0], len(suffix) < whole[1]
        if room is not None:
            free = room - fixed - len(ahead) - len(lead)
            if free < 1:
                raise BedstoneError(
                    f"the prompt needs {room - free + 1:,} tokens and may have {room:,}. Ask for "
                    "fewer new tokens, or give a model with a longer context."
                )
            after = after[: max(free // 4, free - len(before))]
            before = before[max(0, len(before) - (free - len(after))) :]
        if lost[0] or len(before) < sizes[0]:
            notes.append(f"the prefix is cut from its left to {len(before):,} tokens")
        if lost[1] or len(after) < sizes[1]:
            notes.append(f"the suffix is cut from its right to {len(after):,} tokens")
        made.ids = self.arrange([*lead, *before], after, order, ahead)
        made.warning = f"to fit the model's context, {', '.join(notes)}." if notes else ""
        return made

    def _files(
        self, files: Sequence[tuple[str, str]], path: str, repo: str, room: int | None
    ) -> tuple[list[int], list[int], list[str]]:
        """Ids of a repository's files, those that begin the prefix, and what didn't fit."""
        if not files:
            return [], [], []
        style = self.style.repo
        if style is None:
            raise BedstoneError(
                f"repo: the convention {self.style.name} has no token between files. Leave the "
                "repository out."
            )
        for name in filter(None, (style.file, style.name)):
            if name not in self.ids:
                raise BedstoneError(
                    f"repo: the tokenizer has no {name}, which the convention {self.style.name} "
                    "sets between files. Leave the repository out."
                )
        token, gap = [self.ids[style.file]], style.gap
        (lead,) = (each.tolist() for each in self.tokenizer.encode_batch([f"{path}\n"]))
        head: list[int] = []
        if style.name:
            (title,) = self.tokenizer.encode_batch([f"{repo}{gap}"])
            head = [self.ids[style.name], *title.tolist()]
        texts = [f"{name}\n{text}{gap}" for name, text in files]
        last = [] if style.behind else token
        used = len(head) + len(last) + len(lead)
        kept: list[list[int]] = []
        whole = 0
        for ids in self.tokenizer.encode_batch(texts):
            left = len(ids) if room is None else room - used - 1
            if left < min(len(ids), PART):
                continue
            one = ids[:left].tolist()
            kept.append([*one, *token] if style.behind else [*token, *one])
            used, whole = used + len(one) + 1, whole + (len(one) == len(ids))
        less = len(files) - whole
        notes = [f"{less:,} of {len(files):,} files of the repository are cut or left out"]
        notes = notes if less else []
        if not kept:
            return [], [], notes
        ahead = [*head, *(number for one in reversed(kept) for number in one), *last]
        return (ahead, lead, notes) if style.inside else ([*ahead, *lead], [], notes)


_APART = "☺"  # no word has it


def encode_behind(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of texts that stand behind others, (T,) each: without the space that begins a text.

    SentencePiece sets one; it is left out as Code Llama does it, by a character before the text.
    """
    if not _sets_space(tokenizer):
        return tokenizer.encode_batch(texts)
    (before,) = tokenizer.encode_batch([_APART])
    found = tokenizer.encode_batch([_APART + text for text in texts])
    return [ids[len(before) :] for ids in found]


def encode_first(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of texts that begin one, (T,) each: SentencePiece's space stands before any other."""
    if not _sets_space(tokenizer):
        return tokenizer.encode_batch(texts)
    return encode_behind(tokenizer, [f" {text}" if text else "" for text in texts])


def _sets_space(tokenizer: Tokenizer) -> bool:
    alone, before, both = tokenizer.encode_batch(["a", _APART, f"{_APART}a"])
    return alone.tolist() != both[len(before) :].tolist()


def prompt_room(context: int, new_tokens: int) -> int:
    """Tokens that a prompt may have where so many are to be written: three quarters at least."""
    return context - min(new_tokens, context // 4)


PART = 16  # tokens of a file of a repository that is cut, at least
LONGEST = 32  # characters of a token, of those that are kept where a text is cut to fit


def _least(room: int | None, used: int) -> int | None:
    """What files may take of a prompt's room: half of it, or what is left."""
    return None if room is None else max(room // 2, room - used)


def _marked(tokenizer: Tokenizer, names: Iterable[str]) -> Tokenizer:
    """A tokenizer whose tokens of these names are special: some publish them as words."""
    rules = json.loads(tokenizer.backend.to_str())
    added = {each["content"]: each for each in rules["added_tokens"]}
    changed = False
    for name in names:
        number = tokenizer.id_of(name)
        if number is None or added.get(name, {}).get("special"):
            continue
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added[name] = {"id": number, "content": name, **flags, "special": True}
        changed = True
    if not changed:
        return tokenizer
    rules["added_tokens"] = sorted(added.values(), key=lambda each: each["id"])
    backend = tokenizers.Tokenizer.from_str(json.dumps(rules))
    return Tokenizer(backend, tokenizer.settings, tokenizer.path)


def without_overlap(prefix: str, middle: str, suffix: str) -> str:
    """A middle without its longest end that the suffix begins with, of at least one whole line.

    A model that has run on repeats the lines behind the cursor. Less than a line, such as a closing
    bracket, may be meant, and blank lines say nothing.
    """
    begins = [0] if not prefix or prefix.endswith("\n") else []
    begins += [at + 1 for at, sign in enumerate(middle) if sign == "\n"]
    for start in range(max(0, len(middle) - len(suffix)), len(middle)):
        if not suffix.startswith(middle[start:]):
            continue
        whole = suffix[len(middle) - start :][:1] in ("", "\r", "\n")
        ends = [*begins, *([len(middle)] if whole else [])]
        lines = (middle[a:b] for a, b in zip(begins, ends[1:], strict=False) if a >= start)
        if any(line.strip() for line in lines):
            return middle[:start]
    return middle
