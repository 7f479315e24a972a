"""The snippets of docs/server.md run as they are printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loradesk_engine.serving.http import HttpServer

from .conftest import KEY

PAGE = Path(__file__).parents[2] / "docs" / "server.md"


def snippet(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    text: str = found[0]
    return text


def run(command: list[str], server: HttpServer) -> str:
    environment = {**os.environ, "LORADESK_URL": server.url, "LORADESK_KEY": KEY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(server: HttpServer) -> None:
    assert "17 + 25 = 42." in run(["sh", "-c", snippet("sh")], server)


def test_python(server: HttpServer) -> None:
    assert run([sys.executable, "-c", snippet("python")], server) == "17 + 25 = 42.\n"


@pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")
def test_rust(server: HttpServer, tmp_path: Path) -> None:
    source = tmp_path / "client.rs"
    source.write_text(snippet("rust"), "utf-8")
    subprocess.run(
        ["rustc", "--edition", "2021", "-D", "warnings", "-o", tmp_path / "client", source], check=True, timeout=120
    )
    assert run([str(tmp_path / "client")], server) == "17 + 25 = 42.\n"
