"""`bedstone complete`: the text at a place of a file, for editors."""

import contextlib
import itertools
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from bedstone.checkpoints.model import tokenizer_of
from bedstone.commands.generate import PromptSettings
from bedstone.data.sources import walk
from bedstone.data.text.fim import fim_tokens, prompt_room, without_overlap
from bedstone.errors import BedstoneError
from bedstone.generation.settings import BeamSearch, read_prediction, without_usual_length
from bedstone.generation.text import Searched, Written, write, write_beams
from bedstone.reading import is_plain, read_text, to_path
from bedstone.runtime import pick_device, pick_precision
from bedstone.tasks.pipeline import open_decoder

NEW_TOKENS = 64  # at most, where no length is given
LARGEST = 16 << 20  # bytes of a file that is completed
OTHERS, OTHER_SIZE = 32, 64 << 10  # files of a repository that are read, and bytes of one
SEEN = 20_000  # files of a repository that are looked at


@dataclass(frozen=True)
class Place:
    """A cursor in a file.

    Attributes:
        path: of the file.
        line: from 1.
        column: of the character behind the cursor, from 1; None is the line's end.
    """

    path: Path
    line: int
    column: int | None = None


def complete(
    place: str,
    settings: PromptSettings,
    model: str = "",
    repo: str | None = None,
    *,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Complete a file at a place, given what stands before and behind it; prints the middle alone.

    Args:
        place: FILE:LINE or FILE:LINE:COLUMN, both from 1; without a column, the line's end.
        model: a folder, a name that `bedstone models` lists, or a hub id, of a model that learnt to
            fill in the middle.
        repo: folder with more files of the same kind; those that were changed last stand before the
            file, of a model that learnt from repositories.
        as_json: print one JSON object.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone complete app.py:12 --model runs/code-fim
        bedstone complete app.py:12:9 --model runs/code-fim --max-new-tokens 32 --json

    Raises:
        BedstoneError: there is no such place, or the model can't fill in the middle.
    """
    if not model:
        raise BedstoneError(
            "--model: none was given; name one that learnt to fill in the middle, such as a run of "
            "the recipe code-fim."
        )
    cursor = read_place(place)
    prefix, suffix = around(cursor)
    others = [] if repo is None else other_files(to_path(repo, "--repo"), cursor.path)
    settings = replace(settings, prediction=read_prediction(settings.prediction))
    how = pick_precision(precision, pick_device(device))
    opened = open_decoder(model, how.device)
    tokenizer, published = tokenizer_of(opened), without_usual_length(opened.generation)
    fim = fim_tokens(tokenizer, what="complete")
    most = settings.resolve(published, usual=NEW_TOKENS, tokenizer=tokenizer).max_tokens
    prompt = fim.prompt(
        prefix,
        suffix,
        room=prompt_room(int(opened.config.context), most),
        files=others,
        path=name_in(repo, cursor.path),
        repo="" if repo is None else to_path(repo).resolve().name,
    )
    if prompt.warning and not as_json:
        print(f"note: {prompt.warning}", file=sys.stderr)
    size = len(prompt.ids)
    way = settings.resolve(published, size, usual=NEW_TOKENS, tokenizer=tokenizer)
    ends = opened.end_ids | fim.stops
    network, known = opened.network, fim.tokenizer
    one: Searched | Written
    if isinstance(way, BeamSearch):
        one = write_beams(network, known, [prompt], way, eos=ends, precision=how)[0][0]
    else:
        one = write(network, known, [prompt], way, eos=ends, precision=how)[0]
    middle = without_overlap(prefix, one.text, suffix)
    if not as_json:
        print(middle, end="")
        return
    found = {
        "place": place,
        "middle": middle,
        "finish_reason": one.finish,
        "prompt_tokens": size,
        "tokens": len(one.ids),
        "warning": prompt.warning,
    }
    print(json.dumps(found, ensure_ascii=False))


def read_place(text: str) -> Place:
    """FILE:LINE or FILE:LINE:COLUMN.

    Raises:
        BedstoneError: it is none of both, or there is no such file.
    """
    found = re.fullmatch(r"(.+?):(\d{1,9})(?::(\d{1,9}))?", text, re.S)
    if found is None:
        raise BedstoneError(
            f"place: {text[:200]!r} was given; expected FILE:LINE or FILE:LINE:COLUMN, such as "
            "app.py:12:9."
        )
    path = to_path(found[1], "place")
    if not is_plain(path):
        raise BedstoneError(f"place: {path}: no such file. Save the file first, or mend its name.")
    return Place(path, int(found[2]), None if found[3] is None else int(found[3]))


def around(place: Place) -> tuple[str, str]:
    """The text of a file before and behind a place; line ends stay as they are.

    Raises:
        BedstoneError: the file can't be read, or has no such line or column.
    """
    text = read_text(place.path, LARGEST).removeprefix("\ufeff")
    if "\0" in text:
        raise BedstoneError(f"{place.path}: is not text (it holds a NUL byte).")
    lines = text.split("\n")
    if not 1 <= place.line <= len(lines):
        raise BedstoneError(
            f"{place.path}: has {len(lines):,} lines; line {place.line:,} was given. Count from 1."
        )
    before, line = lines[: place.line - 1], lines[place.line - 1]
    size = len(line.removesuffix("\r") if place.line < len(lines) else line)
    if place.column is not None and not 1 <= place.column <= size + 1:
        raise BedstoneError(
            f"{place.path}: line {place.line:,} has {size:,} characters; column {place.column:,} "
            f"was given. Count from 1; {size + 1:,} is its end."
        )
    at = sum(len(each) + 1 for each in before)
    at += size if place.column is None else place.column - 1
    return text[:at], text[at:]


def other_files(folder: Path, path: Path) -> list[tuple[str, str]]:
    """(name, text) of other files of a folder with the same ending, those changed last first.

    Raises:
        BedstoneError: it is no folder.
    """
    if not folder.is_dir():
        raise BedstoneError(f"--repo: {folder}: no such folder.")
    own = path.resolve()
    found = []
    for each in itertools.islice(walk(folder), SEEN):
        if each.suffix == path.suffix and each.resolve() != own:
            facts = each.stat()
            if 0 < facts.st_size <= OTHER_SIZE:
                found.append((-facts.st_mtime_ns, str(each), each))
    texts = []
    for _, _, each in sorted(found)[:OTHERS]:
        with contextlib.suppress(BedstoneError):  # what is no text says nothing
            texts.append((name_in(folder, each), read_text(each, OTHER_SIZE)))
    return texts


def name_in(folder: str | Path | None, path: Path) -> str:
    """The name of a file within a folder; of one that is elsewhere, its own."""
    if folder is None:
        return path.name
    home, own = to_path(folder).resolve(), path.resolve()
    return own.relative_to(home).as_posix() if own.is_relative_to(home) else path.name
