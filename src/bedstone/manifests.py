"""What a folder is meant to hold: every file's size and hash, written once and checked later."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bedstone.errors import BedstoneError


def manifest(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {"size": bytes, "sha256": hex}}` of every file below `folder`.

    Raises:
        BedstoneError: a symlink is among them; what it points to would not travel along.
    """
    folder = Path(folder)
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise BedstoneError(f"{path}: is a symlink; put the file itself there.")
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            entries[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    return entries


def verify_manifest(folder: str | Path, expected: dict[str, dict[str, Any]]) -> None:
    """Checks every file that the manifest names, cheapest test first.

    Raises:
        BedstoneError: a file is missing, of another size or of other content; or the manifest
            names something outside the folder.
    """
    folder = Path(folder)
    remedy = "Use another copy of this folder, or an earlier checkpoint."
    for name, entry in expected.items():
        path = inside(folder, name)
        try:
            size, digest = int(entry["size"]), str(entry["sha256"])
        except (KeyError, TypeError, ValueError) as error:
            raise BedstoneError(
                f"{folder}: the manifest's entry for {name!r} is damaged: "
                f"{entry!r}; expected size and sha256. {remedy}"
            ) from error
        if not path.is_file():
            raise BedstoneError(f"{path}: is missing; expected {size:,} bytes. {remedy}")
        if path.stat().st_size != size:
            raise BedstoneError(
                f"{path}: is truncated or overgrown: "
                f"{path.stat().st_size:,} bytes found, {size:,} expected. {remedy}"
            )
        if (found := sha256(path)) != digest:
            raise BedstoneError(
                f"{path}: its content was changed: "
                f"sha256 {found[:16]}… found, {digest[:16]}… expected. {remedy}"
            )


def inside(folder: str | Path, name: str, linked_to: Iterable[Path] = ()) -> Path:
    """`folder/name`, where `name` is a plain relative path that no link leads elsewhere.

    Links into one of the folders `linked_to` are let pass.

    Raises:
        BedstoneError: the name is absolute, climbs out, passes a symlink or is beyond any limit.
    """
    path = Path(folder)
    text = name.replace("\\", "/") if isinstance(name, str) else ""
    for part in text.split("/") if len(text) < 1024 else [""]:
        size = len(part.encode("utf-8", "surrogatepass"))
        odd = part in {"", ".", ".."} or {":", "\0"} & set(part) or size > 255
        path = path / part
        if odd or (path.is_symlink() and not _leads_into(path.resolve(), linked_to)):
            raise BedstoneError(
                f"{folder}: the file name {name!r} leads out of this folder; expected a plain "
                "relative name. Don't use this copy: fetch it again from where you trust."
            )
    return path


def _leads_into(target: Path, folders: Iterable[Path]) -> bool:
    return any(target.is_relative_to(folder) for folder in folders)


def sha256(path: str | Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
