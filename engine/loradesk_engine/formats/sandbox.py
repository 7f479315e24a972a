"""Jinja's immutable sandbox for templates that nobody vouches for: no step of it makes a huge value, and none runs long
where no clock is looked at.

What may be used is what transformers offers a chat template, less what pads or repeats without need.

The result of each step is counted, with its parts as often as they are met. So comparing, hashing and writing what a
template holds always ends soon. All results together are counted too, since a template may keep them. What could grow
far beyond the limit in one step is counted before it is made.
"""

from __future__ import annotations

import datetime
import functools
import json
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Set
from typing import Any, TypeVar, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from loradesk_engine.formats.sandbox_sizes import (
    MAX_DEPTH,
    PART,
    SEQUENCES,
    VIEWS,
    TooMuch,
    listed,
    number_in,
    refuse_large,
    refuse_slow_search,
    size_around,
    size_formatted,
    size_in_parts,
    size_indented,
    size_joined,
    size_of,
    size_quoted,
    size_replaced,
    size_rounded,
)

MAX_MADE = 128 * 2**20  # bytes that all steps make, since all may be kept
MAX_PYTHON = 2_000_000  # characters of what a template is compiled to; Python's own compiler looks at no clock

# What a chat template needs; left out is what pads to any width or repeats a value. Those that can grow are replaced by
# limited ones.
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
FILTERS_OF_TEXT = ("capitalize", "e", "escape", "forceescape", "lower", "safe", "string", "upper")
TESTS_OF_TEXT = ("lower", "upper")
CUTTING_TEXT_METHODS = ("rsplit", "split", "splitlines")
SLOW_TEXT_METHODS = ("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip")
UNSAFE_TEXT_METHODS = (
    *("center", "encode", "escape", "expandtabs", "ljust", "maketrans", "rjust", "striptags", "translate", "unescape"),
    "zfill",
)
UNSAFE_TYPES: tuple[type, ...] = (bytes, bytearray, *VIEWS)  # neither bytes nor the sets that views make are counted
UNSAFE_NUMBER_METHODS = ("from_bytes", "to_bytes")

Node = TypeVar("Node", bound=nodes.Node)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox that also refuses to make huge values.

    Attributes:
        made: bytes of all that was made since it was set to 0.

    Everything in it raises `TooMuch` where a limit is passed.
    """

    intercepted_binops = frozenset({"*", "**", "%", "+", "-", "/", "//"})
    intercepted_unops = frozenset({"-", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            undefined=_Undefined,
            finalize=self._write,
        )
        self.made = 0
        self._depths: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()  # of iterators in iterators
        self.filters = _FILTERS
        self.tests = _TESTS
        self.globals = dict(_GLOBALS)

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        python = super()._generate(_ToFilters().visit(source), name, filename, defer_init)
        if len(python) > MAX_PYTHON:
            raise TooMuch("It has too many steps.")
        return python

    def concat(self, parts: Iterable[str]) -> str:
        """What Jinja makes one text of a block, macro or call with."""
        parts = list(parts)
        refuse_large(sum(map(len, parts)))
        text = "".join(parts)
        self._spend(sys.getsizeof(text))
        return text

    @jinja2.pass_eval_context
    def _write(self, context: nodes.EvalContext, value: object) -> Any:
        """The text of an expression, counted here for the last time: on paper a character may become ten."""
        refuse_large(size_of(value))
        return self._made(escape(value) if context.autoescape else str(value))

    def _made(self, value: Any) -> Any:
        """What a step made, if it and all that was made before are not too large."""
        refuse_large(size_of(value))
        self._spend(sys.getsizeof(value))
        return value

    def _spend(self, size: int) -> None:
        self.made += size
        if self.made > MAX_MADE:
            raise TooMuch("Its steps make too much.")

    def filtered(self, result: Any, sources: Iterable[object]) -> Any:
        """What a filter made of these values, if it is not too large."""
        if isinstance(result, types.GeneratorType):
            self._refuse_deep(result, sources)
        elif isinstance(result, SEQUENCES):
            self._spend(PART * len(result))  # the parts may be new
        return self._made(result)

    def _refuse_deep(self, iterator: object, sources: Iterable[object]) -> None:
        """Python frees a generator inside a generator without counting: the stack would overflow."""
        iterators = [one for one in sources if isinstance(one, types.GeneratorType)]
        self._depths[iterator] = 1 + max((self._depths.get(one, 0) for one in iterators), default=0)
        if self._depths[iterator] > MAX_DEPTH:
            raise TooMuch("Its iterators are nested too deeply.")

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
        if isinstance(obj, UNSAFE_TYPES):
            return False
        if isinstance(obj, int) and attr in UNSAFE_NUMBER_METHODS:
            return False
        if isinstance(obj, str) and attr in UNSAFE_TEXT_METHODS:
            return False
        if isinstance(obj, dict) and attr == "fromkeys":
            return False  # `_dict` looks at the clock
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        text = getattr(obj, "__self__", None)
        if isinstance(text, str):
            args = _arguments_of_text_method(text, getattr(obj, "__name__", ""), args, kwargs)
        elif isinstance(obj, Macro) and (obj.catch_varargs or obj.catch_kwargs):
            refuse_large(size_of([*args, *(value for name, value in kwargs.items() if not name.startswith("_"))]))
        result = self._made(super().call(context, obj, *args, **kwargs))
        if isinstance(text, str) and isinstance(result, SEQUENCES):
            self._spend(sum(map(sys.getsizeof, result)))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed in a chat template")
        if operator == "-" and (isinstance(left, Set) or isinstance(right, Set)):
            raise SecurityError("sets are not allowed in a chat template")
        if operator == "%" and isinstance(left, str):
            refuse_large(size_formatted(left, right))
        if operator == "*":
            for value, count in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(count, int):
                    refuse_large(_length(value) * max(count, 0))
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            refuse_large(_length(left) + _length(right))
        return self._made(super().call_binop(context, operator, left, right))

    def call_unop(self, context: Any, operator: str, arg: Any) -> Any:
        return self._made(super().call_unop(context, operator, arg))


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks what the assistant says for training. Here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's own that may be written: what holds it may have been counted while it was empty."""

    def __init__(self, /, *args: Any, **named: Any) -> None:
        super().__init__(_dict(*args, **named))

    def __repr__(self) -> str:
        refuse_large(size_of(self))
        return super().__repr__()


class _Undefined(jinja2.Undefined):
    """Jinja's own, whose message quotes the key that was not found."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        refuse_large(size_of(self._undefined_name))
        return super()._undefined_message


class _Formatter(SandboxedFormatter):
    """`str.format` that adds up how long its result becomes."""

    def __init__(self, environment: Sandbox) -> None:
        super().__init__(environment)
        self._size = 0

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._count(size_of(value))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        self._count(number_in(format_spec))
        return str(super().format_field(value, format_spec))

    def _count(self, size: int) -> None:
        self._size += size
        refuse_large(self._size)


class _ToFilters(NodeTransformer):
    """Makes filters of what Jinja compiles to bare operators of Python, which would make values that nobody counts."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return self._filter(nodes.List(self._inside(node).nodes), "_concat")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._filter(self._inside(node), "_made")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        inside = self._inside(node)
        return self._filter(inside, "_made") if node.ctx == "load" else inside

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        pairs = [nodes.Tuple([pair.key, pair.value], "load") for pair in self._inside(node).items]
        return self._filter(nodes.List(pairs), "_dict")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        inside = self._inside(node)
        if not isinstance(inside.arg, nodes.Slice):
            return inside
        bounds = (inside.arg.start, inside.arg.stop, inside.arg.step)
        return self._filter(inside.node, "_slice", [bound or nodes.Const(None) for bound in bounds])

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        refuse_large(size_of(node.value))
        return node

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Node:
        inside = self._inside(node)
        if inside.dyn_args is not None:
            inside.dyn_args = self._filter(inside.dyn_args, "_listed")
        return inside

    visit_Filter = visit_Test = visit_Call

    def _inside(self, node: Node) -> Node:
        return cast(Node, self.generic_visit(node))

    @staticmethod
    def _filter(value: nodes.Expr, name: str, args: list[nodes.Expr] | None = None) -> nodes.Filter:
        return nodes.Filter(value, name, args or [], [], None, None, lineno=value.lineno)


def _arguments_of_text_method(text: str, method: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """What to call a method of a text with, if its result will not be too large."""
    if method in SLOW_TEXT_METHODS:
        refuse_slow_search(text, *args, *named.values())
    if method in CUTTING_TEXT_METHODS:
        refuse_large(size_in_parts(text))
    if method == "replace" and len(args) >= 2:
        refuse_large(size_replaced(text, args[0], args[1]))
    if method == "join" and args:
        parts = listed(args[0])
        refuse_large(size_joined(parts, text))
        return (parts, *args[1:])
    return args


def _length(value: str | list[Any] | tuple[Any, ...]) -> int:
    return len(value) if isinstance(value, str) else PART * len(value)


def _text(value: object) -> str:
    refuse_large(size_of(value))
    return str(value)


def _formatted(pattern: object, values: Any) -> int:
    return size_formatted(_text(pattern), values)


def _dict(*sources: Any, **named: Any) -> dict[Any, Any]:
    """`dict` that looks at the clock: there are keys, made for that, each of which is compared with all before it."""
    if len(sources) > 1:
        raise TypeError("a dict is made of one value at most")
    result = {}
    for source in sources:
        pairs = ((key, source[key]) for key in source) if hasattr(source, "keys") else source
        for key, value in pairs:
            result[key] = value  # noqa: PERF403 - the clock is looked at for each line that runs
    return result | named


@jinja2.pass_environment
def _sum(environment: Sandbox, values: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    """Jinja's own, one addition at a time: lists would be copied over and over where no clock is looked at."""
    part = make_attrgetter(environment, attribute) if attribute is not None else lambda value: value
    total = start
    for value in values:
        total = environment.call_binop(None, "+", total, part(value))
    return total


def _step(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is counted. It wants the context, so Jinja does not try it out while it compiles."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @functools.wraps(function)
    def step(context: Context, /, *args: Any, **options: Any) -> Any:
        wanted = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        first = (wanted[passed],) if passed else ()
        environment = cast(Sandbox, context.environment)
        return environment.filtered(function(*first, *args, **options), args)

    return jinja2.pass_context(step)


def _sized(function: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
    """A filter or test that first looks how large what it makes would be; keeps Jinja's marks."""

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        values = args[1:] if hasattr(function, "jinja_pass_arg") else args
        refuse_large(size(*values, **options))
        return function(*args, **options)

    return checked


def _on_list(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is given a list in the place of any iterable; keeps Jinja's marks."""

    @functools.wraps(function)
    def given(context: Any, values: Iterable[Any], *args: Any, **options: Any) -> Any:
        return function(context, listed(values), *args, **options)

    return given


def _joining(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja's `join` of parts that are there and counted; keeps Jinja's marks."""

    @functools.wraps(function)
    def joined(context: Any, value: Iterable[Any], d: Any = "", attribute: str | int | None = None) -> Any:
        if attribute is not None:
            value = map(make_attrgetter(context.environment, attribute), value)
        parts = listed(value)
        refuse_large(size_joined(parts, d))
        return function(context, parts, d)

    return joined


def _trimming(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def trimmed(value: object, chars: str | None = None) -> str:
        refuse_large(size_of(value))
        refuse_slow_search(value, chars)
        return function(value, chars)

    return trimmed


def _concat(parts: list[Any]) -> str:
    refuse_large(size_of(parts))
    return "".join(map(str, parts))


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(_text(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON as transformers has it: Jinja's own filter escapes for HTML, which a model was not trained on."""
    refuse_large(size_of(value))
    step = 0 if indent is None else len(indent) if isinstance(indent, str) else max(0, int(indent))
    refuse_large(size_around(value, step, sum(map(len, separators or ()))))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _filters() -> dict[str, Any]:
    plain: dict[str, Any] = {name: JINJA_FILTERS[name] for name in FILTERS}
    plain |= {name: _sized(plain[name], size_of) for name in FILTERS_OF_TEXT}
    plain |= {name: _on_list(plain[name]) for name in ("groupby", "list", "sort")}
    plain |= {
        "format": _sized(plain["format"], lambda value, *rest, **named: _formatted(value, named or rest)),
        "indent": _sized(plain["indent"], size_indented),
        "join": _joining(plain["join"]),
        "replace": _sized(plain["replace"], size_replaced),
        "round": _sized(plain["round"], size_rounded),
        "sum": _sum,
        "title": _sized(plain["title"], size_in_parts),
        "tojson": _to_json,
        "trim": _trimming(plain["trim"]),
        "urlencode": _sized(plain["urlencode"], size_quoted),
        "wordcount": _sized(plain["wordcount"], size_in_parts),
        # what Jinja compiles to bare operators of Python
        "_concat": _concat,
        "_dict": _dict,
        "_listed": listed,
        "_made": lambda value: value,
        "_slice": lambda value, start, stop, step: value[start:stop:step],
    }
    return {name: _step(function) for name, function in plain.items()}


_FILTERS = _filters()
_TESTS: dict[str, Any] = {**JINJA_TESTS}
_TESTS |= {name: _sized(_TESTS[name], size_of) for name in TESTS_OF_TEXT}
_GLOBALS = {
    "range": safe_range,
    "joiner": Joiner,
    "cycler": Cycler,
    "dict": _dict,
    "namespace": _Namespace,
    "raise_exception": _raise_exception,
    "strftime_now": lambda pattern: datetime.datetime.now().strftime(_text(pattern)[:100]),
}
