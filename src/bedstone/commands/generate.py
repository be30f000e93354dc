"""`bedstone generate`: continue prompts, streamed as they are written."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.checkpoints.opening import open_model
from bedstone.data.tokenizer import Tokenizer
from bedstone.generation.sampling import Sampling, published
from bedstone.generation.text import Written, stream_text, write
from bedstone.runtime import Precision, pick_device, pick_precision


def generate(
    path: str,
    prompts: Sequence[str],
    settings: Mapping[str, Any],
    *,
    log_probabilities: bool = False,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Prints the continuation of each prompt; of a single one as it comes.

    Args:
        path: a folder or a hub id.
        prompts: texts; `-` is standard input.
        settings: fields of `Sampling`; None is as the model has it.

    Raises:
        BedstoneError: the model can't be opened, or a setting is out of range.
    """
    how = pick_precision(precision, pick_device(device))
    model = open_model(path, device=how.device)
    tokenizer = tokenizer_of(model)
    sampling = sampling_of(model, settings)
    texts = [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]
    if len(texts) == 1 and not (as_json or log_probabilities):
        _stream(model, texts[0], sampling, how)
        return
    written = write(model.network, tokenizer, texts, sampling, eos=model.end_ids, precision=how)
    for prompt, one in zip(texts, written, strict=True):
        if as_json:
            print(json.dumps(_as_json(tokenizer, prompt, one), ensure_ascii=False))
        elif log_probabilities:
            print(prompt)
            for number, logprob in zip(one.ids, one.log_probabilities, strict=True):
                print(f"{logprob:9.4f}  {tokenizer.decode([number], skip_special=False)!r}")
        else:
            print(f"{prompt}{one.text}\n" + "-" * 40)


def sampling_of(model: Model, settings: Mapping[str, Any]) -> Sampling:
    """`settings`, filled up with what the model's generation_config.json says."""
    chosen = {key: value for key, value in settings.items() if value is not None}
    return Sampling(**{**published(model.generation), **chosen})


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
