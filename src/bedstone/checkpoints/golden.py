"""Golden outputs: five built-in inputs in a saved model's folder, with what the model made of them.

`golden.json` is written beside the weights of a finished model. `bedstone check` computes the
outputs again, and names those that differ: a tokenizer of another model, weights in the wrong
place, a norm or an activation that a new version computes otherwise. Opening a model does so for
one input, where the software is another than that which saved it.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.probes import CAPABILITIES, Bare, Capability, Work
from bedstone.checkpoints.side_files import RECORD, write_record
from bedstone.checkpoints.store import MANIFEST
from bedstone.errors import BedstoneError
from bedstone.files import write_json
from bedstone.nn.fast.inference import for_inference
from bedstone.nn.fast.pick import prepared, settled
from bedstone.nn.quantize import Quantized
from bedstone.reading import check_kinds, is_plain, read_json
from bedstone.runtime import Precision, versions

log = logging.getLogger("bedstone.checkpoints")
FILE = "golden.json"
SCHEMA = 1
LIMIT = 64 << 10  # bytes of the file
SOFTWARE = ("bedstone", "torch", "tokenizers")  # what outputs may depend on, of a record's versions
# How far outputs may be from the stored ones, in units of the output's spread: several times as far
# as precisions differ in small networks of every family, and in those that come with Bedstone.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.06, "int8": 0.1, "int4": 0.6}


@dataclass(frozen=True)
class Difference:
    """One output that differs.

    Attributes:
        capability: of the table.
        input: what was read.
        output: which output it is.
        expected, got: the beginnings of both.
        size: of the difference, in units of the output's spread; infinite of what has no size.
        tolerance: what it may be.
    """

    capability: str
    input: Bare
    output: str
    expected: list[Any]
    got: list[Any]
    size: float = math.inf
    tolerance: float = 0.0

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        size = round(self.size, 6) if math.isfinite(self.size) else None
        return {**asdict(self), "size": size}


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The network without dropout, gradients or compilation."""
    network = model.network
    was = [(module, module.training) for module in network.modules()]  # parts may differ
    # compiled parts would be compiled anew for these few shapes
    compiled = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    network.eval()
    try:
        with torch.inference_mode(), eager:
            yield
    finally:
        for module, training in was:
            module.training = training


def _is_quantized(network: Any) -> bool:
    return any(isinstance(part, Quantized) for part in network.modules())


def _is_exact(network: Any) -> bool:
    """Whether the network computes in fp32 as it is."""
    exact = all(weight.dtype is torch.float32 for weight in network.parameters())
    return exact and not _is_quantized(network)


def golden_outputs(model: Any) -> dict[str, Any]:
    """The built-in inputs and a model's outputs in fp32, as `golden.json` holds them.

    Raises:
        BedstoneError: the outputs aren't finite, or it has none of the capabilities.
    """
    cases, network = [], model.network
    with _evaluating(model):
        if not _is_exact(network):
            network = for_inference(network, torch.float32)
        for kind in CAPABILITIES:
            if not kind.has(model):
                continue
            inputs = [kind.whole(model, one) for one in kind.inputs(model)]
            outputs = kind.outputs(Work(model, network), inputs)
            for one, found in zip(inputs, outputs, strict=True):
                record = {name: each.record() for name, each in found.items()}
                cases.append({"capability": kind.name, "input": one, "outputs": record})
    if not cases:
        raise BedstoneError("the network has none of the capabilities that outputs are kept of.")
    return {"schema": SCHEMA, "cases": cases}


def write_golden(folder: Path, model: Any) -> None:
    """Writes a model's golden outputs into its folder.

    Raises:
        BedstoneError: as `golden_outputs`.
    """
    write_json(folder / FILE, golden_outputs(model))


def try_write_golden(folder: Path, model: Any) -> None:
    """`write_golden`; where it can't be done, a warning says why, and no finished model is lost."""
    try:
        write_golden(folder, model)
    except Exception as error:
        log.warning(
            "%s was left out, so bedstone check has nothing to compare the model with: %s",
            FILE,
            error,
        )


def add_golden(folder: Path, model: Any) -> None:
    """Adds golden outputs to the folder of a model, and to its record where it has one.

    Raises:
        BedstoneError: it is a checkpoint of a run, which stays as it is; or as `golden_outputs`.
    """
    if is_plain(folder / MANIFEST):
        raise BedstoneError(
            f"{folder}: is a checkpoint, which stays as it was written. Save the model elsewhere "
            "first: bedstone.load(...).save(folder)"
        )
    write_golden(folder, model)
    if is_plain(folder / RECORD):
        write_record(folder, model.record)


def read_golden(folder: Path) -> dict[str, Any] | None:
    """The golden outputs of a folder; None where it has none.

    Raises:
        BedstoneError: the file is damaged, or of a newer version.
    """
    path = folder / FILE
    if not is_plain(path):
        return None
    found = read_json(path, LIMIT)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise BedstoneError(
            f"{path}: expected an object with schema {SCHEMA}; it is damaged, or a newer Bedstone "
            f"wrote it. Write it again: bedstone check {folder} --write --overwrite"
        )
    cases, known = found.get("cases"), [kind.name for kind in CAPABILITIES]
    try:
        assert isinstance(cases, list) and cases
        for case in cases:
            assert case["capability"] in known
            _check_input(case["input"], path)
            assert isinstance(case["outputs"], dict)
            for name, output in case["outputs"].items():
                _check_output(output, f"{path}: {name}")
    except (AssertionError, KeyError, TypeError) as error:
        raise BedstoneError(
            f"{path}: is damaged: a value is missing or of another kind. Write it again: "
            f"bedstone check {folder} --write --overwrite"
        ) from error
    return found


_NUMBERS = {"values": "a list of numbers", "scores": "a list of numbers"}
_NUMBERS |= {"margins": "a list of numbers", "spread": "a number", "ids": "a list of whole numbers"}


def _check_input(one: Any, path: Path) -> None:
    assert isinstance(one, dict)
    lists = dict.fromkeys(("ids", "types"), "a list of whole numbers")
    whole = dict.fromkeys(("image", "seed", "class"), "a whole number")
    check_kinds(one, {**lists, **whole, "text": "text", "pair": "text"}, path)
    assert all(0 <= one.get(name, 0) < 1 << 31 for name in whole)
    ids = one.get("ids")
    assert ids != [] and ("types" not in one or (ids and len(one["types"]) == len(ids)))


def _check_output(output: Any, where: str) -> None:
    assert isinstance(output, dict)
    check_kinds(output, _NUMBERS, where)
    columns = ("ids", "scores", "margins") if "ids" in output else ("names", "values")
    assert len({len(output[name]) for name in columns}) == 1 and len(output[columns[0]])
    assert all(isinstance(name, str | int) for name in output.get("names", ()))
    assert output["spread"] > 0


def differences(model: Any, golden: Mapping[str, Any], precision: Precision) -> list[Difference]:
    """What differs from golden outputs, computed anew as tasks compute in that precision.

    Args:
        golden: as `read_golden` gives them.
    """
    with _evaluating(model):
        precision = settled(model.network, precision)
        ready_now = prepared(model.network, precision)
        work = Work(model, ready_now, precision)
        tolerance = TOLERANCES[precision.name]
        if _is_quantized(model.network):  # whose sums are rounded otherwise from path to path
            tolerance = max(tolerance, TOLERANCES["bf16"])
        return list(_compared(work, golden["cases"], tolerance))


def brief_differences(model: Any, golden: Mapping[str, Any]) -> list[Difference]:
    """What differs for the first input of each capability, in one pass of the network as it is.

    The pass is over a few tokens or an image; drawings, which take several, are left out.
    """
    exact = _is_exact(model.network)
    mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=not exact)
    cases = {case["capability"]: case for case in reversed(golden["cases"])}
    with _evaluating(model), mixed:
        work = Work(model, model.network, brief=True)
        return list(_compared(work, list(cases.values()), TOLERANCES["fp32" if exact else "bf16"]))


def warn_of_differences(folder: Path, model: Any) -> None:
    """Logs a warning where an opened model hasn't the golden outputs of its folder.

    Weights and tokenizer are those that were saved, or the record's hashes would differ; so nothing
    is computed where the software that matters is that of the record too.
    """
    recorded = model.record.get("versions")
    if recorded and all(recorded.get(name) == versions()[name] for name in SOFTWARE):
        return
    try:
        golden = read_golden(folder)
        found = [] if golden is None else brief_differences(model, golden)
    except BedstoneError as error:
        log.warning("%s", error)
        return
    if found:
        log.warning(
            "%s: the model doesn't give what it gave when it was saved (%s of %s differs). See "
            "bedstone check %s; use the versions that %s names, or another copy of the folder.",
            folder,
            found[0].output,
            found[0].capability,
            folder,
            RECORD,
        )


def _compared(
    work: Work, cases: Sequence[Mapping[str, Any]], tolerance: float
) -> Iterator[Difference]:
    """The differences of all cases, by capability."""
    for kind in CAPABILITIES:
        own = [case for case in cases if case["capability"] == kind.name]
        if own and kind.has(work.model):
            yield from _compared_of(kind, work, own, tolerance)
        elif own:
            lacking = [f"a network with the capability {kind.name!r}"]
            yield Difference(kind.name, {}, "capability", lacking, [])


def _compared_of(
    kind: Capability, work: Work, cases: Sequence[Mapping[str, Any]], tolerance: float
) -> Iterator[Difference]:
    stored = [dict(case["input"]) for case in cases]
    bare = [{k: v for k, v in one.items() if k not in ("ids", "types")} for one in stored]
    for one, own in zip(stored, bare, strict=True):
        if "text" not in one:
            continue
        try:
            now = kind.encoded(work.model, own)
        except BedstoneError as error:
            now = {"ids": [str(error)]}
        for name, ids in now.items():
            if ids != one.get(name):
                yield Difference(kind.name, own, f"the tokenizer's {name}", one.get(name, []), ids)
    try:
        outputs = kind.outputs(work, stored)
    except Exception as error:  # such as an id that the network doesn't know
        yield Difference(kind.name, bare[0], "outputs", ["outputs"], [str(error)])
        return
    for own, case, mine in zip(bare, cases, outputs, strict=True):
        for name, expected in case["outputs"].items():
            if name not in mine:
                if not work.brief:
                    yield Difference(kind.name, own, name, ["an output"], [])
            elif (apart := mine[name].compare(expected, tolerance)) is not None:
                yield Difference(kind.name, own, name, *apart, tolerance=tolerance)
