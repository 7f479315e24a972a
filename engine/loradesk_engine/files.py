"""Reading and writing small files without trusting or losing anything. No torch here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from loradesk_engine.errors import FileFormatError, LoradeskError

HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that only means something beside a second one
WHOLE = "JSON"
"""The field of an error that is about the text as a whole, or whose place is not known."""
AGAIN = "Correct the file, or download or copy it again."
MAX_JSON_BYTES = 64 * 2**20
"""No configuration, index or ordering file comes near this; a tokenizer.json may reach a third of it."""


@contextlib.contextmanager
def open_file(
    path: str | os.PathLike[str], *, error: type[LoradeskError] = FileFormatError, field: str | None = None
) -> Iterator[BinaryIO]:
    """An ordinary file to read from. Pipes and devices, which could keep the reader waiting for ever, are refused.

    Args:
        error: raised, with the file and `field`, when it is missing, no ordinary file or cannot be read, also while it
            is open.
    """
    try:
        if os.path.isdir(path):  # Windows would only say that it has no permission
            raise IsADirectoryError
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error("This is not an ordinary file.", file=path, field=field, remedy="Choose a file.")
            yield file
    except FileNotFoundError:
        raise error("The file does not exist.", file=path, field=field, remedy="Check the path.") from None
    except IsADirectoryError:
        raise error("This is a folder, not a file.", file=path, field=field, remedy="Choose a file.") from None
    except PermissionError:
        raise error(
            "No permission to read the file.", file=path, field=field, remedy="Change its permissions."
        ) from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        reason = (problem.strerror if isinstance(problem, OSError) else None) or problem
        raise error(
            f"The file cannot be read: {reason}.", file=path, field=field, remedy="Check the file and its permissions."
        ) from problem


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for a pipe's writer: only what is open can be asked what it is, without a race."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: str | os.PathLike[str], *, limit: int, error: type[LoradeskError] = FileFormatError) -> bytes:
    """The file's content, or an `error` that names the file when it is missing, unreadable or over `limit` bytes."""
    with open_file(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"The file is {size:,} bytes, over the limit of {limit:,}.", file=path)
        return file.read(limit + 1)


def parse_json(text: str | bytes, *, file: str | os.PathLike[str], error: type[LoradeskError] = FileFormatError) -> Any:
    """Parse strict JSON: duplicate keys, NaN and Infinity are errors that name the place: a line, a key, or `WHOLE`."""

    def no_constants(name: str) -> None:
        raise error(f"{name} is not a JSON number.", file=file, field=WHOLE, remedy="Replace it by a finite number.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise error("The key appears twice.", file=file, field=key, remedy="Remove one of them.")
            result[key] = value
        return result

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=no_constants)
        if HALF_CHARACTER.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as problem:
        raise error(
            f"Not valid JSON: {problem.msg}.",
            file=file,
            field=f"line {problem.lineno}, column {problem.colno}",
            remedy=AGAIN,
        ) from None
    except UnicodeDecodeError as problem:
        raise error("Not UTF-8 text.", file=file, field=f"byte {problem.start}", remedy=AGAIN) from None
    except UnicodeEncodeError:
        remedy = "Remove the lone surrogate escape."
        raise error("A text holds half a character.", file=file, field=WHOLE, remedy=remedy) from None
    except RecursionError:
        raise error("The JSON is nested too deeply.", file=file, field=WHOLE, remedy=AGAIN) from None
    except ValueError as problem:  # integers beyond Python's limit of digits
        raise error(f"Not valid JSON: {problem}.", file=file, field=WHOLE, remedy=AGAIN) from None


def read_json_object(
    path: str | os.PathLike[str], *, limit: int = MAX_JSON_BYTES, error: type[LoradeskError] = FileFormatError
) -> dict[str, Any]:
    """The JSON object in a file; anything else is an `error` with the file and the place."""
    value = parse_json(read_bytes(path, limit=limit, error=error), file=path, error=error)
    if not isinstance(value, dict):
        raise error(f"A JSON object is expected here, not {json_type(value)}.", file=path, field=WHOLE, remedy=AGAIN)
    return value


def finite_number(value: object) -> float | None:
    """A number of a parsed JSON text as a float; None where it is none, or is infinite or too large to be one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def json_type(value: object) -> str:
    """What JSON calls the type of a parsed value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    for kind, name in ((str, "a string"), (list, "an array"), (dict, "an object")):
        if isinstance(value, kind):
            return name
    return type(value).__name__


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that it holds either what it held before or all of `data`, also when power fails.

    Raises:
        OSError: as the system says; the old file is untouched and no temporary file stays.
    """
    target = Path(os.path.realpath(path))  # a symbolic link keeps pointing at the file it names
    mode = target.stat().st_mode & 0o7777 if target.exists() else None
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is None:
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask  # mkstemp makes private files; ours are ordinary documents
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
