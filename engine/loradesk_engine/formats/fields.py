"""Typed access to a JSON object of a file: what is wrong is an error that names file and field."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from loradesk_engine.errors import ConfigError
from loradesk_engine.files import finite_number, json_type


class Fields:
    """Typed access to a JSON object: a wrong type is an error that names file and field."""

    def __init__(self, values: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
        self.values = values
        self.file = file

    def refuse(self, field: str, problem: str, remedy: str | None = None) -> ConfigError:
        return ConfigError(problem, file=self.file, field=field, remedy=remedy)

    def integer(self, field: str, default: int | None = None, *, low: int = 1, high: int = 2**31) -> int:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.refuse(field, "The number is missing.")
            return default
        if type(value) is not int:
            raise self.refuse(field, f"A whole number is expected, not {json_type(value)}.")
        if not low <= value < high:
            raise self.refuse(field, f"{value} is out of range.")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self.refuse(field, "The number is missing.")
            return default
        found = finite_number(value)
        if found is None:
            raise self.refuse(field, f"A finite number is expected, not {value!r}.")
        return found

    def positive(self, field: str, default: float | None = None) -> float:
        value = self.number(field, default)
        if value <= 0:
            raise self.refuse(field, f"{value} is not above 0.")
        return value

    def optional(self, field: str) -> float | None:
        return None if self.values.get(field) is None else self.positive(field)

    def boolean(self, field: str, default: bool) -> bool:
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refuse(field, f"true or false is expected, not {json_type(value)}.")
        return value

    def part(self, field: str) -> Fields | None:
        """A nested object, or None where there is none."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(field, f"An object is expected, not {json_type(value)}.")
        return Fields(value, self.file)
