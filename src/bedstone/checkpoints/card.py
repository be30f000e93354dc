"""The model card: what an artefact is, in Markdown with the metadata block that hubs read.

Figures that `bedstone card` measured stand in `bedstone.json` under `figures`, with the hash of the
weights that they are of, and in the card: each with its interval, the hash of its data, and the
command that measures it again; what `bedstone audit --keep` found stands under `audit`.
Saving a model leaves both out, since its weights may be others.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bedstone.checkpoints.side_files import write_record
from bedstone.errors import BedstoneError
from bedstone.files import atomic_folder, sha256, write_text
from bedstone.nn.quantize import quantized_part, weights_of

# What a model is for, by its head; one of pictures by `image` and its head.
USES = {
    "decoder language": ("text-generation", 'bedstone generate . "def "'),
    "language": ("fill-mask", 'bedstone run fill-mask . "a [MASK] of words"'),
    "pretraining": ("fill-mask", 'bedstone run fill-mask . "a [MASK] of words"'),
    "states": ("feature-extraction", 'bedstone run feature-extraction . "some words"'),
    "pooled": ("feature-extraction", 'bedstone run feature-extraction . "some words"'),
    "sequence": ("text-classification", 'bedstone run text-classification . "some words"'),
    "tokens": ("token-classification", 'bedstone run token-classification . "some words"'),
    "spans": ("question-answering", 'bedstone run question-answering . "who?" --context a.txt'),
    "image states": ("image-feature-extraction", "bedstone run image-feature-extraction . a.jpg"),
    "image sequence": ("image-classification", "bedstone run image-classification . a.jpg"),
    "towers": (
        "zero-shot-image-classification",
        "bedstone run zero-shot-image-classification . a.jpg "
        '--option candidate_labels="a cat,a dog"',
    ),
    "seq2seq": ("text2text-generation", 'bedstone run text2text-generation . "some words"'),
    "captions": ("image-to-text", "bedstone run image-to-text . a.jpg"),
    "answers": (
        "visual-question-answering",
        'bedstone run visual-question-answering . a.jpg --option question="what is this?"',
    ),
    "matching": (
        "image-text-matching",
        'bedstone run image-text-matching . a.jpg --option text="a cat"',
    ),
}
USES["joint"] = USES["captions"]
USES["autoencoder_kl"] = ("image-feature-extraction", 'bedstone.load(".").network.latents(pixels)')
for _kind in ("fsq_autoencoder", "vq_model", "discrete_vae"):
    USES[_kind] = ("image-feature-extraction", 'bedstone.load(".").network.encode(pixels)')
USES["dalle"] = ("text-to-image", 'bedstone.load(".").network(ids, keep, codes)')
for _kind, _call in (
    ("prior_transformer", "x, t, words=words"),
    ("autoregressive_prior", "x, words=words, text=states"),
):
    USES[_kind] = ("text-to-image", f'bedstone.load(".").network({_call})')
for _kind in ("dit", "pixart", "bedstone_dit"):  # alone, not as a part of a pipeline
    USES[_kind] = ("unconditional-image-generation", 'bedstone.load(".").network(x, t)')
for _kind in ("states", "sequence", "tokens", "spans"):
    USES[f"decoder {_kind}"] = USES[_kind]
USES["image pooled"] = USES["image states"]


def card(
    network: Any,
    record: Mapping[str, Any],
    architecture: str | None,
    library: str = "transformers",
) -> str:
    """The card of a network.

    Args:
        record: what `bedstone.json` says of its making.
        architecture: the published class that opens it; None where Bedstone alone does.
        library: whose class that is.
    """
    config = network.config
    count, _ = weights_of(network)
    rows = {
        "layout": config.layout,
        "parameters": f"{count:,}",
        **quantized_part(network),
        **_shape(config),
        **_learnt(record),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    task, command = USES[_use(network)]
    named = getattr(getattr(config, "head", None), "labels", ())
    labels = f"\nLabels: {', '.join(named)}.\n" if named else ""
    opened = (
        f'It opens in `{library}` unchanged:\n`{architecture}.from_pretrained(".")`.\n'
        if architecture
        else "Bedstone alone opens it: no published class has its form.\n"
    )
    return (
        f"---\nlibrary_name: bedstone\ntags:\n- bedstone\npipeline_tag: {task}\n---\n\n"
        f"# {config.layout}, {count / 1e6:.1f}M parameters\n\n| | |\n|---|---|\n{table}\n"
        f"{labels}\n```\n{command}\n```\n\n{opened}{_measured(record)}{_audited(record)}"
    )


def _use(network: Any) -> str:
    config = network.config
    if not hasattr(config, "head"):
        return str(config.layout)
    kind: str = config.head.kind
    if hasattr(config, "text"):
        return kind
    if hasattr(config, "size"):
        return f"image {kind}"
    return f"decoder {kind}" if network.causal else kind


def _shape(config: Any) -> dict[str, str]:
    """The rows of the table that say how large a network is."""
    if hasattr(config, "text"):
        towers = {"pictures": config.image, "text": config.text}
        rows: dict[str, str] = {}
        for name, tower in towers.items():
            rows |= {f"{name}: {key}": value for key, value in _shape(tower).items()}
        return rows | {"joint width": str(config.embed)}
    if hasattr(config, "widths"):
        codes = {"codes": f"{config.codes:,}"} if hasattr(config, "codes") else {}
        return {"channels of each stage": ", ".join(map(str, config.widths)), **codes}
    sizes = [name for name in ("width", "layers", "heads") if hasattr(config, name)]
    rows = {", ".join(sizes): ", ".join(str(getattr(config, name)) for name in sizes)}
    if hasattr(config, "size"):
        return rows | {"size": f"{' by '.join(map(str, config.size))} pixels"}
    if hasattr(config, "codes"):
        return rows | {"codes": f"{config.codes:,}"}
    if hasattr(config, "text_tokens"):
        return rows | {"embeddings": f"{config.embed} wide, of {config.text_tokens} words at most"}
    return rows | {
        "context": f"{config.context} tokens",
        "vocabulary": f"{config.vocab_size:,} tokens",
    }


# The model card of what draws, in Markdown with the metadata block that hubs read.

# What hubs call the task of drawing such a signal, from nothing or a class, and from words.
TASKS = {
    "image": ("unconditional-image-generation", "text-to-image"),
    "audio": ("text-to-audio", "text-to-audio"),
    "video": ("text-to-video", "text-to-video"),
    "volume": ("text-to-3d", "text-to-3d"),
}
FILES = {"image": "out.png", "audio": "out.wav", "video": "out.png", "volume": "out.png"}


def pipeline_card(
    parts: Mapping[str, Any],
    signal: Mapping[str, Any],
    how: str,
    record: Mapping[str, Any],
) -> str:
    """The card of a model that draws.

    Args:
        parts: its networks by the folders they stand in.
        signal: what it draws, by the fields of `checkpoints.pipeline.SignalSpec`.
        how: it does so, in words.
        record: what `bedstone.json` says of its making.
    """
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    config = parts["transformer"].config
    condition, names = signal["condition"], signal["names"]
    example = {"class": f'"{names[0]}"' if names else "0", "text": '"a red circle"', "none": ""}
    rows = {
        "draws": f"{signal['kind']} of {' x '.join(map(str, signal['shape']))}, channels first",
        "from": {"none": "noise alone", "class": f"{len(names)} classes"}.get(condition, "words"),
        **{f"parameters of {name}/": f"{count:,}" for name, count in counts.items()},
        "width, layers, heads": f"{config.width}, {config.layers}, {config.heads}",
        **_drawn_in(config),
        "drawn by": how,
        **_learnt(record),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    labels = f"\nClasses: {', '.join(names)}.\n" if names else ""
    task = TASKS[signal["kind"]][condition == "text"]
    command = f"bedstone imagine . {example[condition]}".strip() + f" --out {FILES[signal['kind']]}"
    total = sum(counts.values())
    return (
        f"---\nlibrary_name: bedstone\ntags:\n- bedstone\npipeline_tag: {task}\n---\n\n"
        f"# {config.layout}, {total / 1e6:.1f}M parameters\n\n| | |\n|---|---|\n{table}\n"
        f"{labels}\n```\n{command}\n```\n{_measured(record)}{_audited(record)}"
    )


def _drawn_in(config: Any) -> dict[str, str]:
    """What a network draws at a time: patches, or codes."""
    if hasattr(config, "patches"):
        return {"patches": " x ".join(map(str, config.patches))}
    grid = " x ".join(map(str, config.grid))
    return {"codes of an image": f"{grid} of {config.codes:,}, in {config.order} order"}


# Figures that were measured of a model, so that they can be measured again.


@dataclass(frozen=True)
class Measured:
    """One figure of a model.

    Attributes:
        low, high: of its 95 % interval.
        rows: how many rows, or targets of the loss, it is of.
        data: the hash of what it was measured on.
        command: that measures it again, in the model's folder.
        precision: of the computation.
    """

    name: str
    value: float
    low: float
    high: float
    rows: int
    data: str
    command: str
    precision: str


def weight_files_hash(folder: Path) -> str:
    """The hash of a folder's weights: of the names and hashes of their files, in order.

    Raises:
        BedstoneError: there are none.
    """
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise BedstoneError(f"{folder}: holds no weights (.safetensors). Give a model's folder.")
    lines = [f"{each.relative_to(folder).as_posix()} {sha256(each)}\n" for each in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def kept_figures(record: Mapping[str, Any], where: object) -> tuple[str, list[Measured]]:
    """The hash of the weights and their figures that a record holds; "" and none without any.

    Raises:
        BedstoneError: they are damaged.
    """
    kept = record.get("figures") or {}
    try:
        return str(kept.get("weights", "")), [Measured(**each) for each in kept.get("measured", [])]
    except (TypeError, AttributeError):
        raise BedstoneError(
            f"{where}: its figures are damaged. Measure them again: bedstone card {where} --measure"
        ) from None


def keep_figures(folder: Path, model: Any, figures: Sequence[Measured]) -> None:
    """Puts figures into the record and the card of a model's folder, whole or not at all.

    Args:
        model: that was opened from it.
    """
    kept = {"weights": weight_files_hash(folder), "measured": [asdict(each) for each in figures]}
    model.record["figures"] = kept
    keep_card(folder, model)


def keep_card(folder: Path, model: Any) -> None:
    """Writes the record and the card of a model anew, whole or not at all; all else stays.

    Args:
        model: that was opened from the folder: its `record` and `card` are written.
    """
    with atomic_folder(folder) as new:
        for path in sorted(folder.rglob("*")):
            target = new / path.relative_to(folder)
            if path.is_dir():
                target.mkdir()
            elif path.name not in ("README.md", ".lock") or path.parent != folder:
                _link(path, target)
        write_text(new / "README.md", model.card())
        write_record(new, model.record)


def _link(path: Path, target: Path) -> None:
    """The same file under another name, which costs no copy of large weights; else a copy."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def _learnt(record: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the table: the data, its hash, and what was measured in training."""
    data = record.get("data") or {}
    rows = {"trained on": str(data.get("source", "not recorded"))}
    if data.get("fingerprint"):
        rows["hash of that data"] = str(data["fingerprint"])
    if not record.get("figures"):
        metrics = record.get("metrics") or {}
        rows |= {f"{name}, in training": f"{value:.4g}" for name, value in metrics.items()}
    return rows


def _measured(record: Mapping[str, Any]) -> str:
    """The section of figures; what measures them, where there are none yet."""
    weights, figures = kept_figures(record, "the model")
    if not figures:
        measured = record.get("metrics")
        how = "\nFigures of training have no interval; `bedstone card . --measure` measures anew.\n"
        return how if measured else ""
    lines = [
        f"| {each.name} | {each.value:.4g} | {each.low:.4g} to {each.high:.4g} | {each.rows:,} | "
        f"`{each.data[:16]}` | `{each.command}` | {each.precision} |"
        for each in figures
    ]
    head = "| figure | value | 95 % interval | rows | hash of data | command | precision |\n"
    return (
        f"\n## Figures\n\n{head}|{'---|' * 7}\n" + "\n".join(lines) + "\n\n"
        f"Of the weights `{weights[:16]}`. `bedstone card . --check` measures them again.\n"
    )


def _audited(record: Mapping[str, Any]) -> str:
    """The section of what an audit found (`inspect.audit.Audit.record`).

    Raises:
        BedstoneError: it is damaged.
    """
    audit = record.get("audit")
    if not audit:
        return ""
    rows = ["| check | measure | value | 95 % | aim | corrected p | rows |", "|---" * 7 + "|"]
    try:
        for part in audit["parts"]:
            for each in part["measures"]:
                p = "" if each["corrected"] is None else f"{each['corrected']:.3f}"
                mark = "**" if each["differs"] else ""
                rows.append(
                    f"| {part['name']} | {each['name']} | {mark}{each['value']:.3f}{mark} | "
                    f"{each['low']:.3f} to {each['high']:.3f} | {each['aim']:.3f} | {p} | "
                    f"{each['rows']} |"
                )
        made = (
            f"Weights {audit['weights'][:12]}, checks {audit['checks_hash'][:12]}, seed "
            f"{audit['seed']}; measured by\n`{audit['command']}`."
        )
    except (KeyError, TypeError, ValueError):
        raise BedstoneError(
            "the model's audit is damaged. Make it again: bedstone audit MODEL --keep"
        ) from None
    table = "\n".join(rows)
    return (
        "\n## Audit\n\nBold figures differ from their aim. One that doesn't is no proof of "
        f"fairness.\n{made}\n\n{table}\n"
    )
