"""Making and changing ordering files: pure functions from plain data to a new file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from loradesk_engine.errors import OrderingError
from loradesk_engine.ordering.check import CheckContext, Finding, check
from loradesk_engine.ordering.diff import Change, diff
from loradesk_engine.ordering.modules import adaptable_modules, match_targets, number_layers, target_names
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter
from loradesk_engine.ordering.words import listed, suggestion

__all__ = [
    "Change",
    "change_preload",
    "create",
    "create_from_modules",
    "diff",
    "fix",
    "new_file",
    "preload",
    "refuse_missing_targets",
    "regenerate",
    "remove_preload",
    "rename",
    "set_order",
]


def create(
    base_model_id: str,
    config: Mapping[str, Any],
    target_modules: str | Sequence[str],
    *,
    order: Iterable[str] | None = None,
    preload_adapters: Iterable[PreloadAdapter] | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    allow_missing: bool = False,
) -> OrderingFile:
    """A new file from a base model's config.json and target modules as PEFT understands them.

    Args:
        allow_missing: leave out target modules that the model does not have, as PEFT does, while others match.

    Raises:
        ConfigError: unsupported architecture, or a bad pattern.
        OrderingError: a target module matches nothing; a name or the base is empty, or a name is given twice.
    """
    modules = adaptable_modules(config)
    if not isinstance(target_modules, str) and not allow_missing:
        refuse_missing_targets(target_modules, config)
    paths = match_targets(modules, target_modules, layers_to_transform, layers_pattern, exclude_modules)
    if not paths:
        raise OrderingError(
            "The target modules match no linear of the model.",
            field="target_modules",
            remedy=f"It has {', '.join(target_names(config))}.",
        )
    return new_file(base_model_id, order, number_layers(paths), preload_adapters)


def new_file(
    base_model_id: str,
    order: Iterable[str] | None = None,
    layers: Mapping[str, int] | None = None,
    preload_adapters: Iterable[PreloadAdapter] | None = None,
) -> OrderingFile:
    """A new file that the checker accepts.

    Raises:
        OrderingError: the base or a name is empty, or a name is given twice.
    """
    if not base_model_id.strip():
        raise OrderingError("The base model has no name.", field="base_model_id", remedy="Give a hub id or a folder.")
    names = None if order is None else list(order)
    ordering = OrderingFile(base_model_id, names, layers)
    _refuse_bad_names(names or (), ordering, "order")
    return preload(ordering, preload_adapters) if preload_adapters is not None else ordering


def create_from_modules(
    base_model_id: str,
    config: Mapping[str, Any],
    modules: Collection[str],
    *,
    order: Iterable[str] | None = None,
    preload_adapters: Iterable[PreloadAdapter] | None = None,
) -> OrderingFile:
    """A new file for adapters that exist, from the paths of the modules that their weights adapt.

    Raises:
        ConfigError: unsupported architecture.
        OrderingError: an adapted module is not in the model: the adapters belong to another base. Or as `create`.
    """
    known = adaptable_modules(config)
    foreign = sorted(set(modules).difference(known))
    if foreign:
        raise OrderingError(
            f"The adapters adapt modules that {base_model_id} does not have: {listed(foreign)}.",
            field="layers",
            remedy="Choose the base model that the adapters were trained on.",
        )
    wanted = frozenset(modules)
    layers = number_layers(path for path in known if path in wanted)
    return new_file(base_model_id, order, layers, preload_adapters)


def regenerate(ordering: OrderingFile, config: Mapping[str, Any], modules: Collection[str]) -> OrderingFile:
    """The file with its layers made anew; everything else is kept. Raises as `create_from_modules`."""
    return ordering.replace(layers=create_from_modules(ordering.base_model_id, config, modules).layers)


def set_order(ordering: OrderingFile, names: Iterable[str] | None) -> OrderingFile:
    """The file with these adapter names in this order, whatever it had; None removes `order`.

    Raises:
        OrderingError: a name is empty or given twice.
    """
    if names is None:
        return ordering.replace(order=None)
    names = list(names)
    _refuse_bad_names(names, ordering, "order")
    return ordering.replace(order=names)


def rename(ordering: OrderingFile, names: Mapping[str, str]) -> OrderingFile:
    """The file with adapters renamed (old name -> new name), in `order` and `preload_adapters`; positions stay.

    Raises:
        OrderingError: an old name does not occur, or a new one is empty or taken.
    """
    order = ordering.order or ()
    preloads = ordering.preload_adapters or ()
    present = list(dict.fromkeys([*order, *(adapter.name for adapter in preloads)]))
    for old in names:
        if old not in present:
            raise _no_such(old, present, ordering, "order")
    _refuse_bad_names([names.get(name, name) for name in present], ordering, "order")
    changes: dict[str, Any] = {}
    if any(name in names for name in order):
        changes["order"] = [names.get(name, name) for name in order]
    if any(adapter.name in names for adapter in preloads):
        renamed = [PreloadAdapter(names.get(a.name, a.name), a.adapter_model_id) for a in preloads]
        changes["preload_adapters"] = renamed
    return ordering.replace(**changes)


def preload(ordering: OrderingFile, adapters: Iterable[PreloadAdapter], *, replace: bool = False) -> OrderingFile:
    """The file with these preload adapters added at the end.

    Args:
        replace: the new ones take the place of all that are there.

    Raises:
        OrderingError: a name or id is empty, or a name is there already.
    """
    kept = () if replace else ordering.preload_adapters or ()
    return _with_preloads(ordering, [*kept, *adapters])


def change_preload(ordering: OrderingFile, name: str, adapter: PreloadAdapter) -> OrderingFile:
    """The file with one preload adapter replaced at its place.

    Raises:
        OrderingError: as `preload`, or there is none of the name.
    """
    index = _preload_index(ordering, name)
    result = list(ordering.preload_adapters or ())
    result[index] = adapter
    return _with_preloads(ordering, result)


def remove_preload(ordering: OrderingFile, name: str) -> OrderingFile:
    """The file without one preload adapter; the last one takes the key with it.

    Raises:
        OrderingError: there is none of the name.
    """
    index = _preload_index(ordering, name)
    result = list(ordering.preload_adapters or ())
    del result[index]
    return ordering.replace(preload_adapters=result or None)


def fix(
    ordering: OrderingFile, context: CheckContext | None = None, rules: Collection[str] | None = None
) -> tuple[OrderingFile, list[Finding]]:
    """The file with the proposed fixes applied, and the findings that they answered.

    Each fix is followed by a new check, since one may answer several findings or make another one possible.

    Args:
        rules: apply the fixes of these rules only; None applies all.
    """
    applied: list[Finding] = []
    seen = {ordering.dumps()}
    while True:
        for finding in check(ordering, context):
            if finding.fix is None or (rules is not None and finding.rule not in rules):
                continue
            fixed = finding.fix.apply(ordering)
            text = fixed.dumps()
            if text not in seen:  # fixes that undo each other must not run in circles
                seen.add(text)
                ordering = fixed
                applied.append(finding)
                break
        else:
            return ordering, applied


def _with_preloads(ordering: OrderingFile, adapters: Sequence[PreloadAdapter]) -> OrderingFile:
    before = set(ordering.preload_adapters or ())
    _refuse_bad_names([adapter.name for adapter in adapters], ordering, "preload_adapters")
    for adapter in adapters:
        if adapter not in before and not adapter.adapter_model_id.strip():
            raise OrderingError(
                f"The preload adapter {adapter.name!r} has no adapter_model_id.",
                file=ordering.file,
                field="preload_adapters",
                remedy="Give a hub id or a folder.",
            )
    return ordering.replace(preload_adapters=adapters)


def _preload_index(ordering: OrderingFile, name: str) -> int:
    names = [adapter.name for adapter in ordering.preload_adapters or ()]
    if name not in names:
        raise _no_such(name, names, ordering, "preload_adapters")
    return names.index(name)


def _no_such(name: str, present: Sequence[str], ordering: OrderingFile, field: str) -> OrderingError:
    there = f"There are {listed(present)}." if present else "There are none."
    return OrderingError(
        f"There is no adapter {name!r}.{suggestion(name, present)}", file=ordering.file, field=field, remedy=there
    )


def _refuse_bad_names(names: Sequence[str], ordering: OrderingFile, field: str) -> None:
    for index, name in enumerate(names):
        if not name.strip():
            raise OrderingError("An adapter's name is empty.", file=ordering.file, field=field, remedy="Give a name.")
        if name in names[:index]:
            raise OrderingError(
                f"The name {name!r} is given twice.", file=ordering.file, field=field, remedy="Use each name once."
            )


def refuse_missing_targets(targets: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raise an error for a target module that the model does not have.

    Raises:
        ConfigError: unsupported architecture. OrderingError: names the module and those that there are.
    """
    modules, known = adaptable_modules(config), target_names(config)
    for target in targets:
        if not match_targets(modules, [target]):
            raise OrderingError(
                f"The model has no linear {target!r}.{suggestion(target, known)}",
                field="target_modules",
                remedy=f"It has {', '.join(known)}.",
            )
