"""How near a quantised model is: which texts are read, and what the figures are."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from bedstone.data.sources import Texts
from bedstone.errors import BedstoneError
from bedstone.evaluate import quantization as module
from bedstone.evaluate.quantization import feeds, likeness, reads_text, text_pieces
from bedstone.models.heads import HeadConfig
from bedstone.nn.gptq import quantize_for_inference
from image_models import clip_model, labelled_model
from small_models import SENTENCES, decoder, model

TEXTS = [f"{number} {sentence} {number}" for number in range(40) for sentence in SENTENCES]


def rows_of(batches) -> list[tuple[int, ...]]:
    return [
        tuple(batch.ids[0, start:end].tolist()) for batch in batches for start, end in batch.spans
    ]


def test_a_third_of_the_pieces_is_held_out_and_all_of_the_data_is_met():
    made = decoder(HeadConfig("language"), "llama")
    used, held = text_pieces(made, Texts(TEXTS, "texts"))
    one, other = rows_of(used), rows_of(held)
    assert len(one) == module.CALIBRATION and len(other) == module.HELD_OUT
    assert not set(one) & set(other)
    known = made.tokenizer
    first = {int(known.decode(list(row)).split()[0]) for row in (*one, *other)}
    assert min(first) == 0 and max(first) > 35


def test_a_long_text_is_cut_and_few_pieces_are_shared_out():
    made = decoder(HeadConfig("language"), "llama")
    used, held = text_pieces(made, Texts([" ".join(TEXTS)], "one"))
    assert {len(row) for row in rows_of(used)} == {made.config.context}
    used, held = text_pieces(made, Texts(TEXTS[:3], "few"))
    assert (len(rows_of(used)), len(rows_of(held))) == (2, 1)
    with pytest.raises(BedstoneError, match="few has 2 pieces"):
        text_pieces(made, Texts(TEXTS[:2], "few"))


def test_the_figures_of_a_decoder():
    made = decoder(HeadConfig("language"), "llama")
    _, held = text_pieces(made, Texts(TEXTS, "texts"))
    same = likeness(made.network, copy.deepcopy(made.network), held)
    assert same.agreement == 1.0 and same.ratio == 1.0
    assert same.divergence == pytest.approx(0.0, abs=1e-6) and same.cosine == pytest.approx(1.0)
    assert same.tokens == sum(map(len, rows_of(held)))
    small = copy.deepcopy(made.network)
    quantize_for_inference(small, 4)
    found = likeness(made.network, small, held)
    losses, divergences, hits = {}, [], []
    with torch.no_grad():
        for row in rows_of(held):
            ids = torch.tensor(row)[None]
            both = {
                name: network(ids)[0].log_softmax(-1)
                for name, network in (("exact", made.network), ("small", small))
            }
            for name, logits in both.items():
                losses.setdefault(name, []).append(
                    F.nll_loss(logits[:-1], ids[0, 1:], reduction="none")
                )
            p, q = both["exact"], both["small"]
            divergences.append((p.exp() * (p - q)).sum(-1))
            hits.append(p.argmax(-1) == q.argmax(-1))
    means = {name: math.exp(float(torch.cat(each).mean())) for name, each in losses.items()}
    assert found.perplexity == pytest.approx(means["small"], rel=1e-3)
    assert found.before == pytest.approx(means["exact"], rel=1e-3)
    assert found.divergence == pytest.approx(float(torch.cat(divergences).mean()), rel=0.02)
    assert found.agreement == pytest.approx(float(torch.cat(hits).float().mean()), abs=0.02)
    assert 0.9 < found.cosine < 1.0


@pytest.mark.parametrize("kind", ["language", "states"])
def test_the_figures_of_an_encoder(kind):
    made = model(HeadConfig(kind))
    _, held = text_pieces(made, Texts(TEXTS, "texts"))
    small = copy.deepcopy(made.network)
    quantize_for_inference(small, 8)
    found = likeness(made.network, small, held)
    assert found.perplexity is None and found.ratio is None
    assert (found.agreement is None) == (kind == "states")
    assert 0.99 < found.cosine <= 1.0


def test_which_models_texts_calibrate():
    assert reads_text(model(HeadConfig("states"))) and reads_text(clip_model())
    assert not reads_text(labelled_model())
    clip = clip_model()
    used, _ = text_pieces(clip, Texts(TEXTS, "texts"))
    assert all(feed().isfinite().all() for feed in feeds(clip.network, used))
