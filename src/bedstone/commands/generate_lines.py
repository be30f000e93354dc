"""The signature of `bedstone generate`."""

from typing import Literal


def generate_(
    model: str,
    prompt: list[str],
    max_new_tokens: int | None = None,
    max_tokens: int | None = None,
    min_new_tokens: int | None = None,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | Literal["never"] | None = None,
    num_return_sequences: int | None = None,
    stop: list[str] = [],  # noqa: B006, a signature is the command line
    seed: int = 0,
    log_probabilities: bool = False,
    json: bool = False,
    precision: str = "auto",
    device: str = "auto",
) -> None:
    """Continue a prompt, or several at once, with a model.

    Settings that aren't given are those of the model's generation_config.json.

    Args:
        model: a folder or a hub id.
        prompt: one or more texts; `-` reads one from standard input.
        max_new_tokens: tokens to add, at most; 200.
        max_tokens: the same, by its older name.
        min_new_tokens: no end token before so many; with beams, or without chance.
        do_sample: whether to draw tokens by chance; of itself where temperature and such are given.
        temperature: 0 takes the likeliest token; higher is more varied.
        top_k: choose among the k likeliest tokens.
        top_p: choose among the likeliest tokens that sum to this probability.
        min_p: choose among tokens at least this share as likely as the likeliest.
        repetition_penalty: above 1 makes tokens that were there less likely.
        no_repeat_ngram_size: so many tokens never come twice in the same order.
        num_beams: 2 or more search for the likeliest continuation, instead of sampling.
        length_penalty: of that search: above 0 favours longer continuations, below 0 shorter.
        early_stopping: whether that search stops at as many ended continuations as beams; or never.
        num_return_sequences: continuations of each prompt, by chance or of as many beams or more.
        stop: end at this text; may be given several times.
        seed: of the sampling.
        log_probabilities: print each token with its log-probability.
        json: print one JSON object a prompt.
        precision: auto, bf16 or fp32.
        device: auto, cpu, cuda, mps.
    """
    from bedstone.commands.generate import generate
    from bedstone.errors import BedstoneError
    from bedstone.generation.settings import GenerationSettings

    if max_new_tokens is not None and max_tokens is not None:
        raise BedstoneError("--max-tokens: was given beside --max-new-tokens. Leave one out.")
    most = max_new_tokens if max_tokens is None else max_tokens
    settings = GenerationSettings(
        max_new_tokens=200 if most is None else most,
        min_new_tokens=min_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_return_sequences=num_return_sequences,
        stop=stop,
        seed=seed,
    )
    generate(
        model,
        prompt,
        settings,
        log_probabilities=log_probabilities,
        as_json=json,
        precision=precision,
        device=device,
    )
