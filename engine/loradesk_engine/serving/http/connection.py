"""One TCP connection: uvicorn's protocol with limits on how many there are and how slowly headers may come."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from loradesk_engine.serving.http.options import ServerOptions
from loradesk_engine.serving.http.refusal import Refusal, encode

SEND_BUFFER = 64 * 2**10  # left alone, the system keeps megabytes for a client that does not read
PHRASES = {400: "Bad Request", 408: "Request Timeout", 429: "Too Many Requests", 431: "Request Header Fields Too Large"}


def connection_class(options: ServerOptions) -> type[H11Protocol]:
    """The protocol with these limits."""

    class Connection(H11Protocol):
        """Handlers find the transport and all connections in the request's state."""

        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            link = transport.get_extra_info("socket")
            if link is not None:  # asyncio does it only for sockets that were made with an explicit protocol number
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.app_state: dict[str, Any] = {
                **self.app_state,
                "transport": transport,
                "connections": self.connections,
            }
            if len(self.connections) > options.max_connections:
                self._refuse(Refusal(429, "Too many connections are open.", code="too_many_connections"))
                return
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_came()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            waiting = self.cycle is None or self.cycle.response_complete
            super().data_received(data)
            if waiting and (self.cycle is None or self.cycle.response_complete):
                if self._header_timer is None and not self.transport.is_closing():
                    self._await_headers()
            elif self._header_timer is not None:
                self._headers_came()

        def _await_headers(self) -> None:
            self._header_timer = self.loop.call_later(options.header_seconds, self._headers_too_slow)

        def _headers_came(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _headers_too_slow(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self._refuse(Refusal(408, "The headers came too slowly.", code="timeout"))

        def send_400_response(self, _msg: str) -> None:
            """What h11 cannot read; too much of it has its own status."""
            size = len(self.conn.trailing_data[0])
            if size > options.max_header_bytes:
                self._refuse(Refusal(431, "The headers are too large.", code="headers_too_large"))
            else:
                self._refuse(Refusal(400, "This is not a valid HTTP request.", code="invalid_http"))

        def _refuse(self, refusal: Refusal) -> None:
            """Written by hand: there may be no request that h11 could answer."""
            if self.transport.is_closing():
                return
            if self.conn.our_state in (h11.IDLE, h11.ERROR, h11.SEND_RESPONSE):
                body = encode(refusal.body)
                head = (
                    f"HTTP/1.1 {refusal.status_code} {PHRASES[refusal.status_code]}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                self.transport.write(head.encode() + body)
            self.transport.close()

    return Connection
