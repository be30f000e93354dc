"""Synonyms of a thesaurus file, or of the database of WordNet.

A thesaurus is a JSON object of lists, or lines `word: other, another` or `word<TAB>other<TAB>...`.
WordNet (Miller, 1995; file formats in its manual page wndb) is a folder of `index.*` and `data.*`;
Debian and Ubuntu have it as the package wordnet-base, in /usr/share/wordnet.

Only the very form of a word is looked up: the synonyms of an inflected one would be base forms,
and the sentence would no longer agree.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError

Synonyms = Callable[[str], tuple[str, ...]]  # of a word in lower case; () where none is known

PARTS = ("noun", "verb", "adj", "adv")
SENSES = 2  # of a word, the most frequent ones; rarer ones seldom fit

Sense = tuple[str, int]  # part of speech, offset in its data

# WordNet knows these as rare nouns and verbs (`in` as indium, `does` as plural of doe).
FUNCTION_WORDS = (
    "a about after all am an and any are as at back be been before being but by can could did do "
    "does done down each even few for from get go had has have having he her here hers him his "
    "how i if in into is it its just like may me might mine more most much must my no nor not now "
    "of off on once one only or other our out over own same shall she should so some such than "
    "that the their them then there these they this those through to too two under until up upon "
    "us very was we well were what when where which while who whom why will with would you your "
)


def read_synonyms(path: str | Path) -> Synonyms:
    """The synonyms of a thesaurus file or a folder of WordNet's database.

    Raises:
        BedstoneError: it can't be read, or is neither.
    """
    path = Path(path)
    if path.is_dir():
        return WordNet(path)
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode()
    except OSError as error:
        raise BedstoneError(
            f"{path}: the thesaurus can't be read ({error.strerror}); expected a file of "
            "`word: other, another` lines, TSV or JSON, or the folder of WordNet's database."
        ) from error
    except UnicodeDecodeError as error:
        raise BedstoneError(f"{path}: is not UTF-8 (byte {error.start:,}); save it so.") from error
    words = _from_json(path, text) if path.suffix == ".json" else _from_lines(path, text)
    if not words:
        raise BedstoneError(f"{path}: the thesaurus holds no words.")
    return lambda word: words.get(word, ())


class WordNet:
    """Words of the same synset, of the most frequent senses of a word's most frequent part of
    speech. Names are left out, and irregular forms (`saw` is seldom the tool).

    Raises:
        BedstoneError: the folder lacks its files, or they don't belong together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data: dict[str, bytes] = {}
        self.senses: dict[str, list[Sense]] = {}
        tagged: dict[str, int] = {}  # senses found in tagged text, of the part that has most
        skipped = set(FUNCTION_WORDS.split())
        for part in PARTS:
            try:
                self.data[part] = (folder / f"data.{part}").read_bytes()
                index = (folder / f"index.{part}").read_text(encoding="utf-8")
                forms = folder / f"{part}.exc"
                lines = forms.read_text(encoding="utf-8").splitlines() if forms.exists() else []
            except (OSError, UnicodeDecodeError) as error:
                raise BedstoneError(
                    f"{folder}: is not a folder of WordNet's database: index.{part} or "
                    f"data.{part} can't be read. It needs both for {', '.join(PARTS)}."
                ) from error
            skipped |= {line.partition(" ")[0] for line in lines}
            for number, line in enumerate(index.splitlines(), 1):
                if line.startswith("  "):  # the licence
                    continue
                word, count, offsets = self._entry(part, line.split(), number)
                if count > tagged.get(word, -1):
                    tagged[word] = count
                    self.senses[word] = [(part, offset) for offset in offsets[:SENSES]]
        for word in skipped:
            self.senses.pop(word, None)

    def _entry(self, part: str, fields: list[str], number: int) -> tuple[str, int, list[int]]:
        """lemma, pos, synsets, p, p pointers, senses, tagged senses, offsets of the synsets."""
        try:
            after = 4 + int(fields[3])
            count, offsets = int(fields[after + 1]), [int(item) for item in fields[after + 2 :]]
            if len(offsets) != int(fields[2]):
                raise ValueError("another number of synsets than it says")
        except (IndexError, ValueError) as error:
            raise BedstoneError(
                f"{self.folder / f'index.{part}'}: line {number:,} is not WordNet's ({error}); "
                "fetch the database again."
            ) from error
        return fields[0], count, offsets

    def __call__(self, word: str) -> tuple[str, ...]:
        others = (other for sense in self.senses.get(word, ()) for other in self._synset(*sense))
        return tuple(o for o in _others(word, others) if len(o) > 1 and o == o.lower())

    def _synset(self, part: str, offset: int) -> list[str]:
        """offset, file, kind, words in hexadecimal, then each word and a number."""
        data = self.data[part]
        end = data.find(b"\n", offset)
        fields = data[offset:end].decode("utf-8", "replace").split(" ")
        if offset >= len(data) or not fields[0].isdigit() or int(fields[0]) != offset:
            raise BedstoneError(
                f"{self.folder}: index.{part} and data.{part} are not of one version of WordNet; "
                "fetch the database again."
            )
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        return [word.partition("(")[0].replace("_", " ") for word in words]


def _from_json(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BedstoneError(f"{path}: is not valid JSON ({error}).") from error
    if not isinstance(loaded, dict):
        raise BedstoneError(f'{path}: expected an object such as {{"film": ["movie"]}}.')
    return _merged((word, _listed(path, word, others)) for word, others in loaded.items())


def _listed(path: Path, word: str, others: Any) -> list[str]:
    if isinstance(others, str):
        return others.split(",")
    if isinstance(others, list) and all(isinstance(other, str) for other in others):
        return others
    raise BedstoneError(f"{path}: {word!r} has {others!r}; expected a list of words.")


def _from_lines(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        mark = "\t" if "\t" in line else ":"
        word, found, others = line.partition(mark)
        if not found or not word.strip():
            raise BedstoneError(
                f"{path}: line {number:,} is {line[:60]!r}; expected `word: other, another` or "
                "tabs between them."
            )
        pairs.append((word, others.replace("\t", ",").split(",")))
    return _merged(pairs)


def _merged(pairs: Iterable[tuple[str, Iterable[str]]]) -> dict[str, tuple[str, ...]]:
    words: dict[str, tuple[str, ...]] = {}
    for word, others in pairs:
        word = word.strip().lower()
        words[word] = _others(word, [*words.get(word, ()), *others])
    return words


def _others(word: str, others: Iterable[str]) -> tuple[str, ...]:
    """The other words, each once, in their order, without the word itself."""
    stripped = dict.fromkeys(" ".join(other.split()) for other in others)
    return tuple(other for other in stripped if other and other.lower() != word)
