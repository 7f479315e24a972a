"""The metadata keys of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np

from loradesk_engine.architectures.registry import GGUF
from loradesk_engine.errors import ConfigError
from loradesk_engine.formats.fields import Fields
from loradesk_engine.formats.gguf import GgufFile


class Keys:
    """Access to a file's metadata by keys without their architecture prefix.

    Attributes:
        file: the file.
        architecture: its `general.architecture`.
        families: those that llama.cpp calls so.

    Raises:
        ConfigError: the architecture is not supported.
    """

    def __init__(self, file: GgufFile) -> None:
        found = file.metadata.get("general.architecture")
        if not isinstance(found, str) or found not in GGUF:
            raise ConfigError(
                f"The architecture {found!r} is not supported.",
                file=file.path,
                field="general.architecture",
                remedy=f"Supported: {', '.join(GGUF)}.",
            )
        self.file = file
        self.architecture = found
        self.families = GGUF[found]
        self._fields = Fields(file.metadata, file.path)

    def name(self, key: str) -> str:
        """The full key in the file."""
        return f"{self.architecture}.{key}"

    def value(self, key: str, default: Any = None) -> Any:
        """A scalar, which holds for all layers; `default` if the key is missing.

        Raises:
            ConfigError: the value is an array.
        """
        return self.plain(self.name(key), default)

    def plain(self, name: str, default: Any = None) -> Any:
        """`value` by the full key."""
        value = self.file.metadata.get(name, default)
        if isinstance(value, list | np.ndarray):
            raise ConfigError("One value is expected, not an array.", file=self.file.path, field=name)
        return value

    def integer(self, key: str, default: int | None = None, *, low: int = 1, high: int = 2**31) -> int:
        """A whole number from `low` up to but not including `high`; an error if it is missing without a default."""
        self.value(key)
        return self._fields.integer(self.name(key), default, low=low, high=high)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as `integer`."""
        self.value(key)
        return self._fields.number(self.name(key), default)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0, as `integer`."""
        self.value(key)
        return self._fields.positive(self.name(key), default)

    def every(self, key: str) -> list[Any] | None:
        """The elements of an array, or a scalar as a list of one; None if the key is missing."""
        value = self.file.metadata.get(self.name(key))
        if isinstance(value, np.ndarray):
            elements: list[Any] = value.tolist()
            return elements
        return value if value is None or isinstance(value, list) else [value]

    def has(self, tensor: str) -> bool:
        """Whether the file has a tensor of this name."""
        return tensor in self.file.tensors

    def refuse(self, key: str, problem: str, remedy: str | None = None) -> ConfigError:
        """The error to raise about a key."""
        return ConfigError(problem, file=self.file.path, field=self.name(key), remedy=remedy)
