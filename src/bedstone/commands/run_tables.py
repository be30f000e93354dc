"""What a task gives, as tables for people."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

LONGEST = 300  # characters of a cell
LEFT_OUT = ("row",)  # --json has it


def shown(value: Any, result: Any) -> list[RenderableType]:
    """An input and its result, to be printed one below the other."""
    if isinstance(value, Mapping) and "sentences" in value:
        pairs = zip(value["sentences"], result, strict=True)
        result = [{"sentence": sentence, "score": score} for sentence, score in pairs]
        value = value["source_sentence"]
    elif isinstance(value, Mapping) and "image" in value and value.keys() & {"question", "text"}:
        value = f"{value['image']}: {value.get('question') or value.get('text') or ''}"
    elif isinstance(value, Mapping):
        value = value.get("question", value)
    return [Text(_cell(value), style="bold"), *_tables(result), ""]


def _tables(result: Any) -> list[RenderableType]:
    if isinstance(result, Mapping) and "reason" in result:  # of moderation
        told = Text(f"{result['action']}: {result['reason']}")
        return [told, _table(result["categories"])]
    if isinstance(result, Mapping):
        return [_table(_rows_of(result))]
    if isinstance(result, list) and result and all(isinstance(one, Mapping) for one in result):
        if all(set(one) == {"generated_text"} for one in result):
            return [Text(one["generated_text"]) for one in result]
        return [_table(result)]
    if _is_numbers(result):
        return [Text(_shape(result) + "; --json prints them")]
    if isinstance(result, list) and result:
        return [each for one in result for each in _tables(one)]
    return [Text("nothing was found", style="dim")]


def _rows_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A dictionary as rows: of its columns, of its fields, or itself as one."""
    columns = {key: each for key, each in result.items() if isinstance(each, list)}
    if columns:  # labels beside their scores
        names = [key.removesuffix("s") for key in columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if all(each is None or isinstance(each, Mapping) for each in result.values()):
        return [{"field": name, **(each or {"answer": "-"})} for name, each in result.items()]
    return [result]


def _table(rows: list[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(key for row in rows for key in row if key not in LEFT_OUT))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        numbers = all(isinstance(row.get(name, 0), int | float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _is_numbers(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, int | float)


def _shape(value: Any) -> str:
    sizes = []
    while isinstance(value, list):
        sizes.append(len(value))
        value = value[0]
    return " x ".join(f"{size:,}" for size in sizes) + " numbers"
