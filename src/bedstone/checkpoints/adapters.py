"""An adapter's folder: peft's two files, so that peft opens it and we open peft's.

`adapter_config.json` and `adapter_model.safetensors` beside the tokenizer, `bedstone.json` (how it
was made, which head its base needs, size and hash of every file) and `README.md`. The base is
not in it; the configuration says where it was.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bedstone.checkpoints.peft import KINDS, PREFIX, TASKS, read_peft, write_peft
from bedstone.checkpoints.side_files import RECORD, read_record, write_record
from bedstone.checkpoints.tensors import load_tensors, save_tensors
from bedstone.errors import BedstoneError
from bedstone.files import atomic_folder, write_json, write_text
from bedstone.models.families import ADAPTER as CONFIG
from bedstone.models.families import WEIGHTS as FILES
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout
from bedstone.nn.lora import (
    LoraConfig,
    active_adapter,
    adapted_layers,
    adapters,
    add_adapter,
    parent_of,
    shared_names,
    use_adapter,
)
from bedstone.reading import check_kinds, is_plain, read_object, shown, to_path

WEIGHTS = FILES["peft"]
BASE = "base_model_name_or_path"
TASK_HEADS = ("sequence", "tokens", "spans")


def adapt(
    network: Any,
    config: LoraConfig | None = None,
    name: str = "default",
    *,
    seed: int | None = None,
) -> None:
    """`nn.lora.add_adapter`, fitted to what the network is published as.

    Layers that its layout keeps as one matrix share their A, as peft has it. A task's head is
    trained whole, unless `config.train` says otherwise.

    Raises:
        BedstoneError: as `add_adapter`.
    """
    config = config or LoraConfig()
    kind = layout(network.config.layout)
    joined = [name.ours for name in kind.names(network.config) if len(name.ours) > 1]
    shared = shared_names(network, (parent_of(ours) for whole in joined for ours in whole))
    train = config.train
    if not train and network.config.head.kind in TASK_HEADS:
        train = ("head",)
    add_adapter(
        network,
        replace(config, shared=config.shared or shared, train=train),
        name,
        seed=seed,
    )


def save_adapter(model: Any, folder: str | Path, name: str | None = None) -> Path:
    """Writes an adapter's folder whole or not at all, taking the place of one that is there.

    Args:
        model: an opened `Model`; its network has the adapter.
        folder: where to.
        name: which; None says the one in use.

    Raises:
        BedstoneError: there is none such, or the folder can't be written.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise BedstoneError(
            f"{folder}: holds other files than an adapter; saving would replace the whole folder. "
            "Choose a folder that is new or holds an adapter."
        )
    with atomic_folder(folder) as made:
        write_adapter_files(model, made, name, home=folder)
    return folder


def write_adapter_files(
    model: Any, folder: Path, name: str | None = None, *, home: Path | None = None
) -> None:
    """Writes every file of an adapter into an existing folder, not atomically.

    Args:
        home: where the folder will stand in the end, to say where the base lies from there.
    """
    network = model.network
    name = name or active_adapter(network) or next(iter(adapters(network)), None)
    if name is None or name not in adapters(network):
        raise BedstoneError(
            f"{home or folder}: the network has no adapter {name or 'at all'}; it has "
            f"{', '.join(adapters(network)) or 'none'}. Save the model itself, or add one."
        )
    previous = active_adapter(network)
    if previous != name:
        use_adapter(network, name)  # modules trained whole hold the weights of the one in use
    published, tensors = write_peft(layout(network.config.layout), network, name)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    if previous != name:
        use_adapter(network, previous)
    base = None if model.path is None else Path(model.path).resolve()
    published["base_model_name_or_path"] = None if base is None else str(base)
    write_json(folder / CONFIG, published)
    save_tensors(folder, tensors, name=WEIGHTS)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    if model.generation:
        write_json(folder / "generation_config.json", model.generation)
    head = network.config.head
    record = {
        **model.record,
        "base": None if base is None else os.path.relpath(base, (home or folder).resolve()),
        "head": {"kind": head.kind, "labels": list(head.labels), "problem": head.problem},
    }
    write_text(folder / "README.md", _card(published, tensors, record))
    write_record(folder, record)


def _card(
    published: dict[str, Any], tensors: dict[str, torch.Tensor], record: dict[str, Any]
) -> str:
    base = published["base_model_name_or_path"] or ""
    count = sum(tensor.numel() for tensor in tensors.values())
    rows = {
        "base": base or "not recorded",
        "rank, alpha": f"{published['r']}, {published['lora_alpha']}",
        "layers": ", ".join(published["target_modules"]),
        "parameters": f"{count:,}",
        "trained on": (record.get("data") or {}).get("source", "not recorded"),
        **{key: f"{value:.4g}" for key, value in (record.get("metrics") or {}).items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"---\nbase_model: {base!r}\nlibrary_name: peft\ntags:\n- lora\n- bedstone\n---\n\n"
        f"# LoRA adapter, rank {published['r']}\n\n| | |\n|---|---|\n{table}\n\n"
        "It opens in `peft` unchanged: `PeftModel.from_pretrained(base, folder)`.\n"
    )


def load_adapter(model: Any, folder: str | Path, name: str = "default") -> None:
    """Adds an adapter from its folder to an opened base, and puts it in use.

    Args:
        model: a `Model`, or a network.
        folder: one that `save_adapter` or peft wrote.
        name: what to call it here.

    Raises:
        BedstoneError: it isn't there or isn't whole, is of another base, or is of a kind that
            Bedstone doesn't build; the network is as before.
    """
    network = getattr(model, "network", model)
    folder = Path(folder)
    published = read_object(folder / CONFIG)
    if not is_plain(folder / WEIGHTS):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:10])
        raise BedstoneError(
            f"{folder}: has no {WEIGHTS}; found {found}. Pickled adapters (adapter_model.bin) "
            "are never read: open it with peft once and save_pretrained it."
        )
    tensors = load_tensors(folder, name=WEIGHTS)
    kind = layout(network.config.layout)
    read = read_peft(kind, network, published, tensors, str(folder))
    add_adapter(network, read.config, name)
    with torch.no_grad():
        for path, layer in adapted_layers(network, name).items():
            for leaf, value in read.values[path].items():
                getattr(layer.adapters[name], leaf).copy_(value)
        for key, value in read.whole.items():
            network.get_parameter(key).copy_(value)


def load_with_adapter(folder: str | Path, open_base: Callable[[str], Any]) -> Any:
    """The base that an adapter's folder names, with the adapter added and in use.

    The base is looked for where the configuration says, then where it lay relative to the
    folder; else the name is taken for a hub id. It gets the head that the adapter was trained
    with. `model.path` stays the base's, so that what is saved again names it; the folder's own
    tokenizer is left to the caller.

    Args:
        open_base: opens a folder or hub id as a `Model`: `artefact.load`.

    Raises:
        BedstoneError: no base is named, or as `open_base` and `load_adapter`.
    """
    folder = Path(folder)
    published = read_object(folder / CONFIG)
    check_kinds(published, KINDS, folder / CONFIG)
    record = read_record(folder, verify=True)
    named = published.get("base_model_name_or_path")
    relative, said = record.get("base"), f"{folder / CONFIG}: {BASE}"
    beside = [
        folder / to_path(one, said) for one in (relative, named) if isinstance(one, str) and one
    ]
    if not isinstance(named, str) or not named:
        raise BedstoneError(
            f"{folder / CONFIG}: {BASE} is {shown(named)}, so its base is not known. "
            "Open the base yourself and add this with load_adapter."
        )
    local = [path for path in (to_path(named, said), *beside) if path.is_dir()]
    if local and (local[0] / CONFIG).is_file() and not (local[0] / "config.json").is_file():
        raise BedstoneError(
            f"{folder / CONFIG}: {BASE} is {named!r}, which is an adapter itself; expected the "
            "folder or hub id of a model. Name the model that it was trained on."
        )
    try:
        model = open_base(str(local[0]) if local else named)
    except BedstoneError as error:
        raise BedstoneError(f"{folder}: its base can't be opened. {error}") from error
    _give_head(model.network, published, record, folder)
    load_adapter(model, folder)
    model.network.eval()
    model.record = record
    return model


def _give_head(
    network: Any, published: dict[str, Any], record: dict[str, Any], folder: Path
) -> None:
    """Puts the head on the base that the adapter was trained with, if it has another."""
    saved = record.get("head")
    if saved:
        try:
            head = HeadConfig(saved["kind"], tuple(saved["labels"]), saved["problem"])
        except (KeyError, TypeError) as error:
            raise BedstoneError(
                f"{folder / RECORD}: head = {saved!r}; expected kind, labels and problem. Fetch "
                "the folder again, or remove this file."
            ) from error
    else:
        kinds = {task: kind for kind, task in TASKS.items() if kind in TASK_HEADS}
        kind = kinds.get(published.get("task_type") or "")
        if kind is None or network.config.head.kind == kind:
            return
        head = HeadConfig(kind, _labels(folder) if kind != "spans" else ())
    if head != network.config.head:
        network.set_head(head)


def _labels(folder: Path) -> tuple[str, ...]:
    """Numbered labels, as many as the head in the file has outputs."""
    last = (f"{PREFIX}classifier.weight", f"{PREFIX}classifier.out_proj.weight")
    tensors = load_tensors(folder, name=WEIGHTS)
    found = [tensors[key] for key in (*last, f"{PREFIX}score.weight") if key in tensors]
    if not found:
        raise BedstoneError(
            f"{folder}: its task needs a head with labels, and it holds none. Open the base with "
            "its head yourself and add this with load_adapter."
        )
    return tuple(f"LABEL_{i}" for i in range(len(found[0])))
