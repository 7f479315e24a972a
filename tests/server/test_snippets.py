"""The snippets of docs/server.md run as they are printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.clock import PATIENCE

from loradesk_engine.serving.http import HttpServer

from .conftest import KEY

PAGE = Path(__file__).parents[2] / "docs" / "server.md"


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def run(command: list[str], server: HttpServer) -> str:
    environment = {**os.environ, "LORADESK_URL": server.url, "LORADESK_KEY": KEY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(server: HttpServer) -> None:
    (text,) = snippets("sh")
    assert "17 + 25 = 42." in run(["sh", "-c", text], server)


def test_python(server: HttpServer) -> None:
    client, _ = snippets("python")
    assert run([sys.executable, "-c", client], server) == "17 + 25 = 42.\n"


def test_in_a_program(server: HttpServer) -> None:
    _, program = snippets("python")
    address, answer = run([sys.executable, "-c", program], server).splitlines()
    assert address.startswith("http://127.0.0.1:")
    assert answer == "17 + 25 = 42."


@pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")
def test_rust(server: HttpServer, tmp_path: Path) -> None:
    (text,) = snippets("rust")
    source = tmp_path / "client.rs"
    source.write_text(text, "utf-8")
    subprocess.run(
        ["rustc", "--edition", "2021", "-D", "warnings", "-o", tmp_path / "client", source], check=True, timeout=120
    )
    assert run([str(tmp_path / "client")], server) == "17 + 25 = 42.\n"
