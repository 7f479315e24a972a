"""How large the values of a chat template are, and how large the results of its steps would be.

A list that holds another list many times over is small in memory, and endless on paper or where it is compared. So
parts count each time that they are met, and no template ever holds a value that counts more than `MAX_CHARACTERS`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from jinja2.utils import Cycler, Namespace

MAX_CHARACTERS = 8_000_000  # of a value, and of what is rendered
PART = 32  # what a part of a list or a dict counts beside its text: it takes memory and time as so much text does
MAX_DEPTH = 100  # Python counts no depth where it hashes tuples: the stack would overflow
MAX_PRECISION = 100  # digits of `round`
MAX_SEARCH = 100 * MAX_CHARACTERS  # pairs of characters that a search may compare
CONVERSION = re.compile(  # nothing is tried twice, or "%0000..." would take the square of its length
    r"%(?:\((?P<key>[^()]*+)\))?+[#0\- +]*+(?P<width>\*|\d++)?+(?:\.(?P<precision>\*|\d*+))?+[hlL]?+(?P<kind>[a-zA-Z%])"
)
NUMBER = re.compile(r"\d+")
SEQUENCES = (list, tuple)
VIEWS: tuple[type[Collection[object]], ...] = (type({}.keys()), type({}.values()), type({}.items()))


class TooMuch(BaseException):
    """A limit was passed; carries the sentence for the user.

    No `Exception`, since Jinja catches each of those in several places and goes on, with no clock from then on.
    """


def refuse_large(size: int) -> None:
    """Raise `TooMuch` if a value of this size is too large."""
    if size > MAX_CHARACTERS:
        raise TooMuch("It makes a value that is too large.")


def size_of(value: object) -> int:
    """Characters of all texts in a value and `PART` for each of its parts; counting stops past the limit."""
    if isinstance(value, str):
        return len(value)
    size, level = 0, [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, str):
                size += len(one)
            elif isinstance(one, int):
                bits = one.bit_length()
                size += bits * bits >> 9  # to divide it takes the square of its length
            else:
                parts = _parts(one)
                size += PART * (1 + len(parts))
                below += parts
                if size > MAX_CHARACTERS:
                    return size
        if not below:
            return size
        level = below
    return MAX_CHARACTERS + 1


def _parts(value: object) -> Collection[object]:
    if isinstance(value, SEQUENCES):
        return value
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, VIEWS):
        return list(value)
    if isinstance(value, Namespace):
        return _parts(value._Namespace__attrs)  # all other names are those of what it holds
    if isinstance(value, Cycler):
        return value.items
    return ()


def listed(values: Iterable[Any]) -> list[Any]:
    """What is counted must be there first: an iterator is used up by counting."""
    found = list(itertools.islice(values, MAX_CHARACTERS // PART + 1))
    refuse_large(size_of(found))
    return found


def size_in_parts(text: object) -> int:
    """What a text takes that is cut into words or lines, each of which has two characters or more with its end."""
    return 4 * size_of(text)


def size_joined(parts: list[Any], between: object) -> int:
    """What a text of these parts takes."""
    refuse_large(size_of(between))
    return size_of(parts) + len(str(between)) * len(parts)


def size_quoted(value: object) -> int:
    """What a text takes that is quoted for an address: a character becomes twelve at most."""
    return MAX_CHARACTERS + 1 if isinstance(value, Iterator) else 12 * size_of(value)


def size_rounded(value: object, precision: object = 0, method: object = "common") -> int:  # noqa: ARG001 - templates may name it
    """Jinja multiplies by ten to the precision: no text or list, and no more digits than anybody needs."""
    few = isinstance(precision, int) and abs(precision) <= MAX_PRECISION
    return 0 if few and isinstance(value, int | float) else MAX_CHARACTERS + 1


def size_replaced(text: object, old: object, new: object, *_rest: object) -> int:
    """What a text takes in which all of `old` became `new`."""
    for one in (text, old, new):
        refuse_large(size_of(one))
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


def size_indented(
    text: object,
    width: object = 4,
    first: bool = False,  # noqa: ARG001 - templates may name it
    blank: bool = False,  # noqa: ARG001 - templates may name it
) -> int:
    """What a text takes that is indented."""
    if not isinstance(text, str):
        raise TypeError("only a text can be indented")
    refuse_large(size_in_parts(text))
    step = width if isinstance(width, int) else len(width) if isinstance(width, str) else 0
    return len(text) + (len(text.splitlines()) + 1) * max(step, 0)


def size_formatted(pattern: str, values: Any) -> int:
    """Characters that `pattern % values` has at most."""
    refuse_large(PART * pattern.count("%"))
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


def number_in(text: str) -> int:
    """The sum of the numbers that are written in a text."""
    return sum(map(_number, NUMBER.findall(text)))


def _number(digits: str) -> int:
    """The value of some digits, cut where it is too large in any case."""
    return int(digits) if len(digits) < 20 else MAX_CHARACTERS + 1


def size_around(value: object, step: int, between: int) -> int:
    """Characters around the parts of a value as JSON: `step` for each level, `between` for each part."""
    if not step and not between:
        return 0
    size, left = 0, [(value, 0)]
    while left and size <= MAX_CHARACTERS:
        one, depth = left.pop()
        size += depth * step + between
        if isinstance(one, dict):
            left += [(part, depth + 1) for part in one.values()]
        elif isinstance(one, SEQUENCES):
            left += [(part, depth + 1) for part in one]
    return size


def refuse_slow_search(text: object, *sought: object) -> None:
    """Raise `TooMuch` where Python compares every character of a text with every one that is sought."""
    for one in sought:
        if isinstance(one, str) and size_of(text) * len(one) > MAX_SEARCH:
            raise TooMuch("It searches a large text for a large one.")
