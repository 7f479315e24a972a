"""What stands before every route: Host, Origin, key, content type, and limits on size and time.

Plain ASGI: nothing is buffered on the way out, and what is refused never reaches a handler.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Callable, Iterable
from string import ascii_letters, digits
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loradesk_engine.log.defects import log_defect
from loradesk_engine.serving.http.keys import same_key
from loradesk_engine.serving.http.metrics import Metrics
from loradesk_engine.serving.http.options import ServerOptions
from loradesk_engine.serving.http.record import RequestRecord
from loradesk_engine.serving.http.refusal import CLIENT_GONE, ClientGoneError, Refusal

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/health",)
BROWSER_PATHS = ("/docs", "/openapi.json")  # a browser may log in there with the key as password
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 5.0
MAX_SHOWN_PATH = 200
MAX_LOGGED_PATH = 80
PATH_LETTERS = frozenset(f"{ascii_letters}{digits}/_-.")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """ASGI application around the routes.

    Args:
        app: the routes.
        port: the one the server listens on; known only once it does.
        on_record: called with each request's line for the log, in the server's thread.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        metrics: Metrics,
        port: Callable[[], int],
        on_record: Callable[[RequestRecord], None] | None = None,
    ) -> None:
        self.app = app
        self._options = options
        self._metrics = metrics
        self._port = port
        self._on_record = on_record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        client = scope.get("client") or ("", 0)
        record = RequestRecord(
            time.time(), f"{client[0]}:{client[1]}", scope["method"][:16], scope["path"][:MAX_SHOWN_PATH]
        )
        scope.setdefault("state", {})["record"] = record
        started = time.perf_counter()
        outgoing = _Outgoing(scope, send, record, self._options)
        try:
            await self._answer(scope, receive, outgoing)
        except ClientGoneError:
            record.status = CLIENT_GONE
            record.note = record.note or "The client left."
        finally:
            record.seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            method = record.method if record.method in METHODS else "other"
            self._metrics.answered(method, route, record.status or CLIENT_GONE)
            _log(record)
            if self._on_record is not None:
                self._on_record(record)

    async def _answer(self, scope: Scope, receive: Receive, outgoing: _Outgoing) -> None:
        try:
            self._check_size(scope)
            headers = _Headers(scope["headers"])
            self._check_host(headers)
            origin = self._check_origin(headers)
            if origin is not None:
                outgoing.allowed_origin = origin
                if scope["method"] == "OPTIONS" and headers.one("access-control-request-method") is not None:
                    await outgoing.preflight(headers)
                    return
            self._check_key(scope["path"], headers)
            self._check_type(scope["method"], headers)
            body = await self._read_body(headers, receive)
        except Refusal as refusal:
            outgoing.record.note, outgoing.record.code = refusal.detail, refusal.code or ""
            await refusal.response(scope, receive, outgoing)
            return
        try:
            await self.app(scope, _replay(body, receive), outgoing)
        except ClientGoneError:
            raise
        except Exception as problem:  # noqa: BLE001 - a fault of ours: the client learns no more than that
            log_defect(logger, "Answering over HTTP", problem)
            outgoing.record.code = "internal"
            outgoing.record.note = f"{type(problem).__name__}: {problem}"
            if not outgoing.complete:
                outgoing.abort()

    def _check_size(self, scope: Scope) -> None:
        """What came in one piece has passed h11, which limits only what is incomplete."""
        line = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if line + sum(len(name) + len(value) for name, value in scope["headers"]) > self._options.max_header_bytes:
            raise Refusal(431, "The headers are too large.", code="headers_too_large", headers={"Connection": "close"})

    def _check_host(self, headers: _Headers) -> None:
        host = headers.one("host")
        if host is None or not self._options.allows_host(host, self._port()):
            raise Refusal(
                403,
                "The Host header is not one of this server's. Use its own address, or list the name with --allow-host.",
                code="host_not_allowed",
                headers={"Connection": "close"},
            )

    def _check_origin(self, headers: _Headers) -> str | None:
        """The origin to allow by CORS headers, None where none is needed.

        Raises:
            Refusal: another web page's script calls.
        """
        refusal = Refusal(
            403,
            "Requests from this web page are not allowed. List its origin with --allow-origin.",
            code="origin_not_allowed",
        )
        if headers.count("origin"):
            origin = headers.one("origin")
            if origin in self._options.allow_origins:
                return origin
            if origin != f"http://{headers.one('host')}":  # our own documentation page
                raise refusal
        elif headers.one("sec-fetch-site") in ("cross-site", "same-site"):
            raise refusal  # an image or a script on a foreign page: browsers send no Origin with those
        return None

    def _check_key(self, path: str, headers: _Headers) -> None:
        key = self._options.key
        if key is None or path in OPEN_PATHS:
            return
        browser = path in BROWSER_PATHS
        given = _bearer(headers.one("authorization"), basic=browser)
        if given is None or not same_key(given, key):
            raise Refusal(
                401,
                "The key is missing or wrong. Send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Basic realm="Loradesk key as password"' if browser else "Bearer"},
            )

    @staticmethod
    def _check_type(method: str, headers: _Headers) -> None:
        """A body must say that it is JSON: a foreign page's form cannot without a preflight."""
        if method == "POST":
            kind, _, parameters = (headers.one("content-type") or "").partition(";")
            charset = parameters.strip().lower().replace('"', "")
            if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
                raise Refusal(415, "Send Content-Type: application/json.", code="unsupported_media_type")
            if headers.count("content-encoding"):
                raise Refusal(415, "Compressed bodies are not read.", code="unsupported_media_type")

    async def _read_body(self, headers: _Headers, receive: Receive) -> bytes:
        limit = self._options.max_body_bytes
        declared = headers.one("content-length")
        refusal = Refusal(
            413,
            f"The body is over the limit of {limit:,} bytes.",
            code="body_too_large",
            headers={"Connection": "close"},
        )
        too_large = declared is not None and int(declared) > limit
        if too_large and (headers.count("expect") or int(declared or 0) > DRAIN_BYTES):
            raise refusal
        body = bytearray()
        size = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS if too_large else self._options.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    more = message.get("more_body", False)
                    if size > limit:
                        # Taken and thrown away for a while: a client that is still writing would not see the answer.
                        too_large = True
                        body.clear()
                        if size > DRAIN_BYTES:
                            break
                    else:
                        body += chunk
        except TimeoutError:
            if too_large:
                raise refusal from None
            raise Refusal(408, "The body came too slowly.", code="timeout", headers={"Connection": "close"}) from None
        if too_large:
            raise refusal
        return bytes(body)


def _log(record: RequestRecord) -> None:
    """The request's line in the log; of its path what addresses are made of, and of a refusal its code."""
    path = "".join(letter if letter in PATH_LETTERS else "?" for letter in record.path[:MAX_LOGGED_PATH])
    method = record.method if record.method in METHODS else "other"
    counts = f", {record.prompt_tokens} + {record.completion_tokens} tokens" if record.prompt_tokens else ""
    code = f", {record.code}" if record.code else ""
    level = logging.WARNING if record.status in (401, 403) or record.status >= 500 else logging.INFO
    status = record.status or CLIENT_GONE
    logger.log(level, "%s %s: %d in %.3f s%s%s", method, path, status, record.seconds, counts, code)


class _Headers:
    """A request's headers by small name."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

    def count(self, name: str) -> int:
        return len(self._values.get(name, ()))

    def one(self, name: str) -> str | None:
        """The value, None if there is none; two that differ are never right."""
        values = self._values.get(name, [])
        if len(set(values)) > 1:
            raise Refusal(400, f"The header {name} is there more than once.", code="invalid_header")
        return values[0] if values else None


class _Outgoing:
    """The way out: notes the status, adds headers, and cuts off clients that take nothing."""

    def __init__(self, scope: Scope, send: Send, record: RequestRecord, options: ServerOptions) -> None:
        self._scope = scope
        self._send = send
        self._seconds = options.send_seconds
        self._varies = bool(options.allow_origins)
        self.record = record
        self.allowed_origin: str | None = None
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.record.status = message["status"]
            headers = [*message.get("headers", ()), *SECURITY_HEADERS]
            if self._varies:
                headers.append((b"vary", b"Origin"))
            if self.allowed_origin is not None:
                headers.append((b"access-control-allow-origin", self.allowed_origin.encode("latin-1")))
                headers.append((b"access-control-expose-headers", b"X-Loradesk-Ignored, Retry-After"))
            message = {**message, "headers": headers}
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
            self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        except TimeoutError:
            self.record.note = "The client took nothing for too long."
            self.abort()
            raise ClientGoneError from None

    def abort(self) -> None:
        """Close the connection at once, whatever is still to be written."""
        transport: Any = self._scope.get("state", {}).get("transport")
        if transport is not None:
            transport.abort()

    async def preflight(self, headers: _Headers) -> None:
        """Answer a browser that asks whether a listed page may call."""
        asked = headers.one("access-control-request-headers") or ""
        wanted = [name.strip().lower() for name in asked.split(",")]
        # openai's JavaScript client sends x-stainless-* headers
        given = [n for n in wanted if n in ("authorization", "content-type") or n.startswith("x-stainless-")]
        extra = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", ", ".join(given).encode("latin-1")),
            (b"access-control-max-age", b"600"),
            (b"content-length", b"0"),
        ]
        await self({"type": "http.response.start", "status": 200, "headers": extra})
        await self({"type": "http.response.body", "body": b""})


def _bearer(value: str | None, *, basic: bool) -> bytes | None:
    """The key in an Authorization header; `basic`: also as a password."""
    kind, _, rest = (value or "").partition(" ")
    if kind.lower() == "bearer":
        return rest.strip().encode("latin-1", "replace")
    if basic and kind.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return None
    return None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that has been read, then what really comes: the client's leaving."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
