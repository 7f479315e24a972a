"""`loradesk serve` as a program."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.clock import PATIENCE

from loradesk_engine.cli import main
from loradesk_engine.serving.worker import EngineWorker

from .conftest import KEY, chat

PROGRAM = (
    "import argparse, sys\n"
    "from loradesk_engine.cli import serve\n"
    "from loradesk_engine.errors import LoradeskError\n"
    "parser = argparse.ArgumentParser()\n"
    "serve.add_parser(parser.add_subparsers())\n"
    "options = parser.parse_args(sys.argv[1:])\n"
    "try:\n"
    "    sys.exit(options.handler(options))\n"
    "except LoradeskError as problem:\n"
    "    sys.exit(f'loradesk: {problem}')\n"
)


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "serve", *words]


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """The address, what was printed up to the introduction's end, and the process."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command("--demo", "--mode", "lora", "--port", "0", *words),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = ""
        try:
            while "Ctrl+C stops" not in printed:
                line = process.stdout.readline()
                assert line, printed
                printed += line
            found = re.search(r"http://127\.0\.0\.1:\d+", printed)
            assert found is not None
            yield found[0], printed, process
        finally:
            process.kill()


def test_it_prints_what_one_needs_and_stops_cleanly(tmp_path: Path) -> None:
    with serving(tmp_path) as (url, printed, process):
        assert printed.count("Note: 4 adapters loaded, none active: arithmetic, capitals, json, bard. Name one") == 1
        path = tmp_path / "Loradesk" / "server.key"
        key = path.read_text().strip()
        assert key in printed
        assert str(path) in printed
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        example = re.search(r"  (curl .*?)\nRoutes", printed, re.DOTALL)
        assert example is not None
        answer = subprocess.run(
            ["sh", "-c", f"{example[1]} --silent"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert '"chat.completion"' in answer.stdout
        assert httpx.get(f"{url}/v1/models", timeout=PATIENCE).status_code == 401
        endless = chat("hello", stream=True, max_tokens=1000, ignore_eos=True)
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json=endless,
            headers={"Authorization": f"Bearer {key}"},
            timeout=PATIENCE,
        ) as stream:
            lines = stream.iter_lines()  # kept: httpx closes the connection when the iterator goes
            next(lines)
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert rest.endswith("Stopped.\n")
        assert "Traceback" not in rest
        assert "200 POST /v1/chat/completions" in rest


def test_without_a_key(tmp_path: Path) -> None:
    with serving(tmp_path, "--no-key", "--quiet") as (url, printed, process):
        assert "every program of this machine" in printed
        assert not (tmp_path / "Loradesk").exists()
        assert httpx.get(f"{url}/v1/models", timeout=PATIENCE).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "--allow-remote"),
        (("--host", "0.0.0.0", "--allow-remote", "--no-key"), "Without a key"),
        (("--api-key", "x"), "at least 8"),
        (("--api-key", KEY, "--no-key"), "--no-key"),
    ],
)
def test_unsafe_wishes_are_refused_before_anything_is_loaded(
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(EngineWorker, "start", lambda worker: pytest.fail("it loads a model"))
    assert main(["serve", "--demo", *words]) == 1
    assert message in capsys.readouterr().err
