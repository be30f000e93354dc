"""unCLIP's autoregressive prior: components and buckets, what is written is what is learnt."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.generation.codes import guided, write_components
from bedstone.generation.sampling import draw
from bedstone.models.unclip.autoregressive import CodePrior, CodePriorConfig, build, make
from networks import check_network
from unclips import code_prior

CONFIG = CodePriorConfig(
    embed=8, text_tokens=5, components=6, buckets=7, fits=4, width=16, layers=2, heads=2
)
ROWS = 3


def known(count: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings whose dimensions are mixtures of some that vary more and less; and words'."""
    chance = torch.Generator().manual_seed(seed)
    spread = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02])
    mixed = torch.linalg.qr(torch.randn(8, 8, generator=chance))[0]
    found = torch.randn(count, 8, generator=chance) * spread @ mixed + 1
    return found, found + torch.randn(count, 8, generator=chance)


def inputs() -> tuple[Tensor, dict[str, Tensor]]:
    chance = torch.Generator().manual_seed(3)
    given = {
        "words": torch.randn(ROWS, 8, generator=chance),
        "text": torch.randn(ROWS, 4, 8, generator=chance),
        "text_keep": torch.arange(4) < torch.tensor([4, 2, 1])[:, None],
    }
    return torch.randn(ROWS, 8, generator=chance), given


def test_network() -> None:
    x, given = inputs()
    network = make(CONFIG)
    network.fit(*known())
    check_network(network, lambda one: one(x, **given), (ROWS, 8))


def test_components_and_buckets() -> None:
    embeddings, words = known()
    network = build(CodePriorConfig(embed=8, components=8, buckets=64, fits=4, width=8, heads=2))
    network.fit(embeddings, words)
    x = network.standardised(embeddings)
    parts = x @ network.axes.T
    assert torch.allclose(network.axes @ network.axes.T, torch.eye(8), atol=1e-5)
    assert (parts.var(0).diff() < 0).all()  # the largest first
    codes = network.codes_of(x)
    assert codes.min() == 0 and codes.max() == 63
    counts = torch.stack([column.bincount(minlength=64) for column in codes.T])
    assert counts.min() >= 30 and counts.max() <= 33  # 2,000 / 64 = 31.25
    again = network.embeddings_of(codes)
    assert (again - x).square().mean() < 0.01  # of a variance of 1
    few = build(CONFIG)
    few.fit(embeddings, words)
    error = (few.embeddings_of(few.codes_of(x)) - x).square().mean()
    assert 0.01 < error < 0.15  # 7 buckets of a normal distribution leave 4 % and more
    fits = network.fits_of(embeddings, words).bincount(minlength=4)
    assert (fits - 500).abs().max() <= 1
    with pytest.raises(BedstoneError, match="the same embeddings of all images in 1 of 8"):
        few.fit(embeddings * (torch.arange(8) > 0), words)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_what_is_written_is_what_is_learnt(guidance: float) -> None:
    network = code_prior(8).network
    assert isinstance(network, CodePrior)
    _, given = inputs()
    keep = given["text_keep"]
    fits = torch.tensor([1, 2, 3])
    prefix = network.prefix(given["words"], given["text"], keep, fits)
    null = network.prefix(given["words"] * 0, given["text"] * 0, keep, fits)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(ROWS)]
    found = write_components(network, prefix, null, guidance, seeds)
    assert found.shape == (ROWS, network.config.components)
    with torch.no_grad():
        logits = guided(network.logits(prefix, found), network.logits(null, found), guidance)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(ROWS)]
    for place in range(network.config.components):
        assert torch.equal(draw(logits[:, place], seeds), found[:, place])
    alone = [torch.Generator().manual_seed(1)]
    one = write_components(network, prefix[1:2], null[1:2], guidance, alone)
    assert torch.equal(one[0], found[1])


def test_places_without_a_word_say_nothing() -> None:
    network = code_prior(8).network
    x, given = inputs()
    with torch.no_grad():
        found = network(x, **given)
        other = given["text"].masked_fill(~given["text_keep"][..., None], 7.0)
        assert torch.equal(network(x, **{**given, "text": other}), found)
        short = network(x[2:], **{name: each[2:] for name, each in given.items()})
        assert torch.allclose(short, found[2:], atol=1e-5)


def test_files_and_what_can_not_be(tmp_path: Path) -> None:
    made = code_prior(8)
    made.save(tmp_path / "prior")
    again = bedstone.load(tmp_path / "prior")
    assert isinstance(again, Model) and again.config == made.config
    for name, value in made.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
    x, given = inputs()
    with pytest.raises(BedstoneError, match=r"model\.components: 9 were given"):
        CodePriorConfig(embed=8, components=9)
    with pytest.raises(BedstoneError, match=r"text: .* states of width 8 for each of 3 rows"):
        made.network(x, **{**given, "text": given["text"][..., :4]})
    with pytest.raises(BedstoneError, match="text: has 20 states; this prior reads 16"):
        made.network(x, **{**given, "text": given["text"].repeat(1, 5, 1), "text_keep": None})
    with pytest.raises(BedstoneError, match="prior: its clip_std is 0"):
        make(CONFIG)(x, **given)
