"""Limits on processor time: what else runs on the machine stops nothing, and what takes long itself is stopped."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from loradesk_engine import patterns, processor_time
from loradesk_engine.commands import Message
from loradesk_engine.formats.template import ChatTemplate
from loradesk_engine.patterns import Matcher, PatternError
from loradesk_engine.processor_time import ProcessorTimeLimit

HOUR = 3600.0
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
SLOW = r"(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5(?<=!)"
PATH = "model.layers.12.self_attn.q_proj." * 4


class Clocks:
    """Stands in for `time`: the clock on the wall and the thread's, which stand still until they are moved."""

    def __init__(self) -> None:
        self.wall = self.thread = 0.0
        self.reads = 0

    def monotonic(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        self.reads += 1
        return self.thread


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(processor_time, "time", clocks)
    return clocks


def test_a_limit_is_over_once_the_thread_has_spent_it(clocks: Clocks) -> None:
    limit = ProcessorTimeLimit(2.0)
    clocks.wall, clocks.thread = HOUR, 1.9  # other processes had the processor
    assert not limit.is_over()
    clocks.wall, clocks.thread = HOUR + 0.2, 2.0
    assert limit.is_over()
    assert limit.is_over()


def test_the_threads_clock_is_read_only_when_the_limit_can_be_over(clocks: Clocks) -> None:
    limit = ProcessorTimeLimit(2.0)
    clocks.reads = 0
    for look in range(1000):
        clocks.wall = look * 0.0019
        assert not limit.is_over()
    assert clocks.reads == 0
    clocks.wall, clocks.thread = 2.0, 0.5
    assert not limit.is_over()
    clocks.wall = 3.4  # 1.5 s are left: not before 3.5
    assert not limit.is_over()
    assert clocks.reads == 1


def test_a_busy_machine_stops_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock on the wall goes on by an hour at each look; rendering needs next to no processor time."""
    clocks = Clocks()

    def an_hour_later() -> float:
        clocks.wall += HOUR
        return clocks.wall

    monkeypatch.setattr(processor_time, "time", SimpleNamespace(monotonic=an_hour_later, thread_time=lambda: 0.0))
    template = ChatTemplate(TEMPLATE, file="config.json", special_tokens={})
    assert template.render((Message("user", " Hi "), Message("assistant", "Hello"))) == "user: Hi\nassistant: Hello\n"
    assert clocks.wall > 100 * HOUR


class Spent:
    """A pattern that `regex` stops at its first tries: it counts the processor time of all threads of the process."""

    def __init__(self, clocks: Clocks, stops: int, each: float) -> None:
        self.clocks, self.stops, self.each = clocks, stops, each
        self.timeouts: list[float] = []

    def fullmatch(self, text: str, timeout: float) -> Any:
        self.timeouts.append(timeout)
        self.clocks.thread += self.each
        if len(self.timeouts) <= self.stops:
            raise TimeoutError
        return text


def test_a_match_goes_on_while_its_own_thread_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr(patterns, "time", clocks)
    busy = Spent(clocks, stops=3, each=0.25)
    monkeypatch.setattr(patterns.regex, "compile", lambda pattern: busy)
    matcher = Matcher(seconds=1.25)
    assert matcher.fullmatch("x", "text") == "text"
    assert busy.timeouts == [1.25, 1.0, 0.75, 0.5]
    busy.stops = 100
    with pytest.raises(PatternError, match="too long"):  # 0.25 s are left of the matcher's
        matcher.fullmatch("x", "text")
    assert busy.timeouts[4:] == [0.25]


def test_a_slow_match_ends_beside_a_busy_thread() -> None:
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            sum(range(1000))

    busy = threading.Thread(target=work)
    busy.start()
    try:
        with pytest.raises(PatternError, match="too long"):
            Matcher(seconds=0.1).match(SLOW, PATH)
    finally:
        done.set()
        busy.join()
