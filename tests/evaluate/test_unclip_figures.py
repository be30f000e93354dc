"""Figures of unCLIP: retrieval, what a prior adds, variations, ways between and turned by words."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bedstone.data.signals.signals import Signals
from bedstone.evaluate.unclip import (
    BETWEEN,
    EmbeddingFigures,
    is_idle,
    prior_figures,
    rank_correlation,
    retrieval,
)
from bedstone.models.unclip.network import joint


def vectors(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))


def test_retrieval_among_groups() -> None:
    images = vectors(250)
    assert retrieval(images * 3, images) == 1.0  # lengths don't count
    assert retrieval(images.roll(1, 0), images) == 0.0
    half = torch.where(torch.arange(250)[:, None] % 2 == 0, images, -images)
    assert retrieval(half, images) == 0.5
    chance = retrieval(vectors(5000, 1), vectors(5000))
    assert 0.003 < chance < 0.02
    assert retrieval(images[:7], images[:7], among=100) == 1.0  # of fewer, among all of them
    late = torch.where(torch.arange(250)[:, None] < 200, images, -images)
    assert retrieval(late, images) == 1.0  # what is left over of groups isn't read


def test_images_of_one_caption_count_as_one() -> None:
    images = vectors(200)
    pairs = [row // 2 for row in range(200)]
    swapped = images.view(100, 2, -1).flip(1).flatten(0, 1)
    assert retrieval(swapped, images) == 0.0 and retrieval(swapped, images, pairs) == 1.0
    assert retrieval(images.roll(2, 0), images, pairs) == 0.0
    found = prior_figures(swapped, images, images, pairs)
    assert found["retrieval"] == found["retrieval_words"] == 1.0
    assert found["retrieval_shuffled"] == 0.5  # the other of the pair, or of another pair


def test_a_prior_beside_the_words_and_chance() -> None:
    images, words = vectors(300), vectors(300, 1)
    found = prior_figures(images + 0.1 * words, images * 0.1 + words, images)
    assert found["retrieval"] == 1.0 and found["cosine"] > 0.95
    assert found["retrieval_words"] < 0.5 and found["cosine_words"] < 0.5
    assert found["retrieval_shuffled"] < 0.05


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, 3, 9], 1.0), ([4, 3, 2, 1], -1.0), ([5, 5, 5], 0.0), ([1, 1, 2, 2], 0.894)],
)
def test_rank_correlation(values: list[float], expected: float) -> None:
    found = rank_correlation(np.array(values, float))
    assert found == pytest.approx(expected, abs=1e-3)
    assert rank_correlation(-np.array(values, float)) == pytest.approx(-expected, abs=1e-3)


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).integers(0, 5, 11).astype(float)
    assert rank_correlation(values) == pytest.approx(stats.spearmanr(np.arange(11), values)[0])


# Real images: what a drawer that gives the nearest of them back is worth.

COLOURS = ("red", "blue", "green")
PER = 4  # pictures of a circle of each colour


def pixels() -> np.ndarray:
    chance = np.random.default_rng(0)
    found = chance.integers(0, 40, (len(COLOURS) * PER, 3, 8, 8), dtype=np.uint8)
    for row in range(len(found)):
        found[row, row // PER] += 200
    return found


def signals() -> Signals:
    captions = [[f"a {COLOURS[row // PER]} circle"] for row in range(len(COLOURS) * PER)]
    return Signals(pixels(), kind="image", name="t", captions=captions)


class Nearest:
    """Draws the real image whose embedding is nearest, or one `shift` places after it."""

    def __init__(self, shift: int = 0) -> None:
        self.shift, self.prompts = shift, None
        self.real = torch.from_numpy(pixels()).float() / 127.5 - 1
        self.clip = SimpleNamespace(images=self._vectors)
        self.model = SimpleNamespace(
            image_embeddings=lambda v: joint(torch.as_tensor(v)), prior=None
        )
        self.own = joint(torch.as_tensor(self._vectors(pixels().transpose(0, 2, 3, 1))))

    def _vectors(self, images: Any) -> np.ndarray:
        flat = np.stack(list(images)).reshape(len(images), -1, 3).astype(np.float32)
        means = np.concatenate((flat.mean(1), flat.std(1) / 4), 1)  # (n, 6)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def decoded(self, rows: Tensor, seeds: Any, record: Any, given: Any, **more: Any) -> Any:
        self.prompts = more.get("prompts")
        nearest = (joint(rows) @ self.own.T).argmax(1)
        return SimpleNamespace(signals=self.real[(nearest + self.shift) % len(self.real)])

    turn = 0.4

    def changed(self, starts: Tensor, texts: Any, prompts: Any) -> Tensor:
        colours = [text.split()[1] for text in texts]
        at = [COLOURS.index(each) * PER if each in COLOURS else 0 for each in colours]
        return self.own[at]


class Sees:
    """A judge that says what the nearest colour is."""

    size = 8

    def things(self, images: Tensor) -> list[Counter[tuple[str, str]]]:
        best = images.mean((2, 3)).argmax(1).tolist()
        return [Counter({("circle", COLOURS[number]): 1}) for number in best]


def figures(shift: int = 0) -> EmbeddingFigures:
    drawer: Any = Nearest(shift)
    judge: Any = Sees()
    return EmbeddingFigures(drawer, judge, signals())


def test_copies_agree_and_are_no_variations() -> None:
    found = figures().variations(100)
    assert found["variations/agreement"] == 1.0
    assert found["variations/ratio"] == pytest.approx(0.0, abs=1e-6)
    other = figures(shift=1).variations(100)  # the next picture: of another colour at each fourth
    assert other["variations/agreement"] == 0.75 and other["variations/ratio"] > 0.9
    wrong = figures(shift=PER).variations(100)
    assert wrong["variations/agreement"] == 0.0


def test_what_the_denoiser_makes_of_real_embeddings() -> None:
    whole = figures()
    assert whole.by_image(100) == {"right/image embedding": 1.0}
    drawer: Any = whole.drawer
    assert drawer.prompts == whole.captions
    assert figures(shift=1).by_image(100) == {"right/image embedding": 0.75}
    assert figures(shift=1).by_image(3) == {"right/image embedding": 1.0}


def test_ways_between_rise_to_their_ends() -> None:
    found = figures()
    straight = found.between(6)["between/spearman"]
    assert 0.5 < straight <= 1.0
    turned = figures()
    decode = turned.decode
    turned.decode = lambda rows, seeds: decode(rows.flip(0), seeds)  # type: ignore[method-assign]
    assert turned.between(6)["between/spearman"] == pytest.approx(-straight, abs=0.05)
    assert BETWEEN == 11


def test_no_prior_has_no_retrieval() -> None:
    assert figures().retrieval() == {}
    assert figures().differences(3).keys() == {"differences/changed", "differences/shape stays"}


def test_a_prior_is_idle_where_other_embeddings_cost_nothing() -> None:
    assert is_idle(0.82, 0.81) and is_idle(0.82, 0.9)
    assert not is_idle(0.82, 0.4) and not is_idle(0.82, 0.75)
    assert not is_idle(0.0, 0.0)  # where nothing is right, nothing can be said
