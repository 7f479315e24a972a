"""What differs between two ordering files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loradesk_engine.ordering.json_text import same
from loradesk_engine.ordering.schema import OrderingFile, pointer

Kind = Literal["added", "removed", "changed", "moved"]


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        kind: `moved` is a name at another position of `order`.
        place: JSON pointer; into the first file where something was removed, else into the second.
        before, after: the values (positions when moved); None on the side that has none.
    """

    kind: Kind
    place: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before, after = (json.dumps(value, ensure_ascii=False) for value in (self.before, self.after))
        if self.kind == "added":
            return f"+ {self.place}: {after}"
        if self.kind == "removed":
            return f"- {self.place}: {before}"
        return f"~ {self.place}: {before} -> {after}" + (" (moved)" if self.kind == "moved" else "")


def diff(first: OrderingFile, second: OrderingFile) -> list[Change]:
    """The differences in content, key by key; layout and the order of keys do not count."""
    changes: list[Change] = []
    if first.base_model_id != second.base_model_id:
        changes += _value("base_model_id", first.base_model_id or None, second.base_model_id or None)
    changes += _presence("order", first.order, second.order)
    changes += _names(first.order or (), second.order or ())
    changes += _presence("layers", first.layers, second.layers)
    changes += _mapping("layers", first.layers or {}, second.layers or {})
    changes += _presence("preload_adapters", first.preload_adapters, second.preload_adapters)
    changes += _mapping("preload_adapters", _by_name(first), _by_name(second))
    for key in dict.fromkeys((*first.unknown_keys, *second.unknown_keys)):
        changes += _value(key, first.value(key), second.value(key))
    return changes


def _value(key: str, before: Any, after: Any) -> Iterator[Change]:
    if same(before, after):
        return
    kind: Kind = "added" if before is None else "removed" if after is None else "changed"
    yield Change(kind, pointer(key), before, after)


def _presence(key: str, before: Any, after: Any) -> Iterator[Change]:
    """An empty list where there was none, or the reverse: no entry differs, and yet X-LoRA tells them apart."""
    if before is None and after is not None and not after:
        yield Change("added", pointer(key), None, [] if isinstance(after, tuple) else {})
    if after is None and before is not None and not before:
        yield Change("removed", pointer(key), [] if isinstance(before, tuple) else {}, None)


def _names(before: Sequence[str], after: Sequence[str]) -> Iterator[Change]:
    old, new = _positions(before), _positions(after)
    for (name, nth), position in old.items():
        if (name, nth) not in new:
            yield Change("removed", pointer("order", position), name, None)
    for (name, nth), position in new.items():
        if (name, nth) not in old:
            yield Change("added", pointer("order", position), None, name)
        elif old[name, nth] != position:
            yield Change("moved", pointer("order", name), old[name, nth], position)


def _positions(names: Sequence[str]) -> dict[tuple[str, int], int]:
    """(name, its how-manieth occurrence) -> position."""
    seen: Counter[str] = Counter()
    result = {}
    for position, name in enumerate(names):
        result[name, seen[name]] = position
        seen[name] += 1
    return result


def _by_name(ordering: OrderingFile) -> dict[str, Any]:
    """Preload adapters as JSON, by name; a repeated name carries its number."""
    entries = ordering.value("preload_adapters") or []
    names = _positions([entry["name"] for entry in entries])
    return {name if nth == 0 else f"{name} ({nth + 1})": entries[index] for (name, nth), index in names.items()}


def _mapping(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name, value in before.items():
        if name not in after:
            yield Change("removed", pointer(key, name), value, None)
        elif not same(value, after[name]):
            yield Change("changed", pointer(key, name), value, after[name])
    for name, value in after.items():
        if name not in before:
            yield Change("added", pointer(key, name), None, value)
