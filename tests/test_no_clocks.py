"""The check that keeps clocks and short waits out of the tests."""

from __future__ import annotations

from pathlib import Path

import no_clocks
import pytest

READS = {
    "import time": "`time`",
    "import time as t": "`time`",
    "from time import monotonic, sleep": "`monotonic`",
    "from timeit import timeit": "`timeit`",
    "def test():\n    import time\n    assert time.perf_counter() - start < 1": "`time`",
    "assert module.time.process_time() < 1": "`process_time`",
    "assert module.time.monotonic_ns() < 1": "`monotonic_ns`",
    "resource.getrusage(resource.RUSAGE_SELF)": "`getrusage`",
    "from PySide6.QtCore import QElapsedTimer": "`QElapsedTimer`",
    "timer = QtCore.QElapsedTimer()": "`QElapsedTimer`",
}
WAITS = {
    "events.get(timeout=5)": "5 s",
    "subprocess.run(command, timeout=20)": "20 s",
    "thread.join(10)": "10 s",
    "event.wait(1.5)": "1.5 s",
    "link.settimeout(20)": "20 s",
    "@pytest.mark.timeout(10)\ndef test(): pass": "10 s",
    "httpx.get(url)": "`httpx.get` waits 5 s",
    "qtbot.waitUntil(check, timeout=30_000)": "`waitUntil` has a timeout of its own",
}
HARMLESS = [
    "from support.clock import PATIENCE, processor_time, wait_until",
    "wait_until(lambda: done)",
    "event.wait(PATIENCE)",
    "events.get(timeout=PATIENCE)",
    "subprocess.run(command, timeout=120)",
    "httpx.get(url, timeout=PATIENCE)",
    "stop.wait(0.2)",
    "qtbot.wait(50)",
    "qtbot.waitUntil(check)",
    "', '.join(names)",
    "monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: 0.0))",
]


@pytest.mark.parametrize("source", READS)
def test_a_clock_is_found_and_what_to_do_instead(source: str) -> None:
    (_, problem), *_ = no_clocks.problems(source)
    assert READS[source] in problem
    assert "`wait_until`" in problem
    assert "`processor_time`" in problem


@pytest.mark.parametrize("source", WAITS)
def test_a_short_wait_is_found(source: str) -> None:
    [(_, problem)] = no_clocks.problems(source)
    assert WAITS[source] in problem
    assert "PATIENCE" in problem


@pytest.mark.parametrize("source", HARMLESS)
def test_what_depends_on_no_speed_is_left_alone(source: str) -> None:
    assert list(no_clocks.problems(source)) == []


def test_lines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tests = tmp_path / "tests"
    (tests / "support").mkdir(parents=True)
    (tests / "support" / "clock.py").write_text("import time\n")
    (tests / "test_a.py").write_text("\n\nimport time\n")
    monkeypatch.setattr(no_clocks, "TESTS", tests)
    assert no_clocks.main() == 1
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("tests/test_a.py:3: It imports `time`.".replace("/", line[5]))
    (tests / "test_a.py").unlink()
    assert no_clocks.main() == 0


def test_the_tests_of_this_project_read_none() -> None:
    assert no_clocks.main() == 0
