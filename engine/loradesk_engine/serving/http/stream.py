"""Server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from loradesk_engine.log.defects import log_defect
from loradesk_engine.serving.http.generation import Generation
from loradesk_engine.serving.http.refusal import CLIENT_GONE, ClientGoneError, Refusal, encode

logger = logging.getLogger(__name__)

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work unless the client leaves first; then it is cancelled.

    Raises:
        ClientGoneError: the client has left.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for future in (task, watch):
            if not future.done():
                future.cancel()
                await _ended(future)


async def _ended(future: asyncio.Future[Any]) -> None:
    """Wait for what was cancelled; what it raises in its end has no one else to report it."""
    try:
        await future
    except asyncio.CancelledError:
        pass
    except Exception as problem:  # noqa: BLE001 - log_defect logs it
        if not isinstance(problem, Refusal | ClientGoneError):
            log_defect(logger, "Ending an answer", problem)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def sse(content: Any) -> bytes:
    """One event."""
    return b"data: " + encode(content) + b"\n\n"


class EventStream(Response):
    """A stream of answers. The generation has begun, so that what the engine refuses is a plain error, not a stream.

    Args:
        generation: entered already; left when the stream ends, however it ends.
        chunks: what to send for each event, and at the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        chunks: Callable[[Generation], AsyncIterator[Any]],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._generation = generation
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send_all(send))
        except ClientGoneError:  # ends here: a handler of errors could not answer any more
            record = scope["state"]["record"]
            record.status, record.note = CLIENT_GONE, record.note or "The client left."
        finally:
            await self._generation.__aexit__(None, None, None)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with contextlib.aclosing(self._chunks(self._generation)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": sse(chunk), "more_body": True})
        except Refusal as refusal:  # the status has been sent: the error travels as an event, as OpenAI's do
            await send({"type": "http.response.body", "body": sse(refusal.body), "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": False})
