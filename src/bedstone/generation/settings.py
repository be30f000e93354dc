"""Settings of text generation: sampling and beam search, by the names that `transformers` has."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bedstone.errors import BedstoneError
from bedstone.generation.constraints import FILE, NONE, Constraints, constraints_of
from bedstone.generation.required import CLOSED, Word, banned_words, parse_words, words_of
from bedstone.generation.structure import KINDS, read_form
from bedstone.reading import read_text, shown, to_path
from bedstone.settings import Settings, check_whole, number, optional, share, whole

if TYPE_CHECKING:
    from bedstone.data.text.tokenizer import Tokenizer
    from bedstone.generation.sampling import Sampling

# Fields of `BeamSearch` by the names that `generate` and generation_config.json have.
PUBLISHED = {
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "returned",
    "max_new_tokens": "max_tokens",
    "repetition_penalty": "repetition_penalty",
}
# Those that version 5 of transformers has no more, and one of CTranslate2.
MORE = {
    "num_beam_groups": "groups",
    "diversity_penalty": "diversity",
    "force_words_ids": "required",
    "return_alternatives": "alternatives",
}
MINIMA = {"beams": 1, "groups": 1, "returned": 1, "max_tokens": 1}
MINIMA |= {"no_repeat_ngram": 0, "min_tokens": 0}
RANGES = {"length_penalty": (-10, 10), "repetition_penalty": (0.01, 100)}  # from, to
RANGES["diversity"] = (0, 1_000_000)
SAMPLED = ("temperature", "top_k", "top_p", "min_p")  # settings that ask for chance
# settings that only beams have
OF_BEAMS = (
    "length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty", "force_words",
    "force_words_ids", "return_alternatives",
)  # fmt: skip
LISTS = ("stop", "force_words", "bad_words", "choices")  # settings that may have several texts
OF_ONE = ("prompt_lookup_num_tokens", "prediction", *KINDS)  # that a continuation of its own has
CUTOFFS = ("typical_p", "epsilon_cutoff", "eta_cutoff")  # published ones that need chance
TOP_K = 50  # of published models that say nothing, as in transformers
USUAL_LENGTH = 20  # a max_length that older files hold because it was the default
PREDICTION_LIMIT = 1 << 20  # bytes of a file that holds one
NEW_TOKENS = 256  # as in version 4 of transformers, where nothing says how many


@dataclass(frozen=True)
class BeamSearch:
    """Settings of beam search; in brackets the published names.

    Attributes:
        beams: followed at a time (num_beams); 1 is greedy.
        length_penalty: the power of the length that a sum of log-probabilities is divided by:
            above 0 favours longer continuations, below 0 shorter ones.
        early_stopping: True stops at as many ended continuations as there are beams; False when
            the best beam, at its length now, wouldn't be among them; "never" when it couldn't be
            at any length.
        no_repeat_ngram: so many tokens never come twice in the same order; 0 lets them
            (no_repeat_ngram_size).
        min_tokens: no end token before so many (min_new_tokens).
        returned: continuations to give of each prompt, best first (num_return_sequences).
        max_tokens: the most tokens to generate (max_new_tokens).
        repetition_penalty: above 1 makes what a beam already holds less likely.
        constraints: on the next token, of a model's generation_config.json.
        groups: that the beams are divided into, which step one after another (num_beam_groups).
        diversity: what a group's token loses for each beam of the groups before it that takes the
            same one in the same step (diversity_penalty).
        required: words that every continuation holds (force_words_ids).
        alternatives: whether the `returned` likeliest next tokens are each continued by their best
            (return_alternatives, as in CTranslate2).
        joining: tokens that go on with a word; none follows a word that is required by its text.

    Raises:
        BedstoneError: a value is out of range, or two don't fit.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram: int = 0
    min_tokens: int = 0
    returned: int = 1
    max_tokens: int = 64
    repetition_penalty: float = 1.0
    constraints: Constraints = NONE
    groups: int = 1
    diversity: float = 0.0
    required: tuple[Word, ...] = ()
    alternatives: bool = False
    joining: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        words = parse_words(self.required, "force_words_ids", CLOSED)
        object.__setattr__(self, "required", words)
        if not isinstance(self.alternatives, bool):
            raise BedstoneError(
                f"return_alternatives: {self.alternatives!r} was given; expected true or false."
            )
        for name, field in (PUBLISHED | MORE).items():
            value = getattr(self, field)
            if field in MINIMA:
                check_whole(name, value, MINIMA[field])
            elif field in RANGES:
                least, most = RANGES[field]
                if type(value) not in (int, float) or not least <= value <= most:
                    raise BedstoneError(
                        f"{name}: {value!r} was given; expected a number from {least} to {most}."
                    )
            elif name == "early_stopping" and not (isinstance(value, bool) or value == "never"):
                raise BedstoneError(
                    f'{name}: {value!r} was given; expected true, false or "never".'
                )
        if self.required:
            self.check_words()
        self._check_groups()
        if self.returned > self.beams and not self.alternatives:
            raise BedstoneError(
                f"num_return_sequences: {self.returned} continuations were asked for, and "
                f"num_beams, {self.beams}, gives no more than {self.beams}. Raise the one, or "
                "lower the other."
            )
        if self.min_tokens > self.max_tokens:
            raise BedstoneError(
                f"min_new_tokens: is {self.min_tokens}, more than max_new_tokens, "
                f"{self.max_tokens}. Lower the one, or raise the other."
            )

    def check_words(self) -> None:
        """Raises BedstoneError where words can't be required."""
        if self.beams == 1 or self.groups > 1:
            name, value = ("num_beam_groups", self.groups) if self.groups > 1 else ("num_beams", 1)
            raise BedstoneError(
                f"{name}: is {value}, and words that must occur are found by beams of one group. "
                "Give num_beams of 2 or more and no groups, or no words."
            )

    def _check_groups(self) -> None:
        if self.beams % self.groups:
            raise BedstoneError(
                f"num_beam_groups: {self.groups} groups can't share {self.beams} beams evenly. "
                "Give num_beams that is a multiple of it."
            )
        if self.diversity and self.groups == 1:
            raise BedstoneError(
                f"diversity_penalty: {self.diversity} was given, and keeps apart groups of beams; "
                "there is one. Give num_beam_groups of 2 or more, or leave it out."
            )
        if self.alternatives and self.groups > 1:
            raise BedstoneError(
                f"return_alternatives: was given beside num_beam_groups {self.groups}. Leave one "
                "of the two out."
            )

    @property
    def each(self) -> int:
        """Beams of a group."""
        return self.beams // self.groups

    @property
    def early(self) -> bool:
        """Whether the first continuations to end are enough; of one beam they are."""
        return self.early_stopping is True or self.beams == 1

    def scored(self, total: float, length: int) -> float:
        """What continuations are compared by: log-probability `total` of `length` tokens."""
        return total / length**self.length_penalty


@dataclass(frozen=True)
class GenerationSettings(Settings):
    """Settings of text generation; None takes the model's generation_config.json.

    Attributes:
        max_new_tokens: maximum number of tokens to generate.
        max_length: maximum length of prompt and continuation in tokens, if `max_new_tokens` isn't
            given.
        min_new_tokens: minimum number of tokens before the end token.
        do_sample: whether to sample tokens; by default whether one of
            `temperature`, `top_k`, `top_p` and `min_p` is given, or the model's own setting.
        temperature: of sampling; 0 takes the most likely token, higher values are more varied.
        top_k: sample among the k most likely tokens, 50 by default as in transformers; 0 among all.
        top_p: sample among the most likely tokens that sum to this probability, 0 to 1.
        min_p: sample among tokens with at least this share of the highest probability, 0 to 1.
        repetition_penalty: above 1 makes tokens of the text so far less likely; 1 turns it off.
        no_repeat_ngram_size: n-grams of this size are never repeated; 0 turns it off.
        num_beams: number of beams; 2 or more turn on beam search.
        length_penalty: of beam search: above 0 favours longer continuations, below 0 shorter.
        early_stopping: of beam search: whether to stop at as many finished continuations as beams;
            or never.
        num_beam_groups: diverse beam search: number of groups that the beams are divided into.
        diversity_penalty: of groups: what a token loses for each beam of the groups before that has
            it in the same step.
        force_words: of beam search: words that must be in the continuation; sea|ocean asks for one
            of the two.
        force_words_ids: the same as lists of token ids, or lists of such lists of which one is
            enough, as in version 4 of transformers.
        bad_words: words that are never generated, with and without a space before them, in small
            letters, capitals, and with a capital first.
        encoder_no_repeat_ngram_size: n-grams of this size of the source are never generated; of a
            model without an encoder the source is the prompt. 0 turns it off.
        encoder_repetition_penalty: above 1 makes tokens of the source more likely; 1 turns it off.
        num_return_sequences: continuations per prompt; of beam search the best, best first.
        return_alternatives: of beam search: the likeliest next tokens, each with its best
            continuation: so many, or with true as many as `num_return_sequences`.
        stop: a text, or several, at which a continuation ends; the text itself is removed.
        seed: random seed of sampling: a prompt has the same continuations whatever else is in the
            batch; the second continuation has `seed` + 1. None samples anew each time.
        prompt_lookup_num_tokens: speculative decoding: number of tokens that are copied from the
            text so far, as drafts, and checked in one pass. The text is that of plain decoding, up
            to the rounding of numbers. 0 turns it off; None turns it on where it is exact to the
            last bit.
        prediction: text that is expected to be generated, with differences, such as code that is to
            be edited: drafts are copied from it first.
        json_schema: a JSON schema that the text follows: an object, or its JSON; true takes any
            object.
        regex: a regular expression that the whole text matches.
        choices: texts, one of which is generated.
        grammar: a grammar in Lark's notation that the text follows.

    Raises:
        BedstoneError: a value is out of range.
    """

    max_new_tokens: int | None = optional(whole(1))
    max_length: int | None = optional(whole(1))
    min_new_tokens: int | None = optional(whole(0))
    do_sample: bool | None = None
    temperature: float | None = optional(number(0))
    top_k: int | None = optional(whole(0))
    top_p: float | None = optional(share())
    min_p: float | None = optional(share())
    repetition_penalty: float | None = optional(number(0, open_least=True))
    no_repeat_ngram_size: int | None = optional(whole(0))
    num_beams: int | None = optional(whole(1))
    length_penalty: float | None = optional(number(-10, 10))
    early_stopping: bool | Literal["never"] | None = None
    num_beam_groups: int | None = optional(whole(1))
    diversity_penalty: float | None = optional(number(0))
    force_words: str | Sequence[str | Sequence[str]] = ()
    force_words_ids: Any = None
    bad_words: str | Sequence[str] = ()
    encoder_no_repeat_ngram_size: int | None = optional(whole(0))
    encoder_repetition_penalty: float | None = optional(number(0.01, 100))
    num_return_sequences: int | None = optional(whole(1))
    return_alternatives: bool | int | None = None
    stop: str | Sequence[str] = ()
    seed: int | None = optional(whole(0, 2**63 - 1))
    prompt_lookup_num_tokens: int | None = optional(whole(0))
    prediction: str | None = None
    json_schema: Any = None
    regex: str | None = None
    choices: str | Sequence[str] = ()
    grammar: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prediction, str | None):
            raise BedstoneError(
                f"prediction: {shown(self.prediction)} was given; expected a text, or None."
            )
        self._check_alternatives()
        for name in KINDS:
            value = getattr(self, name)
            if value is not None and not value and value != ():
                raise BedstoneError(f"{name}: {value!r} was given, which allows nothing. Mend it.")
        for name in LISTS:
            value = getattr(self, name)
            texts = [value] if isinstance(value, str) else value
            fits = isinstance(texts, list | tuple)
            if not fits or not all(_is_text(one, name == "force_words") for one in texts):
                raise BedstoneError(f"{name}: {value!r} was given; expected a text, or several.")
        if self.force_words_ids is not None:
            parse_words(self.force_words_ids, "force_words_ids")

    def _check_alternatives(self) -> None:
        wanted, returned = self.return_alternatives, self.num_return_sequences
        if wanted is None or isinstance(wanted, bool):
            return
        check_whole("return_alternatives", wanted, 1)
        if returned not in (None, wanted):
            raise BedstoneError(
                f"return_alternatives: {wanted} was given beside num_return_sequences {returned}. "
                "Leave one of the two out."
            )

    @property
    def given(self) -> dict[str, Any]:
        """The generation settings that are given, by their names."""
        found = {name: getattr(self, name) for name in NAMES}
        if self.return_alternatives and self.return_alternatives is not True:
            found |= {
                "return_alternatives": True,
                "num_return_sequences": self.return_alternatives,
            }
        return {name: value for name, value in found.items() if value not in (None, (), [])}

    @property
    def chance(self) -> bool | None:
        """Whether the settings ask for chance; None where they say nothing.

        A temperature of 0 leaves none, whatever stands beside it.
        """
        if self.temperature == 0:
            return False
        if self.do_sample is not None:
            return bool(self.do_sample)
        return True if any(getattr(self, name) is not None for name in SAMPLED) else None

    def samples(self, published: Mapping[str, Any]) -> bool:
        """Whether tokens are drawn by chance: the model's own chance gives way to given beams."""
        if self.temperature is None and published.get("temperature") == 0:
            return False
        if self.chance is not None:
            return self.chance
        return bool(published.get("do_sample")) and (self.num_beams or 1) == 1

    def resolve(
        self,
        published: Mapping[str, Any],
        prompt_tokens: int = 0,
        *,
        usual: int = NEW_TOKENS,
        tokenizer: "Tokenizer | None" = None,
    ) -> "Sampling | BeamSearch":
        """The settings as sampling or beam search; `returned` is the number of continuations.

        Args:
            published: the model's generation_config.json, which counts where nothing is given. Its
                beams give way to chance that is given, its chance to beams that are.
            prompt_tokens: what `max_length` counts beside the new tokens.
            usual: tokens to generate, at most, where nothing says how many.
            tokenizer: spells words that are given as texts.

        Raises:
            BedstoneError: two settings don't fit, or a value is out of range.
        """
        rules = self._rules(published, tokenizer)
        if self.min_new_tokens is not None:
            rules = dataclasses.replace(rules, min_new_tokens=self.min_new_tokens)
        if rules.min_new_tokens:  # it goes before the length that counts the prompt
            rules = dataclasses.replace(rules, min_length=0)
        room = self._room(published, prompt_tokens, usual)
        samples, beams = self.samples(published), self._beams(published)
        if beams == 1:
            for name in OF_BEAMS:
                if name in self.given and (value := getattr(self, name)) is not False:
                    raise BedstoneError(
                        f"{name}: {value!r} was given, which counts for beam search alone. Give "
                        "num_beams of 2 or more, or leave it out."
                    )
        if beams == 1 and published.get("force_words_ids"):
            raise BedstoneError(
                f"{FILE}: force_words_ids = {shown(published['force_words_ids'])} are words that "
                "beams find. Give num_beams of 2 or more, or take the key out of the file."
            )
        if (self.min_new_tokens or 0) > room:
            raise BedstoneError(
                f"min_new_tokens: is {self.min_new_tokens}, more than max_new_tokens, {room}. "
                "Lower the one, or raise the other."
            )
        if beams > 1:
            return self._search(published, beams, room, rules, tokenizer)
        made = self._sampling(published, samples, room, rules)
        form = read_form(self.given, tokenizer)
        return made if form is None else dataclasses.replace(made, form=form)

    def _rules(self, published: Mapping[str, Any], tokenizer: "Tokenizer | None") -> Constraints:
        """Constraints of the model's file and of what is given."""
        names = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty")
        given = {name: value for name, value in self.given.items() if name in names}
        rules = constraints_of({**published, **given})
        texts = _texts(self.bad_words)
        if not texts:
            return rules
        words = banned_words(_known(tokenizer, "bad_words"), texts, "bad_words")
        return dataclasses.replace(rules, bad_words=(*rules.bad_words, *words))

    def _room(self, published: Mapping[str, Any], prompt_tokens: int, usual: int) -> int:
        """Tokens to generate, at most."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            if self.max_length <= prompt_tokens:
                raise BedstoneError(
                    f"max_length: is {self.max_length:,}, and the prompt alone has "
                    f"{prompt_tokens:,} tokens. Raise it, or give max_new_tokens instead."
                )
            return self.max_length - prompt_tokens
        if most := published.get("max_new_tokens"):
            return int(most)
        most = published.get("max_length")
        return usual if most is None else max(int(most) - prompt_tokens, 1)

    def _beams(self, published: Mapping[str, Any]) -> int:
        if self.num_beams is None:
            return 1 if self.samples(published) else published.get("num_beams") or 1
        if self.num_beams > 1 and self.chance:
            raise BedstoneError(
                f"num_beams: {self.num_beams} beams were asked for together with chance "
                f"(do_sample, {', '.join(SAMPLED)}). Beam search draws nothing: leave one of the "
                "two out."
            )
        return self.num_beams

    def _search(
        self,
        published: Mapping[str, Any],
        beams: int,
        room: int,
        rules: Constraints,
        tokenizer: "Tokenizer | None",
    ) -> BeamSearch:
        for name in OF_ONE:
            if value := getattr(self, name):
                raise BedstoneError(
                    f"{name}: {shown(value)} was given, which beam search has no use for. Leave it "
                    "out, or give num_beams=1."
                )
        if self.stop:
            raise BedstoneError(
                f"stop: {self.stop!r} was given, which beam search can't end at. Leave it out, or "
                "give num_beams=1."
            )
        if published.get("stop_strings"):
            raise BedstoneError(
                f"{FILE}: stop_strings = {published['stop_strings']!r} can't end beam search. Give "
                "num_beams=1, or take the key out of the file."
            )
        held = published_beams(published)
        held["min_tokens"] = min(held.get("min_tokens", 0), room)  # a limit that is given wins
        said = {**held, **published_beams(self.given)}
        if texts := _texts(self.force_words):
            known = _known(tokenizer, "force_words")
            words = words_of(known, texts, "force_words")
            said["joining"] = known.joining_ids
            said["required"] = (*parse_words(said.get("required", ()), "force_words_ids"), *words)
        rules = dataclasses.replace(rules, min_new_tokens=0)  # a field of its own says it
        return BeamSearch(**{**said, "beams": beams, "max_tokens": room, "constraints": rules})

    def _sampling(
        self, published: Mapping[str, Any], samples: bool, room: int, rules: Constraints
    ) -> "Sampling":
        from bedstone.generation.sampling import Sampling  # loads torch

        chosen = (*SAMPLED, *CUTOFFS) if samples else ()
        names = (*chosen, "repetition_penalty", "no_repeat_ngram_size")
        said = {name: published[name] for name in names if published.get(name) is not None}
        said |= {name: value for name, value in self.given.items() if name in names}
        if samples:
            said.setdefault("top_k", TOP_K)
        if "no_repeat_ngram_size" in said:
            said["no_repeat_ngram"] = said.pop("no_repeat_ngram_size")
        own = published.get("num_return_sequences") if samples else None
        returned = self.num_return_sequences or own or 1
        stops = self.stop or published.get("stop_strings") or ()
        made = Sampling(
            max_tokens=room,
            stop=(stops,) if isinstance(stops, str) else tuple(stops),
            keep_stop=bool(stops) and not self.stop,
            constraints=rules,
            seed=self.seed,
            returned=returned,
            prompt_lookup_num_tokens=self.prompt_lookup_num_tokens,
            prediction=self.prediction or "",
            **{"temperature": 1.0 if samples else 0.0, **said},
        )
        if made.returned > 1 and made.temperature == 0:
            raise BedstoneError(
                f"num_return_sequences: {made.returned} continuations were asked for, and without "
                "chance or beams all are the same. Give do_sample=True, or num_beams."
            )
        return made


def read_prediction(file: str | None) -> str | None:
    """The text of a file that holds a prediction; None where there is none.

    Raises:
        BedstoneError: it can't be read.
    """
    return None if file is None else read_text(to_path(file, "prediction"), PREDICTION_LIMIT)


def _is_text(value: Any, several: bool) -> bool:
    """Whether a value is a text, or `several` of them if they may be."""
    if several and isinstance(value, list | tuple) and value:
        return all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _texts(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def _known(tokenizer: "Tokenizer | None", name: str) -> "Tokenizer":
    if tokenizer is None:
        raise BedstoneError(
            f"{name}: texts were given where no tokenizer spells them. Give {name}_ids."
        )
    return tokenizer


NAMES = tuple(field.name for field in dataclasses.fields(GenerationSettings))


def published_beams(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `BeamSearch` among settings that have their published names; None says nothing."""
    fields = PUBLISHED | MORE
    known = {name: settings.get(name) for name in fields}
    return {fields[name]: value for name, value in known.items() if value is not None}


def without_usual_length(published: Mapping[str, Any]) -> dict[str, Any]:
    """A generation_config.json but for a max_length that is only transformers' default.

    As in its pipelines, a task's own length then counts.
    """
    usual = published.get("max_length") == USUAL_LENGTH
    return {k: v for k, v in published.items() if not (usual and k == "max_length")}
