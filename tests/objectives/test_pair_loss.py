"""The loss of pairs, and R-Drop."""

import pytest
import torch
import torch.nn.functional as F

from bedstone.data.text.seq2seq import pair_batch
from bedstone.models.encoder_decoder.config import EncoderDecoderConfig
from bedstone.models.encoder_decoder.network import build
from bedstone.objectives import tokens
from bedstone.objectives.tokens import PairLoss


def network(dropout=0.0, layout="marian"):
    shape = {"vocab_size": 41, "width": 24, "layers": 2, "heads": 3, "context": 30}
    return build(EncoderDecoderConfig(layout=layout, dropout=dropout, **shape), seed=3)


def batch():
    random = torch.Generator().manual_seed(1)

    def rows(*lengths):
        return [torch.randint(2, 41, (n,), generator=random).numpy() for n in lengths]

    return pair_batch(rows(4, 9, 2), rows(6, 3, 7), 0, 0, ["a", "b", "c"])


def logits(own, given):
    states = own.pair_states(given.sources, given.rows)
    return own.head(states)


@pytest.mark.parametrize("layout", ["marian", "t5"])
def test_without_dropout_r_drop_is_the_smoothed_loss(layout):
    own, given = network(layout=layout).train(), batch()
    loss, count = PairLoss(0.1, 5.0)(own, given)
    expected = F.cross_entropy(
        logits(own, given), given.targets[0], reduction="sum", label_smoothing=0.1
    )
    assert count == 16
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    plain, _ = PairLoss(0.1)(own, given)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)


def test_r_drop_adds_the_divergence_of_two_passes(monkeypatch):
    own, given = network(dropout=0.3).train(), batch()
    torch.manual_seed(7)
    one, two = (logits(own, given).log_softmax(-1) for _ in range(2))
    error = F.nll_loss(one, given.targets[0], reduction="sum")
    error = 0.5 * (error + F.nll_loss(two, given.targets[0], reduction="sum"))
    both = F.kl_div(one, two, reduction="sum", log_target=True)
    both = both + F.kl_div(two, one, reduction="sum", log_target=True)
    for largest in (tokens.LARGEST, 41 * 64):  # in one part, and in several
        monkeypatch.setattr(tokens, "LARGEST", largest)
        torch.manual_seed(7)
        loss, _ = PairLoss(0.0, 4.0)(own, given)
        torch.testing.assert_close(loss, error + both, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert own.head.out.weight.grad.abs().sum() > 0


def test_held_out_pairs_are_measured_once_and_without_smoothing():
    own, given = network(dropout=0.3).eval(), batch()
    loss, _ = PairLoss(0.1, 5.0)(own, given)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits(own, given), given.targets[0], reduction="sum")
    )
