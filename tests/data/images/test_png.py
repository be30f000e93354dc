"""A PNG keeps the recipe it was made by, where others' viewers find it too."""

import numpy as np
import pytest
from PIL import Image

from bedstone.data.images.png import KEY, read_recipe, save_png
from bedstone.errors import BedstoneError

RECIPE = {"prompt": "ein grüner Stern 星", "seed": 3, "steps": [1, 2], "scale": 4.5, "none": None}


def noise(side=20):
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_there_and_back(tmp_path):
    path = save_png(Image.fromarray(noise()), tmp_path / "in" / "a.png", RECIPE)
    assert read_recipe(path) == RECIPE
    assert (np.array(Image.open(path)) == noise()).all()
    with Image.open(path) as image:
        image.load()
        assert "grüner" in image.text[KEY] and "星" in image.text[KEY]
    grey = save_png(Image.fromarray(noise()[..., 0]), tmp_path / "b.png")
    assert read_recipe(grey) is None and np.array(Image.open(grey)).shape == (20, 20)


def test_others_notes_are_not_ours(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_itxt("parameters", "{}")
    notes.add_itxt(KEY, '{"seed": 5}', zip=True)  # squeezed, as another program may
    Image.fromarray(noise()).save(tmp_path / "a.png", pnginfo=notes)
    assert read_recipe(tmp_path / "a.png") == {"seed": 5}


def test_bad_notes(tmp_path):
    with pytest.raises(BedstoneError, match="JSON"):
        save_png(Image.fromarray(noise()), tmp_path / "a.png", {"seed": object()})
    with pytest.raises(BedstoneError, match="JSON"):
        save_png(Image.fromarray(noise()), tmp_path / "a.png", {"loss": float("nan")})
    assert not (tmp_path / "a.png").exists()
    (tmp_path / "b.png").write_bytes(b"GIF89a")
    with pytest.raises(BedstoneError, match="no PNG"):
        read_recipe(tmp_path / "b.png")
    with pytest.raises(BedstoneError, match="can't be read"):
        read_recipe(tmp_path / "none.png")
    good = save_png(Image.fromarray(noise()), tmp_path / "c.png", {"seed": 1}).read_bytes()
    for wrong, message in ((b'["seed": 1]', "broken"), (b'["seed", 1]', "no table")):
        assert len(wrong) == len(b'{"seed": 1}')
        (tmp_path / "d.png").write_bytes(good.replace(b'{"seed": 1}', wrong))
        with pytest.raises(BedstoneError, match=message):
            read_recipe(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes(good[:40])  # cut off: no note, and no crash
    assert read_recipe(tmp_path / "e.png") is None
