"""Chat templates: Jinja from a file nobody vouches for, so in a sandbox, with limits on time and size."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import jinja2

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError
from loradesk_engine.formats.sandbox import MAX_CHARACTERS, Sandbox, TooMuch

MAX_TEMPLATE_CHARACTERS = 1_000_000
MAX_SECONDS = 2.0
PYTHON_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,  # Jinja writes Python: `break` outside a loop, more nested loops than Python has
    TypeError,
    ValueError,
)


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
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except (jinja2.TemplateError, TooMuch, *PYTHON_ERRORS) as problem:
            raise TemplateError(f"The template is not valid: {problem}.", file=file, field="chat_template") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the text that the model was trained on.

        Raises:
            TemplateError: the template refuses the conversation, fails, grows too large or takes too long.
        """

        def produce() -> str:
            parts: list[str] = []
            size = self._sandbox.written = 0
            for part in self._template.generate(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                tools=None,  # as transformers passes them where there are none
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            ):
                size += len(part)
                if size > MAX_CHARACTERS:
                    raise TooMuch(f"It renders more than {MAX_CHARACTERS:,} characters.")
                parts.append(part)
            return "".join(parts)

        try:
            return _within_time(produce)
        except (jinja2.TemplateError, TooMuch) as problem:
            raise TemplateError(f"The template failed: {problem}", file=self.file, field="chat_template") from None
        except PYTHON_ERRORS as problem:
            raise TemplateError(
                f"The template failed: {type(problem).__name__}: {problem}.", file=self.file, field="chat_template"
            ) from None


def _is_rendering(frame: FrameType) -> bool:
    """Whether this is a template's own code or runs it. What else comes up, such as the end of somebody's generator
    that is collected just now, must not be interrupted.
    """
    module = str(frame.f_globals.get("__name__"))
    return (
        frame.f_code.co_filename == "<template>" or module.partition(".")[0] == "jinja2" or module == Sandbox.__module__
    )


def _within_time(produce: Callable[[], str]) -> str:
    """Run it with a clock that is looked at on every line: a loop without output never comes back by itself."""
    deadline = time.monotonic() + MAX_SECONDS

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not _is_rendering(frame):
            return None
        if time.monotonic() > deadline:
            raise TooMuch(f"It takes longer than {MAX_SECONDS:g} seconds.")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return produce()
    finally:
        sys.settrace(before)
