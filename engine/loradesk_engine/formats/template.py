"""Chat templates: Jinja from a file nobody vouches for, so in a sandbox, with limits on time and size."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

import jinja2

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError
from loradesk_engine.formats.sandbox import Sandbox
from loradesk_engine.formats.sandbox_sizes import MAX_CHARACTERS, TooMuch, size_of
from loradesk_engine.processor_time import ProcessorTimeLimit

MAX_TEMPLATE_CHARACTERS = 500_000
MAX_SECONDS = 2.0  # of processor time: a busy machine must not stop a good template
LIBRARIES = ("jinja2", "json", "markupsafe", "string")  # whose code a template runs
PYTHON_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    SyntaxError,  # Jinja writes Python: `break` outside a loop, more nested loops than Python has
    TypeError,
    ValueError,
)

Made = TypeVar("Made")


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
            self._template = _within_time(lambda: self._sandbox.from_string(source), calls_only=True)
        except TooMuch as problem:
            raise TemplateError(f"The template is not valid: {problem}", file=file, field="chat_template") from None
        except (jinja2.TemplateError, *PYTHON_ERRORS) as problem:
            raise TemplateError(f"The template is not valid: {problem}.", file=file, field="chat_template") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the text that the model was trained on.

        Raises:
            TemplateError: the template refuses the conversation, fails, grows too large or takes too long.
        """

        def produce() -> str:
            parts: list[str] = []
            size = self._sandbox.made = 0
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
    return _is_template(frame) or module.partition(".")[0] in LIBRARIES or module == Sandbox.__module__


def _looks(frame: FrameType) -> tuple[str, ...]:
    """The events at which to look at the clock. A generator may be called for the last time only to be ended, where it
    is no longer used. Python drops what is raised there, and forgets a trace function that has raised.
    """
    return ("line", "opcode") if frame.f_code.co_flags & inspect.CO_GENERATOR else ("call", "line", "opcode")


def _is_template(frame: FrameType) -> bool:
    return frame.f_code.co_filename == "<template>"


def _within_time(produce: Callable[[], Made], *, calls_only: bool = False) -> Made:
    """Run it with a clock: a loop without output never comes back by itself.

    Args:
        produce: what may take long.
        calls_only: look at the clock where a function begins, as is enough for what loops only over the source. Else it
            is looked at on every line too, and on every operation of the template itself, which may all be on one line.
    """
    limit = ProcessorTimeLimit(MAX_SECONDS)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not _is_rendering(frame):
            return None
        if event == "exception" and argument[0] is GeneratorExit:
            frame.f_trace_lines = frame.f_trace_opcodes = False  # the generator is being ended
            return trace
        if event in _looks(frame) and limit.is_over():
            raise TooMuch(f"It takes longer than {MAX_SECONDS:g} seconds of processor time.")
        frame.f_trace_opcodes = _is_template(frame)
        return None if calls_only or frame.f_code is size_of.__code__ else trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return produce()
    finally:
        sys.settrace(before)
