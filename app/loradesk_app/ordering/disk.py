"""An ordering file on disk: written only over what is known to be there, and read only when it has changed."""

from __future__ import annotations

import os

from loradesk_engine.errors import OrderingError
from loradesk_engine.files import MAX_JSON_BYTES, read_bytes
from loradesk_engine.ordering.schema import OrderingFile

Stamp = tuple[int, int, int] | None
"""Inode, size and time of change; None where there is no file."""


class ChangedOutsideError(OrderingError):
    """The file on disk is no longer the one that was opened or saved here."""


def write(ordering: OrderingFile, path: str, known: bytes | None) -> bytes:
    """Save unless the file on disk is no longer `known`; the bytes that are on disk then."""
    if known is not None and content(path) not in (known, None):
        raise ChangedOutsideError("Another program changed the file.", file=path)
    ordering.write(path)
    return ordering.dumps().encode("utf-8")


def look(path: str, seen: Stamp | int) -> tuple[Stamp, bytes | None]:
    """What stands for a file's content, and the content itself unless it was seen already."""
    try:
        status = os.stat(path)
    except OSError:
        return None, None
    stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
    return stamp, None if stamp == seen else content(path)


def content(path: str) -> bytes | None:
    """The bytes of a file; None if there is none."""
    return read_bytes(path, limit=MAX_JSON_BYTES, error=OrderingError) if os.path.exists(path) else None
