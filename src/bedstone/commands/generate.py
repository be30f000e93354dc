"""`bedstone generate`: continue prompts, streamed as they are written."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.checkpoints.pipeline import DiffusionPipeline
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch, GenerationSettings
from bedstone.generation.text import Searched, Written, stream_text, write, write_beams
from bedstone.runtime import Precision, pick_device, pick_precision


def generate(
    path: str,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    log_probabilities: bool = False,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Prints the continuations of each prompt; a single one as it comes.

    Args:
        path: a folder or a hub id.
        prompts: texts; `-` is standard input.
        settings: what isn't given is as the model's generation_config.json has it.

    Raises:
        BedstoneError: the model can't be opened, or a setting is out of range.
    """
    how = pick_precision(precision, pick_device(device))
    model = open_model(path, device=how.device)
    if isinstance(model, DiffusionPipeline):
        raise BedstoneError(
            f"{path}: draws {model.signal.kind} and writes no text; draw with `bedstone imagine`."
        )
    tokenizer = tokenizer_of(model)
    way = settings.resolve(model.generation)
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    if isinstance(way, BeamSearch):
        if log_probabilities:
            raise BedstoneError(
                "log_probabilities: of each token aren't told of beam search. Leave it out; json "
                "has those of whole continuations."
            )
        _search(model, texts, way, how, as_json)
        return
    texts = [text for text in texts for _ in range(way.returned)]
    if len(texts) == 1 and not (as_json or log_probabilities):
        _stream(model, texts[0], way, how)
        return
    written = write(model.network, tokenizer, texts, way, eos=model.end_ids, precision=how)
    for prompt, one in zip(texts, written, strict=True):
        if as_json:
            print(json.dumps(_as_json(tokenizer, prompt, one), ensure_ascii=False))
        elif log_probabilities:
            print(prompt)
            for number, logprob in zip(one.ids, one.log_probabilities, strict=True):
                print(f"{logprob:9.4f}  {tokenizer.decode([number], skip_special=False)!r}")
        else:
            print(f"{prompt}{one.text}\n" + "-" * 40)


def _search(
    model: Model, texts: list[str], search: BeamSearch, how: Precision, as_json: bool
) -> None:
    tokenizer = tokenizer_of(model)
    found = write_beams(model.network, tokenizer, texts, search, eos=model.end_ids, precision=how)
    for prompt, own in zip(texts, found, strict=True):
        for one in own:
            if as_json:
                print(json.dumps(_searched_json(tokenizer, prompt, one), ensure_ascii=False))
            else:
                print(f"{prompt}{one.text}")
                if len(texts) > 1 or len(own) > 1:
                    print("-" * 40)


def _stream(model: Model, prompt: str, sampling: Sampling, precision: Precision) -> None:
    print(prompt, end="", flush=True)
    for piece in stream_text(
        model.network,
        tokenizer_of(model),
        [prompt],
        sampling,
        eos=model.end_ids,
        precision=precision,
    ):
        print(piece.text, end="", flush=True)
    print()


def _as_json(tokenizer: Tokenizer, prompt: str, written: Written) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "generated_text": written.text,
        "finish_reason": written.finish,
        "tokens": [tokenizer.decode([number], skip_special=False) for number in written.ids],
        "log_probabilities": written.log_probabilities,
    }


def _searched_json(tokenizer: Tokenizer, prompt: str, found: Searched) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "generated_text": found.text,
        "finish_reason": found.finish,
        "tokens": [tokenizer.decode([number], skip_special=False) for number in found.ids],
        "score": found.score,
        "log_probability": found.log_probability,
    }
