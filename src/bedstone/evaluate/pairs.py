"""Rows of a source and a target for a model: which columns and languages it is measured on."""

from collections.abc import Mapping
from typing import Any

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

    Languages are those of `languages_of`.

    Raises:
        BedstoneError: as of `data.text.seq2seq.pairs_of`.
    """
    known = languages_of(task, model, languages)
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


def languages_of(task: str, model: Model, languages: tuple[str, str] = ("", "")) -> tuple[str, str]:
    """Of sources and targets: those given, those in the task's name, those that the model learnt,
    or those that its tokenizer says; empty where nothing says them."""
    named = named_options(task)
    recipe = model.record.get("recipe")
    section = recipe.get("data") if isinstance(recipe, Mapping) else None
    learnt = dict(section) if isinstance(section, Mapping) else {}
    if isinstance(learnt.get("target_lang"), list):  # it writes several, and figures are of one
        del learnt["target_lang"]
    settings = {} if model.tokenizer is None else model.tokenizer.settings
    source, target = (
        str(own or named.get(option, "") or learnt.get(name) or settings.get(name) or "")
        for own, option, name in zip(
            languages, LANGUAGES, ("source_lang", "target_lang"), strict=True
        )
    )
    return source, target


def source_texts(rows: Dataset, language: str) -> list[Any]:
    """What is read of each row: the column of sources, or in `translation` that of a language.

    Raises:
        BedstoneError: there is no such column, or the language isn't known.
    """
    have = {key for row in rows.rows for key in row}
    if rows.column("source") is None and not rows.columns:
        if TRANSLATION in have:
            if not language:
                raise BedstoneError(
                    f"src_lang: isn't given, and {rows.name!r} has texts in several languages. Say "
                    "which is read, such as --option src_lang=en."
                )
            cells = [row.get(TRANSLATION) for row in rows.rows]
            return [cell.get(language) if isinstance(cell, Mapping) else None for cell in cells]
        if language in have:
            return [row.get(language) for row in rows.rows]
    name = rows.need("source")
    return [row.get(name) for row in rows.rows]


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
