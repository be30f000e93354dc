"""Reading and writing of bedstone.json (how a model was made) and generation_config.json.

`bedstone.json` stands in the folder of a model, a pipeline or an adapter. By its `files` a changed
or cut file is known before it is used; the rest says how the weights were made: recipe, data,
metrics and versions. Both come from whoever made the folder: the kinds of values are checked.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bedstone.checkpoints.state import SHARDS
from bedstone.checkpoints.writer import later, unchanging
from bedstone.errors import BedstoneError
from bedstone.files import manifest, verify_manifest, write_json
from bedstone.generation.constraints import FILE, read_constraints
from bedstone.generation.constraints import KEYS as GENERATION_KEYS
from bedstone.reading import check_kinds, is_plain, read_object
from bedstone.runtime import versions

RECORD = "bedstone.json"
KINDS = {
    **dict.fromkeys(
        ("files", "recipe", "data", "metrics", "versions", "head", "quantized", "figures"),
        "an object",
    ),
    **dict.fromkeys(("base", "saved"), "text"),
}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the record of a folder whose other files are all there.

    Args:
        record: what is known of its making: recipe, data, metrics.
    """
    now = {"versions": versions(), "saved": time.strftime("%FT%TZ", time.gmtime())}
    known = unchanging({**record, **now})

    def write() -> None:
        files = manifest(folder, leave_out=SHARDS)  # other ranks may be writing there
        files.pop(RECORD, None)  # which is replaced
        write_json(folder / RECORD, {**known, "files": files})

    later(write)


def read_record(folder: Path, *, verify: bool) -> dict[str, Any]:
    """What a folder's bedstone.json says of its making; {} where it has none.

    Raises:
        BedstoneError: it is damaged, or with `verify` a file isn't the one that it names.
    """
    path = folder / RECORD
    if not is_plain(path):
        return {}
    record = read_object(path, finite=False)
    check_kinds(record, KINDS, path)
    files = record.pop("files", None)
    if files and verify:
        verify_manifest(folder, files, RECORD, saved_anew(folder))
    return record


def saved_anew(folder: Path) -> str:
    """How a model whose files were changed on purpose gets a record that is of them."""
    where = repr(str(folder))
    return f"save it anew, in Python: bedstone.load({where}, verify=False).save({where})"


def seen_from(folder: Path, path: str) -> str:
    """A file or folder that is there, by its way from a model's folder; other names stay.

    Commands that a card names are run in the model's folder, and no way says whose machine it was.
    """
    return os.path.relpath(path, folder) if Path(path).exists() else path


# Values of a generation_config.json that are used as they are.
GENERATION = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), "a number"),
    **dict.fromkeys(("length_penalty", "diversity_penalty"), "a number"),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "num_beams"), "a whole number"),
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length"), "a whole number"),
    **dict.fromkeys(("min_new_tokens", "num_return_sequences"), "a whole number"),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), "a whole number or a list of them"),
    "decoder_start_token_id": "a whole number",
    "eos_token_id": "a whole number or a list of them",
    "do_sample": "true or false",
}


def read_generation(folder: Path) -> dict[str, Any]:
    """The generation_config.json of a folder: end tokens and settings; {} where it has none.

    Raises:
        BedstoneError: it is damaged, or a value is of another kind.
    """
    path = folder / FILE
    if not is_plain(path):
        return {}
    settings = read_object(path)
    check_kinds(settings, GENERATION, path)
    try:
        read_constraints(settings)
    except BedstoneError as error:
        raise BedstoneError(str(error).replace(FILE, str(path), 1)) from None
    GENERATION_KEYS.report(settings, path)
    return settings
