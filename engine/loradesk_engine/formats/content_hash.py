"""Identify a model or adapter by its content, whatever its folder is called."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from loradesk_engine.files import open_file

CHUNK = 2**20
HASH = re.compile(r"[0-9a-f]{64}")
_Identity = tuple[str, int, int, int]
_known: dict[_Identity, str] = {}
"""Hashes of files by path, size, time of change and inode: a base is hashed once, however often it is loaded."""


def content_hash(files: Iterable[Path], check: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of one file as `sha256sum FILE` gives it, or of several as `sha256sum FILES | sha256sum` does with
    their names in order.

    Args:
        files: of one folder, so that their names differ.
        check: called between chunks; may raise to cancel.

    Raises:
        FileFormatError: a file is missing or cannot be read.
    """
    files = sorted(files, key=lambda file: file.name)
    if len(files) == 1:
        return file_hash(files[0], check)
    lines = "".join(f"{file_hash(file, check)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def file_hash(path: Path, check: Callable[[], None] = lambda: None) -> str:
    """The SHA-256 of a file's bytes; see `content_hash`."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and HASH.fullmatch(blob.name):
        return blob.name  # the hub's cache names large files by their SHA-256, which is checked on arrival
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        identity = (str(blob), status.st_size, status.st_mtime_ns, status.st_ino)
        if identity not in _known:
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK):
                check()
                digest.update(chunk)
            _known[identity] = digest.hexdigest()
    return _known[identity]
