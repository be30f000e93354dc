"""Search spaces: how they are written, and what is refused before anything runs."""

import pytest

from bedstone.errors import BedstoneError
from bedstone.inspect.space import Dimension, check_space, read_space
from runs import recipe_values

SMALL = "validation_loss"


def test_ranges_and_values_are_read_from_words_and_files(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "optim:\n  lr: log:1e-4..1e-2\n  betas: [[0.9, 0.95], [0.9, 0.99]]\n"
        "schedule.decay: 0.2..1.0\nbatch_size: [8, 16]\n"
    )
    found = read_space(path, ["model.layers=2..8/2 model.heads=log:1..8", "precision=bf16,fp32"])
    assert found == [
        Dimension("optim.lr", 1e-4, 1e-2, log=True),
        Dimension("optim.betas", choices=([0.9, 0.95], [0.9, 0.99])),
        Dimension("schedule.decay", 0.2, 1.0),
        Dimension("batch_size", choices=(8, 16)),
        Dimension("model.layers", 2, 8, step=2),
        Dimension("model.heads", 1, 8, log=True),
        Dimension("precision", choices=("bf16", "fp32")),
    ]
    assert [each.whole for each in found if not each.choices] == [False, False, True, True]
    assert read_space(None, ["a.b=1e-3,1e-2"])[0].choices == (1e-3, 1e-2)


def test_what_a_space_holds():
    layers = Dimension("model.layers", 2, 8, step=2)
    assert [n for n in range(12) if layers.holds(n)] == [2, 4, 6, 8]
    assert not layers.holds(4.5) and not layers.holds(None) and not layers.holds(True)
    assert Dimension("x", 0.1, 0.5).holds(0.5) and not Dimension("x", 0.1, 0.5).holds("0.3")
    assert Dimension("x", choices=(None, "a")).holds(None)
    for each in (layers, Dimension("x", choices=([1, 2], None)), Dimension("y", 1e-3, 1.0, True)):
        assert [each.read(each.stored(value)) for value in each.probes()] == list(each.probes())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optim.lr", "key=values"),
        ("optim.lr=1e-3", "one value"),
        ("optim.lr=1e-2..1e-3", "the lower one first"),
        ("optim.lr=log:0..1", "above 0"),
        ("optim.lr=log:1..9/2", "without a step"),
        ("optim.lr=a..b", "can't be read"),
        ("optim.lr=0.1..inf", "finite"),
        ("optim.lr=1..4/9", "within the range"),
        ("batch_size=8,8", "twice"),
        ("batch_size=8,16 batch_size=1..4", "twice"),
    ],
)
def test_what_is_no_range_is_refused(word, said):
    with pytest.raises(BedstoneError, match=said):
        read_space(None, [word])


def test_no_space_is_refused():
    with pytest.raises(BedstoneError, match="no field is varied"):
        read_space(None)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optim.lrr=1e-3..1e-2", "perhaps 'optim.lr' is meant"),
        ("lr=1e-3..1e-2", "perhaps 'optim.lr' is meant"),
        ("model.widht=32,64", "perhaps 'model.width' is meant"),
        ("batch_size=4,many", "expected a whole number"),
        ("batch_size=0..4", "at least 1"),
        ("schedule.shape=linear,round", "round"),
        ("model.layout=qwen3,bert", "another method"),
        ("seed=0..9", "luck"),
        ("out=a,b", "how a run is kept"),
        ("data.validation_share=0.1..0.5", "measured on"),
        ("budget=10,20", "what trials spend"),
        ("tokenizer.vocab_size=300..400", "bits_per_byte"),
    ],
)
def test_a_space_that_no_recipe_takes_is_refused(tmp_path, word, said):
    with pytest.raises(BedstoneError, match=said):
        check_space(read_space(None, [word]), recipe_values(tmp_path), SMALL)


def test_a_space_that_a_recipe_takes_passes(tmp_path):
    words = ["optim.lr=log:1e-4..1e-2", "model.layers=1..3", "optim.kind=muon,adamw"]
    check_space(read_space(None, words), recipe_values(tmp_path), SMALL)
    tokens = read_space(None, ["tokenizer.vocab_size=300..400"])
    check_space(tokens, recipe_values(tmp_path), "validation_bits_per_byte")
