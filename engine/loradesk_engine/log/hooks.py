"""Errors that nobody catches: in the main thread and Qt's slots, in other threads, and where none can be raised."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class Hooks:
    """Writes uncaught errors to the log, then does what was done before."""

    def __init__(self) -> None:
        self._installed = False

    def install(self) -> None:
        """PySide6 calls `sys.excepthook` for an error in a slot."""
        self._before = (sys.excepthook, threading.excepthook, sys.unraisablehook)
        self._ours = (self._uncaught, self._in_thread, self._unraisable)
        sys.excepthook, threading.excepthook, sys.unraisablehook = self._ours
        self._installed = True

    def remove(self) -> None:
        """Put back what was there; a hook that somebody else has set since stays."""
        if not self._installed:
            return
        self._installed = False
        if sys.excepthook == self._ours[0]:
            sys.excepthook = self._before[0]
        if threading.excepthook == self._ours[1]:
            threading.excepthook = self._before[1]
        if sys.unraisablehook == self._ours[2]:
            sys.unraisablehook = self._before[2]

    def _uncaught(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt | SystemExit):
            logger.error("An error that nothing caught", exc_info=(kind, error, trace))
        self._before[0](kind, error, trace)

    def _in_thread(self, given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None and not issubclass(given.exc_type, SystemExit):
            name = given.thread.name if given.thread is not None else "?"
            logger.error("The thread %s has ended by an error", name, exc_info=given.exc_value)
        self._before[1](given)

    def _unraisable(self, given: Any) -> None:
        if given.exc_value is not None:
            logger.warning("An error where none can be raised", exc_info=given.exc_value)
        self._before[2](given)
