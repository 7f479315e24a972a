"""The base model that an ordering file names, for a load that names none itself."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import OrderingError, RequestError
from loradesk_engine.ordering.schema import OrderingFile


def with_named_base(settings: LoadSettings) -> LoadSettings:
    """The settings with the ordering file's base where they have none.

    Raises:
        RequestError: neither a base nor an ordering file. OrderingError: the file cannot be read or names no base.
    """
    if settings.base:
        return settings
    if not settings.ordering:
        raise RequestError("No model was named.", field="base", remedy="Choose a base model, or an ordering file.")
    return replace(settings, base=named_base(settings.ordering))


def named_base(file: str) -> str:
    """The base of an ordering file; a relative path is looked for beside the file first.

    Raises:
        OrderingError: the file cannot be read or names no base.
    """
    named = OrderingFile.read(file).base_model_id.strip()
    if not named:
        raise OrderingError(
            "The file does not say which base model it is for.",
            file=file,
            field="base_model_id",
            remedy="Choose the base model.",
        )
    beside = Path(file).parent / named
    return str(beside) if os.path.exists(beside) else named
