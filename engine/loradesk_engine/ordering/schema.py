"""The ordering file: its fields, checked on reading, and a round trip that loses nothing."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from os import PathLike, fspath
from types import MappingProxyType
from typing import Any, Final

from loradesk_engine.errors import OrderingError
from loradesk_engine.files import json_type, read_bytes, write_atomic
from loradesk_engine.ordering import json_text

KEYS = ("base_model_id", "order", "layers", "preload_adapters")
MAX_BYTES = 4 * 2**20  # 10,000 layers and 1,000 adapters take half a megabyte
MAX_INDEX = 2**31 - 1
MAX_DEPTH = 100  # of values under keys that we do not know and only carry along


class _Keep(Enum):
    KEEP = "keep"


KEEP: Final = _Keep.KEEP
"""Default of `OrderingFile.replace`: leave the field as it is (None would remove it)."""


@dataclass(frozen=True)
class PreloadAdapter:
    """A LoRA adapter that is loaded at start, so that it can be activated at run time.

    Attributes:
        name: what it is activated by.
        adapter_model_id: hub id or local path of the folder that holds it.
    """

    name: str
    adapter_model_id: str


class OrderingFile:
    """One ordering file; immutable, so that an undo history is a list of them.

    Attributes:
        base_model_id: hub id or local path; empty when the file does not say (early published files).
        order: adapter names; None when absent.
        layers: module path -> index on the layer axis of the scalings, in the file's order; None when absent.
        preload_adapters: None when absent.
        file: where it was read from, for messages.

    Keys that Loradesk does not know, the order of keys and the layout of the text are kept: a file that is opened and
    saved without a change is the same bytes, and an edit changes the characters of the edited value only.
    """

    __slots__ = ("_data", "_text", "base_model_id", "file", "layers", "order", "preload_adapters")

    base_model_id: str
    order: tuple[str, ...] | None
    layers: Mapping[str, int] | None
    preload_adapters: tuple[PreloadAdapter, ...] | None
    file: str | None
    _data: dict[str, Any]
    _text: str | None

    def __init__(
        self,
        base_model_id: str,
        order: Iterable[str] | None = None,
        layers: Mapping[str, int] | None = None,
        preload_adapters: Iterable[PreloadAdapter] | None = None,
    ) -> None:
        """A new file.

        Raises:
            OrderingError: a value is of a wrong type or out of range.
        """
        data: dict[str, Any] = {"base_model_id": base_model_id}
        if order is not None:
            data["order"] = _list(order)
        if layers is not None:
            data["layers"] = dict(layers)
        if preload_adapters is not None:
            data["preload_adapters"] = _entries(preload_adapters, [])
        self._fill(data, None, None)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> OrderingFile:
        """Open a file.

        Raises:
            OrderingError: missing, unreadable, not UTF-8, malformed, or a field is of a wrong type.
        """
        data = read_bytes(path, limit=MAX_BYTES, error=OrderingError)
        return cls.parse(json_text.decode(data, file=path), file=path)

    @classmethod
    def parse(cls, text: str, *, file: str | PathLike[str] = "ordering file") -> OrderingFile:
        """The ordering file that a JSON text describes. Raises as `read`."""
        return cls._of(_json_object(text, file), text, fspath(file))

    @classmethod
    def salvage(cls, text: str, *, file: str | PathLike[str] = "ordering file") -> Salvage:
        """What can be read of a JSON text whose structure may be wrong, so that all of it can be checked at once.

        Raises:
            OrderingError: it is no JSON object.
        """
        data = _json_object(text, file)
        body = text.removeprefix("\ufeff")
        found = tuple(_Structure(data, body, fspath(file)).problems())
        dropped = {path[0] for path, _ in found}
        kept = {key: value for key, value in data.items() if key not in dropped}
        ordering = cls._of(kept, None if dropped else text, fspath(file))
        return Salvage(ordering, tuple((pointer(*path), problem) for path, problem in found), body, data)

    @classmethod
    def _of(cls, data: dict[str, Any], text: str | None, file: str | None) -> OrderingFile:
        self = cls.__new__(cls)
        self._fill(data, text, file)
        return self

    def _fill(self, data: dict[str, Any], text: str | None, file: str | None) -> None:
        _validate(data, text.removeprefix("\ufeff") if text is not None else None, file)
        order, layers, preloads = data.get("order"), data.get("layers"), data.get("preload_adapters")
        values = {
            "_data": data,
            "_text": text,
            "file": file,
            "base_model_id": data.get("base_model_id") or "",
            "order": None if order is None else tuple(order),
            "layers": None if layers is None else MappingProxyType(layers),
            "preload_adapters": None
            if preloads is None
            else tuple(PreloadAdapter(entry["name"], entry["adapter_model_id"]) for entry in preloads),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an ordering file is immutable: use replace({name}=...)")

    def __eq__(self, other: object) -> bool:
        """Equal content, unknown keys and the order of keys included; the layout of the text does not count."""
        return isinstance(other, OrderingFile) and (self is other or json_text.same(self._data, other._data))

    def __hash__(self) -> int:
        return hash((self.base_model_id, self.order, len(self._data)))

    def __repr__(self) -> str:
        return (
            f"OrderingFile({self.base_model_id!r}, {len(self.order or ())} in order, {len(self.layers or ())} layers, "
            f"{len(self.preload_adapters or ())} preload adapters)"
        )

    @property
    def unknown_keys(self) -> tuple[str, ...]:
        """Top-level keys that Loradesk only carries along."""
        return tuple(key for key in self._data if key not in KEYS)

    def value(self, key: str) -> Any:
        """The JSON value under a top-level key, unknown ones included; None when absent. Not to be changed in place."""
        return self._data.get(key)

    def replace(
        self,
        *,
        base_model_id: str | _Keep = KEEP,
        order: Iterable[str] | _Keep | None = KEEP,
        layers: Mapping[str, int] | _Keep | None = KEEP,
        preload_adapters: Iterable[PreloadAdapter] | _Keep | None = KEEP,
    ) -> OrderingFile:
        """This file with some fields changed; None removes a field. Everything else is kept.

        Raises:
            OrderingError: a value is of a wrong type or out of range.
        """
        data = dict(self._data)
        if base_model_id is not KEEP:
            _put(data, "base_model_id", base_model_id)
        if order is not KEEP:
            _put(data, "order", None if order is None else _list(order))
        if layers is not KEEP:
            _put(data, "layers", None if layers is None else dict(layers))
        if preload_adapters is not KEEP:
            old = self._data.get("preload_adapters") or []
            _put(data, "preload_adapters", None if preload_adapters is None else _entries(preload_adapters, old))
        _validate(data, None, self.file)  # positions in the old text would mislead
        return self._of(data, self._text, self.file)

    def dumps(self) -> str:
        """The text to save: the one that was read, with the edited values changed in it."""
        if self._text is None:
            return json_text.dumps(self._data)
        body = self._text.removeprefix("\ufeff")
        mark = self._text[: len(self._text) - len(body)]
        return mark + json_text.rewrite(body, self._data)

    def write(self, path: str | PathLike[str]) -> None:
        """Save, atomically: the path holds either its old content or all of the new one.

        Raises:
            OrderingError: no permission, no space, read-only or missing folder; the old file is untouched.
        """
        try:
            write_atomic(path, self.dumps().encode("utf-8"))
        except OSError as problem:
            reason, remedy = _write_problem(problem)
            raise OrderingError(f"{reason} Nothing was changed.", file=path, remedy=remedy) from problem

    def position(self, place: str) -> tuple[int, int] | None:
        """Line and column of a JSON pointer (a finding's place) in the text as it would be saved; None if not there."""
        return _position(self.dumps().removeprefix("\ufeff"), self._data, place)


@dataclass(frozen=True)
class Salvage:
    """An ordering file without what is not of the format.

    Attributes:
        ordering: the file without the keys that are wrong.
        problems: all that is wrong, with its JSON pointer, in the order of the format's keys.
        text: the one that was read.
        data: its value.
    """

    ordering: OrderingFile
    problems: tuple[tuple[str, OrderingError], ...]
    text: str
    data: Mapping[str, Any]

    def position(self, place: str) -> tuple[int, int] | None:
        """Line and column of a JSON pointer in the text that was read; None if not there."""
        return _position(self.text, self.data, place)


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901): `pointer("order", 2)` is `/order/2`."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def parse_pointer(place: str) -> tuple[str, ...]:
    """The parts of a JSON pointer."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in place.split("/")[1:])


def _position(text: str, data: Mapping[str, Any], place: str) -> tuple[int, int] | None:
    path: list[str | int] = []
    value: Any = data
    for part in parse_pointer(place):
        key: str | int = int(part) if isinstance(value, list) and part.isdecimal() else part
        path.append(key)
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
    offset = json_text.locate(text, tuple(path))
    return None if offset is None else json_text.line_column(text, offset)


def _json_object(text: str, file: str | PathLike[str]) -> dict[str, Any]:
    body = text.removeprefix("\ufeff")
    data = json_text.parse(body, file=file)
    if not isinstance(data, dict):
        raise OrderingError(
            f"An ordering file is a JSON object, not {json_type(data)}.",
            file=file,
            field=json_text.place(body, json_text.locate(body, ()) or 0),
            remedy="Choose another file.",
        )
    return data


def _list(order: Iterable[str]) -> Any:
    return order if isinstance(order, str) else list(order)  # a string is refused later, not taken letter by letter


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a key at its place; None removes it, but an explicit null in the file stays."""
    if value is not None:
        data[key] = value
    elif data.get(key) is not None:
        del data[key]


def _entries(adapters: Iterable[PreloadAdapter], old: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The JSON of preload adapters; an entry that was there before, or has its name, keeps its further keys."""
    exact = {(entry["name"], entry["adapter_model_id"]): entry for entry in reversed(old)}
    named = {entry["name"]: entry for entry in reversed(old)}
    result = []
    for adapter in adapters:
        if not isinstance(adapter, PreloadAdapter):
            raise OrderingError(f"A preload adapter is expected, not {adapter!r}.", field="preload_adapters")
        before = exact.get((adapter.name, adapter.adapter_model_id)) or named.get(adapter.name) or {}
        result.append({**before, "name": adapter.name, "adapter_model_id": adapter.adapter_model_id})
    return result


def _validate(data: dict[str, Any], text: str | None, file: str | None) -> None:
    """Types and ranges of the known keys; with the text, an error names line and column as well."""
    for _path, problem in _Structure(data, text, file).problems():
        raise problem


class _Structure:
    """Looks for what is not of the format, in the order of the format's keys."""

    def __init__(self, data: dict[str, Any], text: str | None, file: str | None) -> None:
        self._data = data
        self._text = text
        self._file = file

    def problems(self) -> Iterator[_Problem]:
        if self._data.get("base_model_id") is not None:
            yield from self._string(self._data["base_model_id"], "base_model_id")
        yield from self._order(self._data.get("order"))
        yield from self._layers(self._data.get("layers"))
        yield from self._preloads(self._data.get("preload_adapters"))
        for key, value in self._data.items():
            if key not in KEYS and _deeper(value, MAX_DEPTH):
                yield self._refuse(f"The value is nested more than {MAX_DEPTH} levels deep.", "Remove it.", key)

    def _order(self, order: Any) -> Iterator[_Problem]:
        if order is None:
            return
        if not isinstance(order, list):
            yield self._refuse(
                f"A list of adapter names is expected, not {json_type(order)}.", 'Use ["name"].', "order"
            )
            return
        for index, name in enumerate(order):
            yield from self._string(name, "order", index)

    def _layers(self, layers: Any) -> Iterator[_Problem]:
        if layers is None:
            return
        if not isinstance(layers, dict):
            problem = f"An object of module paths is expected, not {json_type(layers)}."
            yield self._refuse(problem, "Generate it anew.", "layers")
            return
        for name, number in layers.items():
            wrong = _layer_problem(name, number)
            if wrong is not None:
                path = ("layers", name) if isinstance(name, str) and _is_unicode(name) else ("layers",)
                yield self._refuse(wrong, "Generate the layers anew.", *path)

    def _preloads(self, preloads: Any) -> Iterator[_Problem]:
        if preloads is None:
            return
        if not isinstance(preloads, list):
            yield self._refuse(f"A list is expected, not {json_type(preloads)}.", "Use [{...}].", "preload_adapters")
            return
        for index, entry in enumerate(preloads):
            yield from self._preload(entry, index)

    def _preload(self, entry: Any, index: int) -> Iterator[_Problem]:
        place = ("preload_adapters", index)
        if not isinstance(entry, dict):
            problem = f"An object with name and adapter_model_id is expected, not {json_type(entry)}."
            yield self._refuse(problem, "Use preload_adapters of this form.", *place)
            return
        for key in ("name", "adapter_model_id"):
            if key not in entry:
                yield self._refuse(f"The key {key} is missing.", "Add it.", *place)
            else:
                yield from self._string(entry[key], *place, key)
        if any(_deeper(value, MAX_DEPTH) for value in entry.values()):
            yield self._refuse(f"A value is nested more than {MAX_DEPTH} levels deep.", "Remove it.", *place)

    def _string(self, value: Any, *path: str | int) -> Iterator[_Problem]:
        if not isinstance(value, str):
            yield self._refuse(f"A string is expected, not {json_type(value)}.", "Put it in quotation marks.", *path)
        elif not _is_unicode(value):
            yield self._refuse("The string is not valid Unicode.", "Remove the lone surrogate escape.", *path)

    def _refuse(self, problem: str, remedy: str, *path: str | int) -> _Problem:
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
        offset = json_text.locate(self._text, path) if self._text is not None else None
        place = "" if self._text is None or offset is None else json_text.place(self._text, offset)
        field = f"{place} ({name})" if place else name
        return path, OrderingError(problem, file=self._file, field=field, remedy=remedy)


_Problem = tuple[json_text.Path, OrderingError]


def _layer_problem(name: Any, number: Any) -> str | None:
    if not isinstance(name, str) or not _is_unicode(name):
        return "A module path is not valid Unicode text."
    if type(number) is not int:
        return f"A whole number is expected, not {number if isinstance(number, float) else json_type(number)}."
    if not -MAX_INDEX <= number <= MAX_INDEX:
        return f"The number {number} is out of range for an index."
    return None


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` levels."""
    level = [value]
    for _ in range(limit):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items]
        if not level:
            return False
    return True


def _write_problem(problem: OSError) -> tuple[str, str]:
    """What to tell, and what can be done, when the system refuses to write."""
    if problem.errno in (errno.EACCES, errno.EPERM):
        return "No permission to write here.", "Choose another folder or change its permissions."
    if problem.errno == errno.EROFS:
        return "The disk or folder is read-only.", "Choose another folder."
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "There is no space left to write the file.", "Free some space or choose another disk."
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        return "The folder does not exist.", "Create it or choose another."
    if problem.errno == errno.EISDIR:
        return "This is a folder, not a file.", "Add a file name."
    return f"The file cannot be written: {problem.strerror or problem}.", "Choose another place."
