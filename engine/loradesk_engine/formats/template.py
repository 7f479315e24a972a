"""Chat templates: Jinja from a file nobody vouches for, so in its immutable sandbox, with limits on time and size."""

from __future__ import annotations

import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError

MAX_TEMPLATE_CHARACTERS = 1_000_000
MAX_RENDERED_CHARACTERS = 8_000_000
MAX_SECONDS = 2.0


class _TooMuch(Exception):
    """A limit was passed; carries the sentence for the user."""


# What a chat template needs; left out is what pads to any width or repeats a value, since no clock is looked at inside.
FILTERS = [
    "abs",
    "attr",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "groupby",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "string",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
]
UNSAFE_TEXT_METHODS = ("center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox that also refuses to make huge values in one step."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=_limited)
        filters = {name: self.filters[name] for name in FILTERS}
        self.filters = filters | {
            "tojson": _to_json,
            "join": _sized(filters["join"], lambda value, between="", *rest, **options: _joined(value, between)),
            "replace": _sized(filters["replace"], lambda value, old, new, *rest: _replaced(value, old, new)),
            "string": _sized(filters["string"], size_of),
            "_concat": _concat,
        }
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: datetime.datetime.now().strftime(str(pattern)[:100]),
        }

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        # `a ~ b` is compiled to a function of Jinja's own that nothing can stop: make it a filter
        return super()._generate(_ConcatToFilter().visit(source), name, filename, defer_init)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in UNSAFE_TEXT_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        text = getattr(obj, "__self__", None)
        if isinstance(text, str) and len(args) >= 1:
            method = getattr(obj, "__name__", "")
            if method == "replace" and len(args) >= 2:
                _refuse_large(_replaced(text, args[0], args[1]))
            elif method == "join":
                _refuse_large(_joined(args[0], text))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        if operator == "%" and isinstance(left, str):
            raise SecurityError("%-formatting is not allowed in a chat template")
        if operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(count, int):
                    _refuse_large(len(value) * max(count, 0))
        if operator in "*+" and isinstance(left, int) and isinstance(right, int):
            _refuse_large(left.bit_length() + right.bit_length())
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _refuse_large(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


class _ConcatToFilter(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None, lineno=node.lineno)


def size_of(value: object) -> int:
    """Characters that a value has at least when it is written out; counting stops past the limit.

    A list that holds another list many times over is small in memory and endless on paper.
    """
    size, left = 0, [value]
    while left and size <= MAX_RENDERED_CHARACTERS:
        one = left.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, dict):
            size += 2
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            size += 2
            left += one
        else:
            size += 1
    return size


def _refuse_large(size: int) -> None:
    if size > MAX_RENDERED_CHARACTERS:
        raise _TooMuch("It makes a value that is too large.")


def _limited(value: object) -> object:
    _refuse_large(size_of(value))
    return value


def _joined(parts: Any, between: object) -> int:
    return size_of(list(parts)) + len(str(between)) * len(parts) if hasattr(parts, "__len__") else 0


def _replaced(text: object, old: object, new: object) -> int:
    _refuse_large(size_of(text))
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def _sized(function: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
    """A filter that first looks how large its result would be; keeps the marks by which Jinja passes its context."""

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _refuse_large(size(*values, **options))
        return function(*args, **options)

    return checked


def _concat(parts: list[Any]) -> str:
    _refuse_large(size_of(parts))
    return "".join(map(str, parts))


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
        environment = _Environment()
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, _TooMuch) as problem:
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


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which a model was not trained on."""
    _refuse_large(size_of(value))
    width = None if indent is None else max(0, min(int(indent), 8))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=width)
