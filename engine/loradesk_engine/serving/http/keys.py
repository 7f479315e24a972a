"""The server's key: made once, kept in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
import sys
from pathlib import Path

from loradesk_engine.errors import FileFormatError

KEY_NAME = "server.key"
MAX_KEY_BYTES = 4096


def config_folder() -> Path:
    """Where the user's settings lie on this system."""
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or str(Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "Loradesk"


def key_file() -> Path:
    """The file that holds the key."""
    return config_folder() / KEY_NAME


def own_key(path: Path | None = None) -> str:
    """The key in the file; a new one if there is none, or if others could have read or written the old one.

    Raises:
        FileFormatError: the file cannot be read or written.
    """
    path = path or key_file()
    try:
        kept = _read(path)
        return kept if kept is not None else _make(path)
    except OSError as problem:
        raise FileFormatError(
            f"The key cannot be kept there: {problem.strerror or problem}.", file=path, remedy="Use --api-key."
        ) from problem


def _read(path: Path) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if os.name == "posix" and (stat.S_IMODE(facts.st_mode) & 0o077 or facts.st_uid != os.getuid()):
            return None
        key = file.read(MAX_KEY_BYTES).decode("ascii", "replace").strip()
    return key if len(key) >= 32 and all("!" <= letter <= "~" for letter in key) else None


def _make(path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = "loradesk-" + secrets.token_urlsafe(32)
    # Written under another name with the right mode from the first byte on, then put in place at once.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(key.encode() + b"\n")
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return key


def same_key(given: bytes, key: str) -> bool:
    """Whether the keys are equal; takes the same time wherever they differ."""
    return hmac.compare_digest(given, key.encode("ascii"))
