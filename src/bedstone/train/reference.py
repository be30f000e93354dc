"""The reference of preferences: log-probabilities of answers by the model that a run begins with.

They are computed once, before the first step, and kept on disk by what they were made of: weights,
tokens and precision. So they are never stale, only absent, and a resumed run has the same.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.data.text.preference_examples import PreferenceExamples, preference_batches
from bedstone.errors import BedstoneError
from bedstone.files import (
    atomic_folder,
    cache_folder,
    manifest,
    recover_folder,
    verify_manifest,
    write_json,
)
from bedstone.nn.lora import active_adapter, adapters, use_adapter
from bedstone.objectives.preferences import answer_log_probs
from bedstone.reading import read_object
from bedstone.runtime import Precision
from bedstone.train.logs import ProgressBar

FORMAT = 1  # part of the name of what is kept
NAME = "reference.safetensors"
BATCH = 16  # rows read at a time


def weights_print(network: Any) -> str:
    """A hash (hex) of a network's weights, without those of adapters, and of its shape."""
    digest = hashlib.blake2b(repr(network.config).encode(), digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        if "adapters." in name or name.endswith("_extra_state"):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def reference_log_probs(
    network: Any,
    examples: PreferenceExamples,
    precision: Precision,
    weights: str,
    *,
    label: str = "reference",
    quiet: bool = False,
) -> np.ndarray:
    """(windows,) fp32 log-probabilities of all answers, from the disk or computed now.

    Args:
        network: the reference, on its device; of one with adapters the base is the reference.
        weights: the network's `weights_print`.
        label: of the progress that is shown.

    Raises:
        BedstoneError: one isn't finite, or the folder can't be written.
    """
    found = kept_log_probs(examples, precision, weights)
    if found is None:
        found = _computed(network, examples, precision, label, quiet)
        with atomic_folder(_target(examples, precision, weights)) as temporary:
            save_tensors(temporary, {"log_probs": torch.from_numpy(found)}, name=NAME)
            write_json(temporary / "meta.json", {"files": manifest(temporary)})
    return found


def kept_log_probs(
    examples: PreferenceExamples, precision: Precision, weights: str
) -> np.ndarray | None:
    """What the disk has of a reference by its `weights_print`; None if nothing, or damaged."""
    target = recover_folder(_target(examples, precision, weights))
    try:
        verify_manifest(target, read_object(target / "meta.json")["files"])
        found = load_tensors(target, name=NAME)["log_probs"].clone().numpy()
    except (BedstoneError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.shape == (len(examples),) else None


def _target(examples: PreferenceExamples, precision: Precision, weights: str) -> Path:
    digest = hashlib.sha256(json.dumps([FORMAT, weights, precision.name]).encode())
    for array in examples.arrays():
        digest.update(str(array.dtype).encode() + np.ascontiguousarray(array).tobytes())
    return cache_folder("reference") / digest.hexdigest()[:32]


def _computed(
    network: Any, examples: PreferenceExamples, precision: Precision, label: str, quiet: bool
) -> np.ndarray:
    found = np.zeros(len(examples), np.float32)
    rows = len(examples.rows)
    was_training = network.training
    network.eval()
    with (
        ProgressBar(label, quiet=quiet) as bar,
        without_adapter(network),
        torch.inference_mode(),
        precision.autocast(),
    ):
        for number, batch in enumerate(preference_batches(examples, BATCH)):
            sums = answer_log_probs(network, batch.to(precision.device)).sums.cpu().numpy()
            first = number * BATCH
            last = min(first + BATCH, rows)
            found[2 * first : 2 * last : 2], found[2 * first + 1 : 2 * last : 2] = np.split(sums, 2)
            bar.update(last / rows)
    network.train(was_training)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0]) // 2
        raise BedstoneError(
            f"{examples.rows.where(row)}: the reference's log-probability of an answer isn't "
            "finite. Train in precision=fp32, or name another model."
        )
    return found


@contextmanager
def without_adapter(network: Any) -> Iterator[None]:
    """The base of a network with adapters; any other stays as it is."""
    name = active_adapter(network) if adapters(network) else None
    if name is None:
        yield
        return
    use_adapter(network, None)
    try:
        yield
    finally:
        use_adapter(network, name)
