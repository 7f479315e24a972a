"""`loradesk self-test`: whether this installation works, from its files to its window. No network, no user data."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loradesk_engine.errors import LoradeskError
from loradesk_engine.log.defects import log_defect
from loradesk_resources import resource_path

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 120
RESOURCES = ("demo/base/model.safetensors", "demo/base-q8_0.gguf", "icons/loradesk.svg", "style/app.qss", "presets")


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "self-test",
        help="check that this installation works",
        description="Check this installation: its files, LoRA, X-LoRA, GGUF and bitsandbytes on the demo pack, the "
        "server, and the window, which is drawn but not shown.",
    )
    parser.add_argument("--no-window", action="store_true", help="leave the window out")
    parser.add_argument("--picture", metavar="FILE", help="keep the picture of the window")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the subcommand; prints a line a check and returns 0, or 1 when one failed."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("files", check_files),
        ("LoRA", check_lora),
        ("X-LoRA", check_xlora),
        ("GGUF", check_gguf),
        ("NF4", check_bitsandbytes),
        ("server", check_server),
    ]
    if not options.no_window:
        checks.append(("window", lambda: check_window(options.picture)))
    failed = 0
    for name, check in checks:
        started = time.perf_counter()
        try:
            outcome, detail = "ok", check()
        except Exception as problem:  # noqa: BLE001 - whatever is missing in an installation: the report is the point
            log_defect(logger, f"The check {name}", problem)
            outcome, detail = "FAILED", f"{type(problem).__name__}: {problem}"
            failed += 1
        print(f"{name:<8}{outcome:<8}{time.perf_counter() - started:6.1f} s  {detail}", flush=True)
    print(f"{failed} of {len(checks)} checks failed." if failed else f"All {len(checks)} checks passed.")
    return 1 if failed else 0


def check_files() -> str:
    """The shipped files are there; says what is installed."""
    missing = [name for name in RESOURCES if not resource_path(*name.split("/")).exists()]
    if missing:
        raise LoradeskError(f"Not installed: {', '.join(missing)}.")
    import torch

    kind = "installer" if getattr(sys, "frozen", False) else "Python environment"
    return f"loradesk {version('loradesk')} ({kind}), torch {torch.__version__}, {platform.platform(terse=True)}"


def check_lora() -> str:
    """An adapter answers what it was trained for."""
    from loradesk_engine.serving.api import Engine

    with Engine.demo("lora") as engine:
        return _ask(engine, "What is 17 + 25?", "42", {"arithmetic": 1.0})


def check_xlora() -> str:
    """The classifier mixes the experts, and its scalings are reported."""
    from loradesk_engine.serving.api import Engine

    with Engine.demo("xlora") as engine:
        answer = _ask(engine, "What is the capital of Japan?", "Tokyo")
        if engine.scalings is None:
            raise LoradeskError("There are no scalings.")
        return f"{answer}, scalings {' x '.join(str(size) for size in engine.scalings.shape)}"


def check_gguf() -> str:
    """The quantized base answers, with an adapter on it."""
    from loradesk_engine.serving.api import Engine

    adapter = resource_path("demo", "adapters", "arithmetic")
    with Engine.load(str(resource_path("demo", "base-q8_0.gguf")), adapters={"arithmetic": str(adapter)}) as engine:
        answer = _ask(engine, "What is 17 + 25?", "42", {"arithmetic": 1.0})
    from loradesk_engine.model.native.library import form

    return f"{answer}, kernels: {form()}"


def check_bitsandbytes() -> str:
    """bitsandbytes' library loads and quantizes the base, which answers with an adapter on it."""
    from loradesk_engine.serving.api import Engine

    base, adapter = resource_path("demo", "base"), resource_path("demo", "adapters", "arithmetic")
    with Engine.load(str(base), adapters={"arithmetic": str(adapter)}, quantize="nf4") as engine:
        return _ask(engine, "What is 17 + 25?", "42", {"arithmetic": 1.0})


def check_server() -> str:
    """The HTTP server starts, answers and stops."""
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    from loradesk_engine.serving.http import HttpServer, ServerOptions
    from loradesk_engine.serving.worker import EngineWorker

    worker = EngineWorker()
    worker.start()
    try:
        server = HttpServer(worker, ServerOptions(port=0, key=None))
        server.start()
        try:
            address = urlsplit(server.url)
            connection = HTTPConnection(address.hostname or "", address.port, timeout=20)
            connection.request("GET", "/health")
            status = connection.getresponse().status
            connection.close()
        finally:
            server.stop()
    finally:
        worker.close()
    if status not in (200, 503):  # 503: up, and no model is loaded yet
        raise LoradeskError(f"GET /health answered {status}.")
    return f"started and stopped, GET /health answered {status}"


def check_window(keep: str | None = None) -> str:
    """A process of its own draws the window with the X-LoRA demo in it, without a display."""
    frozen = getattr(sys, "frozen", False)
    command = [sys.executable] if frozen else [sys.executable, "-m", "loradesk_engine.cli"]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(keep) if keep else Path(folder, "window.png")
        command += ["--demo", "xlora", "--startup-trace", "--screenshot", str(picture)]
        command += ["--settings", str(Path(folder, "settings.ini"))]
        command += ["--conversation", str(Path(folder, "conversation.json"))]
        environment = os.environ | {"QT_QPA_PLATFORM": "offscreen"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=WINDOW_SECONDS, check=False
        )
        # An exception in a slot of Qt is printed and nothing more: the application lives on without that part.
        if done.returncode != 0 or "Traceback" in done.stderr:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise LoradeskError(f"The application ended with code {done.returncode}: {' / '.join(words[-3:])}")
        width, height = _picture_size(picture.read_bytes())
    first_paint = re.search(r"first paint\s+(\d+) ms", done.stdout)
    return f"drawn at {width} x {height}" + (f", first paint after {first_paint[1]} ms" if first_paint else "")


def _ask(engine: Any, question: str, expected: str, adapters: dict[str, float] | None = None) -> str:
    """Ask, and see that the answer holds what is expected."""
    answer: str = engine.chat(question, adapters=adapters, temperature=0.0, max_tokens=60).text.strip()
    if expected not in answer:
        raise LoradeskError(f"{question} was answered with {answer!r}.")
    return f"{question} {answer}"


def _picture_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG picture that is more than one colour.

    Raises:
        LoradeskError: it is not, or it is blank.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise LoradeskError("The picture of the window is no PNG.")
    width, height = struct.unpack(">II", png[16:24])
    data, position = b"", 8
    while position + 8 <= len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        if png[position + 4 : position + 8] == b"IDAT":
            data += png[position + 8 : position + 8 + length]
        position += 12 + length
    if len(set(zlib.decompress(data))) < 16:
        raise LoradeskError("The window was drawn blank.")
    return width, height
