"""JSON as text: where a value stands, and how to change one value without touching the characters around it.

Parsing alone loses both: a message could not name line and column, and a file that a person laid out by hand would
come back in another layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any

from loradesk_engine.errors import OrderingError

MAX_DEPTH = 900  # Python's parser gives up a little later
MAX_DIGITS = 400  # longer integers have no use here, and Python refuses to print some of them

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|-?(?:Infinity|NaN|[0-9][0-9.eE+-]*)')

Path = tuple[str | int, ...]
"""Keys and indices from the top of the document to a value."""


class _RefusedError(Exception):
    """Raised inside the JSON parser, which does not tell its hooks where it stands."""


def parse(text: str, *, file: str | PathLike[str]) -> Any:
    """The value of a strict JSON text.

    Raises:
        OrderingError: malformed JSON, duplicate keys, NaN or Infinity, or a number out of range; names line and column.
    """
    if not text.strip():
        raise OrderingError("The file is empty.", file=file, field="line 1, column 1", remedy="Create it anew.")
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer, parse_float=_finite
        )
    except json.JSONDecodeError as problem:
        field = f"line {problem.lineno}, column {problem.colno}"
        raise OrderingError(
            f"Not valid JSON: {problem.msg.removesuffix(' at')}.", file=file, field=field, remedy="Correct this place."
        ) from None
    except (_RefusedError, RecursionError):
        offset, problem_text, remedy = _first_fault(text)
        raise OrderingError(problem_text, file=file, field=place(text, offset), remedy=remedy) from None


def decode(data: bytes, *, file: str | PathLike[str]) -> str:
    """The text of a UTF-8 file, its byte order mark included, so that encoding it gives the same bytes.

    Raises:
        OrderingError: not UTF-8; names line and column.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        before = data[: problem.start].decode("utf-8")
        raise OrderingError(
            f"Not UTF-8 text: the byte 0x{data[problem.start]:02x} cannot be read.",
            file=file,
            field=place(before, len(before)),
            remedy="Save the file as UTF-8.",
        ) from None


def line_column(text: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1, of a character."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def place(text: str, offset: int) -> str:
    """Line and column in words, as errors name them."""
    line, column = line_column(text, offset)
    return f"line {line}, column {column}"


def locate(text: str, path: Path) -> int | None:
    """Offset of the value at a path of a valid JSON text; None where the text has no such path."""
    start = _SPACE.match(text).end()  # type: ignore[union-attr]  # the pattern matches the empty string
    for key in path:
        if text[start] not in "{[":
            return None
        found = next((member for member in members(text, start) if member.key == key), None)
        if found is None:
            return None
        start = found.start
    return start


@dataclass(frozen=True)
class Member:
    """One entry of an object or array in a text: its key or index, and the offsets of key and value."""

    key: str | int
    key_start: int
    key_end: int
    start: int
    end: int
    value: Any


def members(text: str, start: int) -> Iterator[Member]:
    """The entries of the object or array that begins at `start` of a valid JSON text."""
    is_object = text[start] == "{"
    offset = _skip(text, start + 1)
    index = 0
    while text[offset] not in "}]":
        key: str | int = index
        key_start = key_end = offset
        if is_object:
            key, key_end = _DECODER.raw_decode(text, offset)
            offset = _skip(text, _skip(text, key_end) + 1)
        value, end = _DECODER.raw_decode(text, offset)
        yield Member(key, key_start, key_end, offset, end, value)
        offset = _skip(text, end)
        if text[offset] == ",":
            offset = _skip(text, offset + 1)
        index += 1


def dumps(value: Any) -> str:
    """The layout of a file that Loradesk makes: two spaces, one entry a line, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def same(a: Any, b: Any) -> bool:
    """Equal as JSON: 1, 1.0 and true differ, and so does another order of keys."""
    if isinstance(a, dict | list) or isinstance(b, dict | list):
        return json.dumps(a) == json.dumps(b)
    return type(a) is type(b) and bool(a == b)


def rewrite(text: str, value: Any) -> str:
    """A valid JSON text with another value: what did not change keeps its characters, what is new looks like the rest.

    Parsing the result gives `value`, with its keys in the same order.
    """
    start = _skip(text, 0)
    old, end = _DECODER.raw_decode(text, start)
    if same(old, value):
        return text
    writer = _Writer(text, ascii_only=text.isascii() and "\\u" in text)
    return text[:start] + writer.render(value, start, end, old) + text[end:]


class _Writer:
    """Writes values in the manner of those that stand in an existing text."""

    def __init__(self, text: str, *, ascii_only: bool) -> None:
        self.text = text
        self.ascii_only = ascii_only
        found = re.search(r"[{\[](\r?\n)([ \t]+)", text)
        self.newline = found[1] if found else "\n"
        self.indent = found[2] if found else None  # None: everything on one line

    def render(self, value: Any, start: int, end: int, old: Any) -> str:
        """`value` in the manner of the old value at text[start:end]."""
        if same(value, old):
            return self.text[start:end]
        if not value or not isinstance(value, dict | list) or type(value) is not type(old) or not old:
            return self.plain(value, self.depth(start))
        entries = list(members(self.text, start))
        opening = self.text[start + 1 : entries[0].key_start]
        closing = self.text[entries[-1].end : end - 1]
        between = self.separator(entries, opening)
        if isinstance(value, dict):
            rendered = self.object_entries(value, entries)
            return "{" + opening + between.join(rendered) + closing + "}"
        return "[" + opening + between.join(self.array_entries(value, entries)) + closing + "]"

    def separator(self, entries: list[Member], opening: str) -> str:
        if len(entries) > 1:
            return self.text[entries[0].end : entries[1].key_start]
        return "," + opening if "\n" in opening else ", "

    def object_entries(self, value: dict[str, Any], entries: list[Member]) -> Iterator[str]:
        by_key = {entry.key: entry for entry in entries}
        example = entries[0]
        colon = self.text[example.key_end : example.start]
        for key, item in value.items():
            entry = by_key.get(key)
            if entry is not None:
                yield self.text[entry.key_start : entry.start] + self.render(item, entry.start, entry.end, entry.value)
            else:
                yield self.scalar(key) + colon + self.plain(item, self.depth(example.key_start))

    def array_entries(self, value: list[Any], entries: list[Member]) -> Iterator[str]:
        by_value = {json.dumps(entry.value): entry for entry in entries}
        for index, item in enumerate(value):
            entry = by_value.get(json.dumps(item)) or entries[min(index, len(entries) - 1)]
            yield self.render(item, entry.start, entry.end, entry.value)

    def depth(self, offset: int) -> int:
        """How many indents the line of a value has."""
        if self.indent is None:
            return 0
        line_start = self.text.rfind("\n", 0, offset) + 1
        blank = _SPACE.match(self.text, line_start).end() - line_start  # type: ignore[union-attr]
        return blank // len(self.indent)

    def plain(self, value: Any, depth: int) -> str:
        """A value that has no counterpart in the text."""
        if self.indent is None or not isinstance(value, dict | list):
            return self.scalar(value)
        lines = json.dumps(value, indent=self.indent, ensure_ascii=self.ascii_only).split("\n")
        return (self.newline + self.indent * depth).join(lines)

    def scalar(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=self.ascii_only)


def _skip(text: str, offset: int) -> int:
    return _SPACE.match(text, offset).end()  # type: ignore[union-attr]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError
    return result


def _no_constant(_name: str) -> None:
    raise _RefusedError


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _RefusedError
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _RefusedError
    return number


def _first_fault(text: str) -> tuple[int, str, str]:
    """Offset, problem and remedy of the first thing that the parser's hooks refuse.

    A second, linear look at the text; the parser has accepted its syntax up to the fault.
    """
    open_keys: list[set[str]] = []
    nested = "The JSON is nested too deeply.", "An ordering file has at most three levels."
    deepest, deepest_start = 0, 0
    for token in _TOKEN.finditer(text):
        start, word = token.start(), token.group()
        if word in "{[":
            open_keys.append(set())
            if len(open_keys) > MAX_DEPTH:
                return start, *nested
            if len(open_keys) > deepest:
                deepest, deepest_start = len(open_keys), start
        elif word in "}]":
            if open_keys:
                open_keys.pop()
        elif word[0] == '"':
            colon = _skip(text, token.end())
            if text[colon : colon + 1] == ":" and open_keys:
                key = json.loads(word)
                if key in open_keys[-1]:
                    return start, f"The key {key!r} appears twice.", "Remove one of them."
                open_keys[-1].add(key)
        elif word.endswith(("Infinity", "NaN")):
            return start, f"{word} is not a JSON number.", "Replace it by a finite number."
        elif len(word) > MAX_DIGITS:
            return start, f"A number of {len(word):,} digits is too large.", "Replace it by a smaller number."
        elif math.isinf(float(word)):
            return start, f"The number {word} is too large.", "Replace it by a smaller number."
    return deepest_start, *nested
