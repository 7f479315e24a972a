"""How much is logged: `LEVEL`, or `LEVEL,MODULE=LEVEL,...`."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

from loradesk_engine.errors import RequestError

VARIABLE = "LORADESK_LOG"
NAMES = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
PACKAGES = ("loradesk_engine", "loradesk_desk", "loradesk_app")
REMEDY = "Write debug, info, warning or error, or as in info,loradesk_engine.serving=debug."


@dataclass(frozen=True)
class Levels:
    """The least level that is logged.

    Attributes:
        general: of all modules of Loradesk.
        modules: of single modules and what is below them.
    """

    general: int = logging.INFO
    modules: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, source: str) -> Levels:
        """Levels from an option or a variable, whose name is `source`.

        Raises:
            RequestError: a level does not exist, or a module is not one of Loradesk's. Other libraries may log
                anything, headers with keys included, so their debug messages cannot be asked for.
        """
        general, modules = logging.INFO, {}
        for part in text.split(","):
            module, sign, name = part.strip().rpartition("=")
            level = NAMES.get(name.strip().lower())
            if level is None:
                raise RequestError(f"{name.strip()!r} is not a level of the log.", field=source, remedy=REMEDY)
            if not sign:
                general = level
            elif module.strip().split(".")[0] in PACKAGES:
                modules[module.strip()] = level
            else:
                raise RequestError(f"{module.strip()!r} is not a module of Loradesk.", field=source, remedy=REMEDY)
        return cls(general, modules)

    @classmethod
    def chosen(cls, option: str | None) -> Levels:
        """Levels from the option, else from the variable, else INFO.

        Raises:
            RequestError: see `parse`.
        """
        if option is not None:
            return cls.parse(option, "--log-level")
        text = os.environ.get(VARIABLE, "")
        return cls.parse(text, VARIABLE) if text.strip() else cls()

    def all(self) -> dict[str, int]:
        """Logger name -> level."""
        return {**dict.fromkeys(PACKAGES, self.general), **self.modules}
