"""Bodies of type multipart/form-data, as image routes take them: text fields and files.

The whole body is in memory already, within the bound of a request's bytes; it is split at its
boundary (RFC 7578, RFC 2046 section 5.1). Transfer encodings, nested parts and charsets other than
UTF-8 aren't read.
"""

import re
import typing
from collections.abc import Mapping
from typing import Any

from bedstone.serve.wire import ApiError

PARTS = 64
HEAD = 4096  # bytes of a part's headers
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^\s;,"]{1,70}))', re.ASCII | re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(name|filename)="([^"]*)"', re.ASCII | re.IGNORECASE)


def read_form(body: bytes, content_type: str, kind: type[Any]) -> dict[str, Any]:
    """The fields of a form: bytes of files, and values of texts as a request's fields have them.

    Args:
        content_type: with the boundary.
        kind: the class of the request, whose fields say what is a number.

    Raises:
        ApiError: it is no form, or a field is there twice.
    """
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, file, content in _parts(body, content_type):
        several = name.endswith("[]")
        name = name.removesuffix("[]")
        value: Any = content if file else _value(content, name, hints.get(name))
        if several:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise ApiError(400, f"{name[:80]}: is there twice.", name[:80])
        else:
            found[name] = value
    return found


def _parts(body: bytes, content_type: str) -> list[tuple[str, bool, bytes]]:
    """Of each part its name, whether it is a file, and what it holds."""
    mark = _BOUNDARY.search(content_type)
    if mark is None:
        raise ApiError(400, "The form has no boundary in its content type.")
    limit = b"\r\n--" + (mark[1] or mark[2]).encode()
    pieces = (b"\r\n" + body).split(limit, PARTS + 2)
    if len(pieces) > PARTS + 2:
        raise ApiError(400, f"The form has more than {PARTS} parts.")
    if len(pieces) < 2 or pieces[0].strip() or pieces[-1][:2] != b"--":
        raise ApiError(400, "The form doesn't begin and end with its boundary.")
    found = []
    for piece in pieces[1:-1]:
        head, empty, content = piece.partition(b"\r\n\r\n")
        if not head.startswith(b"\r\n") or not empty or len(head) > HEAD:
            raise ApiError(400, "A part of the form has no headers.")
        found.append((*_named(head), content))
    return found


def _named(head: bytes) -> tuple[str, bool]:
    try:
        lines = head.decode("utf-8").strip().split("\r\n")
    except UnicodeDecodeError:
        raise ApiError(400, "Headers of the form are no UTF-8.") from None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    said: Mapping[str, str] = {
        each[1].lower(): each[2]
        for each in _PARAMETER.finditer(headers.get("content-disposition", ""))
    }
    if not headers.get("content-disposition", "").startswith("form-data") or not said.get("name"):
        raise ApiError(400, "A part of the form has no name.")
    if headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise ApiError(400, "A part of the form is encoded; send it as it is.")
    return said["name"], "filename" in said


def _value(content: bytes, name: str, hint: Any) -> Any:
    """A text field as JSON would have it."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"{name[:80]}: is no UTF-8.", name[:80]) from None
    kinds = typing.get_args(hint) or (hint,)
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    for kind, form in ((int, r"-?\d{1,19}"), (float, r"-?\d{1,19}(\.\d{1,19})?")):
        if kind in kinds and re.fullmatch(form, text, re.ASCII):
            return kind(text)
    return text
