"""`bedstone quantize`: a model in 8 or 4 bits a weight, and how near it is to the original."""

import copy
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import MediaPipeline
from bedstone.data.open import open_dataset
from bedstone.data.sources import BUILT_IN, DataConfig, open_source
from bedstone.errors import BedstoneError
from bedstone.evaluate.language import text_column
from bedstone.evaluate.pairs import pair_rows
from bedstone.evaluate.quantization import (
    Likeness,
    feeds,
    likeness,
    reads_pairs,
    reads_text,
    text_pieces,
)
from bedstone.nn.gptq import quantize_for_inference
from bedstone.nn.lora import active_adapter, fold
from bedstone.nn.quantize import (
    GROUP,
    GROUPS,
    kinds_for_inference,
    make_whole_in,
    quantized_part,
    weights_of,
)
from bedstone.outputs import new_folder
from bedstone.train.data import recorded_columns, recorded_data
from bedstone.train.logs import ProgressBar


def quantize(
    model: str,
    out: str,
    *,
    bits: int = 8,
    group: int | None = None,
    texts: str = "",
    column: str = "",
    no_plain: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
) -> dict[str, Any]:
    """Write a model in 8 or 4 bits a weight, which needs less memory and generates faster.

    OUT holds the weights twice: in few bits, which Bedstone opens, and made whole in bf16, which
    transformers opens. Texts calibrate 4 bits, and show how near the result is: a third of them is
    held out for that.

    Args:
        model: a folder, a GGUF file, a name that `bedstone models` lists, or a hub id.
        out: the folder to write.
        bits: of a weight, 8 or 4. The table of words and the output layer take 8.
        group: inputs that share a scale, with 4 bits: 32 (the default), 64 or 128.
        texts: data that calibrates and measures: a built-in name, a path, a glob or a hub id;
            some hundred lines of such texts as the model will read are enough; for a model of
            translation and such, rows of a source and a target (default: the data that the model
            learnt from, where it is here).
        column: the column of the text, or of the sources, in formats that have columns.
        no_plain: leave out the plain form, so that Bedstone alone opens OUT.
        overwrite: replace a model in OUT.
        as_json: print one JSON object.

    Example:
        bedstone quantize runs/python-docs small --bits 4 --texts docs.txt

    Raises:
        BedstoneError: the model can't be quantised, or the texts can't be read.
    """
    if bits not in (8, 4):
        raise BedstoneError(f"--bits: {bits} was given; expected 8 or 4.")
    if group is not None and bits == 8:
        raise BedstoneError(
            f"--group: {group} was given with 8 bits, which have one scale an output row. Leave it "
            "out, or take --bits 4."
        )
    group = GROUP if group is None else group
    if group not in GROUPS:
        raise BedstoneError(f"--group: {group} was given; expected 32, 64 or 128.")
    new_folder(out, "OUT", overwrite=overwrite)
    opened = open_model(model)
    if isinstance(opened, MediaPipeline):
        raise BedstoneError(
            f"{model}: draws, and such a model is saved whole; quantise it as it is used, by "
            "--precision int8 or int4."
        )
    if active_adapter(opened.network) is not None:
        fold(opened.network)
    _, before = weights_of(opened.network)
    exact = opened.network.float().eval()
    if not kinds_for_inference(exact, bits, group):
        raise BedstoneError(
            f"{model}: has no weights that could be quantised, or has them in few bits already. "
            "Give the model that it was made of."
        )
    source = _source(opened, texts, column)
    used, held = ([], []) if source is None else text_pieces(opened, source)
    began = time.perf_counter()
    made = opened.network = copy.deepcopy(exact)
    with ProgressBar("calibrating", quiet=as_json or not used or bits == 8) as bar:
        calibrated = quantize_for_inference(
            made, bits, group, feeds(made, used) if bits == 4 else (), bar.update
        )
    seconds = time.perf_counter() - began
    make_whole_in(made, torch.bfloat16)
    opened.plain = not no_plain
    _, after = weights_of(made)
    facts: dict[str, Any] = {
        "bits": bits,
        "group": group if bits == 4 else None,
        "weights": quantized_part(made)["quantized"],
        "calibrated": len(calibrated),
        "texts": source.name if source else None,
        "bytes_before": before,
        "bytes": after,
        "seconds": seconds,
    }
    near = likeness(exact, made, held) if held else None
    if near is not None:
        facts |= {key: value for key, value in asdict(near).items() if value is not None}
    opened.record = {**opened.record, "quantized": facts}
    opened.save(out)
    if as_json:
        print(json.dumps({"folder": out, **facts}))
    else:
        Console().print(_table(out, facts, near))
        if bits == 4 and not calibrated and reads_text(opened):
            note = "note: without texts, weights are not calibrated; --texts FILE makes them better"
            print(note, file=sys.stderr)
    return facts


def _source(model: Model, texts: str, column: str) -> Any:
    """The texts that were named, or those that the model learnt from; None where there are none."""
    if texts:
        if not reads_text(model):
            raise BedstoneError(
                f"--texts: {texts} was given, and {model.path} reads no texts. Leave it out."
            )
        return _opened(model, texts, column)
    named = recorded_data(DataConfig, model.record).source if reads_text(model) else ""
    here = bool(named and model.record.get("data")) and (named in BUILT_IN or Path(named).exists())
    try:
        return _opened(model, named, column) if here else None
    except BedstoneError:
        return None  # other data has the name now


def _opened(model: Model, name: str, column: str) -> Any:
    """Documents; of an encoder-decoder, rows of a source and a target."""
    if not reads_pairs(model):
        return open_source(name, text_column=text_column(model, column))
    given = {"source": column} if column else None
    rows = open_dataset(name, columns=recorded_columns(model.record, name, given))
    return pair_rows(rows, "translation", model)[0]


def _table(out: str, facts: dict[str, Any], near: Likeness | None) -> Table:
    table = Table(title=str(Path(out)), show_header=False, title_justify="left")
    table.add_row("weights", facts["weights"])
    if facts["calibrated"]:
        table.add_row("calibrated", f"{facts['calibrated']} layers, on {facts['texts']}")
    share = facts["bytes"] / facts["bytes_before"]
    sizes = f"{facts['bytes_before'] / 1e6:,.1f} MB to {facts['bytes'] / 1e6:,.1f} MB"
    table.add_row("memory", f"{sizes} ({share:.0%})")
    table.add_row("took", f"{facts['seconds']:.1f} s")
    if near is None:
        return table
    if near.ratio is not None:
        table.add_row(
            "perplexity", f"{near.before:.3f} to {near.perplexity:.3f}: x {near.ratio:.4f}"
        )
    if near.agreement is not None:
        table.add_row("same likeliest word", f"{near.agreement:.1%}")
        table.add_row("divergence", f"{near.divergence:.4f} nats a token")
    table.add_row("cosine of states", f"{near.cosine:.4f}")
    table.add_row("compared on", f"{near.tokens:,} tokens that calibrated nothing")
    return table
