"""Rules about the base model, the adapters' names and the preload adapters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from loradesk_engine.ordering.finding import Finding, Fix, PreloadFacts, Severity
from loradesk_engine.ordering.schema import KEYS, PreloadAdapter, pointer
from loradesk_engine.ordering.subject import Subject
from loradesk_engine.ordering.words import SHOWN, closest, counted, listed, suggestion

MAX_COMPARED_NAMES = 2_000  # comparing every name with every other grows with the square
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_CACHE = re.compile(r"(?:^|/)models--(.+?)--([^/]+)(?:/|$)")


def base(subject: Subject) -> Iterator[Finding]:
    """`base-missing`, `base-mismatch`."""
    named, loaded = subject.ordering.base_model_id, subject.context.base_model_id
    hub_id = None if loaded is None else _hub_id(loaded)
    fix = Fix(f"Set base_model_id to {hub_id}", {"base_model_id": hub_id}) if hub_id else None
    if not named.strip():
        yield Finding(
            "base-missing",
            "error" if loaded is None else "warning",  # files of the format's first days have none, and must load
            "/base_model_id",
            "The file does not say which base model it is for.",
            fix,
        )
    elif loaded is not None and not same_base(named, loaded) and named != _saved_as(subject):
        message = (
            f"The file is for {named}, but {loaded} is loaded. Adapters only work on the base of their training; "
            "if this is a copy of it, all is well."
        )
        yield Finding("base-mismatch", "warning", "/base_model_id", message, fix)


def _saved_as(subject: Subject) -> object:
    """What the base was called where it was saved: a local copy still knows its hub id."""
    return (subject.context.config or {}).get("_name_or_path")


def same_base(a: str, b: str) -> bool:
    """Whether two ids or paths may be the same model: local folders keep only the last part of a hub id."""
    first, second = _last_part(a), _last_part(b)
    if first == second:
        return True
    for name, other in ((first, second), (second, first)):
        stem = name.removesuffix(".gguf")
        if stem != name and other and re.match(re.escape(other) + r"(?![a-z0-9])", stem):
            return True  # zephyr-7b-beta.Q4_0.gguf
    return False


def keys(subject: Subject) -> Iterator[Finding]:
    """`key-misspelt`: unknown keys are kept, but one that looks like ours was probably meant to be read."""
    for key in subject.ordering.unknown_keys:
        near = closest(key, KEYS)
        if near is not None and subject.ordering.value(near) is None:
            message = f"The key {key!r} is not read. Did you mean {near!r}?"
            yield Finding("key-misspelt", "warning", pointer(key), message)


def order(subject: Subject) -> Iterator[Finding]:
    """`order-missing`, `order-empty`, `order-name-empty`, `order-duplicate`, `order-unknown`, `order-incomplete`."""
    names, context = subject.ordering.order, subject.context
    if not names:
        if context.is_xlora:
            yield _no_order(subject)
        return
    empty = [index for index, name in enumerate(names) if not name.strip()]
    if empty:
        kept = [name for name in names if name.strip()]
        fix = Fix("Remove empty names", {"order": kept})
        yield _finding("order-name-empty", "error", "An adapter name in order is empty.", "order", empty, fix)
    repeated = _repeated(names)
    if repeated:
        message = f"Adapters are named twice in order: {listed(sorted({names[i] for i in repeated}))}."
        fix = Fix("Remove repeated names", {"order": list(dict.fromkeys(names))})
        yield _finding("order-duplicate", "error", message, "order", repeated, fix)
    if subject.known_names is not None:
        yield from _unknown_names(subject, names, subject.known_names)
    elif context.mode == "lora" and subject.ordering.preload_adapters is not None:
        preloaded = {adapter.name for adapter in subject.ordering.preload_adapters}
        others = [index for index, name in enumerate(names) if name not in preloaded and name.strip()]
        if others:
            message = (
                f"In order but not among preload_adapters: {listed([names[i] for i in others])}. "
                "They must be given when the model is loaded."
            )
            severity: Severity = "info" if context.preloads is None else "warning"  # somebody has looked for adapters
            yield _finding("order-not-preloaded", severity, message, "order", others)


def names(subject: Subject) -> Iterator[Finding]:
    """`name-contained`, `name-path`: names that are right but may surprise."""
    found = list(dict.fromkeys(subject.ordering.order or ()))
    found += [a.name for a in subject.ordering.preload_adapters or () if a.name not in set(found)]
    if len(found) <= MAX_COMPARED_NAMES:
        pairs = [f"{a} in {b}" for a in found for b in found if a != b and a in b and a]
        if pairs:
            message = (
                f"A name is part of another: {listed(pairs)}. Loradesk tells them apart; "
                "tools that search for parts of names may not."
            )
            yield Finding(
                "name-contained", "info", "/order" if subject.ordering.order else "/preload_adapters", message
            )
    bad = [index for index, name in enumerate(subject.ordering.order or ()) if not _is_file_name(name)]
    if bad:
        shown = listed([repr(subject.ordering.order[i]) for i in bad]) if subject.ordering.order else ""
        message = f"Adapter names are looked up as names of files and folders, and these cannot be one: {shown}."
        yield _finding("name-path", "warning", message, "order", bad)


def preloads(subject: Subject) -> Iterator[Finding]:
    """`preload-name-empty`, `preload-id-empty`, `preload-duplicate`, `preload-broken`, `preload-missing`,
    `preload-ignored`.
    """
    adapters = subject.ordering.preload_adapters
    if not adapters:
        return
    nameless = [index for index, adapter in enumerate(adapters) if not adapter.name.strip()]
    if nameless:
        message = f"{counted(len(nameless), 'preload adapter')} without a name."
        fix = _named_after_id(adapters)
        yield _finding("preload-name-empty", "error", message, "preload_adapters", nameless, fix, "name")
    homeless = [index for index, adapter in enumerate(adapters) if not adapter.adapter_model_id.strip()]
    if homeless:
        message = f"No adapter_model_id for {listed([repr(adapters[i].name) for i in homeless])}."
        yield _finding("preload-id-empty", "error", message, "preload_adapters", homeless, None, "adapter_model_id")
    repeated = _repeated([adapter.name for adapter in adapters])
    if repeated:
        message = f"Preload adapters share a name: {listed(sorted({adapters[i].name for i in repeated}))}."
        distinct = list(dict.fromkeys(adapters))
        fix = Fix("Remove repeated entries", {"preload_adapters": distinct}) if len(distinct) < len(adapters) else None
        yield _finding("preload-duplicate", "error", message, "preload_adapters", repeated, fix, "name")
    yield from _looked_at(subject, adapters)
    if subject.context.is_xlora:
        message = "preload_adapters are for LoRA; an X-LoRA model does not load them."
        yield Finding("preload-ignored", "info", "/preload_adapters", message)


def _looked_at(subject: Subject, adapters: Sequence[PreloadAdapter]) -> Iterator[Finding]:
    """What was found at the ids."""
    for index, adapter in enumerate(adapters):
        facts = (subject.context.preloads or {}).get(adapter, PreloadFacts())
        rows: tuple[tuple[str, Severity, str], ...] = (
            ("preload-broken", "error", facts.problem),
            ("preload-missing", "warning", facts.missing),
        )
        for rule, weight, what in rows:
            if what:
                message = f"The preload adapter {adapter.name!r} at {adapter.adapter_model_id}: {what}"
                severity: Severity = "info" if subject.context.is_xlora else weight  # X-LoRA does not load them
                yield _finding(rule, severity, message, "preload_adapters", [index], None, "adapter_model_id")


def _no_order(subject: Subject) -> Finding:
    facts = subject.context.xlora
    fix = Fix("Take the order from the checkpoint", {"order": list(facts.order)}) if facts and facts.order else None
    message = "X-LoRA needs order: the adapters' names in the order used in training."
    if subject.ordering.order is None:
        return Finding("order-missing", "error", "/order", message, fix)
    return Finding("order-empty", "error", "/order", message, fix)


def _unknown_names(subject: Subject, names: Sequence[str], known: frozenset[str]) -> Iterator[Finding]:
    unknown = [index for index, name in enumerate(names) if name not in known and name.strip()]
    if unknown:
        hints = "".join(suggestion(names[i], sorted(known)) for i in unknown[:SHOWN])
        message = (
            f"Not found: {listed([names[i] for i in unknown])}.{hints} There are {listed(sorted(known)) or 'none'}."
        )
        fix = _corrected(names, known)
        yield _finding("order-unknown", "error", message, "order", unknown, fix)
    unnamed = sorted(known.difference(names))
    if unnamed and subject.context.is_xlora:
        message = f"{counted(len(unnamed), 'adapter')} of the checkpoint not in order: {listed(unnamed)}."
        yield Finding("order-incomplete", "warning", "/order", message)


def _corrected(names: Sequence[str], known: frozenset[str]) -> Fix | None:
    """Spelling put right, only where no other name and no other number is meant."""
    free = known.difference(names)
    corrected = list(names)
    for index, name in enumerate(names):
        if name in known or not free or len(free) > MAX_COMPARED_NAMES:
            continue
        near = closest(name, sorted(free))
        if near is not None and re.findall(r"\d+", near) == re.findall(r"\d+", name):
            corrected[index] = near
            free -= {near}
    return Fix("Correct the spelling of names", {"order": corrected}) if corrected != list(names) else None


def _named_after_id(adapters: Sequence[PreloadAdapter]) -> Fix | None:
    taken = {adapter.name for adapter in adapters}
    result = []
    for adapter in adapters:
        name = adapter.name
        if not name.strip():
            name = re.split(r"[/\\]", adapter.adapter_model_id.rstrip("/\\"))[-1]
            if not name.strip() or name in taken:
                return None
            taken.add(name)
        result.append(PreloadAdapter(name, adapter.adapter_model_id))
    return Fix("Name them after their folders", {"preload_adapters": result})


def _repeated(names: Sequence[str]) -> list[int]:
    """Indices of names that occurred before; empty names have their own rule."""
    counts: Counter[str] = Counter()
    result = []
    for index, name in enumerate(names):
        counts[name] += 1
        if counts[name] > 1 and name.strip():
            result.append(index)
    return result


def _finding(
    rule: str,
    severity: Severity,
    message: str,
    key: str,
    indices: Sequence[int],
    fix: Fix | None = None,
    field: str | None = None,
) -> Finding:
    """A finding about entries of a list."""
    places = tuple(pointer(key, index, *([field] if field else [])) for index in indices)
    return Finding(rule, severity, places[0], message, fix, places)


def _last_part(base_model_id: str) -> str:
    path = base_model_id.strip().replace("\\", "/").rstrip("/")
    cached = _HUB_CACHE.search(path)
    return (cached[2] if cached else path.rpartition("/")[2]).casefold()


def _hub_id(base_model_id: str) -> str | None:
    """The hub id that an id or a path in the hub's cache stands for; a local path has no place in a shared file."""
    path = base_model_id.replace("\\", "/")
    cached = _HUB_CACHE.search(path)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return path if _HUB_ID.fullmatch(path) else None


def _is_file_name(name: str) -> bool:
    return name not in (".", "..") and not re.search(r"[/\\\x00-\x1f]", name)
