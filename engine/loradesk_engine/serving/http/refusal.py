"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from loradesk_engine.errors import LoradeskError
from loradesk_engine.events import Problem

CLIENT_GONE = 499  # nginx's number for it; nobody reads the answer
MAX_MESSAGE = 1000
KINDS = {"BusyError": (409, "busy"), "NoModelError": (503, "no_model"), "Cancelled": (503, "generation_failed")}
CODES = {"ContextLengthError": "context_length_exceeded"}
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(HTTPException):
    """A request that is not carried out.

    Args:
        status: HTTP status.
        message: what is wrong and what to do about it.
        param: the field, as a path into the body (`messages.0.role`).
        code: a short word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = TYPES.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return {
            "error": {"message": self.detail[:MAX_MESSAGE], "type": kind, "param": self.param, "code": self.code},
        }

    @property
    def response(self) -> Json:
        """As an answer."""
        return Json(self.body, self.status_code, headers=self.headers)


class ClientGoneError(Exception):
    """The client has closed the connection, or takes nothing any more."""


class Json(JSONResponse):
    """JSON that can always be sent: half surrogate pairs, which a client may put into a field's name, become `?`."""

    def render(self, content: Any) -> bytes:
        return encode(content)


def encode(content: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def of_problem(problem: Problem, *, started: bool = False, param: str | None = None) -> Refusal:
    """What a failed request or command becomes: by its kind; else ours when it had begun, and the client's fault."""
    text = f"{problem.problem} {problem.remedy}" if problem.remedy else problem.problem
    if problem.kind in KINDS:
        status, code = KINDS[problem.kind]
        return Refusal(status, text, code=code)
    if started:
        return Refusal(503, text, code="generation_failed")
    return Refusal(400, text, param=param or problem.field, code=CODES.get(problem.kind, "invalid_value"))


def of_error(error: LoradeskError, param: str | None = None) -> Refusal:
    """A wrong parameter that Loradesk itself found."""
    return of_problem(Problem.of(error), param=param)
