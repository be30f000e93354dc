"""Safe decoding of image files to RGB pixels.

Defined, and tested on golden pixels: EXIF orientation is applied; palettes, grey, 1-bit and
CMYK become RGB; transparency lies over white; 16-bit values are scaled, not clipped; of an
animation the first frame counts. Colour profiles are not applied, as published processors don't.

A file can't choose its decoder (formats are an allowlist, so PostScript never reaches
Ghostscript), and its size is checked before its pixels are decoded.
"""

import codecs
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from bedstone.errors import BedstoneError

# In JPEG's coded data FF 00 is a plain FF and FF D0..D7 mark restarts; any other is a segment.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

_KINDS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"8BPS", "Photoshop"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself"),
)


def gif_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a GIF's first frame and screen together; None where there is no frame."""
    if len(data) < 13:
        return None
    width, height = _small(data, 6), _small(data, 8)
    at = 13 + _table(data[10])
    while at + 10 <= len(data):
        kind = data[at]
        if kind == 0x2C:  # an image: left, top, width, height
            right = _small(data, at + 1) + _small(data, at + 5)
            bottom = _small(data, at + 3) + _small(data, at + 7)
            return max(width, right), max(height, bottom)
        at += 1
        if kind == 0x21:  # an extension: its label, then blocks, the last of length 0
            at += 1
            while at < len(data) and data[at]:
                at += 1 + data[at]
            at += 1
    return None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP's first chunk declares; None where it declares none."""
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return _small(data, 26) & 0x3FFF, _small(data, 28) & 0x3FFF
    return None


def jpeg_scans(data: bytes) -> int:
    """Passes over the image that a JPEG declares: 1, or some ten of a progressive one."""
    scans, at = 0, 2
    while found := _MARKER.search(data, at):
        at = found.end()
        marker = data[at - 1]
        if marker == 0xD9:  # the end; what phones append behind it is no part of the picture
            break
        if marker not in (0x01, 0xD8):  # all others have a length, which counts itself
            scans += marker == 0xDA
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def looks_like(data: bytes) -> str:
    """The format of bytes that are no image, for a message; empty where it is unknown."""
    if not data:
        return "an empty file"
    for start, name in _KINDS:
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video")
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg")):
        return "SVG" if b"<svg" in data[:4096].lower() else "XML"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    try:
        words = codecs.getincrementaldecoder("utf-8")().decode(text)  # its end may be cut
    except UnicodeDecodeError:
        return ""
    return "text" if words and all(c.isprintable() or c.isspace() for c in words) else ""


def _small(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _table(flags: int) -> int:
    """Bytes of a GIF's colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


# What the files of phones and cameras that begin with `ftyp` are, by their brand.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "CR3",
}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
    ]
)
# Images in formats that aren't read: of phones, cameras, drawings and others.
UNREAD_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "jxr", "tga", "psd", "svg", "ico"),
        *("exr", "hdr", "ppm", "pgm", "pbm", "pnm", "raw", "dng", "cr2", "cr3", "nef", "nrw"),
        *("arw", "orf", "rw2", "raf", "pef", "srw"),
    )
)
MOST_BYTES = 512 * 1024**2  # of a file
PASSES = 20  # over the largest picture: the work that a JPEG may ask for

_READS = "JPEG, PNG, WebP, GIF, BMP and TIFF are read; save it as one of these or leave it out."
_MISNAMED = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM")  # as many a `.heic` that was sent
_ORIENTATION = 0x0112  # of EXIF and TIFF
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: np.rot90(x),
}

Source = bytes | str | Path | np.ndarray | Image.Image | Mapping[str, Any]


def decode(
    source: Source, *, where: str = "", most_pixels: int = 64 * 1024**2, size: int = 0
) -> np.ndarray:
    """The pixels of an image, (H, W, 3) uint8.

    Args:
        source: a file's bytes or its path; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of
            uint8, uint16 or bool; a picture of Pillow; or `{"bytes": ..., "path": ...}`, which is
            how `datasets` holds pictures.
        where: how errors name it; a path names itself.
        most_pixels: a larger picture is refused, before it is decoded.
        size: only so many pixels of the shorter side are wanted: a JPEG may be decoded at a half,
            quarter or eighth of its scale, never below that. 0 decodes all of it.

    Raises:
        BedstoneError: it is no picture, truncated, too large, or of a kind that isn't read.
    """
    if isinstance(source, Mapping):
        where = where or str(source.get("path") or "")
        source = source.get("bytes") or source.get("path") or b""
    where = where or (str(source) if isinstance(source, str | Path) else "a picture")
    if isinstance(source, np.ndarray):
        _check_size(source.shape[1::-1], where, most_pixels)
        return _from_array(source, where)
    if isinstance(source, str | Path):
        source = _read(path := Path(source), where)
        if path.suffix.lower() in UNREAD_SUFFIXES and not source.startswith(_MISNAMED):
            kind = path.suffix[1:].upper()  # such as a raw image, of which TIFF is the preview
            raise BedstoneError(f"{where}: is a picture in the format {kind}. {_READS}")
    if not isinstance(source, bytes | bytearray | memoryview | Image.Image):
        raise BedstoneError(
            f"{where}: {type(source).__name__} was given; expected a picture file's path or bytes, "
            "an array (H, W, 3) or a picture of Pillow."
        )
    try:
        if isinstance(source, Image.Image):
            return _opened(source, where, most_pixels, 0)  # a draft would change the caller's
        with _open(bytes(source), where, most_pixels) as image:
            return _opened(image, where, most_pixels, size)
    except BedstoneError:
        raise
    except Exception as error:  # Pillow raises what its decoders happen to: all mean a bad file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BedstoneError(
            f"{where}: is broken or cut short ({reason[:200]}). Fetch or save the picture again, "
            "or leave it out."
        ) from error


def find_images(folder: str | Path) -> list[Path]:
    """Image files below a folder by their names, sorted; hidden ones are left out.

    Links to folders are followed, each folder being read once.

    Raises:
        BedstoneError: there is no such folder.
    """
    return _find(folder, IMAGE_SUFFIXES)


def find_unread(folder: str | Path) -> list[Path]:
    """Image files below a folder in formats that aren't read, such as HEIC; as `find_images`.

    One beside an image of the same name that is read, as cameras save both, is left out.
    """
    found = _find(folder, UNREAD_SUFFIXES)
    read = {path.with_suffix("") for path in find_images(folder)} if found else set()
    return [path for path in found if path.with_suffix("") not in read]


def _find(folder: str | Path, suffixes: frozenset[str]) -> list[Path]:
    folder = Path(folder)
    if not folder.is_dir():
        raise BedstoneError(f"{folder}: no such folder. Name a folder of pictures.")
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        state = Path(root).stat()
        if (state.st_dev, state.st_ino) in seen:  # a link back up, or a second link here
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                found.append(Path(root, name))
    return sorted(found)


def _read(path: Path, where: str) -> bytes:
    if path.is_dir():
        raise BedstoneError(f"{where}: is a folder, where a picture was expected.")
    if path.exists() and not path.is_file():
        raise BedstoneError(f"{where}: is a device or pipe, where a picture file was expected.")
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise BedstoneError(
                f"{where}: has {size:,} bytes; a picture may have {MOST_BYTES:,}. Save it smaller."
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BedstoneError(f"{where}: can't be read ({reason}).") from error


def _open(data: bytes, where: str, most_pixels: int) -> Image.Image:
    """The image with its header read alone."""
    size = None
    if data.startswith(b"GIF8"):
        size = gif_size(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = webp_size(data)
    if size:
        _check_size(size, where, most_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        kind = looks_like(data)
        fault = f"is no picture but {kind}" if kind else "is no picture, or its start is broken"
        raise BedstoneError(f"{where}: {fault}. {_READS}") from error
    except Image.DecompressionBombError as error:
        raise BedstoneError(_too_large(where, "its declared size", most_pixels)) from error
    _check_size(image.size, where, most_pixels)
    if data.startswith(b"\xff\xd8"):
        work = jpeg_scans(data) * image.width * image.height
        if work > PASSES * most_pixels:
            raise BedstoneError(
                f"{where}: asks for {jpeg_scans(data):,} passes over {image.width:,} x "
                f"{image.height:,} pixels, as no camera does. Save the picture again or leave it "
                "out."
            )
    return image


def _check_size(size: tuple[int, ...], where: str, most_pixels: int) -> None:
    if len(size) == 2 and size[0] * size[1] > most_pixels:
        raise BedstoneError(_too_large(where, f"{size[0]:,} x {size[1]:,} pixels", most_pixels))


def _too_large(where: str, size: str, most_pixels: int) -> str:
    return (
        f"{where}: {size} is more than the {most_pixels:,} pixels that are decoded. Save it "
        "smaller or leave it out."
    )


def _opened(image: Image.Image, where: str, most_pixels: int, size: int) -> np.ndarray:
    """The pixels of an opened image, loaded here if it isn't yet."""
    if image.format not in (None, "MPO", *FORMATS):  # opened by others; it may be lazy
        raise BedstoneError(f"{where}: is a picture in the format {image.format}. {_READS}")
    _check_size(image.size, where, most_pixels)
    if size > 0:
        image.draft(None, (size, size))  # of JPEG alone; others ignore it
    image.load()
    pixels = _rgb(image, where)
    return np.ascontiguousarray(_TURNS.get(_orientation(image), lambda x: x)(pixels))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is often damaged where the pixels are not
        return 1


def _rgb(image: Image.Image, where: str) -> np.ndarray:
    """(H, W, 3) uint8 of a loaded image in any mode of Pillow's."""
    if image.mode.startswith("I"):
        return _grey(*_wide(image, where))
    if image.mode == "F":
        raise BedstoneError(
            f"{where}: holds floating-point values, for which no white is defined. Save it with 8 "
            "or 16 bits a channel."
        )
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow takes all for Adobe's inverted inks; without Adobe's marker they are plain.
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _wide(image: Image.Image, where: str) -> tuple[np.ndarray, int]:
    """Grey values of more than 8 bits with their white."""
    values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise BedstoneError(
            f"{where}: holds whole numbers from {values.min()} to {values.max()}, for which no "
            "white is defined. Save it with 8 or 16 bits a channel."
        )
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(258) == (12,) else 65535  # BitsPerSample
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white
        values = white - values
    clear = image.info.get("transparency")
    return (values if clear is None else np.where(values == clear, white, values)), white


def _from_array(values: np.ndarray, where: str) -> np.ndarray:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    fits = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    if not fits or values.dtype not in (np.uint8, np.uint16, np.bool_) or not values.size:
        raise BedstoneError(
            f"{where}: an array of shape {values.shape} and type {values.dtype}; expected (H, W), "
            "(H, W, 3) or (H, W, 4) of uint8 (0 to 255), uint16 or bool."
        )
    white = {"uint8": 255, "uint16": 65535, "bool": 1}[values.dtype.name]
    if values.ndim == 2:
        return _grey(values, white)
    eight = _eight_bits(values, white)
    if eight.shape[2] == 4:
        return _rgb(Image.fromarray(eight), where)
    return eight.copy() if eight is values else eight


def _eight_bits(values: np.ndarray, white: int) -> np.ndarray:
    if white == 255:
        return values
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _grey(values: np.ndarray, white: int) -> np.ndarray:
    return np.repeat(_eight_bits(values, white)[:, :, None], 3, axis=2)
