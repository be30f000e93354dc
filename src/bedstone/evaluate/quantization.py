"""How near a quantised model is to the model that it was made of, on texts.

Texts are cut into pieces of one size, spread over the whole of the data; of an encoder-decoder the
pieces are pairs of a source and a target. Some calibrate the weights (`nn/gptq.py`), and on the
others, which they don't see, both models are compared. Shapes: N tokens of a batch, D width, V
vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.dataset import Dataset
from bedstone.data.images.contrastive import text_rows
from bedstone.data.sources import Source
from bedstone.data.text.encode import source_ids, target_ids, text_batch
from bedstone.data.text.packing import Packed, pack
from bedstone.data.text.seq2seq import PairBatch, pair_batch
from bedstone.errors import BedstoneError
from bedstone.models.interfaces import EncoderDecoderModel
from bedstone.nn.fast.inference import for_inference

CALIBRATION, HELD_OUT = 32, 16  # pieces of text
PAIRS, _PAIRS_TOGETHER = 384, 32  # pairs in all, and those that are read at once
TOKENS = 256  # of a piece, at most
_TOGETHER = 4  # pieces that are read at once
_CHARACTERS = 6 * TOKENS  # of a piece, about
_MOST = 1 << 24  # characters of the data that are looked through
Pieces = Packed | PairBatch


@dataclass(frozen=True)
class Likeness:
    """How near a model's outputs are to those of another.

    Attributes:
        tokens: compared.
        cosine: of the states of tokens, the mean.
        agreement: share of the tokens whose likeliest next (or masked) word is the same; None where
            no words are predicted, as what follows.
        divergence: Kullback-Leibler, in nats a token, of the model from the other.
        perplexity, before: the model's and the other's, of a decoder; of targets given sources.
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
    if hasattr(model.network, "text_features") or reads_pairs(model):
        return True
    return hasattr(model.network, "packed_states") and hasattr(model.config, "vocab_size")


def reads_pairs(model: Model) -> bool:
    """Whether the texts of a model are pairs of a source and a target."""
    return isinstance(model.network, EncoderDecoderModel)


def text_pieces(
    model: Model, source: Source | Dataset
) -> tuple[Sequence[Pieces], Sequence[Pieces]]:
    """Pieces of the data that calibrate, and those held out, each in batches.

    Args:
        source: documents, or rows with the columns `source` and `target`.

    Raises:
        BedstoneError: there are too few, or they can't be read.
    """
    if isinstance(source, Dataset):
        return _pairs(model, source)
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
    used, held = _shared_out(pieces, CALIBRATION + HELD_OUT)
    return _batches(model, used), _batches(model, held)


def _shared_out(pieces: Sequence[Any], most: int) -> tuple[list[Any], list[Any]]:
    """Pieces from all over the data: two thirds to use, one to hold out."""
    wanted = min(most, len(pieces))
    chosen = [pieces[number * len(pieces) // wanted] for number in range(wanted)]
    held = [piece for number, piece in enumerate(chosen) if number % 3 == 2]
    return [piece for number, piece in enumerate(chosen) if number % 3 != 2], held


def _pairs(model: Model, rows: Dataset) -> tuple[list[PairBatch], list[PairBatch]]:
    if len(rows) < 3:
        raise BedstoneError(
            f"texts: {rows.name} has {len(rows)} pairs of texts; expected three or more. Give more."
        )
    tokenizer, config = tokenizer_of(model), model.config
    limits = [min(TOKENS, side.context) for side in (config.encoder, config.decoder)]
    start = model.generation.get("decoder_start_token_id", config.start_id)

    def batches(chosen: Sequence[Any]) -> list[PairBatch]:
        pairs = [
            (source_ids(tokenizer, row["source"]), target_ids(tokenizer, row["target"]))
            for row in chosen
        ]
        made = []
        for at in range(0, len(pairs), _PAIRS_TOGETHER):
            part = pairs[at : at + _PAIRS_TOGETHER]
            sides = [[np.array(pair[side][: limits[side]]) for pair in part] for side in range(2)]
            made.append(pair_batch(sides[0], sides[1], start, 0, []))
        return made

    used, held = _shared_out(rows.rows, PAIRS)
    return batches(used), batches(held)


def _batches(model: Model, texts: Sequence[str]) -> list[Packed]:
    tokenizer = tokenizer_of(model)
    if hasattr(model.network, "text_features"):
        rows = text_rows(tokenizer, texts, model.config)
    else:
        limit = min(TOKENS, model.config.context)
        rows = [windows[0] for windows in text_batch(tokenizer, texts, limit=limit)]
    return [pack(rows[i : i + _TOGETHER]) for i in range(0, len(rows), _TOGETHER)]


def feeds(network: Any, batches: Sequence[Pieces]) -> list[Callable[[], Tensor]]:
    """What runs a network on each batch."""
    device = next(network.parameters()).device

    def read(batch: Pieces) -> Tensor:
        there = batch.to(device)
        if isinstance(there, PairBatch):
            found: Tensor = network.pair_states(there.sources, there.rows)
            return found
        return (getattr(network, "text_features", None) or network.packed_states)(there)

    return [partial(read, batch) for batch in batches]


@torch.inference_mode()
def likeness(exact: Any, network: Any, batches: Sequence[Pieces]) -> Likeness:
    """Compares a quantised network with what it was made of, both in fp32."""
    plain, made = (for_inference(each, torch.float32) for each in (exact, network))
    pairs = bool(batches) and isinstance(batches[0], PairBatch)
    words = pairs or getattr(network.config.head, "kind", "") == "language"
    cosines, words_found = [], []
    for before, after, batch in zip(
        feeds(plain, batches), feeds(made, batches), batches, strict=True
    ):
        one, other = before().float(), after().float()
        cosines.append(F.cosine_similarity(one, other, dim=-1))
        rows = batch.rows if isinstance(batch, PairBatch) else batch
        for start, end in rows.spans if words else ():
            p, q = (
                each.head(states[start:end]).float().log_softmax(-1)
                for each, states in ((plain, one), (made, other))
            )
            following = rows.ids[0, start + 1 : end]
            if isinstance(batch, PairBatch):
                following = batch.targets[0, start:end]
            words_found.append(_of_words(p, q, following))
    cosine = torch.cat(cosines)
    found = Likeness(len(cosine), float(cosine.mean()))
    if not words:
        return found
    same, divergence, own, before_it, scored = (
        torch.tensor(words_found, dtype=torch.float64).sum(0).tolist()
    )
    found = replace(found, agreement=same / len(cosine), divergence=divergence / len(cosine))
    if not (plain.causal or pairs):
        return found
    return replace(found, perplexity=math.exp(own / scored), before=math.exp(before_it / scored))


def _of_words(exact: Tensor, found: Tensor, following: Tensor) -> tuple[float, ...]:
    """Of one row's log-probabilities (N, V): how many likeliest are the same, the divergence, the
    losses of the words that follow in both, and how many these are."""
    same = int((exact.argmax(-1) == found.argmax(-1)).sum())
    divergence = float((exact.exp() * (exact - found)).sum())
    wanted = following.to(found.device)
    own, other = (
        float(F.nll_loss(each[: len(wanted)], wanted, reduction="sum")) for each in (found, exact)
    )
    return same, divergence, own, other, len(wanted)
