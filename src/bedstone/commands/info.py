"""`bedstone info`: what a model is."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.artefact import Model
from bedstone.commands.opening import open_model
from bedstone.models.gpt_config import GPTConfig


def info(path: str, *, as_json: bool = False) -> dict[str, Any]:
    """Prints and returns layout, shape, size, tokenizer and origin of a model or a run's model.

    Raises:
        BedstoneError: it can't be opened.
    """
    model = open_model(path)
    facts = describe(model)
    if as_json:
        print(json.dumps(facts))
        return facts
    table = Table(title=str(path), show_header=False, title_justify="left")
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        table.add_row(name.replace("_", " "), str(shown))
    Console().print(table)
    return facts


def describe(model: Model) -> dict[str, Any]:
    """The facts, by name."""
    config, record = model.config, model.record
    weights = list(model.network.parameters())
    count = sum(weight.numel() for weight in weights)
    tokenizer = model.tokenizer
    facts = {
        "layout": config.layout,
        "opens_in_transformers_as": model.layout.architecture(config),
        "head": config.head.kind,
        **({"labels": ", ".join(config.head.labels)} if config.head.labels else {}),
        "parameters": count,
        "of_which_embeddings": model.network.get_parameter("embed.weight").numel(),
        "dtype": str(weights[0].dtype).removeprefix("torch."),
        "bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        "width": config.width,
        "layers": config.layers,
    }
    if isinstance(config, GPTConfig):
        kept = 2 * config.layers * config.kv_heads * config.head_width * weights[0].element_size()
        facts["heads"] = (
            f"{config.heads} query, {config.kv_heads} key/value, width {config.head_width}"
        )
        facts["cache_bytes_a_token"] = kept
    else:
        facts["heads"] = config.heads
    return {
        **facts,
        "hidden": config.hidden,
        "context": config.context,
        "vocabulary": config.vocab_size,
        "tied_head": config.tied,
        "tokenizer": f"{tokenizer.vocab_size} tokens" if tokenizer else "none",
        "trained_on": record.get("data", {}).get("source", "not recorded"),
        **record.get("metrics", {}),
    }
