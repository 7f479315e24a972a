"""What an ordering file is for, where nobody says it."""

from __future__ import annotations

from dataclasses import replace

from loradesk_engine.ordering.finding import CheckContext, Mode
from loradesk_engine.ordering.schema import OrderingFile


def guessed_mode(ordering: OrderingFile) -> Mode | None:
    """What a file is for, as far as it shows: only LoRA preloads, only X-LoRA needs both order and layers."""
    if ordering.preload_adapters:
        return "lora"
    return "xlora" if ordering.order and ordering.layers else None


def with_mode(context: CheckContext, ordering: OrderingFile) -> CheckContext:
    """The context with a mode: where nobody has said one, the one that the file looks like."""
    if context.mode is None and context.xlora is None:
        return replace(context, mode=guessed_mode(ordering))
    return context
