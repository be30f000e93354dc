"""`bedstone info`: layout, sizes and origin of a model."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model
from bedstone.checkpoints.pipeline import MediaPipeline
from bedstone.evaluate.speed import speed as measure_speed
from bedstone.models.gpt.network import GPTConfig
from bedstone.nn.quantize import quantized_part, weights_of


def info(model: str, *, speed: bool = False, as_json: bool = False) -> dict[str, Any]:
    """Print the layout, sizes, tokenizer and origin of a model or a run.

    Args:
        model: a folder, a name that `bedstone models` lists, or a hub id.
        speed: also say which precision, backend and threads are picked here, and why; of a text
            model, measure how fast it writes in each precision, and how near that is to what memory
            allows (about 10 s for 135M parameters; let nothing else run).
        as_json: print one JSON object.

    Example:
        bedstone info runs/python-docs

    Raises:
        BedstoneError: it can't be opened.
    """
    opened = open_model(model)
    facts = describe(opened)
    if speed:
        facts["speed"] = measure_speed(opened.network, writes=opened.writes_text)
    if as_json:
        print(json.dumps(facts))
        return facts
    table = Table(title=model, show_header=False, title_justify="left")
    for name, value in facts.items():
        if name != "speed":
            table.add_row(name.replace("_", " "), _shown(value))
    Console().print(table)
    if speed:
        _print_speed(facts["speed"])
    return facts


def _print_speed(found: dict[str, Any]) -> None:
    """The machine, then a row for each precision."""
    roof = found["roof_gb_s"]
    engine = found["engine"]
    print(
        f"\n{found['processor']}, {found['instructions']} ({', '.join(found['has'])}), "
        f"{found['threads']} threads; engine: {engine}; a read loop reaches {roof:.1f} GB/s"
    )
    for pick in found["picked"]:
        print(_picked(pick))
    print(f"measurements are kept in {found['kept_in']}; without the file they are made anew")
    if not found["precisions"]:
        return
    names = {
        "precision": "", "backend": "by", "threads": "threads", "megabytes": "MB read",
        "tokens": "tokens/s", "roof_share": "of roof", "batch": "8 rows", "prompt": "prompt",
        "products": "products",
        "head": "head", "rest": "rest",
    }  # fmt: skip
    print("tokens per second; microseconds of one token: products of layers, head, all else")
    print("".join(f"{title:>9}" for title in names.values()))
    for row in found["precisions"]:
        print("".join(f"{_cell(row[name]):>9}" for name in names))


def _picked(pick: dict[str, Any]) -> str:
    """A line: what a precision comes to, and what was measured."""
    times = ", ".join(f"{way} {1e3 * each:.3g} ms" for way, each in pick["seconds"].items())
    when = " (measured before)" if pick["kept"] else ""
    why = f"{times} for {pick['what']}{when}" if times else pick["what"]
    return f"{pick['name']}: {pick['precision']} by {pick['backend']}: {why}"


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    share = isinstance(value, float) and value < 2
    return f"{value:.0%}" if share else f"{value:,.0f}"


def _shown(value: Any) -> str:
    """A fact as people read it; `--json` prints all digits."""
    if value is None:
        return "nothing: Bedstone alone has its form"
    if isinstance(value, float):
        return f"{value:.4g}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if whole else str(value)


def describe(model: Model) -> dict[str, Any]:
    """The facts, by name."""
    config, record = model.config, model.record
    weights = list(model.network.parameters())
    count, size = weights_of(model.network)
    tokenizer = model.tokenizer
    facts = {
        "layout": config.layout,
        f"opens_in_{model.layout.library}_as": model.layout.architecture(config),
        **_head(config),
        "parameters": count,
        **_embeddings(model.network),
        "dtype": str(weights[0].dtype).removeprefix("torch."),
        "bytes": size,
        **quantized_part(model.network),
        **_sizes(config),
        **_drawing(model),
    }
    if isinstance(config, GPTConfig):
        kept = 2 * config.layers * config.kv_heads * config.head_width * weights[0].element_size()
        facts["heads"] = (
            f"{config.heads} query, {config.kv_heads} key/value, width {config.head_width}"
        )
        facts["cache_bytes_a_token"] = kept
    return {
        **facts,
        "tokenizer": f"{tokenizer.vocab_size} tokens" if tokenizer else "none",
        "trained_on": record.get("data", {}).get("source", "not recorded"),
        **record.get("metrics", {}),
    }


def _drawing(model: Model) -> dict[str, Any]:
    """Output, condition, sampler and parameter counts of a model that generates media."""
    if not isinstance(model, MediaPipeline):
        return {}
    counts = {
        f"parameters_of_{name}": sum(weight.numel() for weight in part.network.parameters())
        for name, part in model.parts.items()
    }
    return {
        "draws": f"{model.signal.kind} of {' by '.join(map(str, model.signal.shape))}",
        "from": model.inputs().removeprefix("from "),
        "drawn_by": model.how,
        **counts,
    }


def _head(config: Any) -> dict[str, str]:
    """The head of a network, where it has one."""
    head = getattr(config, "head", None)
    if head is None:
        return {}
    return {"head": head.kind, **({"labels": ", ".join(head.labels)} if head.labels else {})}


# Fields of a configuration that are sizes, with the names that they are printed by.
_SIZES = {
    "width": "width",
    "widths": "channels_of_each_stage",
    "latent_channels": "latent_channels",
    "codes": "codes",
    "shrink": "pixels_to_a_place",
    "layers": "layers",
    "heads": "heads",
    "hidden": "hidden",
    "patch": "patch",
    "size": "pixels",
    "context": "context",
    "vocab_size": "vocabulary",
    "tied": "tied_head",
    "embed": "joint_width",
}


def _sizes(config: Any) -> dict[str, Any]:
    """Sizes of a network; those of two encoders each by its name."""
    facts: dict[str, Any] = {}
    for tower in ("image", "text"):
        if hasattr(config, tower):
            inner = _sizes(getattr(config, tower))
            facts |= {f"{tower}_{name}": value for name, value in inner.items()}
    named = {"embed": _SIZES["embed"]} if facts else _SIZES
    for field, name in named.items():
        if hasattr(config, field):
            value = getattr(config, field)
            facts[name] = _joined(value, field) if isinstance(value, tuple) else value
    return facts


def _joined(values: tuple[Any, ...], field: str) -> str:
    return (", " if field == "widths" else " by ").join(map(str, values))


def _embeddings(network: Any) -> dict[str, int]:
    """Parameters of token embeddings, where there are any."""
    tables = [w for name, w in network.named_parameters() if f".{name}".endswith(".embed.weight")]
    return {"of_which_embeddings": sum(table.numel() for table in tables)} if tables else {}
