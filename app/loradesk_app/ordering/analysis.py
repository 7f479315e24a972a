"""What a document's text looks like and what is wrong with it; pure functions that run off the GUI thread."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from loradesk_engine.errors import OrderingError
from loradesk_engine.files import MAX_JSON_BYTES, read_bytes
from loradesk_engine.ordering import json_text
from loradesk_engine.ordering.check import check, check_salvage
from loradesk_engine.ordering.finding import CheckContext, Finding, PreloadFacts
from loradesk_engine.ordering.mode import with_mode
from loradesk_engine.ordering.schema import KEYS, OrderingFile, PreloadAdapter, parse_pointer, pointer

_BREAKS = {ord("\r"): "\n", 0x2028: "\\u2028", 0x2029: "\\u2029", 0xFDD0: "\\ufdd0", 0xFDD1: "\\ufdd1"}
_PLACE = re.compile(r"line (\d+), column (\d+)")
NOTHING: Mapping[PreloadAdapter, PreloadFacts] = MappingProxyType({})
_RANK = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, eq=False)
class State:
    """One point of a document's history.

    Attributes:
        ordering: the file; while `draft` is set, the last one that could be read.
        draft: a text that is no ordering file, as the user left it.
        problem: why `draft` is none.
    """

    ordering: OrderingFile
    draft: str | None = None
    problem: OrderingError | None = None


@dataclass(frozen=True)
class Analysis:
    """A state looked at.

    Attributes:
        state: which one.
        context: what it was checked against.
        text: as the JSON view shows it: lines end with a line feed, no byte order mark.
        findings: of the checker, errors first.
        positions: JSON pointer of a finding's place -> line and column in `text`, from 1.
        preloads: what lies at the ids of the preload adapters.
    """

    state: State
    context: CheckContext
    text: str
    findings: tuple[Finding, ...] = ()
    positions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    preloads: Mapping[PreloadAdapter, PreloadFacts] = field(default_factory=dict)


def analyse(
    state: State,
    context: CheckContext,
    near: Path | None = None,
    known: Mapping[PreloadAdapter, PreloadFacts] = NOTHING,
) -> Analysis:
    """Text, findings and their lines. Never raises: a state is always something that can be shown.

    Args:
        near: folder of the file, in which relative paths are looked for first.
        known: preload adapters that were looked at before, and found.
    """
    if state.draft is not None:
        return _analyse_draft(state, state.draft, context, near, known)
    text = shown(state.ordering.dumps())
    preloads = _look(state.ordering, context, near, known)
    findings = check(state.ordering, with_mode(replace(context, preloads=preloads), state.ordering))
    return _analysis(state, context, text, findings, preloads)


def _analyse_draft(
    state: State, draft: str, context: CheckContext, near: Path | None, known: Mapping[PreloadAdapter, PreloadFacts]
) -> Analysis:
    """What is wrong with a text that is no ordering file, as far as it is a JSON object."""
    text = shown(draft)
    try:
        salvage = OrderingFile.salvage(text)
    except OrderingError:  # the state's own problem says where
        return Analysis(state, context, text)
    preloads = _look(salvage.ordering, context, near, known)
    findings = check_salvage(salvage, with_mode(replace(context, preloads=preloads), salvage.ordering))
    return _analysis(state, context, text, findings, preloads)


def _analysis(
    state: State,
    context: CheckContext,
    text: str,
    findings: Sequence[Finding],
    preloads: Mapping[PreloadAdapter, PreloadFacts],
) -> Analysis:
    places = {place for finding in findings for place in (finding.place, *finding.places)}
    return Analysis(state, context, text, tuple(findings), positions(text, places), preloads)


def _look(
    ordering: OrderingFile, context: CheckContext, near: Path | None, known: Mapping[PreloadAdapter, PreloadFacts]
) -> Mapping[PreloadAdapter, PreloadFacts]:
    """What lies at the ids of the preload adapters; those that are known are not read again."""
    from loradesk_engine.cli.ordering_sources import look_at_preloads

    found = {entry: facts for entry, facts in known.items() if facts.modules is not None or facts.unseen}
    entries = ordering.preload_adapters or ()
    fresh = [entry for entry in entries if entry not in found]
    if not fresh:
        return {entry: found[entry] for entry in entries}
    others = tuple(entry.name for entry in entries)
    looked = look_at_preloads(fresh, context.config, near=near, among=others)
    return {entry: found.get(entry) or looked[entry] for entry in entries if entry in found or entry in looked}


def state_of(text: str, file: str = "ordering file", before: OrderingFile | None = None) -> State:
    """The state that a text stands for; a text that cannot be read is kept as a draft beside the file before it."""
    try:
        return State(OrderingFile.parse(text, file=file))
    except OrderingError as problem:
        return State(OrderingFile("") if before is None else before, text, problem)


def read_state(path: str) -> tuple[bytes, State]:
    """Content and state of a file on disk.

    Raises:
        OrderingError: missing, unreadable, too large or not UTF-8. Malformed content is no error but a draft.
    """
    data = read_bytes(path, limit=MAX_JSON_BYTES, error=OrderingError)
    return data, state_of(json_text.decode(data, file=path), path)


def shown(text: str) -> str:
    """A JSON text without what a text widget would take for a line break or swallow; it means the same."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").translate(_BREAKS)


def positions(text: str, places: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Line and column of JSON pointers in a valid text, found in one pass; those that are not there are left out."""
    wanted = set(places)
    if not wanted:
        return {}
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def line_column(offset: int) -> tuple[int, int]:
        line = bisect_right(starts, offset)
        return line, offset - starts[line - 1] + 1

    result: dict[str, tuple[int, int]] = {}
    keys = {parse_pointer(place)[0] for place in wanted if place}
    for member in json_text.members(text, json_text.locate(text, ()) or 0):
        top = pointer(member.key)
        if top in wanted:
            result[top] = line_column(member.key_start)
        if member.key not in keys or member.key not in KEYS or not isinstance(member.value, dict | list):
            continue
        for entry in json_text.members(text, member.start):
            place = pointer(member.key, entry.key)
            if place in wanted:
                result[place] = line_column(entry.key_start)
            if isinstance(entry.value, dict):
                for part in json_text.members(text, entry.start):
                    if (inner := pointer(member.key, entry.key, part.key)) in wanted:
                        result[inner] = line_column(part.key_start)
    return result


def problem_position(problem: OrderingError) -> tuple[int, int] | None:
    """Line and column that an error names."""
    found = _PLACE.search(problem.field or "")
    return (int(found[1]), int(found[2])) if found else None


def by_place(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """JSON pointer -> findings about it, the worst first."""
    result: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: _RANK[finding.severity]):
        for place in dict.fromkeys((finding.place, *finding.places)):
            result.setdefault(place, []).append(finding)
    return result
