"""Structured output: schemas that are followed, and what a token costs more.

    python bench/structured.py [--model python-gpt] [--schemas 500] [--most 300] [--seed 0]
    python bench/structured.py --model smollm2-135m-instruct --cost 20 [--precision int8]

Schemas are drawn: objects and lists of up to three levels, numbers in ranges, texts of lengths,
patterns and formats, enums, constants, choices of schemas, references. Each text is sampled at
temperature 1; one that is whole must be valid by `jsonschema`, which knows nothing of how it was
made. One that was cut counts apart, and must not say that it is whole. A schema of a keyword that
isn't understood must be refused before a token.

With `--cost` the seconds a token of the same texts with and without their schema stand beside each
other, interleaved: the tokens of a text without are forced to be those with.
"""

import argparse
import json
import random
import time
from typing import Any

import jsonschema

import bedstone
from bedstone.checkpoints.model import tokenizer_of
from bedstone.errors import BedstoneError
from bedstone.generation.autoregress import ready, stream
from bedstone.generation.settings import GenerationSettings
from bedstone.generation.text import encode_prompt, write
from bedstone.runtime import pick_device, pick_precision
from result import interval

WORDS = ("name", "age", "colour", "size", "tags", "when", "id", "price", "on", "note")
UNKNOWN = ("not", "uniqueItems", "unevaluatedProperties", "dependentSchemas")


def schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema by chance."""
    leaves = [
        "string",
        "pattern",
        "format",
        "integer",
        "number",
        "boolean",
        "null",
        "enum",
        "const",
    ]
    kind = draw.choice(leaves if depth >= 3 else [*leaves, "array", "object", "object", "anyOf"])
    if kind == "string":
        return {"type": "string", "minLength": draw.randint(0, 3), "maxLength": draw.randint(4, 9)}
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": draw.choice(["^[a-z]{2,5}$", "^\\d{3}-\\d{2}$", "^(a|b)+c$"]),
        }
    if kind == "format":
        return {"type": "string", "format": draw.choice(["date", "time", "uuid", "ipv4"])}
    if kind == "integer":
        low = draw.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 200)}
    if kind == "number":
        return {"type": "number", "minimum": 0, "exclusiveMaximum": draw.randint(1, 90)}
    if kind == "enum":
        return {"enum": draw.sample(["red", "blue", 3, None, True, "grün"], 3)}
    if kind == "const":
        return {"const": draw.choice(["fixed", 7, {"k": [1]}])}
    if kind == "array":
        return {"type": "array", "items": schema(draw, depth + 1), "maxItems": draw.randint(1, 3)}
    if kind == "anyOf":
        return {"anyOf": [schema(draw, depth + 1), schema(draw, depth + 1)]}
    if kind == "object":
        names = draw.sample(WORDS, draw.randint(1, 4))
        return {
            "type": "object",
            "properties": {name: schema(draw, depth + 1) for name in names},
            "required": draw.sample(names, draw.randint(1, len(names))),
            "additionalProperties": False,
        }
    return {"type": kind}


def follow(options: argparse.Namespace) -> None:
    model = bedstone.load(options.model)
    known, draw = tokenizer_of(model), random.Random(options.seed)
    valid = whole = lied = 0
    for number in range(options.schemas):
        wanted = schema(draw)
        settings = GenerationSettings(
            max_new_tokens=options.most, do_sample=True, top_k=0, seed=number, json_schema=wanted
        )
        way = settings.resolve({}, tokenizer=known)
        (one,) = write(model.network, known, ["The "], way, eos=model.end_ids)  # type: ignore[arg-type]
        whole += bool(one.complete)
        lied += bool(one.complete) and one.finish == "length"
        if one.complete:
            try:
                jsonschema.validate(json.loads(one.text), wanted)
                valid += 1
            except (ValueError, jsonschema.ValidationError) as error:
                print(f"invalid: {json.dumps(wanted)}: {one.text!r}: {str(error)[:100]}")
    low, high = interval(valid, max(whole, 1))
    print(f"valid: {valid} of {whole} that were whole ({low:.3f} to {high:.3f})")
    print(f"cut: {options.schemas - whole} of {options.schemas}; {lied} said otherwise")
    refused = 0
    for name in UNKNOWN:
        try:
            GenerationSettings(json_schema={"type": "object", name: {}}).resolve(
                {}, tokenizer=known
            )
        except BedstoneError:
            refused += 1
    print(f"refused: {refused} of {len(UNKNOWN)} keywords that aren't understood")


def cost(options: argparse.Namespace) -> None:
    model = bedstone.load(options.model)
    known, draw = tokenizer_of(model), random.Random(options.seed)
    network = ready(model.network, pick_precision(options.precision, pick_device("cpu")))  # type: ignore[arg-type]
    prompt = encode_prompt(known, "Here is an object:\n")
    taken: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(options.cost):
        wanted = {
            "type": "object",
            "properties": {name: schema(draw, 2) for name in WORDS[:6]},
            "required": list(WORDS[:6]),
            "additionalProperties": False,
        }
        common = {"max_new_tokens": 120, "seed": number, "prompt_lookup_num_tokens": 0}
        for name, more in (("with", {"json_schema": wanted}), ("without", {})):
            way = GenerationSettings(**common, **more).resolve({}, tokenizer=known)
            steps = stream(network, [prompt], way, eos=model.end_ids if more else ())  # type: ignore[arg-type]
            next(steps)  # the prompt, and what is made once
            began, count = time.perf_counter(), 0
            for _ in steps:
                count += 1
            if count > 20:
                taken[name].append((time.perf_counter() - began) / count)
    middle = {name: sorted(values)[len(values) // 2] for name, values in taken.items()}
    print(", ".join(f"{name} {1e3 * value:.2f} ms a token" for name, value in middle.items()))
    print(f"with a schema: {middle['with'] / middle['without'] - 1:+.1%} a token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="python-gpt")
    parser.add_argument("--schemas", type=int, default=500)
    parser.add_argument("--most", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", type=int, default=0)
    parser.add_argument("--precision", default="int8")
    options = parser.parse_args()
    (cost if options.cost else follow)(options)


if __name__ == "__main__":
    main()
