"""`bedstone generate`: text generation from prompts, streamed or in batches."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.commands.conversation import for_terminal
from bedstone.commands.remote import Asking, open_remote, refuse_for_remote, spent
from bedstone.data.text.chat import check_template, render
from bedstone.data.text.fim import fim_tokens, prompt_room, without_overlap
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import (
    BeamSearch,
    GenerationSettings,
    read_prediction,
    without_usual_length,
)
from bedstone.generation.structure import read_held
from bedstone.generation.text import (
    Searched,
    Written,
    encode_prompt,
    stream_text,
    write,
    write_beams,
)
from bedstone.remote.model import RemoteModel, Reply
from bedstone.runtime import Precision, pick_device, pick_precision
from bedstone.settings import optional, whole
from bedstone.tasks.pipeline import open_decoder

NEW_TOKENS = 200  # at most, where no length is given


@dataclass(frozen=True)
class PromptSettings(GenerationSettings):
    """Generation settings (default: the model's generation_config.json).

    Attributes:
        max_new_tokens: maximum number of tokens to generate (default: 200).
        max_tokens: the older name of --max-new-tokens.
        stop: stop at this text; may be given several times.
        force_words: of beam search: a word that must be in the continuation, or several of which
            one is enough, such as sea|ocean; may be given several times.
        bad_words: a word that is never generated, in any case; may be given several times.
        seed: random seed of the first continuation; each further one adds 1.
        prediction: file with a text that is expected to be generated, with differences, such as
            code that is to be edited: drafts are copied from it first.
        json_schema: a JSON schema that the text follows, or @FILE; true takes any object.
        choices: a text that may be generated; given several times, one of them is.
        grammar: a grammar in Lark's notation that the text follows, or @FILE.
    """

    max_tokens: int | None = optional(whole(1))
    stop: tuple[str, ...] = ()
    force_words: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    json_schema: str | None = None
    choices: tuple[str, ...] = ()
    seed: int = whole(0, 2**63 - 1, default=0)  # the same text each time

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens is not None and self.max_new_tokens is not None:
            raise BedstoneError("--max-tokens: was given beside --max-new-tokens. Leave one out.")
        if self.max_tokens is not None:
            object.__setattr__(self, "max_new_tokens", self.max_tokens)
            object.__setattr__(self, "max_tokens", None)


def generate(
    model: str,
    prompt: list[str],
    settings: PromptSettings,
    asking: Asking,
    log_probabilities: bool = False,
    suffix: str | None = None,
    *,
    chat: bool = False,
    as_json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Generate the continuation of one or more prompts; a single one is printed as a stream.

    Args:
        model: a folder, a name that `bedstone models` lists, a hub id, or one behind an endpoint,
            openai:NAME or http://host/v1#NAME.
        prompt: one or more texts; `-` reads one from standard input.
        log_probabilities: print each token with its log-probability.
        suffix: text that stands behind what is generated, of a model that learnt to fill in the
            middle.
        chat: read each prompt as a user's message, which the model's chat template wraps: what a
            model that learnt from instructions or conversations expects.
        as_json: print one JSON object per continuation.
        precision: of computation: auto, bf16, fp32, int8 or int4.
        device: auto, cpu, cuda or mps.

    Example:
        bedstone generate runs/gpt "def main(" --temperature 0.8 --max-new-tokens 100
        bedstone generate runs/lora-instruct "Name three rivers." --chat
        bedstone generate MODEL - --chat --prediction code.py < request.txt
        bedstone generate MODEL "Rate it: " --chat --choices good --choices bad
        bedstone generate runs/code-fim "def read(" --suffix "    return text"

    Raises:
        BedstoneError: the model can't be opened, or a setting is out of range.
    """
    settings = replace(
        settings,
        prediction=read_prediction(settings.prediction),
        json_schema=read_held(settings.json_schema, "--json-schema"),
        grammar=read_held(settings.grammar, "--grammar"),
    )
    texts = [sys.stdin.read() if text == "-" else text for text in prompt]
    if (remote := open_remote(model, asking)) is not None:
        refuse_for_remote(
            model, log_probabilities=log_probabilities, precision=precision, device=device
        )
        _ask(remote, texts, settings, chat, suffix, as_json)
        return
    how = pick_precision(precision, pick_device(device))
    opened = open_decoder(model, how.device)
    tokenizer = tokenizer_of(opened)
    ends = opened.end_ids
    published = without_usual_length(opened.generation)
    if suffix is not None:
        if chat:
            raise BedstoneError("--suffix: stands behind a text, not a message. Leave out --chat.")
        fim = fim_tokens(tokenizer, what="--suffix")
        most = settings.resolve(published, usual=NEW_TOKENS, tokenizer=tokenizer).max_tokens
        room = prompt_room(int(opened.config.context), most)
        prompts = [fim.prompt(text, suffix, room=room) for text in texts]
        for warning in dict.fromkeys(each.warning for each in prompts if each.warning):
            print(f"note: {warning}", file=sys.stderr)
        texts = list(prompts)
        tokenizer, ends = fim.tokenizer, ends | fim.stops
    elif chat:
        check_template(tokenizer, f"Leave out --chat: `bedstone generate {model}` continues texts.")
        texts = [render(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    elif tokenizer.chat_template:
        note = "note: the model has a chat template; --chat reads prompts as a user's messages"
        print(note, file=sys.stderr)
    lengths = [len(encode_prompt(tokenizer, text)) for text in texts]
    way = settings.resolve(published, max(lengths), usual=NEW_TOKENS, tokenizer=tokenizer)
    if isinstance(way, BeamSearch):
        if log_probabilities:
            raise BedstoneError(
                "log_probabilities: of each token aren't told of beam search. Leave it out; json "
                "has those of whole continuations."
            )
        _search(opened, tokenizer, ends, texts, suffix, way, how, as_json)
        return
    texts = [text for text in texts for _ in range(way.returned)]
    if len(texts) == 1 and not (as_json or log_probabilities) and suffix is None:
        _check_whole([_stream(opened, texts[0], way, how)], way)
        return
    written = write(opened.network, tokenizer, texts, way, eos=ends, precision=how)
    for text, one in zip(texts, written, strict=True):
        one.text = _middle(text, one.text, suffix)
        if as_json:
            print(json.dumps(_as_json(tokenizer, text, one, suffix), ensure_ascii=False))
        elif log_probabilities:
            print(text)
            parts = tokenizer.parts(encode_prompt(tokenizer, text), one.ids)
            for part, logprob in zip(parts, one.log_probabilities, strict=True):
                print(f"{logprob:9.4f}  {part!r}")
        else:
            print(f"{text}{one.text}{suffix or ''}")
            if len(texts) > 1 or suffix is None:
                print("-" * 40)
    _check_whole([one.complete for one in written], way)


def _ask(
    model: RemoteModel,
    texts: list[str],
    settings: PromptSettings,
    chat: bool,
    suffix: str | None,
    as_json: bool,
) -> None:
    """The same by a model behind an endpoint, several prompts at a time."""
    if chat and suffix is not None:
        raise BedstoneError("--suffix: stands behind a text, not a message. Leave out --chat.")
    if settings.max_new_tokens is None:
        settings = replace(settings, max_new_tokens=NEW_TOKENS)

    def replies(text: str) -> list[Reply]:
        if chat:
            return model.chat([{"role": "user", "content": text}], settings)
        return model.complete(text, settings, suffix=suffix)

    cut = 0
    for text, found in zip(texts, model.map(replies, texts), strict=True):
        for one in found:
            written = _middle(text, one.text, suffix)
            cut += one.complete is False
            whole = {} if one.complete is None else {"complete": one.complete}
            if as_json:
                line = {"prompt": text, "generated_text": written, "finish_reason": one.finish}
                print(json.dumps({**line, **whole}, ensure_ascii=False))
            else:
                print(for_terminal(written if chat else f"{text}{written}{suffix or ''}"))
                if len(texts) > 1 or len(found) > 1:
                    print("-" * 40)
    print(f"note: {spent(model)}", file=sys.stderr)
    if cut:
        raise BedstoneError(
            f"json_schema: {cut} texts were cut before they were whole. Raise --max-new-tokens, "
            f"which is {settings.max_new_tokens}."
        )


def _check_whole(complete: Sequence[bool | None], way: Sampling) -> None:
    """Raises BedstoneError where a text of a given form was cut."""
    if way.form is not None and not all(complete):
        raise BedstoneError(
            f"{way.form.kind}: {complete.count(False)} of {len(complete)} texts were cut before "
            f"they were whole. Raise --max-new-tokens, which is {way.max_tokens}."
        )


def _middle(prompt: str, text: str, suffix: str | None) -> str:
    """What was generated, without what a suffix repeats."""
    return text if suffix is None else without_overlap(prompt, text, suffix)


def _search(
    model: Model,
    tokenizer: Tokenizer,
    ends: Collection[int],
    texts: list[str],
    suffix: str | None,
    search: BeamSearch,
    how: Precision,
    as_json: bool,
) -> None:
    found = write_beams(model.network, tokenizer, texts, search, eos=ends, precision=how)
    for prompt, own in zip(texts, found, strict=True):
        for one in own:
            one = replace(one, text=_middle(prompt, one.text, suffix))
            if as_json:
                print(
                    json.dumps(_searched_json(tokenizer, prompt, one, suffix), ensure_ascii=False)
                )
            else:
                print(f"{prompt}{one.text}{suffix or ''}")
                if len(texts) > 1 or len(own) > 1:
                    print("-" * 40)


def _stream(model: Model, prompt: str, sampling: Sampling, precision: Precision) -> bool | None:
    """Prints a text as it comes; whether it is whole, where it has a given form."""
    complete = None
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
        complete = piece.step.complete
    print()
    return complete


def _as_json(
    tokenizer: Tokenizer, prompt: str, written: Written, suffix: str | None
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        **({} if suffix is None else {"suffix": suffix}),
        "generated_text": written.text,
        "finish_reason": written.finish,
        **({} if written.complete is None else {"complete": written.complete}),
        "tokens": tokenizer.parts(encode_prompt(tokenizer, prompt), written.ids),
        "log_probabilities": written.log_probabilities,
    }


def _searched_json(
    tokenizer: Tokenizer, prompt: str, found: Searched, suffix: str | None
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        **({} if suffix is None else {"suffix": suffix}),
        "generated_text": found.text,
        "finish_reason": found.finish,
        "tokens": tokenizer.parts(encode_prompt(tokenizer, prompt), found.ids),
        "score": found.score,
        "log_probability": found.log_probability,
    }
