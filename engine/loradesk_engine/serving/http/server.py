"""The server as a thing to start and stop, beside the window or alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

import uvicorn

from loradesk_engine.errors import LoradeskError, RequestError
from loradesk_engine.log.redaction import protect
from loradesk_engine.serving.http.app import build_app
from loradesk_engine.serving.http.connection import connection_class
from loradesk_engine.serving.http.feed import Feed
from loradesk_engine.serving.http.guard import Guard
from loradesk_engine.serving.http.metrics import Metrics
from loradesk_engine.serving.http.options import ServerOptions
from loradesk_engine.serving.http.record import RequestRecord
from loradesk_engine.serving.worker import EngineWorker

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # a guard only: a thread that fails ends, which is noticed at once
GRACE_SECONDS = 2  # that answers under way have to end after they were cancelled
TICK_SECONDS = 0.005


class HttpServer:
    """Serves the model of a worker in a thread of its own. The worker is neither started nor closed here.

    Args:
        worker: shared with whoever else uses the model.
        options: see `ServerOptions`.
        on_record: called for each request that has ended, in the server's thread: for a log.
    """

    def __init__(
        self,
        worker: EngineWorker,
        options: ServerOptions,
        *,
        on_record: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        protect(options.key)
        self._worker = worker
        self._options = options
        self._on_record = on_record
        self._port = options.port
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._feed: Feed | None = None
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens; the port is known after `start`."""
        return f"http://{self._options.url_host}:{self._port}"

    @property
    def key(self) -> str | None:
        """What clients send as `Authorization: Bearer`; None: nothing is asked for."""
        return self._options.key

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._thread is not None and self._thread.is_alive() and self._ready.is_set()

    def start(self) -> None:
        """Listen; returns when clients can connect.

        Raises:
            LoradeskError: the address or port cannot be used.
        """
        if self._thread is not None:
            raise LoradeskError("The server was started already.", remedy="Make a new one.")
        listener = self._listen()
        self._port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(listener,), name="loradesk-http", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.wait(TICK_SECONDS):
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise LoradeskError("The server did not start.")
        logger.info("The server listens at %s, %s key", self.url, "with a" if self._options.key else "without a")

    def stop(self, timeout: float = 10.0) -> bool:
        """End what runs and close. Returns whether it ended in time (seconds)."""
        if self._thread is None:
            return True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._end)
        self._thread.join(timeout)
        ended = not self._thread.is_alive()
        logger.info("The server has stopped" if ended else "The server goes on: an answer does not end")
        return ended

    def _end(self) -> None:
        if self._feed is not None:
            self._feed.end()
        if self._server is not None:
            self._server.should_exit = True

    def _listen(self) -> socket.socket:
        options = self._options
        family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
        try:
            return socket.create_server((options.address, options.port), family=family, backlog=128)
        except OSError as problem:
            raise RequestError(
                f"{options.address} port {options.port} cannot be used: {problem.strerror or problem}.",
                field="port",
                remedy="Choose another port; 0 takes a free one.",
            ) from problem

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, listener: socket.socket) -> None:
        with contextlib.closing(listener):
            asyncio.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        options = self._options
        metrics = Metrics()
        self._loop = asyncio.get_running_loop()
        self._feed = feed = Feed(self._worker, metrics)
        app = build_app(feed, options, metrics)
        config = uvicorn.Config(
            Guard(app, options, metrics, lambda: self._port, self._on_record),
            http=connection_class(options),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # requests have their own lines; what clients send is no news
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody may say that he is somebody else
            h11_max_incomplete_event_size=options.max_header_bytes,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._server = server = uvicorn.Server(config)
        feed.start(self._loop)
        try:
            server_task = asyncio.ensure_future(server.serve([listener]))
            while not server.started and not server_task.done():
                await asyncio.sleep(TICK_SECONDS)
            self._ready.set()
            await server_task
        finally:
            feed.stop()
