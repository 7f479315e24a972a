"""What an adapter's configuration adapts, by PEFT's rules: `target_modules` with what narrows them down, and
`target_parameters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loradesk_engine.errors import AdapterError, ConfigError
from loradesk_engine.formats import fused_experts
from loradesk_engine.ordering.modules import match_targets
from loradesk_engine.patterns import Matcher

EVERYTHING = ".*"
PARAMETERS = (*fused_experts.PARAMETERS, "weight")
"""Parameters that a decoder has: those of fused experts, and a linear's own."""


class Targets:
    """The targets of one adapter_config.json.

    Args:
        matcher: its patterns are matched with this, within its time.

    Attributes:
        says_modules: whether `target_modules` is there.

    Raises:
        AdapterError: an option is malformed, or names parameters that no supported model has.
    """

    def __init__(self, config: Mapping[str, Any], file: Path, matcher: Matcher) -> None:
        self._file = file
        self._matcher = matcher
        self._parameters = frozenset(_list(config, "target_parameters", str, file) or ())
        for name in sorted(self._parameters):
            if name.rpartition(".")[2] not in PARAMETERS:
                raise AdapterError(
                    f"The parameter {name!r} is not supported.",
                    file=file,
                    field="target_parameters",
                    remedy="Supported are gate_up_proj and down_proj of Mixtral's experts, and weight of linears.",
                )
        modules = _text_or_list(config, "target_modules", file)
        self.says_modules = modules is not None
        if modules is None:  # nothing is said: what the file holds is meant
            modules = [] if self._parameters else EVERYTHING
        self._modules = modules
        self._layers: list[int] | None = _list(config, "layers_to_transform", int, file)
        self._layers_pattern = _text_or_list(config, "layers_pattern", file)
        self._excluded = _text_or_list(config, "exclude_modules", file)

    def modules(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of the modules' paths that `target_modules` adapts.

        Raises:
            AdapterError: a pattern is no regular expression or too slow, or options do not go together.
        """
        try:
            return frozenset(
                match_targets(
                    paths, self._modules, self._layers, self._layers_pattern, self._excluded, matcher=self._matcher
                )
            )
        except ConfigError as problem:
            raise AdapterError(
                problem.problem,
                file=self._file,
                field=problem.field,
                remedy=problem.remedy or "Save the adapter with PEFT again.",
            ) from None

    def has_parameter(self, path: str) -> bool:
        """Whether `target_parameters` adapts the parameter of this path; its last parts may stand there."""
        while path not in self._parameters:
            _, dot, path = path.partition(".")
            if not dot:
                return False
        return True


def _text_or_list(config: Mapping[str, Any], field: str, file: Path) -> str | list[str] | None:
    value = config.get(field)
    return value if isinstance(value, str) else _list(config, field, str, file)


def _list(config: Mapping[str, Any], field: str, kind: type, file: Path) -> list[Any] | None:
    """The option as a list of one kind; a single value is a list of itself."""
    value = config.get(field)
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    if any(type(item) is not kind for item in items):
        names = {str: "text", int: "whole numbers"}[kind]
        raise AdapterError(
            f"A list of {names} is expected, not {value!r:.80}.",
            file=file,
            field=field,
            remedy="Save the adapter with PEFT again.",
        )
    return items
