"""How near a quantised model is to the model that it was made of, on texts.

Texts are cut into pieces of one size, spread over the whole of the data. Some calibrate the weights
(`nn/gptq.py`), and on the others, which they don't see, both models are compared. Shapes: N tokens
of a batch, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.images.contrastive import text_rows
from bedstone.data.sources import Source
from bedstone.data.text.encode import text_batch
from bedstone.data.text.packing import Packed, pack
from bedstone.errors import BedstoneError
from bedstone.nn.fast.inference import for_inference

CALIBRATION, HELD_OUT = 32, 16  # pieces of text
TOKENS = 256  # of a piece, at most
_TOGETHER = 4  # pieces that are read at once
_CHARACTERS = 6 * TOKENS  # of a piece, about
_MOST = 1 << 24  # characters of the data that are looked through


@dataclass(frozen=True)
class Likeness:
    """How near a model's outputs are to those of another.

    Attributes:
        tokens: compared.
        cosine: of the states of tokens, the mean.
        agreement: share of the tokens whose likeliest next (or masked) word is the same; None where
            no words are predicted, as what follows.
        divergence: Kullback-Leibler, in nats a token, of the model from the other.
        perplexity, before: the model's and the other's, of a decoder.
    """

    tokens: int
    cosine: float
    agreement: float | None = None
    divergence: float | None = None
    perplexity: float | None = None
    before: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the other's perplexity the model has."""
        if self.perplexity is None or self.before is None:
            return None
        return self.perplexity / self.before


def reads_text(model: Model) -> bool:
    """Whether a model is one that texts calibrate."""
    if hasattr(model.network, "text_features"):
        return True
    return hasattr(model.network, "packed_states") and hasattr(model.config, "vocab_size")


def text_pieces(model: Model, source: Source) -> tuple[list[Packed], list[Packed]]:
    """Pieces of the data that calibrate, and those held out, each in batches.

    Raises:
        BedstoneError: there are too few, or they can't be read.
    """
    pieces: list[str] = []
    seen = 0
    for document in source.documents():
        starts = range(0, max(len(document) - _CHARACTERS // 4, 1), _CHARACTERS)
        pieces += [document[start : start + _CHARACTERS] for start in starts]
        seen += len(document)
        if seen > _MOST:
            break
    pieces = [piece for piece in pieces if piece.strip()]
    if len(pieces) < 3:
        raise BedstoneError(
            f"texts: {source.name} has {len(pieces)} pieces of text of about {_CHARACTERS} "
            "characters; expected three or more. Give more text."
        )
    wanted = min(CALIBRATION + HELD_OUT, len(pieces))
    chosen = [pieces[number * len(pieces) // wanted] for number in range(wanted)]
    held = [text for number, text in enumerate(chosen) if number % 3 == 2]
    used = [text for number, text in enumerate(chosen) if number % 3 != 2]
    return _batches(model, used), _batches(model, held)


def _batches(model: Model, texts: Sequence[str]) -> list[Packed]:
    tokenizer = tokenizer_of(model)
    if hasattr(model.network, "text_features"):
        rows = text_rows(tokenizer, texts, model.config)
    else:
        limit = min(TOKENS, model.config.context)
        rows = [windows[0] for windows in text_batch(tokenizer, texts, limit=limit)]
    return [pack(rows[i : i + _TOGETHER]) for i in range(0, len(rows), _TOGETHER)]


def feeds(network: Any, batches: Sequence[Packed]) -> list[Callable[[], Tensor]]:
    """What runs a network on each batch."""
    read = getattr(network, "text_features", None) or network.packed_states
    device = next(network.parameters()).device
    return [partial(lambda batch: read(batch.to(device)), batch) for batch in batches]


@torch.inference_mode()
def likeness(exact: Any, network: Any, batches: Sequence[Packed]) -> Likeness:
    """Compares a quantised network with what it was made of, both in fp32."""
    plain, made = (for_inference(each, torch.float32) for each in (exact, network))
    words = getattr(network.config.head, "kind", "") == "language"
    cosines, words_found = [], []
    for before, after, batch in zip(
        feeds(plain, batches), feeds(made, batches), batches, strict=True
    ):
        one, other = before().float(), after().float()
        cosines.append(F.cosine_similarity(one, other, dim=-1))
        for start, end in batch.spans if words else ():
            p, q = (
                each.head(states[start:end]).float().log_softmax(-1)
                for each, states in ((plain, one), (made, other))
            )
            words_found.append(_of_words(p, q, batch.ids[0, start + 1 : end]))
    cosine = torch.cat(cosines)
    found = Likeness(len(cosine), float(cosine.mean()))
    if not words:
        return found
    same, divergence, own, before_it, scored = (
        torch.tensor(words_found, dtype=torch.float64).sum(0).tolist()
    )
    found = replace(found, agreement=same / len(cosine), divergence=divergence / len(cosine))
    if not plain.causal:
        return found
    return replace(found, perplexity=math.exp(own / scored), before=math.exp(before_it / scored))


def _of_words(exact: Tensor, found: Tensor, following: Tensor) -> tuple[float, ...]:
    """Of one row's log-probabilities (N, V): how many likeliest are the same, the divergence, the
    losses of the words that follow in both, and how many these are."""
    same = int((exact.argmax(-1) == found.argmax(-1)).sum())
    divergence = float((exact.exp() * (exact - found)).sum())
    wanted = following.to(found.device)
    own, other = (float(F.nll_loss(each[:-1], wanted, reduction="sum")) for each in (found, exact))
    return same, divergence, own, other, len(wanted)
