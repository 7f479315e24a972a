"""Requests written by hand to a socket: clients that do what no library lets one do."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any
from urllib.parse import urlsplit

from support.clock import PATIENCE

from .conftest import KEY


def connect(url: str, buffer: int | None = None) -> socket.socket:
    """A connection to the server; `buffer`: bytes that the system keeps unread."""
    parts = urlsplit(url)
    link = socket.socket()
    link.settimeout(PATIENCE)
    if buffer is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    link.connect((parts.hostname or "", parts.port or 80))
    return link


def request(url: str, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes; None as a header's value leaves it out."""
    wanted: dict[str, str | None] = {
        "Host": urlsplit(url).netloc,
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    wanted.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in wanted.items() if value is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def post(url: str, path: str, body: Any, **headers: str) -> bytes:
    """A POST of JSON as bytes."""
    return request(url, "POST", path, json.dumps(body).encode(), **headers)


def status(connection: socket.socket) -> int:
    """Status of the answer."""
    data = b""
    while b"\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return 0
        data += piece
    return int(data.split(b" ", 2)[1])


def reset(connection: socket.socket) -> None:
    """Close it without good-bye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
