"""Ways to damage a file: bytes anywhere, and values of a JSON text. A seed gives the same damage on every machine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

MARK = "@@raw@@"
RAW_VALUES = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0.0",
    "1e-400",
    "9" * 400,
    "9" * 5000,
    "[" * 5000 + "]" * 5000,
    "[" * 200_000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    "tru",
    "'single'",
    "{,}",
    '"\\ud800"',
    '"\\u0000"',
)
"""Values that Python's own writer would not write."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64, 0.0, -1.5, 0.5,
    1e-30, 1e308, "", "x", "true", "8", "../../x", "/etc/passwd", "a" * 100_000, "é\u202e\U0001f600", "(a+)+$",
    "{% for", [], [[]], [None], [1, 2], ["a"], [-1], [2**70], {}, {"a": 1}, {"": {}}, {"(a+)+$": 4}, {"x" * 5000: 1},
)  # fmt: skip


def damaged(content: bytes, chance: random.Random, *, is_json: bool) -> tuple[bytes, str]:
    """The content with one to three damages, and what they are."""
    ways: list[Callable[[bytes, random.Random], tuple[bytes, str]]] = [_flip, _cut, _insert, _overwrite]
    if is_json:
        ways = [_value, _value, _value, _raw_value, _without, _twice, _flip, _cut, _insert]
    notes = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content, note = chance.choice(ways)(content, chance)
        notes.append(note)
    return content, "; ".join(notes)


# --- bytes ------------------------------------------------------------------------------------------------------------


def _flip(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    if not content:
        return content, "nothing to flip"
    changed = bytearray(content)
    places = [chance.randrange(len(changed)) for _ in range(chance.choice((1, 1, 4, 16)))]
    for place in places:
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed), f"bits flipped at {places[:4]}"


def _cut(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    length = chance.randrange(len(content) + 1)
    return content[:length], f"cut to {length} bytes"


def _insert(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    place = chance.randrange(len(content) + 1)
    extra = chance.choice((b"\xff\xfe", b"\x00", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"}", b"[" * 50))
    return content[:place] + extra + content[place:], f"{extra[:4]!r} inserted at {place}"


def _overwrite(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A number of eight bytes over what is there: lengths and offsets of binary formats."""
    if len(content) < 8:
        return content, "too short to overwrite"
    place = chance.choice((0, chance.randrange(len(content) - 7)))
    number = chance.choice((0, 1, 7, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1, len(content)))
    return content[:place] + number.to_bytes(8, "little") + content[place + 8 :], f"{number} written at {place}"


# --- JSON -------------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a value, the whole of it first."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += _places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:50]):
            found += _places(item, (*path, number))
    return found


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    return value


def _value(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    value = _parsed(content)
    if not isinstance(value, dict | list):
        return _flip(content, chance)
    path, new = chance.choice(_places(value)), chance.choice(VALUES)
    return json.dumps(_put(value, path, new)).encode(), f"{path} = {str(new)[:40]!r}"


def _raw_value(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    value = _parsed(content)
    if not isinstance(value, dict | list):
        return _flip(content, chance)
    path, raw = chance.choice(_places(value)), chance.choice(RAW_VALUES)
    text = json.dumps(_put(value, path, MARK)).replace(f'"{MARK}"', raw)
    return text.encode("utf-8", "surrogatepass"), f"{path} = {raw[:20]}"


def _without(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    value = _parsed(content)
    paths = [path for path in _places(value) if path]
    if not paths:
        return _flip(content, chance)
    path = chance.choice(paths)
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return json.dumps(value).encode(), f"{path} removed"


def _twice(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """A key again, with another value."""
    value = _parsed(content)
    if not isinstance(value, dict) or not value:
        return _flip(content, chance)
    key, new = chance.choice(list(value)), chance.choice(VALUES)
    text = json.dumps(value)
    return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(new)}}}".encode(), f"{key!r} twice"
