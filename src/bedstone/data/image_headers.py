"""What a picture file declares, read before any decoder sees it.

Pillow checks sizes too, but some of its decoders fill memory while they open a file, or work
through any number of passes; what they would do is told here from a few bytes.
"""

import codecs
import re

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
    """Width and height that a WebP's first chunk declares; None where it can't be told."""
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
    """Passes over the picture that a JPEG asks for: 1, or some ten of a progressive one."""
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
    """What bytes that are no picture seem to be; empty where that can't be told."""
    if not data:
        return "an empty file"
    for start, name in _KINDS:
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or a video"
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
