"""How late the window's event loop is while the demo model answers: `python -m loradesk_app.lag`.

A precise 5 ms timer runs beside everything else on the GUI thread; what it is late by is what a click would wait.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loradesk_engine.commands import AdapterMode, ChatRequest
    from loradesk_engine.events import RequestFinished

PERIOD = 0.005  # seconds
PROMPTS = (
    "What is 12 + 30, and what is the capital of France?",
    "Turn this into JSON: Anna is 31 and lives in Rome.",
    "Speak like Shakespeare about the sea.",
    "What is the capital of Japan?",
)
GIVE_UP_MS = 120_000


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of all values does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, min(len(ranked) - 1, round(share * len(ranked)) - 1))]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0, or 1 when the model could not be loaded or did not answer."""
    parser = argparse.ArgumentParser(prog="python -m loradesk_app.lag", description=__doc__)
    parser.add_argument("--mode", choices=("none", "lora", "xlora"), default="xlora")
    parser.add_argument("--tokens", type=int, default=160, help="tokens of each answer (default: 160)")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    with tempfile.TemporaryDirectory() as folder:
        lateness, tokens, seconds = _measure(Path(folder), arguments.mode, arguments.tokens)
    if not lateness:
        print("The demo model gave no answer.", file=sys.stderr)
        return 1
    milliseconds = [late * 1000 for late in lateness]
    print(f"{tokens} tokens in {seconds:.1f} s ({tokens / seconds:.0f} tokens/s), {len(milliseconds)} ticks of 5 ms")
    for name, share in (("50th percentile", 0.5), ("99th percentile", 0.99), ("latest", 1.0)):
        print(f"{name:<16}{percentile(milliseconds, share):8.2f} ms late")
    return 0


def _measure(folder: Path, mode: AdapterMode, tokens: int) -> tuple[list[float], int, float]:
    """Lateness of each tick in seconds, tokens generated, and the seconds they took."""
    from PySide6.QtCore import Qt, QTimer
    from PySide6.QtWidgets import QApplication

    from loradesk_app.engine_client import EngineClient
    from loradesk_app.main_window import MainWindow
    from loradesk_app.settings import Settings
    from loradesk_app.theme import Theme
    from loradesk_engine.demo import demo_settings

    app = QApplication.instance() or QApplication(sys.argv[:1])
    assert isinstance(app, QApplication)
    settings = Settings(folder / "settings.ini")
    client = EngineClient()
    window = MainWindow(settings, Theme(app, "light"), client, folder / "conversation.json")
    lateness: list[float] = []
    counts = {"tokens": 0, "answers": 0}
    started = ended = due = 0.0

    def tick() -> None:
        nonlocal due
        now = time.perf_counter()
        lateness.append(max(0.0, now - due))
        due = now + PERIOD

    timer = QTimer(window)
    timer.setTimerType(Qt.TimerType.PreciseTimer)
    timer.setInterval(int(PERIOD * 1000))
    timer.timeout.connect(tick)

    def begin() -> None:
        nonlocal started, due
        started = time.perf_counter()
        due = started + PERIOD
        timer.start()
        ask()

    def ask() -> None:
        window.chat.send(PROMPTS[counts["answers"]])

    def note_end(event: RequestFinished) -> None:
        nonlocal ended
        counts["answers"] += 1
        counts["tokens"] += event.completion_tokens
        if counts["answers"] < len(PROMPTS):
            QTimer.singleShot(0, window, ask)
            return
        timer.stop()
        ended = time.perf_counter()
        window.close()

    def ask_full_length(request: ChatRequest) -> None:
        sampling = replace(request.sampling, max_tokens=tokens, ignore_end=True)
        window._ask(replace(request, sampling=sampling))

    window.chat.answer_requested.disconnect()
    window.chat.answer_requested.connect(ask_full_length)
    client.model_loaded.connect(lambda _event: QTimer.singleShot(300, window, begin))
    client.load_failed.connect(lambda event: (print(event.problem, file=sys.stderr), window.close()))
    client.request_finished.connect(note_end)
    client.request_failed.connect(lambda event: (print(event.problem, file=sys.stderr), window.close()))
    window.closed_down.connect(lambda _clean: app.quit())
    QTimer.singleShot(GIVE_UP_MS, window, window.close)
    app.setQuitOnLastWindowClosed(False)
    window.resize(1280, 800)
    window.show()
    window.start(demo_settings(mode))
    app.exec()
    if not ended:
        return [], 0, 0.0
    return lateness, counts["tokens"], ended - started


if __name__ == "__main__":
    sys.exit(main())
