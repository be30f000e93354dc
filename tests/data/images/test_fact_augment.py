"""Changes of a picture that leave true what is said of it."""

import numpy as np
import pytest
import torch

from bedstone.data.images.augment import (
    COLOURS,
    COUNTS,
    PLACES,
    SIDES,
    SIZES,
    FactAugment,
    ImageAugment,
    fact_augment,
    facts_of,
)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a man rides a horse", 0),
        ("What is to the left of the sink?", SIDES | PLACES),
        ("Bottom-Right", SIDES | PLACES),
        ("the sign says open", SIDES),
        ("a boat in the middle of a lake", PLACES),
        ("Navy Blue shoes", COLOURS),
        ("What colour is it?", COLOURS),
        ("two dogs", COUNTS),
        ("3", COUNTS),
        ("is there not a dog", COUNTS),
        ("a tiny dog", SIZES),
        ("what is bright?", COLOURS),
        ("a leftover on the copyright page, reddening", 0),  # no word in a word
    ],
)
def test_what_a_text_states(text: str, facts: int) -> None:
    assert facts_of(text) == facts


def test_what_each_fact_forbids() -> None:
    all_of_it = ImageAugment(
        crop=(0.5, 0.9), flip=0.5, rotation=9, scale=(0.8, 1.2), hue=0.1, erase=0.5, size=8
    )
    augment = FactAugment(all_of_it)
    assert augment.allowed(0) == all_of_it
    assert augment.allowed(SIDES).flip == 0
    assert augment.allowed(SIDES).recolours
    colour = augment.allowed(COLOURS)
    assert not colour.recolours and colour.flip == 0.5 and colour.crop == (0.5, 0.9)
    for fact in (PLACES, COUNTS, SIZES):
        kept = augment.allowed(fact)
        assert not kept.turns and kept.crop == (1.0, 1.0) and kept.erase == 0
        assert kept.size == 8 and kept.recolours


def test_each_picture_is_held_back_by_its_own_texts() -> None:
    pixels = torch.arange(6 * 8 * 8 * 3).reshape(6, 8, 8, 3).to(torch.uint8)
    augment = FactAugment(ImageAugment(flip=1.0))
    facts = np.array([0, SIDES, COLOURS, SIDES | COUNTS, 0, SIDES])
    made = augment(pixels, torch.Generator().manual_seed(0), facts)
    for number, fact in enumerate(facts):
        wanted = pixels[number] if fact & SIDES else pixels[number].flip(1)
        assert torch.equal(made[number], wanted)


def test_larger_pictures_come_out_as_the_network_sees_them_whatever_is_said() -> None:
    pixels = torch.zeros(3, 10, 10, 3, dtype=torch.uint8)
    augment = fact_augment({"crop": [0.5, 1.0], "flip": 0.5}, 8)
    assert augment is not None
    made = augment(pixels, torch.Generator(), [0, PLACES, SIDES | COLOURS])
    assert made.shape == (3, 8, 8, 3)
    assert fact_augment({}) is None
