"""Work that must not hold up the window: one class that runs it elsewhere and reports back on the GUI thread."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal, Slot

from loradesk_engine.log.defects import is_expected, log_defect
from loradesk_engine.log.traces import describe

logger = logging.getLogger(__name__)


class _Job(QRunnable):
    def __init__(self, number: int, work: Callable[[], Any], finished: Callable[[int, object, object], None]) -> None:
        super().__init__()
        self._number, self._work, self._finished = number, work, finished

    def run(self) -> None:
        result: Any = None
        problem: Exception | None = None
        try:
            result = self._work()
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one who asked, not to the pool
            problem = error
            log_defect(logger, "A background job", error)
        with contextlib.suppress(RuntimeError):  # the window is gone, and with it the one who asked
            self._finished(self._number, result, problem)


class Background(QObject):
    """Runs functions on one pool thread, in the order they were given, with callbacks on the GUI thread.

    One thread, so that two writes of the same file cannot overtake each other.
    """

    _finished = Signal(int, object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(1)
        self._waiting: dict[int, tuple[Callable[[Any], None] | None, Callable[[Exception], None] | None]] = {}
        self._next = 0
        self._finished.connect(self._report)

    def run(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """Run `work` off the GUI thread, then call `done` with its result or `failed` with its error."""
        self._next += 1
        self._waiting[self._next] = (done, failed)
        self._pool.start(_Job(self._next, work, self._finished.emit))

    def wait(self, seconds: float) -> bool:
        """Wait for everything given so far; only for the very end, when the window is hidden."""
        return self._pool.waitForDone(int(seconds * 1000))

    @Slot(int, object, object)
    def _report(self, number: int, result: object, error: object) -> None:
        done, failed = self._waiting.pop(number)
        if isinstance(error, Exception):
            if failed:
                failed(error)
            elif is_expected(error):  # nobody else says it
                logger.warning("A background job failed: %s", describe(error))
        elif done:
            done(result)
