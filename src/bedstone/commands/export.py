"""`bedstone export`: a model in the file format of another program."""

import json
import sys
from pathlib import Path
from typing import Any

from bedstone.checkpoints.gguf import check_kind, save_gguf
from bedstone.checkpoints.gguf_file import SUFFIX
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.pipeline import MediaPipeline
from bedstone.checkpoints.quantized import is_quantized
from bedstone.errors import BedstoneError, nearest
from bedstone.outputs import new_file

FORMATS = ("gguf",)


def export(
    model: str,
    to: str = "gguf",
    *,
    quantize: str = "",
    out: str | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> dict[str, Any]:
    """Write a GPT as a GGUF file, which llama.cpp and programs on it open.

    Weights, tokenizer, chat template, end tokens and sampling settings are in the file.

    Args:
        model: a folder, a GGUF file, a name that `bedstone models` lists, or a hub id.
        to: the format: gguf.
        quantize: how matrices are stored: f32, bf16, q8_0, q4_0 or q4_1 (default: in the model's
            precision, four bits as f32). With q4_0 and q4_1, the embedding and the output layer are
            stored as q8_0.
        out: the file to write (default: NAME.gguf in this folder).
        overwrite: replace a file of the same name.
        as_json: print one JSON object.

    Example:
        bedstone export runs/python-docs --to gguf --quantize q8_0

    Raises:
        BedstoneError: the model is none that the format can hold, or the file is there already.
    """
    if to not in FORMATS:
        raise BedstoneError(f"--to: {to!r} was given{nearest(to, FORMATS)}.")
    check_kind(quantize)
    ending = f"-{quantize}" if quantize else ""
    path = Path(out or f"{Path(model).resolve().stem}{ending}{SUFFIX}")
    if path.suffix.lower() != SUFFIX:
        raise BedstoneError(f"--out: {path} was given; expected a name that ends in {SUFFIX}.")
    new_file(path, "--out", overwrite=overwrite)
    opened = open_model(model)
    if isinstance(opened, MediaPipeline):
        raise BedstoneError(f"{model}: draws; GGUF files hold GPTs.")
    save_gguf(opened, path, quantize)
    if is_quantized(opened.network) and not quantize:
        note = "note: quantised weights are written whole; --quantize q8_0 or q4_1 keeps them small"
        print(note, file=sys.stderr)
    facts = {"file": str(path), "bytes": path.stat().st_size}
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    return facts
