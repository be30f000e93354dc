"""Models that augment text: words for a place, paraphrases, translation there and back.

Each is a function for `data.text.augment.Augmenter`. What is sampled is drawn by the seed for each
text by itself, so a run that goes on makes the rows that it began with.
"""

from collections.abc import Callable
from typing import Any

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.text.augment import AugmentConfig
from bedstone.errors import BedstoneError
from bedstone.generation.sampling import Sampling
from bedstone.generation.text import write
from bedstone.tasks.pipeline import pipeline
from bedstone.tasks.text.text2text_generation import Text2TextGeneration

PARAPHRASE = "Say the sentence in other words.\nSentence: {text}\nIn other words:"
VARIED: dict[str, Any] = {
    "temperature": 0.8,
    "top_p": 0.95,
}  # sampling of what is to be said otherwise
PROPOSALS = 8  # words that a masked model proposes for a place

Rewrite = Callable[[list[str]], list[str]]


def augmenting_models(config: AugmentConfig) -> dict[str, Any]:
    """The models that a recipe names for new words and texts, as functions.

    Raises:
        BedstoneError: a model can't be opened, or can't do what it is named for.
    """
    found: dict[str, Any] = {}
    if config.fill:
        found["propose"] = proposer(open_model(config.fill))
    if config.paraphrase:
        found["paraphrase"] = paraphraser(open_model(config.paraphrase), config.seed)
    if config.back_translate:
        there, back = (open_model(name) for name in config.back_translate)
        found["back_translate"] = back_translator(there, back, config.seed)
    return found


def proposer(model: Model) -> Callable[[list[str], int], list[str]]:
    """Words that fit a place, by a masked language model."""
    fill = pipeline("fill-mask", model)
    mask = tokenizer_of(model).settings["mask_token"]

    def propose(words: list[str], place: int) -> list[str]:
        hidden = [*words[:place], mask, *words[place + 1 :]]
        found = fill(" ".join(hidden), top_k=PROPOSALS)
        return [each["token_str"].strip() for each in found]

    return propose


def paraphraser(model: Model, seed: int = 0) -> Rewrite:
    """One paraphrase of each text, sampled from a model that writes.

    Raises:
        BedstoneError: it is neither a GPT nor an encoder-decoder.
    """
    if Text2TextGeneration.fits(model):
        return rewriter(model, "text2text-generation", seed)
    if model.config.head.kind != "language" or not getattr(model.network, "causal", False):
        raise BedstoneError(
            f"augment.paraphrase: {model.path} doesn't write text; name a GPT that follows "
            "instructions, or an encoder-decoder."
        )
    tokenizer = tokenizer_of(model)

    def paraphrase(texts: list[str]) -> list[str]:
        prompts = [PARAPHRASE.format(text=text) for text in texts]
        how = Sampling(max_tokens=_most(model, texts), stop=("\n",), seed=seed, **VARIED)
        seeds = how.seeds(len(prompts))
        written = write(model.network, tokenizer, prompts, how, eos=model.end_ids, seeds=seeds)
        return [one.text.strip() for one in written]

    return paraphrase


def back_translator(there: Model, back: Model, seed: int = 0) -> Rewrite:
    """Each text translated by one model, sampled, and back by the other, at its best.

    Raises:
        BedstoneError: one is no encoder-decoder.
    """
    for model in (there, back):
        if not Text2TextGeneration.fits(model):
            raise BedstoneError(
                f"augment.back_translate: {model.path} doesn't translate; name an encoder-decoder "
                "that was trained to, such as an OPUS-MT."
            )
    first, second = rewriter(there, "translation", seed), rewriter(back, "translation")
    return lambda texts: second(first(texts))


def rewriter(model: Model, task: str, seed: int | None = None) -> Rewrite:
    """A text over each text, by an encoder-decoder; a blank one gives an empty one.

    Args:
        task: of the pipeline.
        seed: of sampling; None takes the likeliest text that beam search finds.
    """
    how: dict[str, Any] = (
        {} if seed is None else {"do_sample": True, "num_beams": 1, "seed": seed, **VARIED}
    )
    run: Any = pipeline(task, model, **how)

    def rewrite(texts: list[str]) -> list[str]:
        most = min(_most(model, texts), model.config.decoder.context - 1)
        return [str(found[f"{run.key}_text"]) for found in run(texts, max_new_tokens=most)]

    return rewrite


def _most(model: Model, texts: list[str]) -> int:
    """Tokens of a new text, at most: twice those of the longest text, and some."""
    return 2 * max(len(tokenizer_of(model).encode(text)) for text in texts) + 16
