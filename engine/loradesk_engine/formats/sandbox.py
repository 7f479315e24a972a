"""Jinja's immutable sandbox for templates that nobody vouches for: no step of it makes a huge value, and none runs long
where no clock is looked at.

What may be used is what transformers offers a chat template, less what pads or repeats without need.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 8_000_000  # of a value, and of what is rendered
MAX_WRITTEN = 4 * MAX_CHARACTERS  # by all expressions: what a template collects in blocks is written again
CONVERSION = re.compile(  # nothing is tried twice, or "%0000..." would take the square of its length
    r"%(?:\((?P<key>[^()]*+)\))?+[#0\- +]*+(?P<width>\*|\d++)?+(?:\.(?P<precision>\*|\d*+))?+[hlL]?+(?P<kind>[a-zA-Z%])"
)
MAX_PRECISION = 100  # digits of `round`
NUMBER = re.compile(r"\d+")


class TooMuch(Exception):
    """A limit was passed; carries the sentence for the user."""


# What a chat template needs; left out is what pads to any width or repeats a value, since no clock is looked at inside.
# Those that can grow are replaced by limited ones.
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
    "format",
    "groupby",
    "indent",
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
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
]
UNSAFE_TEXT_METHODS = ("center", "encode", "expandtabs", "ljust", "rjust", "translate", "zfill")


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox that also refuses to make huge values in one step.

    Attributes:
        written: characters of all expressions since it was set to 0.

    Everything in it raises `TooMuch` where a limit is passed.
    """

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=self._write
        )
        self.written = 0
        filters = {name: self.filters[name] for name in FILTERS}
        self.filters = filters | {
            "tojson": _to_json,
            "join": _on_list(_sized(filters["join"], lambda value, d="", *rest, **options: _joined(value, d))),
            "round": _sized(filters["round"], _rounded),
            "replace": _sized(filters["replace"], lambda value, old, new, *rest: _replaced(value, old, new)),
            "string": _sized(filters["string"], size_of),
            "format": _sized(filters["format"], lambda value, *rest, **named: _formatted(str(value), named or rest)),
            "indent": _sized(filters["indent"], _indented),
            "sum": _sum,
            "_concat": _concat,
        }
        self.globals = {
            **{name: self.globals[name] for name in ("range", "namespace", "joiner", "cycler")},
            "dict": dict,
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: datetime.datetime.now().strftime(str(pattern)[:100]),
        }

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        # `a ~ b` is compiled to a function of Jinja's own that nothing can stop: make it a filter
        return super()._generate(_ConcatToFilter().visit(source), name, filename, defer_init)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What Jinja makes one text of a block, macro or call with."""
        parts = list(parts)
        _refuse_large(sum(map(len, parts)))
        return "".join(parts)

    def _write(self, value: object) -> object:
        size = size_of(value)
        _refuse_large(size)
        self.written += size
        if self.written > MAX_WRITTEN:
            raise TooMuch(f"Its expressions write more than {MAX_WRITTEN:,} characters.")
        return value

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        pattern = value.__self__

        def formatted(*args: Any, **named: Any) -> str:
            if value.__name__ == "format_map":
                (named,), args = args, ()
            return _Formatter(self).vformat(str(pattern), args, named)

        return formatted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, bytes | bytearray) or (isinstance(obj, int) and attr == "to_bytes"):
            return False  # bytes are not counted
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
                args = (_listed(args[0]), *args[1:])
                _refuse_large(_joined(args[0], text))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        if operator == "%" and isinstance(left, str):
            _refuse_large(_formatted(left, right))
        if operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(count, int):
                    _refuse_large(len(value) * max(count, 0))
        if operator in "*+" and isinstance(left, int) and isinstance(right, int):
            _refuse_large(left.bit_length() + right.bit_length())
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _refuse_large(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks what the assistant says for training. Here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Formatter(SandboxedFormatter):
    """`str.format` that adds up how long its result becomes."""

    def __init__(self, environment: Sandbox) -> None:
        super().__init__(environment)
        self._size = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._count(size_of(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        self._count(sum(map(_number, NUMBER.findall(format_spec))))
        return str(super().format_field(value, format_spec))

    def _count(self, size: int) -> None:
        self._size += size
        _refuse_large(self._size)


class _ConcatToFilter(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None, lineno=node.lineno)


def size_of(value: object) -> int:
    """Characters that a value has at least when it is written out; counting stops past the limit.

    A list that holds another list many times over is small in memory and endless on paper.
    """
    size, left = 0, [value]
    while left and size <= MAX_CHARACTERS:
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
    if size > MAX_CHARACTERS:
        raise TooMuch("It makes a value that is too large.")


def _listed(values: Iterable[Any]) -> list[Any]:
    """What is counted must be there first: an iterator is used up by counting."""
    found = list(itertools.islice(values, MAX_CHARACTERS + 1))
    _refuse_large(len(found))
    return found


def _joined(parts: list[Any], between: object) -> int:
    return size_of(parts) + len(str(between)) * len(parts)


def _rounded(value: object, precision: object = 0, method: object = "common") -> int:
    """Ten to the precision is what Jinja computes with."""
    return MAX_CHARACTERS + 1 if not isinstance(precision, int) or abs(precision) > MAX_PRECISION else 0


def _replaced(text: object, old: object, new: object) -> int:
    _refuse_large(size_of(text))
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def _formatted(pattern: str, values: Any) -> int:
    """Characters that `pattern % values` has at most."""
    places = list(CONVERSION.finditer(pattern))
    if sum(place[0].count("%") for place in places) != pattern.count("%"):
        raise ValueError("the format is not known")
    size = len(pattern)
    rest = list(values) if isinstance(values, tuple) else [values]
    for place in places:
        for length in (place["width"], place["precision"]):
            if length == "*":
                star = rest.pop(0) if rest else 0
                size += abs(star) if isinstance(star, int) else 0
            elif length:
                size += _number(length)
        if place["key"] is not None:
            size += size_of(values.get(place["key"])) if isinstance(values, Mapping) else 0
        elif place["kind"] != "%":
            size += size_of(rest.pop(0)) if rest else 0
    return size


def _number(digits: str) -> int:
    return int(digits) if len(digits) < 20 else MAX_CHARACTERS + 1


def _indented(text: object, width: object = 4, first: bool = False, blank: bool = False) -> int:
    if not isinstance(text, str):
        raise TypeError("only a text can be indented")
    step = width if isinstance(width, int) else len(width) if isinstance(width, str) else 0
    return len(text) + (len(text.splitlines()) + 1) * max(step, 0)


@jinja2.pass_environment
def _sum(environment: Sandbox, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Jinja's own, one addition at a time: lists would be copied over and over where no clock is looked at."""
    part = make_attrgetter(environment, attribute) if attribute is not None else lambda value: value
    total = start
    for value in values:
        total = environment.call_binop(None, "+", total, part(value))
    return total


def _sized(function: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
    """A filter that first looks how large its result would be; keeps the marks by which Jinja passes its context."""

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _refuse_large(size(*values, **options))
        return function(*args, **options)

    return checked


def _on_list(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is given a list in the place of any iterable; keeps Jinja's marks."""

    @functools.wraps(function)
    def given(context: Any, values: Iterable[Any], *args: Any, **options: Any) -> Any:
        return function(context, _listed(values), *args, **options)

    return given


def _concat(parts: list[Any]) -> str:
    _refuse_large(size_of(parts))
    return "".join(map(str, parts))


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON as transformers has it: Jinja's own filter escapes for HTML, which a model was not trained on."""
    _refuse_large(size_of(value))
    step = 0 if indent is None else len(indent) if isinstance(indent, str) else max(0, int(indent))
    _refuse_large(_spaces(value, step, sum(map(len, separators or ()))))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _spaces(value: object, step: int, between: int) -> int:
    """Characters around the parts of a value as JSON: `step` for each level, `between` for each part."""
    if not step and not between:
        return 0
    size, left = 0, [(value, 0)]
    while left and size <= MAX_CHARACTERS:
        one, depth = left.pop()
        size += depth * step + between
        if isinstance(one, dict):
            left += [(part, depth + 1) for part in one.values()]
        elif isinstance(one, list | tuple):
            left += [(part, depth + 1) for part in one]
    return size
