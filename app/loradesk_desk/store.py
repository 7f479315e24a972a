"""Keeps conversations: the database in a thread of its own, so that nobody waits for a disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from loradesk_desk.database import Database
from loradesk_desk.errors import StoreError
from loradesk_engine.log.defects import log_defect
from loradesk_engine.log.traces import describe

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_Job = tuple[Future[Any], Callable[[Database], Any]]


class Store:
    """The database's thread. `run` may be called from any thread and never waits.

    Args:
        path: of the database; it is opened by the thread.
        opened: called in the store's thread when the database is there, or with the StoreError that says why it is not.
            Then every job fails with that error.
    """

    def __init__(self, path: Path, opened: Callable[[Database | StoreError], None] | None = None) -> None:
        self.path = path
        self._opened = opened
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="loradesk-store", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[Database], Result]) -> Future[Result]:
        """Queue a job; jobs run in the order in which they come. Its result or error is the future's."""
        future: Future[Result] = Future()
        self._jobs.put((future, job))
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Finish what is queued and close the database. Returns whether that was done in time (seconds)."""
        self._jobs.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        database = self._open()
        while (entry := self._jobs.get()) is not None:
            future, job = entry
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if isinstance(database, StoreError):
                    raise database
                future.set_result(job(database))
            except Exception as problem:  # noqa: BLE001 - the future carries it; the thread serves the next job
                log_defect(logger, "A job of the store", problem)
                future.set_exception(problem)
        if isinstance(database, Database):
            database.close()

    def _open(self) -> Database | StoreError:
        database: Database | StoreError
        try:
            database = Database(self.path)
        except StoreError as problem:
            logger.warning("The database cannot be opened: %s", describe(problem))
            database = problem
        if self._opened is not None:
            self._opened(database)
        return database
