"""Constraints on the next token: biased, suppressed, forced and banned tokens, least lengths.

They are settings of `generation_config.json`, whose keys are listed here; `sampling.constrain`
applies them to logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bedstone.errors import BedstoneError
from bedstone.published_keys import Keys, keys
from bedstone.reading import shown

FILE = "generation_config.json"
Ids = tuple[int, ...]

# Every key of a generation_config.json.
KEYS = Keys(
    honoured=keys(
        """bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
        early_stopping
        encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff
        eta_cutoff exponential_decay_length_penalty force_words_ids forced_bos_token_id
        forced_eos_token_id length_penalty max_length max_new_tokens min_length min_new_tokens min_p
        no_repeat_ngram_size num_beam_groups num_beams num_return_sequences renormalize_logits
        repetition_penalty sequence_bias stop_strings suppress_tokens temperature top_k top_p
        typical_p"""
    ),
    # how caches, drafts and outputs are kept: the tokens are the same
    harmless=keys(
        """_commit_hash _from_model_config assistant_confidence_threshold assistant_early_exit
        assistant_ensemble_weight assistant_lookbehind begin_index bos_token_id cache_config
        cache_implementation compile_config continuous_batching_config
        disable_compile is_assistant low_memory max_cache_len max_matching_ngram_size
        num_assistant_tokens num_assistant_tokens_schedule output_attentions output_hidden_states
        output_logits output_scores pad_token_id prefill_chunk_size prompt_lookup_num_tokens
        return_dict_in_generate return_legacy_cache speculation_type target_lookbehind
        transformers_version use_cache"""
    ),
    plain={
        "constraints": (),
        "dola_layers": (),
        "guidance_scale": (1.0,),
        "penalty_alpha": (0.0,),
        "remove_invalid_values": (False,),
        "token_healing": (False,),
        "top_h": (),
        "use_mtp": (False,),
        "watermarking_config": (),
    },
    reported=keys("max_time"),
    remedy="Take the key out of the file to generate without it.",
)


@dataclass(frozen=True)
class Constraints:
    """What a next token must or must not be, beside the penalties on repeats.

    Attributes:
        sequence_bias: (ids, bias): what is added to the last id's logit where the others precede.
        bad_words: ids that never follow one another; a lone end token among them is passed over.
        min_length: tokens of prompt and continuation before an end token.
        min_new_tokens: tokens of the continuation before one.
        forced_first: the token that follows a prompt of one token.
        forced_last: end tokens, one of which is the last token that `max_tokens` lets in.
        decay: (start, factor): from so many new tokens on an end token is `factor` times likelier
            a step.
        suppressed: ids that are never chosen.
        suppressed_first: ids that aren't chosen as the first new token.
        renormalise: whether what is left has probability 1 again, which beams are compared by.
        source_penalty: above 1 makes what the source holds likelier.
        source_ngram: so many tokens that follow one another in the source never do; 0 lets them.
    """

    sequence_bias: tuple[tuple[Ids, float], ...] = ()
    bad_words: tuple[Ids, ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_first: int | None = None
    forced_last: Ids = ()
    decay: tuple[int, float] | None = None
    suppressed: Ids = ()
    suppressed_first: Ids = ()
    renormalise: bool = False
    source_penalty: float = 1.0
    source_ngram: int = 0

    @property
    def compares(self) -> bool:
        """Whether tokens are compared with those of the source."""
        return self.source_penalty != 1 or self.source_ngram > 0


NONE = Constraints()


def constraints_of(published: Mapping[str, Any]) -> Constraints:
    """The constraints of a generation_config.json.

    Raises:
        BedstoneError: a key asks for something that isn't built, or has a value of another kind.
    """
    KEYS.check({k: v for k, v in published.items() if k in KEYS.plain}, FILE)
    return read_constraints(published)


def read_constraints(published: Mapping[str, Any]) -> Constraints:
    """The constraints of a generation_config.json, whatever else it asks for.

    Raises:
        BedstoneError: a key has a value of another kind.
    """
    bias = published.get("sequence_bias") or []
    if not isinstance(bias, list) or not all(
        isinstance(one, list) and len(one) == 2 and type(one[1]) in (int, float) for one in bias
    ):
        raise _wrong(published, "sequence_bias", "a list of [[ids], bias]")
    decay = published.get("exponential_decay_length_penalty")
    if decay is not None and not (
        isinstance(decay, list | tuple)
        and len(decay) == 2
        and type(decay[0]) is int
        and type(decay[1]) in (int, float)
    ):
        raise _wrong(published, "exponential_decay_length_penalty", "[start, factor]")
    words = published.get("bad_words_ids") or []
    if not isinstance(words, list | tuple):
        raise _wrong(published, "bad_words_ids", "a list of lists of token ids")
    first = _ids(published, "forced_bos_token_id")
    return Constraints(
        sequence_bias=tuple(
            (_ids({"sequence_bias": ids}, "sequence_bias", some=True), float(value))
            for ids, value in bias
        ),
        bad_words=tuple(_ids({"bad_words_ids": ids}, "bad_words_ids", some=True) for ids in words),
        min_length=_count(published, "min_length"),
        min_new_tokens=_count(published, "min_new_tokens"),
        forced_first=first[0] if first else None,
        forced_last=_ids(published, "forced_eos_token_id"),
        decay=None if decay is None else (int(decay[0]), float(decay[1])),
        suppressed=_ids(published, "suppress_tokens"),
        suppressed_first=_ids(published, "begin_suppress_tokens"),
        renormalise=bool(published.get("renormalize_logits")),
        source_penalty=_penalty(published, "encoder_repetition_penalty"),
        source_ngram=_count(published, "encoder_no_repeat_ngram_size"),
    )


def _ids(published: Mapping[str, Any], key: str, *, some: bool = False) -> Ids:
    """A token id or several; `some` asks for one at least."""
    value = published.get(key)
    values = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(type(one) is int and one >= 0 for one in values) or (some and not values):
        raise _wrong(published, key, "token ids, 0 or more")
    return tuple(values)


def _penalty(published: Mapping[str, Any], key: str) -> float:
    value = 1.0 if published.get(key) is None else published[key]
    if type(value) not in (int, float) or not 0.01 <= value <= 100:
        raise _wrong(published, key, "a number from 0.01 to 100")
    return float(value)


def _count(published: Mapping[str, Any], key: str) -> int:
    value = published.get(key) or 0
    if type(value) is not int or value < 0:
        raise _wrong(published, key, "a number of tokens, 0 or more")
    return int(value)


def _wrong(published: Mapping[str, Any], key: str, expected: str) -> BedstoneError:
    return BedstoneError(
        f"{FILE}: {key} = {shown(published[key])}; expected {expected}. Mend it, or take it out."
    )
