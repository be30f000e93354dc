"""Arrays of one's own as signals: what they hold comes out, what can't be is named."""

import struct
import zipfile
from functools import partial

import numpy as np
import pytest

from bedstone.data.signals.open import array_signals, signals_to_measure
from bedstone.data.signals.signals import SignalsConfig
from bedstone.errors import BedstoneError
from bedstone.recipes.diffusion import DiffusionRecipe
from diffusion_runs import signals_of

VALUES = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4, 4), dtype=np.uint8)
NAMES = np.array(["ball", "box"] * 10)
read = partial(array_signals, kind="volume")


def test_volumes_with_classes_and_texts(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, signals=VALUES[:, 0], classes=NAMES, captions=np.array(["a thing"] * 20))
    found = read(path, SignalsConfig(), "class")
    assert found.names == ("ball", "box")
    assert found.classes.tolist() == [0, 1] * 10
    assert found.shape == (1, 4, 4, 4)
    np.testing.assert_allclose(found.read([3])[0], VALUES[3] / 127.5 - 1, atol=1e-6)
    assert read(path, SignalsConfig(), "text").captions[7] == ("a thing",)
    assert read(path, SignalsConfig(), "none").classes is None
    assert len(read(path, SignalsConfig(most_rows=5), "class")) == 5
    numbered = str(tmp_path / "n.npz")
    np.savez(numbered, signals=VALUES.astype(np.float32) / 255, classes=[10, 9] * 10)
    assert read(numbered, SignalsConfig(), "class").names == ("9", "10")


def test_a_recipe_opens_them(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, signals=VALUES, classes=NAMES)
    data = SignalsConfig(source=path, validation_share=0.3)
    recipe = DiffusionRecipe(task="class-to-volume", data=data)
    learnt, held = signals_of(recipe)
    assert len(learnt) + len(held) == 20
    assert learnt.kind == "volume"
    assert len(signals_to_measure(recipe.data, recipe.task, path, 6)) == 6
    fewer = str(tmp_path / "f.npz")
    np.savez(fewer, signals=VALUES[:3], classes=["box"] * 3)
    assert signals_to_measure(
        recipe.data, recipe.task, fewer, 0, learnt.names
    ).classes.tolist() == [1, 1, 1]


def test_what_cannot_be_read(tmp_path):
    path = str(tmp_path / "a.npz")
    np.savez(path, signals=VALUES, classes=NAMES)
    whole = SignalsConfig()
    for wrong, message in (
        (lambda: read("none.npz", whole, "class"), r"'none\.npz' is no \.npz file"),
        (lambda: read(path, whole, "text"), "no array 'captions'"),
        (lambda: read(path, SignalsConfig(size=(4, 4, 8)), "class"), "data.size"),
        (lambda: read(path, SignalsConfig(memory_mb=1e-4), "class"), "data.memory_mb"),
        (lambda: read(path, whole, "class", names=["ball"]), "'box', which is none of the 1"),
    ):
        with pytest.raises(BedstoneError, match=message):
            wrong()
    flat, pickled, broken = (str(tmp_path / f"{n}.npz") for n in "fpb")
    np.savez(flat, signals=VALUES[:, 0, 0])
    np.savez(pickled, signals=np.array([{"a": 1}], dtype=object))
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    single, odd = str(tmp_path / "s.npz"), str(tmp_path / "o.npz")
    np.savez(single, signals=VALUES, classes=np.int64(3), captions=np.array("a thing"))
    np.savez(odd, signals=VALUES.repeat(2, 1))
    for each, condition, message in (
        (single, "class", r"classes of shape \(\); expected one for each of 20"),
        (single, "text", r"captions of shape \(\)"),
        (odd, "none", "signals of 2 channels"),
    ):
        with pytest.raises(BedstoneError, match=message):
            read(each, whole, condition)
    for each, message in ((flat, "has 3 sides"), (pickled, "can't be read"), (broken, "read")):
        with pytest.raises(BedstoneError, match=message):
            read(each, whole, "none")


def header(shape):
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def packed(path, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("signals.npy", data)
    return path.read_bytes()


def test_archives_that_are_encrypted_or_packed_otherwise(tmp_path):
    path = tmp_path / "a.npz"
    body = packed(path, header((12, 1, 8, 8, 8)) + b"\0" * 6144)
    assert len(read(str(path), SignalsConfig(), "none")) == 12
    encrypted = body.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\1\0")
    encrypted = encrypted.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0")
    method = body.replace(b"PK\x03\x04\x14\0\0\0\x08", b"PK\x03\x04\x14\0\0\0\x63")
    method = method.replace(b"\x14\x03\x14\0\0\0\x08", b"\x14\x03\x14\0\0\0\x63")
    for data in (encrypted, method, body[:60], b"", b"PK"):
        path.write_bytes(data)
        with pytest.raises(BedstoneError, match=r"a\.npz.*can't be read"):
            read(str(path), SignalsConfig(), "none")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((10**6, 1, 10**3, 10**3, 10**3), "declares the shape"),
        ((10**30,), "declares the shape"),
        ((-1, 8, 8, 8), "declares the shape"),
    ],
)
def test_headers_of_arrays_are_compared_with_the_file(tmp_path, shape, said):
    packed(tmp_path / "a.npz", header(shape))
    with pytest.raises(BedstoneError, match=said):
        read(str(tmp_path / "a.npz"), SignalsConfig(), "none")


def test_an_array_larger_than_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    packed(tmp_path / "a.npz", header((1000, 1, 32, 32, 32)) + b"\0" * 32_768_000)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(BedstoneError, match=r"data\.memory_mb"):
        read(str(tmp_path / "a.npz"), SignalsConfig(memory_mb=10), "none")
