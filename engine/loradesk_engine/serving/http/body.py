"""Reading a JSON body so that every fault can be laid at a field's door."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from loradesk_engine.serving.http.refusal import Refusal

MAX_DIGITS = 400  # a number with more is beyond every field's range, and Python refuses to read some
MAX_MESSAGE = 300


class StrictRequest(Request):
    """Reads its body by `parse`."""

    async def json(self) -> Any:
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


def parse(raw: bytes) -> Any:
    """JSON; NaN, infinities and endless numbers get through as such, for the schema to name their field.

    Raises:
        Refusal: not JSON, or a key is there twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise Refusal(400, f"{key[:100]!r} is there twice.", param=key[:100], code="invalid_json")
            result[key] = value
        return result

    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) <= MAX_DIGITS else float("inf")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_int=integer)
    except UnicodeDecodeError as problem:
        text = f"The body is not UTF-8: byte {problem.start} cannot be read."
    except json.JSONDecodeError as problem:
        text = f"The body is not JSON: {problem.msg}, line {problem.lineno}, column {problem.colno}."
    except RecursionError:
        text = "The body is nested too deeply."
    raise Refusal(400, text, code="invalid_json")


def refusal_of(error: RequestValidationError) -> Refusal:
    """The first fault that a schema found, with its field."""
    fault, steps = max(((item, _steps(item, error.body)) for item in error.errors()), key=lambda pair: len(pair[1]))
    param = ".".join(str(step)[:100] for step in steps)[:MAX_MESSAGE] or None
    unknown = fault["type"] == "extra_forbidden"
    text = "This field is not known here." if unknown else str(fault["msg"])[:MAX_MESSAGE]
    where = f"{param}: " if param else ""
    return Refusal(400, f"{where}{text}", param=param, code="invalid_value")


def _steps(fault: dict[str, Any], body: Any) -> list[int | str]:
    """The steps that lead into the body; pydantic puts names of a union's branches among them."""
    steps: list[int | str] = []
    value = body
    place = list(fault["loc"])
    for number, step in enumerate(place):
        if number == 0 and step == "body":
            continue
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step] if step < len(value) else None
        elif isinstance(value, dict) and number == len(place) - 1 and fault["type"] == "missing":
            value = None
        else:
            continue
        steps.append(step)
    return steps
