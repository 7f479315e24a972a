"""The HTTP server over an `EngineWorker` that it is given. Importing it does not import torch."""

from __future__ import annotations

from loradesk_engine.serving.http.options import ServerOptions
from loradesk_engine.serving.http.record import RequestRecord
from loradesk_engine.serving.http.server import HttpServer

__all__ = ["HttpServer", "RequestRecord", "ServerOptions"]
