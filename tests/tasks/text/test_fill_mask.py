"""fill-mask: masks in long texts, targets, what is wrong."""

import pytest
import torch

import bedstone
from bedstone.data.text.encode import text_input
from bedstone.data.text.packing import pack
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from small_models import SENTENCES, model

LONG = " ".join(SENTENCES * 8)


@pytest.fixture(scope="module")
def fill():
    return bedstone.pipeline("fill-mask", model(HeadConfig("pretraining")))


def test_the_best_tokens_of_a_mask(fill):
    text = "the [MASK] dogs"
    row = text_input(fill.tokenizer, text, special_names=True)
    network = fill.model.network
    with torch.no_grad():
        states = network.packed_states(pack([row]))
        scores = network.head.words(states[row.ids.index(fill.tokenizer.mask_id)]).softmax(-1)
    found = fill(text, top_k=3)
    values, tokens = scores.topk(3)
    assert [each["token"] for each in found] == tokens.tolist()
    assert [each["score"] for each in found] == pytest.approx(values.tolist(), abs=1e-5)
    assert list(found[0]) == ["score", "token", "token_str", "sequence"]
    assert len(fill(text, top_k=10_000)) == fill.model.config.vocab_size


def test_masks_of_a_long_text_are_each_read_once_with_text_on_both_sides(fill, monkeypatch):
    fed = []
    inner = fill.engine.network.packed_states

    def spy(packed, *read):
        fed.extend(ids.tolist() for ids in packed.ids[0].split(list(packed.lengths)))
        return inner(packed, *read)

    monkeypatch.setattr(fill.engine.network, "packed_states", spy)
    one, many = f"{LONG} a [MASK] cat {LONG}", " [MASK] ".join([LONG] * 4)
    found = fill(one, top_k=2)
    assert len(fed) == 1  # windows without a mask are not read
    place = fed[0].index(fill.tokenizer.mask_id)
    assert 16 <= place < 48
    assert len(found) == 2
    assert found[0]["sequence"].count("unfriendly") == 16  # the whole text
    several = fill(many)
    assert [len(each) for each in several] == [5, 5, 5]
    assert several[0][0]["sequence"].count("[MASK]") == 2


def test_the_name_of_the_mask_alone_is_special(fill):
    other = fill("the [MASK] dogs", targets=["cat", "red"])
    assert {each["token_str"] for each in other} == {"cat", "red"}
    assert [each["token_str"] for each in fill("a [MASK]", targets="cat")] == ["cat"]


@pytest.mark.parametrize(
    ("value", "options", "said"),
    [
        ("the dogs", {}, r"holds no mask; write \[MASK\]"),
        ("the <mask> dogs", {}, "holds no mask"),
        (f"{LONG} [MASK]", {"truncation": True}, "what truncation cuts"),
        ("a [MASK]", {"top_k": 0}, "top_k: 0"),
        ("a [MASK]", {"targets": []}, "targets: "),
        ("a [MASK]", {"targets": [3]}, "targets: "),
        ("a [MASK]", {"targets": 3}, "targets: "),
        ("a [MASK]", {"targets": ["cat", ""]}, "targets: "),
    ],
)
def test_what_is_wrong_is_told(fill, value, options, said):
    with pytest.raises(BedstoneError, match=said):
        fill(value, **options)


def test_a_tokenizer_without_a_mask():
    made = model(HeadConfig("language"))
    made.tokenizer.settings.pop("mask_token")
    with pytest.raises(BedstoneError, match=r"fill-mask: needs .*a tokenizer with a mask"):
        bedstone.pipeline("fill-mask", made)
