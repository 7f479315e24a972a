"""Chat templates: Jinja from a file nobody vouches for, so in its immutable sandbox, with limits on time and size."""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError

MAX_TEMPLATE_CHARACTERS = 1_000_000
MAX_RENDERED_CHARACTERS = 8_000_000
MAX_SECONDS = 2.0


class _TooMuch(Exception):
    """A limit was passed; carries the sentence for the user."""


class _Environment(ImmutableSandboxedEnvironment):
    """Also refuses the operators and filters that make huge values in one step, where no clock is looked at."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        if operator == "*":
            if isinstance(left, str | list | tuple) and isinstance(right, int):
                size = len(left) * max(right, 0)
            elif isinstance(right, str | list | tuple) and isinstance(left, int):
                size = len(right) * max(left, 0)
            else:
                size = len(str(left)) + len(str(right)) if isinstance(left, int) and isinstance(right, int) else 0
            if size > MAX_RENDERED_CHARACTERS:
                raise _TooMuch("It makes a value that is too large.")
        joins = operator == "+" and isinstance(left, str | list) and isinstance(right, str | list)
        if joins and len(left) + len(right) > MAX_RENDERED_CHARACTERS:
            raise _TooMuch("It makes a value that is too large.")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("%-formatting is not allowed in a chat template")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        file: where it came from, for error messages.
        special_tokens: names a template may use: `bos_token`, `eos_token`, ...

    Raises:
        TemplateError: it is too long or not valid Jinja.
    """

    def __init__(self, source: str, *, file: str, special_tokens: dict[str, str]) -> None:
        self.file = file
        self.special_tokens = special_tokens
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateError(f"The template is {len(source):,} characters long.", file=file, field="chat_template")
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        for name in ("center", "format", "indent", "wordwrap", "xmlattr", "pprint"):
            environment.filters.pop(name, None)  # they pad to any width, and no chat template needs them
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(str(pattern)[:100])
        environment.globals.pop("lipsum", None)
        environment.globals.pop("cycler", None)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as problem:
            raise TemplateError(f"The template is not valid: {problem}.", file=file, field="chat_template") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the text that the model was trained on.

        Raises:
            TemplateError: the template refuses the conversation, fails, grows too large or takes too long.
        """

        def produce() -> str:
            parts: list[str] = []
            size = 0
            for part in self._template.generate(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            ):
                size += len(part)
                if size > MAX_RENDERED_CHARACTERS:
                    raise _TooMuch(f"It renders more than {MAX_RENDERED_CHARACTERS:,} characters.")
                parts.append(part)
            return "".join(parts)

        try:
            return _within_time(produce)
        except (jinja2.TemplateError, _TooMuch) as problem:
            raise TemplateError(f"The template failed: {problem}", file=self.file, field="chat_template") from None
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as problem:
            raise TemplateError(
                f"The template failed: {type(problem).__name__}: {problem}.", file=self.file, field="chat_template"
            ) from None


def _within_time(produce: Callable[[], str]) -> str:
    """Run it with a clock that is looked at on every line: a loop without output never comes back by itself."""
    deadline = time.monotonic() + MAX_SECONDS

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise _TooMuch(f"It takes longer than {MAX_SECONDS:g} seconds.")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return produce()
    finally:
        sys.settrace(before)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _to_json(value: object, indent: int | None = None) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which a model was not trained on."""
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else max(0, min(int(indent), 8)))
