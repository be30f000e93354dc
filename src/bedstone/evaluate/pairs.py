"""Rows of a source and a target for a model: which columns and languages it is measured on."""

from collections.abc import Mapping

from bedstone.checkpoints.model import Model
from bedstone.data.dataset import Dataset
from bedstone.data.text.seq2seq import TRANSLATION, pairs_of
from bedstone.errors import BedstoneError
from bedstone.tasks.pipeline import named_options

MEASURED = ("translation", "summarization")
LANGUAGES = ("src_lang", "tgt_lang")  # options of a task


def pair_rows(
    rows: Dataset, task: str, model: Model, languages: tuple[str, str] = ("", "")
) -> tuple[Dataset, tuple[str, str]]:
    """Rows of a source and a target as two columns, and their languages where they are known.

    Languages are those given, those in the task's name, those that the model learnt, or those that
    its tokenizer says.

    Raises:
        BedstoneError: as of `data.text.seq2seq.pairs_of`.
    """
    named = named_options(task)
    given = tuple(
        own or named.get(name, "") for own, name in zip(languages, LANGUAGES, strict=True)
    )
    recipe = model.record.get("recipe")
    section = recipe.get("data") if isinstance(recipe, Mapping) else None
    learnt = section if isinstance(section, Mapping) else {}
    settings = {} if model.tokenizer is None else model.tokenizer.settings
    known = tuple(
        str(own or learnt.get(name) or settings.get(name) or "")
        for own, name in zip(given, ("source_lang", "target_lang"), strict=True)
    )
    have = {key for row in rows.rows for key in row}
    chosen = bool(rows.columns)
    by_language = not chosen and (TRANSLATION in have or have.issuperset(known))
    read = known if by_language or (any(languages) and not chosen) else ("", "")
    pairs = pairs_of(rows, rows.columns, read[0], read[1], several=True)
    made = [
        {"source": source, "target": target}
        for source, target in zip(pairs.sources, pairs.targets, strict=True)
    ]
    columns = {"source": "source", "target": "target"}
    places = [pairs.rows.where(number) for number in range(len(pairs))]
    reading = pairs.rows.reading
    return Dataset(made, rows.name, columns, places=places, reading=reading), (known[0], known[1])


def learnt_task(model: Model) -> str:
    """The task that an encoder-decoder learnt.

    Raises:
        BedstoneError: its record says none.
    """
    recipe = model.record.get("recipe")
    task = recipe.get("task") if isinstance(recipe, dict) else None
    if task not in MEASURED:
        raise BedstoneError(
            f"{model.path}: writes texts over sources, and its record doesn't say for which task "
            "it learnt that. Give --task translation or --task summarization."
        )
    return str(task)
