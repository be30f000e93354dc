"""`bedstone evaluate` for an encoder with a word head: how well it restores hidden words."""

import json

from rich.console import Console
from rich.table import Table

from bedstone.checkpoints.artefact import Model, tokenizer_of
from bedstone.commands.pretrain_masked import figures, row_maker
from bedstone.commands.text_data import cached
from bedstone.config import PretrainRecipe
from bedstone.data.corruption import Corruption
from bedstone.data.masked_batches import evaluation_batches
from bedstone.data.sentences import Sentences
from bedstone.data.sources import open_source
from bedstone.errors import BedstoneError
from bedstone.objectives.masked import masked_scores
from bedstone.runtime import Precision


def evaluate_masked(
    model: Model,
    data: str,
    precision: Precision,
    *,
    column: str = "text",
    split: str | None = None,
    context: int | None = None,
    as_json: bool = False,
) -> dict[str, float]:
    """Prints and returns loss, perplexity and accuracy on hidden words, the same ones every time.

    15 % of the tokens are hidden as in training (80/10/10); pairs are asked too where the model has
    a head for them.

    Raises:
        BedstoneError: the model has no head for words, or the data can't be read.
    """
    kind = model.config.head.kind
    if kind not in ("language", "pretraining"):
        raise BedstoneError(
            f"{model.path}: has no head ({kind}), so there is nothing it could be measured by. "
            "Fine-tune it on a task, or use its embeddings: bedstone run feature-extraction."
        )
    tokenizer = tokenizer_of(model)
    longest = min(context or 128, model.config.context)
    recipe = PretrainRecipe(context=longest)
    source = open_source(data, text_column=column, split=split)
    tokens = cached(Sentences(source), tokenizer, 0.0, quiet=as_json).train
    corruption = Corruption.of(tokenizer, recipe.masking)
    rows = row_maker(tokenizer, tokens, corruption, recipe, kind == "pretraining")
    batches = evaluation_batches(rows, 32 * longest)
    scores = masked_scores(model.network, batches, precision)
    found = {name.removeprefix("validation_"): v for name, v in figures(scores).items()}
    if as_json:
        print(json.dumps({**found, "words": scores.words, "context": longest}))
        return found
    table = Table(title=f"{model.path} on {data}", show_header=False, title_justify="left")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    table.add_row("scored", f"{scores.words:,} hidden words, rows of {longest} tokens")
    Console().print(table)
    return found
