"""The engine of pictures: order, batches, precision, faults, and decoding ahead."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from bedstone.data.images.contrastive import text_rows
from bedstone.data.text.packing import pack
from bedstone.errors import BedstoneError
from bedstone.tasks.images.engine import ImageEngine
from image_models import WORDS, clip_model, labelled_model, pictures


@pytest.fixture(scope="module")
def model():
    return clip_model()


def test_vectors_are_those_of_the_network(model):
    given = pictures(7)
    with torch.no_grad():
        pixels = model.processor(given)
        expected = torch.nn.functional.normalize(model.network.image_features(pixels), dim=-1)
    found = ImageEngine(model).images(given)
    assert found.dtype == np.float32
    assert np.abs(found - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("layout", ["clip", "siglip", "clip_resnet"])
def test_texts_are_those_of_the_network_whatever_stands_beside_them(layout):
    model = clip_model(layout)
    engine = ImageEngine(model)
    texts = [*WORDS, "red", "a " * 20 + "star"]
    found = engine.texts(texts)
    assert found.shape == (5, engine.width)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            rows = pack(text_rows(model.tokenizer, [text], model.config))
            alone = torch.nn.functional.normalize(model.network.text_features(rows), dim=-1)
        assert np.abs(vector - alone[0].numpy()).max() < 1e-5
    assert engine.texts([]).shape == (0, engine.width)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_batches_change_nothing(model, size):
    given = pictures(9)
    whole = ImageEngine(model, batch_size=9).images(given)
    found = ImageEngine(model, batch_size=size, threads=3).images(iter(given))
    assert np.abs(whole - found).max() < 1e-5


@pytest.mark.parametrize("layout", ["clip", "siglip", "clip_resnet"])
def test_bf16_stays_near(layout):
    model = clip_model(layout)
    exact, quick = ImageEngine(model), ImageEngine(model, "bf16")
    assert quick.precision == "bf16"
    given = pictures(4)
    assert (exact.images(given) * quick.images(given)).sum(1).min() > 0.99
    assert (exact.texts(WORDS) * quick.texts(WORDS)).sum(1).min() > 0.99
    assert next(model.network.parameters()).dtype == torch.float32  # it is a copy that is cast


def test_broken_pictures_are_named_or_left_out(model, tmp_path):
    given = pictures(5)
    Image.fromarray(given[0]).save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    mixed = [*given[:3], tmp_path / "cut.png", given[4], b"", "http://example.org/a.png"]
    engine = ImageEngine(model, batch_size=2)
    with pytest.raises(BedstoneError, match=r"cut\.png"):
        engine.images(mixed)
    told = {}
    found = engine.images(mixed, faults=lambda number, error: told.update({number: str(error)}))
    assert sorted(told) == [3, 5, 6]
    assert "cut.png" in told[3]
    assert "fetches none" in told[6]
    whole = engine.images(given)
    assert np.abs(found - whole[[0, 1, 2, 4]]).max() < 1e-5
    assert engine.images([b""], faults=lambda *_: None).shape == (0, engine.width)


def test_the_next_batches_are_decoded_while_the_network_reads(model, monkeypatch):
    """While a slow network reads a batch, the three after it are decoded."""
    engine = ImageEngine(model, batch_size=2, threads=2)
    decoded, lock = [], threading.Lock()
    fitted = engine.fitted

    def slow(picture):
        found = fitted(picture)
        with lock:
            decoded.append(1)
        return found

    monkeypatch.setattr(engine, "fitted", slow)
    seen = []

    def read(network, pixels):
        time.sleep(0.05)
        seen.append(len(decoded))
        return [0] * len(pixels)

    list(engine.run(pictures(12), read))
    assert seen == [8, 10, 12, 12, 12, 12]


def test_what_is_left_before_its_end_leaves_no_thread(model):
    engine = ImageEngine(model, batch_size=1, threads=2)
    results = engine.run(pictures(6), lambda network, pixels: [0] * len(pixels))
    next(results)
    results.close()
    deadline = time.monotonic() + 5
    while any(each.name.startswith("picture-engine") for each in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_several_threads_may_share_an_engine(model):
    engine = ImageEngine(model)
    given = pictures(6)
    expected = engine.images(given)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(engine.images, [given] * 4):
            assert np.abs(found - expected).max() < 1e-5


def test_a_name_is_that_of_the_weights(model):
    first = ImageEngine(model).name
    assert ImageEngine(model, "bf16").name == first
    other = clip_model()
    with torch.no_grad():
        other.network.image_projection.weight[0, 0] += 1
    assert ImageEngine(other).name != first


def test_a_network_of_pictures_alone():
    engine = ImageEngine(labelled_model())
    assert engine.images(pictures(2)).shape == (2, engine.width)
    with pytest.raises(BedstoneError, match="no words"):
        engine.texts(["a cat"])


def test_long_texts_are_cut_and_told(model, caplog):
    engine = ImageEngine(model)
    engine.texts(["red", "a blue " * 200])
    assert "1 of 2 texts" in caplog.text
