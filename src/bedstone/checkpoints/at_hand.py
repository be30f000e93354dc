"""The models on this machine: in Bedstone, in packages, in a folder of runs, in the hub's cache.

Files are read as far as their headers: no weight, no network, no import of a package. A folder that
is damaged is listed with what is wrong.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bedstone.checkpoints.gguf_file import SUFFIX, gguf_in, read_gguf
from bedstone.checkpoints.headers import stored_tensors
from bedstone.checkpoints.names import MARKS, PACKAGED, built_in
from bedstone.checkpoints.store import CheckpointStore
from bedstone.errors import BedstoneError
from bedstone.models.families import (
    ADAPTER,
    FAMILIES,
    QUANTIZED,
    WEIGHTS,
    home_of,
    model_type,
)
from bedstone.reading import is_plain, read_object
from bedstone.settings import read_values

CONFIG, INDEX = MARKS
OWN_LICENCE = "Apache-2.0"  # of the models that come with Bedstone
_CARD_BYTES = 1 << 16  # of a model card that are read
_STATED = re.compile(r"[\w.+-]{1,40}")  # what a card may state
# Tasks by the ending of the class in config.json, where no card states one.
TASKS = {
    "LMHeadModel": "text-generation",
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "BlipForQuestionAnswering": "visual-question-answering",
    "ForQuestionAnswering": "question-answering",
    "ForConditionalGeneration": "image-to-text",
    "ForImageTextRetrieval": "image-text-matching",
    "FlamingoGPT": "visual-question-answering",
    "CLIPModel": "zero-shot-image-classification",
    "SiglipModel": "zero-shot-image-classification",
    "CLIPResNet": "zero-shot-image-classification",
    "ViTModel": "image-feature-extraction",
    "Model": "feature-extraction",
}


@dataclass
class AtHand:
    """A model on this machine.

    Attributes:
        name: by which it opens.
        origin: where it is from: built in, package NAME, run, folder or hub cache.
        path: its folder or file.
        task: what it was made for; "" where nothing says so.
        parameters: numbers in its stored weights; None where they can't be counted.
        bytes: of its files on disk.
        licence: as its card or file states it.
        fault: what is wrong with it.
    """

    name: str
    origin: str
    path: Path
    task: str = ""
    parameters: int | None = None
    bytes: int = 0
    licence: str = ""
    fault: str = ""


def models_at_hand(runs: Path) -> Iterator[AtHand]:
    """All models on this machine, those in the folder `runs` among them."""
    for name, folder in built_in().items():
        found = _described(AtHand(name, "built in", folder))
        found.licence = found.licence or OWN_LICENCE
        yield found
    for name, known in PACKAGED.items():
        if (place := known.find()) is not None:
            yield _described(
                AtHand(name, f"package {known.package}", place, known.task, licence=known.licence)
            )
    yield from _in_runs(runs)
    yield from _in_cache()


def _described(model: AtHand) -> AtHand:
    """With task, sizes and licence as its files say, or with what is wrong."""
    try:
        model.bytes = _bytes(model.path)
        model.parameters = _of_gguf(model) if gguf_in(model.path) else _of_folder(model)
    except BedstoneError as error:
        model.fault = str(error)
    except OSError as error:
        model.fault = f"{model.path}: can't be read ({error.strerror})."
    return model


def _bytes(path: Path) -> int:
    """Of a file, or of all files of a folder but the state of training."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(
        each.stat().st_size
        for each in files
        if each.is_file() and "state" not in each.relative_to(path).parts[:1]
    )


def _of_gguf(model: AtHand) -> int:
    file = gguf_in(model.path)
    assert file is not None
    found = read_gguf(file)
    licence = found.values.get("general.license")
    model.task = model.task or "text-generation"
    model.licence = model.licence or _stated(licence)
    return sum(prod(each.shape) for each in found.tensors.values())


def _of_folder(model: AtHand) -> int:
    """Sets task and licence; the numbers in the stored weights of a folder of any kind."""
    stated = _card(model.path)
    model.licence = model.licence or stated.get("license", "")
    model.task = model.task or stated.get("pipeline_tag", "")
    if is_plain(model.path / INDEX):
        read_object(model.path / INDEX)
        if not is_plain(model.path / "transformer" / CONFIG):
            raise BedstoneError(f"{model.path}: is a pipeline without a transformer.")
        parts = sorted(each.parent for each in model.path.glob(f"*/{CONFIG}"))
        return sum(_of_network(part) for part in parts)
    if is_plain(model.path / ADAPTER) and not is_plain(model.path / CONFIG):
        read_object(model.path / ADAPTER)
        return _stored(model.path, WEIGHTS["peft"])
    inner = model.path / "0_Transformer"  # of older sentence-embedding folders
    folder = model.path if is_plain(model.path / CONFIG) or not inner.is_dir() else inner
    count = _of_network(folder)
    model.task = model.task or _task(read_object(folder / CONFIG))
    return count


def _of_network(folder: Path) -> int:
    published = read_object(folder / CONFIG)
    try:
        home_of(model_type(published))
    except BedstoneError as error:
        raise BedstoneError(f"{folder}/{error}") from None
    names = [n for n in (*WEIGHTS.values(), QUANTIZED) if any(folder.glob(f"{n}*"))]
    return _stored(folder, names[0] if names else WEIGHTS["transformers"])


def _stored(folder: Path, name: str) -> int:
    """Numbers in stored weights, floating-point ones and codes, one or two to a byte."""
    headers = stored_tensors(folder, name).values()
    entries = {key: entry for header in headers for key, entry in header.items()}
    codes = {key.removesuffix(".codes") for key in entries if key.endswith(".codes")}
    return sum(
        prod(entry["shape"]) * (2 if entry["dtype"] == "U8" else 1)
        for key, entry in entries.items()
        if ("F" in entry["dtype"] and key.rpartition(".")[0] not in codes) or key.endswith(".codes")
    )


def _task(published: dict[str, Any]) -> str:
    """By the class that a config.json names."""
    classes = published.get("architectures")
    first = str(classes[0]) if isinstance(classes, list) and classes else ""
    return next((task for ending, task in TASKS.items() if first.endswith(ending)), "")


def _card(folder: Path) -> dict[str, str]:
    """What the block of metadata at the head of a model card states of licence and task."""
    if not is_plain(folder / "README.md"):
        return {}
    with (folder / "README.md").open("rb") as file:
        text = file.read(_CARD_BYTES).decode(errors="replace")
    block = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    pairs = re.findall(r"^(license|pipeline_tag): *(\S+) *$", block[1] if block else "", re.M)
    return {key: _stated(value.strip("'\"")) for key, value in pairs}


def _stated(value: Any) -> str:
    return value if isinstance(value, str) and _STATED.fullmatch(value) else ""


def _in_runs(runs: Path, deeper: bool = True) -> Iterator[AtHand]:
    """Runs and models in a folder, and in the folders in it that are neither."""
    try:
        places = sorted(runs.iterdir()) if runs.is_dir() else []
    except OSError:
        return
    for place in places:
        if place.name.startswith("."):
            continue
        try:
            is_run, is_model = is_plain(place / "recipe.yaml"), _is_model(place)
        except BedstoneError as error:
            yield AtHand(str(place), "folder", place, fault=str(error))
            continue
        if is_run:
            yield _run(place)
        elif is_model:
            yield _described(AtHand(str(place), "folder", place))
        elif deeper and place.is_dir():
            yield from _in_runs(place, deeper=False)


def _is_model(place: Path) -> bool:
    marked = any(is_plain(place / mark) for mark in (*MARKS, ADAPTER))
    return marked or (is_plain(place) and place.suffix == SUFFIX) or any(place.glob(f"*{SUFFIX}"))


def _run(folder: Path) -> AtHand:
    """A run, by its finished model or else its newest checkpoint."""
    found = AtHand(str(folder), "run", folder)
    try:
        found.task = _stated(read_values(folder / "recipe.yaml").get("task"))
    except BedstoneError as error:
        found.fault = str(error)
        return found
    if any(is_plain(folder / "model" / mark) for mark in MARKS):
        found.path = folder / "model"
        return _described(found)
    with warnings.catch_warnings(record=True) as damaged:
        warnings.simplefilter("always")
        sound = CheckpointStore(folder / "checkpoints").list()
    if not sound:
        faults = [str(each.message) for each in damaged]
        found.fault = " ".join([f"{folder}: is a run that has no checkpoint yet.", *faults])
        return found
    found.path = sound[-1].path
    return _described(found)


def _in_cache() -> Iterator[AtHand]:
    """What the hub's cache has of the kinds that open."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        entries = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return
    licences = {known.hub: known.licence for known in PACKAGED.values()}
    for entry in sorted(entries, key=lambda each: each.repo_id):
        if entry.repo_type != "model" or not entry.revisions:
            continue
        newest = max(entry.revisions, key=lambda each: ("main" in each.refs, each.last_modified))
        folder = newest.snapshot_path
        if _opens(folder):
            licence = licences.get(entry.repo_id, "")
            yield _described(AtHand(entry.repo_id, "hub cache", folder, licence=licence))


def _opens(folder: Path) -> bool:
    """Whether a snapshot is of a kind that opens, or too damaged to tell."""
    try:
        if is_plain(folder / CONFIG):
            return model_type(read_object(folder / CONFIG)) in FAMILIES
        return (folder / INDEX).is_file() or (folder / ADAPTER).is_file()
    except BedstoneError:
        return True
