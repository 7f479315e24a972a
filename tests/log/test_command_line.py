"""`loradesk` in the terminal: its log goes to a file, and to stderr only when asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def loradesk(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LORADESK_LOG_FOLDER": str(folder), **variables}
    return subprocess.run(
        [sys.executable, "-m", "loradesk_engine.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


def log_of(folder: Path, program: str) -> str:
    (file,) = folder.glob(f"{program}-*.log")
    return file.read_text("utf-8")


ORDERING = ("ordering", "check", "/no/such/ordering.json")


def test_the_log_is_in_a_file_and_not_on_the_terminal(tmp_path: Path) -> None:
    done = loradesk(tmp_path, "chat", "--base", "/no/such/model", "--prompt", "Zanzibar quokka")
    assert done.returncode == 1
    assert "INFO" not in done.stderr
    text = log_of(tmp_path, "chat")
    assert "Load of /no/such/model begins" in text
    assert "Ended by loradesk_engine.errors." in text
    assert "quokka" not in text


@pytest.mark.parametrize("arguments", [("--log-stderr", *ORDERING), (*ORDERING, "--log-stderr")])
def test_it_is_shown_when_asked_for(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert "loradesk_engine.log.trail: Loradesk" in loradesk(tmp_path, *arguments).stderr


def test_the_level_is_the_options_or_the_variables(tmp_path: Path) -> None:
    loradesk(tmp_path, *ORDERING, LORADESK_LOG="error")
    assert "INFO" not in "".join(path.read_text("utf-8") for path in tmp_path.glob("*.log"))
    loradesk(tmp_path, "--log-level", "info", *ORDERING, LORADESK_LOG="error")
    assert "INFO" in "".join(path.read_text("utf-8") for path in tmp_path.glob("*.log"))


@pytest.mark.parametrize("arguments", [("chat", "--log-level", "loud"), ("--log-level", "loud")])
def test_an_unknown_level_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = loradesk(tmp_path, *arguments, QT_QPA_PLATFORM="offscreen")
    assert done.returncode == 2
    assert "--log-level" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    expected = loradesk(tmp_path / "log", *ORDERING)
    done = loradesk(tmp_path / "file" / "log", *ORDERING)
    assert (done.returncode, done.stdout, done.stderr) == (expected.returncode, expected.stdout, expected.stderr)


@pytest.mark.parametrize("subcommand", ["chat", "demo", "ordering", "serve", "bench", "self-test"])
def test_the_help_of_every_subcommand_has_the_options(tmp_path: Path, subcommand: str) -> None:
    assert "--log-level" in loradesk(tmp_path, subcommand, "--help").stdout


def test_the_window_leaves_a_log_and_no_crash(tmp_path: Path) -> None:
    done = loradesk(
        *(tmp_path, "--quit-after-paint", "--log-level", "debug", "--settings", str(tmp_path / "s.ini")),
        *("--conversation", str(tmp_path / "c.json")),
        QT_QPA_PLATFORM="offscreen",
    )
    assert done.returncode == 0
    assert "The window is painted" in log_of(tmp_path, "window")
    assert not list(tmp_path.glob("*.crash"))
