"""Models loaded lately, and the other modes that a loaded model can be reloaded in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import PurePath
from typing import Any, get_args

from loradesk_engine.commands import AdapterMode, AdapterSource, LoadSettings, Quantize
from loradesk_engine.demo import demo_settings

MAX_RECENT = 8
_NAMES = tuple(field.name for field in fields(LoadSettings) if field.name not in ("token", "adapters"))
_MODE_NAMES = {"none": "base", "lora": "LoRA", "xlora": "X-LoRA"}


def to_json(settings: LoadSettings) -> dict[str, Any]:
    """Load settings as JSON, without the access token."""
    data = {name: getattr(settings, name) for name in _NAMES}
    data["adapters"] = [[adapter.name, adapter.source] for adapter in settings.adapters]
    return data


def from_json(data: Any) -> LoadSettings | None:
    """Load settings from JSON; None when they do not make sense."""
    if not isinstance(data, dict) or not isinstance(data.get("base"), str):
        return None
    if not data["base"] and not data.get("ordering"):  # which names a base, too
        return None
    known = {name: data[name] for name in _NAMES if name in data}
    texts = ("revision", "repository", "xlora", "ordering")
    numbers = ("context", "tgt_non_granular_index")
    if known.get("mode", "none") not in _MODE_NAMES or known.get("quantize", "none") not in get_args(Quantize):
        return None
    if any(known.get(name) is not None and not isinstance(known[name], str) for name in texts):
        return None
    if any(known.get(name) is not None and type(known[name]) is not int for name in numbers):
        return None
    if known.get("xlora_relu") not in (None, True, False):
        return None
    try:
        adapters = tuple(AdapterSource(str(name), str(source)) for name, source in data.get("adapters", ()))
    except (TypeError, ValueError):
        return None
    return LoadSettings(adapters=adapters, **known)


def remembered(recent: Iterable[Any], settings: LoadSettings) -> list[dict[str, Any]]:
    """The list with these settings put first, each only once."""
    new = to_json(settings)
    return [new, *(entry for entry in recent if entry != new)][:MAX_RECENT]


def readable(recent: Iterable[Any]) -> list[LoadSettings]:
    """The settings in a kept list, without entries that do not make sense."""
    return [settings for entry in recent if (settings := from_json(entry)) is not None]


def title(settings: LoadSettings) -> str:
    """Short name of what would be loaded, e.g. `zephyr-7b · X-LoRA`."""
    base = settings.base or settings.ordering or ""
    name = "Demo pack" if is_demo(settings) else PurePath(base.rstrip("/\\")).name or base
    return f"{name} · {_MODE_NAMES[settings.mode]}"


def is_demo(settings: LoadSettings) -> bool:
    return settings.base == demo_settings("none").base


def in_mode(settings: LoadSettings, mode: AdapterMode, known: Iterable[LoadSettings] = ()) -> LoadSettings | None:
    """The same model in another mode, if what was loaded now or lately says how; else None.

    Args:
        known: settings of earlier loads; those of the same base show which adapters or checkpoint it goes with.
    """
    if settings.mode == mode:
        return settings
    if is_demo(settings):
        return _in_place_of(settings, demo_settings(mode, settings.tgt_non_granular_index))
    if mode == "none":
        return replace(settings, mode="none", adapters=(), xlora=None, ordering=None, tgt_non_granular_index=None)
    for other in known:
        if other.mode == mode and (other.base, other.revision) == (settings.base, settings.revision):
            return _in_place_of(settings, replace(other, token=settings.token))
    return None


def _in_place_of(settings: LoadSettings, other: LoadSettings) -> LoadSettings:
    """The other settings, loaded where and how these are."""
    return replace(
        other,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        context=settings.context,
    )
