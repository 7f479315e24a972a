"""Tracebacks as the log shows them: every frame, but no values that an error's message quotes."""

from __future__ import annotations

import traceback

from loradesk_engine.log.redaction import without_values

MAX_CHAIN = 8
CAUSE = "The above exception was the direct cause of the following exception:"
CONTEXT = "During handling of the above exception, another exception occurred:"
WITH_INPUTS = ("pydantic", "pydantic_core", "fastapi", "jinja2", "starlette")
"""Packages whose errors put what they were given into their messages, unquoted or in parts."""


def format_error(error: BaseException) -> str:
    """Traceback, class and message of an error and of those that led to it, the first one first."""
    parts = [_one(error)]
    seen = {id(error)}
    while len(parts) < MAX_CHAIN:
        if error.__cause__ is not None:
            earlier, link = error.__cause__, CAUSE
        elif error.__context__ is not None and not error.__suppress_context__:
            earlier, link = error.__context__, CONTEXT
        else:
            break
        if id(earlier) in seen:
            break
        seen.add(id(earlier))
        parts.append(f"{_one(earlier)}\n\n{link}\n")
        error = earlier
    return "\n".join(reversed(parts))


def describe(error: BaseException) -> str:
    """Class and message of an error in one line, safe to log."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    if any(base.__module__.split(".")[0] in WITH_INPUTS for base in kind.__mro__):
        return f"{name}: (its message is left out: it may quote a conversation)"
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the log cannot log its own failure
        return f"{name}: (it has no message that can be read)"
    return f"{name}: {without_values(text)}" if text else name


def _one(error: BaseException) -> str:
    lines = [describe(error)]
    if error.__traceback__ is not None:
        frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        lines.insert(0, f"Traceback (most recent call last):\n{frames}")
    lines += [without_values(str(note)) for note in getattr(error, "__notes__", ())]
    if isinstance(error, BaseExceptionGroup):
        for number, inner in enumerate(error.exceptions[:MAX_CHAIN], 1):
            lines.append(f"-- error {number} of {len(error.exceptions)} --")
            lines.append(format_error(inner))
    return "\n".join(lines)
