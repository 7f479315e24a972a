"""The log of a run: its file, what is collected, and errors that nothing catches."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from loradesk_desk.store import Store
from loradesk_engine.errors import ConfigError, RequestError
from loradesk_engine.log import file as log_file
from loradesk_engine.log.defects import log_defect
from loradesk_engine.log.entry import Entry
from loradesk_engine.log.file import LogFile
from loradesk_engine.log.folder import MAX_RUNS, log_files, log_folder, prune
from loradesk_engine.log.levels import Levels
from loradesk_engine.log.options import take_log_options
from loradesk_engine.log.ring import Ring
from loradesk_engine.log.trail import FULL_TRACES, Trail

engine = logging.getLogger("loradesk_engine.test_trail")


def an_entry(message: str = "a line") -> Entry:
    return Entry(1.8e9, logging.INFO, "loradesk_engine.x", message)


@pytest.fixture
def trail(tmp_path: Path):
    with Trail("test", folder=tmp_path / "log") as trail:
        yield trail


def content(trail: Trail) -> str:
    return trail.file.path.read_text("utf-8")


def test_lines_go_into_a_file_that_only_its_user_can_read(trail: Trail) -> None:
    engine.info("%d adapters", 4)
    assert "INFO    loradesk_engine.test_trail: 4 adapters\n" in content(trail)
    assert content(trail).count("Python 3.") == 1
    if os.name == "posix":
        assert stat.S_IMODE(trail.file.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(trail.folder.stat().st_mode) == 0o700


def test_other_libraries_are_logged_from_warnings_on(trail: Trail) -> None:
    other = logging.getLogger("some.library")
    other.setLevel(logging.DEBUG)
    other.info("header: anything")
    other.warning("careful")
    assert "anything" not in content(trail)
    assert "WARNING some.library: careful" in content(trail)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = (sys.excepthook, threading.excepthook, sys.unraisablehook, list(logging.getLogger().handlers))
    level = logging.getLogger("loradesk_engine").level
    with Trail("test", Levels.parse("debug,loradesk_engine.serving=error", "x"), folder=tmp_path) as trail:
        assert Trail.active is trail
        assert logging.getLogger("loradesk_engine.serving").getEffectiveLevel() == logging.ERROR
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook, list(logging.getLogger().handlers)) == before
    assert logging.getLogger("loradesk_engine").level == level
    assert Trail.active is None
    assert [path.name for path in tmp_path.iterdir()] == [trail.file.path.name]


def test_a_thread_that_ends_by_an_error_leaves_a_traceback(tmp_path: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    with Trail("test", folder=tmp_path) as trail:
        defects = []
        trail.watch(defects.append)
        thread = threading.Thread(target=lambda: 1 // 0, name="worker-7")
        thread.start()
        thread.join()
        assert "The thread worker-7 has ended by an error" in content(trail)
        assert "ZeroDivisionError" in content(trail)
        assert "in <lambda>" in content(trail)
    assert len(seen) == 1  # what was done before is done still
    assert [defect.level for defect in defects] == [logging.ERROR]


def test_an_error_in_the_main_thread_leaves_a_traceback(tmp_path: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *problem: seen.append(problem))
    with Trail("test", folder=tmp_path) as trail:
        for error in (ValueError("bad"), KeyboardInterrupt()):
            sys.excepthook(type(error), error, None)
        assert content(trail).count("ERROR") == 1
        assert "ValueError: bad" in content(trail)
    assert len(seen) == 2


def test_an_error_in_a_finalizer_is_noted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda given: None)

    class Bad:
        def __del__(self) -> None:
            raise RuntimeError("too late")

    with Trail("test", folder=tmp_path) as trail:
        bad = Bad()
        del bad
        assert "RuntimeError: too late" in content(trail)


def test_a_defect_has_its_traceback_and_an_expected_error_has_none(trail: Trail) -> None:
    for error in (TypeError("a slip"), ConfigError("no config.json", file="/a/b")):
        try:
            raise error
        except (TypeError, ConfigError) as problem:
            log_defect(engine, "A load", problem)
    assert "TypeError: a slip" in content(trail)
    assert "Traceback" in content(trail)
    assert "config.json" not in content(trail)


def test_a_defect_in_a_job_of_the_store_leaves_a_traceback(trail: Trail, tmp_path: Path) -> None:
    def broken_job(_database: object) -> None:
        raise TypeError("a slip in a job")

    store = Store(tmp_path / "desk.db")
    with pytest.raises(TypeError):
        store.run(broken_job).result(60)
    store.close()
    assert "ERROR   loradesk_desk.store: A job of the store failed" in content(trail)
    assert "in broken_job" in content(trail)


def test_the_same_traceback_is_not_written_for_ever(trail: Trail) -> None:
    defects = []
    trail.watch(defects.append)
    for _ in range(100):
        try:
            raise RuntimeError("in paintEvent")
        except RuntimeError as problem:
            log_defect(engine, "Painting", problem)
    assert content(trail).count("Traceback") == FULL_TRACES
    assert "(64 times by now)" in content(trail)
    assert len(defects) == 100


def test_a_folder_that_cannot_be_written_to_keeps_the_log_in_memory(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    with Trail("test", folder=tmp_path / "log") as trail:
        engine.warning("still here")
        assert trail.problem
        assert any(entry.message == "still here" for entry in trail.ring.since(0)[0])


def test_a_full_disk_is_reported_and_missing_entries_are_counted(tmp_path: Path, monkeypatch) -> None:
    file = LogFile(tmp_path / "run.log")
    file.write(an_entry("before"))
    write, full = os.write, [True]

    def no_space(handle: int, data: bytes) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    monkeypatch.setattr(log_file.os, "write", no_space)
    for number in range(3):
        file.write(an_entry(f"lost {number}"))
    assert file.problem == os.strerror(errno.ENOSPC)
    full[0] = False
    file.write(an_entry("after"))
    assert not file.problem
    text = (tmp_path / "run.log").read_text("utf-8")
    assert "before" in text
    assert "after" in text
    assert "lost" not in text
    assert "(3 entries are missing here: " in text
    file.close()


def test_a_file_is_rotated_and_a_run_stays_bounded(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "run.log", limit=2000)
    for number in range(200):
        file.write(an_entry(f"line {number:03}"))
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.1.log", "run.log"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert "line 199" in (tmp_path / "run.log").read_text("utf-8")


def test_old_runs_are_deleted_and_each_program_keeps_its_own(tmp_path: Path) -> None:
    for number in range(20):
        for program in ("window", "chat"):
            path = tmp_path / f"{program}-20260101-1200{number:02}-{number}.log"
            path.write_text("x")
            os.utime(path, (1e9 + number, 1e9 + number))
    (tmp_path / "notes.txt").write_text("not ours")
    prune(tmp_path)
    for program in ("window", "chat"):
        kept = sorted(int(path.stem.rpartition("-")[2]) for path in tmp_path.glob(f"{program}-*"))
        assert kept == list(range(20 - MAX_RUNS, 20))
    assert (tmp_path / "notes.txt").exists()
    assert log_files(tmp_path)[0].name.endswith("-19.log")


def test_the_ring_keeps_the_latest() -> None:
    ring = Ring(limit=3)
    for number in range(5):
        ring.add(an_entry(str(number)))
    assert [entry.message for entry in ring.since(0)[0]] == ["2", "3", "4"]
    assert [entry.message for entry in ring.since(4)[0]] == ["4"]
    assert ring.since(5) == ([], 5)


def test_levels_by_module() -> None:
    levels = Levels.parse("warning, loradesk_engine.serving=debug", "LORADESK_LOG")
    assert levels.all() == {
        "loradesk_engine": logging.WARNING,
        "loradesk_desk": logging.WARNING,
        "loradesk_app": logging.WARNING,
        "loradesk_engine.serving": logging.DEBUG,
    }


@pytest.mark.parametrize("text", ["loud", "info,urllib3=debug", "info,loradesk_engine=", "info,,debug"])
def test_an_unknown_level_is_refused_by_name(text: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Levels.parse(text, "LORADESK_LOG")
    assert refusal.value.field == "LORADESK_LOG"
    assert "loradesk_engine.serving=debug" in (refusal.value.remedy or "")


@pytest.mark.parametrize(
    "arguments", [["--log-level", "debug", "chat", "--demo"], ["chat", "--demo", "--log-level=debug"]]
)
def test_the_options_may_stand_anywhere(arguments: list[str]) -> None:
    options, rest = take_log_options(arguments)
    assert options.levels.general == logging.DEBUG
    assert not options.stderr
    assert rest == ["chat", "--demo"]


def test_the_option_goes_before_the_variable(monkeypatch) -> None:
    monkeypatch.setenv("LORADESK_LOG", "error")
    assert take_log_options([])[0].levels.general == logging.ERROR
    assert take_log_options(["--log-level", "info"])[0].levels.general == logging.INFO


def test_the_folder_is_the_platforms(monkeypatch) -> None:
    monkeypatch.delenv("LORADESK_LOG_FOLDER")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    for platform, expected in (
        ("linux", Path("/state/Loradesk/log")),
        ("win32", Path("/local/Loradesk/Logs")),
        ("darwin", Path.home() / "Library/Logs/Loradesk"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert log_folder() == expected


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LORADESK_LOG_FOLDER": str(folder)}
    environment.pop("PYTHONFAULTHANDLER", None)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, check=False
    )


CRASH = """
    import faulthandler, os
    from loradesk_engine.log.trail import Trail
    Trail("window").start()
    {end}
"""


@pytest.mark.skipif(os.name != "posix", reason="a process is killed by a signal here")
@pytest.mark.parametrize(
    ("end", "words"),
    [("faulthandler._sigsegv()", ("crashed", "Segmentation fault")), ("os.kill(os.getpid(), 9)", ("was killed",))],
)
def test_a_crash_is_reported_at_the_next_start_and_once(tmp_path: Path, end: str, words: tuple[str, ...]) -> None:
    assert run(tmp_path, CRASH.format(end=end)).returncode < 0
    for attempt in range(2):
        with Trail("window", folder=tmp_path) as trail:
            found = [entry for entry in trail.ring.since(0)[0] if entry.level == logging.WARNING]
        if attempt == 0:
            (entry,) = found
            assert all(word in entry.text for word in words)
        else:
            assert found == []


def test_importing_the_log_is_light() -> None:
    code = "import sys; before = set(sys.modules); import loradesk_engine.log.trail, loradesk_engine.log.options\n"
    code += "print(sorted({'torch', 'numpy', 'psutil', 'asyncio', 'logging.handlers', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_program_that_uses_the_engine_sees_no_lines_of_ours_on_stderr() -> None:
    code = "import logging, loradesk_engine; logging.getLogger('loradesk_engine.x').error('aside')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""
