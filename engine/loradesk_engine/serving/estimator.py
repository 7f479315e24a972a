"""A thread that reads headers for memory estimates, so that neither answers nor loads wait for a slow disk or hub."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from loradesk_engine.commands import LoadSettings
from loradesk_engine.events import EstimateFailed, Event, MemoryEstimated, Problem

if TYPE_CHECKING:
    from loradesk_engine.formats.hub_headers import HubHeaders
    from loradesk_engine.generation.engine import EngineCore

END_SECONDS = 2.0  # that the end waits for an estimate under way


class Estimator:
    """Makes one estimate at a time; of those that wait only the newest counts.

    Args:
        emit: takes `MemoryEstimated` or `EstimateFailed`, in this thread.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._wish: tuple[LoadSettings, EngineCore | None, bool] | None = None
        self._thread: threading.Thread | None = None
        self._ended = False
        self._hub: HubHeaders | None = None  # made and used in the thread

    def ask(self, settings: LoadSettings, previous: EngineCore | None, ask_hub: bool) -> None:
        """Ask for an estimate; `previous` is the engine in use."""
        with self._lock:
            self._wish = (settings, previous, ask_hub)
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
                (settings, previous, ask_hub), self._wish = self._wish, None
            event: Event
            try:
                event = MemoryEstimated(
                    settings, estimate(settings, previous=previous, hub=self._hub if ask_hub else None)
                )
            except Exception as problem:  # whatever is wrong with the files, the next estimate must be possible
                event = EstimateFailed(settings, Problem.of(problem))
            if not self._ended:
                self._emit(event)
            previous = None  # an engine that goes away must not be kept while waiting
