"""What of a recording doesn't depend on the processor, and is kept in expected.json.

Of runs: recipes, files, fingerprints, tokenizers, counts of tokens, names and shapes of weights. Of
commands: exit codes and messages of bad input, what `info` says beside fractions, and the form of
everything else.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected.json"
# Cases of every method, few enough to run in less than a minute, in the order they need.
QUICK = [
    "text/gpt",
    "text/gpt-streamed",
    "encoders/bert",
    "encoders/row-words",
    "encoders/bert-words",
    "encoders/tuned-labels",
    "encoders/tuned-tags-lora",
    "pairs/clip",
    "told/blip-joint",
    "drawing/coder-codes",
    "drawing/draw-class",
    "drawing/draw-text",
    "faults/fault-gpt",
    "text/generate-gpt",
    "text/evaluate-gpt",
    "text/info-gpt",
    "text/run-gpt",
    "encoders/fill-bert",
    "encoders/classify-labels",
    "encoders/evaluate-labels",
    "encoders/entities-text",
    "pairs/zero-shot-clip",
    "pairs/index",
    "pairs/search",
    "told/captions-runs/blip-joint",
    "told/answers-runs/blip-joint",
    "told/matching-runs/blip-joint",
    "drawing/imagine-class",
    "drawing/info-draw-text",
    "drawing/info-coder-codes",
]
TOLD = ("faults/", "text/info", "drawing/info")  # cases whose very words are expected
NUMBER = "<number>"
LONG = 1500  # characters of a file of JSON; only a hash of a longer one is kept


def quick(names: Mapping[str, Any]) -> list[str]:
    """The quick cases, and all of bad input but help's pages."""
    more = [name for name in names if name.startswith("faults/fault-")]
    return [name for name in names if name in QUICK or name in more]


def _seen(line: Mapping[str, Any]) -> Any:
    """What a line of a log counts of the data."""
    units = ("tokens", "pairs", "images", "signals")
    return next((line[unit] for unit in units if unit in line), None)


def independent(name: str, found: Mapping[str, Any]) -> Any:
    """What is expected of a case's outputs on every processor."""
    if "log" in found:
        return run(found)
    return numbered(found) if name.startswith(TOLD) else form(found)


def run(found: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {"recipe": found["recipe"], "files": found["files"]}
    kept["log"] = [[each.get("step"), _seen(each), sorted(each)] for each in found["log"]]
    for key, value in found.items():
        if key == "data.json":
            kept[key] = value
        elif key.startswith("evaluation"):
            kept[key] = form(value)
        elif key in ("model", "adapter", "tokenizer"):
            kept[key] = {file: of_file(file, content) for file, content in value.items()}
    return kept


def of_file(name: str, content: Any) -> Any:
    if name.endswith(".safetensors"):
        return {part: value for part, value in content.items() if part != "hash"}
    if name.endswith(("bedstone.json", "golden.json")):  # of a model that was trained here
        return form(content)
    if name.endswith(".json"):
        text = json.dumps(numbered(content), sort_keys=True)
        long = len(text) > LONG
        return hashlib.sha256(text.encode()).hexdigest() if long else numbered(content)
    return None if isinstance(content, dict) or name.endswith(".md") else content


def numbered(value: Any) -> Any:
    """Fractions, which may come of computing, as the word that one is there."""
    if isinstance(value, dict):
        return {key: numbered(each) for key, each in value.items()}
    if isinstance(value, list):
        return [numbered(each) for each in value]
    return NUMBER if isinstance(value, float) else value


def form(value: Any) -> Any:
    """The keys and kinds of a value; of a list, those of its first."""
    if isinstance(value, dict):
        return {key: form(each) for key, each in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return NUMBER if isinstance(value, int | float) else type(value).__name__


def write_expected(results: Mapping[str, Any]) -> None:
    """Writes expected.json from a recording."""
    kept = {name: independent(name, results[name]) for name in sorted(quick(results))}
    lines = [f"{json.dumps(name)}: {json.dumps(kept[name], sort_keys=True)}" for name in kept]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
