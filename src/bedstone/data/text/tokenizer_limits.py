"""Limits of tokenizer files: bounded growth of a text, and errors in the place of panics.

A `tokenizer.json` holds rules that rewrite a text before it is split. A rule that puts a thousand
letters in the place of one, four times over, makes a billion of one; so the growth that the rules
allow is bounded when the file is read. A pattern that backtracks without end is given up by the
tokenizers library with a panic, whose Python class is no `Exception`.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.reading import shown

LARGEST = 256 << 20  # bytes of a tokenizer's file
GROWTH = 64  # letters that the rules of a file may make of one; published ones make at most 4


def check_growth(text: str, path: Path) -> None:
    """Checks the rules of a tokenizer.json.

    Args:
        text: of the file, which the tokenizers library has read.

    Raises:
        BedstoneError: its normaliser or its decoder makes far more letters of one.
    """
    rules = json.loads(text)
    for key in ("normalizer", "pre_tokenizer", "decoder"):
        if (factor := _growth(rules.get(key))) > GROWTH:
            raise BedstoneError(
                f"{path}: {key} may make {factor:,.0f} letters of one; expected at most {GROWTH}. "
                "Don't use this copy: fetch the tokenizer from where it was published."
            )


def _growth(rule: Any) -> float:
    """How many letters a rule, or one inside it after another, may make of one."""
    if not isinstance(rule, dict):
        return 1.0
    inner = [rule.get(key) for key in ("normalizers", "pretokenizers", "decoders")]
    factor = 1.0
    for each in next((one for one in inner if isinstance(one, list)), []):
        factor *= _growth(each)
    if rule.get("type") == "Replace":
        pattern = rule.get("pattern")
        given = pattern.get("String") if isinstance(pattern, dict) else None
        factor *= max(1.0, len(str(rule.get("content", ""))) / max(len(given or ""), 1))
    elif rule.get("type") == "Prepend":
        factor *= max(1.0, len(str(rule.get("prepend", ""))))
    return factor


@contextlib.contextmanager
def guarded(where: str | Path, text: str = "") -> Iterator[None]:
    """Tells what the tokenizers library fails at, panics too, as an error about its file.

    Args:
        where: the tokenizer's file or folder.
        text: what was read, for the error.

    Raises:
        BedstoneError: in the place of the library's plain Exception, or its panic.
    """
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if not panic and type(error) is not Exception:
            raise
        beginning = f" of {shown(text, 40)}" if text else ""
        raise BedstoneError(
            f"{where}: the rules of this tokenizer can't make tokens{beginning}: "
            f"{shown(str(error), 200)}. Leave the text out, or take the tokenizer that the model "
            "was published with."
        ) from (None if panic else error)
