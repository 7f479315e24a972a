"""A thread that reads headers for memory estimates, so that neither answers nor loads wait for a slow disk or hub."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from loradesk_engine.commands import Estimate
from loradesk_engine.events import EstimateFailed, Event, MemoryEstimated, Problem
from loradesk_engine.log.defects import log_defect

if TYPE_CHECKING:
    from loradesk_engine.formats.hub_headers import HubHeaders
    from loradesk_engine.generation.engine import EngineCore

logger = logging.getLogger(__name__)

END_SECONDS = 2.0  # that the end waits for an estimate under way


class Estimator:
    """Makes one estimate at a time; of those that wait only the newest counts.

    Args:
        emit: takes `MemoryEstimated` or `EstimateFailed`, in this thread.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._wish: tuple[Estimate, EngineCore | None] | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._hub: HubHeaders | None = None  # made and used in the thread

    def ask(self, command: Estimate, previous: EngineCore | None) -> None:
        """Ask for an estimate; `previous` is the engine in use."""
        with self._lock:
            self._wish = (command, previous)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="loradesk-estimate", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """Make no more estimates and wait for the one under way."""
        with self._lock:
            self._wish, self._ended = None, True
            thread = self._thread
        if thread is not None:
            thread.join(END_SECONDS)

    def _run(self) -> None:
        from loradesk_engine.formats.hub_headers import HubHeaders
        from loradesk_engine.generation.estimate import estimate

        if self._hub is None:
            self._hub = HubHeaders()
        while True:
            with self._lock:
                if self._wish is None:
                    self._thread = None
                    return
                (command, previous), self._wish = self._wish, None
            settings, hub = command.settings, self._hub if command.ask_hub else None
            event: Event
            try:
                event = MemoryEstimated(settings, estimate(settings, previous=previous, hub=hub), command.tag)
            except Exception as problem:  # noqa: BLE001 - whatever is wrong with the files, the next estimate must be possible
                log_defect(logger, "An estimate", problem)
                event = EstimateFailed(settings, Problem.of(problem), command.tag)
            if not self._ended:
                self._emit(event)
            previous = None  # an engine that goes away must not be kept while waiting
