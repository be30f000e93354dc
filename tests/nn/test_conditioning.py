"""What a denoiser is told, as vectors."""

import torch

from bedstone.nn.blocks import AdaZero, Context
from bedstone.nn.conditioning import (
    CentredMemory,
    PooledMemory,
    SharedModulation,
    Whitening,
    features,
)
from bedstone.nn.layers import MLP, LayerNorm


def test_features_are_those_of_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    numbers = torch.tensor([0.0, 3.5, 999.0, -1.25])
    for shift in (0, 1):
        theirs = get_timestep_embedding(numbers, 256, True, downscale_freq_shift=shift)
        torch.testing.assert_close(features(numbers, shift), theirs, atol=1e-4, rtol=0)


def test_the_sum_of_a_text_is_of_its_words_alone():
    pooled = PooledMemory(4, 6).eval()
    memory = torch.randn(3, 5, 4)
    keep = torch.tensor([[1, 1, 0, 0, 0], [1] * 5, [0] * 5]).bool()
    out = pooled(memory, keep)
    torch.testing.assert_close(out[0], pooled(memory[:1, :2], None)[0])
    torch.testing.assert_close(out[1], pooled.map(memory[1].sum(0) / 5**0.5))
    assert not out[2].any()


def test_what_all_words_have_in_common_is_taken_away():
    centred, common = CentredMemory(4), 9 * torch.randn(4)
    keep = torch.arange(5) < torch.randint(1, 6, (64, 1))
    for _ in range(200):
        learnt = centred(common + 0.1 * torch.randn(64, 5, 4), keep)
    for out in (learnt[keep], centred.eval()(common + 0.1 * torch.randn(900, 5, 4), None)):
        torch.testing.assert_close(out.view(-1, 4).mean(0), torch.zeros(4), atol=0.1, rtol=0)
        torch.testing.assert_close(out.view(-1, 4).std(0), torch.ones(4), atol=0.1, rtol=0)
    assert not learnt[~keep].any()


def test_a_reader_is_not_pulled_along_what_all_words_share():
    centred, reader = CentredMemory(4), torch.nn.Linear(3, 4)
    out = centred(reader(torch.randn(8, 5, 3)), None)
    (out * torch.randn_like(out)).sum().backward()
    assert reader.bias.grad.abs().max() < 1e-4 < reader.weight.grad.abs().max()


def test_texts_without_a_word_leave_the_centre_where_it_was():
    centred = CentredMemory(4)
    for keep in (torch.zeros(2, 3).bool(), torch.tensor([[True, False, False], [False] * 3])):
        assert not centred(torch.randn(2, 3, 4), keep).any()
    assert torch.equal(centred.centre, torch.zeros(4))
    assert torch.equal(centred.variance, torch.ones(4))


def test_a_sublayer_reads_its_own_part_of_what_is_shared():
    shared = torch.randn(2, 6 * 4)
    for part in (0, 1):
        modulation = SharedModulation(4, 3, part)
        torch.nn.init.normal_(modulation.table)
        expected = shared.view(2, 6, 4)[:, 3 * part : 3 * part + 3] + modulation.table
        torch.testing.assert_close(modulation(shared), expected.flatten(1))


def test_modulation_is_the_formula():
    mlp, norm = MLP(4, 8), LayerNorm(4)
    block = AdaZero(4, norm, mlp)
    torch.nn.init.normal_(block.modulation.weight)
    torch.nn.init.normal_(block.modulation.bias)
    x, condition = torch.randn(2, 3, 4), torch.randn(2, 4)
    shift, scale, gate = block.modulation(condition)[:, None].split(4, -1)
    expected = x + gate * mlp(norm(x) * (1 + scale) + shift)
    torch.testing.assert_close(block(x, Context(condition=condition)), expected)


def test_whitened_embeddings_have_equal_directions():
    torch.manual_seed(0)
    turned = torch.linalg.qr(torch.randn(3, 3)).Q
    rows = torch.randn(4000, 3) * torch.tensor([2.0, 1.0, 0.001]) @ turned + 5
    whitening = Whitening(3)
    torch.testing.assert_close(whitening(rows / 10), rows / 10)  # before anything was fitted
    whitening.fit(rows)
    found = whitening(rows)
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=2e-3, rtol=0)
    covariance = torch.cov(found.T)
    torch.testing.assert_close(covariance, torch.diag(covariance.diag()), atol=2e-3, rtol=0)
    small, middle, large = covariance.diag().sort().values
    assert small < 0.01 and 0.9 < middle < large < 1.01  # one is a rounding's size
    mixed = torch.cat((rows[:1], torch.zeros(1, 3)))
    assert torch.equal(whitening(mixed)[1], torch.zeros(3)) and whitening(mixed)[0].any()
    assert float(whitening(100 * rows).abs().max()) == Whitening.MOST  # what no image has
    assert torch.equal(whitening(rows[:1]), found[:1])  # alone and among others
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitening(rows), found)
    whitening.fit(torch.ones(5, 3))  # all the same: nothing to divide by, and nothing infinite
    assert whitening(rows).isfinite().all()
