"""The model card of what draws, in Markdown with the metadata block that hubs read."""

from collections.abc import Mapping
from typing import Any

# What hubs call the task of drawing such a signal, from nothing or a class, and from words.
TASKS = {
    "image": ("unconditional-image-generation", "text-to-image"),
    "audio": ("text-to-audio", "text-to-audio"),
    "video": ("text-to-video", "text-to-video"),
    "volume": ("text-to-3d", "text-to-3d"),
}
FILES = {"image": "out.png", "audio": "out.wav", "video": "out.png", "volume": "out.png"}


def drawing_card(
    parts: Mapping[str, Any],
    signal: Mapping[str, Any],
    sampling: Mapping[str, Any],
    record: Mapping[str, Any],
) -> str:
    """The card of a model that draws.

    Args:
        parts: its networks by the folders they stand in.
        signal: what it draws, by the fields of `checkpoints.drawing.SignalForm`.
        sampling: how, by those of `recipes_diffusion.SamplingConfig`.
        record: what `bedstone.json` says of its making.
    """
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    config = parts["transformer"].config
    condition, names = signal["condition"], signal["names"]
    asked = {"class": f'"{names[0]}"' if names else "0", "text": '"a red circle"', "none": ""}
    rows = {
        "draws": f"{signal['kind']} of {' x '.join(map(str, signal['shape']))}, channels first",
        "from": {"none": "noise alone", "class": f"{len(names)} classes"}.get(condition, "words"),
        **{f"parameters of {name}/": f"{count:,}" for name, count in counts.items()},
        "width, layers, heads": f"{config.width}, {config.layers}, {config.heads}",
        "patches": " x ".join(map(str, config.patches)),
        "drawn by": f"{sampling['method']}, {sampling['steps']} steps, "
        f"guidance {sampling['guidance']:g}",
        "trained on": (record.get("data") or {}).get("source", "not recorded"),
        **{name: f"{value:.4g}" for name, value in (record.get("metrics") or {}).items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    labels = f"\nClasses: {', '.join(names)}.\n" if names else ""
    task = TASKS[signal["kind"]][condition == "text"]
    command = f"bedstone imagine . {asked[condition]}".strip() + f" --out {FILES[signal['kind']]}"
    total = sum(counts.values())
    return (
        f"---\nlibrary_name: bedstone\ntags:\n- bedstone\npipeline_tag: {task}\n---\n\n"
        f"# {config.layout}, {total / 1e6:.1f}M parameters\n\n| | |\n|---|---|\n{table}\n"
        f"{labels}\n```\n{command}\n```\n"
    )
