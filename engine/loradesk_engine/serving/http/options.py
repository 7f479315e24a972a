"""What a server may do, and for whom."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from loradesk_engine.errors import RequestError

DEFAULT_PORT = 8357
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class ServerOptions:
    """The defaults are the safe ones.

    Attributes:
        host: IP address to listen on, or `localhost`.
        port: 0 takes a free one.
        key: what clients must send as `Authorization: Bearer`; None asks for none.
        allow_remote: listen on an address that is not loopback; needs a key.
        allow_hosts: further names that a Host header may carry, without port (a reverse proxy's, say).
        allow_origins: web pages that may call (`https://example.org`); they get CORS headers, all others are refused.
        adapter_roots: folders from which clients may load adapters; none: they may not.
        max_body_bytes: of a request's body.
        max_header_bytes: of a request's line and headers.
        max_tokens: most completion tokens a request may ask for, and what it gets when it does not say.
        max_choices: most answers of one request (`n` times the number of prompts).
        max_requests: answers that run or wait at the same time; more are refused with 429.
        max_connections: open connections; more are closed with 429.
        request_seconds: from the request to the end of its answer.
        header_seconds: from opening a connection to the end of the headers.
        body_seconds: from the headers to the end of the body.
        send_seconds: a client that takes nothing for so long is cut off.
        command_seconds: loading, unloading and activating adapters.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    key: str | None = field(default=None, repr=False)
    allow_remote: bool = False
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    adapter_roots: tuple[str, ...] = ()
    max_body_bytes: int = 2**20
    max_header_bytes: int = 16 * 2**10
    max_tokens: int = 4096
    max_choices: int = 8
    max_requests: int = 64
    max_connections: int = 256
    request_seconds: float = 600.0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    command_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RequestError(f"{self.port} is not a port.", field="port", remedy="Use 0 (a free one) to 65535.")
        for name in ("max_body_bytes", "max_header_bytes", "max_tokens", "max_choices", "max_requests"):
            if getattr(self, name) < 1:
                raise RequestError(f"{getattr(self, name)} is out of range.", field=name, remedy="Use 1 or more.")
        for name in ("request_seconds", "header_seconds", "body_seconds", "send_seconds", "command_seconds"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise RequestError(f"{getattr(self, name)} is out of range.", field=name, remedy="Use seconds above 0.")
        if self.key is not None and (len(self.key) < 8 or not all("!" <= letter <= "~" for letter in self.key)):
            raise RequestError(
                "The key is too short or has letters that do not fit into a header.",
                field="key",
                remedy="Use at least 8 printable ASCII letters without spaces.",
            )
        if not self.loopback:
            if not self.allow_remote:
                raise RequestError(
                    f"{self.host} can be reached by other machines.",
                    field="host",
                    remedy="Use 127.0.0.1, or allow it with --allow-remote and a key.",
                )
            if self.key is None:
                raise RequestError(
                    "Without a key everybody who reaches this machine could use the model.",
                    field="key",
                    remedy="Give a key, or listen on 127.0.0.1.",
                )
        for origin in self.allow_origins:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
                raise RequestError(
                    f"{origin!r} is not an origin.",
                    field="allow_origins",
                    remedy="Write scheme and host, as in https://example.org; there is no wildcard.",
                )

    @property
    def address(self) -> str:
        """The IP address to listen on."""
        return "127.0.0.1" if self.host == "localhost" else self.host.strip("[]")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self._ip.is_loopback

    @property
    def _ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        try:
            return ipaddress.ip_address(self.address)
        except ValueError:
            raise RequestError(
                f"{self.host!r} is not an IP address.", field="host", remedy="Use 127.0.0.1 or an address of yours."
            ) from None

    @property
    def url_host(self) -> str:
        """The host as it is written in a URL."""
        return f"[{self._ip}]" if self._ip.version == 6 else str(self._ip)

    def allows_host(self, value: str, port: int) -> bool:
        """Whether a Host header is one of ours.

        A page that makes its own name point to 127.0.0.1 (DNS rebinding) sends that name: only loopback names pass,
        names that were listed, and, when other machines may call, bare IP addresses, which no DNS answer can forge.
        """
        name, given = _split_host(value)
        if name in (host.lower() for host in self.allow_hosts):
            return True
        if given != str(port) and not (given is None and port == 80):
            return False
        if self.loopback:
            return name in LOOPBACK_NAMES or name == self.url_host
        try:
            return bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return name == "localhost"


def _split_host(value: str) -> tuple[str, str | None]:
    """Name in small letters, and port as it was written; an IPv6 address keeps its brackets."""
    value = value.lower()
    if value.startswith("["):
        name, bracket, rest = value.partition("]")
        return name + bracket, rest[1:] if rest.startswith(":") else rest or None
    name, colon, port = value.partition(":")
    return name, port if colon else None
