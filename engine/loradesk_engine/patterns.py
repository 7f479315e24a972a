"""Regular expressions that a file brings along: matched within a limit of processor time, since a few characters can
take years.

`re` cannot be interrupted and holds all of Python while it matches; the `regex` package reads the same syntax and takes
a timeout.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import regex

MAX_CHARACTERS = 4096
SECONDS = 2.0


class PatternError(ValueError):
    """A pattern is not valid, or too slow; the message is a sentence."""


class Matcher:
    """Matches patterns of one file; all of them together may take `seconds` of the thread's processor time."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._left = seconds
        self._compiled: dict[str, Any] = {}

    def match(self, pattern: str, text: str) -> Any:
        """As `re.match`: the match, or None.

        Raises:
            PatternError: it is no regular expression, or it takes too long.
        """
        return self._run(pattern, text, "match")

    def fullmatch(self, pattern: str, text: str) -> Any:
        """As `re.fullmatch`; raises as `match`."""
        return self._run(pattern, text, "fullmatch")

    def _run(self, pattern: str, text: str, method: str) -> Any:
        started = time.thread_time()
        try:
            compiled = self._compile(pattern)
            while (left := self._left - (time.thread_time() - started)) > 0:
                # the package counts the processor time of the whole process, which other threads may have spent
                with contextlib.suppress(TimeoutError):
                    return getattr(compiled, method)(text, timeout=left)
            raise PatternError("The pattern takes too long to match.")
        finally:
            self._left -= time.thread_time() - started

    def _compile(self, pattern: str) -> Any:
        compiled = self._compiled.get(pattern)
        if compiled is None:
            if len(pattern) > MAX_CHARACTERS:
                raise PatternError(
                    f"The pattern has {len(pattern):,} characters, over the limit of {MAX_CHARACTERS:,}."
                )
            try:
                compiled = self._compiled[pattern] = regex.compile(pattern)
            except Exception as problem:  # the package's parser raises more than its own error
                raise PatternError(f"The pattern is not a regular expression: {problem}.") from problem
        return compiled
