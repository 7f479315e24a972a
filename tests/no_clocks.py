"""Finds tests that read a clock or have little patience: they fail on a slow or busy machine. Part of `make lint`.

python tests/no_clocks.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
CLOCK = "support/clock.py"  # the only file that reads one
MODULES = ("time", "timeit")
CLOCKS = ("getrusage", "monotonic", "perf_counter", "process_time", "thread_time", "utcnow")
QT_CLOCKS = ("QDeadlineTimer", "QElapsedTimer")
QT_WAITS = ("waitCallback", "waitExposed", "waitSignal", "waitSignals", "waitUntil")
PATIENCE = 60.0  # seconds; a guard against waiting for ever has at least these
PAUSE = 1.0  # what is shorter is a pause between two looks
HTTPX = ("Client", "delete", "get", "post", "put", "request", "stream")  # have a timeout of 5 s
INSTEAD = (
    "Count steps, bytes or calls, or inject a clock. Wait with `wait_until`, and bound processor time with "
    "`processor_time`, both of support/clock.py."
)
NO_TIMEOUT = "Leave it out: the tests' own `qtbot` waits for PATIENCE."
LONGER = "Use PATIENCE of support/clock.py: a timeout only guards against waiting for ever."


def problems(source: str) -> Iterator[tuple[int, str]]:
    """Lines that depend on a machine's speed, each with a sentence on what it does and one on what to do instead.

    Args:
        source: Python's text.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.partition(".")[0] in MODULES:
                    yield node.lineno, f"It imports `{name.name}`. {INSTEAD}"
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                if node.module in MODULES or name.name in QT_CLOCKS or _is_clock(name.name):
                    yield node.lineno, f"It imports `{name.name}` of `{node.module}`. {INSTEAD}"
        elif isinstance(node, ast.Attribute) and (_is_clock(node.attr) or node.attr in QT_CLOCKS):
            yield node.lineno, f"It reads the clock `{node.attr}`. {INSTEAD}"
        elif isinstance(node, ast.Call):
            yield from _short_waits(node)


def _is_clock(name: str) -> bool:
    return name.removesuffix("_ns") in CLOCKS


def _short_waits(call: ast.Call) -> Iterator[tuple[int, str]]:
    if not isinstance(call.func, ast.Attribute):
        return
    name = call.func.attr
    given = {word.arg: word.value for word in call.keywords}
    if name in QT_WAITS:
        if "timeout" in given and not _is_zero(given["timeout"]):
            yield call.lineno, f"`{name}` has a timeout of its own. {NO_TIMEOUT}"
        return
    if name in HTTPX and _name(call.func.value) == "httpx" and "timeout" not in given:
        yield call.lineno, f"`httpx.{name}` waits 5 s at most. {LONGER}"
    waits = [value for key, value in given.items() if key == "timeout"]
    in_seconds = _name(call.func.value) != "qtbot"  # its `wait` takes milliseconds, and is a pause
    if name in ("join", "settimeout", "timeout", "wait") and in_seconds and len(call.args) == 1:
        waits += call.args
    for value in waits:
        seconds = _number(value)
        if seconds is not None and PAUSE <= seconds < PATIENCE:
            yield call.lineno, f"It waits {seconds:g} s at most. {LONGER}"


def _name(value: ast.expr) -> str:
    return value.id if isinstance(value, ast.Name) else ""


def _number(value: ast.expr) -> float | None:
    return float(value.value) if isinstance(value, ast.Constant) and type(value.value) in (int, float) else None


def _is_zero(value: ast.expr) -> bool:
    return _number(value) == 0


def main() -> int:
    found = 0
    for path in sorted(TESTS.rglob("*.py")):
        if path.relative_to(TESTS).as_posix() == CLOCK:
            continue
        for line, problem in problems(path.read_text(encoding="utf-8")):
            print(f"{path.relative_to(TESTS.parent)}:{line}: {problem}")
            found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
