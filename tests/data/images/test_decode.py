"""Golden pixels of every form of picture, and files that mean harm."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bedstone.data.images.decode import decode, find_images, gif_size, jpeg_scans, webp_size
from bedstone.errors import BedstoneError

# Three rows of two: no orientation leaves it as it is.
COLOURS = np.array(
    [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]], [[0, 0, 0], [255, 255, 255]]],
    np.uint8,
)


def saved(image, kind, **options) -> bytes:
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def blocks(pixels, side=16):
    """Every pixel as a square, which JPEG keeps in its middle."""
    return pixels.repeat(side, axis=0).repeat(side, axis=1)


def middles(pixels, side=16):
    return pixels[side // 2 :: side, side // 2 :: side]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, colour, raw, *extra):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *extra,
        chunk(b"IDAT", zlib.compress(raw)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_exact_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(saved(COLOURS, kind, **options))
    assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]
    np.testing.assert_array_equal(found, COLOURS)


def test_jpeg():
    found = middles(decode(saved(blocks(COLOURS), "JPEG", quality=95)))
    assert np.abs(found.astype(int) - COLOURS).max() <= 6


UPRIGHT = {  # what the six pixels r g / b y / k w become, as the EXIF standard draws them
    1: ["rg", "by", "kw"],
    2: ["gr", "yb", "wk"],
    3: ["wk", "yb", "gr"],
    4: ["kw", "by", "rg"],
    5: ["rbk", "gyw"],
    6: ["kbr", "wyg"],
    7: ["wyg", "kbr"],
    8: ["gyw", "rbk"],
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", UPRIGHT)
def test_orientation(turn, kind):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"lossless": True} if kind == "WEBP" else {}
    found = middles(decode(saved(blocks(COLOURS), kind, exif=exif, **options)))
    names = dict(zip("rgbykw", COLOURS.reshape(6, 3).astype(int), strict=True))
    wanted = np.array([[names[letter] for letter in row] for row in UPRIGHT[turn]])
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 8


@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\xff", b"nonsense", b""])
def test_damaged_exif_leaves_the_picture_as_it_lies(exif):
    data = saved(COLOURS, "PNG", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode(data), COLOURS)


def test_palette_with_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    one = decode(saved(image, "PNG", transparency=1))
    np.testing.assert_array_equal(one, [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]])
    some = decode(saved(image, "PNG", transparency=bytes([255, 0, 128])))
    np.testing.assert_array_equal(some, [[[255, 0, 0], [255, 255, 255], [127, 127, 255]]])
    gif = decode(saved(image, "GIF", transparency=2))
    np.testing.assert_array_equal(gif, [[[255, 0, 0], [0, 255, 0], [255, 255, 255]]])


def test_one_bit():
    image = Image.fromarray(np.array([[True, False, True]]))
    for kind in ("PNG", "BMP", "TIFF"):
        assert decode(saved(image, kind))[0, :, 0].tolist() == [255, 0, 255]


def test_alpha_lies_over_white():
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    wanted = [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]
    for data in (saved(rgba, "PNG"), saved(rgba, "TIFF"), rgba):
        np.testing.assert_array_equal(decode(data), wanted)
    np.testing.assert_array_equal(decode(saved(rgba, "WEBP", lossless=True, exact=True)), wanted)
    grey = np.array([[[10, 255], [10, 0], [0, 51]]], np.uint8)
    found = decode(saved(Image.fromarray(grey, "LA"), "PNG"))
    assert found[0, :, 0].tolist() == [10, 255, 204]
    hole = Image.fromarray(COLOURS)
    found = decode(saved(hole, "PNG", transparency=(255, 0, 0)))
    assert found[0, 0].tolist() == [255, 255, 255] and found[0, 1].tolist() == [0, 255, 0]


INKS = np.array([[[0, 255, 255, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
PAINTED = np.array([[[255, 0, 0], [0, 255, 255], [0, 0, 0], [255, 255, 255]]])


def test_cmyk():
    image = Image.fromarray(INKS, "CMYK")
    np.testing.assert_array_equal(decode(saved(image, "TIFF")), PAINTED)
    data = saved(Image.fromarray(blocks(INKS), "CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data  # whose inks are inverted in the file
    assert np.abs(middles(decode(data)) - PAINTED).max() <= 6


def test_cmyk_without_adobes_marker_is_not_inverted():
    data = saved(Image.fromarray(255 - blocks(INKS), "CMYK"), "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    plain = data[:start] + data[start + 2 + length :]
    assert b"Adobe" not in plain
    assert np.abs(middles(decode(plain)) - PAINTED).max() <= 6


def test_sixteen_bits_are_scaled():
    grey = np.array([[0, 257, 32768, 65535]], np.uint16)
    wanted = [0, 1, 128, 255]
    for kind in ("PNG", "TIFF"):
        assert decode(saved(grey, kind))[0, :, 1].tolist() == wanted
    assert decode(grey)[0, :, 2].tolist() == wanted
    big = Image.frombytes("I;16B", (4, 1), grey.astype(">u2").tobytes())
    assert decode(saved(big, "TIFF"))[0, :, 0].tolist() == wanted
    assert decode(Image.fromarray(grey.astype(np.int32)))[0, :, 0].tolist() == wanted
    raw = b"\0" + struct.pack(">6H", 0, 32768, 65535, 65535, 0, 32768)
    np.testing.assert_array_equal(decode(png(2, 1, 16, 2, raw)), [[[0, 128, 255], [255, 0, 128]]])
    hole = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 7, 32768), chunk(b"tRNS", b"\0\x07"))
    assert decode(hole)[0, :, 0].tolist() == [255, 128]


def test_tiff_whose_zero_is_white():
    found = decode(saved(np.array([[0, 65535]], np.uint16), "TIFF", tiffinfo={262: 0}))
    assert found[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.fromarray(np.full((4, 5, 3), shade, np.uint8)) for shade in (200, 30)]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    np.testing.assert_array_equal(found, np.full((4, 5, 3), 200))


def test_sources(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(COLOURS, "PNG"))
    lazy = Image.open(path)
    held = {"bytes": path.read_bytes(), "path": None}
    for source in (path, str(path), path.read_bytes(), COLOURS, lazy, held, {"path": str(path)}):
        np.testing.assert_array_equal(decode(source), COLOURS)
    assert decode(COLOURS) is not COLOURS
    assert decode(COLOURS[:, :, 0])[1, 1].tolist() == [255, 255, 255]
    assert decode(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    "source",
    [COLOURS.astype(float), COLOURS[:, :, :2], COLOURS[None], COLOURS[:0], 7, None],
)
def test_sources_that_are_no_picture(source):
    with pytest.raises(BedstoneError, match="row 3"):
        decode(source, where="row 3")


def test_smaller_scale_is_never_below_the_side_wanted():
    data = saved(blocks(COLOURS, 100), "JPEG")
    assert decode(data).shape == (300, 200, 3)
    assert decode(data, size=100).shape == (150, 100, 3)
    assert decode(data, size=101).shape == (300, 200, 3)
    assert decode(data, size=1).shape == (38, 25, 3)
    picture = Image.open(io.BytesIO(data))
    assert decode(picture, size=1).shape == (300, 200, 3)  # which is the caller's


# What must be refused.


def refused(source, *parts, **options):
    with pytest.raises(BedstoneError) as caught:
        decode(source, **options)
    for text in parts:
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_truncated(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = saved(noise, kind)
    for share in (0.02, 0.1, 0.3, 0.6, 0.9):
        path = tmp_path / f"half-{share}.jpg"
        path.write_bytes(data[: int(share * len(data))])
        refused(path, str(path))


def test_progressive_jpeg_cut_short():
    data = saved(blocks(COLOURS), "JPEG", progressive=True)
    refused(data[: len(data) // 2], "a picture")


def bombs():
    side = 10_000  # above our cap, below Pillow's
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    yield "png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)
    small = saved(COLOURS, "JPEG")
    at = small.index(b"\xff\xc0") + 5
    yield "jpeg", small[:at] + struct.pack(">HH", side, side) + small[at + 4 :]
    small = saved(COLOURS, "BMP")
    yield "bmp", small[:18] + struct.pack("<ii", side, side) + small[26:]
    small = saved(COLOURS, "GIF", disposal=2, transparency=0)  # Pillow fills it while opening
    yield "gif screen", small[:6] + struct.pack("<HH", side, side) + small[10:]
    assert b"!\xf9" in small
    at = small.index(b",", 13 + 3 * 2 ** ((small[10] & 7) + 1)) + 5
    yield "gif frame", small[:at] + struct.pack("<HH", side, side) + small[at + 4 :]
    wide = b"\x10\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    yield "webp canvas", b"RIFF\x1e\0\0\0WEBPVP8X" + struct.pack("<I", 10) + wide + b"\0" * 16
    bits = (side - 1) | (side - 1) << 14
    yield (
        "webp lossless",
        b"RIFF\x1e\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + struct.pack("<I", bits) + b"\0" * 9,
    )
    small = bytearray(saved(COLOURS, "TIFF"))
    for tag in (256, 257):
        at = small.index(struct.pack("<HHI", tag, 4, 1))
        small[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    yield "tiff", bytes(small)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in bombs()])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_decoding(data, monkeypatch):
    def decoded(*_):
        raise AssertionError("its pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("PIL._webp.WebPAnimDecoder", decoded)
    monkeypatch.setattr("PIL.Image.core.fill", decoded)
    refused(data, "photo.x", "67,108,864 pixels that are decoded", where="photo.x")


def test_the_cap_is_the_callers():
    data = saved(np.zeros((30, 40, 3), np.uint8), "PNG")
    assert decode(data, most_pixels=1200).shape == (30, 40, 3)
    for source in (data, Image.open(io.BytesIO(data)), decode(data)):
        refused(source, "40 x 30", most_pixels=1199)


def test_a_jpeg_of_endless_passes():
    data = saved(np.zeros((64, 64, 3), np.uint8), "JPEG", progressive=True)
    assert 5 < jpeg_scans(data) < 20
    last = data.rindex(b"\xff\xda")
    many = data[:last] + data[last:-2] * 5000 + b"\xff\xd9"
    assert jpeg_scans(many) > 5000
    refused(many, "passes", most_pixels=64 * 64 * 10)
    assert jpeg_scans(data + many) == jpeg_scans(data)  # what lies behind the end isn't decoded
    hidden = data[:last] + b"\xff\xfe\0\x04\xff\xd9" + data[last:]  # an end inside of a comment
    assert jpeg_scans(hidden) == jpeg_scans(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"Dear diary, this is a photo.\n" * 30, "text"),
        ("Liebes Tagebuch, schöne Grüße".encode(), "text"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "SVG"),
        (b'<?xml version="1.0"?>\n<svg></svg>', "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\xff\xd8", "start is broken"),
        (b"\xff\xd8\xff\xe0" * 200, "broken"),
        (bytes(100), "start is broken"),
    ],
)
def test_what_is_no_picture(data, message, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    refused(path, "photo.jpg", message)


def test_a_format_that_is_not_read_is_named(tmp_path):
    """By its ending and by its brand; a JPEG that is called so is read, a raw's preview isn't."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    refused(tmp_path / "a.heic", "a.heic", "in the format HEIC", "save it as one of these")
    for brand, kind in {b"heix": "HEIC", b"avif": "AVIF", b"isom": "a video"}.items():
        refused(b"\0\0\0\x18ftyp" + brand + bytes(20), f"no picture but {kind}")
    Image.fromarray(COLOURS).save(tmp_path / "b.dng", "TIFF")
    refused(tmp_path / "b.dng", "in the format DNG")
    Image.fromarray(COLOURS).save(tmp_path / "c.HEIC", "JPEG")
    assert decode(tmp_path / "c.HEIC").shape == COLOURS.shape


def test_postscript_never_reaches_its_program(tmp_path, monkeypatch):
    """Neither by its bytes nor inside a picture of Pillow that somebody else opened."""

    def run(*_, **__):
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    path = tmp_path / "photo.png"
    Image.fromarray(COLOURS).save(path, "EPS")
    refused(path, "PostScript")
    refused(Image.open(path), "EPS")


def test_paths_that_hold_no_file(tmp_path):
    refused(tmp_path, "is a folder")
    refused(tmp_path / "none.jpg", "none.jpg", "No such file")
    refused("nul\0.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "pipe")


def test_other_numbers_have_no_white():
    refused(saved(Image.new("F", (2, 2), 0.5), "TIFF"), "floating-point")
    refused(Image.new("I", (2, 2), 70_000), "70000")


@pytest.mark.parametrize("size", [(1, 1), (1, 65535), (65535, 1)])
def test_thin_pictures(size):
    found = decode(saved(Image.new("RGB", size, "red"), "PNG"))
    assert found.shape == (size[1], size[0], 3) and (found == [255, 0, 0]).all()


def test_random_damage_is_always_reported():
    rng, refused = np.random.default_rng(1), 0
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"):
        data = saved(blocks(COLOURS, 8), kind)
        for _ in range(60):
            harmed = bytearray(data)
            for _ in range(rng.integers(1, 6)):
                harmed[rng.integers(len(harmed))] = rng.integers(256)
            try:
                found = decode(bytes(harmed), most_pixels=1 << 20)
                assert found.ndim == 3 and found.dtype == np.uint8
            except BedstoneError:
                refused += 1
    assert 60 < refused < 6 * 60


def test_sizes_declared_by_headers():
    for width, height in ((1, 1), (300, 7), (70, 500)):
        image = Image.new("RGB", (width, height), "blue")
        assert gif_size(saved(image, "GIF", comment=b"x, y" * 100)) == (width, height)
        assert webp_size(saved(image, "WEBP", lossless=True)) == (width, height)
        assert webp_size(saved(image, "WEBP")) == (width, height)
        again = saved(image, "WEBP", save_all=True, append_images=[Image.new("RGB", image.size)])
        assert webp_size(again) == (width, height)


def test_find_images(tmp_path):
    for name in (
        "b.PNG",
        "a.jpg",
        "in/c.webp",
        ".hidden.jpg",
        ".git/d.jpg",
        "notes.txt",
        "in/._c.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    other = tmp_path.with_name(tmp_path.name + "-other")
    other.mkdir()
    (other / "e.gif").write_bytes(b"")
    (tmp_path / "linked").symlink_to(other)
    names = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert names == ["a.jpg", "b.PNG", "in/c.webp", "linked/e.gif"]
    with pytest.raises(BedstoneError, match="no such folder"):
        find_images(tmp_path / "none")
