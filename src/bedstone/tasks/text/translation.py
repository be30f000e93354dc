"""translation: texts in another language, and `translation_xx_to_yy` with its two languages.

A model says the languages in one of three ways: one that writes several, such as a Marian, has a
token for each, `>>de<<`, which goes before the source; a T5 has a prefix for each pair ("translate
English to German: "); any other has one pair.
"""

import re
from dataclasses import dataclass
from typing import Any

from bedstone.data.text.tokenizer import language_token
from bedstone.errors import BedstoneError, nearest
from bedstone.tasks.task import shown
from bedstone.tasks.text.text2text_generation import (
    Text2TextGeneration,
    Text2TextOptions,
    pair_names,
)

_CODE = re.compile(r"\s*(>>[^<>\s]+<<)\s*")


@dataclass(frozen=True)
class TranslationOptions(Text2TextOptions):
    """Options of translation: those of text2text-generation, and the languages.

    Attributes:
        src_lang: the language of sources, as the model names it, such as en.
        tgt_lang: the language to translate to.
    """

    src_lang: str | None = None
    tgt_lang: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("src_lang", "tgt_lang"):
            value = getattr(self, name)
            if not isinstance(value, str | None) or value == "":
                raise BedstoneError(
                    f"{name}: {shown(value)} was given; expected a language's code, such as 'de'."
                )


class Translation(Text2TextGeneration):
    """A text -> [{"translation_text": ...}]; the same as text2text-generation in all else."""

    name = "translation"
    settings = TranslationOptions
    key = "translation"
    fields = ("source", "target")
    metric = "translations"

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        self.lead("", self.options)  # languages that it doesn't know are named now

    def lead(self, text: str, options: TranslationOptions) -> tuple[str, str]:
        if options.prefix is not None:
            return options.prefix, text
        codes = self.tokenizer.languages
        if codes:
            self._check("src_lang", options.src_lang)
            return self._code(text, options, codes)
        prefixes = self.model.config.prefixes
        pair = f"translation_{options.src_lang}_to_{options.tgt_lang}"
        if options.tgt_lang is None:
            return prefixes.get(self.name, self.model.config.prefix), text
        if pair in prefixes:
            return prefixes[pair], text
        if known := pair_names(prefixes):
            raise BedstoneError(
                f"src_lang, tgt_lang: the model has no prefix for {pair}{nearest(pair, known)}. "
                "Give one of these, or prefix."
            )
        self._check("src_lang", options.src_lang)
        self._check("tgt_lang", options.tgt_lang)
        return self.model.config.prefix, text

    def _check(self, name: str, given: str | None) -> None:
        """Raises BedstoneError for another language than the model's only one."""
        own = "source_lang" if name == "src_lang" else "target_lang"
        knows = self.tokenizer.settings.get(own)
        if None not in (given, knows) and given != knows:
            raise BedstoneError(
                f"{name}: {given!r} was given; the model's {own} is {knows!r}. Leave it out, "
                "or choose another model."
            )

    def _code(self, text: str, options: TranslationOptions, codes: list[str]) -> tuple[str, str]:
        """The token of the language to translate to."""
        if found := _CODE.match(text):  # it counts first; every part of a long source needs it
            return f"{found[1]} ", text[found.end() :]
        if options.tgt_lang is not None:
            if options.tgt_lang not in codes:
                raise BedstoneError(
                    f"tgt_lang: {options.tgt_lang!r} is no language of the model's"
                    f"{nearest(options.tgt_lang, codes)}."
                )
            return f"{language_token(options.tgt_lang)} ", text
        if len(codes) == 1:
            return f"{language_token(codes[0])} ", text
        if text:
            self.tell(
                f"the model translates to {', '.join(codes[:8])}; give one of them as tgt_lang, or "
                "before a source as >>code<<. Without it, the language is a matter of chance.",
                once="language",
            )
        return "", text
