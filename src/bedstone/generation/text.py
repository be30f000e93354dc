"""Generation of text from text, with stop texts and streaming.

Pieces of streamed text never hold half a UTF-8 character, nor the beginning of what may
turn out to be a stop text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bedstone.data.text.chat import Rendered
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.generation.autoregress import Decoder, Finish, Generated, Step, stream
from bedstone.generation.beam import Hypothesis, beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch
from bedstone.runtime import Precision


class StopText:
    """Streams text up to the first of `stops`, wherever pieces are cut.

    With `keep` the piece that completes a stop text is given out whole.
    """

    def __init__(self, stops: Sequence[str], keep: bool = False) -> None:
        self.stops = tuple(stops)
        self.keep = keep
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to precede a stop text; nothing once one was found."""
        if self.found is not None:
            return ""
        text = self._held + text
        self._held = ""
        places = [(text.find(stop), stop) for stop in self.stops if stop in text]
        if places:
            first, self.found = min(places)
            return text if self.keep else text[:first]
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, at the end of a text that no stop text ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


@dataclass(frozen=True)
class Piece:
    """New text of one row, with the token that brought it.

    Attributes:
        row: index of the prompt.
        text: may be empty, where a character or a stop text is still open.
        step: the token, its log-probability, and why the row ends, if it does.
    """

    row: int
    text: str
    step: Step

    @property
    def finish(self) -> Finish | None:
        return self.step.finish


@dataclass
class Written(Generated):
    """A prompt's continuation as text, cut before a stop text; its ids are whole.

    Attributes:
        text: without the prompt, special tokens or the stop text.
        stop: the stop text that ended it, if one did.
    """

    text: str = ""
    stop: str | None = None


@dataclass(frozen=True)
class Searched(Hypothesis):
    """One continuation of a prompt by beam search.

    Attributes:
        text: without the prompt or special tokens.
    """

    text: str = ""


class TextRow:
    """One row's way from tokens to text, a piece at a time.

    Args:
        prompt: the ids that the row goes on from.
        sampling: its stop texts count.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> None:
        self.streamer = tokenizer.streamer(prompt)
        self.stop = StopText(sampling.stop, sampling.keep_stop)
        self.pending = ""

    def take(self, step: Step) -> bool:
        """Reads a token; True where its text completes a stop text."""
        self.pending += self.stop.push(self.streamer.push(step.token))
        return self.stop.found is not None

    def text(self, *, last: bool) -> str:
        """The text that is certain since the last call."""
        if last and self.stop.found is None:
            self.pending += self.stop.push(self.streamer.flush()) + self.stop.flush()
        text, self.pending = self.pending, ""
        return text


def stream_text(
    network: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    eos: Iterable[int] | None = None,
    seeds: Sequence[int] | None = None,
    top: int = 0,
    precision: Precision | None = None,
) -> Iterator[Piece]:
    """Continues each prompt, a piece of text for every token.

    Args:
        prompts: texts; the tokenizer puts what it sets before a text, such as <s>, but
            never what it sets after one.
        eos: ids that end a row; the tokenizer's own where None.
        sampling, seeds, top, precision: as for `autoregress.stream`.

    Raises:
        BedstoneError: as `autoregress.stream` does.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    rows, steps = _start(network, tokenizer, ids, sampling, eos, seeds, top, precision)
    return (Piece(s.row, rows[s.row].text(last=s.finish is not None), s) for s in steps)


def write(
    network: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    eos: Iterable[int] | None = None,
    seeds: Sequence[int] | None = None,
    top: int = 0,
    precision: Precision | None = None,
) -> list[Written]:
    """Continues each prompt; arguments and errors as for `stream_text`."""
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    rows, steps = _start(network, tokenizer, ids, sampling, eos, seeds, top, precision)
    done = [Written() for _ in prompts]
    for step in steps:
        done[step.row].add(step)
        done[step.row].text += rows[step.row].text(last=step.finish is not None)
        done[step.row].stop = rows[step.row].stop.found
    return done


def write_beams(
    network: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    search: BeamSearch | None = None,
    *,
    eos: Iterable[int] | None = None,
    precision: Precision | None = None,
) -> list[list[Searched]]:
    """Continues each prompt by beam search; of each the best, best first.

    Arguments and errors as for `write` and `beam.beam_search`.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    ends = _ends(tokenizer, eos)
    found = beam_search(network, ids, search, eos=ends, precision=precision)
    return [
        [Searched(**vars(each), text=tokenizer.continuation(before, each.ids)) for each in own]
        for before, own in zip(ids, found, strict=True)
    ]


def _ends(tokenizer: Tokenizer, eos: Iterable[int] | None) -> list[int]:
    """The ids that end a row: the tokenizer's own where none are given."""
    if eos is not None:
        return list(eos)
    return [] if tokenizer.eos_id is None else [tokenizer.eos_id]


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text to continue: with what the tokenizer sets before it, not after it."""
    if isinstance(text, Rendered):  # its template has set all special tokens
        return text.ids
    if not text:  # any other text shows what stands before one
        shown = encode_prompt(tokenizer, "a")
        return shown[: len(shown) - len(tokenizer.encode("a"))]
    plain, whole = tokenizer.encode(text), tokenizer.encode(text, special=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[: start + len(plain)]
    return whole


def _start(
    network: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[Sequence[int]],
    sampling: Sampling | None,
    eos: Iterable[int] | None,
    seeds: Sequence[int] | None,
    top: int,
    precision: Precision | None,
) -> tuple[list[TextRow], Iterator[Step]]:
    sampling = sampling or Sampling()
    rows = [TextRow(tokenizer, prompt, sampling) for prompt in ids]
    steps = stream(
        network,
        ids,
        sampling,
        eos=_ends(tokenizer, eos),
        seeds=seeds,
        top=top,
        precision=precision,
        ended=lambda step: rows[step.row].take(step),
        prediction=tokenizer.encode(sampling.prediction) if sampling.prediction else (),
    )
    return rows, steps
