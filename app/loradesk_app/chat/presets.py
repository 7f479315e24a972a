"""The sampling presets that ship with Loradesk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from loradesk_engine.commands import Sampling
from loradesk_engine.errors import RequestError
from loradesk_engine.files import read_json_object
from loradesk_resources import resource_path

ORDER = ("precise", "balanced", "creative")
DEFAULT = Sampling(max_tokens=512)
SHAPE_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # what a preset decides
KEPT_FIELDS = (*SHAPE_FIELDS, "max_tokens", "seed")  # what the popover edits and the settings keep


@dataclass(frozen=True)
class Preset:
    """A named way to draw tokens; `sampling` holds the fields it decides."""

    name: str
    description: str
    sampling: dict[str, Any]

    def applied_to(self, sampling: Sampling) -> Sampling:
        """The sampling with this preset's fields; length and seed stay the user's."""
        return replace(sampling, **self.sampling)

    def matches(self, sampling: Sampling) -> bool:
        return all(getattr(sampling, name) == value for name, value in self.sampling.items())


@lru_cache(maxsize=1)
def presets() -> tuple[Preset, ...]:
    """All presets, from the calmest to the boldest."""
    found = []
    for name in ORDER:
        data = read_json_object(resource_path("presets", f"{name}.json"))
        found.append(Preset(data["name"], data["description"], data["sampling"]))
    return tuple(found)


def preset_name(sampling: Sampling) -> str:
    """Name of the preset that these values are, or `Custom`."""
    return next((preset.name for preset in presets() if preset.matches(sampling)), "Custom")


def sampling_from(kept: dict[str, Any]) -> Sampling:
    """Sampling from what the settings kept; values that no longer fit fall back to the defaults."""
    try:
        return replace(DEFAULT, **{name: value for name, value in kept.items() if name in KEPT_FIELDS})
    except (RequestError, TypeError):
        return DEFAULT


def sampling_to_keep(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in KEPT_FIELDS}
