"""The start: nothing heavy is imported for the window, and the command line does what it says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(*arguments: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment, check=False
    )


@pytest.mark.parametrize("module", ["loradesk_app.main_window", "loradesk_app.__main__"])
def test_importing_the_window_leaves_torch_out(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'pyqtgraph'}} & set(sys.modules)))"
    assert run("-c", code).stdout.strip() == "[]"


def test_the_window_is_painted_and_traced(tmp_path):
    done = run(
        *("-m", "loradesk_app", "--startup-trace", "--quit-after-paint"),
        *("--settings", str(tmp_path / "s.ini"), "--conversation", str(tmp_path / "c.json")),
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["interpreter up", "Qt imported", "window shown", "first paint"]
    times = [float(line[1]) for line in lines]
    assert times == sorted(times)


def test_without_a_display_it_says_so_and_exits_with_3():
    done = run("-m", "loradesk_app", DISPLAY=None, WAYLAND_DISPLAY=None, QT_QPA_PLATFORM=None)
    if sys.platform.startswith("linux"):
        assert done.returncode == 3
        assert "no display" in done.stderr


def test_help():
    assert "--startup-trace" in run("-m", "loradesk_app", "--help").stdout


def test_a_path_on_the_command_line_is_loaded(tmp_path):
    from loradesk_resources import resource_path

    picture = tmp_path / "window.png"
    done = run(
        *("-m", "loradesk_engine.cli", str(resource_path("demo", "base-q8_0.gguf")), "--screenshot", str(picture)),
        *("--settings", str(tmp_path / "s.ini"), "--conversation", str(tmp_path / "c.json")),
    )
    assert done.returncode == 0, done.stderr
    assert "base-q8_0.gguf" in (tmp_path / "s.ini").read_text("utf-8")
    assert picture.stat().st_size > 10_000
    assert not (tmp_path / "c.json.lock").exists()
