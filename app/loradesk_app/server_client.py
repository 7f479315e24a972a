"""Starts and stops the HTTP server beside the window; both use the one worker, so both see the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Signal

from loradesk_app.background import Background

if TYPE_CHECKING:
    from loradesk_engine.serving.http import HttpServer

STOP_SECONDS = 5.0


class ServerClient(QObject):
    """Nothing of it on the GUI thread: importing the server takes half a second, stopping it as long as it takes."""

    started = Signal(str, object)  # url, key or None
    stopped = Signal()
    failed = Signal(object)  # Problem
    request_answered = Signal(object)  # RequestRecord; emitted in the server's thread, delivered in the GUI's

    def __init__(self, background: Background, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._background = background
        self._server: HttpServer | None = None

    @property
    def running(self) -> bool:
        return self._server is not None

    def start(self, worker: Any, port: int, with_key: bool) -> None:
        """Start it; `started` or `failed` follows."""

        def begin() -> HttpServer:
            from loradesk_engine.serving.http import HttpServer, ServerOptions
            from loradesk_engine.serving.http.keys import own_key

            options = ServerOptions(port=port, key=own_key() if with_key else None)
            server = HttpServer(worker, options, on_record=self.request_answered.emit)
            server.start()
            return server

        self._background.run(begin, self._note_started, self._note_failed)

    def stop(self) -> None:
        """Stop it; `stopped` follows. Answers under way are ended."""
        server, self._server = self._server, None
        if server is not None:
            self._background.run(lambda: server.stop(STOP_SECONDS), lambda _ended: self.stopped.emit())

    def _note_started(self, server: HttpServer) -> None:
        self._server = server
        self.started.emit(server.url, server.key)

    def _note_failed(self, error: Exception) -> None:
        from loradesk_engine.events import Problem

        self.failed.emit(Problem.of(error))
