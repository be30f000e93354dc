"""Preprocessing equals transformers' Pillow processors bit by bit; their files both ways."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from bedstone.data.images.decode import decode
from bedstone.data.images.processor import (
    ImageProcessor,
    blip_processor,
    clip_processor,
    plain_processor,
    siglip_processor,
    vit_processor,
)
from bedstone.errors import BedstoneError

FORMS = {
    "clip": (clip_processor, transformers.CLIPImageProcessor),
    "vit": (vit_processor, transformers.ViTImageProcessor),
    "siglip": (siglip_processor, transformers.SiglipImageProcessor),
    "blip": (blip_processor, transformers.BlipImageProcessor),
}
SIZES = [(1, 1), (3, 500), (37, 41), (64, 64), (65, 63), (333, 101), (1, 90), (90, 1), (50, 64)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def published(processor, picture):
    return processor(picture, return_tensors="pt", input_data_format="channels_last").pixel_values


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_equal_to_the_published(kind, size):
    make, theirs = FORMS[kind]
    sides = {"shortest_edge": 64} if kind == "clip" else {"height": 64, "width": 64}
    crop = {"crop_size": {"height": 64, "width": 64}} if kind == "clip" else {}
    picture = noise(*size)
    wanted = published(theirs(size=sides, **crop), picture)
    assert torch.equal(make(64)([picture]), wanted)


@pytest.mark.shared
@pytest.mark.parametrize("kind", FORMS)
def test_equal_on_photos_at_their_own_size(kind, shared_data):
    """The published one opens the file itself."""
    make, theirs = FORMS[kind]
    files = sorted((shared_data / "flickr-1k" / "test").glob("*.jpg"))[:3]
    assert files
    wanted = theirs()([Image.open(file) for file in files], return_tensors="pt").pixel_values
    assert torch.equal(make()([decode(file) for file in files]), wanted)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [(31, 47), (32, 32), (61, 20), (70, 75)])
def test_crops_smaller_and_larger_than_the_picture(size, crop):
    settings = {"crop_size": {"height": crop[0], "width": crop[1]}, "resample": 2}
    wanted = published(
        transformers.CLIPImageProcessor(size={"shortest_edge": 40}, **settings), noise(*size)
    )
    assert torch.equal(ImageProcessor("clip", 40, crop, 2)([noise(*size)]), wanted)
    wanted = published(transformers.CLIPImageProcessor(do_resize=False, **settings), noise(*size))
    assert torch.equal(ImageProcessor("clip", None, crop)([noise(*size)]), wanted)


@pytest.mark.parametrize("resample", range(6))
def test_filters_and_numbers(resample):
    picture = noise(40, 60)
    settings = {
        "resample": resample,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "rescale_factor": 1 / 127.5,
    }
    theirs = transformers.ViTImageProcessor(size={"height": 24, "width": 50}, **settings)
    ours = ImageProcessor(
        "vit", (24, 50), None, resample, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1 / 127.5
    )
    assert torch.equal(ours([picture]), published(theirs, picture))
    assert ours.size == (24, 50)


def test_very_long_pictures_are_never_made_whole(monkeypatch):
    for size in ((1, 6000), (6000, 1), (5, 25001)):
        picture = noise(*size)
        theirs = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        pixels = published(theirs, picture)[0].permute(1, 2, 0)
        wanted = (pixels * torch.tensor(theirs.image_std) + torch.tensor(theirs.image_mean)) * 255
        found = clip_processor(32).fit(picture)
        assert np.abs(found - wanted.numpy()).max() < 1.01
    resize = Image.Image.resize

    def small(self, size, *rest):
        assert size[0] * size[1] <= 5 * 1024**2
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", small)
    assert clip_processor(224).fit(noise(1, 65535)).shape == (224, 224, 3)  # whole: 9.9 GB
    assert vit_processor(224).fit(noise(65535, 1)).shape == (224, 224, 3)
    wide = ImageProcessor("clip", 16384, (8, 8))
    assert wide.fit(np.full((2, 2, 3), 7, np.uint8)).tolist() == np.full((8, 8, 3), 7).tolist()


def test_batches_of_many_sizes_and_of_none():
    processor = clip_processor(16)
    pictures = [noise(20, 30), noise(16, 16), noise(5, 99)]
    together = processor(pictures)
    assert together.shape == (3, 3, 16, 16) and together.dtype == torch.float32
    assert all(torch.equal(together[i : i + 1], processor([p])) for i, p in enumerate(pictures))
    fitted = torch.from_numpy(np.stack([processor.fit(p) for p in pictures]))
    assert torch.equal(processor.normalise(fitted), together)
    assert processor([]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("kind", FORMS)
def test_files_both_ways(kind, tmp_path):
    make, theirs = FORMS[kind]
    theirs().save_pretrained(tmp_path / "theirs")
    assert ImageProcessor.read(tmp_path / "theirs") == make()
    picture = noise(30, 50)
    for ours in (make(48), ImageProcessor(kind, 20, (24, 18), 0, (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))):
        ours.write(tmp_path / "ours")
        assert ImageProcessor.read(tmp_path / "ours") == ours
        opened = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
        assert isinstance(opened, theirs)
        assert torch.equal(published(opened, picture), ours([picture]))


def test_a_whole_processors_file(tmp_path):
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 30})
    values = {"image_processor": processor.to_dict(), "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(values))
    assert ImageProcessor.read(tmp_path) == ImageProcessor("clip", 30, (224, 224))
    (tmp_path / "processor_config.json").write_text('{"feature_extractor": {}}')
    assert ImageProcessor.read(tmp_path) is None
    assert ImageProcessor.read(tmp_path / "none") is None


OLD = [
    {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 28},
    {"image_processor_type": "CLIPImageProcessor", "size": [40, 30], "crop_size": [20, 28]},
    {"image_processor_type": "CLIPImageProcessor", "size": 32, "do_center_crop": True},
    {"image_processor_type": "ViTImageProcessorFast", "size": 32},
    {"image_processor_type": "ViTFeatureExtractor", "size": 32, "do_normalize": False},
    {"image_processor_type": "ViTImageProcessor", "size": 32, "image_mean": [0, 0, 0]},
    {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "resample": 3},
    {"image_processor_type": "BlipImageProcessor", "size": 32},
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 20}},
]


@pytest.mark.parametrize("values", OLD)
def test_old_and_sparse_files(values, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    name = (values.get("image_processor_type") or values["feature_extractor_type"])[:3].lower()
    theirs = next(theirs for kind, (_, theirs) in FORMS.items() if kind.startswith(name))
    opened, ours = theirs.from_pretrained(tmp_path), ImageProcessor.read(tmp_path)
    picture = noise(45, 61)
    torch.testing.assert_close(ours([picture]), published(opened, picture), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "image_processor_type"),
        ([], "mapping"),
        ({"image_processor_type": "SiglipImageProcesor"}, "SiglipImageProcessor"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 3}}, "size"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 3}}, "crop"),
        ({"image_processor_type": "ViTImageProcessor", "size": 0}, "1 to 16384"),
        ({"image_processor_type": "ViTImageProcessor", "size": 10**6}, "1 to 16384"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": "a", "width": 2}},
            "16384",
        ),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, "resample"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [0, 0, 0]}, "std"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [1, 1]}, "doesn't fit"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": "x"}, "doesn't fit"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": {}}, "doesn't fit"),
    ],
)
def test_bad_files(values, message, tmp_path):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(BedstoneError) as caught:
        ImageProcessor.read(tmp_path)
    assert str(path) in str(caught.value) and message in str(caught.value)
    path.write_text("{")
    with pytest.raises(BedstoneError, match="JSON"):
        ImageProcessor.read(tmp_path)


def test_bad_arguments():
    for wrong in (
        {"kind": "klip"},
        {"resize": 10, "crop": None},
        {"resize": (10, 0), "crop": None},
        {"resample": 6},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0,)},
    ):
        with pytest.raises(BedstoneError, match="processor"):
            ImageProcessor(**wrong)
    for picture in (np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)):
        with pytest.raises(BedstoneError, match="expected"):
            clip_processor().fit(picture)


def test_plain():
    processor = plain_processor(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    found = processor([np.full((3, 5, 3), 51, np.uint8)])
    torch.testing.assert_close(found, torch.full((1, 3, 8, 8), 0.2))
    assert plain_processor((4, 6)).size == (4, 6)
