"""Loradesk's inference engine: language models with LoRA and X-LoRA adapters.

`Engine` is the Python API. It is imported on first use, so that plain data (commands, events, errors, ordering files)
can be used without torch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loradesk_engine.serving.api import Engine

__all__ = ["Engine"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a program that uses the engine chooses where logs go


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from loradesk_engine.serving.api import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
